"""What a parent hands to `python -m sftpipe.worker`: one file in the run folder, `.planned.json`.

It holds the resolved config, where to begin and Hydra's records, so that a worker composes nothing
and several workers of one run do not differ.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sftpipe.config.hydra import from_recorded
from sftpipe.config.schema import TrainConfig, to_plain
from sftpipe.errors import Problem, RunError
from sftpipe.runs.folder import RunFolder, damaged
from sftpipe.runs.lock import holder
from sftpipe.runs.plan import RunPlan, plan_run
from sftpipe.storage import write_json, writing
from sftpipe.terminal import console

_BUSY_S = 120.0  # how long a worker that lost its parent may need for its step and its checkpoint


@dataclass(frozen=True)
class Planned:
    """The arguments of `pipeline.train`."""

    config: TrainConfig
    plan: RunPlan
    hydra: dict[str, str]


def plan_further(cfg: TrainConfig, folder: Path) -> RunPlan:
    """Where the run of a folder begins, which may have begun before.

    A process that still trains there, such as a worker that has lost its parent, is waited for.

    Raises:
        RunError: as of `plan_run`.
    """
    sft = {**cfg.sft, "resume_from_checkpoint": "auto"}
    until = time.monotonic() + _BUSY_S
    while (busy := holder(folder)) is not None and time.monotonic() < until:
        console.print(f"waiting   {busy.where}: {busy.found}", markup=False)
        time.sleep(2.0)
    return plan_run(replace(cfg, run=str(folder), sft=sft))


def write_planned(cfg: TrainConfig, plan: RunPlan, hydra: Mapping[str, str]) -> None:
    """Plan a run: make its folder, and write there what a worker needs.

    Args:
        cfg: the config, already checked.
        plan: where the run writes and begins.
        hydra: {name: text} of Hydra's records.

    Raises:
        StorageError: the folder cannot be written.
    """
    file = RunFolder(plan.folder).planned
    with writing(file):
        plan.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = plan.checkpoint.name if plan.checkpoint else None
    begins = {
        "attempt": plan.attempt,
        "checkpoint": checkpoint,
        "said": plan.said,
        "repeats": str(plan.repeats.absolute()) if plan.repeats else None,
    }
    write_json(file, {**begins, "config": to_plain(cfg), "hydra": dict(hydra)})


def read_planned(folder: Path) -> Planned:
    """What `write_planned` wrote.

    Raises:
        RunError: there is no plan, or it is damaged.
        ConfigError: the config holds what this version does not know.
    """
    file = RunFolder(folder).planned
    if not file.is_file():
        found = "no run is planned here"
        fix = f"`sftpipe train run={folder} sft.resume_from_checkpoint=auto` goes on with a run"
        raise RunError(Problem(str(folder), found, fix=fix))
    content = read_plan(folder)
    try:
        name = content["checkpoint"]
        checkpoint = folder / str(name) if name else None
        repeats = Path(content["repeats"]) if content["repeats"] else None
        said, attempt = str(content["said"]), int(content["attempt"])
        plan = RunPlan(folder, attempt, checkpoint, said=said, repeats=repeats)
        config, hydra = dict(content["config"]), dict(content["hydra"])
    except (KeyError, ValueError, TypeError):
        raise damaged(file) from None
    return Planned(from_recorded(config, str(file)), plan, hydra)


def read_plan(folder: Path) -> dict[str, Any]:
    """The content of `.planned.json`; its `config` is not checked.

    Raises:
        RunError: it is missing or damaged.
    """
    file = RunFolder(folder).planned
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise damaged(file) from None
