"""A worker process for each job, on cores and GPUs of its own; `slurm.py` starts them elsewhere.

On Linux without a GPU the workers are forks of one process that has imported everything, since two
thirds of what a small job costs are imports. CUDA cannot be used in a fork of a process that has
looked for it, so with a GPU each worker imports for itself.

A signal ends the jobs after their current step, with a checkpoint; a second one ends them at once.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sftpipe.storage import writing

_WORKER, _PRELOADED = "sftpipe.worker", "sftpipe.preloaded"  # they import this package
# -P: what lies in the working folder hides no package
WORKER = ["-P", "-m", _WORKER]
_LOOK_S = 0.2
_MERCY_S = 10.0  # after a second signal
PARENT = "SFTPIPE_PARENT"  # read by sftpipe.worker, which stops when its parent is gone


@dataclass(frozen=True)
class Slot:
    """What one job at a time computes with.

    threads: of the CPU work of each process.
    gpu: for CUDA_VISIBLE_DEVICES, several with commas; None where there is none to hand out.
    """

    threads: int
    gpu: str | None = None


class Child(Protocol):
    """A process of a worker, on this machine or on a cluster."""

    @property
    def reason(self) -> str:
        """Why it ended, where neither its exit code nor its log says so; "" otherwise."""

    @property
    def job_id(self) -> str | None:
        """Of its job on a cluster; None on this machine."""

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""

    def wait(self, seconds: float) -> None:
        """Wait for its end, but not for ever."""

    def send(self, number: int) -> None:
        """Send it a signal, if it is still there."""


def _ignore(_child: Child) -> None:
    pass


@dataclass
class Work:
    """A job for a process.

    name: for people.
    folder: the run folder, which is planned.
    log: what its process says is added to this file.
    environment: further variables.
    job_id: of its job on a cluster, where that was submitted before.
    began: called when its process has been started.
    """

    name: str
    folder: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    job_id: str | None = None
    began: Callable[[Child], None] = _ignore


# starts jobs that begin together
Start = Callable[[Sequence[tuple[Work, Slot]]], Sequence[Child]]


@dataclass
class Running:
    """A job whose process runs, or has ended.

    begins_at: where its words begin in the log, which earlier attempts may have filled.
    asked_to_stop: a look at it said so.
    code: the exit code, negative for a signal; None while it runs.
    """

    work: Work
    slot: Slot
    process: Child
    started: float
    begins_at: int = 0
    asked_to_stop: bool = False
    code: int | None = None
    seconds: float = 0.0


def slots(jobs: int, gpus: Sequence[str], cores: int, each: int = 1) -> list[Slot]:
    """What `jobs` jobs at a time get: the cores divided, the GPUs handed out in turn.

    Args:
        jobs: at a time.
        gpus: as CUDA_VISIBLE_DEVICES names them.
        cores: of this machine.
        each: processes of a job, with a GPU for each.
    """
    threads = int(os.environ.get("OMP_NUM_THREADS") or 0) or max(1, cores // (jobs * each))
    shares = [
        dict.fromkeys(gpus[(at * each + more) % len(gpus)] for more in range(each)) if gpus else {}
        for at in range(jobs)
    ]
    return [Slot(threads, ",".join(share) or None) for share in shares]


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

    def __init__(self, places: Sequence[Slot], start: Start) -> None:
        self._free, self._begin = list(places), start
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
        running.process.send(signal.SIGTERM)

    def _start(self, following: Callable[[Slot], Work | None]) -> None:
        batch: list[tuple[Work, Slot]] = []
        while len(batch) < len(self._free) and self.stopped is None:
            slot = self._free[len(batch)]
            work = following(slot)
            if work is None:
                break
            batch.append((work, slot))
        if not batch:
            return
        begins_at = [_end_of_log(work) for work, _ in batch]
        now, children = time.monotonic(), self._begin(batch)
        del self._free[: len(batch)]
        new = [
            Running(work, slot, child, now, at)
            for (work, slot), child, at in zip(batch, children, begins_at, strict=True)
        ]
        stopped = self.stopped
        self._running += new
        for one in new:
            one.work.began(one.process)
            if stopped is not None:  # the signal came before they were in the list
                one.process.send(stopped)

    def _collect(self, ended: Callable[[Running], None]) -> None:
        for one in list(self._running):
            one.code = one.process.poll()
            if one.code is not None:
                one.seconds = time.monotonic() - one.started
                self._running.remove(one)
                self._free.append(one.slot)
                ended(one)
            elif self._second is not None and time.monotonic() - self._second > _MERCY_S:
                one.process.send(signal.SIGKILL)

    def _end_all(self) -> None:
        """An exception of this process leaves no worker behind."""
        for one in self._running:
            one.process.send(signal.SIGTERM)
        for number in (signal.SIGKILL, None):
            until = time.monotonic() + _MERCY_S
            for one in self._running:
                one.process.wait(max(0.0, until - time.monotonic()))
                if number is not None:
                    one.process.send(number)
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
            one.process.send(number)


def can_fork() -> bool:
    """May workers be forks of a process that has imported everything?"""
    return sys.platform == "linux" and not any(Path("/dev").glob("nvidia[0-9]*"))


def on_this_machine(*, forking: bool = False) -> Start:
    """What starts workers here.

    Args:
        forking: they are forks of one process, see `can_fork`.
    """
    return lambda batch: [_start_here(work, slot, forking=forking) for work, slot in batch]


def _start_here(work: Work, slot: Slot, *, forking: bool) -> Child:
    """Start the worker of a job, in a session of its own: a terminal's Ctrl-C reaches us alone."""
    environment = {
        **work.environment,
        "OMP_NUM_THREADS": str(slot.threads),
        PARENT: str(os.getpid()),
        **({} if slot.gpu is None else {"CUDA_VISIBLE_DEVICES": slot.gpu}),
    }
    with writing(work.log):
        return (_Fork if forking else _Fresh)(work, environment, slot.threads)


def _end_of_log(work: Work) -> int:
    """Where the words of a job that starts now begin in its log, which is made."""
    with writing(work.log):
        work.log.parent.mkdir(parents=True, exist_ok=True)
        with work.log.open("ab") as log:
            return 0 if work.job_id else log.tell()


class _Fresh:
    """A worker that imports for itself."""

    reason, job_id = "", None

    def __init__(self, work: Work, environment: Mapping[str, str], _threads: int) -> None:
        with work.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *WORKER, str(work.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def send(self, number: int) -> None:
        with contextlib.suppress(OSError):
            self._process.send_signal(number)


class _Fork:
    """A worker that is a fork of multiprocessing's server, which has imported everything."""

    reason, job_id = "", None

    def __init__(self, work: Work, environment: Mapping[str, str], threads: int) -> None:
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([_PRELOADED])
        arguments = (str(work.folder), str(work.log), dict(environment), threads)
        self._process = context.Process(target=_in_fork, args=arguments)
        self._process.start()

    def poll(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def wait(self, seconds: float) -> None:
        self._process.join(seconds)

    def send(self, number: int) -> None:
        with contextlib.suppress(OSError):
            if self._process.exitcode is None:
                os.kill(self._process.pid, number)


def _in_fork(folder: str, log: str, environment: dict[str, str], threads: int) -> None:
    """Make of a fork what `python -m sftpipe.worker` is."""
    os.setsid()
    for path, flags, descriptors in (
        (os.devnull, os.O_RDONLY, (0,)),
        (log, os.O_WRONLY | os.O_APPEND, (1, 2)),
    ):
        opened = os.open(path, flags)
        for descriptor in descriptors:
            os.dup2(opened, descriptor)
    os.environ.update(environment)
    sys.orig_argv = [sys.executable, *WORKER, folder]
    import torch

    torch.set_num_threads(threads)  # OMP_NUM_THREADS is read once, before the fork
    code = importlib.import_module(_WORKER).main([folder])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
    if running.process.reason:
        return running.process.reason
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
