"""Pictures of a report: where things are in them, and in what colours."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from sftpipe.runs.report.curves import read_curves
from sftpipe.runs.report.draw import Picture, _short, chart, gains, histogram, packed_rows
from support.run_folders import LOG

NAMES = {"text", "quiet", "line", "good", "bad", *(f"series-{n}" for n in range(1, 9))}


def check_picture(picture: Picture) -> ElementTree.Element:
    """It is an element of a page that has the page's colours and its axes inside."""
    root = ElementTree.fromstring(picture.svg)
    assert root.tag == "svg"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    left, top, right, bottom = picture.box
    assert 0 < left < right < width
    assert 0 < top < bottom < height
    colors = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", picture.svg))
    assert colors <= {"none", *(f"var(--{name})" for name in NAMES)}
    for word in ("clip-path", "font-family", "<style", "<metadata", "xlink", "http:", "<script"):
        assert word not in picture.svg
    assert not {element.attrib.get("id") for element in root.iter("g")} - {None}
    return root


def test_a_chart_has_a_wide_and_a_narrow_picture_and_the_same_points_for_both() -> None:
    one = chart(read_curves(LOG).losses, "step")
    assert one.axis == "step"
    assert [name for name, picture in one.pictures.items() if check_picture(picture)] == [
        "wide",
        "narrow",
    ]
    assert [point["text"] for point in one.points] == [
        "step 0 · validation 3",
        "step 5 · training 2.5",
        "step 10 · training 1.5 · validation 1.25",
    ]
    assert [[number for _, number in point["dots"]] for point in one.points] == [[2], [1], [1, 2]]


def test_points_are_where_the_picture_has_them() -> None:
    losses = read_curves(LOG).losses
    one = chart(losses, "step")
    picture = one.pictures["wide"]
    left, top, right, bottom = picture.box
    drawn = re.findall(r'<use href="#\w+" x="([\d.]+)" y="([\d.]+)"', picture.svg)
    dots = {(float(x), float(y)) for x, y in drawn}
    told = [
        (left + point["x"] * (right - left), top + share * (bottom - top))
        for point in one.points
        for share, _ in point["dots"]
    ]
    assert len(told) == 4
    for place in told:
        assert any(place == pytest.approx(dot, abs=0.2) for dot in dots), place


@pytest.mark.parametrize(
    ("axis", "text"),
    [("step", "step 5"), ("epoch", "epoch 0.50"), ("tokens", "1,000 tokens")],
)
def test_a_point_says_where_it_is(axis: str, text: str) -> None:
    (training, _) = read_curves(LOG).losses
    assert chart([training], axis).points[0]["text"] == f"{text} · training 2.5"


def test_the_line_of_a_validation_is_not_drawn() -> None:
    _, validation = read_curves(LOG).losses
    picture = chart([validation], "step").pictures["wide"]
    lines = re.findall(r'<path d="([^"]+)" style="[^"]*stroke: var\(--series-1\)', picture.svg)
    assert all(line.startswith("M 0 ") for line in lines)  # the mark of a point, not a line
    assert picture.svg.count("<use") == 2


def test_values_begin_at_zero_and_what_is_small_has_one_picture() -> None:
    curves = read_curves(LOG)
    heights = [point["dots"][0][0] for point in chart(curves.losses[:1], "step").points]
    assert heights == pytest.approx([1 - 2.5 / 2.55, 1 - 1.5 / 2.55], abs=0.01)
    assert list(chart(curves.losses, "step", small=True).pictures) == ["narrow"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.001, "0.001"), (0.00025, "2.50e-4"), (1234.5, "1,234"), (0.0, "0")]
)
def test_the_numbers_of_an_axis_are_short(value: float, text: str) -> None:
    assert _short(value) == text


def test_many_entries_are_groups_with_a_band_and_a_note() -> None:
    log = [{"loss": 1.0 + at % 2, "step": at, "epoch": at / 100} for at in range(1, 1001)]
    one = chart(read_curves(log).losses, "step")
    assert len(one.points) == 250
    assert one.points[0]["text"] == "step 2 · training 1.5 (1 to 2)"
    assert one.note == (
        "training: 1,000 entries in 250 groups: their mean, and from the lowest to the highest."
    )


def test_an_entry_that_is_no_number_is_a_cross_and_is_said() -> None:
    log = [*LOG[1:3], {"loss": math.nan, "step": 15, "epoch": 1.5}]
    one = chart(read_curves(log).losses, "step")
    assert one.points[2] == {
        "x": one.points[2]["x"],
        "text": "step 15 · training no number",
        "dots": [],
    }
    assert one.note == "training: 1 entry is no number (crosses mark where none is)."
    assert "var(--bad)" in one.pictures["wide"].svg
    assert "var(--bad)" not in chart(read_curves(LOG).losses, "step").pictures["wide"].svg


@pytest.mark.parametrize("value", [2.5, math.nan])
def test_a_log_of_one_line_is_drawn(value: float) -> None:
    one = chart(read_curves([{"loss": value, "step": 1, "epoch": 0.1}]).losses, "step")
    check_picture(one.pictures["wide"])
    assert len(one.points) == 1
    assert ("var(--bad)" in one.pictures["wide"].svg) == math.isnan(value)


def bars(picture: Picture) -> list[str]:
    return re.findall(r'<path d="M [^"]+ z" style="[^"]*fill: var\(--([\w-]+)\)', picture.svg)


def test_bars_are_drawn_for_lengths_gains_and_packed_rows() -> None:
    (lengths,) = histogram([[1, 10, 3], [11, 20, 5]], "tokens").values()
    assert bars(lengths) == ["series-1"] * 2
    for picture in gains([-1.0, 2.0, 0.0, 3.0], "rows").values():
        check_picture(picture)
        assert bars(picture) == ["good", "good", "bad", "bad"]
    for picture in packed_rows([[30, 20, 10], [62]], 64).values():
        check_picture(picture)
        assert bars(picture) == ["series-1", "series-2", "series-1", "series-1"]


def test_a_page_is_the_same_when_it_is_made_again() -> None:
    losses = read_curves(LOG).losses
    assert chart(losses, "step") == chart(losses, "step")
