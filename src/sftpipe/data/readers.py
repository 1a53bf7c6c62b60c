"""From files, functions and the hub to tables of rows; an error names the file and the line.

Rows of json, csv, text, functions and streams are stored on disk as JSON texts. No schema is forced
on them, so that one odd row is an error of that row and not of the whole file.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from lzma import LZMAError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftpipe.config.schema import DatasetConfig
from sftpipe.config.validation_sets import split_files
from sftpipe.data.rows import JSON, ORIGIN
from sftpipe.data.user_code import load_function
from sftpipe.data.version import code_digest
from sftpipe.errors import DataError, Problem, one_line
from sftpipe.hub import HubUnreachable, latest_commit, offline
from sftpipe.storage import cache_dir, cached, digest, file_state, sha256_cached

if TYPE_CHECKING:
    from datasets import Dataset

FILE_KINDS = ("json", "csv", "parquet", "text", "arrow")
_LONGEST_FIELD_BYTES = 2**26  # of a CSV value; more is a quote that was never closed
_JSON_ROWS = "one JSON object a line, or one list of objects: [{...}, {...}]"

Stored = Iterator[tuple[str, str]]  # (row as JSON, its file and line)


@dataclass(frozen=True)
class DataFiles:
    """The local files of a data set, as they were when their digest was made.

    kind: one of `FILE_KINDS`.
    splits: {split: [file]}; a "file" of kind arrow is a folder.
    sha256: of the bytes of all files, in their order.
    states: {file: `file_state` from just before its bytes were hashed}.
    """

    kind: str
    splits: Mapping[str, Sequence[str]]
    sha256: str
    states: Mapping[Path, tuple[int, int, int] | None]

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """A block that reads the files: the digest is that of the bytes that it read.

        Raises:
            DataError: a file was written to since its bytes were hashed.
        """
        try:
            yield
        except Exception:  # half a line, for example, of a file that is being written
            self._check()
            raise
        self._check()

    def _check(self) -> None:
        for file, state in self.states.items():
            if file_state(file) != state:
                where = f"dataset.data_files: {file}"
                fix = "start again when no other program writes to it"
                raise DataError(Problem(where, "changed while it was read", fix=fix)) from None


def hash_files(kind: str, splits: Mapping[str, Sequence[str]]) -> DataFiles:
    """The files with their digest; a process hashes the bytes of a file once."""
    files = {name: _files_below(Path(name)) for names in splits.values() for name in names}
    states = {file: file_state(file) for group in files.values() for file in group}
    hashes = [
        [split, [_sha256(Path(name), files[name]) for name in names]]
        for split, names in splits.items()
    ]
    return DataFiles(kind, splits, digest(hashes), states)


def _files_below(path: Path) -> list[Path]:
    return (
        [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    )


def _sha256(path: Path, files: Sequence[Path]) -> str | list[str]:
    hashes = [sha256_cached(file) for file in files]
    return hashes[0] if path.is_file() else hashes


def read_files(files: DataFiles, cfg: DatasetConfig) -> dict[str, Dataset]:
    """The table of each split of local files.

    Args:
        files: what to read.
        cfg: for `sample_by`, and for `limit` when streaming.

    Raises:
        DataError: a file is damaged, empty or of another kind, or changes while it is read.
    """
    if files.kind == "arrow":
        with files.unchanged():
            return _read_arrow(files.splits)
    if files.kind == "parquet":
        return _read_parquet(files)
    stop = cfg.limit if cfg.streaming else None
    names = {  # they are in the origins of the rows
        split: [Path(name).name for name in group] for split, group in files.splits.items()
    }

    def build(folder: Path) -> None:
        with files.unchanged():
            for split, group in files.splits.items():
                store(_rows_of(files.kind, group, cfg.sample_by, stop), folder / f"{split}.arrow")

    return cached(
        "rows",
        digest(code_digest(), files.kind, cfg.sample_by, stop, names, files.sha256),
        build,
        lambda folder: {split: load(folder / f"{split}.arrow") for split in files.splits},
    )


def _rows_of(kind: str, names: Sequence[str], sample_by: str, stop: int | None) -> Stored:
    """The rows of some files, of each at most `stop`."""
    found = False
    for name in names:
        for row in islice(_lines(kind, Path(name), sample_by), stop):
            found = True
            yield row
    if not found:
        no_rows = f"{', '.join(names)}: no rows"
        raise DataError(Problem("dataset.data_files", no_rows, fix="name files that hold rows"))


def store(rows: Stored, file: Path) -> str:
    """Write rows to an Arrow stream, a thousand at a time; returns the SHA-256 of their JSON."""
    import pyarrow as pa

    schema = pa.schema({JSON: pa.large_string(), ORIGIN: pa.large_string()})
    seen = hashlib.sha256()
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while batch := list(islice(rows, 1000)):
            texts, origins = zip(*batch, strict=True)
            seen.update("\n".join(texts).encode())
            writer.write_batch(
                pa.record_batch(
                    [pa.array(texts, pa.large_string()), pa.array(origins, pa.large_string())],
                    schema=schema,
                )
            )
    return seen.hexdigest()


def load(file: Path) -> Dataset:
    """A stored table, mapped into memory."""
    import datasets

    return datasets.Dataset.from_file(str(file))


# --- kinds of files -------------------------------------------------------------------------------


def _lines(kind: str, file: Path, sample_by: str) -> Stored:
    try:
        if kind == "json":
            yield from _json_rows(file)
        elif kind == "csv":
            yield from _csv_rows(file)
        else:
            yield from _text_rows(file, sample_by)
    except (EOFError, zlib.error, LZMAError, zipfile.BadZipFile, OSError) as error:
        found = f"the compressed file is damaged or cut off ({error})"
        fix = "fetch or make the file again"
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            found = f"the file cannot be read: {error.strerror}"
            fix = "look at its permissions and at the disk"
        raise DataError(Problem(f"dataset.data_files: {file}", found, fix=fix)) from None


def _open(file: Path) -> contextlib.AbstractContextManager[Any]:
    """Bytes of a file, decompressed by the ending of its name (.gz, .bz2, .xz, .zip)."""
    import fsspec

    if file.suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            held = [name for name in archive.namelist() if not name.endswith("/")]
        if len(held) != 1:
            problem = Problem(
                f"dataset.data_files: {file}",
                f"{len(held)} files in one archive: {', '.join(held[:5])}",
                allowed="one file",
                fix="unpack it, and name the files",
            )
            raise DataError(problem)
    return fsspec.open(str(file), "rb", compression="infer")  # type: ignore[no-any-return]


def _decode(text: bytes, file: Path, number: int) -> str:
    """Text that begins in line `number`."""
    try:
        return text.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        at = number + text.count(b"\n", 0, error.start)
        raise _bad_line(
            file, at, f"byte {text[error.start]:#04x} is no UTF-8", "save the file as UTF-8"
        ) from None


def _bad_line(file: Path, number: int, found: str, fix: str, allowed: str = "") -> DataError:
    return DataError(
        Problem(f"dataset.data_files: {file}, line {number}", found, allowed=allowed, fix=fix)
    )


def _json_rows(file: Path) -> Stored:
    """JSON Lines, or one JSON list of rows."""
    begun = False
    with _open(file) as lines:
        for number, raw in enumerate(lines, start=1):
            line = _decode(raw, file, number).strip()
            if not line:
                continue
            if line[0] == "[" and not begun:
                yield from _json_list(_decode(raw + b"".join(lines), file, number), file, number)
                return
            row = _parse_json(line, file, number)
            if not isinstance(row, dict):
                raise _bad_line(file, number, _show(row), "fix the line", _JSON_ROWS)
            begun = True
            yield line, f"{file.name}, line {number}"


def _json_list(text: str, file: Path, first: int) -> Stored:
    for number, row in enumerate(_parse_json(text, file, first)):
        if not isinstance(row, dict):
            raise DataError(
                Problem(
                    f"dataset.data_files: {file}, row {number}",
                    _show(row),
                    allowed="a list of objects: [{...}, {...}]",
                    fix="fix the file",
                )
            )
        yield json.dumps(row), f"{file.name}, row {number}"


def _parse_json(text: str, file: Path, first: int) -> Any:
    """The value of a text that begins in line `first`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        excerpt = text[max(0, error.pos - 20) : error.pos + 20]
        found = f"no JSON: {error.msg} at character {error.colno}: {excerpt!r}"
        # to a reader of lines, an object that is spread over lines ends too early
        spread = text[0] == "{" and error.pos >= len(text)
        one_row = "write the whole object on one line, or all objects as one list"
        fix = one_row if spread else "fix the line"
        raise _bad_line(file, first + error.lineno - 1, found, fix, _JSON_ROWS) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, deep brackets
        found = f"JSON that cannot be read: {error}"
        raise _bad_line(file, first, found, "fix the line", _JSON_ROWS) from None


def _show(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def _csv_rows(file: Path) -> Stored:
    """CSV (or TSV) with a header.

    Every value is the text that is written: "N/A" stays a word and "007" keeps its zeros.
    """
    with _open(file) as raw:
        lines = (_decode(line, file, number) for number, line in enumerate(raw, start=1))
        reader = csv.reader(lines, strict=True, delimiter="\t" if ".tsv" in file.suffixes else ",")
        header: list[str] | None = None
        begins = 1
        before = csv.field_size_limit(_LONGEST_FIELD_BYTES)
        try:
            for fields in reader:
                if fields and header is None:
                    header = _csv_header(fields, file, begins)
                elif fields and header is not None:
                    row = _csv_row(header, fields, file, begins)
                    yield json.dumps(row), f"{file.name}, line {begins}"
                begins = reader.line_num + 1
        except csv.Error as error:
            found = f"the row that begins here cannot be read: {error}"
            fix = 'close the quote; a quote inside a quoted value is written twice: ""'
            if "new-line" in str(error):
                found = "a carriage return without a line feed (old Mac line ends)"
                fix = "save the file with line feeds"
            raise _bad_line(file, begins, found, fix) from None
        finally:
            csv.field_size_limit(before)


def _csv_header(fields: list[str], file: Path, number: int) -> list[str]:
    other = next((mark for mark in (";", "\t") if mark in fields[0]), None)
    if len(fields) == 1 and other:
        found = f"one column, {fields[0]!r}: it seems to be split by {other!r}"
        fix = "split the columns by commas, or by tabs in a file whose name ends in .tsv"
        raise _bad_line(file, number, found, fix)
    twice = sorted({name for name in fields if fields.count(name) > 1})
    if twice:
        found = f"the column {twice[0]!r} is in the header twice"
        raise _bad_line(file, number, found, "give each column a name of its own")
    return fields


def _csv_row(header: list[str], fields: list[str], file: Path, number: int) -> dict[str, str]:
    if len(fields) != len(header):
        found = f"{len(fields)} values for the {len(header)} columns {', '.join(header)}"
        fix = 'put values that hold a comma, a quote or a line break into "..."'
        raise _bad_line(file, number, found, fix)
    return dict(zip(header, fields, strict=True))


def _text_rows(file: Path, sample_by: str) -> Stored:
    """Lines, paragraphs (between empty lines) or the whole file; blank ones are no rows."""
    with _open(file) as raw:
        decoded = (
            _decode(line, file, number).replace("\r\n", "\n")
            for number, line in enumerate(raw, start=1)
        )
        begins, held = 1, ""
        for number, line in enumerate(decoded, start=1):
            if not held:
                begins = number
            if sample_by == "line" or (sample_by == "paragraph" and not line.strip()):
                text, held = (held + line if sample_by == "line" else held), ""
                if text.strip():
                    yield json.dumps({"text": text.rstrip("\n")}), f"{file.name}, line {begins}"
            else:
                held += line
        if held.strip():
            yield (
                json.dumps({"text": held if sample_by == "document" else held.rstrip("\n")}),
                f"{file.name}, line {begins}",
            )


def _read_parquet(files: DataFiles) -> dict[str, Dataset]:
    import datasets

    def load_from(folder: Path) -> dict[str, Dataset]:
        named = {split: list(names) for split, names in files.splits.items()}
        return dict(
            datasets.load_dataset("parquet", data_files=named, cache_dir=str(folder / "parquet"))
        )

    def build(folder: Path) -> None:
        with files.unchanged():
            load_from(folder)

    # `datasets` knows files by name and time, so that old rows could come back for new bytes;
    # this entry is known by its content
    try:
        return cached("rows", digest("parquet", files.sha256), build, load_from)
    except (datasets.exceptions.DatasetGenerationError, ValueError, StopIteration) as error:
        names = ", ".join(name for group in files.splits.values() for name in group)
        cause = one_line(error.__cause__ or error)[:200]
        problem = Problem(
            "dataset.data_files",
            f"{names} cannot be read as parquet: {cause}",
            fix="fix the file, or choose the right one of dataset=json|csv|parquet|text|arrow",
        )
        raise DataError(problem) from None


def _read_arrow(splits: Mapping[str, Sequence[str]]) -> dict[str, Dataset]:
    """Folders that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    import datasets

    loaded: dict[str, Dataset] = {}
    for split, (folder, *more) in splits.items():
        try:
            found = datasets.load_from_disk(folder)
        except (FileNotFoundError, ValueError, OSError, KeyError) as error:
            problem = Problem(
                "dataset.data_files",
                f"{folder} is no saved data set ({one_line(error)})",
                allowed="a folder that Dataset.save_to_disk wrote",
            )
            raise DataError(problem) from None
        if more or (isinstance(found, datasets.DatasetDict) and len(splits) > 1):
            allowed = "one folder of a DatasetDict, or {train: folder, ...} of single data sets"
            raise DataError(Problem("dataset.data_files", f"{folder} and others", allowed=allowed))
        loaded |= dict(found) if isinstance(found, datasets.DatasetDict) else {split: found}
    return loaded


# --- functions and the hub ------------------------------------------------------------------------


def call_function(cfg: DatasetConfig, allowed: Sequence[str]) -> dict[str, Dataset]:
    """The table of each split of what `dataset.function` returns: rows, or {split: rows}.

    Raises:
        DataError: it raises, or returns something that is not rows.
    """
    path = str(cfg.function)
    function = load_function(path, "dataset.function", allowed)
    try:
        result = function()
    except Exception as error:  # a user's code can raise anything
        raise _raised(path, error) from error
    splits = result if isinstance(result, Mapping) else {"train": result}
    stop = cfg.limit if cfg.streaming else None
    return {split: store_stream(_checked(rows, path), path, stop) for split, rows in splits.items()}


def _checked(rows: Any, path: str) -> Iterator[Mapping[str, Any]]:
    allowed = "rows ({column: value} each), or {split: rows}"
    if not isinstance(rows, Iterable):
        found = f"{path} returned {_show(rows)}"
        raise DataError(Problem("dataset.function", found, allowed=allowed))
    each, number = iter(rows), 0
    while True:
        try:
            row = next(each)
        except StopIteration:
            return
        except Exception as error:  # a user's generator can raise anything, at any row
            raise _raised(path, error, f" at row {number}") from error
        if not isinstance(row, Mapping) or not all(isinstance(name, str) for name in row):
            found = f"row {number} of {path} is {_show(row)}"
            raise DataError(Problem("dataset.function", found, allowed=allowed))
        yield row
        number += 1


def _raised(path: str, error: Exception, at: str = "") -> DataError:
    found = f"{path} raised {type(error).__name__}{at}: {error}"
    return DataError(Problem("dataset.function", found, fix="fix the function"))


def store_stream(rows: Iterable[Mapping[str, Any]], name: str, limit: int | None) -> Dataset:
    """A table of rows that come from no file."""

    def stored() -> Stored:
        for number, row in enumerate(islice(rows, limit)):
            yield json.dumps(dict(row), default=_no_json), f"{name}, row {number}"

    return store_by_content(stored(), name)[0]


def _no_json(value: Any) -> dict[str, str]:
    return {"no value of JSON": type(value).__name__}


def store_by_content(stored: Stored, name: str) -> tuple[Dataset, str]:
    """A table of rows, known by a hash of their content; returns both.

    Args:
        stored: the rows, each as JSON and with its origin.
        name: what made them; equal rows of two makers have two entries, because origins differ.
    """
    folder = cache_dir() / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    # the key is known after the last row; storage._evict removes the file of a killed process
    handle, unnamed = tempfile.mkstemp(dir=folder, prefix=".", suffix=".arrow")
    os.close(handle)
    rows = Path(unnamed)
    try:
        content = store(stored, rows)
        table = cached(
            "rows",
            digest(content, name),
            partial(_move, rows),
            lambda folder: load(folder / "rows.arrow"),
        )
        return table, content
    finally:
        rows.unlink(missing_ok=True)


def _move(rows: Path, folder: Path) -> None:
    rows.replace(folder / "rows.arrow")


def read_hub(cfg: DatasetConfig) -> dict[str, Dataset]:
    """The table of each split of a data set of the Hugging Face hub.

    Without a way to the hub it is the local copy.

    Raises:
        DataError: there is no such data set, or no way to it.
    """
    import datasets

    files = split_files(cfg.data_files) if isinstance(cfg.data_files, dict) else cfg.data_files
    reached: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    reason = ""
    try:
        latest_commit("dataset", cfg.path, cfg.revision)
    except HubUnreachable as error:
        reached, reason = offline(), f" and the hub cannot be reached ({error})"
    try:
        with reached:
            loaded = datasets.load_dataset(
                cfg.path,
                cfg.name,
                revision=cfg.revision,
                data_files=files,
                streaming=cfg.streaming,
            )
            if cfg.streaming:
                return {
                    split: store_stream(rows, f"{cfg.path}/{split}", cfg.limit)
                    for split, rows in loaded.items()
                }
            return dict(loaded)
    except (ConnectionError, OSError, ValueError) as error:
        found = "is not in the local cache" if reason else one_line(error)[:200]
        problem = Problem(
            "dataset.path",
            f"{cfg.path}: {found}{reason}",
            fix="go online, or dataset=json dataset.data_files=... for local files",
        )
        raise DataError(problem) from None
