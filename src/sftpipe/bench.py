"""Measurements of what was changed for speed: each against its baseline, in one run."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sftpipe.config.schema import TrainConfig
from sftpipe.data.labels import IGNORED
from sftpipe.terminal import console, quiet_libraries

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

ROUNDS = 5
_DATA_ROUNDS = 3
_PACKED_LENGTH = 2048
_WORDS = [
    "the",
    "of",
    "a",
    "robot",
    "weather",
    "river",
    "summer",
    "small",
    "question",
    "answer",
    "learn",
    "model",
    "data",
    "light",
    "house",
    "green",
    "winter",
    "apple",
    "music",
    "write",
    "simple",
    "careful",
    "morning",
    "letter",
    "build",
    "quiet",
    "window",
    "travel",
    "number",
    "story",
]  # of generated rows


def step() -> dict[str, Any]:
    """Seconds of forward and backward of one Yoda batch: our loss against TRL's own.

    The batch has 8 rows; the model is in NF4, with LoRA. Our loss projects hidden states at trained
    positions only. Both run on the same model and batch, alternately.
    """
    # longer than most: one measurement, from top to bottom
    from trl import SFTTrainer

    from sftpipe.config.hydra import compose
    from sftpipe.model.adapters import lora_config
    from sftpipe.model.embedding import fit_to_tokenizer
    from sftpipe.model.load import load_base
    from sftpipe.model.precision import choose_precision
    from sftpipe.model.weights import find_weights
    from sftpipe.pipeline import prepare
    from sftpipe.training.trainer import build_arguments, build_trainer

    cfg = compose(["recipe=yoda"])
    precision = choose_precision(cfg.model)
    data = prepare(cfg)
    weights = find_weights(cfg.model)
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        arguments = build_arguments(
            cfg.sft, seed=cfg.seed, folder=Path(folder), precision=precision
        )
        model = load_base(cfg.model, cfg.quantization, weights, precision, frozen=True)
        fit_to_tokenizer(model, data.tokenizer)
        trainer = build_trainer(
            arguments,
            model,
            lora_config(cfg.lora, weights),
            data,
            precision,
            Path(folder) / "log.jsonl",
        )
    trainer.model.train()
    batch = trainer._prepare_inputs(data.collate([data.train[row] for row in range(8)]))
    items = (batch["labels"][:, 1:] != IGNORED).sum()

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
    """Rows a second of preparing generated instruction rows: ours against TRL's own.

    Also a cache hit against a miss. Rows have about 64 tokens.

    Both render SmolLM2's chat template, tokenise, mask the prompt and write the rows to disk. Ours
    also reads and checks every row.
    """
    # longer than most: one measurement, from top to bottom
    from unittest.mock import patch

    from sftpipe.config.hydra import compose
    from sftpipe.data.packing import pack
    from sftpipe.pipeline import prepare

    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        file = Path(folder) / "rows.jsonl"
        file.write_text(
            "".join(json.dumps(row) + "\n" for row in _instructions(rows)), encoding="utf-8"
        )
        words = [
            "dataset=json",
            f"dataset.data_files={file}",
            "format=instruction",
            "sft.max_length=null",
        ]
        tokenizer = prepare(compose([*words, "dataset.limit=8"])).tokenizer

        cfg = {
            processes: compose([*words, f"dataset.num_proc={processes}"]) for processes in (1, 2)
        }
        seconds: dict[str, list[float]] = {
            name: [] for name in ("trl", "miss", "miss, 2 processes", "hit")
        }

        def timed(name: str, make: Callable[[], Any]) -> Any:
            start = time.perf_counter()
            made = make()
            seconds[name].append(time.perf_counter() - start)
            return made

        with console.status(f"{rows} rows, {_DATA_ROUNDS} rounds ..."):
            source = _conversations(file)
            for number in range(_DATA_ROUNDS):
                theirs = timed("trl", lambda: _prepared_by_trl(source, tokenizer))
                with patch.dict(os.environ, {"SFTPIPE_CACHE": f"{folder}/cache-2-{number}"}):
                    timed("miss, 2 processes", lambda: _encoded(cfg[2], tokenizer))
                with patch.dict(os.environ, {"SFTPIPE_CACHE": f"{folder}/cache-{number}"}):
                    timed("miss", lambda: _encoded(cfg[1], tokenizer))
                    made = timed("hit", lambda: _encoded(cfg[1], tokenizer))
                    packed = pack(made, "bfd", _PACKED_LENGTH, "train")
            same, tokens = _compared(
                made, theirs, tokenizer("\n", add_special_tokens=False).input_ids
            )
    median = {name: statistics.median(values) for name, values in seconds.items()}
    fill = tokens / (len(packed) * _PACKED_LENGTH)
    return {
        "rows": f"{rows}, {tokens / rows:.0f} tokens on average",
        "trl_rows_per_s": round(rows / median["trl"]),
        "sftpipe_rows_per_s": round(rows / median["miss"]),
        "sftpipe_rows_per_s, 2 processes": round(rows / median["miss, 2 processes"]),
        "sftpipe / trl": round(median["trl"] / median["miss"], 2),
        "sftpipe / trl, 2 processes": round(median["trl"] / median["miss, 2 processes"], 2),
        "cache miss / hit": round(median["miss"] / median["hit"], 1),
        f"bfd at {_PACKED_LENGTH} tokens": f"{len(packed)} rows, {fill:.2%} full",
        "same ids and labels": f"{same} of {rows}, except the line break after the end token, "
        "which TRL trains",
    }


def memory(rows: Sequence[int] = (22_000, 220_000)) -> dict[str, Any]:
    """Peak memory of `sftpipe check` on generated instruction rows: more rows must not take more.

    Counts a process's own memory (RssAnon); rows are files that are mapped into it, which the
    system drops when it needs the room. Linux.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, console.status("Two data sets ..."):
        for count in rows:
            file = Path(folder) / f"{count}.jsonl"
            with file.open("w", encoding="utf-8") as out:
                out.writelines(json.dumps(row) + "\n" for row in _instructions(count))
            words = [
                "check",
                "dataset=json",
                f"dataset.data_files={file}",
                "format=instruction",
                "sft.max_length=null",
            ]
            process = subprocess.Popen(
                [sys.executable, "-m", "sftpipe", *words],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            peak = 0
            while process.poll() is None:
                peak = max(peak, _own_memory(process.pid))
                time.sleep(0.05)
            if process.returncode:
                raise RuntimeError(process.communicate()[1])
            found[f"{count} rows"] = f"{peak / 2**20:.0f} MiB"
    return found


def _own_memory(pid: int) -> int:
    """Bytes that a process holds for itself; 0 when it has just ended."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    line = next(
        (line for line in status.splitlines() if line.startswith("RssAnon:")), "RssAnon: 0 kB"
    )
    return int(line.split()[1]) * 1024


def _encoded(cfg: TrainConfig, tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """The train rows of a config, encoded and checked as `sftpipe check` does."""
    from sftpipe.data import prepare
    from sftpipe.data.preflight.report import check_data
    from sftpipe.data.source import load_sources

    sources = load_sources(cfg.dataset, cfg.format, cfg.allowed_targets)
    encoder = prepare.make_encoder(tokenizer, cfg)
    readers = prepare.sample_readers(sources, tokenizer, cfg)
    parts = prepare.encode_sources(sources, readers, encoder, cfg)
    rows, packing = prepare.pack_splits(parts, cfg, None)
    check_data(parts, rows, encoder, cfg, packing)
    return rows["train"]


def _instructions(rows: int) -> Iterator[dict[str, str]]:
    """Instruction rows of random words; a third have an input, answers are mostly short."""
    draw = random.Random(0)

    def sentence(length: int) -> str:
        return " ".join(draw.choice(_WORDS) for _ in range(length)).capitalize() + "."

    for number in range(rows):
        yield {
            "instruction": f"{number}: {sentence(draw.randint(3, 12))}",
            "input": sentence(6) if number % 3 == 0 else "",
            "output": sentence(1 + int(draw.expovariate(1 / 16))),
        }


def _conversations(file: Path) -> Dataset:
    """The rows as TRL wants them: conversations in prompt and completion."""
    import datasets

    def turns(row: dict[str, str]) -> dict[str, Any]:
        question = f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]
        return {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": row["output"]}],
        }

    datasets.Dataset.from_list(
        [turns(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    ).save_to_disk(str(file.parent / "conversations"))
    return datasets.load_from_disk(str(file.parent / "conversations"))


def _prepared_by_trl(source: Dataset, tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """The rows as TRL's trainer prepares conversations in prompt and completion."""
    import datasets
    from trl import SFTTrainer

    trainer = SimpleNamespace(chat_template=None, completion_only_loss=True, _tokenizer=tokenizer)
    arguments = SimpleNamespace(
        assistant_only_loss=False,
        max_length=None,
        dataset_text_field="text",
        dataset_num_proc=None,
        shuffle_dataset=False,
    )
    datasets.disable_caching()
    try:
        return SFTTrainer._prepare_dataset(
            trainer, source, tokenizer, arguments, False, None, "train"
        )
    finally:
        datasets.enable_caching()


def _compared(ours: Dataset, theirs: Dataset, end: list[int]) -> tuple[int, int]:
    """(rows with the same ids and labels, tokens of all).

    Ours mask the line break after the end token.
    """
    same = tokens = 0
    for row, other in zip(ours, theirs, strict=True):
        labels = other.get("labels") or [
            token if trained else IGNORED
            for token, trained in zip(other["input_ids"], other["completion_mask"], strict=True)
        ]
        if labels[-len(end) :] == end:
            labels = [*labels[: -len(end)], *[IGNORED] * len(end)]
        same += row["input_ids"] == other["input_ids"] and row["labels"] == labels
        tokens += len(row["input_ids"])
    return same, tokens


def generation(tokens: int = 32) -> dict[str, Any]:
    """New tokens a second of answers to the 40 test rows of Yoda, by the base model in float32.

    Batched, one by one, and by transformers' own `generate` on the same batches; every answer has
    the same number of tokens. The three run alternately.
    """
    # longer than most: one measurement, from top to bottom
    import torch

    from sftpipe.config.hydra import compose
    from sftpipe.evaluation.answers import Sampling, generate, padded_batch
    from sftpipe.evaluation.questions import Question, row_questions
    from sftpipe.runs.load import BaseModel

    subject = BaseModel(compose(["recipe=yoda", "quantization=none"]))
    with quiet_libraries():
        readers = subject.readers("test", subject.sources())
        found = row_questions(readers, subject.encoder)
        prompts = [one.input_ids for one in found if isinstance(one, Question)]
        model, tokenizer = subject.model, subject.tokenizer
    sampling = Sampling(tokens, fields={"min_new_tokens": tokens})
    size = subject.evaluation.batch_size
    order = sorted(prompts, key=len, reverse=True)
    batches = [order[start : start + size] for start in range(0, len(order), size)]

    def plain() -> None:
        for batch in batches:
            with torch.inference_mode():
                model.generate(
                    **padded_batch(batch, int(tokenizer.pad_token_id), model.device),
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    do_sample=False,
                )

    ways: dict[str, Callable[[], object]] = {
        "batched": lambda: list(generate(model, tokenizer, prompts, sampling, batch_size=size)),
        "one by one": lambda: list(generate(model, tokenizer, prompts, sampling, batch_size=1)),
        "transformers": plain,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with quiet_libraries(), console.status(f"{ROUNDS} rounds ..."):
        for _ in range(ROUNDS + 1):  # the first one warms up
            for name, answer in ways.items():
                start = time.perf_counter()
                answer()
                seconds[name].append(time.perf_counter() - start)
    took = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    made = len(prompts) * tokens
    return {
        "model": subject.identity(),
        "device": str(model.device),
        "prompts": f"{len(prompts)} rows in batches of {size}, {tokens} new tokens each",
        **{f"{name}_tokens_per_s": round(made / time_s, 1) for name, time_s in took.items()},
        "batched / one by one": round(took["one by one"] / took["batched"], 2),
        "batched / transformers": round(took["transformers"] / took["batched"], 2),
    }


def sweep(rounds: int = 3) -> dict[str, Any]:
    """Seconds of one more job of a sweep, against the same job as a command of its own.

    A model of two layers, six steps: what is measured is what every job costs, whatever it trains.
    """
    words = [
        *("dataset=yoda", "format=alpaca", "model=tiny_random", "tokenizer=bpe"),
        *("lora=none", "evaluation.sample_prompts=[]"),
        *("sft.max_steps=6", "dataset.limit=48", "tokenizer.vocab_size=512"),
    ]
    took: dict[str, list[float]] = {"alone": [], "one job": [], "four jobs": []}
    seeds = iter(range(1, 100_000))
    with tempfile.TemporaryDirectory() as folder, console.status("Sweeps ..."):
        for _ in range(rounds):
            for name, jobs in (("alone", 0), ("one job", 1), ("four jobs", 4)):
                values = ",".join(str(next(seeds)) for _ in range(max(1, jobs)))
                flags = ["-m"] if jobs else []
                command = [sys.executable, "-m", "sftpipe", "train", *flags, *words]
                started = time.perf_counter()
                done = subprocess.run(
                    [*command, f"seed={values}", f"output_dir={folder}"],
                    capture_output=True,
                    text=True,
                )
                took[name].append(time.perf_counter() - started)
                if done.returncode:
                    raise RuntimeError(done.stderr)
    median = {name: statistics.median(seconds) for name, seconds in took.items()}
    one_more = (median["four jobs"] - median["one job"]) / 3
    return {
        "a run as a command of its own, s": round(median["alone"], 2),
        "one more job of a sweep, s": round(one_more, 2),
        "alone / one more job": round(median["alone"] / one_more, 2),
    }


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "step": step,
    "data": data,
    "memory": memory,
    "generate": generation,
    "sweep": sweep,
}
