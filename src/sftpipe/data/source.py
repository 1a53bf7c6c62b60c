"""Load a data set and split it. Nothing is dropped here."""

from __future__ import annotations

import contextlib
import csv
import glob
import os
from pathlib import Path
from typing import Any

from sftpipe.errors import DataError, Problem, nearest
from sftpipe.hub import HubUnreachable, NotOnHub, latest_commit, offline
from sftpipe.schema import DatasetConfig
from sftpipe.storage import cache_dir, sha256_file, sha256_text

SPLITS = ("train", "validation", "test")
_ASSETS = Path(__file__).parent / "assets"
_FILES = ("json", "csv", "parquet")


def load_splits(cfg: DatasetConfig) -> dict[str, Any]:
    """The splits of a data set, renamed to our columns.

    Returns:
        {"train": Dataset, "validation": ..., "test": ...}; a split that the source lacks and nobody asked for is absent.

    Raises:
        DataError: a missing file or hub set, a split or column that does not exist, an empty split.
    """
    import datasets

    loaded = _load(cfg, datasets)
    if cfg.split is not None:
        if cfg.split not in loaded:
            raise DataError(_no_split("dataset.split", cfg.split, list(loaded)))
        splits = {"train": loaded[cfg.split]}
    else:
        splits = {name: loaded[name] for name in SPLITS if name in loaded}
        if "train" not in splits:
            raise DataError(_no_split("dataset.split", "train", list(loaded)))
    splits = _cut(splits, cfg)
    if cfg.limit is not None:
        splits = {name: rows.select(range(min(cfg.limit, len(rows)))) for name, rows in splits.items()}
    for name, rows in splits.items():
        if len(rows) == 0:
            raise DataError(
                Problem(where=f"dataset ({name})", found="the split is empty", fix="look at dataset.data_files, the sizes and the limit")
            )
    return {name: _rename(rows, name, cfg) for name, rows in splits.items()}


def fingerprint(cfg: DatasetConfig) -> str:
    """SHA-256 of what a config reads: the bytes of local files; path, name and revision of a hub set."""
    files = _data_files(cfg)
    if files is None:
        return sha256_text(f"{cfg.path}/{cfg.name}@{cfg.revision}")
    return sha256_text("".join(f"{split}:{sha256_file(Path(file))}" for split, group in files.items() for file in group))


def _data_files(cfg: DatasetConfig) -> dict[str, list[str]] | None:
    """{split: [files]} of a local data set, all of them present; None for a hub set."""
    if cfg.path == "embedded":
        known = sorted(path.name for path in _ASSETS.iterdir() if path.is_dir())
        if cfg.name not in known:
            match = nearest(str(cfg.name), known)
            raise DataError(
                Problem(
                    where="dataset.name",
                    found=f"no embedded data set {cfg.name!r}",
                    allowed=", ".join(known),
                    fix=f"dataset.name={match or known[0]}",
                )
            )
        return {name: [str(_ASSETS / str(cfg.name) / f"{name}.jsonl")] for name in SPLITS}
    if cfg.path not in _FILES:
        return None
    named = cfg.data_files if isinstance(cfg.data_files, dict) else {"train": cfg.data_files}
    unread = [str(split) for split in named if split not in SPLITS]
    if unread and "train" in named and cfg.split is None:
        match = nearest(unread[0], SPLITS) or "train"
        raise DataError(
            Problem(
                where=f"dataset.data_files.{unread[0]}",
                found="no split of that name is read",
                allowed=f"{', '.join(SPLITS)}, or the one that dataset.split names",
                fix=f"dataset.data_files.{match}=... or dataset.split={unread[0]}",
            )
        )
    return {split: [found for f in _as_list(files) for found in _find_files(str(f))] for split, files in named.items()}


def _as_list(value: Any) -> list[Any]:
    files = [value] if isinstance(value, str) else value
    if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
        allowed = "a file, a list of files, or {train: ..., validation: ..., test: ...}"
        raise DataError(Problem("dataset.data_files", repr(value), allowed, "dataset.data_files=rows.jsonl"))
    return files


def _find_files(name: str) -> list[str]:
    """The file, or the files that a pattern such as `rows/*.jsonl` matches, sorted."""
    path = Path(name).expanduser()
    if path.is_file():
        return [str(path)]
    matches = sorted(glob.glob(str(path), recursive=True))
    files = [match for match in matches if Path(match).is_file()]
    if files:
        return files
    if path.is_dir():
        problem = Problem(where="dataset.data_files", found=f"{name} is a folder", fix=f"dataset.data_files='{name}/*.jsonl'")
    else:
        near = nearest(path.name, os.listdir(path.parent)) if path.parent.is_dir() else None
        problem = Problem(
            where="dataset.data_files",
            found=f"no file {name} (looked in {path.resolve().parent})",
            fix=f"dataset.data_files={path.parent / near}" if near else "name a file that exists",
        )
    raise DataError(problem)


def _load(cfg: DatasetConfig, datasets: Any) -> dict[str, Any]:
    files = _data_files(cfg)
    if files is not None:
        return _load_files("json" if cfg.path == "embedded" else cfg.path, files, cfg, datasets)
    if Path(cfg.path).is_file() or cfg.path in ("jsonl", "tsv", "txt"):
        kind = next((kind for kind in _FILES if kind in cfg.path), "json")
        file = cfg.path if Path(cfg.path).is_file() else "FILE"
        raise DataError(
            Problem(where="dataset.path", found=repr(cfg.path), allowed="embedded, json, csv, parquet, or user/name on the hub",
                    fix=f"dataset={kind} dataset.data_files={file}")
        )  # fmt: skip
    return _load_from_hub(cfg, datasets)


def _load_files(builder: str, files: dict[str, list[str]], cfg: DatasetConfig, datasets: Any) -> dict[str, Any]:
    # `datasets` tells files apart by name and time, so old rows could come back for new bytes; the fingerprint tells by content
    cache = cache_dir() / "datasets" / fingerprint(cfg)[:16]
    names = ", ".join(file for group in files.values() for file in group)
    for file in (file for group in files.values() for file in group):
        _check_utf8(Path(file))
    try:
        options = _as_text(files, datasets) if builder == "csv" else {}
        return dict(datasets.load_dataset(builder, data_files=files, cache_dir=str(cache), **options))
    except (datasets.exceptions.DatasetGenerationError, ValueError, StopIteration) as error:
        if all(_is_blank(Path(file)) for group in files.values() for file in group):
            problem = Problem(where="dataset.data_files", found=f"{names}: no rows", fix="name files that hold rows")
        else:
            cause = " ".join(str(error.__cause__ or error).split())[:200]
            problem = Problem(
                where="dataset.data_files",
                found=f"{names} cannot be read as {builder}: {cause}",
                fix=f"mend the file, or choose the right one of dataset={'|'.join(_FILES)}",
            )
        raise DataError(problem) from None


def _check_utf8(file: Path) -> None:
    """The loaders let broken text pass, and it fails far from its file."""
    if file.suffix not in (".json", ".jsonl", ".csv", ".txt"):
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    Problem(
                        where=f"dataset.data_files: {file}, line {number}",
                        found=f"byte {line[error.start]:#04x} is no UTF-8",
                        fix="save the file as UTF-8",
                    )
                ) from None


def _as_text(files: dict[str, list[str]], datasets: Any) -> dict[str, Any]:
    """Options that read every CSV value as the text that it is: "N/A" stays a word and "007" keeps its zeros."""
    first = next(file for group in files.values() for file in group)
    with Path(first).open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file))
    return {"keep_default_na": False, "features": datasets.Features({name: datasets.Value("string") for name in header})}


def _is_blank(file: Path) -> bool:
    """Whether a file holds no row: nothing, `[]`, or one line of CSV header."""
    text = file.read_bytes()[:100_000].strip()
    return text in (b"", b"[]") or (file.suffix == ".csv" and b"\n" not in text)


def _load_from_hub(cfg: DatasetConfig, datasets: Any) -> dict[str, Any]:
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
            return dict(datasets.load_dataset(cfg.path, cfg.name, revision=cfg.revision, data_files=cfg.data_files))
    except (ConnectionError, OSError, ValueError) as error:
        found = "is not in the local cache" if reason else " ".join(str(error).split())[:200]
        raise DataError(
            Problem(
                where="dataset.path",
                found=f"{cfg.path}: {found}{reason}",
                fix="go online, or dataset=json dataset.data_files=... for local files",
            )
        ) from None


def _no_split(where: str, wanted: str, known: list[str]) -> Problem:
    match = nearest(wanted, known) or known[0]
    return Problem(where=where, found=f"no split {wanted!r}", allowed=", ".join(known), fix=f"dataset.split={match}")


def _cut(splits: dict[str, Any], cfg: DatasetConfig) -> dict[str, Any]:
    """Shuffle, then cut validation and test off the end of train where sizes ask for it: [train ... | validation | test]."""
    sizes = {"validation": cfg.validation_size, "test": cfg.test_size}
    train = splits["train"]
    if cfg.shuffle_seed is not None:
        train = train.shuffle(seed=cfg.shuffle_seed)
    counts = {name: int(len(train) * size + 1e-6) if size < 1 else int(size) for name, size in sizes.items() if size}
    for name, count in counts.items():
        if count == 0:
            raise DataError(
                Problem(
                    where=f"dataset.{name}_size",
                    found=f"{sizes[name]} of {len(train)} rows is less than one",
                    fix=f"dataset.{name}_size={min(1.0, 1 / len(train)):.2g} or more, or a number of rows",
                )
            )
    for name in counts:
        if name in splits:
            raise DataError(
                Problem(
                    where=f"dataset.{name}_size",
                    found=f"the data set has its own {name} split ({len(splits[name])} rows)",
                    fix=f"dataset.{name}_size=0 keeps it; dataset.split=train makes all splits from train",
                )
            )
    rest = len(train) - sum(counts.values())
    if rest <= 0:
        raise DataError(
            Problem(
                where="dataset.validation_size + dataset.test_size",
                found=f"{sum(counts.values())} of {len(train)} rows: nothing is left to train on",
                fix="make them smaller",
            )
        )
    cut = {"train": train.select(range(rest))}
    for name, count in counts.items():
        cut[name] = train.select(range(rest, rest + count))
        rest += count
    return {name: (cut | splits | {"train": cut["train"]})[name] for name in SPLITS if name in cut or name in splits}


def _rename(rows: Any, split: str, cfg: DatasetConfig) -> Any:
    for ours, theirs in cfg.columns.items():
        if theirs not in rows.column_names:
            match = nearest(theirs, rows.column_names)
            raise DataError(
                Problem(
                    where=f"dataset.columns.{ours} ({split})",
                    found=f"the data set has no column {theirs!r}",
                    allowed=", ".join(rows.column_names),
                    fix=f"dataset.columns.{ours}={match}" if match else f"dataset.columns.{ours}=COLUMN",
                )
            )
    twice = [ours for ours, theirs in cfg.columns.items() if list(cfg.columns.values()).count(theirs) > 1]
    if twice:
        raise DataError(
            Problem(
                where=f"dataset.columns ({split})",
                found=f"{' and '.join(twice)} both take the column {cfg.columns[twice[0]]!r}",
                allowed="a column of its own for each name",
            )
        )
    moved = {theirs: ours for ours, theirs in cfg.columns.items() if theirs != ours}
    replaced = [name for name in moved.values() if name in rows.column_names and name not in moved]
    return rows.remove_columns(replaced).rename_columns(moved)
