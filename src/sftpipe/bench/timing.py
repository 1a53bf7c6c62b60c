"""Several ways to do the same, measured in turns, so that a slow minute falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

T = TypeVar("T")

ROUNDS = 5


def in_turns(ways: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each way gave, round by round; a round goes through all of them."""
    found: dict[str, list[T]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
    return found


def median_seconds(
    ways: Mapping[str, Callable[[], object]], rounds: int = ROUNDS
) -> dict[str, float]:
    """The median of each way's seconds; one round more, the first, warms up and does not count."""

    def timed(way: Callable[[], object]) -> float:
        start = time.perf_counter()
        way()
        return time.perf_counter() - start

    found = in_turns({name: partial(timed, way) for name, way in ways.items()}, rounds + 1)
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}
