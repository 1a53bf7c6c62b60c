"""The picture of the losses in the model card."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from sftpipe.runs.folder import RunFolder
from sftpipe.runs.report.curves import read_curves
from sftpipe.runs.report.loss_png import plot_loss, token_ticks

HISTORY = [
    {"step": 0, "epoch": 0, "eval_loss": 3.0},
    {"step": 5, "epoch": 0.5, "loss": 2.5, "num_tokens": 1000.0},
    {"step": 10, "epoch": 1.0, "loss": 2.0, "num_tokens": 3000.0},
    {"step": 10, "epoch": 1.0, "eval_loss": 2.125, "eval_num_tokens": 3000.0},
    {"step": 1200, "epoch": 2.0, "loss": 1.5, "num_tokens": 6000.0},
]
LATER = {"step": 2000, "epoch": 3.0, "eval_loss": 1.875, "eval_num_tokens": 9000.0}


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draw a log; returns the figure that was written."""
    figures: list[Figure] = []
    save = Figure.savefig

    def kept(figure: Figure, *words: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *words, **options)

    monkeypatch.setattr(Figure, "savefig", kept)

    def draw(history: Sequence[dict[str, Any]]) -> Figure:
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))
        plot_loss(RunFolder(tmp_path))
        return figures[-1]

    return draw


def test_the_picture_shows_the_losses_of_the_log_over_epochs(drawn: Any) -> None:
    (axes,) = drawn(HISTORY).axes
    lines = {str(line.get_label()): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {
        "training": [[0.5, 2.5], [1.0, 2.0], [2.0, 1.5]],
        "validation": [[0.0, 3.0], [1.0, 2.125]],
    }
    assert [(text.get_text(), text.xy) for text in axes.texts] == [
        ("3.00", (0, 3.0)),
        ("2.12", (1.0, 2.125)),
    ]
    assert axes.get_xlabel() == "epoch (1,200 optimizer steps)"
    assert axes.get_ylabel() == "loss per trained token"
    assert axes.get_ylim()[0] == 0
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "validation"]

    (top,) = axes.child_axes
    assert top.get_xlabel() == "training tokens seen"
    assert top.get_xticks().tolist() == pytest.approx([0, 0.5, 0.75, 1, 4 / 3, 5 / 3, 2])
    assert [label.get_text() for label in top.get_xticklabels()] == token_ticks(
        read_curves(HISTORY).losses
    )[1]


def test_each_named_validation_set_has_its_curve(drawn: Any) -> None:
    both = [{"eval_news_loss": 3.0}, {"eval_code_loss": 2.0}, {"eval_news_loss": 1.0}]
    (axes,) = drawn([{"step": n, "epoch": n, **one} for n, one in enumerate(both)]).axes
    lines = {str(line.get_label()): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {
        "validation news": [[0, 3.0], [2, 1.0]],
        "validation code": [[1, 2.0]],
    }
    assert len({line.get_color() for line in axes.lines}) == 2


def test_the_first_and_the_last_validation_loss_are_written_beside_their_points(drawn: Any) -> None:
    (axes,) = drawn([*HISTORY, LATER]).axes
    assert [(text.get_text(), text.xy) for text in axes.texts] == [
        ("3.00", (0, 3.0)),
        ("1.88", (3.0, 1.875)),
    ]
    training, validation = axes.lines
    assert validation.get_xydata().tolist() == [[0, 3.0], [1.0, 2.125], [3.0, 1.875]]
    # between two validations nothing is known, and a line would say that it is
    assert (training.get_linestyle(), validation.get_linestyle()) == ("-", "None")


@pytest.mark.parametrize(
    ("history", "labels", "steps"),
    [(HISTORY[:1], ["validation"], "0"), (HISTORY[1:3], ["training"], "10"), ([], [], "0")],
)
def test_a_log_without_one_kind_of_loss_is_drawn_without_it(
    history: list[dict[str, Any]], labels: list[str], steps: str, drawn: Any, tmp_path: Path
) -> None:
    (axes,) = drawn(history).axes
    assert [line.get_label() for line in axes.lines] == labels
    assert axes.get_xlabel() == f"epoch ({steps} optimizer steps)"
    assert (axes.get_legend() is not None) == bool(labels)

    content = (tmp_path / "loss.png").read_bytes()
    assert struct.unpack(">8x8xII", content[:24]) == (960, 540)  # 8 by 4.5 inches at 120 dpi
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl", "loss.png"}


def test_the_upper_axis_tells_the_tokens_that_were_seen_at_an_epoch() -> None:
    places, texts = token_ticks(read_curves(HISTORY).losses)
    assert places == pytest.approx([0.0, 0.5, 0.75, 1.0, 4 / 3, 5 / 3, 2.0])
    assert texts == ["0", "1k", "2k", "3k", "4k", "5k", "6k"]

    places, _ = token_ticks(
        read_curves(HISTORY[-1:]).losses
    )  # the first entry of a log counts from nothing
    assert places == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])


def test_a_run_without_a_logged_step_has_one_tick() -> None:
    assert token_ticks(read_curves(HISTORY[:1]).losses) == ([0.0], ["0"])
