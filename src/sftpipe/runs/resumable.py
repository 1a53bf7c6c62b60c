"""Can a run go on from a checkpoint? What it needs beside the config, looked at before training."""

from __future__ import annotations

import json
from pathlib import Path

from sftpipe.config.schema import TrainConfig
from sftpipe.errors import Problem, RunError
from sftpipe.runs.folder import RunFolder
from sftpipe.storage import is_whole


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint with the highest step; damaged ones are left out."""
    found = RunFolder(folder).checkpoints()
    whole = (found[step] for step in sorted(found, reverse=True) if is_whole(found[step]))
    return next(whole, None)


def check_checkpoint(cfg: TrainConfig, checkpoint: Path) -> None:
    """A whole checkpoint from which a run would end as if nothing had stopped it.

    Raises:
        RunError: it holds weights alone, the best checkpoint of the run is not there, or what was
            measured before it is lost.
    """
    files = RunFolder(checkpoint.parent)
    files.read_metrics()
    files.read_samples()
    if not (checkpoint / "optimizer.pt").is_file():
        key = "sft.save_only_model"
        found = f"weights alone ({key}=true): optimizer and schedule would begin anew"
        fix = "begin a new run, without sft.resume_from_checkpoint"
        raise RunError(Problem(str(checkpoint), found, fix=f"{fix}; `{key}=false` there"))
    if cfg.sft.get("load_best_model_at_end"):
        _check_best(checkpoint)


def _check_best(checkpoint: Path) -> None:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    step = state.get("best_global_step")
    best = checkpoint.parent / f"checkpoint-{step}"
    if step is None or is_whole(best):
        return
    found = f"its best checkpoint so far is {best.name}, which is missing or damaged"
    fix = "put it back from a copy, or begin a new run, without sft.resume_from_checkpoint"
    raise RunError(Problem(str(checkpoint), found, fix=fix))
