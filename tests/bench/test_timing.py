"""Ways that are measured in turns."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sftpipe.bench import timing


def test_a_round_goes_through_all_ways() -> None:
    went: list[str] = []

    def way(name: str) -> Callable[[], int]:
        return lambda: went.append(name) or len(went)

    assert timing.in_turns({"a": way("a"), "b": way("b")}, 2) == {"a": [1, 3], "b": [2, 4]}
    assert went == ["a", "b", "a", "b"]


def test_the_median_leaves_out_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def takes(*seconds: float) -> Callable[[], None]:
        left = iter(seconds)

        def way() -> None:
            clock[0] += next(left)

        return way

    ways = {"cold": takes(900, 800, 1, 2), "even": takes(1, 4, 4, 4)}
    assert timing.median_seconds(ways, rounds=3) == {"cold": 2, "even": 4}
