"""The task of part train by LLaMA-Factory, in the environment of another Python."""

from __future__ import annotations

import importlib.resources
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftpipe.bench.task import (
    ALPHA,
    BATCH,
    LEARNING_RATE,
    MAX_LENGTH,
    RANK,
    SEED,
    environment,
    facts,
)
from sftpipe.errors import ConfigError, Problem

if TYPE_CHECKING:
    from sftpipe.model.weights import Weights

_YODA = importlib.resources.files("sftpipe.data") / "assets/yoda/train.jsonl"


def version(python: str) -> str:
    """The version of LLaMA-Factory that a Python has.

    Raises:
        ConfigError: that is no program, or it has none.
    """
    if shutil.which(python) is None:
        found = f"{python} is no program that can be run"
        allowed = "the Python of an environment that has LLaMA-Factory"
        fix = "`sftpipe bench train --peer-python venv/bin/python`"
        raise ConfigError(Problem("--peer-python", found, allowed=allowed, fix=fix))
    ask = "from importlib.metadata import version; print(version('llamafactory'))"
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True)
    if done.returncode or not done.stdout:
        found = f"{python} has no LLaMA-Factory"
        fix = f"{shlex.quote(python)} -m pip install llamafactory"
        raise ConfigError(Problem("--peer-python", found, fix=fix))
    return done.stdout.strip()


def train(python: str, rows: int, weights: Weights, folder: Path) -> dict[str, Any]:
    """Train the task in a process of its own.

    Args:
        python: has LLaMA-Factory.
        rows: the first so many of the data set.
        weights: of the base.
        folder: an empty one.

    Returns:
        What `task.facts` says, and the peak of the process in bytes.
    """
    import datasets

    config = write_task(rows, weights, folder)
    peak = _run([python, "-m", "llamafactory.cli", "train", str(config)], folder)
    state = json.loads((folder / "run" / "trainer_state.json").read_text(encoding="utf-8"))
    seen = datasets.load_from_disk(str(folder / "rows"))["train"]
    return {**facts(state["log_history"], seen), "peak_bytes": peak}


def write_task(rows: int, weights: Weights, folder: Path) -> Path:
    """Write the rows and the config of LLaMA-Factory into a folder; returns the config."""
    lines = _YODA.read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines[:rows]]
    columns = {"prompt": "prompt", "response": "completion"}
    config = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": weights.path,
        **({"model_revision": weights.revision} if weights.revision else {}),
        "dataset_dir": str(folder),
        "dataset": "yoda",
        "template": "chatml",
        "cutoff_len": MAX_LENGTH,
        "tokenized_path": str(folder / "rows"),  # what it trains on, to be compared with ours
        "finetuning_type": "lora",
        "lora_target": "all",
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch",
        "disable_gradient_checkpointing": True,
        "disable_shuffling": True,
        "output_dir": str(folder / "run"),
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": SEED,
    }
    known = {"yoda": {"file_name": "yoda.json", "columns": columns}}
    # JSON is YAML too
    files = {"yoda.json": pairs, "dataset_info.json": known, "train.yaml": config}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return folder / "train.yaml"


def _run(command: list[str], folder: Path) -> int:
    """Run a command to its end; returns the peak of the process in bytes."""
    variables = {**environment(), "HF_DATASETS_CACHE": str(folder / "cache")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=variables)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError((folder / "log").read_text(errors="replace"))
    return usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
