"""The folder of a job: that of the same training in this sweep, or a new one named by its values.

Jobs are matched by what they train (runs/same_run.py), never by their number, so that a sweep can
be continued with more values, in another order, or from another machine.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sftpipe.config.schema import TrainConfig, to_plain
from sftpipe.errors import Problem, RunError
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.planned import read_plan
from sftpipe.runs.same_run import differences, key_differences
from sftpipe.storage import digest
from sftpipe.sweeps.folder import SweepFolder, SweepRecord, deciding_versions

_LONGEST = 100  # characters of a folder's name
_FOLDERS = ("model.name_or_path", "lora.init_from")  # which same_run takes for the same anywhere


def varying(words: Sequence[str], constants: set[str]) -> dict[str, str]:
    """{key: value} of the words of a job that are not those of every job."""
    parts = (word.partition("=") for word in words if word not in constants)
    return {key.lstrip("+~"): value for key, _, value in parts}


def name_of(values: Mapping[str, str]) -> str:
    """`r-8__learning_rate-0.0001`: a name that needs no quotes in a shell or in Hydra."""
    short = [key.rpartition(".")[2].rpartition("/")[2] for key in values]
    parts = []
    for key, last in zip(values, short, strict=True):
        shown = last if short.count(last) == 1 else key
        parts.append(f"{_plain(shown)}-{_plain(_short(values[key]))}")
    name = "__".join(parts) or "job"
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}-{digest(name)[:8]}"


def _short(value: str) -> str:
    """A number with six digits; another value as it is."""
    try:
        return value if len(value) < 8 else f"{float(value):.6g}"
    except ValueError:
        return value


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-") or "empty"


def place(sweep: SweepFolder, cfg: TrainConfig, values: Mapping[str, str]) -> str:
    """The name of the folder that a job trains in.

    Args:
        sweep: the folder of the sweep.
        cfg: the config of the job.
        values: of what varies, from `varying`.

    Raises:
        RunError: a job of the sweep has trained the same config on other data.
    """
    now = to_plain(cfg)
    for files, recorded in _planned_in(sweep):
        if _trains_the_same(recorded, now, values):
            _check_data(files, cfg)
            return files.path.name
    name = name_of(values)
    return f"{name}-{digest(now)[:8]}" if (sweep.path / name).exists() else name


def _planned_in(sweep: SweepFolder) -> Iterator[tuple[RunFolder, dict[str, Any]]]:
    """The run folders of a sweep, each with its plain config."""
    for path in sorted(sweep.path.glob("*/")):
        files = RunFolder(path)
        if files.manifest.is_file():
            yield files, _config_of(files, files.config.stat().st_mtime_ns)
        elif files.planned.is_file():
            yield files, dict(read_plan(path).get("config") or {})


@functools.lru_cache(maxsize=1024)  # a sweep of many jobs asks for each of them
def _config_of(files: RunFolder, _changed: int) -> dict[str, Any]:
    return files.read_config()


def _trains_the_same(
    before: Mapping[str, Any], now: Mapping[str, Any], values: Mapping[str, str]
) -> bool:
    """The same training, and the same value of what varies, also where it decides no weights."""
    if any(_value_of(before, key) != _value_of(now, key) for key in values):
        return False
    if any(_folder_of(before, key) != _folder_of(now, key) for key in _FOLDERS):
        return False
    return not key_differences(before, now)


def _value_of(tree: Mapping[str, Any], key: str) -> Any:
    found: Any = tree
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _folder_of(tree: Mapping[str, Any], key: str) -> str | None:
    value = _value_of(tree, key)
    return str(Path(value).expanduser().resolve()) if isinstance(value, str) else None


def _check_data(files: RunFolder, cfg: TrainConfig) -> None:
    changed = differences(files, cfg) if files.manifest.is_file() else []
    if changed:
        found = f"a sweep of other data: {'; '.join(map(str, changed))}"
        fix = "put the old data back, or name another folder: hydra.sweep.dir=DIR"
        raise RunError(Problem(str(files.path), found, fix=fix))


def check_code(sweep: SweepFolder, record: SweepRecord) -> None:
    """May jobs be added to a sweep? Jobs of different code cannot be ranked.

    Raises:
        RunError: its jobs were trained with other versions; names each.
    """
    now = deciding_versions()
    changed = [
        f"{name} was {record.code.get(name)} and is {version}"
        for name, version in now.items()
        if record.code.get(name) != version
    ]
    if changed:
        found = f"a sweep of other code: {'; '.join(changed)}"
        fix = "install those versions, or name another folder: hydra.sweep.dir=DIR"
        raise RunError(Problem(str(sweep.path), found, fix=fix))
