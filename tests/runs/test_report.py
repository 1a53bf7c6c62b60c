"""The picture of the losses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sftpipe.runs.folder import RunFolder
from sftpipe.runs.report import SHOWN, plot_loss, short_prompts, token_ticks

HISTORY = [
    {"step": 0, "epoch": 0, "eval_loss": 3.0},
    {"step": 5, "epoch": 0.5, "loss": 2.5, "num_tokens": 1000.0},
    {"step": 10, "epoch": 1.0, "loss": 2.0, "num_tokens": 3000.0},
    {"step": 10, "epoch": 1.0, "eval_loss": 2.1, "eval_num_tokens": 3000.0},
    {"step": 20, "epoch": 2.0, "loss": 1.5, "num_tokens": 6000.0},
]


def test_the_upper_axis_tells_the_tokens_that_were_seen_at_an_epoch() -> None:
    places, texts = token_ticks(HISTORY)
    assert places == pytest.approx([0.0, 0.5, 0.75, 1.0, 4 / 3, 5 / 3, 2.0])
    assert texts == ["0", "1k", "2k", "3k", "4k", "5k", "6k"]


def test_a_run_without_a_logged_step_has_one_tick() -> None:
    assert token_ticks(HISTORY[:1]) == ([0.0], ["0"])


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    for history in (HISTORY, HISTORY[:1], []):
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))
        plot_loss(RunFolder(tmp_path))
        assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "loss.png").unlink()


@pytest.mark.parametrize(
    ("prompts", "shown"),
    [
        (["Sort 3 1 2.", "Sort 2 1."], ["Sort 3 1 2.", "Sort 2 1."]),
        (
            [
                "Below is a task. Write a\nresponse. Swim?",
                "Below is a task. Write a\nresponse. Go\nhome?",
            ],
            ["... Swim?", "... Go home?"],
        ),
        (["Below is a task. Write a response."] * 2, ["Below is a task. Write a response."] * 2),
        (["Below is a task. Write a response."], ["Below is a task. Write a response."]),
        ([], []),
    ],
)
def test_prompts_are_shown_without_the_words_of_their_format(
    prompts: list[str], shown: list[str]
) -> None:
    assert short_prompts(prompts) == shown


def test_a_long_prompt_is_shown_by_its_last_words() -> None:
    (shown,) = short_prompts([" ".join(f"word{at}" for at in range(100))])
    assert shown.startswith("... word")
    assert shown.endswith(" word98 word99")
    assert SHOWN - 10 < len(shown) <= SHOWN
