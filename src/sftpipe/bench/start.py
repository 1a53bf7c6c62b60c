"""Part start: how long short commands take, as whole processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sftpipe.bench.timing import median_seconds
from sftpipe.terminal import console

_ROUNDS = 3
_SFTPIPE = [sys.executable, "-m", "sftpipe"]
_THEIRS = "trl sft --help"
_COMMANDS = {
    "sftpipe --help": [*_SFTPIPE, "--help"],
    "sftpipe config recipe=yoda": [*_SFTPIPE, "config", "recipe=yoda"],
    "sftpipe check recipe=yoda": [*_SFTPIPE, "check", "recipe=yoda"],
    _THEIRS: [sys.executable, "-c", "import trl.cli; trl.cli.main()", "sft", "--help"],
}


def start() -> dict[str, Any]:
    """Seconds of `sftpipe --help`, `config` and `check` against `trl sft --help`.

    Each is a process of its own; what the first round writes into the caches, the others find.
    """
    with console.status(f"{_ROUNDS} rounds of {len(_COMMANDS)} commands ..."):
        ways = {name: partial(_run, command) for name, command in _COMMANDS.items()}
        return _against_theirs(median_seconds(ways, _ROUNDS))


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)


def _against_theirs(median: Mapping[str, float]) -> dict[str, float]:
    """Seconds of every command, then how many times those of `trl` are of each of ours."""
    ours = {name: seconds for name, seconds in median.items() if name != _THEIRS}
    return {
        **{f"{name}, s": round(seconds, 2) for name, seconds in median.items()},
        **{
            f"{_THEIRS} / {name}": round(median[_THEIRS] / seconds, 2)
            for name, seconds in ours.items()
        },
    }
