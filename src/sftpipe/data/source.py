"""Load a data set and split it. Nothing is dropped here."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from sftpipe.errors import DataError, Problem, nearest
from sftpipe.hub import HubUnreachable, NotOnHub, latest_commit, offline
from sftpipe.schema import DatasetConfig
from sftpipe.storage import sha256_file, sha256_text

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
    splits = {name: loaded[name] for name in SPLITS if name in loaded}
    if cfg.split is not None:
        if cfg.split not in loaded:
            raise DataError(_no_split("dataset.split", cfg.split, list(loaded)))
        splits = {"train": loaded[cfg.split]}
    elif "train" not in splits:
        if len(loaded) != 1:
            raise DataError(_no_split("dataset.split", "train", list(loaded)))
        splits = {"train": next(iter(loaded.values()))}
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
                    fix=f"dataset.name={match}" if match else "",
                )
            )
        return {name: [str(_ASSETS / str(cfg.name) / f"{name}.jsonl")] for name in SPLITS}
    if cfg.path not in _FILES:
        return None
    named = cfg.data_files if isinstance(cfg.data_files, dict) else {"train": cfg.data_files}
    files = {split: [str(f) for f in ([group] if isinstance(group, str) else group)] for split, group in named.items()}
    for file in (file for group in files.values() for file in group):
        if not Path(file).is_file():
            folder = Path(file).parent
            match = nearest(Path(file).name, os.listdir(folder)) if folder.is_dir() else None
            raise DataError(
                Problem(
                    where="dataset.data_files",
                    found=f"no file {file} (looked in {Path(file).resolve().parent})",
                    fix=f"dataset.data_files={folder / match}" if match else "name a file that exists",
                )
            )
    return files


def _load(cfg: DatasetConfig, datasets: Any) -> dict[str, Any]:
    files = _data_files(cfg)
    if files is not None:
        builder = "json" if cfg.path == "embedded" else cfg.path
        try:
            return dict(datasets.load_dataset(builder, data_files=files))
        except datasets.exceptions.DatasetGenerationError as error:
            cause = error.__cause__ or error
            raise DataError(
                Problem(
                    where="dataset.data_files",
                    found=f"{', '.join(f for group in files.values() for f in group)} cannot be read as {builder}: "
                    f"{' '.join(str(cause).split())[:200]}",
                    fix=f"mend the file, or choose the right one of dataset={'|'.join(_FILES)}",
                )
            ) from None
    return _load_from_hub(cfg, datasets)


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
    counts = {name: int(len(train) * size) if size < 1 else int(size) for name, size in sizes.items() if size}
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
    taken = [ours for ours, theirs in cfg.columns.items() if ours in rows.column_names and ours != theirs]
    return rows.remove_columns(taken).rename_columns({t: o for o, t in cfg.columns.items() if t != o})
