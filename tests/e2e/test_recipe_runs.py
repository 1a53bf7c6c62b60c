"""Recipes through the real command line: two steps on a tiny model, on their own data where these
are embedded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROWS = [
    {
        "instruction": f"Add {n} and {n + 1}.",
        "input": "" if n % 2 else f"{n} {n + 1}",
        "output": str(2 * n + 1),
    }
    for n in range(40)
]
# what a recipe needs beside the tiny model, and the phases of its samples
RUNS: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "instruct": (("sft.eval_steps=1", "dataset.limit=16"), ["before", "epoch 1", "after"]),
    "instruct_ko": (
        ("sft.eval_steps=1", "dataset.limit=16", "evaluation.do_sample=true"),
        ["before", "epoch 1", "after"],
    ),
    "alpaca": (("dataset.limit=16",), ["before", "after"]),
    "alpaca_llama7b": (
        (
            "dataset.path=json",
            "dataset.data_files=instruction-data.json",
            "sft.gradient_accumulation_steps=2",
        ),
        ["before", "after"],
    ),
    "raw_text_ko": (("dataset.limit=4", "dataset.markers=special"), ["before", "after"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RUNS)
def test_a_recipe_trains(recipe: str, cli: Any, tiny_model: Path, tmp_path: Path) -> None:
    more, phases = RUNS[recipe]
    (tmp_path / "instruction-data.json").write_text(json.dumps(ROWS))
    done = cli(
        "train",
        f"recipe={recipe}",
        "model=custom",
        f"model.name_or_path={tiny_model}",
        "evaluation.max_new_tokens=4",
        "sft.max_steps=2",
        "sft.logging_steps=1",
        "run=run",
        *more,
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    validated = [entry["step"] for entry in log if "eval_loss" in entry]
    assert list(dict.fromkeys(row["phase"] for row in samples)) == phases
    assert ("epoch 1 " in done.stderr) == ("epoch 1" in phases)
    assert (validated == [0, 1, 2]) == ("sft.eval_steps=1" in more)
    assert {"model.safetensors", "trainer_state.json", "COMPLETE", "loss.png"} <= {
        path.name for path in run.iterdir()
    }
