"""The numbers of metrics.json."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sftpipe.data.prepare import PreparedData
from sftpipe.evaluation.losses import peak_memory_bytes, split_loss, train_metrics
from sftpipe.training.callbacks import Counter
from support.trainers import few, mean_loss, tiny, trainer_of


def test_the_numbers_of_the_training_are_rates_of_what_was_counted() -> None:
    counter = Counter(tokens=100, trained_tokens=25, rows=4, loss_sum=50.0, seconds=2.0)
    trainer: Any = SimpleNamespace(counter=counter, state=SimpleNamespace(global_step=7))
    metrics = train_metrics(trainer)
    assert metrics.pop("peak_memory_bytes") > 100_000_000  # what importing torch alone takes
    assert metrics == {
        "loss": 2.0,
        "runtime_s": 2.0,
        "rows_per_s": 2.0,
        "tokens_per_s": 50.0,
        "trained_tokens_per_s": 12.5,
        "steps": 7,
    }


def test_peak_memory_is_in_bytes() -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc")
    (kib,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
    assert 0.9 < peak_memory_bytes() / (int(kib) * 1024) < 100


def test_an_evaluation_is_a_mean_over_the_trained_tokens_of_a_split(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    """Batches of three and of one: a mean over batches would be another number."""
    cfg = tiny(tiny_model, "sft.per_device_eval_batch_size=3")
    trainer = trainer_of(cfg, few(data, 4, 7), tmp_path)
    expected = mean_loss(trainer.model.eval(), trainer.eval_dataset)
    measured = trainer.evaluate()
    assert measured["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert measured["eval_perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    test = split_loss(trainer, data.test.select(range(4)), "test")  # no number of the validation
    expected = mean_loss(trainer.model, data.test.select(range(4)))
    assert test == pytest.approx({"loss": expected, "perplexity": math.exp(expected)}, rel=1e-4)


def test_weights_that_an_evaluation_has_just_measured_are_not_measured_again(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    cfg = tiny(
        tiny_model,
        "sft.max_steps=2",
        "sft.per_device_train_batch_size=2",
        "sft.eval_strategy=steps",
        "+sft.eval_steps=1",
        "sft.warmup_steps=0",
    )
    rows = few(data, 4)
    trainer = trainer_of(cfg, rows, tmp_path)

    def losses() -> list[float]:
        return [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]

    before = split_loss(trainer, rows.validation, "validation")["loss"]
    trainer.train()
    first, second = losses()  # training keeps a log of its own
    assert before > first > second
    assert split_loss(trainer, rows.validation, "validation")["loss"] == second
    assert losses() == [first, second]
    trainer.state.global_step += 1  # the weights are then later ones
    split_loss(trainer, rows.validation, "validation")
    assert len(losses()) == 3
    trainer.args.load_best_model_at_end = True  # the weights may then be those of another step
    split_loss(trainer, rows.validation, "validation")
    assert len(losses()) == 4
