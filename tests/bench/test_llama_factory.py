"""What LLaMA-Factory is given, and what is read of it; it is not installed here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import datasets
import pytest

from sftpipe.bench import llama_factory, task
from sftpipe.errors import ConfigError
from sftpipe.model.weights import Weights
from support.errors import Pin, places, refused

WEIGHTS = Weights("/models/small", "abc123", "a model")


def program(file: Path, text: str) -> str:
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


def test_the_version_is_what_that_python_says(tmp_path: Path) -> None:
    assert llama_factory.version(program(tmp_path / "python", "echo 0.9.5")) == "0.9.5"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "is no program that can be run"),
        ("exit 1", "has no LLaMA-Factory"),
        ("exit 0", "has no LLaMA-Factory"),
    ],
    ids=["no program", "without it", "no python"],
)
def test_a_python_without_it_is_an_error_before_anything_is_trained(
    text: str | None, found: str, tmp_path: Path, golden_error: Pin
) -> None:
    python = tmp_path / "python"
    if text is None:
        python.write_text("")
    else:
        program(python, text)

    error = refused(ConfigError, lambda: llama_factory.version(str(python)))

    assert places(error) == ["--peer-python"]
    assert found in error.problems[0].found
    golden_error(error)


def test_it_is_told_the_numbers_of_the_task_in_its_own_words(tmp_path: Path) -> None:
    config = json.loads(llama_factory.write_task(3, WEIGHTS, tmp_path).read_text())

    assert config["model_name_or_path"] == "/models/small"
    assert config["model_revision"] == "abc123"
    assert config["lora_rank"] == task.RANK
    assert config["lora_alpha"] == task.ALPHA
    assert config["learning_rate"] == task.LEARNING_RATE
    assert config["per_device_train_batch_size"] == task.BATCH
    assert config["disable_shuffling"] is True
    known = json.loads((tmp_path / "dataset_info.json").read_text())[config["dataset"]]
    rows = json.loads((tmp_path / known["file_name"]).read_text())
    assert [set(row) for row in rows] == [set(known["columns"].values())] * 3
    assert rows[0]["prompt"] == "I finished the report at midnight."


def test_its_losses_and_rows_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], folder: Path) -> int:
        assert command == [
            "python",
            "-m",
            "llamafactory.cli",
            "train",
            str(tmp_path / "train.yaml"),
        ]
        state = {"log_history": [{"loss": 2.5}, {"train_runtime": 4.0}]}
        (folder / "run").mkdir()
        (folder / "run" / "trainer_state.json").write_text(json.dumps(state))
        rows = datasets.Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[-100, 2]]})
        datasets.DatasetDict({"train": rows}).save_to_disk(str(folder / "rows"))
        return 2**30

    monkeypatch.setattr(llama_factory, "_run", run)
    told = llama_factory.train("python", 1, WEIGHTS, tmp_path)

    expected = task.facts(
        [{"loss": 2.5}, {"train_runtime": 4.0}], [{"input_ids": [1, 2], "labels": [-100, 2]}]
    )
    assert told == {**expected, "peak_bytes": 2**30}


def test_the_peak_of_a_process_is_in_bytes(tmp_path: Path) -> None:
    # what this process holds is the least that its child is told to have had
    code = "held = bytearray(b'x') * 2**28"
    assert llama_factory._run([sys.executable, "-S", "-c", code], tmp_path) >= 2**28


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such model"):
        llama_factory._run(
            [sys.executable, "-S", "-c", "raise SystemExit('no such model')"], tmp_path
        )
