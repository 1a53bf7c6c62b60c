"""What a resumed training does, against the one that nothing stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sftpipe.data.prepare import PreparedData
from sftpipe.errors import Interrupted
from sftpipe.training.callbacks import watch
from sftpipe.training.trainer import SFTPipeTrainer
from support.stopping import SignalWithin
from support.trainers import few, tiny, trained_weights, trainer_of

TIMES = ("runtime", "per_second", "tokens_per_s", "peak_memory_bytes")


def trained(
    model: Path, data: PreparedData, folder: Path, *words: str, checkpoint: int | None = None
) -> SFTPipeTrainer:
    """8 rows in steps of 2: an epoch of 4 steps."""
    trainer = made(model, data, folder, *words)
    trainer.train(folder / f"checkpoint-{checkpoint}" if checkpoint else None)
    return trainer


def made(model: Path, data: PreparedData, folder: Path, *words: str) -> SFTPipeTrainer:
    dropout = [] if "lora=none" in words else ["lora.lora_dropout=0.2"]
    cfg = tiny(
        model,
        *dropout,
        "sft.per_device_train_batch_size=2",
        "sft.save_total_limit=null",
        *words,
    )
    return trainer_of(cfg, few(data, 8), folder)


def entries(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.endswith(TIMES)} for line in lines
    ]


def same(one: SFTPipeTrainer, other: SFTPipeTrainer) -> bool:
    weights = trained_weights(other.model)
    return all(torch.equal(v, weights[n]) for n, v in trained_weights(one.model).items())


# the first step is at learning rate 0, and those after it spoil the model
BEST = (
    "sft.eval_strategy=steps",
    "+sft.eval_steps=1",
    "sft.save_steps=1",
    "+sft.load_best_model_at_end=true",
    "sft.learning_rate=1",
    "sft.lr_scheduler_type=constant_with_warmup",
    "sft.warmup_steps=1",
    "sft.max_steps=6",
    "lora=none",
)
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


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def test_what_a_resumed_run_may_have_otherwise_takes_effect(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    """transformers puts the values of the checkpoint in the place of those of the config."""
    whole = trained(tiny_model, data, tmp_path, *CONSTANT, "sft.logging_steps=2")
    assert checkpoints(tmp_path) == [2, 4, 6]
    words = ("sft.logging_steps=1", "sft.save_steps=1", "sft.save_total_limit=3")
    resumed = trained(tiny_model, data, tmp_path, *CONSTANT, *words, checkpoint=2)
    assert [entry["step"] for entry in entries(tmp_path) if "loss" in entry] == [2, 3, 4, 5, 6]
    assert checkpoints(tmp_path) == [4, 5, 6]
    assert same(resumed, whole)


def test_the_best_checkpoint_is_that_of_the_folder_wherever_it_lies(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    """At the old place there is another run by now, with a checkpoint of the same step."""
    old, new = tmp_path / "old", tmp_path / "new"
    whole = trained(tiny_model, data, old, *BEST)
    assert whole.state.best_global_step == 1
    old.rename(new)
    trained(tiny_model, data, old, *BEST, "seed=7")
    before = {path: path.stat().st_mtime_ns for path in old.rglob("*")}

    limit = "sft.save_total_limit=1"
    resumed = trained(tiny_model, data, new, *BEST, limit, checkpoint=4)

    assert resumed.state.best_model_checkpoint == str(new / "checkpoint-1")
    assert same(resumed, whole)
    assert checkpoints(new) == [1]
    assert {path: path.stat().st_mtime_ns for path in old.rglob("*")} == before


def test_a_signal_leaves_its_checkpoint_beside_the_best_one(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    """With sft.save_total_limit=1 transformers keeps the best alone when a training ends."""
    words = (*BEST, "sft.save_total_limit=1")
    whole = trained(tiny_model, data, tmp_path / "whole", *words)
    folder = tmp_path / "stopped"
    stopped = made(tiny_model, data, folder, *words)
    stopped.add_callback(SignalWithin(5))
    with pytest.raises(Interrupted), watch(stopped, folder, ignore, ignore):
        stopped.train()
    assert checkpoints(folder) == [1, 5]

    resumed = trained(tiny_model, data, folder, *words, checkpoint=5)
    assert same(resumed, whole)
    assert checkpoints(folder) == checkpoints(tmp_path / "whole") == [1]


def test_a_checkpoint_that_a_kill_has_left_goes_when_the_run_ends(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    """Killed between the last checkpoint and the removal of the one it replaces."""
    words = ("sft.save_steps=1", "sft.save_total_limit=1")
    trained(tiny_model, data, tmp_path, *words)
    shutil.copytree(tmp_path / "checkpoint-4", tmp_path / "checkpoint-3")
    resumed = trained(tiny_model, data, tmp_path, *words, checkpoint=4)
    resumed.save_final()
    assert checkpoints(tmp_path) == [4]


def ignore(number: int) -> None:
    """The end of an epoch or of a step."""
