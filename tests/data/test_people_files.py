"""What the files of people hold: fields of other tools, columns beside the turns, odd shapes.

Each file is read to the end, and what is trained is compared as text; what nothing reads is named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.test_bad_input import (
    END,
    Prepare,
    Write,
    model,
    prepared,
    text_of,
    trained_of,
    turn,
    write,
)
from data.test_templates import FOLDER
from sftpipe import DataError, PreparedData
from sftpipe.tables import preflight_facts, preflight_summary
from support.byte_model import CHATML
from support.errors import Pin, refused, told

__all__ = ["model", "prepared", "write"]

HI, YO = turn("user", "hi"), turn("assistant", "yo")
CHAT = ("dataset=json", "format=messages")
SHARE = ("dataset=json", "format=sharegpt")
Row = dict[str, Any]


def chatml(*turns: tuple[str, str]) -> str:
    return "".join(f"<|im_start|>{role}\n{text}{END}\n" for role, text in turns)


def template(name: str) -> str:
    return f"tokenizer.chat_template={FOLDER / name}.jinja"


def remarks(data: PreparedData) -> dict[tuple[str, str], int]:
    return {(one.kind, one.what): one.rows for one in data.preflight.remarks}


# --- system turns and earlier ones ----------------------------------------------------------------

PLAIN = chatml(("user", "hi"), ("assistant", "yo"))
WITH_SYSTEM = chatml(("system", "s"), ("user", "hi"), ("assistant", "yo"))
EARLIER = chatml(("user", "q"), ("assistant", "a"), ("user", "hi"), ("assistant", "yo"))
BESIDE: list[tuple[Row, str]] = [
    ({}, PLAIN),
    ({"system": "s"}, WITH_SYSTEM),
    ({"system": ""}, PLAIN),
    ({"system": " \n"}, PLAIN),
    ({"system": None}, PLAIN),
    ({"system": float("nan")}, PLAIN),
    ({"history": [["q", "a"]]}, EARLIER),
    ({"history": json.dumps([["q", "a"]])}, EARLIER),
    ({"history": [turn("user", "q"), turn("assistant", "a")]}, EARLIER),
    ({"history": []}, PLAIN),
    ({"history": ""}, PLAIN),
    (
        {"system": "s", "history": [["q", "a"]]},
        chatml(
            ("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "hi"), ("assistant", "yo")
        ),
    ),
    ({"tools": ""}, PLAIN),
    ({"tools": " "}, PLAIN),
    ({"tools": "[]"}, PLAIN),
    ({"functions": []}, PLAIN),
    ({"chat_template_kwargs": "{}"}, PLAIN),
]


@pytest.mark.parametrize("form", ["messages", "sharegpt", "instruction", "prompt_completion"])
def test_columns_beside_the_turns_are_read_in_every_format_of_conversations(
    prepared: Prepare, write: Write, form: str
) -> None:
    turns: dict[str, Row] = {
        "messages": {"messages": [HI, YO]},
        "sharegpt": {
            "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
        },
        "instruction": {"instruction": "hi", "output": "yo"},
        "prompt_completion": {"prompt": [HI], "completion": [YO]},
    }
    file = write("rows.jsonl", [{**turns[form], **beside} for beside, _ in BESIDE])
    data = prepared("dataset=json", f"format={form}", file, "preflight.duplicates=warn")
    assert [text_of(data, at) for at in range(len(BESIDE))] == [text for _, text in BESIDE]
    assert {trained_of(data, at) for at in range(len(BESIDE))} == {f"yo{END}"}
    assert data.preflight.remarks == []


def test_a_column_of_another_name_is_the_system_turn_and_null_hides_one(
    prepared: Prepare, write: Write
) -> None:
    file = write("rows.jsonl", [{"messages": [HI, YO], "system": "linux", "persona": "s"}])
    mapped = prepared(*CHAT, file, "dataset.columns.system=persona")
    assert text_of(mapped) == WITH_SYSTEM


def test_an_empty_system_turn_stays_where_the_template_has_one_of_its_own(
    prepared: Prepare, write: Write, tmp_path: Path
) -> None:
    rows = [
        {"messages": [turn("system", ""), HI, YO]},
        {"messages": [turn("system", None), HI, YO]},
    ]
    (tmp_path / "mine.jinja").write_text(
        "{% for m in messages if m.content %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        encoding="utf-8",
    )
    mine = f"tokenizer.chat_template={tmp_path / 'mine.jinja'}"
    plain = prepared(*CHAT, write("rows.jsonl", rows), mine, "preflight.duplicates=warn")
    assert text_of(plain, 0) == text_of(plain, 1) == PLAIN  # it makes no difference there
    data = prepared(*CHAT, write("rows.jsonl", rows), template("qwen2_5"))
    assert text_of(data, 0) == chatml(("system", ""), ("user", "hi"), ("assistant", "yo"))
    default = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    assert text_of(data, 1).startswith(chatml(("system", default)))
    (warning,) = data.preflight.warnings
    assert warning.where == "train[1] (rows.jsonl, line 2)"
    assert repr(default) in warning.found
    assert "1 of 2 rows has none" in warning.found
    allowed = prepared(
        *CHAT, write("rows.jsonl", rows), template("qwen2_5"), "preflight.default_system=allow"
    )
    assert allowed.preflight.warnings == []


# --- fields of turns ------------------------------------------------------------------------------


def test_reasoning_that_the_template_does_not_know_is_a_warning_with_the_map_to_type(
    prepared: Prepare, write: Write, golden_error: Pin
) -> None:
    file = write("rows.jsonl", [{"messages": [HI, {**YO, "thinking": "a greeting"}]}])
    data = prepared(*CHAT, file, template("qwen3"))
    (warning,) = data.preflight.warnings
    assert warning.where == "train[0] (rows.jsonl, line 1)"
    assert "'thinking'" in warning.found
    assert told(DataError(warning)) == {
        warning.where: ("format.fields.reasoning_content=thinking",)
    }
    assert "thinking" in preflight_summary(data.preflight)
    typed = prepared(*CHAT, file, template("qwen3"), *warning.commands)
    assert trained_of(typed) == f"<think>\na greeting\n</think>\n\nyo{END}"
    assert typed.preflight.warnings == []
    error = refused(
        DataError, lambda: prepared(*CHAT, file, template("qwen3"), "preflight.unread=error")
    )
    golden_error(error)


def test_a_field_that_the_template_reads_and_leaves_out_is_named(
    prepared: Prepare, write: Write
) -> None:
    rows = [
        {"messages": [HI, YO, HI, {**YO, "reasoning_content": "why"}]},
        {
            "messages": [
                HI,
                {**YO, "reasoning_content": "why"},
                HI,
                {**YO, "reasoning_content": "x"},
            ]
        },
    ]
    template_file = template("deepseek_r1_distill")
    data = prepared(*CHAT, write("rows.jsonl", rows), "tokenizer.chat_template=chatml")
    assert remarks(data)[("left out by the chat template", "reasoning_content")] == 2
    assert template_file  # qwen3 writes the reasoning of the last turn, which alone is trained
    assert prepared(*CHAT, write("rows.jsonl", rows), template("qwen3")).preflight.warnings == []


def test_fields_that_tell_turns_apart_are_listed_and_no_warning(
    prepared: Prepare, write: Write
) -> None:
    row = {
        "messages": [{**HI, "id": "m1", "weight": 0}, {**YO, "id": "m2"}],
        "id": 7,
        "source": "x",
    }
    data = prepared(*CHAT, write("rows.jsonl", [row, row]), "preflight.duplicates=warn")
    assert data.preflight.warnings == []
    assert remarks(data) == {
        ("stray flag", "weight"): 2,
        ("unread column", "id"): 2,
        ("unread column", "source"): 2,
        ("unread field", "id"): 2,
        ("left out by the chat template", "id"): 2,
    }
    facts = "\n".join(preflight_facts(data.preflight))
    assert "column source (2 rows)" in facts
    assert "weight of turns that are not the assistant's (2 rows)" in facts


@pytest.mark.parametrize(
    ("form", "row", "column"),
    [
        ("alpaca", {"instruction": "a", "output": "b", "history": [["q", "a"]]}, "history"),
        ("alpaca", {"instruction": "a", "output": "b", "system": "s"}, "system"),
        ("prompt_completion", {"prompt": "a", "completion": "b", "system": "s"}, "system"),
        ("prompt_completion", {"prompt": "a", "completion": "b", "rejected": "c"}, "rejected"),
        ("messages", {"messages": [HI, YO], "images": ["a.png"]}, "images"),
        ("messages", {"messages": [HI, YO], "weight": 0.5}, "weight"),
        ("messages", {"messages": [HI, YO], "reasoning": "because"}, "reasoning"),
        ("text", {"text": "a", "label": 1}, "label"),
    ],
)
def test_a_column_that_other_tools_act_on_is_a_warning_that_a_word_ends(
    prepared: Prepare, write: Write, form: str, row: Row, column: str
) -> None:
    words = ("dataset=json", f"format={form}", *(["loss=full"] if form == "text" else []))
    file = write("rows.jsonl", [row])
    (warning,) = prepared(*words, file).preflight.warnings
    assert f"the column {column!r} is not read" in warning.found
    assert warning.commands == (f"dataset.columns.{column}=null",)
    refused(DataError, lambda: prepared(*words, file, "preflight.unread=error"))


# --- calls of tools -------------------------------------------------------------------------------

ADD = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}},
}
CALLED = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'


def call(arguments: Any, *, bare: bool = False) -> Row:
    function = {"name": "add", "arguments": arguments}
    return function if bare else {"type": "function", "function": function}


CALLS: list[tuple[str, Row]] = [
    ("mapping", turn("assistant", None, tool_calls=[call({"a": 2})])),
    ("text", turn("assistant", "", tool_calls=[call('{"a": 2}')])),
    ("bare", turn("assistant", None, tool_calls=[call({"a": 2}, bare=True)])),
    ("JSON of the calls", turn("assistant", None, tool_calls=json.dumps([call({"a": 2})]))),
    ("before there were tools", turn("assistant", None, function_call=call('{"a": 2}', bare=True))),
    ("empty beside", turn("assistant", None, tool_calls=[call({"a": 2})], name="", refusal=None)),
]


@pytest.mark.parametrize(("name", "answer"), CALLS, ids=[name for name, _ in CALLS])
def test_a_call_is_read_in_each_way_that_it_is_written(
    prepared: Prepare, write: Write, name: str, answer: Row
) -> None:
    file = write("rows.jsonl", [{"messages": [HI, answer], "tools": [ADD]}])
    data = prepared(*CHAT, file, template("qwen2_5"), "preflight.default_system=allow")
    assert trained_of(data) == f"{CALLED}{END}"


@pytest.mark.parametrize("blank", [None, "", " ", [], {}])
def test_blank_fields_of_turns_are_none_to_the_template(
    prepared: Prepare, write: Write, tmp_path: Path, blank: Any
) -> None:
    named = "{% if 'name' in messages[-1] or 'tool_calls' in messages[-1] %}NAMED{% endif %}"
    (tmp_path / "mine.jinja").write_text(named + CHATML, encoding="utf-8")
    rows = [{"messages": [{**HI, "name": blank}, {**YO, "name": blank, "tool_calls": blank}]}]
    file = write("rows.jsonl", rows)
    data = prepared(*CHAT, file, f"tokenizer.chat_template={tmp_path / 'mine.jinja'}")
    assert text_of(data) == PLAIN


def test_functions_and_calls_of_sharegpt_are_tools(prepared: Prepare, write: Write) -> None:
    turns = [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "yo"},
    ]
    row = {"conversations": turns, "tools": json.dumps([ADD])}
    legacy = {
        "conversations": turns,
        "functions": [ADD["function"]],
    }
    words = (template("qwen2_5"), "loss=assistant_only", "preflight.default_system=allow")
    data = prepared(*SHARE, write("rows.jsonl", [row, legacy]), *words, "preflight.duplicates=warn")
    assert trained_of(data, 0) == f"{CALLED}{END}yo{END}"
    assert data.train[0]["input_ids"] == data.train[1]["input_ids"]


@pytest.mark.parametrize("arguments", [None, "", "{}", {}])
def test_absent_arguments_are_none(prepared: Prepare, write: Write, arguments: Any) -> None:
    answer = turn("assistant", None, tool_calls=[call(arguments)])
    file = write("rows.jsonl", [{"messages": [HI, answer]}])
    data = prepared(*CHAT, file, template("qwen2_5"), "preflight.default_system=allow")
    assert '"arguments": {}' in trained_of(data)


def test_null_in_the_arguments_of_json_is_data(prepared: Prepare, write: Write) -> None:
    answer = turn("assistant", None, tool_calls=[call({"a": None, "b": [None]})])
    file = write("rows.jsonl", [{"messages": [HI, answer]}])
    data = prepared(*CHAT, file, template("qwen2_5"), "preflight.default_system=allow")
    assert '"arguments": {"a": null, "b": [null]}' in trained_of(data)


ADDS_TEXT = (  # as DeepSeek's: arguments are added to text
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}"
    "{% for c in m.tool_calls %}{{ c.function.name + c.function.arguments }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PRINTS = ADDS_TEXT.replace(
    "c.function.name + c.function.arguments", "c.function.name ~ c.function.arguments"
)


@pytest.mark.parametrize("source", [ADDS_TEXT, PRINTS])
@pytest.mark.parametrize(
    ("arguments", "written"),
    [('{"a":2}', '{"a":2}'), ({"a": "나"}, '{"a": "나"}'), ({"a": "it's"}, '{"a": "it\'s"}')],
)
def test_arguments_are_json_to_a_template_that_takes_text_or_prints_python(
    prepared: Prepare, write: Write, tmp_path: Path, source: str, arguments: Any, written: str
) -> None:
    (tmp_path / "mine.jinja").write_text(source, encoding="utf-8")
    answer = turn("assistant", None, tool_calls=[call(arguments)])
    file = write("rows.jsonl", [{"messages": [HI, answer]}])
    data = prepared(*CHAT, file, f"tokenizer.chat_template={tmp_path / 'mine.jinja'}")
    assert trained_of(data) == f"add{written}{END}"


def test_a_template_that_writes_no_calls_is_refused_though_its_tools_name_the_function(
    prepared: Prepare, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "mine.jinja").write_text("{{ tools | tojson }}" + CHATML, encoding="utf-8")
    answer = turn("assistant", "I add.", tool_calls=[call({"a": 2})])
    rows = [{"messages": [HI, YO]}, {"messages": [HI, answer], "tools": [ADD]}]
    words = (f"tokenizer.chat_template={tmp_path / 'mine.jinja'}", "preflight.max_empty_rows=1")
    data = prepared(*CHAT, write("rows.jsonl", rows), *words)
    (dropped,) = data.preflight.dropped
    assert (dropped.where, dropped.reason) == (
        "train[1].messages[1]",
        "left out by the chat template",
    )


# --- texts in parts, in JSON, and names of others -------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "yo"}],
        [{"type": "text", "text": "y"}, {"type": "text", "text": "o"}],
        ["yo"],
        [{"text": "yo"}],
    ],
)
def test_text_parts_are_joined(prepared: Prepare, write: Write, content: Any) -> None:
    data = prepared(*CHAT, write("rows.jsonl", [{"messages": [HI, turn("assistant", content)]}]))
    assert text_of(data) == PLAIN


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_nested_columns_may_be_json_in_a_string(prepared: Prepare, write: Write, kind: str) -> None:
    turns = json.dumps([HI, YO])
    share = json.dumps([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}])
    rows: list[tuple[str, Row]] = [
        ("messages", {"messages": turns, "tools": ""}),
        ("sharegpt", {"conversations": share}),
        ("prompt_completion", {"prompt": json.dumps([HI]), "completion": json.dumps([YO])}),
    ]
    for form, row in rows:
        lines = [
            ",".join(row),
            ",".join('"' + value.replace('"', '""') + '"' for value in row.values()),
        ]
        content: Any = [row] if kind == "json" else "\n".join(lines) + "\n"
        data = prepared(f"dataset={kind}", f"format={form}", write(f"rows.{kind}", content))
        assert (text_of(data), trained_of(data)) == (PLAIN, f"yo{END}")


def test_what_python_prints_of_a_list_is_named(prepared: Prepare, write: Write) -> None:
    file = write("rows.jsonl", [{"messages": str([HI, YO])}])
    error = refused(DataError, lambda: prepared(*CHAT, file))
    assert "json.dumps" in error.problems[1].fix


def test_a_text_that_happens_to_be_json_stays_a_text(prepared: Prepare, write: Write) -> None:
    rows = [
        {"prompt": "[1, 2]", "completion": " [3]"},
        {"prompt": '[{"role": "a"}]', "completion": "x"},
    ]
    data = prepared("dataset=json", "format=prompt_completion", write("rows.jsonl", rows))
    assert [text_of(data, at) for at in (0, 1)] == [f"[1, 2] [3]{END}", f'[{{"role": "a"}}]x{END}']


def test_keys_and_roles_of_others_are_mapped(prepared: Prepare, write: Write) -> None:
    turns = [
        {"speaker": "customer", "text": "hi"},
        {"speaker": "agent", "text": "yo", "learn": True, "role": "clerk"},
    ]
    words = (
        "format.fields={role: speaker, content: text, train: learn}",
        "format.roles={customer: user, agent: assistant}",
    )
    data = prepared(*CHAT, write("rows.jsonl", [{"messages": turns}]), *words)
    assert (text_of(data), trained_of(data)) == (PLAIN, f"yo{END}")
    assert remarks(data) == {("unread field", "role"): 1}


def test_the_role_of_a_developer_is_the_systems_where_the_template_does_not_know_it(
    prepared: Prepare, write: Write
) -> None:
    file = write("rows.jsonl", [{"messages": [turn("developer", "s"), HI, YO]}])
    error = refused(DataError, lambda: prepared(*CHAT, file))
    assert error.problems[1].commands == ("format.roles.developer=system",)
    assert text_of(prepared(*CHAT, file, "format.roles.developer=system")) == WITH_SYSTEM


def test_turns_of_another_layout_say_which_format_reads_them(
    prepared: Prepare, write: Write
) -> None:
    file = write("rows.jsonl", [{"conversations": [HI, YO]}])
    error = refused(DataError, lambda: prepared(*SHARE, file))
    (command,) = error.problems[1].commands
    words = command.split()
    assert text_of(prepared("dataset=json", file, *words)) == PLAIN


def test_a_doubled_block_is_a_warning(prepared: Prepare, write: Write) -> None:
    rows = [{"messages": [HI, turn("assistant", "<think>\nwhy\n</think>\n\nyo")]}]
    data = prepared(*CHAT, write("rows.jsonl", rows), template("qwen3_8"))
    found = [warning.found for warning in data.preflight.warnings]
    assert any("writes <think> in front of a text that begins with it" in one for one in found)
    assert prepared(*CHAT, write("rows.jsonl", rows), template("qwen3")).preflight.warnings == []
