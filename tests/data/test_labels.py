"""Labels from spans, and spans from templates."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftpipe.data.labels import (
    IGNORED,
    Span,
    labels_from_spans,
    out_of_turn,
    response_spans,
    turns_of,
)

IDS = st.lists(st.integers(0, 200_000), max_size=50)
POSITIONS = st.integers(0, 60)
SPANS = st.lists(st.tuples(POSITIONS, POSITIONS), max_size=4)


# --- labels ---------------------------------------------------------------------------------------


def test_the_drawn_example_holds() -> None:
    assert labels_from_spans([5, 6, 7, 8, 9], [(1, 3), (4, 5)]) == [-100, 6, 7, -100, 9]


@given(ids=IDS, spans=SPANS)
def test_labels_are_the_ids_inside_the_spans_and_ignored_elsewhere(
    ids: list[int], spans: list[Span]
) -> None:
    labels = labels_from_spans(ids, spans)
    assert len(labels) == len(ids)
    for position, (token, label) in enumerate(zip(ids, labels, strict=True)):
        assert label == (
            token if any(start <= position < stop for start, stop in spans) else IGNORED
        )


@given(ids=IDS)
def test_a_span_over_the_whole_row_trains_everything(ids: list[int]) -> None:
    assert labels_from_spans(ids, [(0, len(ids))]) == ids


@given(ids=IDS, start=POSITIONS)
def test_an_empty_span_trains_nothing(ids: list[int], start: int) -> None:
    assert (
        labels_from_spans(ids, [(start, start)])
        == labels_from_spans(ids, [])
        == [IGNORED] * len(ids)
    )


def test_the_input_is_not_changed() -> None:
    ids = [5, 6, 7]
    labels_from_spans(ids, [(0, 1)])
    assert ids == [5, 6, 7]


# --- response templates ---------------------------------------------------------------------------

CHAT = "<|user|>a<|assistant|>b<|user|>c<|assistant|>d"


def cut(text: str, response: str, instruction: str | None) -> list[str]:
    return [text[start:stop] for start, stop in response_spans(text, response, instruction)]


def test_the_drawn_chat_holds() -> None:
    assert cut(CHAT, "<|assistant|>", "<|user|>") == ["b", "d"]
    assert cut(CHAT, "<|assistant|>", None) == ["d"]


@pytest.mark.parametrize(
    ("text", "instruction", "answers"),
    [
        pytest.param("no template at all", None, [], id="none"),
        pytest.param("no template at all", "Q:", [], id="none-of-two"),
        pytest.param("x A: one", "Q:", [" one"], id="no-instruction-behind-it"),
        pytest.param(
            "A: one\n\nQ: two", "Q:", [" one\n\n"], id="white-space-belongs-to-the-answer"
        ),
        pytest.param(
            "A: one A: two Q: three A: four",
            "Q:",
            [" one A: two ", " four"],
            id="a-template-inside-an-answer",
        ),
        pytest.param("A: one A: two", None, [" two"], id="the-last-one-alone"),
        pytest.param("A:Q:A: two", "Q:", ["", " two"], id="an-empty-answer"),
        pytest.param("A:", None, [""], id="nothing-behind-it"),
    ],
)
def test_answers_reach_from_their_template_to_the_next_instruction(
    text: str, instruction: str | None, answers: list[str]
) -> None:
    assert cut(text, "A:", instruction) == answers


def test_a_template_that_overlaps_itself_is_found_once() -> None:
    assert cut("####answer", "##", None) == ["answer"]
    assert cut("###answer", "##", None) == ["#answer"]


@given(parts=st.lists(st.sampled_from(["Q", "A", "x", "yy"]), max_size=20), both=st.booleans())
def test_ids_are_searched_as_text_is(parts: list[str], both: bool) -> None:
    text = "".join(parts)
    ids = [ord(character) for character in text]
    assert response_spans(ids, [ord("A")], [ord("Q")] if both else None) == response_spans(
        text, "A", "Q" if both else None
    )


@given(text=st.text("QA x", max_size=30))
def test_answers_lie_in_order_and_apart(text: str) -> None:
    spans = response_spans(text, "A", "Q")
    assert all(stop <= start for (_, stop), (start, _) in pairwise(spans))
    assert all(text[start - 1] == "A" and "Q" not in text[start:stop] for start, stop in spans)


# --- the order of templates -----------------------------------------------------------------------

MANY, FEW = "too many response templates", "too few response templates"
ORDER, IN_A_ROW = (
    "templates in another order than the turns",
    "no instruction template between two answers",
)


@pytest.mark.parametrize(
    ("text", "instruction", "turns", "found"),
    [
        # a text
        ("x A: one", None, None, ""),
        ("Q: one A: two A: three", None, None, MANY),
        ("Q: one A: two", "Q:", None, ""),
        ("before it Q: one A: two Q: three A: four", "Q:", None, ""),
        ("Q: what does A: mean? A: my turn", "Q:", None, MANY),
        ("Q: what does Q: mean? A: your turn", "Q:", None, "too many instruction templates"),
        ("A: hello", "Q:", None, "too few instruction templates"),
        ("A: hello Q: one", "Q:", None, ORDER),
        ("Q: one A: two Q: three", "Q:", None, "too many instruction templates"),
        # a conversation, whose turns are known
        ("Q: one A: two Q: three A: four", "Q:", "QAQA", ""),
        ("Q: one A: two Q: three A: four", "Q:", "QA", MANY),
        ("Q: one A: two Q: three A: four", None, "QAQA", ""),
        ("Q: one A: two Q: three A: four", None, "QA", MANY),
        ("Q: one A: two", "Q:", "QAQA", FEW),
        ("A: hello Q: one A: two", "Q:", "AQA", ""),
        ("A: hello Q: one A: two", "Q:", "QAA", ORDER),
        ("Q: one A: call result A: two", "Q:", "QAA", IN_A_ROW),
        ("Q: one A: call result A: two", None, "QAA", ""),
        # the instruction template begins the response template
        ("#user one #A: two", "#", "QA", ""),
    ],
)
def test_templates_out_of_turn_are_told(
    text: str, instruction: str | None, turns: str | None, found: str
) -> None:
    response = "#A:" if instruction == "#" else "A:"
    assert out_of_turn(text, response, instruction, turns=turns) == found
    as_ids = [[ord(c) for c in part] for part in (text, response, instruction or "")]
    ids = (*as_ids[:2], as_ids[2] or None)
    assert out_of_turn(*ids, turns=turns) == found


@pytest.mark.parametrize(
    ("prompt", "completion", "found"),
    [
        ("Q: one A:", " two", ""),
        ("Q: one A: two Q: three A:", " four", ""),
        ("Q: one ", "A: two", ""),
        ("Q: one A", ": two", ""),
        ("Q: one A:", "it is Q: yours A: mine", "a template in the completion"),
        ("Q: one", "A: two Q: three A: four", "a template in the completion"),
    ],
)
def test_a_completion_holds_no_template_but_its_own(
    prompt: str, completion: str, found: str
) -> None:
    assert out_of_turn(prompt + completion, "A:", "Q:", prompt=len(prompt)) == found


def test_the_turns_of_a_conversation_are_those_of_users_and_assistants() -> None:
    assert turns_of(["system", "user", "assistant", "tool", "assistant"]) == "QAA"
