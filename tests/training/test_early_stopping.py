"""A training that ends when its validation loss rises, and what a resumed one knows of that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import sftpipe
from sftpipe.data.prepare import PreparedData
from sftpipe.evaluation.losses import split_loss
from sftpipe.runs.folder import RunFolder
from sftpipe.training.callbacks import watch
from sftpipe.training.trainer import SFTPipeTrainer
from support.trainers import few, tiny, trained_weights, trainer_of

# the first step is at learning rate 0, and those after it spoil the model
SPOILS = (
    "sft.per_device_train_batch_size=2",
    "sft.max_steps=7",
    "sft.learning_rate=1",
    "sft.lr_scheduler_type=constant_with_warmup",
    "sft.warmup_steps=1",
    "sft.save_steps=1",
    "sft.save_total_limit=null",
    "lora=none",
)
PATIENT = "evaluation.early_stopping.patience=2"


def ignore(number: int) -> None:
    """The end of an epoch or of a step."""


def train(
    model: Path, data: PreparedData, folder: Path, *words: str, checkpoint: int | None = None
) -> tuple[SFTPipeTrainer, list[int]]:
    """The trainer after its training, and the steps that it made."""
    cfg = tiny(model, *SPOILS, *(words or [PATIENT]))
    trainer = trainer_of(cfg, few(data, 6), folder)
    steps: list[int] = []
    made = trainer.training_step

    def count(*args: Any, **kwargs: Any) -> Any:
        steps.append(trainer.state.global_step + 1)
        return made(*args, **kwargs)

    trainer.training_step = count
    with watch(trainer, folder, ignore, ignore, cfg.evaluation.early_stopping):
        trainer.train(folder / f"checkpoint-{checkpoint}" if checkpoint else None)
    return trainer, steps


@pytest.fixture(scope="module")
def stopped(
    data: PreparedData, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SFTPipeTrainer, list[int], Path]:
    folder = tmp_path_factory.mktemp("stopped") / "run"
    return (*train(tiny_model, data, folder), folder)


def losses(trainer: SFTPipeTrainer) -> dict[int, float]:
    return {
        entry["step"]: entry["eval_loss"]
        for entry in trainer.state.log_history
        if "eval_loss" in entry
    }


def test_training_ends_when_the_patience_does_and_the_best_checkpoint_is_loaded(
    stopped: tuple[SFTPipeTrainer, list[int], Path], data: PreparedData
) -> None:
    trainer, steps, folder = stopped
    measured = losses(trainer)
    assert measured[1] < min(measured[2], measured[3])
    assert steps == [1, 2, 3] == list(measured)
    assert trainer.state.best_model_checkpoint == str(folder / "checkpoint-1")
    now = split_loss(trainer, few(data, 6).validation, "validation")["loss"]
    assert now == pytest.approx(measured[1], rel=1e-6)


@pytest.mark.parametrize(("checkpoint", "more"), [(1, [2, 3]), (2, [3]), (3, [])])
def test_a_resumed_training_ends_at_the_same_step_with_the_same_weights(
    checkpoint: int,
    more: list[int],
    stopped: tuple[SFTPipeTrainer, list[int], Path],
    data: PreparedData,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, _, folder = stopped
    expected = trained_weights(whole.model)

    trainer, steps = train(tiny_model, data, folder, checkpoint=checkpoint)

    assert steps == more
    assert trainer.state.global_step == 3
    assert list(losses(trainer)) == [1, 2, 3]
    weights = trained_weights(trainer.model)
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert "stopped early at step 3; the best was 1\n" in capsys.readouterr().err


@pytest.mark.slow
def test_a_resumed_training_finds_the_best_checkpoint_in_a_folder_that_was_moved(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    whole, _ = train(tiny_model, data, before)
    before.rename(after)

    trainer, _ = train(tiny_model, data, after, checkpoint=2)

    assert trainer.state.best_model_checkpoint == str(after / "checkpoint-1")
    expected = trained_weights(whole.model)
    weights = trained_weights(trainer.model)
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())


@pytest.mark.slow
def test_a_worse_loss_within_the_patience_does_not_end_it(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    """Nor does any improvement count that is not above the threshold."""
    _, steps = train(tiny_model, data, tmp_path / "a", "evaluation.early_stopping.patience=9")
    assert steps == [1, 2, 3, 4, 5, 6, 7]
    words = ("sft.learning_rate=1e-3", "evaluation.early_stopping={patience: 2, threshold: 100}")
    trainer, steps = train(tiny_model, data, tmp_path / "b", *words)
    assert losses(trainer)[3] < losses(trainer)[2]
    assert steps == [1, 2, 3]


class Killed(Exception):
    """What ends a run without a word."""


def run(words: Sequence[str], folder: Path) -> RunFolder:
    sftpipe.train(sftpipe.compose([*words, f"run={folder}", "sft.resume_from_checkpoint=auto"]))
    return RunFolder(folder)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_a_run_that_was_killed_after_its_early_end_goes_on_without_a_step(
    strategy: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "recipe=yoda",
        "quantization=none",
        "model=custom",
        f"model.name_or_path={tiny_model}",
        "dataset.limit=3",
        *SPOILS,
        "sft.per_device_train_batch_size=3",  # a step is an epoch
        f"sft.eval_strategy={strategy}",
        f"sft.save_strategy={strategy}",
        "evaluation.max_new_tokens=2",
        PATIENT,
    ]
    whole = run(words, tmp_path / "whole")

    def die(self: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(SFTPipeTrainer, "save_final", die)
        with pytest.raises(Killed):
            run(words, tmp_path / "killed")
    assert sorted(RunFolder(tmp_path / "killed").checkpoints()) == [1, 2, 3]

    def no_step(self: Any, *args: Any, **kwargs: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(SFTPipeTrainer, "training_step", no_step)
    resumed = run(words, tmp_path / "killed")

    name = "model.safetensors"
    assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert (whole.path / name).read_bytes() == (whole.path / "checkpoint-1" / name).read_bytes()
    assert resumed.read_samples() == whole.read_samples()
    metrics = resumed.read_metrics(), whole.read_metrics()
    assert metrics[0]["train"]["steps"] == metrics[1]["train"]["steps"] == 3
    assert metrics[0]["validation"] == metrics[1]["validation"]
    assert metrics[0]["validation"]["after"] == metrics[0]["validation"]["before"]
    state = json.loads((resumed.path / "trainer_state.json").read_text())
    assert state["global_step"] == 3
