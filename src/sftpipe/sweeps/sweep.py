"""What Hydra's launchers and sweepers call: jobs are planned, run in processes, and recorded."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sftpipe.config.hydra import ComposedRun
from sftpipe.config.multirun import environment_of, folder_of, job_here, job_of, words_of
from sftpipe.config.schema import TrainConfig
from sftpipe.errors import Interrupted, Problem, SftpipeError
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.lock import forget
from sftpipe.runs.plan import RunPlan
from sftpipe.runs.planned import plan_further, write_planned
from sftpipe.sweeps.board import Board
from sftpipe.sweeps.folder import (
    DONE,
    FAILED,
    KILLED,
    PRUNED,
    RUNNING,
    STOPPED,
    JobRecord,
    SweepFolder,
)
from sftpipe.sweeps.metric import Metric
from sftpipe.sweeps.place import name_of, place, varying
from sftpipe.sweeps.processes import (
    Child,
    Pool,
    Running,
    Slot,
    Work,
    can_fork,
    cores,
    on_this_machine,
    slots,
    visible_gpus,
    why,
)
from sftpipe.sweeps.slurm import Cluster
from sftpipe.terminal import console


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its state, and the metric (NaN where it has none)."""

    state: str
    value: float


@dataclass
class Job:
    """A job, checked, with its folder.

    complete: it has been trained, and there is nothing to do.
    """

    run: ComposedRun
    record: JobRecord
    folder: Path
    environment: dict[str, str]
    complete: bool = False


class Sweep:
    """One sweep, whose lock the caller holds.

    As a task function of Hydra's it trains one job in a process of its own, so that any launcher
    works; the launcher `process` and the sweeper `optuna` call the methods.
    """

    def __init__(
        self,
        folder: SweepFolder,
        constants: set[str],
        metric: Metric,
        total: int | None = None,
        configs: Sequence[TrainConfig] = (),
        cluster: Cluster | None = None,
    ) -> None:
        """A sweep.

        Args:
            folder: whose lock the caller holds.
            constants: keys that all jobs have alike.
            metric: what ranks the jobs.
            total: jobs; None where the sweeper decides.
            configs: of the jobs, as far as they are known; the largest says what each may use.
            cluster: where the jobs run; None for this machine.
        """
        self.folder, self.metric, self._cluster = folder, metric, cluster
        self._constants, self._board = constants, Board(total)
        self._distributed = [cfg.distributed for cfg in configs if cfg.distributed]

    def __call__(self, task: Any) -> float:
        """Train the job that Hydra composed; NaN where it fails, which its record tells."""
        self._board = Board(0)
        (outcome,) = self.run([job_here(task)], jobs=1)
        return outcome.value

    def place(self, run: ComposedRun, words: Sequence[str]) -> str:
        """The folder's name of a job, for `SweepLoader`."""
        return place(self.folder, self._grouped(run.config), varying(words, self._constants))

    def job(self, composed: Any, trial: int | None = None) -> Job:
        """A job that `SweepLoader` composed, checked and with its record."""
        folder, words = folder_of(composed), words_of(composed)
        before = self.folder.read_job(folder.name)
        values = varying(words, self._constants)
        record = before or JobRecord(folder.name, (), {})
        number = trial if trial is not None else record.trial
        values = {**record.values, **values}
        record = replace(record, words=tuple(words), values=values, trial=number)
        return Job(job_of(composed), record, folder, environment_of(composed))

    def run(
        self,
        composed: Sequence[Any],
        jobs: int,
        began: Callable[[int], None] = lambda at: None,
        ended: Callable[[int, Outcome], None] = lambda at, outcome: None,
    ) -> list[Outcome]:
        """Run jobs that Hydra composed, all of them although some fail.

        Args:
            composed: from `SweepLoader`.
            jobs: processes at a time.
            began: called with the index of each job before it starts.
            ended: called with the index and the outcome of each.

        Raises:
            Interrupted: a signal came; what ran has written a checkpoint.
            StorageError: the records cannot be written.
        """
        batch = _Batch(self, [self.job(one) for one in composed], began, ended)
        pool = self.pool(jobs, len(composed), ahead=True)
        with self.shown():
            pool.run(batch.following, partial(batch.over, pool), self.look)
        self.raise_if_stopped(pool)
        return batch.results()

    # --- what a search calls as well --------------------------------------------------------------

    def pool(self, jobs: int, works: int, *, ahead: bool = False) -> Pool:
        """The processes of a sweep: so many jobs at a time, and so many in all.

        Args:
            jobs: at a time.
            works: in all.
            ahead: no job depends on how another one ended, so that a queue may hold all of them.
        """
        if self._cluster is not None:
            each = self._processes(self._cluster.gpus)
            return self._cluster.pool(jobs, works, each, ahead=ahead)
        gpus = visible_gpus()
        each = self._processes(len(gpus))
        if gpus and jobs * each > len(gpus):
            some = f"{jobs} jobs at a time" + (f", of {each} processes each," if each > 1 else "")
            console.print(f"sweep     {some} share {len(gpus)} GPUs")
        start = on_this_machine(forking=works > 1 and can_fork())
        return Pool(slots(jobs, gpus, cores(), each), start)

    def _processes(self, gpus: int) -> int:
        """The processes of a job on one machine, of that which has most."""
        asked = [
            (one.num_processes or gpus * one.num_machines) // one.num_machines
            for one in self._distributed
        ]
        return max(1, *asked) if asked else 1

    def shown(self) -> AbstractContextManager[None]:
        """The live table, while a block runs."""
        return self._board.shown()

    def refuse(self, words: Sequence[str], error: SftpipeError, trial: int) -> None:
        """Record a job whose config is not right."""
        values = varying(words, self._constants)
        found = error.problems[0]
        record = JobRecord(name_of(values), tuple(words), values, trial=trial)
        self._note(replace(record, state=FAILED, error=f"{found.where}: {found.found}"))

    def look(self, running: Sequence[Running]) -> None:
        """Show what runs."""
        self._board.update(running)

    def begin(self, job: Job, slot: Slot) -> Work | None:
        """Plan a job for a process; None where there is nothing to do, or it cannot begin."""
        if (submitted := self._submitted(job)) is not None:
            return self._work(job, slot, submitted)
        try:
            plan = self._plan(job)
            if plan.complete:
                job.complete = True
                self._record(job, replace(job.record, state=DONE, error=""), "was done before")
                return None
            config = self._grouped(job.run.config)
            write_planned(config, plan, _records_of(job.run, plan))
        except SftpipeError as error:
            found = error.problems[0]
            reason = f"{found.where}: {found.found}"
            self._record(job, replace(job.record, state=FAILED, error=reason), reason)
            return None
        return self._work(job, slot)

    def end(self, job: Job, running: Running, *, stopped: bool) -> None:
        """Record how the process of a job ended."""
        state = _state_of(running, stopped=stopped)
        error = "" if state in (DONE, PRUNED) else why(running)
        seconds = job.record.seconds + running.seconds
        value = self.metric.of(RunFolder(job.folder))
        note = error or ("" if value is None else f"{self.metric.name} {value:.4f}")
        record = replace(job.record, state=state, error=error, seconds=round(seconds, 3))
        self._record(job, record, note)

    def outcome(self, job: Job) -> Outcome:
        """The state of a job and its metric."""
        is_done = job.record.state in (DONE, PRUNED)
        value = self.metric.of(RunFolder(job.folder)) if is_done else None
        return Outcome(job.record.state, math.nan if value is None else value)

    def raise_if_stopped(self, pool: Pool) -> None:
        """Raise `Interrupted` after a signal."""
        if pool.stopped is None:
            return
        states = [record.state for record in self.folder.jobs()]
        found = (
            f"stopped by {signal.Signals(pool.stopped).name}: {states.count(DONE)} of "
            f"{len(states)} jobs are done, and those that trained have written a checkpoint"
        )
        fix = f"{self.folder.continuing} goes on from there"
        raise Interrupted(pool.stopped, Problem(str(self.folder.path), found, fix=fix))

    def _submitted(self, job: Job) -> str | None:
        """The job of a cluster that an earlier parent has submitted, and that is not over."""
        submitted = job.record.job_id if job.record.state == RUNNING else None
        if self._cluster is None or submitted is None:
            return None
        if self._cluster.has(submitted):
            return submitted
        forget(job.folder)  # of a machine that has died: nobody there will remove its lock
        return None

    def _work(self, job: Job, slot: Slot, submitted: str | None = None) -> Work:
        log, began = self.folder.log(job.record.name), partial(self._began, job, slot)
        return Work(job.record.name, job.folder, log, job.environment, submitted, began)

    def _began(self, job: Job, slot: Slot, process: Child) -> None:
        record = replace(job.record, threads=slot.threads, gpu=slot.gpu, error="", state=RUNNING)
        job.record = replace(record, job_id=process.job_id)
        self.folder.write_job(job.record)
        place = "" if slot.gpu is None else f", GPU {slot.gpu}"
        place = place if process.job_id is None else f", job {process.job_id} of Slurm"
        computes_with = f"{slot.threads} thread{'s' * (slot.threads > 1)}{place}"
        self._board.began(record.name, computes_with, is_queued=process.job_id is not None)

    def _record(self, job: Job, record: JobRecord, note: str) -> None:
        job.record = record
        self._note(record, note)

    def _note(self, record: JobRecord, note: str = "") -> None:
        self.folder.write_job(record)
        self._board.ended(record.name, record.state, note or record.error)

    def _plan(self, job: Job) -> RunPlan:
        """Where the job begins."""
        plan = plan_further(job.run.config, job.folder)
        return plan if plan.attempt > 1 or plan.complete else replace(plan, said="")

    def _grouped(self, cfg: TrainConfig) -> TrainConfig:
        """Weights & Biases shows the jobs of a sweep as one group."""
        if cfg.tracking is None or cfg.tracking.type != "wandb" or cfg.tracking.group:
            return cfg
        return replace(cfg, tracking=replace(cfg.tracking, group=self.folder.path.name))


class _Batch:
    """Jobs that wait for their turn; two that train the same in one folder are one."""

    def __init__(
        self,
        sweep: Sweep,
        jobs: Sequence[Job],
        began: Callable[[int], None],
        ended: Callable[[int, Outcome], None],
    ) -> None:
        self._sweep, self._jobs, self._began, self._ended = sweep, jobs, began, ended
        self._first: dict[Path, int] = {}
        for at, job in enumerate(jobs):
            self._first.setdefault(job.folder, at)
        self._waiting = sorted(self._first.values())
        self._running: dict[str, int] = {}
        self._outcomes: dict[int, Outcome] = {}
        for at in self._waiting:  # a table shows them from the beginning
            if not sweep.folder.job(jobs[at].record.name).is_file():
                sweep.folder.write_job(jobs[at].record)

    def following(self, slot: Slot) -> Work | None:
        """The next job that has something to train."""
        while self._waiting:
            at = self._waiting.pop(0)
            self._began(at)
            if (work := self._sweep.begin(self._jobs[at], slot)) is not None:
                self._running[work.name] = at
                return work
            self._done(at)
        return None

    def over(self, pool: Pool, process: Running) -> None:
        """A process has ended."""
        at = self._running[process.work.name]
        self._sweep.end(self._jobs[at], process, stopped=pool.stopped is not None)
        self._done(at)

    def results(self) -> list[Outcome]:
        """The outcome of each job."""
        return [self._outcomes[self._first[job.folder]] for job in self._jobs]

    def _done(self, at: int) -> None:
        self._outcomes[at] = self._sweep.outcome(self._jobs[at])
        self._ended(at, self._outcomes[at])


def _records_of(run: ComposedRun, plan: RunPlan) -> dict[str, str]:
    subdir = RunFolder(plan.records).hydra.relative_to(plan.folder)
    return run.records(plan.folder, str(subdir))


_STOPPED_BY = (130, 143, -signal.SIGINT, -signal.SIGTERM)


def _state_of(running: Running, *, stopped: bool) -> str:
    code = running.code or 0
    if code == 0:
        return DONE
    if code in _STOPPED_BY or (stopped and code < 0):
        return PRUNED if running.asked_to_stop and not stopped else STOPPED
    return KILLED if code < 0 else FAILED
