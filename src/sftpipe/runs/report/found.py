"""What a run folder holds, read as far as it can be: runs may be unfinished, torn or old."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from sftpipe.config.recorded import complete
from sftpipe.errors import Problem, RunError, in_shell
from sftpipe.runs.folder import RunFolder, whole_lines
from sftpipe.runs.lock import holder

T = TypeVar("T")
Parser = Callable[[str | None], T]
State = Literal["complete", "running", "stopped"]
MOST = 8  # runs that are compared: there are as many colours


@dataclass(frozen=True)
class Found:
    """A run folder as its report needs it. What is not there is empty.

    folder: the run folder.
    state: complete; running, in a process that holds its lock; or stopped before its end.
    config: the mapping in config.yaml, completed with today's defaults.
    manifest, metrics, preflight, evaluation, judgement: contents of the JSON files.
    log, samples: entries and rows of the two JSON lines.
    responses, base_responses: what `sftpipe evaluate` let the run and its base answer.
    missing: what cannot be read, or should be there and is not, a sentence each.
    """

    folder: RunFolder
    state: State
    config: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    preflight: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    judgement: Mapping[str, Any] = field(default_factory=dict)
    log: Sequence[Mapping[str, Any]] = ()
    samples: Sequence[Mapping[str, Any]] = ()
    responses: Sequence[Mapping[str, Any]] = ()
    base_responses: Sequence[Mapping[str, Any]] = ()
    missing: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The recipe, or the name of the folder."""
        return str(self.config.get("recipe") or self.folder.path.resolve().name)


def find(path: Path, state: State | None = None) -> Found:
    """Read a run folder.

    Args:
        path: the folder.
        state: known by the process that trains the run; by default looked for.

    Raises:
        RunError: it is no run folder, or one whose run has written nothing yet.
    """
    files = RunFolder(path)
    if not files.manifest.is_file() and not files.config.is_file():
        raise RunError(_no_run(path))
    state = state or _state(files)
    reader = _Reader()
    ended = state == "complete"
    return Found(
        folder=files,
        state=state,
        config=complete(reader(files.config, _yaml, expected=True)),
        manifest=reader(files.manifest, _object, expected=True),
        metrics=reader(files.metrics, _object, expected=ended),
        preflight=reader(files.preflight, _object, expected=True),
        evaluation=reader(files.evaluation, _object),
        judgement=reader(files.judgement, _object),
        log=reader.lines(files.log, expected=ended),
        samples=reader.lines(files.samples, expected=ended),
        responses=reader(files.responses, _rows),
        base_responses=reader(files.base_responses, _rows),
        missing=reader.missing,
    )


class _Reader:
    """Reads files as far as it can; `missing` has a sentence for each that it cannot."""

    def __init__(self) -> None:
        self.missing: list[str] = []

    def __call__(
        self, file: Path, parse: Callable[[str | None], T], *, expected: bool = False
    ) -> T:
        """The content of a file, or nothing of its kind."""
        if not file.is_file():
            self.missing += [f"{file.name} is missing"] if expected else []
            return parse(None)
        try:
            return parse(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):
            self.missing.append(f"{file.name} is damaged")
            return parse(None)

    def lines(self, file: Path, *, expected: bool) -> list[dict[str, Any]]:
        """The rows of JSON lines; of a run that was killed, the last may be torn."""
        rows, torn = self(file, _lines, expected=expected)
        if torn:
            counted = "1 line" if torn == 1 else f"{torn:,} lines"
            self.missing.append(f"{counted} of {file.name} cannot be read, and left out")
        return rows


def _no_run(path: Path) -> Problem:
    where = f"run={path}"
    if not path.is_dir():
        return Problem(where, "no such folder", fix="name a run folder")
    jobs = RunFolder(path).runs()
    if not jobs:
        return Problem(where, "no run of sftpipe", fix="name a run folder")
    several = jobs[:MOST]
    found = f"a folder of {len(jobs)} runs: {', '.join(job.name for job in several)}"
    command = "sftpipe report " + in_shell(f"run={','.join(map(str, several))}")
    return Problem(where, found, fix=f"`{command}`")


def _state(files: RunFolder) -> State:
    if files.complete.is_file():
        return "complete"
    return "running" if holder(files.path) else "stopped"


# --- parsers; of None, each gives what stands for a file that is not there ------------------------


def _yaml(text: str | None) -> dict[str, Any]:
    return {} if text is None else dict(yaml.safe_load(text))


def _object(text: str | None) -> dict[str, Any]:
    return {} if text is None else dict(json.loads(text))


def _rows(text: str | None) -> list[dict[str, Any]]:
    return [] if text is None else [dict(row) for row in json.loads(text)]


def _lines(text: str | None) -> tuple[list[dict[str, Any]], int]:
    return whole_lines(text or "")
