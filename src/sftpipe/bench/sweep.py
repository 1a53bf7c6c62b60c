"""Part sweep: one more job of a sweep against a command of its own."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from sftpipe.bench.timing import median_seconds
from sftpipe.terminal import console


def sweep(rounds: int = 3) -> dict[str, Any]:
    """Seconds of one more job of a sweep, against the same job as a command of its own.

    A model of two layers, six steps: what is measured is what every job costs, whatever it trains.
    """
    words = [
        *("dataset=yoda", "format=alpaca", "model=tiny_random", "tokenizer=bpe"),
        *("lora=none", "evaluation.sample_prompts=[]"),
        *("sft.max_steps=6", "dataset.limit=48", "tokenizer.vocab_size=512"),
    ]
    seeds = itertools.count(1)  # each job is another one: finished jobs are not trained again
    with tempfile.TemporaryDirectory() as folder:

        def train(jobs: int) -> None:
            """So many jobs of one sweep; 0 is a run without a sweep."""
            values = ",".join(str(next(seeds)) for _ in range(max(1, jobs)))
            flags = ["-m"] if jobs else []
            command = [sys.executable, "-m", "sftpipe", "train", *flags, *words]
            done = subprocess.run(
                [*command, f"seed={values}", f"output_dir={folder}"],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise RuntimeError(done.stderr)

        ways = {
            "alone": lambda: train(0),
            "one job": lambda: train(1),
            "four jobs": lambda: train(4),
        }
        with console.status("Sweeps ..."):
            return _one_more(median_seconds(ways, rounds))


def _one_more(median: Mapping[str, float]) -> dict[str, float]:
    """What a job costs that joins another one of its sweep, from the seconds of the three ways."""
    one_more = (median["four jobs"] - median["one job"]) / 3
    return {
        "a run as a command of its own, s": round(median["alone"], 2),
        "one more job of a sweep, s": round(one_more, 2),
        "alone / one more job": round(median["alone"] / one_more, 2),
    }
