"""Jobs of a sweep as jobs of Slurm: submitted through submitit, followed and stopped.

Jobs that begin together are one array. A job that is over has left its exit code in the folder of
submitit; one that Slurm has killed leaves nothing there. squeue knows it for some minutes, and then
no longer has it: sacct, which would, needs an accounting that many clusters do not have.
"""

from __future__ import annotations

import contextlib
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sftpipe.errors import ConfigError, Problem, one_line, override
from sftpipe.storage import writing
from sftpipe.sweeps import processes
from sftpipe.sweeps.folder import SweepFolder
from sftpipe.sweeps.processes import Child, Pool, Slot, Work
from sftpipe.sweeps.slurm_job import SlurmJob
from sftpipe.terminal import console

_LAUNCHER = "hydra/launcher=slurm"
_PROGRAMS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
_LOOK_S, _ASK_S = 1.0, 10.0  # how often files are looked at, and squeue is asked
_SILENT_S = 30.0  # how long a shared file system may hide what a job that is over has written
_STOPPED = 128 + signal.SIGINT
# states in which a job is over (https://slurm.schedmd.com/squeue.html); "": Slurm has forgotten it
_OVER = (
    *("", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"),
    *("DEADLINE", "REVOKED", "BOOT_FAIL", "NODE_FAIL", "OUT_OF_MEMORY"),
)
_USUAL = ("None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit", "Dependency")
_HELP = {
    "OUT_OF_MEMORY": "more with hydra.launcher.mem_gb",
    "TIMEOUT": "more time for the checkpoint with hydra.launcher.signal_delay_s",
}
# the least value of a number among the keys of hydra.launcher
_LEAST = {
    "timeout_min": 1,
    "cpus_per_task": 1,
    "gpus_per_node": 0,
    "mem_gb": 0,
    "signal_delay_s": 0,
    "max_num_timeout": 0,
}
# keys that submitit takes by the same name
_SAME = (
    *("partition", "cpus_per_task", "gpus_per_node", "qos", "account", "constraint", "exclude"),
    *("nodelist", "comment", "signal_delay_s", "setup"),
)
# what sbatch is told by this module, and must not be told otherwise
_OURS = (
    *("array", "error", "job-name", "nodes", "ntasks", "ntasks-per-node", "no-requeue"),
    *("open-mode", "output", "requeue", "signal"),
)


def check_keys(keys: Mapping[str, Any]) -> list[Problem]:
    """The problems of the keys of `hydra.launcher` that can be known without Slurm."""
    problems = []
    for name, least in _LEAST.items():
        if keys[name] is not None and keys[name] < least:
            where, found = f"hydra.launcher.{name}", str(keys[name])
            fix = override(where, str(max(1, least)))
            problems.append(Problem(where, found, allowed=f"at least {least}", fix=fix))
    delay, most = keys["signal_delay_s"], 60 * keys["timeout_min"]
    if delay >= most > 0:
        where, found = "hydra.launcher.signal_delay_s", f"{delay}, and the whole job has {most} s"
        problems.append(Problem(where, found, fix=override(where, str(most // 2))))
    for name in keys["additional_parameters"]:
        if str(name).replace("_", "-") in _OURS:
            where = f"hydra.launcher.additional_parameters.{name}"
            found = "sftpipe tells sbatch so itself, to follow and to requeue the jobs"
            problems.append(Problem(where, found, fix="leave it out"))
    return problems


def check_installed() -> None:
    """Is there what submits jobs?

    Raises:
        ConfigError: submitit or a program of Slurm is missing.
    """
    problems = []
    try:
        import submitit  # noqa: F401
    except ImportError:
        fix = "`pip install 'sftpipe[slurm]'`"
        problems.append(Problem(_LAUNCHER, "the package submitit is not installed", fix=fix))
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        found = f"no {', '.join(missing)} on the PATH: this machine submits no jobs to Slurm"
        fix = "`hydra/launcher=process` trains here; or log in to the cluster"
        problems.append(Problem(_LAUNCHER, found, fix=fix))
    if problems:
        raise ConfigError(*problems)


class Cluster:
    """Where the jobs of a sweep run, and wait."""

    def __init__(self, keys: Mapping[str, Any], folder: SweepFolder) -> None:
        """Keys: of `hydra.launcher`."""
        self._keys, self._folder = keys, folder.slurm
        self._name = f"sftpipe-{folder.path.resolve().name}"
        self._jobs: list[_Submitted] = []
        self._states: dict[str, str] = {}
        self._looked = self._asked = -_ASK_S
        self._waits: set[tuple[str, str]] = set()

    @property
    def gpus(self) -> int:
        """Of a job."""
        return int(self._keys["gpus_per_node"] or 0)

    def pool(self, jobs: int, works: int, each: int, *, ahead: bool) -> Pool:
        """A pool whose jobs are the cluster's, of `each` processes; see `Sweep.pool`.

        Where all jobs may be submitted at once, Slurm sees to it that so many run at a time.
        """
        slot = Slot(max(1, self._keys["cpus_per_task"] // each))
        return Pool([slot] * (works if ahead else min(jobs, works)), self.start)

    def has(self, job_id: str) -> bool:
        """Does a job of this sweep, submitted before, still wait or run?

        Raises:
            ConfigError: Slurm does not answer.
        """
        found = _squeue([job_id], "%i|%T|%j")
        if found is None:
            problem = "Slurm does not answer, and jobs that were submitted before may still run"
            raise ConfigError(Problem(_LAUNCHER, problem, fix="try again when squeue does"))
        return any(
            one == job_id and state not in _OVER and name == self._name
            for one, state, name in found
        )

    def start(self, batch: Sequence[tuple[Work, Slot]]) -> Sequence[Child]:
        """Submit jobs as one array; those that were submitted before are followed.

        Raises:
            ConfigError: sbatch refuses them.
            StorageError: the folder of submitit cannot be written.
        """
        new = [(work, slot) for work, slot in batch if work.job_id is None]
        ids = iter(self._submit(new) if new else ())
        jobs = [
            _Submitted(work.job_id or next(ids), self, self._stop_file(work)) for work, _ in batch
        ]
        self._jobs += jobs
        self._asked = time.monotonic() if new else self._asked  # Slurm may not list them at once
        return jobs

    def _stop_file(self, work: Work) -> Path:
        return self._folder / f"{work.name}.stop"

    def _submit(self, batch: Sequence[tuple[Work, Slot]]) -> list[str]:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            for work, _ in batch:
                self._stop_file(work).unlink(missing_ok=True)
        python = f"{shlex.quote(sys.executable)} -P"  # as of `processes.WORKER`
        executor = submitit.SlurmExecutor(
            self._folder, self._keys["max_num_timeout"], python=python
        )
        executor.update_parameters(**self._parameters())
        try:
            with writing(self._folder), executor.batch():
                jobs = [executor.submit(self._job(work, slot)) for work, slot in batch]
        except (FailedJobError, FailedSubmissionError) as error:
            found = f"sbatch refuses the jobs: {one_line(error)}"
            fix = "other keys of hydra.launcher; sinfo lists partitions, docs/cluster.md the keys"
            raise ConfigError(Problem(_LAUNCHER, found, fix=fix)) from None
        return [str(job.job_id) for job in jobs]

    def _parameters(self) -> dict[str, Any]:
        """What submitit's executor for Slurm takes, less what is left to Slurm."""
        keys = self._keys
        memory = None if keys["mem_gb"] is None else f"{round(keys['mem_gb'] * 1024)}MB"
        found = {
            **{name: keys[name] for name in _SAME},
            "job_name": self._name,
            "time": keys["timeout_min"],
            "mem": memory,
            "nodes": 1,
            "ntasks_per_node": 1,
            "array_parallelism": keys["n_jobs"],
            "additional_parameters": {"requeue": True, **keys["additional_parameters"]},
        }
        named = {name: value for name, value in found.items() if value is not None}
        return {**named, "wckey": None}  # submitit's own, which few clusters know

    def _job(self, work: Work, slot: Slot) -> SlurmJob:
        command = [sys.executable, *processes.WORKER, str(work.folder.absolute())]
        environment = {**work.environment, "OMP_NUM_THREADS": str(slot.threads)}
        log, stop = work.log.absolute(), self._stop_file(work).absolute()
        return SlurmJob(command, work.folder.absolute(), log, stop, environment)

    # --- followed ---------------------------------------------------------------------------------

    def state(self, job_id: str) -> str | None:
        """What Slurm says of a job; "" where it no longer has it, None before it was asked."""
        return self._states.get(job_id)

    def look(self) -> None:
        """Ask Slurm, and tell it which jobs are to stop; not at every call."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        self._jobs = [job for job in self._jobs if job.code is None]
        self._stop([job for job in self._jobs if job.wanted is not None and not job.is_told])
        if now - self._asked < _ASK_S or not self._jobs:
            return
        self._asked = now
        found = _squeue([job.job_id for job in self._jobs], "%i|%T|%r")
        if found is None:
            return  # it is busy, or starts anew: the jobs do not mind
        listed = {job_id: (state, reason) for job_id, state, reason in found}
        for job in self._jobs:
            state, reason = listed.get(job.job_id, ("", ""))
            self._states[job.job_id] = state
            waits = (job.job_id, reason)
            if state == "PENDING" and reason not in _USUAL and waits not in self._waits:
                self._waits.add(waits)
                console.print(f"slurm     job {job.job_id} waits: {reason}", markup=False)

    def _stop(self, jobs: Sequence[_Submitted]) -> None:
        """End jobs: those that wait at once, those that run with a checkpoint."""
        gentle = [job.job_id for job in jobs if job.wanted == signal.SIGINT]
        if gentle:  # in this order none that begins in between is missed
            _scancel(["--state=PENDING", *gentle])
            _scancel(["--signal=INT", *gentle])
        if hard := [job.job_id for job in jobs if job.wanted == signal.SIGKILL]:
            _scancel(hard)
        for job in jobs:
            job.is_told = True
        self._asked = time.monotonic() - _ASK_S + 2 * _LOOK_S if jobs else self._asked

    def result(self, job_id: str) -> tuple[int, str] | None:
        """(exit code, reason) that a job has left; None where there is nothing."""
        file = self._folder / f"{job_id}_0_result.pkl"
        try:
            outcome, found = pickle.loads(file.read_bytes())
        except (OSError, EOFError, pickle.UnpicklingError):
            return None
        if outcome == "success":
            code, reason = found
            return int(code), str(reason)
        return 1, f"its job {job_id} failed: {str(found).strip().splitlines()[-1]}"

    def last_word(self, job_id: str) -> str:
        """The last line that a job has said before its worker began, or after it ended."""
        with contextlib.suppress(OSError):
            text = (self._folder / f"{job_id}_0_log.err").read_text("utf-8", errors="replace")
            return next(iter(text.strip().splitlines()[-1:]), "")
        return ""


class _Submitted:
    """A job of the cluster."""

    def __init__(self, job_id: str, cluster: Cluster, stop_file: Path) -> None:
        self.job_id = job_id
        self.code: int | None = None
        self.reason = ""
        self.wanted: int | None = None
        self.is_told = False
        self._cluster, self._stop_file = cluster, stop_file
        self._over_since: float | None = None
        self._polled = 0.0

    def poll(self) -> int | None:
        now = time.monotonic()
        if self.code is None and now - self._polled >= _LOOK_S:
            self._polled = now
            self._cluster.look()
            self.code = self._ended()
        return self.code

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < until:
            time.sleep(_LOOK_S)

    def send(self, number: int) -> None:
        """Any signal but SIGKILL ends it with a checkpoint, if it has begun."""
        wanted = signal.SIGKILL if number == signal.SIGKILL else signal.SIGINT
        if self.code is None and self.wanted not in (wanted, signal.SIGKILL):
            self.wanted, self.is_told = wanted, False
            with contextlib.suppress(OSError):  # for a job whose worker has not begun yet
                self._stop_file.touch()

    def _ended(self) -> int | None:
        """The exit code; None where the job is not over."""
        if (left := self._cluster.result(self.job_id)) is not None:
            code, self.reason = left
            return code
        state = self._cluster.state(self.job_id)
        if state is None or state not in _OVER:
            self._over_since = None
            return None
        self._over_since = self._over_since or time.monotonic()
        is_done = state in ("", "COMPLETED") or self.wanted is None
        if is_done and time.monotonic() - self._over_since < _SILENT_S:
            return None  # it may have left a result that is not to be seen yet
        if self.wanted is not None:
            return _STOPPED
        said = self._cluster.last_word(self.job_id)
        self.reason = f"Slurm has ended its job {self.job_id}: {state or 'it is gone'}" + "".join(
            f"; {part}" for part in (_HELP.get(state, ""), said) if part
        )
        return 128 + signal.SIGTERM if state.startswith("CANCELLED") else -signal.SIGKILL


def _squeue(job_ids: Iterable[str], columns: str) -> list[tuple[str, str, str]] | None:
    """The columns of jobs that Slurm still has, finished or not; None where it does not answer."""
    wanted = ",".join(sorted({job_id.partition("_")[0] for job_id in job_ids}))
    command = ["squeue", "--noheader", "--array", "--states=all", f"--format={columns}"]
    try:
        done = subprocess.run(
            [*command, f"--jobs={wanted}"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:  # how it says that it has none
        return None
    lines = [line.strip().split("|", 2) for line in done.stdout.splitlines()]
    return [(line[0], line[1], line[2]) for line in lines if len(line) == 3]


def _scancel(arguments: Sequence[str]) -> None:
    """What it cannot end is over, or is asked about again."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(["scancel", *arguments], capture_output=True, timeout=60)
