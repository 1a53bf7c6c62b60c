"""From the `dataset` group to the rows of each split, under our column names; none is dropped."""

from __future__ import annotations

import glob
import inspect
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sftpipe.config.schema import DatasetConfig, FormatConfig, MixtureSource
from sftpipe.config.validation_sets import (
    in_order,
    is_named_set,
    is_validation,
    split_files,
)
from sftpipe.data.fetch import fetched
from sftpipe.data.formats import required_columns
from sftpipe.data.hub_sets import read_hub
from sftpipe.data.json_layouts import is_by_columns, layout_of_object
from sftpipe.data.readers import FILE_KINDS, DataFiles, call_function, hash_files, read_files
from sftpipe.data.rows import Rows, find_nested
from sftpipe.data.stored import StoredRows
from sftpipe.data.user_code import load_function
from sftpipe.errors import DataError, Problem, nearest, override_text
from sftpipe.storage import digest

SPLITS = ("train", "validation", "test")
_ASSETS = Path(__file__).parent / "assets"
_ENDINGS = {  # of a file name -> what reads it
    "jsonl": "json",
    "tsv": "csv",
    "txt": "text",
    **{kind: kind for kind in FILE_KINDS},
}

Kind = Literal["mixture", "function", "embedded", "files", "hub"]


def kind_of(cfg: DatasetConfig) -> Kind:
    """Where the rows of a data set come from."""
    kinds: dict[str, Kind] = {
        "mixture": "mixture",
        "function": "function",
        "embedded": "embedded",
        **dict.fromkeys(FILE_KINDS, "files"),
    }
    return kinds.get(cfg.path, "hub")


@dataclass(frozen=True)
class Source:
    """One data set of a run.

    name: "" for the only one, else its place in the mixture.
    splits: {"train": rows, "validation": ..., "test": ...}, those that exist.
    format: what its rows look like.
    sha256: of what the rows were read from; see `fingerprint`.
    weight, count: its share of a mixture's train rows.
    """

    name: str
    splits: Mapping[str, Rows]
    format: FormatConfig
    sha256: str
    weight: float | None = None
    count: int | None = None


def load_sources(
    cfg: DatasetConfig,
    format_cfg: FormatConfig,
    allowed_targets: Sequence[str] = (),
    *,
    has_answers: bool = True,
) -> list[Source]:
    """The data set of a run, or each one of a mixture, with our column names.

    A split that the data set lacks and nobody asked for is absent.

    Args:
        cfg: the `dataset` group.
        format_cfg: the format of sources without their own.
        allowed_targets: as of `load_function`.
        has_answers: False for rows that are only asked: they may lack columns of `dataset.columns`.

    Raises:
        DataError: a missing file or hub set, a file that changes while it is read, a split or
            column that does not exist, an empty split.
    """
    if kind_of(cfg) != "mixture":
        return _checked_sets([_load_source(cfg, format_cfg, allowed_targets, has_answers)])
    sources = []
    for index, one in enumerate(cfg.sources):
        assert isinstance(one, MixtureSource)
        limited = replace(one, limit=one.limit or cfg.limit)
        source = _load_source(limited, one.format or format_cfg, allowed_targets, has_answers)
        name = f"sources[{index}] {one.name or one.path}"
        sources.append(replace(source, name=name, weight=one.weight, count=one.count))
    return _checked_sets(sources)


def _checked_sets(sources: list[Source]) -> list[Source]:
    """The sources, whose validation sets all have a name, or none of them."""
    found = {split for source in sources for split in source.splits if is_validation(split)}
    if "validation" in found and len(found) > 1:
        problem = Problem(
            "dataset.data_files.validation",
            f"a set without a name beside {', '.join(sorted(found - {'validation'}))}",
            fix="give it a name: {train: ..., validation: {first: ..., second: ...}}",
        )
        raise DataError(problem)
    return sources


def sources_sha256(sources: Sequence[Source], cfg: DatasetConfig) -> str:
    """`fingerprint` of the data set of a run, of what its sources were read from."""
    if kind_of(cfg) == "mixture":
        return digest([source.sha256 for source in sources])
    (source,) = sources
    return source.sha256


def fingerprint(cfg: DatasetConfig, allowed_targets: Sequence[str] = ()) -> str:
    """SHA-256 of what a config reads.

    That is the bytes of local files; path, name and revision of a hub set; the source code of a
    function; the list of the values of a mixture's sources.

    Raises:
        DataError: a file or function is missing, or the function is not allowed.
    """
    match kind_of(cfg):
        case "mixture":
            return digest([fingerprint(source, allowed_targets) for source in cfg.sources])
        case "function":
            return _function_sha256(str(cfg.function), allowed_targets)
        case "hub":
            return digest(f"{cfg.path}/{cfg.name}@{cfg.revision}")
        case "embedded" | "files":
            return _hashed_files(cfg).sha256


def _function_sha256(path: str, allowed_targets: Sequence[str]) -> str:
    function = load_function(path, "dataset.function", allowed_targets)
    try:
        return digest(path, Path(inspect.getfile(function)).read_text(encoding="utf-8"))
    except (TypeError, OSError):  # compiled code, or code in an archive
        return digest(path)


def _load_source(
    cfg: DatasetConfig, format_cfg: FormatConfig, allowed_targets: Sequence[str], has_answers: bool
) -> Source:
    names = [cfg.columns.get(name, name) for name in required_columns(format_cfg)]
    required = [name for name in names if name is not None]
    stored, sha256 = _read(cfg, required, allowed_targets)
    splits = {}
    for ours, theirs in _chosen_splits(stored, cfg).items():
        one = stored[theirs]
        rows = Rows(one.table, digest(one.content, theirs), cfg.columns, one.columns_seen)
        if cfg.columns:
            rows = replace(rows, digest=digest(rows.digest, dict(cfg.columns)))
        if has_answers and len(rows):
            _check_layout(rows, required, cfg)
            _check_columns(rows, ours, cfg)
        splits[ours] = rows
    splits = _make_splits(splits, cfg)
    if cfg.limit is not None:
        splits = {
            name: rows.select(range(min(cfg.limit, len(rows))), f"limit {cfg.limit}")
            for name, rows in splits.items()
        }
    for name, rows in splits.items():
        if len(rows) == 0:
            fix = "look at dataset.data_files, the sizes and the limit"
            raise DataError(Problem(f"dataset ({name})", "the split is empty", fix=fix))
    return Source("", splits, format_cfg, sha256)


def _read(
    cfg: DatasetConfig, required: Sequence[str], allowed_targets: Sequence[str]
) -> tuple[Mapping[str, StoredRows], str]:
    """{split of the source: rows}, and the `fingerprint`."""
    kind = kind_of(cfg)
    if kind in ("embedded", "files"):
        files = _hashed_files(cfg)
        return read_files(files, cfg, required), files.sha256
    sha256 = fingerprint(cfg, allowed_targets)
    if kind == "function":
        return call_function(cfg, allowed_targets), sha256
    _reject_file_name(cfg.path)
    return read_hub(cfg), sha256


def _chosen_splits(tables: Mapping[str, StoredRows], cfg: DatasetConfig) -> Mapping[str, str]:
    """{our split: the source's split} of those that are read."""
    wanted = (
        {"train": cfg.split}
        if isinstance(cfg.split, str)
        else cfg.split or {name: name for name in tables if name in SPLITS or _is_named(name, cfg)}
    )
    for ours, theirs in {"train": "train", **wanted}.items():
        if theirs not in tables:
            where = "dataset.split" if ours == "train" else f"dataset.split.{ours}"
            match = nearest(theirs, tables) or next(iter(tables))
            found, allowed = f"no split {theirs!r}", ", ".join(tables)
            raise DataError(Problem(where, found, allowed=allowed, fix=override_text(where, match)))
    return wanted


def _is_named(split: str, cfg: DatasetConfig) -> bool:
    """True for a validation set that `dataset.data_files` names."""
    return is_named_set(split) and split in split_files(cfg.data_files)


def kind_of_file(name: str) -> str:
    """What reads a file, by its ending: `json` for rows.jsonl.gz, and where it says nothing."""
    endings = reversed(Path(name).name.lower().split("."))
    return next((_ENDINGS[ending] for ending in endings if ending in _ENDINGS), "json")


def _reject_file_name(path: str) -> None:
    """A file, or the ending of one, is not a name on the hub."""
    is_file = Path(path).is_file()
    if is_file or path in ("jsonl", "tsv", "txt"):
        kind = kind_of_file(path)
        files = override_text("dataset.data_files", path) if is_file else "dataset.data_files=FILE"
        problem = Problem(
            "dataset.path",
            repr(path),
            allowed=f"embedded, {', '.join(FILE_KINDS)}, or user/name on the hub",
            fix=f"`dataset={kind}` {files}",
        )
        raise DataError(problem)


# --- files ----------------------------------------------------------------------------------------


def _hashed_files(cfg: DatasetConfig) -> DataFiles:
    if kind_of(cfg) == "embedded":
        return hash_files("json", _embedded_files(cfg.name))
    return hash_files(cfg.path, _data_files(cfg))


def _embedded_files(name: str | None) -> dict[str, list[str]]:
    """{split: [file]} of an embedded data set."""
    known = sorted(path.name for path in _ASSETS.iterdir() if path.is_dir())
    if name is None or name not in known:
        problem = Problem(
            "dataset.name",
            f"no embedded data set {name!r}",
            allowed=", ".join(known),
            fix=f"`dataset.name={nearest(str(name), known) or known[0]}`",
        )
        raise DataError(problem)
    held = {split: _ASSETS / name / f"{split}.jsonl" for split in SPLITS}
    return {split: [str(file)] for split, file in held.items() if file.is_file()}


def _data_files(cfg: DatasetConfig) -> dict[str, list[str]]:
    """{split: [files]} of `dataset.data_files`, all of them present."""
    named = split_files(cfg.data_files)
    unread = [split for split in named if split not in SPLITS and not is_named_set(split)]
    unnamed = [split for split in unread if split.startswith("validation.")]
    if unnamed and cfg.split is None:
        found, allowed = "no name of a validation set", "letters, digits and _"
        where = f"dataset.data_files.{unnamed[0]}"
        raise DataError(Problem(where, found, allowed=allowed, fix="give it another name"))
    if unread and "train" in named and cfg.split is None:
        match = nearest(unread[0], SPLITS) or "train"
        problem = Problem(
            f"dataset.data_files.{unread[0]}",
            "no split of that name is read",
            allowed=f"{', '.join(SPLITS)}, validation.NAME, or the one that dataset.split names",
            fix=f"dataset.data_files.{match}=... or {override_text('dataset.split', unread[0])}",
        )
        raise DataError(problem)
    folders = cfg.path == "arrow"
    return {
        split: [found for one in _as_list(files) for found in _find_files(fetched(one), folders)]
        for split, files in named.items()
    }


def _as_list(value: Any) -> list[Any]:
    files = [value] if isinstance(value, str) else value
    if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
        allowed = "a file, a list of files, or {train: ..., validation: ..., test: ...}"
        fix = "dataset.data_files=rows.jsonl"
        raise DataError(Problem("dataset.data_files", repr(value), allowed=allowed, fix=fix))
    return files


def _find_files(name: str, folders: bool) -> list[str]:
    """The file, or those that a pattern such as `rows/*.jsonl` matches, sorted.

    Of dataset=arrow it is the folders.
    """
    path = Path(name).expanduser()
    if path.is_dir() if folders else path.is_file():
        found = [str(path)]
    else:
        matches = sorted(glob.glob(str(path), recursive=True))
        found = [match for match in matches if Path(match).is_dir() == folders]
    if not found:
        raise DataError(_nothing_found(name, path, folders))
    for one in found:
        if not os.access(one, os.R_OK):
            problem = f"{one} may not be read (permission denied)"
            fix = f"`chmod +r {shlex.quote(one)}`"
            raise DataError(Problem("dataset.data_files", problem, fix=fix))
    return found


def _nothing_found(name: str, path: Path, folders: bool) -> Problem:
    if path.is_dir():
        fix = f"`dataset.data_files='{name}/*.jsonl'`"
        return Problem("dataset.data_files", f"{name} is a folder", fix=fix)
    if path.is_file():
        found = f"{name} is a file, and dataset=arrow reads folders"
        return Problem("dataset.data_files", found, fix=f"name {path.parent}")
    what = "folder" if folders else "file"
    near = nearest(path.name, os.listdir(path.parent)) if path.parent.is_dir() else None
    return Problem(
        "dataset.data_files",
        f"no {what} {name} (looked in {path.resolve().parent})",
        fix=override_text("dataset.data_files", str(path.parent / near))
        if near
        else f"name a {what} that exists",
    )


# --- splits and columns ---------------------------------------------------------------------------


def _make_splits(splits: dict[str, Rows], cfg: DatasetConfig) -> dict[str, Rows]:
    """Shuffle train, then take validation and test from it where sizes ask for them.

    They are taken in the order of `split_order`. Shares are rounded down, and the last of the order
    takes the rest; a number of rows is exact, and train takes the rest:

        1,100 rows, test_size=0.1, validation_size=0.05, split_order=[train,test,validation]:
        935 | 110 | 55
    """
    train = splits["train"]
    if cfg.shuffle_seed is not None:
        # in memory: else the order is written beside the rows, which may be the user's own folder
        table = train.table.shuffle(seed=cfg.shuffle_seed, keep_in_memory=True)
        shuffled = digest(train.digest, f"shuffled {cfg.shuffle_seed}")
        train = replace(train, table=table, digest=shuffled)
    asked = {
        name: size for name in ("validation", "test") if (size := getattr(cfg, f"{name}_size"))
    }
    for name in asked:
        own = [len(rows) for split, rows in splits.items() if split.partition(".")[0] == name]
        if own:
            problem = Problem(
                f"dataset.{name}_size",
                f"the data set has its own {name} split ({sum(own)} rows)",
                fix=f"`dataset.{name}_size=0` keeps it; `dataset.split=train` makes all splits "
                "from train",
            )
            raise DataError(problem)
    counts = _split_counts(len(train), asked, cfg)
    start = 0
    for name, count in counts.items():
        rows = range(start, start + count)
        splits = {**splits, name: train.select(rows, f"rows {rows}")}
        start += count
    return {name: splits[name] for name in in_order(splits)}


def _split_counts(rows: int, asked: Mapping[str, float], cfg: DatasetConfig) -> dict[str, int]:
    """{split: number of rows} in the order of `split_order`; the numbers add up to `rows`."""
    order = [name for name in cfg.split_order if name == "train" or name in asked]
    complete = sorted(order) == sorted(["train", *asked])
    if not complete or any(name not in SPLITS for name in cfg.split_order):
        problem = Problem(
            "dataset.split_order",
            f"{cfg.split_order}",
            allowed=f"each of {', '.join(SPLITS)} once",
            fix=f"`dataset.split_order=[{','.join(['train', *asked])}]`",
        )
        raise DataError(problem)
    counts = {name: _floor(rows * size) if size < 1 else int(size) for name, size in asked.items()}
    for name, count in counts.items():
        if count == 0:
            least = f"{min(1.0, 1 / max(1, rows)):.2g}"
            problem = Problem(
                f"dataset.{name}_size",
                f"{asked[name]} of {rows} rows is less than one",
                fix=f"`dataset.{name}_size={least}` or more, or a number of rows",
            )
            raise DataError(problem)
    shares = asked and all(size < 1 for size in asked.values())
    counts["train"] = (
        _floor(rows * (1 - sum(asked.values()))) if shares else rows - sum(counts.values())
    )
    if counts["train"] <= 0 and asked:
        taken = sum(count for name, count in counts.items() if name != "train")
        problem = Problem(
            "dataset.validation_size + dataset.test_size",
            f"{taken} of {rows} rows: nothing is left to train on",
            fix="make them smaller",
        )
        raise DataError(problem)
    counts[order[-1] if shares else "train"] += rows - sum(counts.values())
    return {name: counts[name] for name in order}


def _floor(share: float) -> int:
    # 0.07 * 100 is 7.000000000000001, and 0.29 * 100 is 28.999999999999996
    return int(share + 1e-6)


def _check_layout(rows: Rows, required: Sequence[str], cfg: DatasetConfig) -> None:
    """Check that the first row of JSON files is no whole table, which lacks the columns of a row.

    Raises:
        DataError: names the layout, and what reads it.
    """
    if cfg.path != "json" or not required:
        return
    files = [name for group in _data_files(cfg).values() for name in group]
    if len(rows) > len(files):
        return
    first = replace(rows, columns={})[:1][0]
    layout = layout_of_object(first, required)
    has_all = all(name in rows.columns_seen for name in required)
    if layout is None or (has_all and not (len(rows) == 1 and is_by_columns(first, required))):
        return
    place, _, _ = rows.origin(0).partition(", line ")
    file = next((name for name in files if Path(name).name == place), place)
    raise DataError(
        Problem(
            f"dataset.data_files: {file}",
            f"one row, which is {layout.name}",
            allowed=f"rows with the columns {', '.join(required)}",
            fix=layout.fix(file),
        )
    )


def _check_columns(rows: Rows, split: str, cfg: DatasetConfig) -> None:
    """Check that `dataset.columns` names columns that there are, each once."""
    known = list(rows.columns_seen)
    mapped = {ours: theirs for ours, theirs in cfg.columns.items() if theirs is not None}
    for ours, theirs in mapped.items():
        if theirs not in known and not _has_path(rows, theirs):
            match = nearest(theirs, known)
            key = f"dataset.columns.{ours}"
            read = f" in any of the {len(rows)} rows that were read (dataset.limit)"
            problem = Problem(
                f"{key} ({split})",
                f"the data set has no column {theirs!r}"
                + (read if cfg.streaming and cfg.limit is not None else ""),
                allowed=", ".join(known),
                fix=override_text(key, match) if match else f"{key}=COLUMN",
            )
            raise DataError(problem)
    users: dict[str, list[str]] = {}
    for ours, theirs in mapped.items():
        users.setdefault(theirs, []).append(ours)
    taken = {theirs: names for theirs, names in users.items() if len(names) > 1}
    if taken:
        found = [f"{' and '.join(names)} take the column {one!r}" for one, names in taken.items()]
        removals = [f"`~dataset.columns.{names[0]}`" for names in taken.values()]
        problem = Problem(
            f"dataset.columns ({split})",
            "; ".join(found),
            allowed="a column of its own for each name",
            fix=f"{' '.join(removals)} removes what a recipe or an option has set",
        )
        raise DataError(problem)


def _has_path(rows: Rows, path: str) -> bool:
    """True if a row has a value at a dotted path into its nested columns."""
    if path.split(".")[0] not in rows.columns_seen:
        return False
    unnamed = replace(rows, columns={})
    return any(find_nested(row, path) for row in unnamed)
