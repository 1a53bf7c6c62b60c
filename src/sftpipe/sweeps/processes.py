"""A worker process for each job, on cores and GPUs of its own.

A signal ends the jobs after their current step, with a checkpoint; a second one ends them at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sftpipe.storage import writing

# -P: what lies in the working folder hides no package
WORKER = ["-P", "-m", "sftpipe.worker"]
_LOOK_S = 0.2
_MERCY_S = 10.0  # after a second signal
PARENT = "SFTPIPE_PARENT"  # read by sftpipe.worker, which stops when its parent is gone


@dataclass(frozen=True)
class Slot:
    """What one job at a time computes with.

    threads: of its CPU work.
    gpu: for CUDA_VISIBLE_DEVICES; None where there is none to hand out.
    """

    threads: int
    gpu: str | None = None


@dataclass
class Work:
    """A job for a process.

    name: for people.
    folder: the run folder, which is planned.
    log: what its process says is added to this file.
    environment: further variables.
    """

    name: str
    folder: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Running:
    """A job whose process runs, or has ended.

    begins_at: where its words begin in the log, which earlier attempts may have filled.
    asked_to_stop: a look at it said so.
    code: the exit code, negative for a signal; None while it runs.
    """

    work: Work
    slot: Slot
    process: subprocess.Popen[bytes]
    started: float
    begins_at: int = 0
    asked_to_stop: bool = False
    code: int | None = None
    seconds: float = 0.0


def slots(jobs: int, gpus: Sequence[str], cores: int) -> list[Slot]:
    """What `jobs` processes at a time get: the cores divided, the GPUs handed out in turn."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or 0) or max(1, cores // jobs)
    return [Slot(threads, gpus[at % len(gpus)] if gpus else None) for at in range(jobs)]


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them (no torch needed)."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [one.strip() for one in named.split(",") if one.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listed.splitlines() if line.strip().isdigit()]


class Pool:
    """Runs jobs, one in each slot at a time.

    stopped: the signal that was received; None where none was.
    """

    def __init__(self, places: Sequence[Slot]) -> None:
        self._free = list(places)
        self._running: list[Running] = []
        self._second: float | None = None
        self.stopped: int | None = None

    def run(
        self,
        following: Callable[[Slot], Work | None],
        ended: Callable[[Running], None],
        look: Callable[[Sequence[Running]], None],
    ) -> None:
        """Run jobs until there is none left, or a signal has ended all that ran.

        Args:
            following: the next job, planned; None where there is none to start now.
            ended: called with each job whose process is over.
            look: called a few times a second with what runs; it may ask a job to stop.
        """
        with self._listening():
            try:
                while True:
                    self._start(following)
                    if not self._running:
                        return
                    time.sleep(_LOOK_S)
                    look(self._running)
                    self._collect(ended)
            finally:
                self._end_all()

    def stop(self, running: Running) -> None:
        """Ask a job to stop after its step, with a checkpoint."""
        running.asked_to_stop = True
        _send(running.process, signal.SIGTERM)

    def _start(self, following: Callable[[Slot], Work | None]) -> None:
        while self._free and self.stopped is None:
            slot = self._free[0]
            work = following(slot)
            if work is None:
                return
            self._free.pop(0)
            self._running.append(_begin(work, slot))

    def _collect(self, ended: Callable[[Running], None]) -> None:
        for one in list(self._running):
            one.code = one.process.poll()
            if one.code is not None:
                one.seconds = time.monotonic() - one.started
                self._running.remove(one)
                self._free.append(one.slot)
                ended(one)
            elif self._second is not None and time.monotonic() - self._second > _MERCY_S:
                _send(one.process, signal.SIGKILL)

    def _end_all(self) -> None:
        """An exception of this process leaves no worker behind."""
        for one in self._running:
            _send(one.process, signal.SIGTERM)
        for one in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(_MERCY_S)
            _send(one.process, signal.SIGKILL)
            one.process.wait()
        self._running.clear()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        before = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _frame: object) -> None:
        if self.stopped is not None:
            self._second = self._second or time.monotonic()
        self.stopped = self.stopped or number
        for one in self._running:
            _send(one.process, number)


def _begin(work: Work, slot: Slot) -> Running:
    """Start the worker of a job, in a session of its own: a terminal's Ctrl-C reaches us alone."""
    environment = {
        **os.environ,
        **work.environment,
        "OMP_NUM_THREADS": str(slot.threads),
        PARENT: str(os.getpid()),
        **({} if slot.gpu is None else {"CUDA_VISIBLE_DEVICES": slot.gpu}),
    }
    with writing(work.log):
        work.log.parent.mkdir(parents=True, exist_ok=True)
        with work.log.open("ab") as log:
            begins_at = log.tell()
            process = subprocess.Popen(
                [sys.executable, *WORKER, str(work.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
    return Running(work, slot, process, time.monotonic(), begins_at)


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(OSError):
        process.send_signal(number)


# --- what a process said --------------------------------------------------------------------------

_HEADING = re.compile(r"error|\d+ errors")
_STEP = re.compile(r"step (\d+)/(\d+)  (.*)")
_TAIL = 65_536  # bytes of a log that are looked at


def last_lines(running: Running) -> list[str]:
    """The lines at the end of what a process has said."""
    log = running.work.log
    try:
        with log.open("rb") as file:
            file.seek(max(running.begins_at, log.stat().st_size - _TAIL))
            return file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []


def last_step(running: Running) -> tuple[int, int, str] | None:
    """(step, of how many, a note) that a worker said last; None before its first."""
    for line in reversed(last_lines(running)):
        if match := _STEP.fullmatch(line.strip()):
            return int(match[1]), int(match[2]), match[3]
    return None


def why(running: Running) -> str:
    """Why a job ended without success, in one line."""
    code = running.code or 0
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; was memory short?" if code == -signal.SIGKILL else ""
        return f"its process was ended by {name}{hint}"
    lines = [line.strip() for line in last_lines(running) if line.strip()]
    for at in range(len(lines) - 2, -1, -1):
        if _HEADING.fullmatch(lines[at]):
            return lines[at + 1]
    return lines[-1] if lines else f"exit code {code}, without a word"
