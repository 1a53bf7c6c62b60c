"""Part train: a whole training loop, sftpipe against TRL and LLaMA-Factory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sftpipe.bench.llama_factory import train as train_by_peer
from sftpipe.bench.llama_factory import version
from sftpipe.bench.task import BATCH, RANK, environment, overrides
from sftpipe.bench.timing import in_turns
from sftpipe.terminal import console

_ROWS = 192
_TURNS = 2
_MORE_ROWS = 400  # 50 steps, whose losses are compared
_CLOSE = 1e-3  # relative difference of two losses
_PEER = "llama-factory"


def train(peer_python: str | None = None) -> dict[str, Any]:
    """Seconds and peak memory of the same training by sftpipe, TRL and LLaMA-Factory.

    Each trains in a process of its own, alternately. The losses of 50 steps of sftpipe and TRL are
    compared too.

    Args:
        peer_python: the Python of an environment with LLaMA-Factory; None leaves it out.

    Raises:
        ConfigError: `peer_python` is not such a Python.
    """
    peer = peer_python and version(peer_python)
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "sftpipe": lambda: _epoch("sftpipe", _ROWS),
        "trl": lambda: _epoch("trl", _ROWS),
    }
    if peer_python:
        ways[_PEER] = lambda: _by_peer(peer_python, _ROWS)
    with console.status(f"{_TURNS} rounds of {', '.join(ways)} ..."):
        found = in_turns(ways, _TURNS)
    with console.status("50 steps of sftpipe and trl ..."):
        more = {name: _epoch(name, _MORE_ROWS) for name in ("sftpipe", "trl")}
    skipped = "skipped: --peer-python PATH names the Python of an environment that has it"
    return {
        "task": f"{_ROWS} rows in batches of {BATCH}, LoRA r={RANK}, float32, on a CPU",
        **_measured(found),
        _PEER: peer or skipped,
        **_same_work(found),
        **_close("trl", more),
    }


def _epoch(implementation: str, rows: int) -> dict[str, Any]:
    """What `sftpipe.bench.epoch` prints in a process of its own."""
    command = [sys.executable, "-m", "sftpipe.bench.epoch", implementation, "--rows", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode:
        raise RuntimeError(done.stderr)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _by_peer(python: str, rows: int) -> dict[str, Any]:
    from sftpipe.config.hydra import compose
    from sftpipe.model.weights import find_weights

    with tempfile.TemporaryDirectory() as folder:
        weights = find_weights(compose(overrides(rows, Path(folder))).model)
        return train_by_peer(python, rows, weights, Path(folder))


def _measured(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Medians of each implementation, and the ratios.

    Args:
        found: of each implementation, what it told in each round.
    """
    seconds = {name: statistics.median(one["seconds"] for one in found[name]) for name in found}
    peaks = {name: statistics.median(one["peak_bytes"] for one in found[name]) for name in found}
    table: dict[str, Any] = {}
    for name, took in seconds.items():
        table[f"{name}, s"] = round(took, 2)
        table[f"{name}, rows/s"] = round(_ROWS / took, 2)
        table[f"{name}, tokens/s"] = round(found[name][0]["tokens"] / took)
        table[f"{name}, peak MiB"] = round(peaks[name] / 2**20)
    for name in seconds:
        if name != "sftpipe":
            table[f"sftpipe / {name}"] = round(seconds[name] / seconds["sftpipe"], 2)
    table["peak memory sftpipe / trl"] = round(peaks["sftpipe"] / peaks["trl"], 2)
    return table


def _same_work(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Whether all trained on the same ids and labels, and how far their losses are apart."""
    first = {name: told[0] for name, told in found.items()}
    ours = first["sftpipe"]
    others = [name for name in first if name != "sftpipe"]
    differ = [name for name in others if first[name]["sha256"] != ours["sha256"]]
    table = {
        "tokens": f"{ours['tokens']}, {ours['trained_tokens']} of them trained",
        "same ids and labels": "NOT of " + ", ".join(differ) if differ else "yes",
    }
    for name in others:
        table |= _close(name, first)
    return table


def _close(name: str, told: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The largest relative difference between the losses of a step of sftpipe and of another."""
    pairs = list(zip(told["sftpipe"]["losses"], told[name]["losses"], strict=True))
    largest = max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs)
    verdict = "within" if largest <= _CLOSE else "NOT within"
    found = f"apart by {largest:.1e} at most, {verdict} {_CLOSE:g}"
    return {f"losses of {len(pairs)} steps, {name}": found}
