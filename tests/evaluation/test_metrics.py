"""Metrics of answers, on all rows and on any selection of them, and whether two models differ."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from sftpipe.evaluation.compare import (
    DRAWS,
    Difference,
    compare,
    judge_difference,
    order_rows,
)
from sftpipe.evaluation.metrics import Answered, answer_metrics, loss_metric, mean_metric

ANSWERS = ["The cat sits.", "No", "a b a b a b", "", "오늘은 비가 온다."]
REFERENCES = ["The cat sat.", "No", "a b c", "Something.", "오늘은 눈이 온다."]
STOPPED = [True, True, False, False, True]


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    return answer_metrics(Answered(ANSWERS, REFERENCES, STOPPED, [{}] * 5))


SELECTIONS = st.lists(st.integers(0, 4), min_size=1, max_size=9)


@given(numbers=SELECTIONS)
def test_corpus_scores_of_any_rows_are_sacrebleus(metrics: Any, numbers: list[int]) -> None:
    answers, references = ([texts[at] for at in numbers] for texts in (ANSWERS, REFERENCES))
    chrf = CHRF().corpus_score(answers, [references]).score
    bleu = BLEU(effective_order=True).corpus_score(answers, [references]).score
    assert metrics["chrf"].score(np.array(numbers)) == pytest.approx(chrf, abs=1e-9)
    assert metrics["bleu"].score(np.array(numbers)) == pytest.approx(bleu, abs=1e-9)


def test_the_scores_of_all_rows(metrics: Any) -> None:
    assert metrics["exact_match"].whole() == 1 / 5
    assert metrics["stop_rate"].whole() == 3 / 5
    lengths = [sum(map(len, texts)) for texts in (ANSWERS, REFERENCES)]
    assert metrics["length_ratio"].whole() == lengths[0] / lengths[1]
    # pairs: (The cat) (cat sits.) | - | 5 of which 2 differ | - | 2
    assert metrics["distinct_2"].whole() == (2 + 2 + 2) / (2 + 5 + 2)
    assert metrics["exact_match"].rows.tolist() == [0, 1, 0, 0, 0]
    assert "nrefs:1" in metrics["chrf"].signature
    assert {name for name, one in metrics.items() if one.higher_is_better is None} == {
        "length_ratio",
        "distinct_2",
    }


def test_a_loss_is_a_mean_over_tokens_and_not_over_rows() -> None:
    metric = loss_metric([(2.0, 1), (3.0, 3), (0.0, 0)])
    assert metric.whole() == 5 / 4
    assert metric.rows.tolist() == [2.0, 1.0, 0.0]
    assert metric.score(np.array([1, 1, 0])) == 8 / 7
    assert metric.higher_is_better is False


# --- the comparison -------------------------------------------------------------------------------


def test_the_interval_is_that_of_a_paired_bootstrap() -> None:
    generator = np.random.default_rng(1)
    before, gain = generator.normal(size=50), generator.normal(0.3, 1.0, size=50)
    found = compare(mean_metric(list(before)), mean_metric(list(before + gain)), seed=3)
    assert found.before == pytest.approx(before.mean())
    assert found.difference == pytest.approx(gain.mean())
    # of the mean of the gains of the same rows; the normal interval is near
    half = 1.96 * gain.std() / math.sqrt(50)
    assert found.low == pytest.approx(gain.mean() - half, abs=0.06)
    assert found.high == pytest.approx(gain.mean() + half, abs=0.06)
    draws = np.random.default_rng(3).integers(0, 50, size=(DRAWS, 50))
    means = gain[draws].mean(axis=1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert compare(mean_metric(list(before)), mean_metric(list(before + gain)), seed=3) == found


@pytest.mark.parametrize(
    ("low", "high", "rows", "higher", "lower"),
    [
        (0.1, 0.5, 10, "better", "worse"),
        (-0.5, -0.1, 10, "worse", "better"),
        (-0.1, 0.5, 1000, "not distinguishable", "not distinguishable"),
        (0.0, 0.5, 1000, "not distinguishable", "not distinguishable"),
        (0.0, 0.0, 1000, "not distinguishable", "not distinguishable"),
        (0.1, 0.5, 9, "not distinguishable", "not distinguishable"),
    ],
)
def test_an_interval_without_zero_on_ten_rows_decides(
    low: float, high: float, rows: int, higher: str, lower: str
) -> None:
    found = Difference(0.0, (low + high) / 2, low, high)
    assert judge_difference(found, rows, higher_is_better=True) == higher
    assert judge_difference(found, rows, higher_is_better=False) == lower


def test_rows_are_won_and_lost_and_the_worst_comes_first() -> None:
    before, after = mean_metric([1.0, 2.0, 3.0, 4.0]), mean_metric([1.0, 5.0, 1.0, 4.5])
    assert order_rows(before, after, higher_is_better=True) == (2, 1, 1, [2, 0, 3, 1])
    assert order_rows(before, after, higher_is_better=False) == (1, 2, 1, [1, 3, 0, 2])
