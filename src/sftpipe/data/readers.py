"""Files, functions and the hub to tables of rows, with an error that names the file and the line.

Rows of json, csv, text, functions and streams are stored as their JSON text, one value a row, on
disk: no schema is forced on them, so that a bad row is met where rows are read and not as a failure
of the whole file.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import json
import os
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from lzma import LZMAError
from pathlib import Path
from typing import Any

from sftpipe.config.schema import DatasetConfig
from sftpipe.data.version import code_digest
from sftpipe.errors import DataError, Problem, nearest, one_line
from sftpipe.hub import HubUnreachable, NotOnHub, latest_commit, offline
from sftpipe.storage import cache_dir, cached, digest

JSON, ORIGIN = "json", "origin"  # columns of a stored table: the row, and where it stood
FILE_KINDS = ("json", "csv", "parquet", "text", "arrow")
_LONGEST_FIELD_BYTES = 2**26  # of a CSV value; more is a quote that was never closed
_JSON_ROWS = "one JSON object a line, or one list of objects: [{...}, {...}]"

Stored = Iterator[tuple[str, str]]  # (row as JSON, where it stood)


def read_files(
    kind: str, files: Mapping[str, Sequence[str]], cfg: DatasetConfig, content: str
) -> dict[str, Any]:
    """{split: `datasets.Dataset`} of local files.

    Args:
        kind: one of `FILE_KINDS`.
        files: {split: files}.
        cfg: for `sample_by`, and for `limit` when streaming.
        content: hash of the bytes of all files.

    Raises:
        DataError: a file is damaged, empty or of another kind.
    """
    if kind == "arrow":
        return _read_arrow(files)
    if kind == "parquet":
        return _read_parquet(files, content)
    stop = cfg.limit if cfg.streaming else None

    def rows(names: Sequence[str]) -> Stored:
        found = False
        for name in names:
            for row in islice(_lines(kind, Path(name), cfg.sample_by), stop):
                found = True
                yield row
        if not found:
            raise DataError(
                Problem(
                    "dataset.data_files",
                    f"{', '.join(names)}: no rows",
                    fix="name files that hold rows",
                )
            )

    named = {
        split: [Path(name).name for name in names] for split, names in files.items()
    }  # they stand in the rows' origins
    key = digest(code_digest(), kind, cfg.sample_by, stop, named, content)

    def build(folder: Path) -> None:
        for split, names in files.items():
            store(rows(names), folder / f"{split}.arrow")

    return cached(
        "rows",
        key,
        build,
        lambda folder: {split: load(folder / f"{split}.arrow") for split in files},
    )


def store(rows: Stored, file: Path) -> str:
    """Write rows to an Arrow stream, a thousand at a time; returns the SHA-256 of their JSON."""
    import hashlib

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


def load(file: Path) -> Any:
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
        found, fix = (
            f"the compressed file is damaged or cut off ({error})",
            "fetch or make the file again",
        )
        if (
            isinstance(error, OSError) and error.errno is not None
        ):  # the disk's, not the decompressor's
            found, fix = (
                f"the file cannot be read: {error.strerror}",
                "look at its permissions and at the disk",
            )
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
                raise _bad_line(file, number, _show(row), "mend the line", _JSON_ROWS)
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
                    fix="mend the file",
                )
            )
        yield json.dumps(row), f"{file.name}, row {number}"


def _parse_json(text: str, file: Path, first: int) -> Any:
    """The value of a text that begins in line `first`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        found = (
            f"no JSON: {error.msg} at character {error.colno}: "
            f"{text[max(0, error.pos - 20) : error.pos + 20]!r}"
        )
        cut = text[0] == "{" and error.pos >= len(
            text
        )  # where an object spread over lines ends for a reader of lines
        fix = (
            "write the whole object on one line, or all objects as one list"
            if cut
            else "mend the line"
        )
        raise _bad_line(file, first + error.lineno - 1, found, fix, _JSON_ROWS) from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # a number of thousands of digits, brackets in brackets in brackets
        raise _bad_line(
            file, first, f"JSON that cannot be read: {error}", "mend the line", _JSON_ROWS
        ) from None


def _show(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def _csv_rows(file: Path) -> Stored:
    """CSV (or TSV) with a header; every value is the text that it is: "N/A" stays a word and "007" keeps its zeros."""
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
                    if len(fields) != len(header):
                        found = (
                            f"{len(fields)} values for the {len(header)} "
                            f"columns {', '.join(header)}"
                        )
                        raise _bad_line(
                            file,
                            begins,
                            found,
                            'put values that hold a comma, a quote or a line break into "..."',
                        )
                    yield (
                        json.dumps(dict(zip(header, fields, strict=True))),
                        f"{file.name}, line {begins}",
                    )
                begins = reader.line_num + 1
        except csv.Error as error:
            found, fix = (
                f"the row that begins here cannot be read: {error}",
                'close the quote; a quote inside a quoted value is written twice: ""',
            )
            if "new-line" in str(error):
                found, fix = (
                    "a carriage return without a line feed (old Mac line ends)",
                    "save the file with line feeds",
                )
            raise _bad_line(file, begins, found, fix) from None
        finally:
            csv.field_size_limit(before)


def _csv_header(fields: list[str], file: Path, number: int) -> list[str]:
    if len(fields) == 1 and (
        other := next((mark for mark in (";", "\t") if mark in fields[0]), None)
    ):
        found = f"one column, {fields[0]!r}: it seems to be split by {other!r}"
        raise _bad_line(
            file,
            number,
            found,
            "split the columns by commas, or by tabs in a file whose name ends in .tsv",
        )
    twice = sorted({name for name in fields if fields.count(name) > 1})
    if twice:
        raise _bad_line(
            file,
            number,
            f"the column {twice[0]!r} stands twice in the header",
            "give each column a name of its own",
        )
    return fields


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


def _read_parquet(files: Mapping[str, Sequence[str]], content: str) -> dict[str, Any]:
    import datasets

    def load_from(folder: Path) -> dict[str, Any]:
        named = {split: list(names) for split, names in files.items()}
        return dict(
            datasets.load_dataset("parquet", data_files=named, cache_dir=str(folder / "parquet"))
        )

    # `datasets` tells files apart by name and time, so old rows could come back for new bytes; this
    # tells them apart by content
    try:
        return cached("rows", digest("parquet", content), load_from, load_from)
    except (datasets.exceptions.DatasetGenerationError, ValueError, StopIteration) as error:
        names = ", ".join(name for group in files.values() for name in group)
        cause = one_line(error.__cause__ or error)[:200]
        raise DataError(
            Problem(
                "dataset.data_files",
                f"{names} cannot be read as parquet: {cause}",
                fix="mend the file, or choose the right one of dataset=json|csv|parquet|text|arrow",
            )
        ) from None


def _read_arrow(files: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Folders that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    import datasets

    loaded: dict[str, Any] = {}
    for split, (folder, *more) in files.items():
        try:
            found = datasets.load_from_disk(folder)
        except (FileNotFoundError, ValueError, OSError, KeyError) as error:
            problem = Problem(
                "dataset.data_files",
                f"{folder} is no saved data set ({one_line(error)[:120]})",
                allowed="a folder that Dataset.save_to_disk wrote",
            )
            raise DataError(problem) from None
        if more or (isinstance(found, datasets.DatasetDict) and len(files) > 1):
            allowed = "one folder of a DatasetDict, or {train: folder, ...} of single data sets"
            raise DataError(Problem("dataset.data_files", f"{folder} and others", allowed=allowed))
        loaded |= dict(found) if isinstance(found, datasets.DatasetDict) else {split: found}
    return loaded


# --- functions and the hub ------------------------------------------------------------------------


def load_function(path: str, key: str, allowed: Sequence[str]) -> Callable[..., Any]:
    """The function that a dotted path names, looked up in the working folder too.

    Args:
        path: `package.module.function`.
        key: the config key that holds the path, for messages.
        allowed: top-level names that paths may begin with, beside `sftpipe`.

    Raises:
        DataError: the path leads nowhere, or begins with a name that is not allowed.
    """
    module_name, _, name = path.rpartition(".")
    root = path.split(".")[0]
    known = "package.module.function, installed or in the working folder"
    if not module_name or not all(part.isidentifier() for part in path.split(".")):
        raise DataError(Problem(key, f"{path!r} is no dotted path", allowed=known))
    if root not in ("sftpipe", *allowed):
        problem = Problem(
            key,
            f"{path!r} would run code of {root!r}",
            allowed=", ".join(("sftpipe", *allowed)),
            fix=f"allowed_targets=[{root}]",
        )
        raise DataError(problem)
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise DataError(Problem(key, f"{path!r}: {error}", allowed=known)) from None
    except Exception as error:  # a user's code can raise anything
        problem = Problem(
            key,
            f"{module_name} raised {type(error).__name__} when it was imported: {error}",
            fix="mend the module",
        )
        raise DataError(problem) from error
    finally:
        sys.path.remove(folder)
    function = getattr(module, name, None)
    if not callable(function):
        names = [
            own
            for own, value in vars(module).items()
            if callable(value) and not own.startswith("_")
        ]
        match = nearest(name, names)
        problem = Problem(
            key,
            f"{module_name} has no function {name!r}",
            allowed=", ".join(names),
            fix=f"{key}={module_name}.{match}" if match else "",
        )
        raise DataError(problem)
    return function  # type: ignore[no-any-return]


def call_function(cfg: DatasetConfig, allowed: Sequence[str]) -> dict[str, Any]:
    """{split: table} of what `dataset.function` returns: rows, or {split: rows}.

    Raises:
        DataError: it raises, or returns something that is not rows.
    """
    path = str(cfg.function)
    function = load_function(path, "dataset.function", allowed)
    try:
        result = function()
    except Exception as error:  # a user's code can raise anything
        raise DataError(
            Problem(
                "dataset.function",
                f"{path} raised {type(error).__name__}: {error}",
                fix="mend the function",
            )
        ) from error
    splits = result if isinstance(result, Mapping) else {"train": result}
    return {
        split: store_stream(_checked(rows, path), path, cfg.limit if cfg.streaming else None)
        for split, rows in splits.items()
    }


def _checked(rows: Any, path: str) -> Iterator[Mapping[str, Any]]:
    allowed = "rows ({column: value} each), or {split: rows}"
    if not isinstance(rows, Iterable):
        raise DataError(
            Problem("dataset.function", f"{path} returned {_show(rows)}", allowed=allowed)
        )
    each, number = iter(rows), 0
    while True:
        try:
            row = next(each)
        except StopIteration:
            return
        except Exception as error:  # a user's generator can raise anything, at any row
            found = f"{path} raised {type(error).__name__} at row {number}: {error}"
            raise DataError(Problem("dataset.function", found, fix="mend the function")) from error
        if not isinstance(row, Mapping) or not all(isinstance(name, str) for name in row):
            raise DataError(
                Problem(
                    "dataset.function", f"row {number} of {path} is {_show(row)}", allowed=allowed
                )
            )
        yield row
        number += 1


def store_stream(rows: Iterable[Mapping[str, Any]], name: str, limit: int | None) -> Any:
    """Rows that have no file to be known by: stored as they come, under a hash of their content."""
    folder = cache_dir() / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    handle, partial_name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".arrow")
    os.close(handle)
    partial = Path(partial_name)

    def stored() -> Stored:
        for number, row in enumerate(islice(rows, limit)):
            yield (
                json.dumps(
                    dict(row), default=lambda value: {"no value of JSON": type(value).__name__}
                ),
                f"{name}, row {number}",
            )

    try:
        key = store(stored(), partial)
        return cached(
            "rows",
            digest(key, name),
            lambda final: _move(partial, final),
            lambda final: load(final / "rows.arrow"),
        )
    finally:
        partial.unlink(missing_ok=True)


def _move(partial: Path, folder: Path) -> None:
    partial.replace(folder / "rows.arrow")


def read_hub(cfg: DatasetConfig) -> dict[str, Any]:
    """{split: table} of a data set of the Hugging Face hub, or of the local copy when the hub cannot be reached.

    Raises:
        DataError: there is no such data set, or no way to it.
    """
    import datasets

    reached: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    reason = ""
    try:
        latest_commit("dataset", cfg.path, cfg.revision)
    except NotOnHub as error:
        raise DataError(error.problem) from None
    except HubUnreachable as error:
        reached, reason = offline(), f" and the hub cannot be reached ({error})"
    try:
        with reached:
            loaded = datasets.load_dataset(
                cfg.path,
                cfg.name,
                revision=cfg.revision,
                data_files=cfg.data_files,
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
        raise DataError(
            Problem(
                "dataset.path",
                f"{cfg.path}: {found}{reason}",
                fix="go online, or dataset=json dataset.data_files=... for local files",
            )
        ) from None
