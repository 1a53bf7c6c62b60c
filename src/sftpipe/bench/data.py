"""Parts data and memory: rows a second against TRL's preparation, and the peak of more rows."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sftpipe.bench.timing import median_seconds
from sftpipe.config.schema import TrainConfig
from sftpipe.data.labels import IGNORED
from sftpipe.terminal import console, quiet_libraries

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

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
        end = tokenizer("\n", add_special_tokens=False).input_ids
        source = _conversations(file)
        made: dict[str, Any] = {}

        def by_trl() -> None:
            made["trl"] = _prepared_by_trl(source, tokenizer)

        def miss(processes: int) -> None:
            made["cache"] = tempfile.mkdtemp(dir=folder)
            encode(processes)

        def encode(processes: int) -> None:
            with patch.dict(os.environ, {"SFTPIPE_CACHE": made["cache"]}):
                made["sftpipe"] = _encoded(cfg[processes], tokenizer)

        ways = {
            "trl": by_trl,
            "miss, 2 processes": lambda: miss(2),
            "miss": lambda: miss(1),
            "hit": lambda: encode(1),
        }
        with console.status(f"{rows} rows, {_DATA_ROUNDS} rounds ..."):
            median = median_seconds(ways, _DATA_ROUNDS)
            packed = pack(made["sftpipe"], "bfd", _PACKED_LENGTH, "train")
            same, tokens = _compared(made["sftpipe"], made["trl"], end)
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
