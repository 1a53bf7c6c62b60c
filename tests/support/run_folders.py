"""The small files of a run folder, as a run writes them, with numbers that all differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from sftpipe.config.schema import to_plain
from support.configs import compose

LOG: list[dict[str, Any]] = [
    {"eval_loss": 3.0, "epoch": 0, "step": 0},
    {"loss": 2.5, "grad_norm": 1.5, "learning_rate": 0.001, "num_tokens": 1000.0}
    | {"tokens_per_s": 160.0, "peak_memory_bytes": 2**30, "epoch": 0.5, "step": 5},
    {"loss": 1.5, "grad_norm": 0.5, "learning_rate": 0.0005, "num_tokens": 3000.0}
    | {"tokens_per_s": 170.0, "peak_memory_bytes": 2**31, "epoch": 1.0, "step": 10},
    {"eval_loss": 1.25, "epoch": 1.0, "step": 10},
]
METRICS: dict[str, Any] = {
    "train": {
        "loss": 2.0,
        "runtime_s": 252.0,
        "rows_per_s": 3.5,
        "tokens_per_s": 1234.0,
        "steps": 10,
        "peak_memory_bytes": 3 * 2**29,
    },
    "validation": {
        "before": {"loss": 3.0, "perplexity": 20.09},
        "after": {"loss": 1.25, "perplexity": 3.49},
    },
    "test": {"loss": 1.375, "perplexity": 3.955},
}
SPLIT: dict[str, Any] = {
    "split": "train",
    "source": "",
    "rows": 40,
    "tokens": 2000,
    "trained_tokens": 500,
    "length_p50": 50.0,
    "length_p95": 60.0,
    "length_p99": 61.0,
    "length_max": 62,
    "length_bins": [[40, 49, 18], [50, 62, 22]],
    "dropped": {"too long": 3},
    "end_trained_rows": 39,
    "bos_rows": {"0": 1, "1": 38, "2": 1},
}
PREFLIGHT: dict[str, Any] = {
    "splits": [SPLIT, SPLIT | {"split": "validation", "rows": 7, "tokens": 350}],
    "dropped": [],
    "remarks": [],
    "warnings": [{"where": "train", "found": "much is cut", "allowed": "", "fix": ""}],
    "end_tokens": {"<|im_end|>": 39},
    "special_tokens": {"pad_token": ["<pad>", 4], "unk_token": [None, None]},
    "padding_share": 0.125,
    "packing": {
        "strategy": "bfd",
        "rows": {"train": [40, 9]},
        "fill": {"train": 0.9},
        "isolation": None,
        "limit": 64,
        "first": {"train": [[30, 20, 10], [62]]},
    },
}
SAMPLES: list[dict[str, Any]] = [
    {"phase": phase, "step": step, "prompt": prompt, "completion": f"{phase}: {prompt}"}
    | {"reference": f"right: {prompt}"}
    for phase, step in (("before", 0), ("epoch 1", 10), ("after", 10))
    for prompt in ("Who are you?", "누구세요?")
]
ROWS = 12
EVALUATION: dict[str, Any] = {
    "run": "run",
    "base": "base==1",
    "seed": 42,
    "left_out": ["test[3]: empty"],
    "lm_eval": {"task": {"acc": {"base": 0.25, "run": 0.5, "stderr": 0.1}}},
    "rows": ROWS,
    "metric": "chrf",
    "verdict": "better",
    "sentence": "better than the base: chrf 20.000 -> 60.000",
    "metrics": {
        "loss": {"base": 3.0, "run": 1.5, "difference": -1.5, "interval": [-2.0, -1.0]}
        | {"rows": ROWS},
        "chrf": {"base": 20.0, "run": 60.0, "difference": 40.0, "interval": [30.0, 50.0]}
        | {"rows": ROWS},
    },
    "wins": 9,
    "losses": 2,
    "ties": 1,
    "higher_is_better": True,
    "values": {
        "base": [20.0] * ROWS,
        "run": [10.0, 15.0, 20.0, *(30.0 + at for at in range(9))],
    },
    "worst": [],
}
JUDGEMENT: dict[str, Any] = {
    "mode": "score",
    "model": "llama3",
    "mean": 62.5,
    "median": 65.0,
    "interval": [50.0, 75.0],
    "scored": 4,
    "unscored": 1,
    "rows": [{"score": score} for score in (5, 75, 100, 70, None)],
}
MANIFEST: dict[str, Any] = {
    "weights": "base==1 sha256:12",
    "device": "CPU, 2 threads; float32",
    "seed": 42,
    "data": {"sha256": "ab", "rows": {"train": 40, "validation": 7}},
    "tokenizer_sha256": "cd",
    "threads": 2,
    "created": "2026-01-02T03:04:05+00:00",
    "command": ["sftpipe", "train", "recipe=yoda"],
    "git": {"commit": "ef", "dirty": True},
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "hardware": {"machine": "x86_64", "cores": 2},
}


def write_run(
    folder: Path, *words: str, log: Any = LOG, complete: bool = True, **contents: Any
) -> Path:
    """A run folder without weights.

    Args:
        folder: made where it is missing.
        words: overrides of `recipe=yoda`.
        log: entries of log.jsonl.
        complete: the run has ended.
        contents: {file without its suffix: content}; None leaves the file out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = to_plain(compose(["recipe=yoda", *words]))
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    responses = [
        {"prompt": f"row {at}", "completion": f"right {at}", "model_response": f"said {at}"}
        for at in range(ROWS)
    ]
    files: dict[str, Any] = {
        "manifest": MANIFEST,
        "metrics": METRICS,
        "preflight": PREFLIGHT,
        "evaluation": EVALUATION,
        "judge": JUDGEMENT,
        "responses": responses,
        "responses_base": [row | {"model_response": "base"} for row in responses],
    }
    samples = contents.pop("samples", SAMPLES)
    for name, content in (files | contents).items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    for name, rows in {"log": log, "samples": samples}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if complete:
        (folder / "COMPLETE").write_text("now\n")
    return folder
