"""Mirror a run to Weights & Biases, to another tracker of transformers, or nowhere.

All trackers have the same methods, so that no caller asks which one it has.
"""

from __future__ import annotations

import importlib.util
import netrc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from transformers import TrainerCallback

import sftpipe.ranks as ranks
from sftpipe.config.schema import TRACKERS, TrackingConfig, TrainConfig, to_plain
from sftpipe.errors import ConfigError, Problem

if TYPE_CHECKING:
    from sftpipe.training.trainer import SFTPipeTrainer


class Tracker(TrainerCallback):
    """Tracks nothing (`tracking=none`)."""

    def finish(self, metrics: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
        """The content of metrics.json and samples.jsonl, when a run is over."""

    def close(self) -> None:
        """Flush and release what is held, however the run ended."""


class WandbTracker(Tracker):
    """Config, metrics and samples in a Weights & Biases run."""

    def __init__(self, cfg: TrackingConfig, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        mode: Any = cfg.mode
        if mode == "auto":
            mode = "online" if wandb_key_is_set() else "offline"
        self._wandb = wandb
        self._run = wandb.init(
            project=cfg.project,
            entity=cfg.entity,
            mode=mode,
            tags=cfg.tags,
            group=cfg.group,
            name=f"{folder.parent.name}/{folder.name}",
            dir=str(folder),
            config=dict(config),
            settings=wandb.Settings(console="off"),
        )

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        grouped = {_with_group(name): value for name, value in (logs or {}).items()}
        self._run.log(grouped, step=state.global_step)

    def finish(self, metrics: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
        if samples:
            columns = list(samples[0])
            rows = [[row[name] for name in columns] for row in samples]
            self._run.log({"samples": self._wandb.Table(columns=columns, data=rows)})
        self._run.summary.update(dict(metrics))

    def close(self) -> None:
        self._run.finish()


class UpstreamTracker(Tracker):
    """The metrics of a run, by the callback that transformers has for a tracker.

    Where it writes is upstream's to say: TensorBoard into the folder `tensorboard` of the run,
    MLflow to MLFLOW_TRACKING_URI, Trackio to its own folder or space.
    """

    def __init__(self, cfg: TrackingConfig, folder: Path, trainer: SFTPipeTrainer) -> None:
        from transformers import integrations

        self._writer: Any = None
        trainer.args.run_name = f"{folder.parent.name}/{folder.name}"
        trainer.args.project = cfg.project
        if cfg.type == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"))
            callback: Any = integrations.TensorBoardCallback(self._writer)
        elif cfg.type == "mlflow":
            os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", cfg.project)
            callback = integrations.MLflowCallback()
        else:
            callback = integrations.TrackioCallback()
        trainer.add_callback(callback)

    def finish(self, metrics: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
        if self._writer is None:
            return
        for number, row in enumerate(samples):
            lines = "\n\n".join(f"**{name}**: {value}" for name, value in row.items())
            self._writer.add_text("samples", lines, number)
        self._writer.close()


def _with_group(name: str) -> str:
    """train/loss and eval/loss: Weights & Biases draws a section for each group."""
    if name.startswith("eval_"):
        return f"eval/{name.removeprefix('eval_')}"
    return f"train/{name}"


def check_tracking(cfg: TrackingConfig | None) -> None:
    """Ask for what tracking needs before the run loads anything.

    Raises:
        ConfigError: the package is not installed, or online tracking has no key.
    """
    if cfg is None:
        return
    problems = []
    package = TRACKERS[cfg.type].package
    if not is_installed(package):
        wanted = f"'sftpipe[{package}]'" if package == "wandb" else package
        fix = f"`pip install {wanted}`, or `tracking=none`"
        problems.append(Problem("tracking", f"the package {package} is not installed", fix=fix))
    if cfg.mode == "online" and not wandb_key_is_set():
        found = "online, but no Weights & Biases key is set"
        fix = "`wandb login`, WANDB_API_KEY, or `tracking.mode=offline`"
        problems.append(Problem("tracking.mode", found, fix=fix))
    if problems:
        raise ConfigError(*problems)


def is_installed(package: str) -> bool:
    """True if a package can be imported.

    A mere folder of that name has no origin: wandb itself writes one where it is run.
    """
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def wandb_key_is_set() -> bool:
    """True if an API key is in the environment or in netrc, where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


@contextmanager
def track(cfg: TrainConfig, folder: Path, trainer: SFTPipeTrainer) -> Iterator[Tracker]:
    """The tracker of the `tracking` group, attached to a trainer and closed after the block."""
    if cfg.tracking is None or not ranks.is_first():
        tracker = Tracker()
    elif cfg.tracking.type == "wandb":
        tracker = WandbTracker(cfg.tracking, folder, to_plain(cfg))
    else:
        tracker = UpstreamTracker(cfg.tracking, folder, trainer)
    trainer.add_callback(tracker)
    try:
        yield tracker
    finally:
        tracker.close()
