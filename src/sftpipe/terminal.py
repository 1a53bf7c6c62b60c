"""One console for progress and remarks; third-party noise and telemetry switched off.

Remarks go to stderr, so that stdout holds results alone.
"""

from __future__ import annotations

import logging
import os
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True, highlight=False, soft_wrap=True)

_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def printable(text: str) -> str:
    """A model's text for a terminal: what would steer it is shown as an escape.

    Control characters but line breaks and tabs, halves of surrogate pairs, and the marks that turn
    the direction of writing; joiners, which emoji need, stay.
    """
    return "".join(
        f"\\x{ord(character):02x}" if _steers(character) else character for character in text
    )


def _steers(character: str) -> bool:
    if character in "\n\t":
        return False
    turns = "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    return turns or unicodedata.category(character) in ("Cc", "Cs")


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """A bar on a terminal, elsewhere a line every ten seconds; gives `advance(steps, note)`.

    Args:
        what: is done, such as "Answering".
        total: steps in all.
        done: of them, before this start.
    """
    if not console.is_terminal:
        yield _Lines(what, total, done).advance
        return
    with Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=total, completed=done, note="")
        yield lambda steps, note: bar.update(task, advance=steps, note=note)


class _Lines:
    """Progress where nobody watches: a line every ten seconds, and one at the end."""

    _EVERY_S = 10.0

    def __init__(self, what: str, total: int, done: int) -> None:
        self._what, self._total, self._done = what, total, done
        self._last = time.monotonic()

    def advance(self, steps: int, note: str) -> None:
        """Count further steps."""
        self._done += steps
        now = time.monotonic()
        if self._done >= self._total or now - self._last >= self._EVERY_S:
            self._last = now
            console.print(f"{self._what} {self._done}/{self._total}  {note}".rstrip())


@contextmanager
def quiet() -> Iterator[None]:
    """Run a block without telemetry and without needless messages of the libraries.

    What a user set in the environment stays.
    """
    missing = [name for name in _ENVIRONMENT if name not in os.environ]
    os.environ.update({name: _ENVIRONMENT[name] for name in missing})
    # bitsandbytes warns at import of an optional kernel that nobody asked for
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # known and harmless: what torch, bitsandbytes and peft say of their own internals
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
        for name in missing:
            os.environ.pop(name, None)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Lower the log levels and hide the bars of transformers and datasets (imports both)."""
    import datasets
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    dataset_bars_off = datasets.are_progress_bars_disabled()
    dataset_verbosity = datasets.logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what fails there is raised here
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        datasets.logging.set_verbosity(dataset_verbosity)
        if bars:
            hf_logging.enable_progress_bar()
        if not dataset_bars_off:
            datasets.enable_progress_bars()
