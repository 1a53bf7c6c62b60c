"""`python -m sftpipe.bench.epoch {sftpipe,trl} --rows N`: the task, trained in this process.

Prints one line of JSON: what `task.facts` says, and the peak of the process in bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sftpipe.bench.task import BATCH, LEARNING_RATE, SEED, facts, overrides
from sftpipe.config.schema import TrainConfig
from sftpipe.terminal import quiet, quiet_libraries


def main(argv: Sequence[str] | None = None) -> int:
    """Train once and print the line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sftpipe.bench.epoch")
    parser.add_argument("implementation", choices=sorted(_TRAIN))
    parser.add_argument("--rows", type=int, required=True)
    arguments = parser.parse_args(argv)
    # trainers print what they log
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        told = trained(arguments.implementation, arguments.rows, Path(folder))
    print(json.dumps(told))
    return 0


def trained(implementation: str, rows: int, folder: Path) -> dict[str, Any]:
    """Train the task in a folder of its own.

    Args:
        implementation: `sftpipe` or `trl`.
        rows: the first so many of the data set.
        folder: an empty one.
    """
    from sftpipe.config.hydra import compose
    from sftpipe.pipeline import prepare
    from sftpipe.training.callbacks import peak_memory_bytes

    cfg = compose([*overrides(rows, folder), f"run={folder / 'run'}"])
    with quiet(), quiet_libraries():
        history = _TRAIN[implementation](cfg, folder)
        told = facts(history, prepare(cfg).train)
    return {**told, "peak_bytes": peak_memory_bytes()}


def _by_sftpipe(cfg: TrainConfig, folder: Path) -> list[dict[str, Any]]:
    """A whole run, with its records and its page."""
    from sftpipe.pipeline import train

    state = train(cfg).dir / "trainer_state.json"
    history: list[dict[str, Any]] = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    return history


def _by_trl(cfg: TrainConfig, folder: Path) -> list[dict[str, Any]]:
    """TRL's own trainer on the same rows, from the same adapter."""
    from trl import SFTConfig, SFTTrainer

    from sftpipe.model.adapters import lora_config
    from sftpipe.model.weights import find_weights
    from sftpipe.pipeline import prepare

    weights, data = find_weights(cfg.model), prepare(cfg)
    arguments = SFTConfig(
        output_dir=str(folder),
        model_init_kwargs={"dtype": "float32", "revision": weights.revision},
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        seed=SEED,  # which TRL sets before it draws the adapter
        dataloader_pin_memory=False,
    )
    trainer = SFTTrainer(
        model=weights.path,
        args=arguments,
        train_dataset=data.train.select_columns(["input_ids", "labels"]),
        processing_class=data.tokenizer,
        peft_config=lora_config(cfg.lora, weights),
    )
    trainer.train()
    history: list[dict[str, Any]] = trainer.state.log_history
    return history


_TRAIN = {"sftpipe": _by_sftpipe, "trl": _by_trl}

if __name__ == "__main__":
    sys.exit(main())
