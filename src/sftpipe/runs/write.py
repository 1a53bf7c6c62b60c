"""The files that are written before training: config, preflight, manifest."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sftpipe.config.schema import TrainConfig, to_plain
from sftpipe.data.prepare import PreparedData
from sftpipe.environment import versions
from sftpipe.errors import Problem, RunError
from sftpipe.model.further import adapter_identity
from sftpipe.model.weights import Weights
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.plan import RunPlan
from sftpipe.runs.prompts import write_prompts
from sftpipe.storage import sha256_text, write_json, write_text
from sftpipe.terminal import console


def open_run(
    plan: RunPlan, cfg: TrainConfig, weights: Weights, device: str, data: PreparedData
) -> None:
    """Write what is known before training: config, preflight, manifest.

    A later attempt writes a manifest of its own.

    Args:
        plan: of `plan_run`.
        cfg: the config.
        weights: the base weights.
        device: hardware and precision, in words.
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
    tokenizer = data.tokenizer.backend_tokenizer.to_str() + str(data.tokenizer.chat_template)
    manifest = {
        **begins_with,
        "device": device,
        "seed": cfg.seed,
        "data": {
            "sha256": data.sha256,
            "rows": {name: len(rows) for name, rows in data.splits().items()},
        },
        "tokenizer_sha256": sha256_text(tokenizer),
        "threads": threads(),
        **_provenance(),
    }
    # last: a folder with a manifest is a run that can be resumed
    write_json(folder.attempt(plan.attempt).manifest, manifest)


def use_threads(folder: RunFolder) -> None:
    """Compute with as many threads as the run began with, and say what else is not as it was.

    Sums of floating-point numbers depend on the number of threads, and kernels on versions.
    """
    if not folder.manifest.is_file():
        return
    import torch

    manifest = folder.read_manifest()
    began_with = manifest.get("threads")
    if isinstance(began_with, int) and began_with > 0:
        torch.set_num_threads(began_with)
    then, now = _facts(manifest), _facts(_machine())
    changed = [f"{name} {then[name]}, now {now[name]}" for name in now if then[name] != now[name]]
    if changed:
        what = ", ".join(changed)
        console.print(f"resume    the run began with {what}: bits may differ", markup=False)


_COMPUTING = ("python", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")


def _facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What of a manifest may change the bits of a result."""
    versions, hardware = (dict(manifest.get(name) or {}) for name in ("versions", "hardware"))
    found = {name: versions.get(name) for name in _COMPUTING}
    return found | {name: hardware.get(name) for name in ("system", "machine")}


def threads() -> int:
    """The threads that torch computes with."""
    import torch

    return int(torch.get_num_threads())


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


def _begins_with(plan: RunPlan, cfg: TrainConfig, weights: Weights) -> dict[str, str]:
    """Base weights and adapter of a run, as its manifest names them."""
    adapter = adapter_identity(cfg.lora)
    now = {"weights": weights.identity, **({"adapter": adapter} if adapter else {})}
    if plan.attempt == 1:
        return now
    manifest = RunFolder(plan.folder).read_manifest()
    before: dict[str, str] = {
        name: manifest[name] for name in ("weights", "adapter") if name in manifest
    }
    where = str(plan.folder)
    if not weights.are(before.get("weights")):
        found = f"it began with the weights {before.get('weights')}, and these are {now['weights']}"
        fix = "pin model.source and model.revision, or start a new run"
        raise RunError(Problem(where, found, fix=fix))
    if before.get("adapter") != adapter:
        found = (
            f"it began from the adapter {before.get('adapter')}, and lora.init_from is {adapter}"
        )
        raise RunError(Problem(where, found, fix="put the old adapter back, or start a new run"))
    return before


def _machine() -> dict[str, Any]:
    return {
        "versions": {"python": platform.python_version(), **versions()},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": os.cpu_count(),
        },
    }


def _provenance() -> dict[str, Any]:
    return {
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        # not sys.argv, which Hydra changes
        "command": [Path(word).name for word in sys.orig_argv[1:2]] + sys.orig_argv[2:],
        "git": _git(),
        **_machine(),
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
