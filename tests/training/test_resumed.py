"""What a resumed training does, against the one that nothing stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sftpipe.data.prepare import PreparedData
from sftpipe.training.trainer import SFTPipeTrainer
from support.trainers import few, tiny, trained_weights, trainer_of

TIMES = ("runtime", "per_second")


def trained(
    model: Path, data: PreparedData, folder: Path, *words: str, checkpoint: int | None = None
) -> SFTPipeTrainer:
    """8 rows in steps of 2: an epoch of 4 steps."""
    cfg = tiny(
        model,
        "lora.lora_dropout=0.2",
        "sft.per_device_train_batch_size=2",
        "sft.save_total_limit=null",
        *words,
    )
    trainer = trainer_of(cfg, few(data, 8), folder)
    trainer.train(folder / f"checkpoint-{checkpoint}" if checkpoint else None)
    return trainer


def entries(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.endswith(TIMES)} for line in lines
    ]


def same(one: SFTPipeTrainer, other: SFTPipeTrainer) -> bool:
    weights = trained_weights(other.model)
    return all(torch.equal(v, weights[n]) for n, v in trained_weights(one.model).items())


CONSTANT = ("sft.max_steps=6", "sft.lr_scheduler_type=constant", "sft.save_steps=2")


def test_after_the_last_step_a_resumed_training_makes_none(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    """The last step is within an epoch, where transformers would look for it after one more."""
    whole = trained(tiny_model, data, tmp_path, *CONSTANT, "sft.logging_steps=1")
    log = entries(tmp_path)
    resumed = trained(tiny_model, data, tmp_path, *CONSTANT, "sft.logging_steps=1", checkpoint=6)
    assert resumed.state.global_step == 6
    assert same(resumed, whole)
    assert entries(tmp_path) == log


@pytest.mark.parametrize("checkpoint", [2, 4])
def test_a_log_entry_is_the_mean_of_all_its_steps(
    checkpoint: int, data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    """Entries at 3 and 6, checkpoints at 2 and 4: each is between two entries."""
    words = (*CONSTANT, "sft.logging_steps=3")
    trained(tiny_model, data, tmp_path, *words)
    log = entries(tmp_path)
    assert [entry["step"] for entry in log] == [3, 6, 6]
    trained(tiny_model, data, tmp_path, *words, checkpoint=checkpoint)
    assert entries(tmp_path) == log


def test_an_epoch_is_evaluated_before_the_checkpoint_of_its_last_step(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    """transformers evaluates it after that checkpoint, which a resumed run goes on from."""
    words = (*CONSTANT, "sft.logging_strategy=epoch", "sft.eval_strategy=epoch")
    whole = trained(tiny_model, data, tmp_path, *words)
    log = entries(tmp_path)
    found = [(entry["step"], "loss" in entry, "eval_loss" in entry) for entry in log[:-1]]
    assert found == [(4, True, False), (4, False, True), (6, True, False), (6, False, True)]
    resumed = trained(tiny_model, data, tmp_path, *words, checkpoint=4)
    assert entries(tmp_path) == log
    assert same(resumed, whole)


def test_an_evaluation_at_the_start_is_made_at_the_start_alone(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    words = (*CONSTANT, "+sft.eval_on_start=true", "sft.eval_strategy=epoch")
    whole = trained(tiny_model, data, tmp_path, *words)
    log = entries(tmp_path)
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [0, 4, 6]
    resumed = trained(tiny_model, data, tmp_path, *words, checkpoint=2)
    assert entries(tmp_path) == log
    assert same(resumed, whole)
