"""Measurements behind the changes that were made for speed: each against its baseline, in one run."""

from __future__ import annotations

import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sftpipe.data.labels import IGNORED
from sftpipe.schema import TrainConfig
from sftpipe.terminal import console, quiet_libraries

ROUNDS = 5


def step() -> dict[str, Any]:
    """Seconds of forward and backward of one Yoda batch (8 rows, NF4 + LoRA): our loss against TRL's own.

    Ours projects hidden states at trained positions only; both run on the same model and batch, in turns.
    """
    from trl import SFTTrainer

    from sftpipe import model as models
    from sftpipe.config import compose
    from sftpipe.pipeline import prepare
    from sftpipe.trainer import build_arguments, build_trainer
    from sftpipe.weights import find_weights

    cfg = compose(["recipe=yoda"])
    precision = models.choose_precision(cfg.model)
    data = prepare(cfg)
    weights = find_weights(cfg.model)
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        arguments = build_arguments(cfg.sft, seed=cfg.seed, folder=Path(folder), precision=precision)
        model = models.load_base(cfg.model, cfg.quantization, weights, precision, frozen=True)
        models.fit_to_tokenizer(model, data.tokenizer)
        trainer = build_trainer(arguments, model, models.lora_config(cfg.lora, weights), data, precision)
    trainer.model.train()
    batch = trainer._prepare_inputs(data.collate([data.train[row] for row in range(8)]))
    items = (batch["labels"][:, 1:] != -100).sum()

    def timed(compute_loss: Callable[..., Any]) -> float:
        start = time.perf_counter()
        with trainer.compute_loss_context_manager():
            loss = compute_loss(trainer, trainer.model, dict(batch), num_items_in_batch=items)
        loss.backward()
        float(loss.detach())  # waits for a GPU
        trainer.model.zero_grad()
        return time.perf_counter() - start

    losses = {"sftpipe": type(trainer).compute_loss, "trl": SFTTrainer.compute_loss}
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    with console.status(f"{ROUNDS} rounds of two steps ..."):
        for _ in range(ROUNDS + 1):  # the first one warms up
            for name, compute_loss in losses.items():
                seconds[name].append(timed(compute_loss))
    ours, theirs = (statistics.median(seconds[name][1:]) for name in ("sftpipe", "trl"))
    rows, width = batch["input_ids"].shape
    return {
        "model": weights.identity,
        "device": precision.reason,
        "batch": f"{rows} rows x {width} tokens, {int(items)} trained",
        "sftpipe_s": round(ours, 3),
        "trl_s": round(theirs, 3),
        "trl / sftpipe": round(theirs / ours, 2),
    }


def data(rows: int = 22_000) -> dict[str, Any]:
    """Rows a second of preparing generated instruction rows (about 64 tokens): ours against TRL's own, and a cache hit against a miss.

    Both render SmolLM2's chat template, tokenise, mask the prompt and write the rows to disk. Ours also reads and checks every row.
    """
    from unittest.mock import patch

    from sftpipe.config import compose
    from sftpipe.pipeline import prepare

    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in _instructions(rows)), encoding="utf-8")
        words = ["dataset=json", f"dataset.data_files={file}", "format=instruction", "sft.max_length=null"]
        tokenizer = prepare(compose([*words, "dataset.limit=8"])).tokenizer

        def ours(processes: int) -> tuple[float, float, Any]:
            """Seconds of a miss and of a hit, and the rows."""
            with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, {"SFTPIPE_CACHE": cache}):
                cfg = compose([*words, f"dataset.num_proc={processes if processes > 1 else 'null'}"])
                start = time.perf_counter()
                made = _encoded(cfg, tokenizer)
                miss = time.perf_counter() - start
                start = time.perf_counter()
                _encoded(cfg, tokenizer)
                return miss, time.perf_counter() - start, made[:]

        seconds: dict[str, float] = {}
        with console.status(f"{rows} rows, four times ..."):
            theirs, seconds["trl"] = _prepared_by_trl(file, tokenizer, Path(folder))
            seconds["one process"], hit, made = ours(1)
            seconds["two processes"], _, _ = ours(2)
    end = tokenizer("\n", add_special_tokens=False).input_ids
    same = sum(
        row_ids == their_ids and _without_end(their_labels, end) == row_labels
        for row_ids, row_labels, their_ids, their_labels in zip(made["input_ids"], made["labels"], *theirs, strict=True)
    )
    return {
        "rows": f"{rows}, {sum(map(len, made['input_ids'])) / rows:.0f} tokens on average",
        "trl_rows_per_s": round(rows / seconds["trl"]),
        "sftpipe_rows_per_s": round(rows / seconds["one process"]),
        "sftpipe_rows_per_s, 2 processes": round(rows / seconds["two processes"]),
        "sftpipe / trl": round(seconds["trl"] / seconds["one process"], 2),
        "sftpipe / trl, 2 processes": round(seconds["trl"] / seconds["two processes"], 2),
        "cache miss / hit": round(seconds["one process"] / hit, 1),
        "same ids and labels": f"{same} of {rows}, the line break behind the end token apart, which TRL trains",
    }


def _encoded(cfg: TrainConfig, tokenizer: Any) -> Any:
    """The train rows of a config."""
    from sftpipe.data.packing import Collator
    from sftpipe.data.prepare import prepare_data

    return prepare_data(cfg, tokenizer, Collator(int(tokenizer.pad_token_id))).train


def _instructions(rows: int) -> Iterator[dict[str, str]]:
    """Instruction rows of random words, each another; half of them with an input."""
    draw = random.Random(0)
    words = ["the", "of", "a", "robot", "weather", "river", "summer", "small", "question", "answer", "learn", "model", "data", "light",
             "house", "green", "winter", "apple", "music", "write", "simple", "careful", "morning", "letter", "build", "quiet", "window",
             "travel", "number", "story"]  # fmt: skip

    def sentence(length: int) -> str:
        return " ".join(draw.choice(words) for _ in range(length)).capitalize() + "."

    for number in range(rows):
        yield {
            "instruction": f"{number}: {sentence(9)}",
            "input": sentence(6) if number % 2 else "",
            "output": sentence(draw.randint(4, 24)),
        }


def _prepared_by_trl(file: Path, tokenizer: Any, folder: Path) -> tuple[tuple[list[list[int]], list[list[int]]], float]:
    """(input_ids, labels) of all rows as TRL's trainer prepares conversational prompt-completion rows, and the seconds it took."""
    import datasets
    from trl import SFTTrainer

    def turns(row: dict[str, str]) -> dict[str, Any]:
        question = f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]
        return {"prompt": [{"role": "user", "content": question}], "completion": [{"role": "assistant", "content": row["output"]}]}

    lines = [turns(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    source = datasets.Dataset.from_list(lines)
    source.save_to_disk(str(folder / "trl"))
    trainer = SimpleNamespace(chat_template=None, completion_only_loss=True, _tokenizer=tokenizer)
    arguments = SimpleNamespace(
        assistant_only_loss=False, max_length=None, dataset_text_field="text", dataset_num_proc=None, shuffle_dataset=False
    )
    loaded = datasets.load_from_disk(str(folder / "trl"))
    start = time.perf_counter()
    prepared = SFTTrainer._prepare_dataset(trainer, loaded, tokenizer, arguments, False, None, "train")
    seconds = time.perf_counter() - start
    made = prepared[:]
    if "labels" in made:
        return (made["input_ids"], made["labels"]), seconds
    labels = [
        [token if trained else IGNORED for token, trained in zip(ids, mask, strict=True)]
        for ids, mask in zip(made["input_ids"], made["completion_mask"], strict=True)
    ]
    return (made["input_ids"], labels), seconds


def _without_end(labels: list[int], end: list[int]) -> list[int]:
    """Labels with the line break behind the end token masked."""
    return [*labels[: -len(end)], *[IGNORED] * len(end)] if labels[-len(end) :] == end else labels


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"step": step, "data": data}
