"""Is one model better than another on the same rows, or is it chance?

A paired bootstrap (Koehn 2004, "Statistical significance tests for machine translation
evaluation"): rows are drawn with replacement, the same ones for both models, and a metric is
computed of each draw. An interval that leaves out zero is a difference beyond chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sftpipe.evaluation.metrics import Metric

DRAWS = 1000
LEVEL = 0.95  # of the interval
FEWEST_ROWS = 10  # of fewer nothing is said

Outcome = Literal["better", "worse", "not distinguishable"]


@dataclass(frozen=True)
class Difference:
    """Two models on one metric.

    before, after: the scores of all rows.
    low, high: 95 % interval of `after - before`.
    """

    before: float
    after: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """`after - before`."""
        return self.after - self.before


def compare(before: Metric, after: Metric, seed: int) -> Difference:
    """The difference of two models on the same rows, and its interval."""
    count = len(before.rows)
    draws = np.random.default_rng(seed).integers(0, count, size=(DRAWS, count))
    differences = [after.score(numbers) - before.score(numbers) for numbers in draws]
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(before.whole(), after.whole(), float(low), float(high))


def mean_interval(values: Sequence[float], seed: int) -> list[float] | None:
    """95 % interval of the mean of a number for each row, by bootstrap; None without rows."""
    if not values:
        return None
    rows = np.array(values, dtype=float)
    draws = np.random.default_rng(seed).integers(0, len(rows), size=(DRAWS, len(rows)))
    low, high = np.quantile(rows[draws].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def judge_difference(found: Difference, rows: int, *, higher_is_better: bool) -> Outcome:
    """What an interval says.

    Fewer than ten rows, and an interval that holds zero, say nothing.
    """
    if rows < FEWEST_ROWS or found.low <= 0 <= found.high:
        return "not distinguishable"
    return "better" if (found.low > 0) == higher_is_better else "worse"


def order_rows(
    before: Metric, after: Metric, *, higher_is_better: bool
) -> tuple[int, int, int, Sequence[int]]:
    """(rows won, rows lost, ties, numbers of the rows from the worst to the best)."""
    gain = (after.rows - before.rows) * (1 if higher_is_better else -1)
    order = np.argsort(gain, kind="stable")
    return int((gain > 0).sum()), int((gain < 0).sum()), int((gain == 0).sum()), order.tolist()
