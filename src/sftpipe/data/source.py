"""From the `dataset` group to the rows of each split, under our column names. Nothing is dropped here."""

from __future__ import annotations

import glob
import inspect
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sftpipe.config.schema import DatasetConfig, FormatConfig, MixtureSource
from sftpipe.data.fetch import fetched
from sftpipe.data.formats import Row
from sftpipe.data.readers import (
    FILE_KINDS,
    JSON,
    ORIGIN,
    call_function,
    load_function,
    read_files,
    read_hub,
)
from sftpipe.errors import DataError, Problem, nearest
from sftpipe.storage import digest, sha256_file

SPLITS = ("train", "validation", "test")
_ASSETS = Path(__file__).parent / "assets"
_PEEK = 1000  # rows that tell the columns of a table without a schema


@dataclass(frozen=True)
class Rows:
    """The rows of one split, read from disk as they are needed.

    table: a `datasets.Dataset`, of columns or of JSON texts.
    digest: hash of the rows and their order.
    columns: {our name: the table's name}.
    """

    table: Any
    digest: str
    columns: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), _PEEK):
            yield from self[start : start + _PEEK]

    def __getitem__(self, where: slice) -> list[Row]:
        return self.decode(self.table[where])

    @property
    def column_names(self) -> list[str]:
        """Our names; of JSON texts those of the first thousand rows."""
        theirs = list(self.table.column_names)
        if _holds_json(theirs):
            theirs = list(
                dict.fromkeys(
                    name for text in self.table[:_PEEK][JSON] for name in json.loads(text)
                )
            )
        return list(self._rename(dict.fromkeys(theirs)))

    def decode(self, batch: Mapping[str, Sequence[Any]]) -> list[Row]:
        """The rows of a batch that was read from `table`; a worker process has no more than the batch."""
        rows: list[Row]
        if _holds_json(batch):
            rows = [json.loads(text) for text in batch[JSON]]
        else:
            rows = [
                dict(zip(batch, values, strict=True))
                for values in zip(*batch.values(), strict=True)
            ]
        return [self._rename(row) for row in rows] if self.columns else rows

    def origin(self, index: int) -> str:
        """File and line of a row, where they are known, else ""."""
        return str(self.table[index][ORIGIN]) if _holds_json(self.table.column_names) else ""

    def select(self, indices: Any, why: str) -> Rows:
        """Some of the rows; `why` tells this choice from others in the digest."""
        return replace(self, table=self.table.select(indices), digest=digest(self.digest, why))

    def _rename(self, row: Mapping[str, Any]) -> dict[str, Any]:
        taken = set(self.columns.values())
        kept = {
            name: value
            for name, value in row.items()
            if name not in taken and name not in self.columns
        }
        return {
            **kept,
            **{ours: row[theirs] for ours, theirs in self.columns.items() if theirs in row},
        }


def _holds_json(columns: Iterable[str]) -> bool:
    """Whether a table of these columns holds JSON texts."""
    return list(columns) == [JSON, ORIGIN]


@dataclass(frozen=True)
class Source:
    """One data set of a run.

    name: "" for the only one, else its place in the mixture.
    splits: {"train": rows, "validation": ..., "test": ...}, those that exist.
    format: what its rows look like.
    weight, count: its share of a mixture's train rows.
    """

    name: str
    splits: Mapping[str, Rows]
    format: FormatConfig
    weight: float | None = None
    count: int | None = None


def load_sources(
    cfg: DatasetConfig, format_cfg: FormatConfig, allowed_targets: Sequence[str] = ()
) -> list[Source]:
    """The data set of a run, or each of a mixture's.

    Raises:
        DataError: a missing file or hub set, a split or column that does not exist, an empty split.
    """
    if cfg.path != "mixture":
        return [Source("", load_splits(cfg, allowed_targets), format_cfg)]
    sources = []
    for index, source in enumerate(cfg.sources):
        assert isinstance(source, MixtureSource)
        splits = load_splits(replace(source, limit=source.limit or cfg.limit), allowed_targets)
        name = f"sources[{index}] {source.name or source.path}"
        sources.append(
            Source(name, splits, source.format or format_cfg, source.weight, source.count)
        )
    return sources


def load_splits(cfg: DatasetConfig, allowed_targets: Sequence[str] = ()) -> dict[str, Rows]:
    """The splits of one data set, with our column names.

    Returns: {"train": rows, "validation": ..., "test": ...}; a split that the source lacks and
        nobody asked for is absent.

    Raises:
        DataError: a missing file or hub set, a split or column that does not exist, an empty split.
    """
    loaded, identity = _load(cfg, allowed_targets)
    wanted = (
        {"train": cfg.split}
        if isinstance(cfg.split, str)
        else cfg.split or {name: name for name in SPLITS if name in loaded}
    )
    for ours, theirs in {"train": "train", **wanted}.items():
        if theirs not in loaded:
            where = "dataset.split" if ours == "train" else f"dataset.split.{ours}"
            match = nearest(theirs, loaded) or next(iter(loaded))
            raise DataError(
                Problem(
                    where, f"no split {theirs!r}", allowed=", ".join(loaded), fix=f"{where}={match}"
                )
            )
    splits = {
        ours: Rows(loaded[theirs], digest(identity, theirs), {}) for ours, theirs in wanted.items()
    }
    splits = _cut(splits, cfg)
    if cfg.limit is not None:
        splits = {
            name: rows.select(range(min(cfg.limit, len(rows))), f"limit {cfg.limit}")
            for name, rows in splits.items()
        }
    for name, rows in splits.items():
        if len(rows) == 0:
            raise DataError(
                Problem(
                    f"dataset ({name})",
                    "the split is empty",
                    fix="look at dataset.data_files, the sizes and the limit",
                )
            )
    return {name: _named(rows, name, cfg) for name, rows in splits.items()}


def fingerprint(cfg: DatasetConfig) -> str:
    """SHA-256 of what a config reads: bytes of local files; path, name and revision of a hub set; source code of a function."""
    if cfg.path == "mixture":
        return digest([fingerprint(source) for source in cfg.sources])
    if cfg.path == "function":
        try:
            function = load_function(
                str(cfg.function), "dataset.function", [str(cfg.function).split(".")[0]]
            )
            return digest(cfg.function, Path(inspect.getfile(function)).read_text(encoding="utf-8"))
        except TypeError:  # compiled code has no source file
            return digest(cfg.function)
    files = _data_files(cfg)
    if files is None:
        return digest(f"{cfg.path}/{cfg.name}@{cfg.revision}")
    return digest(
        [[split, [_sha256(Path(file)) for file in group]] for split, group in files.items()]
    )


def _sha256(path: Path) -> Any:
    return (
        sha256_file(path)
        if path.is_file()
        else [sha256_file(file) for file in sorted(path.rglob("*")) if file.is_file()]
    )


def _load(cfg: DatasetConfig, allowed_targets: Sequence[str]) -> tuple[dict[str, Any], str]:
    """{split of the source: table} and a hash of their content."""
    if cfg.path == "function":
        loaded = call_function(cfg, allowed_targets)
        return loaded, digest({split: table._fingerprint for split, table in loaded.items()})
    files = _data_files(cfg)
    if files is not None:
        kind = "json" if cfg.path == "embedded" else cfg.path
        content = fingerprint(cfg)
        return read_files(kind, files, cfg, content), digest(kind, cfg.sample_by, content)
    if Path(cfg.path).is_file() or cfg.path in ("jsonl", "tsv", "txt"):
        kind = next(
            (kind for kind in FILE_KINDS if kind in cfg.path),
            "text" if "txt" in cfg.path else "json",
        )
        file = cfg.path if Path(cfg.path).is_file() else "FILE"
        raise DataError(
            Problem(
                "dataset.path",
                repr(cfg.path),
                allowed=f"embedded, {', '.join(FILE_KINDS)}, or user/name on the hub",
                fix=f"dataset={'csv' if 'tsv' in cfg.path else kind} dataset.data_files={file}",
            )
        )
    loaded = read_hub(cfg)
    return loaded, digest({split: table._fingerprint for split, table in loaded.items()})


# --- files ----------------------------------------------------------------------------------------


def _data_files(cfg: DatasetConfig) -> dict[str, list[str]] | None:
    """{split: [files]} of a local data set, all of them present; None for a hub set."""
    if cfg.path == "embedded":
        known = sorted(path.name for path in _ASSETS.iterdir() if path.is_dir())
        if cfg.name not in known:
            match = nearest(str(cfg.name), known)
            raise DataError(
                Problem(
                    "dataset.name",
                    f"no embedded data set {cfg.name!r}",
                    allowed=", ".join(known),
                    fix=f"dataset.name={match or known[0]}",
                )
            )
        held = {name: _ASSETS / str(cfg.name) / f"{name}.jsonl" for name in SPLITS}
        return {name: [str(file)] for name, file in held.items() if file.is_file()}
    if cfg.path not in FILE_KINDS:
        return None
    named = cfg.data_files if isinstance(cfg.data_files, dict) else {"train": cfg.data_files}
    unread = [str(split) for split in named if split not in SPLITS]
    if unread and "train" in named and cfg.split is None:
        match = nearest(unread[0], SPLITS) or "train"
        raise DataError(
            Problem(
                f"dataset.data_files.{unread[0]}",
                "no split of that name is read",
                allowed=f"{', '.join(SPLITS)}, or the one that dataset.split names",
                fix=f"dataset.data_files.{match}=... or dataset.split={unread[0]}",
            )
        )
    folders = cfg.path == "arrow"
    return {
        split: [found for f in _as_list(files) for found in _find_files(fetched(f), folders)]
        for split, files in named.items()
    }


def _as_list(value: Any) -> list[Any]:
    files = [value] if isinstance(value, str) else value
    if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
        allowed = "a file, a list of files, or {train: ..., validation: ..., test: ...}"
        raise DataError(
            Problem(
                "dataset.data_files",
                repr(value),
                allowed=allowed,
                fix="dataset.data_files=rows.jsonl",
            )
        )
    return files


def _find_files(name: str, folders: bool) -> list[str]:
    """The file, or the files that a pattern such as `rows/*.jsonl` matches, sorted; of `dataset=arrow` the folder."""
    path = Path(name).expanduser()
    if path.is_dir() if folders else path.is_file():
        if not os.access(path, os.R_OK):
            raise DataError(
                Problem(
                    "dataset.data_files",
                    f"{name} may not be read (permission denied)",
                    fix=f"chmod +r {name}",
                )
            )
        return [str(path)]
    matches = sorted(glob.glob(str(path), recursive=True))
    files = [match for match in matches if Path(match).is_dir() == folders]
    if files:
        return files
    what = "folder" if folders else "file"
    if path.is_dir():
        problem = Problem(
            "dataset.data_files", f"{name} is a folder", fix=f"dataset.data_files='{name}/*.jsonl'"
        )
    elif path.is_file():
        problem = Problem(
            "dataset.data_files",
            f"{name} is a file, and dataset=arrow reads folders",
            fix=f"name {path.parent}",
        )
    else:
        near = nearest(path.name, os.listdir(path.parent)) if path.parent.is_dir() else None
        problem = Problem(
            "dataset.data_files",
            f"no {what} {name} (looked in {path.resolve().parent})",
            fix=f"dataset.data_files={path.parent / near}"
            if near
            else f"name a {what} that exists",
        )
    raise DataError(problem)


# --- splits and columns ---------------------------------------------------------------------------


def _cut(splits: dict[str, Rows], cfg: DatasetConfig) -> dict[str, Rows]:
    """Shuffle train, then cut validation and test from it where sizes ask for them, in the order of `split_order`.

    Shares are rounded down, and the last of the order takes the rest; a number of rows is exact,
    and train takes the rest:

        1,100 rows, test_size=0.1, validation_size=0.05, split_order=[train,test,validation]:  935 |
        110 | 55
    """
    train = splits["train"]
    if cfg.shuffle_seed is not None:
        table = train.table.shuffle(seed=cfg.shuffle_seed)
        train = replace(
            train, table=table, digest=digest(train.digest, f"shuffled {cfg.shuffle_seed}")
        )
    asked = {
        name: size for name in ("validation", "test") if (size := getattr(cfg, f"{name}_size"))
    }
    for name in asked:
        if name in splits:
            raise DataError(
                Problem(
                    f"dataset.{name}_size",
                    f"the data set has its own {name} split ({len(splits[name])} rows)",
                    fix=f"dataset.{name}_size=0 keeps it; dataset.split=train makes all splits from "
                    "train",
                )
            )
    counts = _split_counts(len(train), asked, cfg)
    start = 0
    for name, count in counts.items():
        rows = range(start, start + count)
        splits = {**splits, name: train.select(rows, f"rows {rows}")}
        start += count
    return {name: splits[name] for name in SPLITS if name in splits}


def _split_counts(rows: int, asked: Mapping[str, float], cfg: DatasetConfig) -> dict[str, int]:
    """{split: number of rows} in the order of `split_order`; the numbers add up to `rows`."""
    order = [name for name in cfg.split_order if name == "train" or name in asked]
    missing = [name for name in ("train", *asked) if name not in order]
    if (
        missing
        or len(set(order)) < len(order)
        or any(name not in SPLITS for name in cfg.split_order)
    ):
        fix = f"dataset.split_order=[{','.join(['train', *asked])}]"
        raise DataError(
            Problem(
                "dataset.split_order",
                f"{cfg.split_order}",
                allowed=f"each of {', '.join(SPLITS)} once",
                fix=fix,
            )
        )
    counts = {name: _floor(rows * size) if size < 1 else int(size) for name, size in asked.items()}
    for name, count in counts.items():
        if count == 0:
            raise DataError(
                Problem(
                    f"dataset.{name}_size",
                    f"{asked[name]} of {rows} rows is less than one",
                    fix=f"dataset.{name}_size={min(1.0, 1 / max(1, rows)):.2g} or more, or a number "
                    "of rows",
                )
            )
    shares = asked and all(size < 1 for size in asked.values())
    counts["train"] = (
        _floor(rows * (1 - sum(asked.values()))) if shares else rows - sum(counts.values())
    )
    if counts["train"] <= 0 and asked:
        raise DataError(
            Problem(
                "dataset.validation_size + dataset.test_size",
                f"{sum(count for name, count in counts.items() if name != 'train')} of {rows} "
                "rows: nothing is left to train on",
                fix="make them smaller",
            )
        )
    counts[order[-1] if shares else "train"] += rows - sum(counts.values())
    return {name: counts[name] for name in order}


def _floor(share: float) -> int:
    return int(
        share + 1e-6
    )  # 0.07 * 100 is 7.000000000000001, and 0.29 * 100 is 28.999999999999996


def _named(rows: Rows, split: str, cfg: DatasetConfig) -> Rows:
    """Rows under our column names."""
    if not cfg.columns:
        return rows
    known = rows.column_names
    for ours, theirs in cfg.columns.items():
        if theirs not in known:
            match = nearest(theirs, known)
            raise DataError(
                Problem(
                    f"dataset.columns.{ours} ({split})",
                    f"the data set has no column {theirs!r}",
                    allowed=", ".join(known),
                    fix=f"dataset.columns.{ours}={match}"
                    if match
                    else f"dataset.columns.{ours}=COLUMN",
                )
            )
    twice = {
        theirs: [ours for ours in cfg.columns if cfg.columns[ours] == theirs]
        for theirs in cfg.columns.values()
    }
    taken = {theirs: names for theirs, names in twice.items() if len(names) > 1}
    if taken:
        raise DataError(
            Problem(
                f"dataset.columns ({split})",
                "; ".join(
                    f"{' and '.join(names)} take the column {theirs!r}"
                    for theirs, names in taken.items()
                ),
                allowed="a column of its own for each name",
                fix=" ".join(f"~dataset.columns.{names[0]}" for names in taken.values())
                + " removes what a recipe or an option has set",
            )
        )
    return replace(rows, columns=dict(cfg.columns), digest=digest(rows.digest, dict(cfg.columns)))
