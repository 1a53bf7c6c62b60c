"""What a judge is asked, and what its replies say."""

from __future__ import annotations

from typing import Any

import pytest

from sftpipe.config.schema import JudgeConfig
from sftpipe.data.samples import Conversation
from sftpipe.errors import ConfigError
from sftpipe.evaluation.judge import (
    FIELDS,
    PROMPTS,
    fill,
    outcome,
    pair_summary,
    read_score,
    read_verdict,
    score_summary,
    shown_input,
    template_of,
    winners,
    without_thinking,
)
from support.errors import Pin, refused, told


def judge(**keys: Any) -> JudgeConfig:
    return JudgeConfig(base_url="http://localhost:1/v1", model="m", **keys)


# --- replies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("85", 85),
        (" 85\n", 85),
        ("85.", 85),
        ("0", 0),
        ("100", 100),
        ("007", 7),
        ("８５", 85),
        ("85/100", 85),
        ("85 / 100.", 85),
        ("100/100", 100),
        ("85 out of 100", 85),
        ("Score: 85", 85),
        ("score is 85", 85),
        ("**Score:** 85", 85),
        ("Score: **85/100**", 85),
        ("점수: 85", 85),
        ("85점", 85),
        ("85\n\nThe answer is correct.", 85),
        ("I rate this 85/100.\nScore: 85", 85),
        ("The response deserves a score of 85 out of 100.", 85),
        ("<think>It is 12, no, 90.</think>85", 85),
        ("<think>\n1\n</think>\n\nScore: 85", 85),
        ("well, 10 or 20</think>85", 85),
        ("<think>a</think>85<think>b</think>", 85),
        # none, or not clearly one
        ("", None),
        (" \n", None),
        ("101", None),
        ("1000", None),
        ("-5", None),
        ("−5", None),
        ("+5", None),
        ("- 5", None),
        ("8.5", None),
        (".85", None),
        ("8,5", None),
        ("Score: 8.5", None),
        ("Score: -5", None),
        ("Score: 150/100", None),
        ("8/10", None),
        ("85/1000", None),
        ("85/100.5", None),
        ("The answer is very good.", None),
        ("There is 1 mistake in the response.", None),
        ("Between 70 and 80", None),
        ("70 or 80\nScore: 80", None),
        ("85 90", None),
        ("eighty", None),
        ("<think>85", None),
        ("<think>\n85", None),
        ("<think>85</think>", None),
        ("<think></think>", None),
        ("²", None),
        ("8" * 4000, None),
        pytest.param("85" + "\n" * 10**6 + "It is right.", None, id="a long reply"),
    ],
)
def test_a_score_is_one_whole_number_that_is_clearly_meant(reply: str, score: int | None) -> None:
    assert read_score(reply) == score


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A", "A"),
        ("B.", "B"),
        ("tie", "TIE"),
        ("TIE\n", "TIE"),
        ("**A**", "A"),
        ("[[B]]", "B"),
        ("'A'", "A"),
        ("Verdict: B", "B"),
        ("The winner is A.", "A"),
        ("Answer A", "A"),
        ("판정: TIE", "TIE"),
        ("A\n\nIt is shorter.", "A"),
        ("<think>A or B?</think>B", "B"),
        ("A\nVerdict: A", "A"),
        ("", None),
        ("C", None),
        ("AB", None),
        ("A good answer", None),
        ("Answer: A good one", None),
        ("A or B", None),
        ("A\nB", None),
        ("A\nVerdict: TIE", None),
        ("Both are fine", None),
        ("<think>A", None),
        ("85", None),
    ],
)
def test_a_verdict_is_one_letter_or_tie_that_is_clearly_meant(
    reply: str, verdict: str | None
) -> None:
    assert read_verdict(reply) == verdict


def test_thinking_without_an_end_leaves_nothing() -> None:
    assert without_thinking("<think>I wonder") == ""
    assert without_thinking("<think>a</think> b <think>c") == "b"


# --- prompts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "language"), PROMPTS)
def test_our_prompts_show_every_field_once(mode: str, language: str) -> None:
    template = template_of(judge(mode=mode, language=language))
    values = {name: f"<{name}>" for name in FIELDS[mode]}
    filled = fill(template, values)
    assert [filled.count(value) for value in values.values()] == [1] * len(values)
    assert "{" not in filled


def test_braces_of_texts_and_other_braces_of_a_prompt_stay() -> None:
    prompt = '{"input": "{input}", "r": "{reference}", "a": "{answer}", "n": {n}} {} {{answer}}'
    template = template_of(judge(prompt=prompt))
    filled = fill(template, {"input": "{answer}", "reference": r"\1", "answer": "{reference}"})
    assert filled == (
        r'{"input": "{answer}", "r": "\1", "a": "{reference}", "n": {n}} {} {{reference}}'
    )


@pytest.mark.parametrize("mode", ["score", "pairwise"])
def test_a_prompt_of_ones_own_must_show_everything(mode: str, golden_error: Pin) -> None:
    error = refused(ConfigError, lambda: template_of(judge(mode=mode, prompt="{input} {answer}?")))
    assert told(error) == {"judge.prompt": ("judge.prompt=null",)}
    golden_error(error)


def test_a_lone_question_is_shown_as_it_is_and_several_turns_with_their_roles() -> None:
    user = {"role": "user", "content": "Why?"}
    assert shown_input("Q: Why?\nA:") == "Q: Why?\nA:"
    assert shown_input(Conversation((user,))) == "Why?"
    system = {"role": "system", "content": "Be brief."}
    assert shown_input(Conversation((system, user))) == "system: Be brief.\n\nuser: Why?"


# --- figures --------------------------------------------------------------------------------------


def test_rows_without_a_score_count_as_nothing() -> None:
    found = score_summary([80, None, 90, 40], seed=1)
    low, high = found.pop("interval")
    assert found == {"mean": 70.0, "median": 80.0, "scored": 3, "unscored": 1}
    assert 40 <= low < 70 < high <= 90
    assert score_summary([80, None, 90, 40], seed=1)["interval"] == [low, high]
    nothing = {"mean": None, "median": None, "interval": None, "scored": 0, "unscored": 1}
    assert score_summary([None], seed=1) == nothing


def test_the_interval_is_as_wide_as_theory_says() -> None:
    scores = [50 + (10 if at % 2 else -10) for at in range(400)]
    low, high = score_summary(scores, seed=3)["interval"]
    assert (high - low) / 2 == pytest.approx(1.96 * 10 / 20, rel=0.1)


@pytest.mark.parametrize(
    ("verdicts", "both", "winner"),
    [
        (("A", "B"), ("run", "run"), "run"),
        (("B", "A"), ("other", "other"), "other"),
        (("TIE", "TIE"), ("tie", "tie"), "tie"),
        (("A", "A"), ("run", "other"), "tie"),
        (("B", "B"), ("other", "run"), "tie"),
        (("A", "TIE"), ("run", "tie"), "tie"),
        (("A", None), ("run", None), None),
        ((None, "B"), (None, "run"), None),
    ],
)
def test_a_row_is_won_where_both_orders_say_so(verdicts: Any, both: Any, winner: Any) -> None:
    assert winners(verdicts) == both
    assert outcome(both) == winner


def test_wins_flips_and_the_share_of_longer_winners_are_counted() -> None:
    both: Any = [
        ("run", "run"),
        ("run", "run"),
        ("other", "other"),
        ("tie", "tie"),
        ("run", "other"),
        ("run", None),
        ("other", "other"),
    ]
    lengths = [(9, 3), (3, 9), (3, 9), (9, 3), (9, 3), (9, 3), (5, 5)]
    found = pair_summary(both, lengths, seed=1)
    low, high = found.pop("interval")
    assert 0 <= low < 0.5 < high <= 1
    assert found == {
        "wins": 2,
        "ties": 2,
        "losses": 2,
        "win_rate": 0.5,
        "flip_rate": pytest.approx(1 / 6),
        "length_bias": pytest.approx(2 / 3),
        "scored": 6,
        "unscored": 1,
    }
    empty = pair_summary([(None, None)], [(1, 2)], seed=1)
    assert [empty[name] for name in ("win_rate", "interval", "flip_rate", "length_bias")] == [
        None
    ] * 4
