"""The folder of a sweep: a run folder for each job, and beside them what the sweep knows.

sweep.json          the words of the command line, the metric, the code that trained it
jobs/<job>.json     words, values and state of a job
jobs/<job>.log      what its process said
jobs/slurm/         what submitit keeps of jobs on a cluster: their files for sbatch, their logs
results.csv, .json  the ranked table; sweep.html for people
<job>/              its run folder, named after the values that vary
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sftpipe.environment import versions
from sftpipe.errors import Problem, RunError
from sftpipe.runs.folder import RunFolder, damaged
from sftpipe.runs.lock import holder
from sftpipe.storage import write_json, writing

# states of a job
WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
STOPPED, KILLED, PRUNED = "stopped", "killed", "pruned"
# packages whose versions decide what a config trains
_DECIDING = ("sftpipe", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")


@dataclass(frozen=True)
class JobRecord:
    """What is known of a job.

    name: of its run folder and its log.
    words: the overrides that make it, as a user types them.
    values: {key: value} of those that vary.
    state: one of the states above.
    error: the last line of what went wrong; "" where nothing did.
    seconds: of its processes, all attempts together.
    threads, gpu: what its last process computed with.
    trial: its number in a search.
    job_id: of its last process on a cluster; None of one on a machine of its parent.
    """

    name: str
    words: tuple[str, ...]
    values: dict[str, str]
    state: str = WAITING
    error: str = ""
    seconds: float = 0.0
    threads: int | None = None
    gpu: str | None = None
    trial: int | None = None
    job_id: str | None = None


@dataclass(frozen=True)
class SweepRecord:
    """What a sweep was asked for.

    words: of the command line.
    metric, direction: what ranks its jobs.
    code: {package: version} of what decides a training.
    """

    words: tuple[str, ...]
    metric: str
    direction: str
    code: dict[str, str | None] = field(default_factory=lambda: deciding_versions())


def deciding_versions() -> dict[str, str | None]:
    """{package: version} of what decides what a config trains."""
    found = versions()
    return {name: found[name] for name in _DECIDING}


@dataclass(frozen=True)
class SweepFolder:
    """A sweep folder: these files, and a run folder for each job."""

    path: Path

    @property
    def record(self) -> Path:
        """What was asked for."""
        return self.path / "sweep.json"

    @property
    def csv(self) -> Path:
        """The ranked table, for spreadsheets."""
        return self.path / "results.csv"

    @property
    def json(self) -> Path:
        """The ranked table, for programs."""
        return self.path / "results.json"

    @property
    def page(self) -> Path:
        """The ranked table, for people."""
        return self.path / "sweep.html"

    @property
    def journal(self) -> Path:
        """Optuna's journal of a search."""
        return self.path / "optuna.journal"

    def log(self, name: str) -> Path:
        """What the processes of a job said."""
        return self.path / "jobs" / f"{name}.log"

    def job(self, name: str) -> Path:
        """The record of a job."""
        return self.path / "jobs" / f"{name}.json"

    @property
    def slurm(self) -> Path:
        """The files of submitit."""
        return self.path / "jobs" / "slurm"

    def run(self, name: str) -> RunFolder:
        """The run folder of a job."""
        return RunFolder(self.path / name)

    @property
    def continuing(self) -> str:
        """What to type to go on with the sweep, in backticks."""
        return f"`sftpipe train -m --continue {shlex.quote(str(self.path))}`"

    # --- read and written -------------------------------------------------------------------------

    def read(self) -> SweepRecord:
        """The content of sweep.json.

        Raises:
            RunError: the folder is no sweep, or the file is damaged.
        """
        if not self.record.is_file():
            found = "no sweep of sftpipe"
            raise RunError(Problem(str(self.path), found, allowed="a folder with sweep.json"))
        try:
            found_in = dict(json.loads(self.record.read_text(encoding="utf-8")))
            return SweepRecord(**{**found_in, "words": tuple(found_in["words"])})
        except (OSError, ValueError, TypeError, KeyError):
            raise damaged(self.record) from None

    def write(self, record: SweepRecord) -> None:
        """sweep.json; the folder is made where it is missing."""
        with writing(self.record):
            self.record.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.record, asdict(record))

    def write_job(self, record: JobRecord) -> None:
        """The record of a job, readable as a whole at any time."""
        file = self.job(record.name)
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(record))

    def read_job(self, name: str) -> JobRecord | None:
        """The record of a job, in the state that it really has; None where there is none.

        Raises:
            RunError: it is damaged.
        """
        file = self.job(name)
        if not file.is_file():
            return None
        try:
            content: dict[str, Any] = dict(json.loads(file.read_text(encoding="utf-8")))
            content["words"] = tuple(content["words"])
            record = JobRecord(**content)
        except (OSError, ValueError, TypeError, KeyError):
            raise damaged(file) from None
        return JobRecord(**{**asdict(record), "state": self._state(record)})

    def jobs(self) -> Iterator[JobRecord]:
        """The records of all jobs, by name.

        Raises:
            RunError: one is damaged.
        """
        for file in sorted((self.path / "jobs").glob("*.json")):
            if (record := self.read_job(file.stem)) is not None:
                yield record

    def _state(self, record: JobRecord) -> str:
        """A parent that was killed has left the state as it was then.

        What became of a job on a cluster only the cluster knows.
        """
        files = self.run(record.name)
        if files.complete.is_file():
            return DONE
        is_here = record.job_id is None
        if record.state == RUNNING and is_here and holder(files.path) is None:
            return KILLED
        return record.state
