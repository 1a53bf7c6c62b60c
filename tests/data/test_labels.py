"""Labels from spans."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sftpipe.data.labels import IGNORED, labels_from_span

IDS = st.lists(st.integers(0, 200_000), max_size=50)
POSITIONS = st.integers(0, 60)


def test_the_drawn_example_holds() -> None:
    assert labels_from_span([5, 6, 7, 8, 9], 1, 4) == [-100, 6, 7, 8, -100]


@given(ids=IDS, start=POSITIONS, stop=POSITIONS)
def test_labels_are_the_ids_inside_the_span_and_ignored_elsewhere(ids: list[int], start: int, stop: int) -> None:
    labels = labels_from_span(ids, start, stop)
    assert len(labels) == len(ids)
    for position, (token, label) in enumerate(zip(ids, labels, strict=True)):
        assert label == (token if start <= position < stop else IGNORED)


@given(ids=IDS)
def test_a_span_over_the_whole_row_trains_everything(ids: list[int]) -> None:
    assert labels_from_span(ids, 0, len(ids)) == ids


@given(ids=IDS, start=POSITIONS)
def test_an_empty_span_trains_nothing(ids: list[int], start: int) -> None:
    assert labels_from_span(ids, start, start) == [IGNORED] * len(ids)


def test_the_input_is_not_changed() -> None:
    ids = [5, 6, 7]
    labels_from_span(ids, 0, 1)
    assert ids == [5, 6, 7]
