"""`hydra/launcher=process` and `slurm` of sftpipe: a process, or a job of Slurm, for each job.

Hydra imports this module for every command: it imports nothing but Hydra, and what a dataclass of
it is annotated with must be real types (no postponed annotations).
"""

import math
from dataclasses import dataclass, field
from typing import Any, Optional, Sequence  # noqa: UP035

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict


@dataclass
class ProcessLauncherConf:
    """The keys of `hydra.launcher`."""

    _target_: str = "hydra_plugins.sftpipe_launcher.ProcessLauncher"
    # jobs at a time; cores and GPUs are divided among them
    n_jobs: int = 1
    # what ranks the jobs; null: the best validation loss
    metric: Optional[str] = None
    # minimize or maximize
    direction: str = "minimize"


ConfigStore.instance().store(
    group="hydra/launcher", name="process", node=ProcessLauncherConf, provider="sftpipe"
)


@dataclass
class SlurmLauncherConf(ProcessLauncherConf):
    """The keys of `hydra.launcher`; null leaves a value to Slurm."""

    _target_: str = "hydra_plugins.sftpipe_launcher.SlurmLauncher"
    # jobs at a time, of those that are submitted together
    n_jobs: int = 8
    partition: Optional[str] = None
    # minutes that a job may take before it is requeued
    timeout_min: int = 60
    # how often it may be requeued for its time; other jobs may take its node any number of times
    max_num_timeout: int = 3
    # seconds that Slurm leaves it for its step and its checkpoint
    signal_delay_s: int = 120
    cpus_per_task: int = 1
    gpus_per_node: Optional[int] = None
    mem_gb: Optional[float] = None
    qos: Optional[str] = None
    account: Optional[str] = None
    constraint: Optional[str] = None
    nodelist: Optional[str] = None
    exclude: Optional[str] = None
    comment: Optional[str] = None
    # lines of a shell, before Python starts on the node
    setup: Optional[list[str]] = None
    # further options of sbatch: {mail-type: END}
    additional_parameters: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(
    group="hydra/launcher", name="slurm", node=SlurmLauncherConf, provider="sftpipe"
)


class Ended(JobReturn):
    """The return of a job; one that failed has no value, and stops no sweeper."""

    @property
    def return_value(self) -> Any:
        """The metric; NaN of a job that failed."""
        return self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


class ProcessLauncher(Launcher):
    """Runs each job as `python -m sftpipe.worker`; the value of a job is the metric."""

    def __init__(self, n_jobs: int, **_others: Any) -> None:
        self.n_jobs = n_jobs  # the sweep has read the others before it began
        self.hydra_context: Optional[HydraContext] = None
        self.task_function: Any = None
        self.config: Optional[DictConfig] = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what a launch needs."""
        self.hydra_context, self.config = hydra_context, config
        self.task_function = task_function

    def compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        """The config of a job."""
        assert self.hydra_context is not None
        assert self.config is not None
        loader = self.hydra_context.config_loader
        composed = loader.load_sweep_config(self.config, list(overrides))
        with open_dict(composed.hydra):
            composed.hydra.job.id = composed.hydra.job.num = number
        return composed

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run a batch of jobs; all of them, although some fail."""
        assert self.hydra_context is not None
        callbacks, sweep = self.hydra_context.callbacks, self.task_function
        composed = [
            self.compose(words, number)
            for number, words in enumerate(job_overrides, initial_job_idx)
        ]
        returns: list[JobReturn] = [Ended() for _ in composed]

        def began(at: int) -> None:
            callbacks.on_job_start(config=composed[at], task_function=sweep)

        def ended(at: int, outcome: Any) -> None:
            _fill(returns[at], composed[at], outcome)
            callbacks.on_job_end(config=composed[at], job_return=returns[at])

        outcomes = sweep.run(composed, self.n_jobs, began, ended)
        for one, config, outcome in zip(returns, composed, outcomes):  # noqa: B905
            _fill(one, config, outcome)  # a job that is another one's twin has not ended itself
        return returns


class SlurmLauncher(ProcessLauncher):
    """Runs each job as a job of Slurm, which the sweep submits."""


def _fill(one: JobReturn, composed: DictConfig, outcome: Any) -> None:
    """What a launcher of Hydra's says of a job."""
    plain: Any = OmegaConf.to_container(composed, resolve=False)
    one.overrides = list(plain["hydra"]["overrides"]["task"])
    one.hydra_cfg = OmegaConf.create({"hydra": plain.pop("hydra")})
    one.cfg = OmegaConf.create(plain)
    one.task_name = "sftpipe"
    one.return_value = outcome.value
    failed = math.isnan(outcome.value) and outcome.state != "done"
    one.status = JobStatus.FAILED if failed else JobStatus.COMPLETED
