"""Rows to conversations and pairs, and the message of every row that makes none."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest

from sftpipe.config.patterns import pattern_fields
from sftpipe.config.schema import FormatConfig
from sftpipe.data.formats import check_columns, required_columns, to_prompt
from sftpipe.data.messages import STRAY_FLAG
from sftpipe.data.samples import (
    Conversation,
    Prompt,
    PromptCompletion,
    Remark,
    Sample,
    Text,
    split_prompt,
    without_answer,
)
from sftpipe.errors import DataError, RowError
from support.errors import Pin, named, refused, told
from support.samples import talk, to_sample, to_samples, turn

INSTRUCTION = FormatConfig(type="instruction")
MESSAGES = FormatConfig(type="messages")
PAIR = FormatConfig(type="prompt_completion")
SHAREGPT = FormatConfig(type="sharegpt")
TEXT = FormatConfig(type="text")
TEMPLATE = FormatConfig(type="template", prompt="{prompt} ##> ", completion="{completion}")
NULL, TYPE, EMPTY, SHUFFLED = "null or missing", "wrong type", "empty text", "roles out of order"


def error_of(row: Any, cfg: FormatConfig, function: Any = None) -> RowError:
    return refused(RowError, lambda: to_sample(row, cfg, "train[0]", function))


# --- good rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"input": None}, {"input": ""}])
def test_an_instruction_without_input_is_the_question_alone(extra: dict[str, Any]) -> None:
    sample = to_sample(
        {"instruction": "Spell it.", "output": "Occasion", **extra}, INSTRUCTION, "train[0]"
    )
    assert sample == Conversation((turn("user", "Spell it."), turn("assistant", "Occasion")))


def test_an_input_stands_on_a_line_of_its_own_below_the_instruction() -> None:
    sample = to_sample(
        {"instruction": "Spell it.", "input": "Ocassion", "output": "Occasion"},
        INSTRUCTION,
        "train[0]",
    )
    assert sample == Conversation(
        (turn("user", "Spell it.\nOcassion"), turn("assistant", "Occasion"))
    )


def test_white_space_of_a_row_is_kept() -> None:
    sample = to_sample(
        {"instruction": " a\n", "input": "b ", "output": "\tc "}, INSTRUCTION, "train[0]"
    )
    assert sample == Conversation((turn("user", " a\n\nb "), turn("assistant", "\tc ")))


@pytest.mark.parametrize("roles", ["ua", "sua", "uaua", "suauaua"])
def test_messages_are_taken_as_they_are(roles: str) -> None:
    assert to_sample({"messages": talk(roles)}, MESSAGES, "train[0]") == Conversation(
        tuple(talk(roles))
    )


def test_other_fields_of_a_message_are_kept_for_the_template_where_they_hold_something() -> None:
    messages = [{**message, "name": "Luke", "tool_calls": None} for message in talk("ua")]
    kept = tuple({**message, "name": "Luke"} for message in talk("ua"))
    assert to_sample({"messages": messages}, MESSAGES, "train[0]") == Conversation(kept)


def test_tools_and_template_variables_of_a_row_go_with_its_turns() -> None:
    row = {
        "messages": talk("ua"),
        "tools": [{"name": "add"}],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    expected = Conversation(tuple(talk("ua")), ({"name": "add"},), {"enable_thinking": False})
    assert to_sample(row, MESSAGES, "train[0]") == expected
    as_json = {
        **row,
        "tools": json.dumps(row["tools"]),
        "chat_template_kwargs": json.dumps(row["chat_template_kwargs"]),
    }
    assert to_sample(as_json, MESSAGES, "train[0]") == expected


@pytest.mark.parametrize("tools", [None, [], "[]", "null"])
def test_no_tools_are_no_tools(tools: Any) -> None:
    assert to_sample(
        {"messages": talk("ua"), "tools": tools}, MESSAGES, "train[0]"
    ) == Conversation(tuple(talk("ua")))


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


@pytest.mark.parametrize("arguments", [{"a": 1}, '{"a": 1}'])
def test_a_tool_call_may_have_no_content_and_its_arguments_as_json(arguments: Any) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    messages = [
        turn("user", "1 + 1?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        turn("tool", "2"),
        turn("assistant", "2."),
    ]
    sample = to_sample({"messages": messages}, MESSAGES, "train[0]")
    assert isinstance(sample, Conversation)
    assert sample.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_several_results_of_tools_may_follow_a_call() -> None:
    messages = talk("uattaua")
    messages[1]["tool_calls"] = [CALL, CALL]
    assert to_sample({"messages": messages}, MESSAGES, "train[0]") == Conversation(tuple(messages))


# --- train flags ----------------------------------------------------------------------------------


def test_train_flags_are_taken_from_the_turns() -> None:
    messages = [
        {**message, **({"train": flag} if flag is not None else {})}
        for message, flag in zip(
            talk("uauaua"), (None, False, None, True, False, None), strict=True
        )
    ]
    sample = to_sample({"messages": messages}, MESSAGES, "train[0]")
    assert sample == Conversation(
        tuple(talk("uauaua")),
        train=(None, False, None, True, None, None),  # the user's own flag says nothing
        remarks=(Remark(STRAY_FLAG, "train"),),
    )


def test_a_turn_of_the_format_has_no_flag_and_the_flags_stay_with_their_turns() -> None:
    messages = [talk("ua")[0], {**talk("ua")[1], "train": True}]
    sample = to_sample(
        {"messages": messages}, FormatConfig(type="messages", system="Hi."), "train[0]"
    )
    assert isinstance(sample, Conversation)
    assert sample.train == (None, None, True)


@pytest.mark.parametrize("flag", ["yes", 1, 0.5])
def test_a_flag_that_is_no_boolean_is_refused(flag: Any) -> None:
    error = error_of(
        {"messages": [turn("user", "a"), {**turn("assistant", "b"), "train": flag}]}, MESSAGES
    )
    assert error.problem.where == "train[0].messages[1].train"
    assert error.problem.allowed == "true, false or nothing"


FLAGS = [
    ["train", True, True],
    ["training", False, False],
    ["loss", False, False],
    ["loss", True, True],
    ["weight", 0, False],
    ["weight", 1, True],
    ["weight", 0.0, False],
    ["weight", 1.0, True],
    ["weight", None, None],
    ["loss", None, None],
    ["weight", float("nan"), None],
]


@pytest.mark.parametrize("sharegpt", [False, True])
@pytest.mark.parametrize(("name", "value", "flag"), FLAGS)
def test_a_flag_is_read_by_the_name_that_other_tools_give_it(
    name: str, value: Any, flag: bool | None, sharegpt: bool
) -> None:
    messages = [turn("user", "a"), {**turn("assistant", "b"), name: value}]
    row = {"messages": messages}
    cfg = MESSAGES
    if sharegpt:
        turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", name: value}]
        row, cfg = {"conversations": turns}, FormatConfig(type="sharegpt")
    sample = to_sample(row, cfg, "train[0]")
    assert sample == Conversation(
        (turn("user", "a"), turn("assistant", "b")), train=() if flag is None else (None, flag)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight", 0.5), ("weight", 2), ("weight", "0"), ("loss", 0), ("training", "no")],
)
def test_a_value_that_is_no_flag_is_refused(name: str, value: Any) -> None:
    error = error_of(
        {"messages": [turn("user", "a"), {**turn("assistant", "b"), name: value}]}, MESSAGES
    )
    assert error.problem.where == f"train[0].messages[1].{name}"
    assert error.reason == TYPE


def test_flags_that_contradict_each_other_are_refused_and_equal_ones_are_one() -> None:
    answer = turn("assistant", "b")
    error = error_of(
        {"messages": [turn("user", "a"), {**answer, "weight": 1, "loss": False}]}, MESSAGES
    )
    assert error.problem.where == "train[0].messages[1]"
    assert error.problem.found == "weight: true, loss: false"
    both = {"messages": [turn("user", "a"), {**answer, "weight": 0, "loss": False}]}
    assert to_sample(both, MESSAGES, "train[0]").train == (None, False)


def test_a_flag_of_another_name_is_mapped() -> None:
    cfg = FormatConfig(type="messages", fields={"train": "learn"})
    row = {"messages": [turn("user", "a"), {**turn("assistant", "b"), "learn": False}]}
    sample = to_sample(row, cfg, "train[0]")
    assert sample.train == (None, False)
    assert sample.messages[1] == turn("assistant", "b")


# --- sharegpt -------------------------------------------------------------------------------------


def share(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": value} for role, value in turns]}


def test_sharegpt_turns_get_our_roles() -> None:
    row = share(("system", "s"), ("human", "a"), ("gpt", "b"), ("user", "c"), ("assistant", "d"))
    turns = (
        turn("system", "s"),
        turn("user", "a"),
        turn("assistant", "b"),
        turn("user", "c"),
        turn("assistant", "d"),
    )
    assert to_sample(row, SHAREGPT, "train[0]") == Conversation(turns)


def test_sharegpt_turns_may_have_train_flags() -> None:
    row = share(("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"))
    row["conversations"][1]["train"] = True
    sample = to_sample(row, SHAREGPT, "train[0]")
    assert isinstance(sample, Conversation)
    assert sample.train == (None, True, None, None)


@pytest.mark.parametrize(
    ("row", "place", "reason"),
    named(
        [
            ["missing", {}, "", NULL],
            ["a word", {"conversations": ["hi"]}, "[0]", TYPE],
            ["unknown role", share(("bot", "a")), "[0].from", "unknown role"],
            ["null", share(("human", None)), "[0].value", NULL],
            ["blank", share(("human", "a"), ("gpt", " ")), "[1].value", EMPTY],
            ["no question", share(("gpt", "a")), "", SHUFFLED],
        ]
    ),
)
def test_bad_sharegpt_turns_are_named(row: Any, place: str, reason: str) -> None:
    error = error_of(row, SHAREGPT)
    assert (error.problem.where, error.reason) == (f"train[0].conversations{place}", reason)


# --- prompts and completions that are turns -------------------------------------------------------


def test_prompt_and_completion_may_be_turns_and_say_where_the_prompt_ends() -> None:
    row = {"prompt": talk("suau"), "completion": talk("aua")}
    sample = to_sample(row, PAIR, "train[0]")
    assert sample == Conversation((*talk("suau"), *talk("aua")), prompt_length=4)


def test_a_system_turn_of_the_format_belongs_to_the_prompt() -> None:
    sample = to_sample(
        {"prompt": talk("u"), "completion": talk("a")},
        FormatConfig(type="prompt_completion", system="Hi."),
        "train[0]",
    )
    assert sample == Conversation((turn("system", "Hi."), *talk("u"), *talk("a")), prompt_length=2)


def test_a_flag_of_an_answer_in_the_completion_is_kept() -> None:
    completion = [
        {**message, "train": False} if at == 0 else message
        for at, message in enumerate(talk("aua"))
    ]
    sample = to_sample({"prompt": talk("u"), "completion": completion}, PAIR, "train[0]")
    assert sample == Conversation(
        (*talk("u"), *talk("aua")), train=(None, False, None, None), prompt_length=1
    )


@pytest.mark.parametrize(
    ("prompt", "completion", "place", "reason"),
    named(
        [
            ["a text for turns", talk("u"), "b", ".completion", TYPE],
            ["a text and turns", "a", talk("a"), ".prompt", TYPE],
            ["no completion", talk("u"), None, ".completion", NULL],
            ["blank", talk("u"), [turn("assistant", "")], ".completion[0].content", EMPTY],
            ["no turns", talk("u"), [], ".messages", SHUFFLED],
        ]
    ),
)
def test_a_prompt_and_a_completion_of_different_kinds_are_refused(
    prompt: Any, completion: Any, place: str, reason: str
) -> None:
    error = error_of({"prompt": prompt, "completion": completion}, PAIR)
    assert (error.problem.where, error.reason) == (f"train[0]{place}", reason)


# --- text and template ----------------------------------------------------------------------------


def test_a_text_is_taken_as_it_is_from_its_column() -> None:
    assert to_sample({"text": " a\n", "other": 3}, TEXT, "train[0]") == Text(" a\n")
    assert to_sample(
        {"body": "a", "text": "b"}, FormatConfig(type="text", text_field="body"), "train[0]"
    ) == Text("a")


def test_patterns_are_filled_from_the_columns() -> None:
    assert to_sample({"prompt": "a", "completion": "b"}, TEMPLATE, "train[0]") == PromptCompletion(
        "a ##> ", "b"
    )


def test_braces_of_a_value_are_plain_text_and_double_ones_of_a_pattern_too() -> None:
    cfg = FormatConfig(type="template", prompt="{{{q}}} ", completion="{a}")
    assert to_sample({"q": "{a}", "a": "{{x}}"}, cfg, "train[0]") == PromptCompletion(
        "{{a}} ", "{{x}}"
    )


ALPACA = FormatConfig(
    type="template",
    prompt="{instruction}|{input}|",
    prompt_no_input="{instruction}|",
    completion="{output}",
)


@pytest.mark.parametrize("extra", [{}, {"input": None}, {"input": ""}, {"input": " \n"}])
def test_a_row_with_an_empty_input_takes_the_prompt_without_one(extra: dict[str, Any]) -> None:
    assert to_sample(
        {"instruction": "a", "output": "b", **extra}, ALPACA, "train[0]"
    ) == PromptCompletion("a|", "b")


def test_a_row_with_an_input_takes_the_prompt_with_it() -> None:
    assert to_sample(
        {"instruction": "a", "input": "x", "output": "b"}, ALPACA, "train[0]"
    ) == PromptCompletion("a|x|", "b")


@pytest.mark.parametrize(
    ("pattern", "fields"), [("{a}{b}{a}", ["a", "b"]), ("{{a}} {b}", ["b"]), ("", []), ("a", [])]
)
def test_the_fields_of_a_pattern_are_named_once(pattern: str, fields: list[str]) -> None:
    assert pattern_fields(pattern) == fields


@pytest.mark.parametrize(
    "pattern", ["{a", "a}", "{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:>3}", "{a b}"]
)
def test_a_field_that_is_more_than_a_column_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"'[{}]'|plain column name|string"):
        pattern_fields(pattern)


# --- a user's function ----------------------------------------------------------------------------

FUNCTION = FormatConfig(type="function", function="mine.to_text")
BATCHED = FormatConfig(type="function", function="mine.to_text", batched=True)


@pytest.mark.parametrize(
    ("value", "sample"),
    [
        ("a b", Text("a b")),
        ({"text": "a b"}, Text("a b")),
        ({"prompt": "a", "completion": "b"}, PromptCompletion("a", "b")),
        ({"messages": talk("ua")}, Conversation(tuple(talk("ua")))),
        (talk("ua"), Conversation(tuple(talk("ua")))),
    ],
)
def test_a_function_gives_any_kind_of_sample(value: Any, sample: Sample) -> None:
    assert to_sample({"x": "y"}, FUNCTION, "train[0]", lambda row: value) == sample
    assert (
        to_samples([{"x": "y"}] * 2, BATCHED, ["train[0]", "train[1]"], lambda batch: [value] * 2)
        == [sample] * 2
    )


def test_a_function_is_given_the_row_and_cannot_change_it() -> None:
    row = {"a": "1", "b": "2"}
    assert to_sample(row, FUNCTION, "train[0]", lambda given: given.pop("a") + given["b"]) == Text(
        "12"
    )
    assert row == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "null or missing"),
        (3, "int '3'"),
        ({"a": "b"}, "dict \"{'a': 'b'}\""),
        ((1, 2), "tuple '(1, 2)'"),
    ],
)
def test_a_function_that_gives_no_sample_is_told_what_it_may_give(value: Any, found: str) -> None:
    error = error_of({"x": "y"}, FUNCTION, lambda row: value)
    assert (error.problem.where, error.problem.found) == ("train[0] (format.function)", found)
    assert error.reason == "format.function gave no sample"


def test_a_function_of_batches_without_batched_is_told_so() -> None:
    error = error_of({"x": "y"}, FUNCTION, lambda row: ["a"])
    assert error.problem.commands == ("format.batched=true",)


def test_what_a_function_gives_is_checked_like_a_row() -> None:
    error = error_of({"x": "y"}, FUNCTION, lambda row: {"prompt": "a", "completion": ""})
    assert error.problem.where == "train[0] (format.function).completion"
    assert error.reason == EMPTY


def test_a_function_that_raises_names_the_row_and_the_columns() -> None:
    error = error_of({"x": "y", "z": "y"}, FUNCTION, lambda row: row["text"])
    assert error.problem.where == "train[0] (format.function)"
    assert error.problem.found.endswith("KeyError: 'text'")
    assert error.problem.allowed.endswith(" x, z")
    assert error.reason == "format.function failed"


def test_a_batched_function_is_given_columns_with_null_for_what_a_row_lacks() -> None:
    seen: list[Any] = []

    def function(batch: Any) -> list[str]:
        seen.append(batch)
        return ["p", "q"]

    rows = [{"a": "1"}, {"a": "2", "b": "3"}]
    assert to_samples(rows, BATCHED, ["train[0]", "train[1]"], function) == [Text("p"), Text("q")]
    assert seen == [{"a": ["1", "2"], "b": [None, "3"]}]


def test_a_batched_function_may_give_columns() -> None:
    samples = to_samples(
        [{"x": "y"}] * 2,
        BATCHED,
        ["train[0]", "train[1]"],
        lambda batch: {"prompt": ["a", "b"], "completion": ["c", "d"]},
    )
    assert samples == [PromptCompletion("a", "c"), PromptCompletion("b", "d")]


@pytest.mark.parametrize(
    ("value", "found"),
    [("a", "one str"), (["a"], "1 values"), ({"text": "ab"}, "one dict"), (None, "one NoneType")],
)
def test_a_batched_function_that_gives_no_value_for_each_row_is_an_error_of_the_whole(
    value: Any, found: str
) -> None:
    rows, places = [{"x": "y"}] * 2, ["train[0]", "train[1]"]
    error = refused(DataError, lambda: to_samples(rows, BATCHED, places, lambda batch: value))
    assert told(error) == {"format.function": ("format.batched=false",)}
    assert f" {found} for a batch of 2 rows" in error.problems[0].found


def test_a_batched_function_that_raises_is_an_error_of_the_whole() -> None:
    rows, places = [{"x": "y"}] * 2, ["train[0]", "train[1]"]
    error = refused(
        DataError, lambda: to_samples(rows, BATCHED, places, lambda batch: batch["x"].strip())
    )
    assert told(error) == {"format.function": ("format.batched=false",)}
    assert "AttributeError: 'list' object has no attribute 'strip'" in error.problems[0].found


def test_a_prompt_and_its_completion_are_two_strings() -> None:
    assert to_sample(
        {"prompt": "1 + 1 =", "completion": " 2"}, PAIR, "train[0]"
    ) == PromptCompletion("1 + 1 =", " 2")


@pytest.mark.parametrize("row", [{"instruction": "a", "output": "b"}, {"messages": talk("ua")}])
def test_the_systems_turn_of_the_format_comes_first(row: dict[str, Any]) -> None:
    cfg = FormatConfig(
        type="messages" if "messages" in row else "instruction", system="Speak like Yoda."
    )
    sample = to_sample(row, cfg, "train[0]")
    assert isinstance(sample, Conversation)
    assert sample.messages[0] == turn("system", "Speak like Yoda.")
    assert [message["role"] for message in sample.messages] == ["system", "user", "assistant"]


def test_a_rows_own_system_turn_wins_over_the_formats() -> None:
    cfg = FormatConfig(type="messages", system="Speak like Yoda.")
    assert to_sample({"messages": talk("sua")}, cfg, "train[0]") == Conversation(tuple(talk("sua")))


# --- prompts --------------------------------------------------------------------------------------


def test_a_conversation_splits_into_the_turns_before_the_answer_and_the_answer() -> None:
    sample = Conversation(
        tuple(talk("suaua")), ({"name": "add"},), {"x": 1}, (None, None, False, None, True)
    )
    assert split_prompt(sample) == (
        Conversation(tuple(talk("suau")), ({"name": "add"},), {"x": 1}),
        "a4",
    )
    assert without_answer(sample) == split_prompt(sample)[0]


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("one two three four five", "one two"),
        ("w " * 600, "w " * 50 + "w"),
        ("w" * 10, "w" * 5),
        ("x", "x"),
    ],
)
def test_a_text_splits_at_a_space_behind_its_first_fifth_or_in_the_middle(
    text: str, prompt: str
) -> None:
    assert split_prompt(Text(text)) == (prompt, text.removeprefix(prompt))


def test_a_pair_splits_into_its_two_strings() -> None:
    assert split_prompt(PromptCompletion("a", "b")) == ("a", "b")


CHAT = Conversation(tuple(talk("ua")))


@pytest.mark.parametrize(
    ("cfg", "like", "prompt"),
    [
        (PAIR, "a", "Hello."),
        (PAIR, CHAT, Conversation((turn("user", "Hello."),))),
        (TEXT, "a", "Hello."),
        (TEMPLATE, "a", "Hello. ##> "),
        (ALPACA, "a", "Hello.|"),
        (FUNCTION, "a", "Hello."),
        (FUNCTION, CHAT, Conversation((turn("user", "Hello."),))),
        (INSTRUCTION, CHAT, Conversation((turn("user", "Hello."),))),
        (
            FormatConfig(type="messages", system="Be short."),
            Conversation(tuple(talk("ua")), ({"name": "add"},), {"x": 1}, (None, True)),
            Conversation(
                (turn("system", "Be short."), turn("user", "Hello.")), ({"name": "add"},), {"x": 1}
            ),
        ),
    ],
)
def test_a_users_own_words_are_asked_as_the_format_would(
    cfg: FormatConfig, like: Prompt, prompt: Any
) -> None:
    assert to_prompt("Hello.", cfg, like, "prompt") == prompt


def test_a_users_own_words_cannot_fill_two_fields(golden_error: Pin) -> None:
    cfg = FormatConfig(type="template", prompt="{a} {b}", completion="{c}")
    error = refused(DataError, lambda: to_prompt("Hello.", cfg, "a", "generate.prompt"))
    assert told(error) == {"generate.prompt": ()}
    golden_error(error)


# --- columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cfg", "columns"),
    [
        (INSTRUCTION, ("instruction", "output")),  # its input may be absent
        (MESSAGES, ("messages",)),
        (SHAREGPT, ("conversations",)),
        (PAIR, ("prompt", "completion")),
        (TEXT, ("text",)),
        (FormatConfig(type="text", text_field="body"), ("body",)),
        (TEMPLATE, ("prompt", "completion")),
        (FormatConfig(type="template", prompt="{a} {b}", completion="{a}"), ("a", "b")),
        (ALPACA, ("instruction", "output")),
        (FUNCTION, ()),
    ],
)
def test_a_format_needs_exactly_its_columns(cfg: FormatConfig, columns: tuple[str, ...]) -> None:
    assert required_columns(cfg) == columns
    check_columns([*columns, "other"], cfg, "train")
    for missing in columns:
        others = [name for name in columns if name != missing] + ["other"]
        error = refused(DataError, partial(check_columns, others, cfg, "train"))
        (problem,) = error.problems
        assert repr(missing) in problem.found
        assert problem.found.endswith(f" {', '.join(others)}")


def test_a_missing_column_names_what_is_there_and_how_to_map_the_nearest() -> None:
    columns = ["instruction", "ouput"]
    error = refused(DataError, lambda: check_columns(columns, INSTRUCTION, "validation"))
    command = "dataset.columns.output=ouput"
    assert told(error) == {"format=instruction (validation)": (command,)}
    assert error.problems[0].allowed.endswith(" instruction, output")


def test_a_missing_text_column_may_be_named_by_its_key(golden_error: Pin) -> None:
    error = refused(DataError, lambda: check_columns(["texts", "id"], TEXT, "train"))
    commands = ("format.text_field=texts", "dataset.columns.text=texts")
    assert told(error) == {"format=text (train)": commands}
    golden_error(error)


def test_all_missing_columns_are_reported_together(golden_error: Pin) -> None:
    columns = ["sentence", "translation"]
    error = refused(DataError, lambda: check_columns(columns, PAIR, "train"))
    assert [problem.fix.partition("=")[0] for problem in error.problems] == [
        "dataset.columns.prompt",
        "dataset.columns.completion",
    ]
    golden_error(error)


# --- bad rows -------------------------------------------------------------------------------------

TEXT_FIELDS = [
    (TEXT, {"text": "a"}, "text"),
    (TEMPLATE, {"prompt": "a", "completion": "b"}, "prompt"),
    (TEMPLATE, {"prompt": "a", "completion": "b"}, "completion"),
    (INSTRUCTION, {"instruction": "a", "output": "b"}, "instruction"),
    (INSTRUCTION, {"instruction": "a", "output": "b"}, "output"),
    (PAIR, {"prompt": "a", "completion": "b"}, "prompt"),
    (PAIR, {"prompt": "a", "completion": "b"}, "completion"),
]
BAD_TEXTS = [
    (None, NULL, "null or missing"),
    (3, TYPE, "int '3'"),
    (float("nan"), TYPE, "float 'nan'"),
    ({"a": 1}, TYPE, "dict \"{'a': 1}\""),
    ("", EMPTY, "an empty string"),
    (" \n\t\u3000", EMPTY, "an empty string"),
]


@pytest.mark.parametrize(("cfg", "row", "field"), TEXT_FIELDS)
@pytest.mark.parametrize(("value", "reason", "found"), BAD_TEXTS)
def test_a_bad_text_names_the_row_the_field_and_what_stands_there(
    cfg: FormatConfig, row: dict[str, Any], field: str, value: Any, reason: str, found: str
) -> None:
    error = refused(RowError, lambda: to_sample({**row, field: value}, cfg, "validation[7]"))
    assert error.problem.where == f"validation[7].{field}"
    assert (error.reason, error.problem.found) == (reason, found)


@pytest.mark.parametrize("field", ["instruction", "output"])
def test_a_list_is_no_text_of_an_instruction(field: str) -> None:
    error = error_of({"instruction": "a", "output": "b", field: ["a"]}, INSTRUCTION)
    assert (error.problem.where, error.reason) == (f"train[0].{field}", TYPE)


def test_bad_rows_become_their_errors_and_good_ones_stay_in_their_places() -> None:
    rows = [{"text": "a"}, {"text": ""}, {}, {"text": "b"}]
    samples = to_samples(rows, TEXT, [f"train[{at}]" for at in range(4)])
    assert [samples[0], samples[3]] == [Text("a"), Text("b")]
    errors = [sample for sample in samples if isinstance(sample, RowError)]
    assert [(error.reason, error.problem.where) for error in errors] == [
        ("empty text", "train[1].text"),
        ("null or missing", "train[2].text"),
    ]


@pytest.mark.parametrize(
    ("row", "where", "found"),
    [
        ({"tools": "nope"}, ".tools", "str 'nope'"),
        ({"tools": 3}, ".tools", "int '3'"),
        ({"tools": ["add"]}, ".tools[0]", "str 'add'"),
        ({"tools": [3]}, ".tools[0]", "int '3'"),
        ({"chat_template_kwargs": [1]}, ".chat_template_kwargs", "list '[1]'"),
        ({"chat_template_kwargs": "{"}, ".chat_template_kwargs", "str '{'"),
    ],
)
def test_bad_tools_and_template_variables_are_named(
    row: dict[str, Any], where: str, found: str
) -> None:
    error = error_of({"messages": talk("ua"), **row}, MESSAGES)
    assert (error.problem.where, error.problem.found) == (f"train[0]{where}", found)
    assert error.reason == TYPE


@pytest.mark.parametrize(
    ("calls", "where", "found"),
    [
        ("add", ".tool_calls", "str 'add'"),
        ([3], ".tool_calls[0]", "int '3'"),
        (
            [{"function": {"name": "add", "arguments": "{"}}],
            ".tool_calls[0].function.arguments",
            "str '{'",
        ),
    ],
)
def test_bad_tool_calls_are_named(calls: Any, where: str, found: str) -> None:
    messages = [turn("user", "a"), {**turn("assistant", "b"), "tool_calls": calls}]
    error = error_of({"messages": messages}, MESSAGES)
    assert (error.problem.where, error.problem.found) == (f"train[0].messages[1]{where}", found)
    assert error.reason == TYPE


def test_a_missing_field_is_like_null() -> None:
    error = error_of({"instruction": "a"}, INSTRUCTION)
    assert (error.problem.where, error.reason) == ("train[0].output", NULL)


def test_an_input_of_another_type_is_refused() -> None:
    error = error_of({"instruction": "a", "input": 3, "output": "b"}, INSTRUCTION)
    assert (error.problem.where, error.reason) == ("train[0].input", TYPE)


def test_a_long_wrong_value_is_cut_in_the_message() -> None:
    error = error_of({"messages": {"content": "x" * 1000}}, MESSAGES)
    shown = "{'content': '" + "x" * 47  # 60 characters
    assert (error.problem.where, error.problem.found) == ("train[0].messages", f"dict {shown!r}")


HI = turn("user", "hi")


@pytest.mark.parametrize(
    ("messages", "where", "reason"),
    named(
        [
            ["null", None, "", NULL],
            ["a text", "hello", "", TYPE],
            ["a turn", HI, "", TYPE],
            ["a list of texts", ["hello"], "[0]", TYPE],
            ["a turn that is null", [HI, None], "[1]", NULL],
            ["no content", [{"role": "user"}], "[0].content", NULL],
            ["no role", [{"content": "hi"}], "[0].role", NULL],
            ["content null", [HI, turn("assistant", None)], "[1].content", NULL],
            ["content blank", [HI, turn("assistant", " ")], "[1].content", EMPTY],
            [
                "content in parts",
                [turn("user", [{"type": "image_url"}])],
                "[0].content[0]",
                "a part that is no text",
            ],
            ["unknown role", [turn("bot", "hi")], "[0].role", "unknown role"],
            ["a number of a tool", [HI, turn("tool", 3)], "[1].content", TYPE],
        ]
    ),
)
def test_bad_messages_name_the_turn(messages: Any, where: str, reason: str) -> None:
    error = error_of({"messages": messages}, MESSAGES)
    assert (error.problem.where, error.reason) == (f"train[0].messages{where}", reason)


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
        ("uta", "user, tool, assistant"),
        ("utua", "user, tool, user, assistant"),
        ("uaat", "user, assistant, assistant, tool"),
        ("ta", "tool, assistant"),
        (
            "ua" * 10 + "u",
            "user, assistant, user, assistant, user, assistant, ..., user, assistant, user, "
            "assistant, user",
        ),
    ],
)
def test_turns_out_of_order_name_the_roles(roles: str, found: str) -> None:
    error = error_of({"messages": talk(roles)}, MESSAGES)
    assert (error.problem.where, error.reason) == ("train[0].messages", SHUFFLED)
    assert error.problem.found.endswith(f"the roles {found}")


def test_a_system_turn_of_the_format_does_not_make_a_conversation_of_nothing() -> None:
    error = error_of({"messages": []}, FormatConfig(type="messages", system="Be short."))
    assert error.reason == SHUFFLED
    assert error.problem.found.endswith("(none)")
