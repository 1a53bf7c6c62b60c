"""Metrics of answers: a score of any selection of rows, so that intervals can be drawn from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# of `answer_metrics`: those of which more is better, and those of which it is neither
DECIDING = ("chrf", "bleu", "exact_match", "stop_rate")
UNDECIDED = ("length_ratio", "distinct_2")

Score = Callable[[np.ndarray], float]  # numbers of rows, (n,), with repetitions -> score of them


@dataclass(frozen=True)
class Metric:
    """One metric of one model on N rows.

    score: of the rows with the given numbers.
    rows: the value of each row by itself, (N,); what wins and losses are counted by.
    higher_is_better: True, False, or None where neither is.
    signature: what a library says of how it measured.
    """

    score: Score
    rows: np.ndarray
    higher_is_better: bool | None = True
    signature: str = ""

    def whole(self) -> float:
        """The score of all rows, each once."""
        return self.score(np.arange(len(self.rows)))


@dataclass(frozen=True)
class Answered:
    """What metrics are given: N answers of one model.

    answers, references: texts; rows without a reference are not among them.
    stopped: whether the model ended each answer itself.
    rows: the rows of the data set.
    """

    answers: Sequence[str]
    references: Sequence[str]
    stopped: Sequence[bool]
    rows: Sequence[Mapping[str, Any]]


def loss_metric(losses: Sequence[tuple[float, int]]) -> Metric:
    """Loss per trained token, of (sum of losses, trained tokens) of each row."""
    sums = np.array(losses, dtype=float).reshape(-1, 2)
    rows = sums[:, 0] / np.maximum(sums[:, 1], 1)
    return Metric(_ratio(sums), rows, higher_is_better=False)


def answer_metrics(said: Answered) -> dict[str, Metric]:
    """{name: metric} of answers with references.

    chrf: character n-gram F-score, 0 to 100 (Popovic 2015), by sacrebleu.
    bleu: 0 to 100 (Papineni et al. 2002), by sacrebleu.
    exact_match: share of answers that are the reference, white space around them aside.
    stop_rate: share of answers that the model ended itself.
    length_ratio: characters of the answers over those of the references.
    distinct_2: distinct pairs of words over all of them (Li et al. 2016).
    """
    same = [a.strip() == r.strip() for a, r in zip(said.answers, said.references, strict=True)]
    return {
        **_sacrebleu(said.answers, said.references),
        "exact_match": mean_metric(same),
        "stop_rate": mean_metric(said.stopped),
        "length_ratio": _length_ratio(said),
        "distinct_2": _distinct(said.answers, 2),
    }


def mean_metric(values: Sequence[float | bool], *, higher_is_better: bool = True) -> Metric:
    """The mean of a number for each row."""
    rows = np.array(values, dtype=float)
    return Metric(lambda numbers: float(rows[numbers].mean()), rows, higher_is_better)


def _ratio(sums: np.ndarray) -> Score:
    """The sum of the first column over that of the second one."""

    def score(numbers: np.ndarray) -> float:
        above, below = sums[numbers].sum(axis=0)
        return float(above / max(below, 1e-9))

    return score


def _sacrebleu(answers: Sequence[str], references: Sequence[str]) -> dict[str, Metric]:
    """Its corpus scores are functions of sums over rows, which are computed once for each row."""
    from sacrebleu.metrics import BLEU, CHRF

    found = {}
    for name, metric in (("chrf", CHRF()), ("bleu", BLEU(effective_order=True))):
        statistics = np.array(
            metric._extract_corpus_statistics(list(answers), [list(references)]), dtype=float
        )

        def score(numbers: np.ndarray, metric: Any = metric, sums: Any = statistics) -> float:
            return float(metric._compute_score_from_stats(sums[numbers].sum(axis=0).tolist()).score)

        rows = np.array([score(np.array([at])) for at in range(len(answers))])
        found[name] = Metric(score, rows, signature=str(metric.get_signature()))
    return found


def _length_ratio(said: Answered) -> Metric:
    pairs = zip(said.answers, said.references, strict=True)
    sums = np.array([[len(a), max(len(r), 1)] for a, r in pairs], dtype=float).reshape(-1, 2)
    return Metric(_ratio(sums), sums[:, 0] / sums[:, 1], higher_is_better=None)


def _distinct(answers: Sequence[str], n: int) -> Metric:
    grams = []
    for answer in answers:
        words = answer.split()
        grams.append(list(zip(*(words[at:] for at in range(n)), strict=False)))

    def score(numbers: np.ndarray) -> float:
        counted: Counter[Any] = Counter()
        for number in numbers:
            counted.update(grams[number])
        return len(counted) / max(1, sum(counted.values()))

    rows = np.array([score(np.array([at])) for at in range(len(answers))])
    return Metric(score, rows, higher_is_better=None)
