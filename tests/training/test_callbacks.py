"""Counting, the lines of progress, the log file, and signals."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sftpipe.ranks as ranks
from sftpipe.data.prepare import PreparedData
from sftpipe.errors import Interrupted
from sftpipe.storage import is_whole
from sftpipe.training import callbacks
from sftpipe.training.callbacks import Counter, LogFile, ProgressBar, StopOnSignal, watch
from sftpipe.training.trainer import SFTPipeTrainer
from support.stopping import SignalWithin
from support.trainers import few, mean_loss, tiny, trained_weights, trainer_of

COUNTED: dict[str, Any] = {
    "tokens": 5,
    "trained_tokens": 3,
    "rows": 2,
    "loss_sum": 1.5,
    "seconds": 1000.0,
    "right": 2,
    "logged": [1, 1],
}


def test_what_was_counted_survives_a_checkpoint() -> None:
    counter = Counter(**COUNTED)
    assert counter.state() == {"args": COUNTED, "attributes": {}}
    again = Counter(**counter.state()["args"])
    again.on_train_begin(None, None, None)
    inputs = {
        "input_ids": torch.tensor([[7, 8, 9], [7, 8, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }
    again.add(inputs, trained=4, loss_sum=0.5, right=1)
    assert again.tokens == 5  # until its step ends
    again.on_step_end(None, None, None)
    assert (again.accuracy(), again.accuracy()) == (2 / 6, 0.0)  # since the last entry
    assert (again.tokens, again.trained_tokens, again.rows, again.loss_sum) == (10, 7, 4, 2.0)
    running = again.state()["args"]["seconds"]
    again.on_train_end(None, None, None)
    ended = again.seconds
    assert 1000.0 < running < ended == again.seconds


def test_a_line_of_progress_has_the_rate_of_this_attempt(
    capsys: pytest.CaptureFixture[str],
) -> None:
    counter: Any = SimpleNamespace(tokens=1000, seconds=10.0)
    bar = ProgressBar(lambda: counter)
    state = SimpleNamespace(global_step=3, max_steps=9)
    with bar.shown():
        bar.on_train_begin(None, state, None)
        counter.tokens, counter.seconds = 1600, 12.0
        for logs in ({"loss": 2.5}, {"eval_loss": 1.25, "eval_runtime": 1.0}, {"epoch": 1.0}, None):
            bar.on_log(None, state, None, logs)
        bar.on_log(None, state, None, {"eval_news_loss": 1.5, "eval_news_runtime": 1.0})
    assert capsys.readouterr().err.splitlines() == [
        "step 3/9  loss 2.500  300 tokens/s",
        "step 3/9  validation loss 1.250",
        "step 3/9  validation news loss 1.500",
    ]


def test_the_log_keeps_what_was_logged_before_training_and_ends_at_the_checkpoint(
    tmp_path: Path,
) -> None:
    file = tmp_path / "log.jsonl"
    steps = [{"eval_loss": 4.0, "step": 0}, *({"loss": 3.0 / n, "step": n} for n in (1, 2, 3))]
    file.write_text("".join(f"{json.dumps(entry)}\n" for entry in steps))
    state = SimpleNamespace(log_history=steps[1:3])
    log = LogFile(file)
    log.on_train_begin(None, state, None)
    assert [json.loads(line) for line in file.read_text().splitlines()] == steps[:3]
    state.log_history = [*steps[1:3], {"loss": 0.5, "step": 3}]
    log.on_log(None, state, None)
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        *steps[:3],
        {"loss": 0.5, "step": 3},
    ]


def test_a_torn_line_of_the_log_is_written_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that was full, or a machine that lost its power, cuts the last line anywhere."""
    file = tmp_path / "log.jsonl"
    logged = [{"loss": 3.0, "step": 1}, {"loss": 2.0, "step": 2}]
    before = json.dumps({"eval_loss": 4.0, "step": 0})
    for torn in ('{"loss": 2.0, "st', "{}", "[1]", "nul", "\x00\x00"):
        file.write_text(f'{before}\n{{"loss": 3.0, "step": 1}}\n{torn}')
        LogFile(file).on_train_begin(None, SimpleNamespace(log_history=logged), None)
        assert [json.loads(line) for line in file.read_text().splitlines()] == [
            json.loads(before),
            *logged,
        ]
        assert capsys.readouterr().err == (
            "resume    log.jsonl: a line was cut off; it is written anew from the checkpoint\n"
        )


def test_a_second_signal_ends_the_process_at_once() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    stop = StopOnSignal()
    with pytest.raises(KeyboardInterrupt), stop.listening():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in numbers] == before


# --- stopped, and going on ------------------------------------------------------------------------


def two_epochs(model: Path, data: PreparedData, folder: Path) -> SFTPipeTrainer:
    """8 rows in steps of 2, so epochs of 4 steps: grouped by length, with dropout."""
    cfg = tiny(
        model,
        "lora.lora_dropout=0.2",
        "sft.per_device_train_batch_size=2",
        "sft.max_steps=7",
        "sft.logging_steps=1",
        "sft.save_steps=100",
    )
    return trainer_of(cfg, few(data, 8), folder)


def entries(folder: Path) -> list[tuple[int, float | None, float | None, float | None]]:
    """Step, losses and tokens of the lines of log.jsonl, without those of times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    names = ("loss", "eval_loss", "num_tokens")
    return [(line["step"], *map(line.get, names)) for line in lines if "train_runtime" not in line]


def counted(trainer: SFTPipeTrainer) -> dict[str, Any]:
    return {
        name: value for name, value in trainer.counter.state()["args"].items() if name != "seconds"
    }


def test_a_signal_ends_training_with_a_checkpoint_from_which_it_goes_on_to_the_same_bits(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    whole = two_epochs(tiny_model, data, tmp_path / "whole")
    whole.evaluate()
    whole.train()

    folder = tmp_path / "stopped"
    stopped = two_epochs(tiny_model, data, folder)
    stopped.evaluate()
    stopped.add_callback(SignalWithin(6))
    epochs: list[int] = []
    steps: list[int] = []
    with pytest.raises(Interrupted) as error, watch(stopped, folder, epochs.append, steps.append):
        stopped.train()
    assert error.value.exit_code == 143
    assert str(error.value) == (
        f"{folder}: stopped by SIGTERM; a checkpoint was written\n"
        "    the same command with sft.resume_from_checkpoint=auto goes on from there"
    )
    assert [path.name for path in folder.glob("*checkpoint*")] == ["checkpoint-6"]
    assert is_whole(folder / "checkpoint-6")
    assert entries(folder) == entries(tmp_path / "whole")[:7]
    assert epochs == [1]
    assert steps == [1, 2, 3, 4, 5, 6]

    state = folder / "checkpoint-6" / "trainer_state.json"
    saved = json.loads(state.read_text())
    saved["stateful_callbacks"]["Counter"]["args"]["seconds"] += 1000.0
    state.write_text(json.dumps(saved))
    resumed = two_epochs(tiny_model, data, folder)
    resumed.train(folder / "checkpoint-6")
    assert entries(folder) == entries(tmp_path / "whole")
    assert [entry[0] for entry in entries(folder)] == list(range(8))
    assert counted(resumed) == counted(whole)
    assert resumed.counter.seconds > 1000.0
    expected = trained_weights(whole.model)
    assert all(
        torch.equal(value, expected[name]) for name, value in trained_weights(resumed.model).items()
    )


def test_training_counts_each_row_of_each_step(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    """Three epochs of one step each, at a learning rate that changes nothing."""
    cfg = tiny(
        tiny_model,
        "sft.per_device_train_batch_size=2",
        "sft.gradient_accumulation_steps=2",
        "sft.num_train_epochs=3",
        "sft.learning_rate=0",
        "sft.save_strategy=no",
    )
    trainer = trainer_of(cfg, few(data, 4), tmp_path)
    rows = trainer.train_dataset
    mean = mean_loss(trainer.model.eval(), rows)
    trainer.train()
    trained = sum(label != -100 for labels in rows["labels"] for label in labels)
    assert counted(trainer) == {
        "tokens": 3 * sum(map(len, rows["input_ids"])),
        "trained_tokens": 3 * trained,
        "rows": 12,
        "loss_sum": pytest.approx(3 * trained * mean, rel=1e-5),
        "right": trainer.counter.right,
        "logged": [0, 0],  # there was no entry of a step
    }


def test_a_signal_that_a_launcher_hands_on_is_the_one_that_came_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A terminal and Slurm signal every process, and a launcher its ranks once more."""
    now = 100.0
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now)
    monkeypatch.setenv(ranks.NOTES, str(tmp_path))
    rank = StopOnSignal()
    rank._receive(signal.SIGTERM, None)
    now += 4
    rank._receive(signal.SIGTERM, None)
    now += 2
    with pytest.raises(KeyboardInterrupt):
        rank._receive(signal.SIGTERM, None)

    monkeypatch.delenv(ranks.NOTES)  # nobody hands anything on to a process that is alone
    alone = StopOnSignal()
    alone._receive(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        alone._receive(signal.SIGINT, None)
