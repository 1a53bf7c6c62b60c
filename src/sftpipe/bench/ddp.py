"""Part ddp: two processes of one thread each against one process of two, on the same batches."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftpipe.bench.task import BATCH, RANK, environment, overrides
from sftpipe.bench.timing import in_turns
from sftpipe.terminal import console

_ROWS = 96
_TURNS = 2
_PROCESSES = 2


def ddp() -> dict[str, Any]:
    """Tokens a second in two processes with one thread each, against one process with two."""
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as folder:

        def train(threads: int, *words: str) -> dict[str, float]:
            run = Path(folder) / str(next(numbers))
            run.mkdir()
            command = [*overrides(_ROWS, run), *words, f"run={run / 'run'}"]
            done = subprocess.run(
                [sys.executable, "-m", "sftpipe", "train", *command],
                capture_output=True,
                text=True,
                env={**environment(), "OMP_NUM_THREADS": str(threads)},
            )
            if done.returncode:
                raise RuntimeError(done.stderr)
            told: dict[str, float] = json.loads((run / "run" / "metrics.json").read_text())["train"]
            return told

        each = f"sft.per_device_train_batch_size={BATCH // _PROCESSES}"
        two = ("distributed=ddp", f"distributed.num_processes={_PROCESSES}", each)
        ways = {"one process": lambda: train(_PROCESSES), "two processes": lambda: train(1, *two)}
        with console.status(f"{_TURNS} rounds of {' and '.join(ways)} ..."):
            return _compared(in_turns(ways, _TURNS))


def _compared(found: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Medians of both ways, and their ratio.

    Args:
        found: of each way, the numbers of its training in each round.
    """
    rates = {n: statistics.median(one["tokens_per_s"] for one in told) for n, told in found.items()}
    losses = {name: told[0]["loss"] for name, told in found.items()}
    peaks = {name: told[0]["peak_memory_bytes"] / 2**20 for name, told in found.items()}
    rows = f"{_ROWS} rows in batches of {BATCH}, LoRA r={RANK}, float32"
    return {
        "task": f"{rows}, on a CPU of {os.cpu_count()} cores",
        **{f"{name}, tokens/s": round(rate) for name, rate in rates.items()},
        **{f"{name}, peak MiB each": round(peak) for name, peak in peaks.items()},
        "two processes / one": round(rates["two processes"] / rates["one process"], 2),
        "losses apart by": f"{abs(losses['two processes'] - losses['one process']):.1e}",
    }
