"""Rows to conversations and pairs, and the message of every row that makes none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sftpipe.data.formats import Conversation, PromptCompletion, check_columns, columns_of, split_prompt, to_prompt, to_sample
from sftpipe.errors import DataError
from sftpipe.schema import FormatConfig

INSTRUCTION = FormatConfig(type="instruction")
MESSAGES = FormatConfig(type="messages")
PAIR = FormatConfig(type="prompt_completion")
ORDER = "system (optional), then user and assistant in turn, the assistant last"


def turn(role: Any, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def talk(roles: str) -> list[dict[str, Any]]:
    """Turns named by their first letters: "sua" is system, user, assistant."""
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [turn(names[letter], f"{letter}{at}") for at, letter in enumerate(roles)]


# --- good rows ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"input": None}, {"input": ""}])
def test_an_instruction_without_input_is_the_question_alone(extra: dict[str, Any]) -> None:
    sample = to_sample({"instruction": "Spell it.", "output": "Occasion", **extra}, INSTRUCTION, "train[0]")
    assert sample == Conversation((turn("user", "Spell it."), turn("assistant", "Occasion")))


def test_an_input_stands_on_a_line_of_its_own_below_the_instruction() -> None:
    sample = to_sample({"instruction": "Spell it.", "input": "Ocassion", "output": "Occasion"}, INSTRUCTION, "train[0]")
    assert sample == Conversation((turn("user", "Spell it.\nOcassion"), turn("assistant", "Occasion")))


def test_white_space_of_a_row_is_kept() -> None:
    sample = to_sample({"instruction": " a\n", "input": "b ", "output": "\tc "}, INSTRUCTION, "train[0]")
    assert sample == Conversation((turn("user", " a\n\nb "), turn("assistant", "\tc ")))


@pytest.mark.parametrize("roles", ["ua", "sua", "uaua", "suauaua"])
def test_messages_are_taken_as_they_are(roles: str) -> None:
    assert to_sample({"messages": talk(roles)}, MESSAGES, "train[0]") == Conversation(tuple(talk(roles)))


def test_fields_of_a_message_besides_role_and_content_are_left_behind() -> None:
    messages = [{**message, "name": "Luke"} for message in talk("ua")]
    assert to_sample({"messages": messages}, MESSAGES, "train[0]") == Conversation(tuple(talk("ua")))


def test_a_prompt_and_its_completion_are_two_strings() -> None:
    assert to_sample({"prompt": "1 + 1 =", "completion": " 2"}, PAIR, "train[0]") == PromptCompletion("1 + 1 =", " 2")


@pytest.mark.parametrize("row", [{"instruction": "a", "output": "b"}, {"messages": talk("ua")}])
def test_the_systems_turn_of_the_format_comes_first(row: dict[str, Any]) -> None:
    cfg = FormatConfig(type="messages" if "messages" in row else "instruction", system="Speak like Yoda.")
    sample = to_sample(row, cfg, "train[0]")
    assert isinstance(sample, Conversation)
    assert sample.messages[0] == turn("system", "Speak like Yoda.")
    assert [message["role"] for message in sample.messages] == ["system", "user", "assistant"]


def test_a_rows_own_system_turn_wins_over_the_formats() -> None:
    cfg = FormatConfig(type="messages", system="Speak like Yoda.")
    assert to_sample({"messages": talk("sua")}, cfg, "train[0]") == Conversation(tuple(talk("sua")))


# --- prompts --------------------------------------------------------------------------------------------------------------------------


def test_a_conversation_splits_into_the_turns_before_the_answer_and_the_answer() -> None:
    assert split_prompt(Conversation(tuple(talk("suaua")))) == (tuple(talk("suau")), "a4")


def test_a_pair_splits_into_its_two_strings() -> None:
    assert split_prompt(PromptCompletion("a", "b")) == ("a", "b")


@pytest.mark.parametrize(
    ("cfg", "prompt"),
    [
        (PAIR, "Hello."),
        (INSTRUCTION, (turn("user", "Hello."),)),
        (FormatConfig(type="messages", system="Be short."), (turn("system", "Be short."), turn("user", "Hello."))),
    ],
)
def test_a_users_own_words_are_asked_as_the_format_would(cfg: FormatConfig, prompt: Any) -> None:
    assert to_prompt("Hello.", cfg) == prompt


# --- columns --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cfg", "columns"),
    [(INSTRUCTION, ("instruction", "output", "input")), (MESSAGES, ("messages",)), (PAIR, ("prompt", "completion"))],
)
def test_a_format_reads_exactly_its_columns(cfg: FormatConfig, columns: tuple[str, ...]) -> None:
    assert columns_of(cfg) == columns
    check_columns(columns, cfg, "train")


def test_the_input_of_an_instruction_may_be_absent() -> None:
    check_columns(["instruction", "output", "other"], INSTRUCTION, "train")


def test_a_missing_column_names_what_is_there_and_how_to_map_the_nearest() -> None:
    with pytest.raises(DataError) as error:
        check_columns(["instruction", "ouput"], INSTRUCTION, "validation")
    assert str(error.value) == (
        "format=instruction (validation): no column 'output'; the data set has instruction, ouput\n"
        "    allowed: columns instruction, output\n"
        "    dataset.columns.output=ouput, or another format"
    )


def test_all_missing_columns_are_reported_together() -> None:
    with pytest.raises(DataError) as error:
        check_columns(["sentence", "translation"], PAIR, "train")
    assert [problem.fix for problem in error.value.problems] == [
        "dataset.columns.prompt=COLUMN, or another format",
        "dataset.columns.completion=COLUMN, or another format",
    ]


# --- bad rows -------------------------------------------------------------------------------------------------------------------------

TEXT_FIELDS = [
    (INSTRUCTION, {"instruction": "a", "output": "b"}, "instruction"),
    (INSTRUCTION, {"instruction": "a", "output": "b"}, "output"),
    (PAIR, {"prompt": "a", "completion": "b"}, "prompt"),
    (PAIR, {"prompt": "a", "completion": "b"}, "completion"),
]
BAD_TEXTS = [
    (None, "null or missing", "a string"),
    (3, "int '3'", "a string"),
    (float("nan"), "float 'nan'", "a string"),
    (["a"], "list \"['a']\"", "a string"),
    ("", "an empty string", "text"),
    (" \n\t\u3000", "an empty string", "text"),
]


@pytest.mark.parametrize(("cfg", "row", "field"), TEXT_FIELDS)
@pytest.mark.parametrize(("value", "found", "allowed"), BAD_TEXTS)
def test_a_bad_text_names_the_row_the_field_and_what_stands_there(
    cfg: FormatConfig, row: dict[str, Any], field: str, value: Any, found: str, allowed: str
) -> None:
    with pytest.raises(DataError) as error:
        to_sample({**row, field: value}, cfg, "validation[7]")
    assert str(error.value) == f"validation[7].{field}: {found}\n    allowed: {allowed}\n    mend or remove the row"


def test_a_missing_field_is_like_null() -> None:
    with pytest.raises(DataError, match=r"^train\[3\]\.output: null or missing"):
        to_sample({"instruction": "a"}, INSTRUCTION, "train[3]")


def test_an_input_of_another_type_is_refused() -> None:
    with pytest.raises(DataError) as error:
        to_sample({"instruction": "a", "input": 3, "output": "b"}, INSTRUCTION, "train[3]")
    assert str(error.value) == "train[3].input: int '3'\n    allowed: a string or null\n    mend or remove the row"


def test_a_long_wrong_value_is_cut_in_the_message() -> None:
    with pytest.raises(DataError) as error:
        to_sample({"messages": {"content": "x" * 1000}}, MESSAGES, "train[3]")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("messages", "where", "found", "allowed"),
    [
        (None, "", "null or missing", "a list of {role, content}"),
        ("hello", "", "str 'hello'", "a list of {role, content}"),
        (turn("user", "hi"), "", "dict \"{'role': 'user', 'content': 'hi'}\"", "a list of {role, content}"),
        (["hello"], "[0]", "str 'hello'", "{role, content}"),
        ([turn("user", "hi"), None], "[1]", "null or missing", "{role, content}"),
        ([{"role": "user"}], "[0].content", "null or missing", "a string"),
        ([{"content": "hi"}], "[0].role", "null or missing", "a string"),
        ([turn("user", "hi"), turn("assistant", None)], "[1].content", "null or missing", "a string"),
        ([turn("user", "hi"), turn("assistant", " ")], "[1].content", "an empty string", "text"),
        ([turn("user", [{"type": "text"}])], "[0].content", "list \"[{'type': 'text'}]\"", "a string"),
    ],
)
def test_bad_messages_name_the_turn(messages: Any, where: str, found: str, allowed: str) -> None:
    with pytest.raises(DataError) as error:
        to_sample({"messages": messages}, MESSAGES, "test[5]")
    assert str(error.value) == f"test[5].messages{where}: {found}\n    allowed: {allowed}\n    mend or remove the row"


@pytest.mark.parametrize(
    ("roles", "found"),
    [
        ("", "(none)"),
        ("s", "system"),
        ("u", "user"),
        ("a", "assistant"),
        ("au", "assistant, user"),
        ("uu", "user, user"),
        ("uaa", "user, assistant, assistant"),
        ("uau", "user, assistant, user"),
        ("ssua", "system, system, user, assistant"),
        ("usa", "user, system, assistant"),
        ("utua", "user, tool, user, assistant"),
    ],
)
def test_turns_out_of_order_name_the_roles(roles: str, found: str) -> None:
    with pytest.raises(DataError) as error:
        to_sample({"messages": talk(roles)}, MESSAGES, "test[5]")
    assert str(error.value).splitlines()[:2] == [f"test[5].messages: the roles {found}", f"    allowed: {ORDER}"]


def test_a_system_turn_of_the_format_does_not_make_a_conversation_of_nothing() -> None:
    with pytest.raises(DataError, match=r"the roles \(none\)"):
        to_sample({"messages": []}, FormatConfig(type="messages", system="Be short."), "train[0]")


# --- golden values --------------------------------------------------------------------------------------------------------------------


def test_golden_rows_of_prompts_and_completions_make_the_golden_conversations(golden: Path) -> None:
    cases = {case["id"]: case for case in json.loads((golden / "cases.json").read_text(encoding="utf-8"))}
    batch, expected = cases["002-format-batch"]["input"], cases["002-format-batch"]["expected"]
    rows = [{"instruction": p, "output": c} for p, c in zip(batch["prompt"], batch["completion"], strict=True)]
    samples = [to_sample(row, INSTRUCTION, "train[0]") for row in rows]
    assert samples == [Conversation(tuple(messages)) for messages in expected]
