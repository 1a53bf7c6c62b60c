"""From files and functions to stored rows; an error names the file and the line."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sftpipe.config.schema import DatasetConfig
from sftpipe.data.arrow_rows import dataset_rows, parquet_rows
from sftpipe.data.csv_files import Delimiter, csv_rows, find_delimiter
from sftpipe.data.json_files import json_rows
from sftpipe.data.stored import (
    RowToStore,
    StoredRows,
    cached_splits,
    numbered,
    show,
    store_by_content,
)
from sftpipe.data.text_files import TextFile, text_rows
from sftpipe.data.user_code import load_function
from sftpipe.data.version import code_digest
from sftpipe.errors import DataError, Problem, one_line
from sftpipe.storage import digest, file_state, sha256_cached
from sftpipe.terminal import console

FILE_KINDS = ("json", "csv", "parquet", "text", "arrow")


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


def read_files(
    files: DataFiles, cfg: DatasetConfig, required: Sequence[str] = ()
) -> dict[str, StoredRows]:
    """The rows of each split of local files.

    Args:
        files: what to read.
        cfg: how to read it.
        required: columns that the format needs, by the names of the data set. They tell the
            separator of a CSV file, and a layout of JSON from a row.

    Raises:
        DataError: a file is damaged, empty or of another kind, or changes while it is read.
    """
    stop = cfg.limit if cfg.streaming else None
    named = {  # they are in the origins of the rows
        split: [Path(name).name for name in group] for split, group in files.splits.items()
    }
    delimiters = _delimiters(files, cfg, required)
    how = _HowToRead(files.kind, cfg, required, delimiters)

    def read() -> Mapping[str, Iterable[RowToStore]]:
        if files.kind == "arrow":
            return _saved_rows(files.splits, stop)
        return {split: _rows_of(group, how, stop) for split, group in files.splits.items()}

    marks = [delimiters[name].mark for name in delimiters]
    keys = [cfg.sample_by, cfg.encoding, cfg.field, marks]
    return cached_splits(
        digest(code_digest(), files.kind, keys, stop, named, files.sha256), read, files.unchanged()
    )


# --- kinds of files -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _HowToRead:
    kind: str
    cfg: DatasetConfig
    required: Sequence[str]
    delimiters: Mapping[str, Delimiter]

    def rows(self, name: str) -> Iterator[RowToStore]:
        """The rows of a file."""
        file = _text_file(name, self.cfg)
        if self.kind == "parquet":
            return parquet_rows(file.path)
        if self.kind == "json":
            return json_rows(file, self.cfg.field, self.required)
        if self.kind == "csv":
            return csv_rows(file, self.delimiters[name].mark)
        return text_rows(file, self.cfg.sample_by)


def _text_file(name: str, cfg: DatasetConfig) -> TextFile:
    return TextFile(Path(name), cfg.encoding)


def _rows_of(names: Sequence[str], how: _HowToRead, stop: int | None) -> Iterator[RowToStore]:
    """The rows of some files, of each at most `stop`."""
    found = False
    for name in names:
        for row in islice(how.rows(name), stop):
            found = True
            yield row
    if not found:
        raise _no_rows(", ".join(names))


def _no_rows(names: str) -> DataError:
    fix = "name files that hold rows"
    return DataError(Problem("dataset.data_files", f"{names}: no rows", fix=fix))


def _delimiters(
    files: DataFiles, cfg: DatasetConfig, required: Sequence[str]
) -> dict[str, Delimiter]:
    """{CSV file: what splits its columns}; one that nobody chose is told."""
    if files.kind != "csv":
        return {}
    names = [name for group in files.splits.values() for name in group]
    delimiters = {
        name: find_delimiter(_text_file(name, cfg), cfg.delimiter, required) for name in names
    }
    for mark in dict.fromkeys(one.mark for one in delimiters.values() if one.found):
        split = [name for name, one in delimiters.items() if one == Delimiter(mark, found=True)]
        told = split[0] + (f" and {len(split) - 1} more" if len(split) > 1 else "")
        console.print(f"{told}: columns are split by {mark!r} (dataset.delimiter)", markup=False)
    return delimiters


def _saved_rows(
    splits: Mapping[str, Sequence[str]], stop: int | None
) -> dict[str, Iterator[RowToStore]]:
    """Rows of folders that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    loaded: dict[str, Iterator[RowToStore]] = {}
    for split, (name, *more) in splits.items():
        folder = Path(name)
        listed = folder / "dataset_dict.json"
        if more or (listed.is_file() and len(splits) > 1):
            allowed = "one folder of a DatasetDict, or {train: folder, ...} of single data sets"
            raise DataError(Problem("dataset.data_files", f"{name} and others", allowed=allowed))
        if listed.is_file():
            names = json.loads(listed.read_text(encoding="utf-8"))["splits"]
            loaded |= {one: _saved(folder / one, f"{folder.name}/{one}", stop) for one in names}
        elif _is_empty(folder):
            raise _no_rows(name)
        else:
            loaded[split] = _saved(folder, folder.name, stop)
    return loaded


def _saved(folder: Path, name: str, stop: int | None) -> Iterator[RowToStore]:
    import datasets

    if _is_empty(folder):
        return
    try:
        yield from dataset_rows(datasets.load_from_disk(str(folder)), name, stop)
    except Exception as error:  # of a damaged file Arrow raises many things
        found = f"{folder} is no saved data set ({one_line(error)[:200]})"
        allowed = "a folder that Dataset.save_to_disk wrote"
        raise DataError(Problem("dataset.data_files", found, allowed=allowed)) from None


def _is_empty(folder: Path) -> bool:
    """True for a saved data set without rows, which `datasets` cannot load."""
    return (folder / "state.json").is_file() and not any(folder.glob("*.arrow"))


# --- functions ------------------------------------------------------------------------------------


def call_function(cfg: DatasetConfig, allowed: Sequence[str]) -> dict[str, StoredRows]:
    """The rows of each split of what `dataset.function` returns.

    That is rows, an object of `datasets`, or {split: one of them}.

    Raises:
        DataError: it raises, or returns something that is not rows.
    """
    import datasets

    path = str(cfg.function)
    function = load_function(path, "dataset.function", allowed)
    try:
        result = function()
    except Exception as error:  # a user's code can raise anything
        raise _raised(path, error) from error
    splits = result if isinstance(result, Mapping) else {"train": result}
    stop = cfg.limit if cfg.streaming else None
    kinds = (datasets.Dataset, datasets.IterableDataset)
    return {
        split: store_by_content(
            _of_object(rows, path, stop)
            if isinstance(rows, kinds)
            else numbered(islice(_checked(rows, path), stop), path),
            path,
        )
        for split, rows in splits.items()
    }


def _of_object(rows: Any, path: str, stop: int | None) -> Iterator[RowToStore]:
    try:
        yield from dataset_rows(rows, path, stop)
    except Exception as error:  # its rows may be made by a user's function, too
        raise _raised(path, error) from error


def _checked(rows: Any, path: str) -> Iterator[Mapping[str, Any]]:
    allowed = "rows ({column: value} each), or {split: rows}"
    if not isinstance(rows, Iterable):
        found = f"{path} returned {show(rows)}"
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
            found = f"row {number} of {path} is {show(row)}"
            raise DataError(Problem("dataset.function", found, allowed=allowed))
        yield dict(row)
        number += 1


def _raised(path: str, error: Exception, at: str = "") -> DataError:
    found = f"{path} raised {type(error).__name__}{at}: {error}"
    return DataError(Problem("dataset.function", found, fix="fix the function"))
