"""Data sets of the Hugging Face hub, and folders in its layout, to stored rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftpipe.config.schema import DatasetConfig
from sftpipe.config.validation_sets import split_files
from sftpipe.data.arrow_rows import dataset_rows
from sftpipe.data.stored import RowToStore, StoredRows, cached_splits, store_by_content
from sftpipe.data.version import code_digest
from sftpipe.errors import DataError, Problem, SftpipeError, one_line, override
from sftpipe.hub import HubUnreachable, latest_commit, offline
from sftpipe.storage import digest

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_KINDS = {"jsonl": "json", "json": "json", "csv": "csv", "tsv": "csv", "parquet": "parquet"}
_CAUSE = 300  # characters of upstream's reason


def read_hub(cfg: DatasetConfig) -> dict[str, StoredRows]:
    """The rows of each split of a data set of the hub, or of a local folder in its layout.

    Without a way to the hub they are those of the local copy.

    Raises:
        DataError: there is no such data set, no way to it, or its files do not go together.
    """
    reached: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    reason = ""
    if not Path(cfg.path).is_dir():
        try:
            latest_commit("dataset", cfg.path, cfg.revision)
        except HubUnreachable as error:
            reached, reason = offline(), f" and the hub cannot be reached ({error})"
    with reached:
        with _told(cfg, reason):
            loaded = _load(cfg)
        return {split: _stored(rows, split, cfg, reason) for split, rows in loaded.items()}


def _load(cfg: DatasetConfig) -> Mapping[str, Dataset | IterableDataset]:
    import datasets

    files = split_files(cfg.data_files) if isinstance(cfg.data_files, dict) else cfg.data_files
    loaded: Mapping[str, Any] = datasets.load_dataset(
        cfg.path, cfg.name, revision=cfg.revision, data_files=files, streaming=cfg.streaming
    )
    return loaded


def _stored(
    rows: Dataset | IterableDataset, split: str, cfg: DatasetConfig, unreachable: str
) -> StoredRows:
    name = f"{cfg.path} {split}"

    def each(stop: int | None) -> Iterator[RowToStore]:
        with _told(cfg, unreachable):
            yield from dataset_rows(rows, name, stop)

    if cfg.streaming:
        return store_by_content(each(cfg.limit), name)
    key = digest(code_digest(), "hub", name, rows._fingerprint)
    return cached_splits(key, lambda: {split: each(None)})[split]


@contextlib.contextmanager
def _told(cfg: DatasetConfig, unreachable: str) -> Iterator[None]:
    """A block in which whatever `datasets` raises becomes an error of ours."""
    try:
        yield
    except SftpipeError:
        raise
    except Exception as error:  # upstream's errors have no common base
        file = _file_of(error, cfg)
        found = f"datasets cannot read it: {_cause(error)}" + (f" (in {file})" if file else "")
        if Path(cfg.path).is_dir():
            fix = _read_as_files(cfg) or "look at the files of the folder"
        elif unreachable and isinstance(error, (ConnectionError, FileNotFoundError, ValueError)):
            found = f"is not in the local cache{unreachable}"
            fix = "go online, or dataset=json dataset.data_files=... for local files"
        else:
            fix = (
                "look at dataset.name, revision and data_files; or fetch the files, then "
                "dataset=json dataset.data_files=... reads them row by row"
            )
        found = f"{cfg.path}: {found}"
        raise DataError(Problem("dataset.path", found, fix=fix)) from None


def _cause(error: BaseException) -> str:
    """The innermost reason, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {one_line(error)[:_CAUSE]}"


def _file_of(error: BaseException, cfg: DatasetConfig) -> str:
    """The file that an error, or the one before it, names."""
    told = ""
    one: BaseException | None = error
    while one is not None:
        told += str(one)
        one = one.__cause__ or one.__context__
    folder = Path(cfg.path)
    files = sorted(folder.rglob("*")) if folder.is_dir() else []
    return next((str(file) for file in files if file.is_file() and str(file) in told), "")


def _read_as_files(cfg: DatasetConfig) -> str:
    """What to type to have the files of a folder read row by row."""
    from datasets import load_dataset_builder

    try:
        held = load_dataset_builder(cfg.path, cfg.name).config.data_files
    except Exception:  # a folder that upstream can make nothing of
        return ""
    splits = {str(split): [str(file) for file in files] for split, files in (held or {}).items()}
    endings = {_ending(file) for files in splits.values() for file in files}
    kinds = {_KINDS.get(ending) for ending in endings}
    (kind,) = kinds if len(kinds) == 1 else (None,)
    if kind is None:
        return ""
    named = {split: _pattern(files) for split, files in splits.items()}
    value = (
        named.get("train", "")
        if len(named) == 1
        else "{" + ",".join(f"{split}:{files}" for split, files in named.items()) + "}"
    )
    return f"`dataset={kind}` {override('dataset.data_files', value)}" if value else ""


def _ending(file: str) -> str:
    return next((one for one in reversed(Path(file).name.split(".")) if one in _KINDS), "")


def _pattern(files: list[str]) -> str:
    """A pattern that names exactly these files, or a list of them."""
    folders = {Path(file).parent for file in files}
    suffixes = {Path(file).suffix for file in files}
    if len(folders) == len(suffixes) == 1:
        (folder,), (suffix,) = folders, suffixes
        if {str(one) for one in folder.glob(f"*{suffix}")} == set(files):
            return f"'{folder}/*{suffix}'"
    quoted = ",".join(f"'{file}'" for file in files)
    return quoted if len(files) == 1 else f"[{quoted}]"
