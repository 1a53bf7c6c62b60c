"""`sftpipe train --from DIR` with the real model, in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_a_run_of_the_recipe_yoda_is_repeated_to_the_same_bytes(cli: Any, tmp_path: Path) -> None:
    short = ["dataset.limit=6", "sft.per_device_train_batch_size=2", "evaluation.max_new_tokens=2"]
    words = ["recipe=yoda", "sft.max_steps=4", *short]
    first = cli("train", *words, "run=first", OMP_NUM_THREADS="2")
    assert first.returncode == 0, first.stderr

    # as many threads as then, whatever the shell says now
    second = cli("train", "--from", "first", "run=second", "--json", OMP_NUM_THREADS="1")
    assert second.returncode == 0, second.stderr

    assert json.loads(second.stdout)["run"] == "second"
    assert [line for line in second.stderr.splitlines() if line.startswith("again ")] == [
        "again     first from its first step, in a new run",
        "again     same config, data, tokenizer, weights, versions: the same bits are expected",
    ]
    name = "adapter_model.safetensors"
    assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    losses = [
        [
            (entry["step"], entry.get("loss"), entry.get("eval_loss"))
            for entry in map(json.loads, (tmp_path / run / "log.jsonl").read_text().splitlines())
        ]
        for run in ("first", "second")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) > 1
