"""What a run measures before, during and after its training, and where it is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sftpipe.config.schema import EvaluationConfig
from sftpipe.data.prepare import PreparedData
from sftpipe.evaluation.questions import Question
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.record import Record
from sftpipe.training.callbacks import watch
from sftpipe.training.trainer import SFTPipeTrainer
from support.trainers import few, tiny, trained_weights, trainer_of

EVALUATION = EvaluationConfig(None, 2, sample_strategy="epoch")


@pytest.fixture
def short(data: PreparedData) -> PreparedData:
    """Four rows of each split."""
    splits = {name: rows.select(range(4)) for name, rows in data.splits().items()}
    return dataclasses.replace(data, **splits)


@pytest.fixture
def trainer(short: PreparedData, tiny_model: Path, tmp_path: Path) -> SFTPipeTrainer:
    """It takes one step, which changes losses and answers."""
    cfg = tiny(tiny_model, "sft.max_steps=1", "sft.learning_rate=0.5", "sft.warmup_steps=0")
    return trainer_of(cfg, short, tmp_path)


@pytest.fixture
def prompts(short: PreparedData) -> list[Question]:
    asked = {"Hello.": "Hm.", "Who are you?": None}
    return [
        Question(text, short.tokenizer(text).input_ids, reference)
        for text, reference in asked.items()
    ]


@pytest.fixture
def loss(trainer: SFTPipeTrainer, short: PreparedData) -> Callable[[Any], float]:
    """The mean over the trained tokens of rows, with transformers' own loss."""

    def measure(rows: Any) -> float:
        trainer.model.eval()
        with torch.inference_mode():
            return float(trainer.model(**short.collate(list(rows))).loss)

    return measure


def test_losses_and_answers_are_measured_at_their_time_and_written(
    trainer: SFTPipeTrainer,
    short: PreparedData,
    prompts: list[Question],
    loss: Callable[[Any], float],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = RunFolder(tmp_path)
    record = Record(folder, trainer, short, EVALUATION, prompts, None)
    before = loss(short.validation)
    record.before()
    assert folder.read_metrics() == record.metrics == {"validation": record.metrics["validation"]}
    assert [row["phase"] for row in folder.read_samples()] == ["before", "before"]

    trainer.train()
    record.epoch(1)
    assert folder.read_samples() == record.samples
    record.after()

    validation, test = loss(short.validation), loss(short.test)
    # else one could stand in another's place
    assert min(abs(validation - before), abs(validation - test)) > 1e-3
    metrics = folder.read_metrics()
    assert metrics == record.metrics
    assert list(metrics) == ["train", "validation", "test"]
    assert list(metrics["validation"]) == ["before", "after"]
    measured = metrics["validation"]
    assert measured["before"]["loss"] == pytest.approx(before, rel=1e-5)
    assert measured["after"]["loss"] == pytest.approx(validation, rel=1e-5)
    assert metrics["test"]["loss"] == pytest.approx(test, rel=1e-5)
    assert metrics["train"]["steps"] == 1

    rows = folder.read_samples()
    assert rows == record.samples
    assert [(row["phase"], row["step"], row["prompt"], row["reference"]) for row in rows] == [
        (phase, step, text, reference)
        for phase, step in (("before", 0), ("epoch 1", 1), ("after", 1))
        for text, reference in (("Hello.", "Hm."), ("Who are you?", None))
    ]
    assert rows[2]["completion"] == rows[4]["completion"]  # of the same weights
    assert rows[0]["completion"] != rows[2]["completion"]
    shown = " ".join(rows[2]["completion"].split())
    assert f"epoch 1   Hello.\n     ->   {shown}\n" in capsys.readouterr().err


@pytest.mark.parametrize("strategy", ["no", "epoch"])
def test_answers_after_an_epoch_are_given_where_they_are_asked_for(
    strategy: str,
    trainer: SFTPipeTrainer,
    short: PreparedData,
    prompts: list[Question],
    tmp_path: Path,
) -> None:
    for asked in (prompts, []):
        cfg = EvaluationConfig(None, 1, sample_strategy=strategy)
        record = Record(RunFolder(tmp_path), trainer, short, cfg, asked, None)
        record.epoch(2)
        phases = [row["phase"] for row in record.samples]
        assert phases == ["epoch 2"] * (len(asked) if strategy == "epoch" else 0)


@pytest.mark.parametrize("every", [None, 2, 3])
def test_answers_after_each_few_steps_are_given_where_they_are_asked_for(
    every: int | None,
    trainer: SFTPipeTrainer,
    short: PreparedData,
    prompts: list[Question],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    strategy = "no" if every is None else "steps"
    for asked in (prompts, []):
        cfg = EvaluationConfig(None, 1, sample_strategy=strategy, sample_steps=every)
        record = Record(RunFolder(tmp_path), trainer, short, cfg, asked, None)
        for number in range(1, 7):
            trainer.state.global_step = number
            record.step(number)
            record.epoch(number)
        expected = range(every, 7, every) if every else ()
        phases = [(row["phase"], row["step"]) for row in record.samples]
        assert phases == [(f"step {number}", number) for number in expected for _ in asked]
        shown = capsys.readouterr().err
        assert ("step 6   Hello." in shown) == bool(every and asked)


@pytest.mark.slow
def test_answers_after_steps_leave_the_training_as_it_was_and_a_resumed_one_asks_none_twice(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    """6 steps with dropout; samples after each second one, checkpoints after 3 and 6."""
    evaluation = EvaluationConfig(None, 2, do_sample=True, sample_strategy="steps", sample_steps=2)
    rows = few(data, 8)
    asked = [Question("Hello.", data.tokenizer("Hello.").input_ids)]

    def run(name: str, cfg: EvaluationConfig | None, checkpoint: int | None = None) -> Any:
        words = ("lora.lora_dropout=0.1", "sft.per_device_train_batch_size=4", "sft.save_steps=3")
        trainer = trainer_of(tiny(tiny_model, *words, "sft.max_steps=6"), rows, tmp_path / name)
        start = tmp_path / name / f"checkpoint-{checkpoint}" if checkpoint else None
        record = Record(RunFolder(tmp_path / name), trainer, rows, cfg, asked, start)
        record.before()
        with watch(trainer, tmp_path / name, record.epoch, record.step):
            trainer.train(start)
        return trained_weights(trainer.model), record.samples

    without, _ = run("without", None)
    weights, samples = run("with", evaluation)
    resumed, again = run("with", evaluation, checkpoint=3)

    for one in (weights, resumed):
        assert all(torch.equal(value, one[name]) for name, value in without.items())
    assert [row["phase"] for row in samples] == ["before", "step 2", "step 4", "step 6"]
    assert again == samples == RunFolder(tmp_path / "with").read_samples()


def test_without_an_evaluation_only_the_training_is_measured(
    trainer: SFTPipeTrainer, short: PreparedData, prompts: list[Question], tmp_path: Path
) -> None:
    record = Record(RunFolder(tmp_path), trainer, short, None, prompts, None)
    record.before()
    record.epoch(1)
    record.after()
    assert list(RunFolder(tmp_path).read_metrics()) == ["train"]
    assert RunFolder(tmp_path).read_samples() == []


def test_a_run_that_goes_on_keeps_what_was_measured_before_its_checkpoint(
    trainer: SFTPipeTrainer, short: PreparedData, prompts: list[Question], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    kept = [{"phase": "before", "step": 0}, {"phase": "epoch 1", "step": 6}]
    folder.write_metrics({"validation": {"before": {"loss": 9.0, "perplexity": 8.0}}})
    folder.write_samples([*kept, {"phase": "epoch 2", "step": 12}])

    record = Record(folder, trainer, short, EVALUATION, prompts, tmp_path / "checkpoint-6")
    record.before()
    assert folder.read_samples()[2]["step"] == 12  # nothing was measured or written yet
    record.after()

    validation = folder.read_metrics()["validation"]
    assert validation["before"] == {"loss": 9.0, "perplexity": 8.0}
    assert set(validation) == {"before", "after"}
    assert folder.read_samples()[:2] == kept
    assert [row["phase"] for row in folder.read_samples()[2:]] == ["after", "after"]
