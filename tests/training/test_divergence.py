"""A loss that is no number, and one that explodes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sftpipe
from sftpipe.config.schema import TrainConfig
from sftpipe.data.prepare import PreparedData
from sftpipe.errors import TrainingError
from sftpipe.runs.folder import RunFolder
from sftpipe.storage import is_whole
from sftpipe.training.divergence import check_loss, check_weights
from sftpipe.training.trainer import SFTPipeTrainer
from support.errors import Pin, places, refused
from support.trainers import batch_of, few, tiny, trainer_of

WORDS = ("sft.per_device_train_batch_size=2", "sft.logging_steps=1", "sft.save_steps=1")
# the second step makes weights that are no numbers
TOO_LARGE = ("sft.learning_rate=1", "sft.warmup_steps=0", "sft.optim=sgd", "sft.max_grad_norm=0")


def strict_json(file: Path) -> list[Any]:
    """The values of a file of JSON or JSON Lines that has no NaN in it."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    text = file.read_text(encoding="utf-8")
    lines = text.splitlines() if file.suffix == ".jsonl" else [text]
    return [json.loads(line, parse_constant=refuse) for line in lines]


def spoiled(model: Path, folder: Path, parameter: str, value: float) -> Path:
    """A copy of a model with another number in one of its weights."""
    shutil.copytree(model, folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights[parameter].view(-1)[0] = value
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def poison(trainer: SFTPipeTrainer, step: int) -> None:
    """The gradients of a step are infinite."""
    made = trainer.training_step

    def spoil(*args: Any, **kwargs: Any) -> Any:
        loss = made(*args, **kwargs)
        if trainer.state.global_step + 1 == step:
            for parameter in trainer.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(torch.inf)
        return loss

    trainer.training_step = spoil


def trainer_on(cfg: TrainConfig, data: PreparedData, folder: Path) -> SFTPipeTrainer:
    return trainer_of(cfg, few(data, 8), folder)


def test_weights_that_are_no_numbers_are_in_no_checkpoint(
    data: PreparedData, tiny_model: Path, tmp_path: Path, golden_error: Pin
) -> None:
    trainer = trainer_on(tiny(tiny_model, *WORDS, *TOO_LARGE), data, tmp_path)
    poison(trainer, 3)
    error = refused(TrainingError, trainer.train)
    assert places(error) == ["step 3"]
    assert error.problems[0].commands == ("sft.learning_rate=0.1", "sft.max_grad_norm=1.0")
    assert [path.name for path in sorted(tmp_path.glob("*checkpoint-*"))] == [
        "checkpoint-1",
        "checkpoint-2",
    ]
    assert is_whole(tmp_path / "checkpoint-2")
    kept = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    assert all(torch.isfinite(value).all() for value in kept.values())
    entries = strict_json(tmp_path / "log.jsonl")
    assert [(entry["step"], entry["grad_norm"] is None) for entry in entries] == [
        (1, False),
        (2, False),
        (3, True),
    ]
    golden_error(error)


def test_a_loss_that_is_no_number_ends_the_run_at_its_step_and_names_its_rows(
    data: PreparedData, tiny_model: Path, tmp_path: Path, golden_error: Pin
) -> None:
    words = [word for word in WORDS if "save_steps" not in word]
    order = "sft.train_sampling_strategy=sequential"
    trainer = trainer_on(tiny(tiny_model, *words, *TOO_LARGE, order), data, tmp_path)
    poison(trainer, 3)
    error = refused(TrainingError, trainer.train)
    assert places(error) == ["step 4"]
    assert "the batch of train[6], train[7]" in error.problems[0].found
    assert "no checkpoint was written before" in error.problems[0].found
    golden_error(error)


def test_rows_are_named_in_packed_batches(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    cfg = tiny(tiny_model, "packing=bfd", "sft.max_length=160", "dataset.limit=12", *WORDS)
    packed = sftpipe.prepare(cfg)
    trainer = trainer_of(cfg, packed, tmp_path)
    poison(trainer, 1)
    trainer._save_checkpoint = lambda *_: None
    error = refused(TrainingError, trainer.train)
    assert places(error) == ["step 2"]
    named = error.problems[0].found.partition("the batch of ")[2].partition(": ")[0]
    assert len(set(named.split(", "))) == 2
    assert all(int(name[6:-1]) < len(packed.train) for name in named.split(", "))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_with_a_weight_that_is_no_number_is_told_before_training(
    value: float, tiny_model: Path, tmp_path: Path, golden_error: Pin
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    base = spoiled(tiny_model, tmp_path / "base", name, value)
    run = tmp_path / "run"
    words = (*WORDS, "dataset.limit=8", "evaluation.max_new_tokens=1", f"run={run}")
    error = refused(TrainingError, lambda: sftpipe.train(tiny(base, *words)))
    assert places(error) == ["evaluation at step 0"]
    assert f"{name} of the base weights is no number" in error.problems[0].found
    assert not RunFolder(run).complete.exists()
    assert not RunFolder(run).metrics.exists()
    if value != value:
        golden_error(error)


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def log(*losses: float) -> str:
        """What is said while these losses are logged."""
        from types import SimpleNamespace

        from sftpipe.training.divergence import Explosion

        callback, history = Explosion(), []
        for step, loss in enumerate(losses, 1):
            history.append({"loss": loss, "step": step})
            state = SimpleNamespace(log_history=history, global_step=step)
            callback.on_log(SimpleNamespace(learning_rate=2e-4), state, None, {"loss": loss})
            callback.on_log(SimpleNamespace(learning_rate=2e-4), state, None, {"eval_loss": 99.0})
        return capsys.readouterr().err

    return log


def test_weights_that_are_no_numbers_in_another_process_end_this_one_too(
    tiny_model: Path, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_on(tiny(tiny_model, *WORDS), data, tmp_path)
    check_weights(trainer)
    monkeypatch.setattr("sftpipe.ranks.gathered", lambda mine: [mine, "layers.1.lora_A"])
    error = refused(TrainingError, lambda: check_weights(trainer))
    assert "layers.1.lora_A" in error.problems[0].found


def test_packed_weights_are_not_taken_for_numbers(
    tiny_model: Path, data: PreparedData, tmp_path: Path, golden_error: Pin
) -> None:
    words = ("quantization=nf4", "+quantization.bnb_4bit_quant_storage=bfloat16")
    trainer = trainer_on(tiny(tiny_model, *words, *WORDS), data, tmp_path)
    layer = trainer.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    layer.weight.data.view(torch.uint8).fill_(255)  # bits that bfloat16 reads as NaN
    assert layer.weight.isnan().all()
    inputs = batch_of(data, 0)
    error = refused(TrainingError, lambda: check_loss(trainer, torch.inf, inputs))
    golden_error(error)


def test_a_loss_that_explodes_is_a_warning_once(logged: Callable[..., str]) -> None:
    assert logged(3.0, 2.0, 3.5, 5.9) == ""
    assert logged(3.0, 2.0, 6.5, 7.0) == (
        "warning   the loss is 6.500 at step 3, and began with 3.000; if it stays there: "
        "sft.learning_rate=2e-05\n"
    )


@pytest.mark.slow
def test_steps_that_are_far_too_large_end_a_whole_run(
    cli: Any, tiny_model: Path, tmp_path: Path
) -> None:
    done = cli(
        "train",
        "recipe=yoda",
        "model=custom",
        f"model.name_or_path={tiny_model}",
        "quantization=none",
        "dataset.limit=24",
        "evaluation.max_new_tokens=2",
        *WORDS,
        f"lora.lora_alpha={10**30}",
        "sft.max_grad_norm=0",
        "run=run",
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "step 1: the step made weights that are no numbers: model.layers." in done.stderr
    assert "or sft.max_grad_norm=1.0" in done.stderr
    run = tmp_path / "run"
    assert not (run / "COMPLETE").exists()
    for file in (*run.rglob("*.json"), *run.rglob("*.jsonl")):
        strict_json(file)
