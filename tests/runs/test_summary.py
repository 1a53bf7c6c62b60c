"""The figures that matter, and answers side by side."""

from __future__ import annotations

from typing import Any

import pytest

from sftpipe.runs.summary import (
    SHOWN,
    answer_lines,
    answers_side_by_side,
    metric_rows,
    short_prompts,
)
from support.summaries import METRICS, SAMPLES, TRAIN

OF_TRAINING = [
    ("training loss", "2.875 over 40 steps"),
    ("training time", "13 s, 1234 tokens/s"),
    ("peak memory", "1.5 GiB"),
]


@pytest.mark.parametrize(
    ("metrics", "rows"),
    [
        (
            METRICS,
            [
                ("validation loss", "3.250 -> 2.500"),
                ("validation perplexity", "25.79 -> 12.18"),
                ("test loss", "2.625"),
                *OF_TRAINING,
            ],
        ),
        ({"train": TRAIN}, OF_TRAINING),
        ({"train": TRAIN, "validation": {"after": {"loss": 1.0}}}, OF_TRAINING),
    ],
)
def test_the_figures_that_matter_have_names_and_units(
    metrics: dict[str, Any], rows: list[tuple[str, str]]
) -> None:
    assert metric_rows(metrics) == rows


def test_answers_before_and_after_stand_beside_their_prompt() -> None:
    assert answers_side_by_side(SAMPLES) == [
        ("Sort 3 1.", "a | b", "1\n3"),
        ("Who?", "Nobody.", "x" * 300),
    ]


def test_after_an_epoch_the_first_answer_is_shown() -> None:
    assert answer_lines("epoch 3", SAMPLES[4:]) == "epoch 3   Sort 3 1.\n     ->   1 3"


@pytest.mark.parametrize(
    ("prompts", "shown"),
    [
        (["Sort 3 1 2.", "Sort 2 1."], ["Sort 3 1 2.", "Sort 2 1."]),
        # four words that all share may be the question; more are their format
        (["a b c d e", "a b c d f"], ["a b c d e", "a b c d f"]),
        (["a b c d e f", "a b c d e g"], ["... f", "... g"]),
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
    words = [f"word{at:02}" for at in range(100)]  # 7 characters each with its space
    assert short_prompts([" ".join(words)]) == ["... " + " ".join(words[-28:])]
    assert 4 + 28 * 7 - 1 <= SHOWN < 4 + 29 * 7 - 1


def test_each_named_validation_set_has_its_lines() -> None:
    """Also sets that are called as the phases are."""
    phases = {phase: {"loss": 2.0, "perplexity": 7.5} for phase in ("before", "after")}
    train = {"loss": 1, "steps": 2, "runtime_s": 3, "tokens_per_s": 4, "peak_memory_bytes": 5}
    metrics = {"train": train, "validation": {"before": phases, "code": phases}}
    assert metric_rows(metrics)[:4] == [
        ("validation before loss", "2.000 -> 2.000"),
        ("validation before perplexity", "7.50 -> 7.50"),
        ("validation code loss", "2.000 -> 2.000"),
        ("validation code perplexity", "7.50 -> 7.50"),
    ]
