"""The files that are written before training: config, preflight, manifest."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import sftpipe.ranks as ranks
from sftpipe.config.schema import TrainConfig, to_plain
from sftpipe.data.prepare import PreparedData
from sftpipe.errors import Problem, RunError, override
from sftpipe.model.further import adapter_identity
from sftpipe.model.precision import Precision
from sftpipe.model.weights import Weights
from sftpipe.runs.facts import facts_of
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.plan import RunPlan
from sftpipe.runs.prompts import write_prompts
from sftpipe.storage import write_json, write_text


def open_run(
    plan: RunPlan, cfg: TrainConfig, weights: Weights, precision: Precision, data: PreparedData
) -> None:
    """Write what is known before training: config, preflight, manifest.

    A later attempt writes a manifest of its own.

    Args:
        plan: of `plan_run`.
        cfg: the config.
        weights: the base weights.
        precision: where and in which numbers it computes.
        data: the prepared data.

    Raises:
        RunError: the base weights, or the adapter that it goes on from, are not those that the
            run began with.
    """
    folder = RunFolder(plan.folder)
    begins_with = _begins_with(plan, cfg, weights)
    plan.records.mkdir(parents=True, exist_ok=True)
    if plan.attempt == 1:
        config = yaml.safe_dump(to_plain(cfg), sort_keys=False, allow_unicode=True)
        write_text(folder.config, config)
    if not _is_json(folder.preflight):
        write_json(folder.preflight, data.preflight.as_dict())
    if not _is_json(folder.prompts):
        write_prompts(folder, data)
    manifest = {
        **facts_of(cfg, weights, precision, data),
        **begins_with,
        **_repeats(plan),
        **_provenance(),
    }
    # last: a folder with a manifest is a run that can be resumed
    write_json(folder.attempt(plan.attempt).manifest, manifest)


def write_hydra(plan: RunPlan, texts: Mapping[str, str]) -> None:
    """Hydra's records of this attempt, as hydra.main would write them."""
    records = RunFolder(plan.records).hydra
    if texts:
        records.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(records / name, text)


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _repeats(plan: RunPlan) -> dict[str, Any]:
    """Which run is repeated: by its name and its time, which mean the same on every machine."""
    if plan.repeats is None:
        return {}
    created = plan.like.read_manifest().get("created")
    return {"repeats": {"run": plan.repeats.resolve().name, "created": created}}


def _begins_with(plan: RunPlan, cfg: TrainConfig, weights: Weights) -> dict[str, str]:
    """Base weights and adapter that an earlier start named; the same as now."""
    if plan.attempt == 1:
        return {}
    adapter = adapter_identity(cfg.lora)
    manifest = RunFolder(plan.folder).read_manifest()
    before: dict[str, str] = {
        name: manifest[name] for name in ("weights", "adapter") if name in manifest
    }
    where = str(plan.folder)
    if not weights.are(before.get("weights")):
        found = (
            f"it began with the weights {before.get('weights')}, and these are {weights.identity}"
        )
        fix = "pin model.source and model.revision, or start a new run"
        raise RunError(Problem(where, found, fix=fix))
    processes = manifest.get("processes", 1)
    if processes != ranks.world_size():
        found = f"it began with {processes} processes, and these are {ranks.world_size()}"
        fix = override("distributed.num_processes", str(processes))
        raise RunError(Problem(where, found, fix=f"{fix}, or start a new run"))
    if before.get("adapter") != adapter:
        found = (
            f"it began from the adapter {before.get('adapter')}, and lora.init_from is {adapter}"
        )
        raise RunError(Problem(where, found, fix="put the old adapter back, or start a new run"))
    return before


def _provenance() -> dict[str, Any]:
    return {
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        # not sys.argv, which Hydra changes
        "command": [Path(word).name for word in sys.orig_argv[1:2]] + sys.orig_argv[2:],
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    """Commit of the working folder's repository, and true for changed files; None outside one."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        status = subprocess.run(
            ["git", "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(status.strip())}
