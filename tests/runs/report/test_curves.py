"""The curves of a log."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftpipe.runs.report.curves import AXES, Curve, read_curves, thin
from support.run_folders import LOG


def test_losses_and_what_else_was_logged_are_curves_over_three_axes() -> None:
    curves = read_curves(LOG)
    training, validation = curves.losses
    assert (training.name, training.alone) == ("training", False)
    assert (validation.name, validation.alone) == ("validation", True)
    assert training.values.tolist() == [2.5, 1.5]
    assert validation.values.tolist() == [3.0, 1.25]
    assert {axis: training.places[axis].tolist() for axis in AXES} == {
        "step": [5, 10],
        "epoch": [0.5, 1.0],
        "tokens": [1000, 3000],
    }
    assert validation.places["tokens"].tolist() == [0, 3000]
    assert {name: curve.values.tolist() for name, curve in curves.others.items()} == {
        "learning rate": [0.001, 0.0005],
        "gradient norm": [1.5, 0.5],
        "tokens a second": [160, 170],
        "peak memory, GiB": [1, 2],
    }


def test_tokens_between_two_entries_count_evenly() -> None:
    log = [*LOG[1:3], {"eval_loss": 1.0, "step": 7.5}]
    assert read_curves(log).losses[1].places["tokens"].tolist() == [2000]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "2.5", True, [1]])
def test_a_value_that_is_no_number_is_a_gap(value: object) -> None:
    log = [*LOG[1:3], {"loss": value, "step": 15, "epoch": 1.5, "num_tokens": value}]
    (training,) = read_curves(log).losses
    assert np.isnan(training.values).tolist() == [False, False, True]
    assert training.places["step"].tolist() == [5, 10, 15]


@pytest.mark.parametrize("log", [[], [{}], [{"step": "3", "loss": 1.0}], [{"step": 1, "x": 2}]])
def test_a_log_without_losses_has_no_curves(log: list[dict[str, object]]) -> None:
    assert read_curves(log).losses == []


def test_named_validation_sets_have_curves_of_their_own() -> None:
    log = [{"eval_news_loss": 3.0, "step": 0}, {"eval_code_loss": 2.0, "step": 0}]
    assert [one.name for one in read_curves(log).losses] == ["validation news", "validation code"]


def curve(values: list[float]) -> Curve:
    places = np.arange(len(values), dtype=float)
    return Curve("a", dict.fromkeys(AXES, places), np.array(values))


def test_a_short_curve_is_drawn_as_it_is() -> None:
    groups = thin(curve([3.0, math.nan, 1.0]), "step", 3)
    assert [(one.place, one.mean, one.low, one.high) for one in groups[::2]] == [
        (0, 3, 3, 3),
        (2, 1, 1, 1),
    ]
    assert math.isnan(groups[1].mean)


@given(st.lists(st.one_of(st.floats(-10, 10), st.just(math.nan)), max_size=300), st.integers(1, 50))
def test_groups_hold_every_entry_between_their_ends(values: list[float], most: int) -> None:
    groups = thin(curve(values), "step", most)
    assert len(groups) <= most
    known = [value for value in values if value == value]
    assert bool(known) == any(math.isfinite(one.mean) for one in groups)
    if known:
        finite = [one for one in groups if math.isfinite(one.mean)]
        assert min(one.low for one in finite) == min(known)
        assert max(one.high for one in finite) == max(known)
        assert all(one.low - 1e-9 <= one.mean <= one.high + 1e-9 for one in finite)
