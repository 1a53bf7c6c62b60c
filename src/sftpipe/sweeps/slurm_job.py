"""What a job of Slurm does on its node: it runs a worker, and lets it write its checkpoint.

Slurm sends each signal to every process of a job. What ends a job:

SIGUSR2   the time is nearly over, or another job needs the node: submitit calls `checkpoint`, which
          stops the worker with SIGTERM, and then requeues the job
SIGTERM   Slurm itself requeues or cancels the job; the worker has the signal too, and this process
          waits for its checkpoint and leaves no result, since the job may begin again
SIGINT    the sweep stops the job, whose exit code is its result
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from sftpipe.errors import SftpipeError
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.lock import forget
from sftpipe.runs.planned import plan_further, read_planned, write_planned

_LOOK_S = 0.2
_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
_STOPPED = (_INTERRUPTED, _TERMINATED, -signal.SIGINT, -signal.SIGTERM)


class SlurmJob:
    """A job, as submitit pickles it.

    command: of the worker.
    folder: the run folder, which is planned.
    log: what this process and the worker say is added to it.
    stop: a file that is there where the sweep has stopped the job before it began.
    environment: further variables of the worker.
    """

    def __init__(
        self,
        command: list[str],
        folder: Path,
        log: Path,
        stop: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.command, self.folder, self.log = command, folder, log
        self.stop, self.environment = stop, dict(environment)
        self._received: int | None = None
        self._worker: subprocess.Popen[bytes] | None = None

    def __call__(self) -> tuple[int, str]:
        """Train; returns the worker's exit code, and a reason where the code does not tell."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)
        if self.stop.exists():
            return _INTERRUPTED, ""
        with self.log.open("ab", buffering=0) as log:
            if (code := self._plan(log)) is not None:
                return code, ""
            self._worker = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                preexec_fn=_ignore_users_signal,
            )
        if self._received is not None:  # the worker was not there yet
            os.kill(self._worker.pid, self._received)
        return self._result()

    def checkpoint(self) -> Any:
        """Stop the worker; what to submit again, or None where the run is over.

        submitit calls it in the handler of a signal: Popen's own lock may be held.
        """
        from submitit.helpers import DelayedSubmission

        again = SlurmJob(self.command, self.folder, self.log, self.stop, self.environment)
        if self._worker is None:
            return DelayedSubmission(again)
        if self._received is None and _ended(self._worker.pid) is None:
            os.kill(self._worker.pid, signal.SIGTERM)
        while (code := _ended(self._worker.pid)) is None:
            time.sleep(_LOOK_S)
        if code not in _STOPPED or self._received == signal.SIGINT:
            return None
        with self.log.open("ab", buffering=0) as log:
            _say(log, f"job {_job_id()} has stopped: its time is over, or its node is needed")
        return DelayedSubmission(again)

    def _plan(self, log: IO[bytes]) -> int | None:
        """Plan a start after the first, which the sweep has planned.

        Returns:
            An exit code where there is nothing to train; None otherwise.
        """
        times = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        again = f", for the {times + 1}. time" if times else ""
        _say(log, f"job {_job_id()} begins on {platform.node()}{again}")
        if RunFolder(self.folder).complete.is_file():
            return 0
        if not times:
            return None
        try:
            forget(self.folder)  # this job's own, from a node that has died
            planned = read_planned(self.folder)
            plan = plan_further(planned.config, self.folder)
            write_planned(planned.config, plan, planned.hydra)
        except SftpipeError as error:
            log.write(f"error\n  {error}\n".encode())
            return error.exit_code
        if plan.checkpoint is None:
            _say(log, "there is no checkpoint yet: the run begins at its first step")
        return None

    def _environment(self) -> dict[str, str]:
        from sftpipe.sweeps.processes import PARENT

        inherited = {name: value for name, value in os.environ.items() if name != PARENT}
        return {**inherited, **self.environment}

    def _result(self) -> tuple[int, str]:
        from submitit.core.utils import UncompletedJobError

        assert self._worker is not None
        reason = ""
        try:
            while _ended(self._worker.pid) is None:
                time.sleep(_LOOK_S)
        except UncompletedJobError as error:  # submitit does not requeue it
            if "too many times" in str(error):
                reason = (
                    "its time was over too often; hydra.launcher.timeout_min gives it more, "
                    "hydra.launcher.max_num_timeout more starts"
                )
        code = self._worker.wait()
        if self._received == signal.SIGTERM and code in _STOPPED:
            raise SystemExit(_TERMINATED)  # an Exception would be taken for a result
        return code, reason

    def _receive(self, number: int, _frame: object) -> None:
        self._received = self._received or number


def _ended(process: int) -> int | None:
    """The exit code of a child, negative for a signal, which stays to be waited for; or None."""
    try:
        found = os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:  # it has been waited for
        return 0
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def _ignore_users_signal() -> None:
    """submitit's signal reaches the worker too, which would die of it."""
    from submitit.core.job_environment import JobEnvironment

    signal.signal(JobEnvironment._usr_sig(), signal.SIG_IGN)


def _job_id() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")


def _say(log: IO[bytes], text: str) -> None:
    log.write(f"slurm     {text}\n".encode())
