"""The files that are written before training: config, preflight, manifest."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from sftpipe.config.schema import TrainConfig, to_plain
from sftpipe.data.prepare import PreparedData
from sftpipe.environment import versions
from sftpipe.errors import Problem, RunError
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.plan import RunPlan, key_of
from sftpipe.runs.prompts import write_prompts
from sftpipe.storage import sha256_text, write_json, write_text


def open_run(
    plan: RunPlan, cfg: TrainConfig, weights: str, device: str, data: PreparedData
) -> None:
    """Write what is known before training: config, preflight, manifest.

    A later attempt writes a manifest of its own.

    Args:
        plan: of `plan_run`.
        cfg: the config.
        weights: identity of the base weights.
        device: hardware and precision, in words.
        data: the prepared data.

    Raises:
        RunError: the base weights are not those that the run began with.
    """
    folder = RunFolder(plan.folder)
    if plan.attempt > 1:
        _check_weights(folder, weights)
    plan.records.mkdir(parents=True, exist_ok=True)
    if plan.attempt == 1:
        config = yaml.safe_dump(to_plain(cfg), sort_keys=False, allow_unicode=True)
        write_text(folder.config, config)
        write_json(folder.preflight, data.preflight.as_dict())
        write_prompts(folder, data)
    tokenizer = data.tokenizer.backend_tokenizer.to_str() + str(data.tokenizer.chat_template)
    manifest = {
        "run_key": key_of(cfg, data.sha256),
        "weights": weights,
        "device": device,
        "seed": cfg.seed,
        "data": {
            "sha256": data.sha256,
            "rows": {name: len(rows) for name, rows in data.splits().items()},
        },
        "tokenizer_sha256": sha256_text(tokenizer),
        **_provenance(),
    }
    # last: a folder with a manifest is a run that can be resumed
    write_json(folder.attempt(plan.attempt).manifest, manifest)


def _check_weights(folder: RunFolder, weights: str) -> None:
    began_with = folder.read_manifest().get("weights")
    if began_with != weights:
        found = f"it began with the weights {began_with}, and these are {weights}"
        fix = "pin model.source and model.revision, or start a new run"
        raise RunError(Problem(str(folder.path), found, fix=fix))


def _provenance() -> dict[str, Any]:
    return {
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        # not sys.argv, which Hydra changes
        "command": [Path(word).name for word in sys.orig_argv[1:2]] + sys.orig_argv[2:],
        "versions": {"python": platform.python_version(), **versions()},
        "git": _git(),
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": os.cpu_count(),
        },
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
