"""The training that is measured: its rows, and what is told of it."""

from __future__ import annotations

import json
from pathlib import Path

from sftpipe.bench import task
from sftpipe.bench.llama_factory import write_task
from sftpipe.config.hydra import compose
from sftpipe.data.labels import IGNORED
from sftpipe.model.weights import find_weights
from sftpipe.pipeline import prepare


def test_the_rows_are_those_of_the_template_chatml_of_llama_factory(tmp_path: Path) -> None:
    cfg = compose(task.overrides(40, tmp_path))
    data, weights = prepare(cfg), find_weights(cfg.model)
    write_task(40, weights, tmp_path)

    theirs = []
    for row in json.loads((tmp_path / "yoda.json").read_text(encoding="utf-8")):
        # its slots of a user and of an assistant, each tokenised by itself
        asked = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        source, target = (
            data.tokenizer(text, add_special_tokens=False).input_ids
            for text in (asked, f"{row['completion']}<|im_end|>\n")
        )
        theirs.append((source + target, [IGNORED] * len(source) + target))

    assert [(row["input_ids"], row["labels"]) for row in data.train] == theirs
    assert len(theirs) == 40


def test_facts_are_read_from_what_the_trainer_logged_and_from_its_rows() -> None:
    history = [
        {"loss": 2.5, "step": 1},
        {"loss": 2.0, "step": 2},
        {"train_runtime": 7.5, "train_loss": 2.25, "step": 2},
    ]
    rows = [
        {"input_ids": [1, 2, 3], "labels": [IGNORED, 2, 3]},
        {"input_ids": [4, 5], "labels": [4, 5]},
    ]
    told = task.facts(history, rows)
    assert (told["seconds"], told["losses"]) == (7.5, [2.5, 2.0])
    assert (told["tokens"], told["trained_tokens"]) == (5, 3)
    assert told["sha256"] == task.facts(history, rows)["sha256"]
    assert told["sha256"] != task.facts(history, rows[::-1])["sha256"]


def test_each_process_has_as_many_threads_and_no_gpu() -> None:
    found = task.environment()
    assert (found["OMP_NUM_THREADS"], found["CUDA_VISIBLE_DEVICES"]) == ("2", "")
    assert "PATH" in found
