"""Whole runs of the command line that are killed: in processes that have imported everything.

A fork server imports torch, TRL and PEFT once; each run is a fork of it, so a run of a tiny model
takes two seconds instead of ten. A run is killed after a time, or right before an event: Python
tells what it is about to do to a file (https://docs.python.org/3/library/audit_events.html).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOADED = ["support.kills", "sftpipe.pipeline", "sftpipe.training.trainer", "sftpipe.runs.record"]
_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.mkdir", "os.utime")


@dataclass(frozen=True)
class Aim:
    """Right before the `number`th event of a name: `("os.rename COMPLETE", 0)`."""

    name: str
    number: int


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (-9 after a kill), what it said, and its events."""

    code: int
    said: str
    events: list[str]
    seconds: float


class _Watch:
    """An audit hook that counts what is done to the files of a run and of the cache."""

    def __init__(self, roots: Sequence[Path], aim: Aim | None, record: Path) -> None:
        self._roots, self._aim = [str(root) for root in roots], aim
        self._seen: Counter[str] = Counter()
        self._record = os.open(record, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self._main = threading.get_ident()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS or threading.get_ident() != self._main:
            return
        path = arguments[1] if event == "os.rename" else arguments[0]
        read = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if read or not isinstance(path, str | os.PathLike):
            return
        named = self._name(os.path.abspath(path))
        if named is None:
            return
        name = f"{event} {named}"
        if self._aim == Aim(name, self._seen[name]):
            os.kill(os.getpid(), signal.SIGKILL)
        self._seen[name] += 1
        os.write(self._record, f"{name}\n".encode())

    def _name(self, path: str) -> str | None:
        root = next((root for root in self._roots if path.startswith(root)), None)
        if root is None:
            return None
        neutral = re.sub(r"[0-9a-f]{16,}", "<hash>", path.removeprefix(root).lstrip("/"))
        return re.sub(r"\d+", "<n>", neutral)


def _train(words: Sequence[str], folder: Path, cache: Path | None, aim: Aim | None) -> None:
    """`sftpipe train` in a process that has just been forked."""
    os.chdir(folder)
    if cache is not None:
        os.environ["SFTPIPE_CACHE"] = str(cache)
    said = os.open("said.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    from sftpipe.cli import main

    roots = [folder / "run", *([cache] if cache else [])]
    sys.addaudithook(_Watch(roots, aim, folder / "events.txt"))
    code = main(["train", *words])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Runs:
    """Starts runs by `fork`."""

    def __init__(self) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def train(
        self,
        words: Sequence[str],
        folder: Path,
        *,
        cache: Path | None = None,
        aim: Aim | None = None,
        seconds: float | None = None,
    ) -> Ended:
        """Train in `folder`, from the beginning or further.

        Args:
            words: of the command line; the run folder is `run`.
            folder: where the command is typed.
            cache: another folder than the cache of this process.
            aim: the event before which the process is killed.
            seconds: the time after which it is killed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "events.txt").unlink(missing_ok=True)
        process: Any = self._context.Process(target=_train, args=(words, folder, cache, aim))
        started = time.monotonic()
        process.start()
        process.join(seconds if seconds is not None else 300)
        if process.is_alive():
            process.kill()
            process.join()
        took = time.monotonic() - started
        events = folder / "events.txt"
        lines = events.read_text().splitlines() if events.is_file() else []
        said = folder / "said.txt"
        return Ended(process.exitcode, said.read_text() if said.is_file() else "", lines, took)


# --- what a run has made --------------------------------------------------------------------------

_OF_A_PROCESS = (".lock", "attempts")  # one that is killed leaves them, and nobody minds
_TIMES = ("runtime", "per_second", "_s", "preparation_time", "peak_memory_bytes")


def outcome(run: Path) -> dict[str, Any]:
    """What is the same in a run and in one that was killed and resumed.

    The bytes of the weights, and the content of the small files without what a clock says.
    """

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {n: timeless(v) for n, v in value.items() if not n.endswith(_TIMES)}
        return value

    def lines(name: str) -> list[Any]:
        return [timeless(json.loads(line)) for line in (run / name).read_text().split("\n")[:-1]]

    (weights,) = run.glob("*.safetensors")
    return {
        "complete": (run / "COMPLETE").is_file(),
        "weights": weights.read_bytes(),
        "log.jsonl": lines("log.jsonl"),
        "samples.jsonl": lines("samples.jsonl"),
        "metrics.json": timeless(json.loads((run / "metrics.json").read_text())),
        "files": sorted(p.name for p in run.iterdir() if p.name not in _OF_A_PROCESS),
    }
