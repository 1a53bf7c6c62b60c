"""`hydra/sweeper=optuna` of sftpipe: a search that prunes, on current Optuna.

Hydra imports this module for every command: it imports nothing but Hydra, and what a dataclass of
it is annotated with must be real types (no postponed annotations).
"""

from dataclasses import dataclass, field
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class OptunaSweeperConf:
    """The keys of `hydra.sweeper`."""

    _target_: str = "hydra_plugins.sftpipe_optuna.OptunaSweeper"
    # points in all, also where a search goes on
    n_trials: int = 20
    # what is searched for; null: the best validation loss
    metric: Optional[str] = None
    # minimize or maximize
    direction: str = "minimize"
    # tpe, random, gp, cmaes or qmc, and arguments of Optuna's class
    sampler: str = "tpe"
    sampler_args: dict[str, Any] = field(default_factory=dict)
    # none, median, percentile, hyperband or successive_halving, and arguments of Optuna's class
    pruner: str = "none"
    pruner_args: dict[str, Any] = field(default_factory=dict)
    # of the points; that of the training is the key `seed`
    seed: int = 42
    # as of Hydra's own sweeper: what is searched, written in a recipe
    params: Optional[dict[str, str]] = None


ConfigStore.instance().store(
    group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="sftpipe"
)


class OptunaSweeper(Sweeper):
    """Hands the words to `sftpipe.sweeps.search`, with the launcher that composes the trials."""

    def __init__(self, **keys: Any) -> None:
        self.keys: dict[str, Any] = {
            name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for name, value in keys.items()
        }
        self.hydra_context: Optional[HydraContext] = None
        self.config: Optional[DictConfig] = None
        self.launcher: Optional[Launcher] = None
        self.task_function: Any = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what a search needs."""
        self.hydra_context, self.config = hydra_context, config
        self.task_function = task_function
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Search; returns nothing, since the trials are in the folder of the sweep."""
        from sftpipe.sweeps.search import search

        given = {word.partition("=")[0] for word in arguments}
        params: dict[str, str] = dict(self.keys["params"] or {})
        swept = [f"{key}={values}" for key, values in params.items() if key not in given]
        search(self.task_function, self.launcher, [*swept, *arguments], self.keys)
