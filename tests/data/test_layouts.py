"""What an unknown file looks like, and what to type: each proposal is typed and trains answers.

The cases stand in docs/data.md ("Your file looks like this"), for people to read; here are what
they train, and files of other names.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftpipe import DataError, PreparedData, prepare
from sftpipe.cli import main
from sftpipe.data.layouts import FIRST_ROWS, Layout, recognise
from support.byte_model import CHATML, write_byte_model
from support.configs import compose
from support.errors import Pin, refused, told

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
END = "<|im_end|>"
NORWAY = f"In Norway.{END}"
Row = dict[str, Any]
Answers = Callable[..., list[str]]


class Case(NamedTuple):
    """An example of the documents."""

    name: str
    rows: list[Row]
    typed: str
    code: str


def documented() -> list[Case]:
    """The examples of the section, in their order."""
    text = DOCS.read_text(encoding="utf-8")
    section = text[text.index("## Your file looks like this") : text.index("## Write: ")]
    cases, name = [], ""
    pattern = r"^\*\*(.+?)\*\*|^```\n(\{.*?)\n-> (.*?)\n```(?:\n```\n((?!\{).*?)\n```)?"
    for heading, rows, typed, code in re.findall(pattern, section, re.MULTILINE | re.DOTALL):
        name = heading.rstrip(".") or name
        if rows:
            again = sum(case.name.startswith(name) for case in cases)
            full = f"{name} ({again + 1})" if again else name
            cases.append(Case(full, [json.loads(row) for row in rows.splitlines()], typed, code))
    return cases


CASES = documented()
TRAINED = {  # where it is not the answer that nearly all examples have
    "Lists of questions with their answers": [f"In Italy.{END}"],
    "Prompt and completion": [f" In Norway.{END}"],
    "Texts": [f"Oslo is in Norway.{END}"],
    "Texts (2)": [f"Oslo is in Norway.{END}"],
    "Guanaco": [f" In Norway. In Italy.{END}"],
    "Results of tools that no turn calls": [f"It is 72.{END}"],
    "A message in each row": [f"In Italy.{END}", f"Far north.{END}"],
}


# --- typed as they stand --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_model(tmp_path_factory.mktemp("bytes") / "model")


@pytest.fixture
def answers(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """What rows train with a layout as a person types it, in a folder with the function."""

    def run(rows: Sequence[Row], layout: Layout, *words: str) -> list[str]:
        file = write(tmp_path, rows)
        monkeypatch.chdir(tmp_path)
        code = layout.code.replace('"messages.jsonl"', repr(str(file)))
        (tmp_path / "my_rows.py").write_text(code, encoding="utf-8")
        sys.modules.pop("my_rows", None)
        importlib.invalidate_caches()
        typed = shlex.split(layout.typed)
        files = ["dataset=json", f"dataset.data_files={file}"]
        if "dataset=function" in typed:
            files = []
        data = prepare(
            compose([*files, f"model.name_or_path={model}", "evaluation=none", *typed, *words])
        )
        assert data.preflight.dropped == []
        return list(map(trained_of(data), data.train))

    return run


def write(folder: Path, rows: Sequence[Row]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def trained_of(data: PreparedData) -> Callable[[Any], str]:
    return lambda row: str(data.tokenizer.decode([one for one in row["labels"] if one != -100]))


def found(rows: Sequence[Row]) -> Layout:
    layout = recognise(rows)
    assert layout is not None
    return layout


def test_the_documents_have_an_example_of_each_name_that_is_looked_for_here() -> None:
    names = [case.name for case in CASES]
    assert len(names) > 25
    assert set(TRAINED) <= {*names}


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_each_example_of_the_documents_is_recognised_and_trains_its_answers(
    case: Case, answers: Answers
) -> None:
    layout = found(case.rows)
    assert (layout.typed, layout.code) == (case.typed, case.code)
    assert shlex.split(layout.typed) == list(layout.words)
    assert answers(case.rows, layout) == TRAINED.get(case.name, [NORWAY])


# --- other names ----------------------------------------------------------------------------------

QUESTION, ANSWER = "Where is Oslo?", "In Norway."
ASKED, TOLD = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
SHAREGPT = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]


def turns_of(role: str, text: str, user: str = "user", assistant: str = "assistant") -> list[Row]:
    return [{role: user, text: QUESTION}, {role: assistant, text: ANSWER}]


def pair(question: str, answer: str, **more: Any) -> Row:
    return {question: QUESTION, answer: ANSWER, **more}


def columns(**names: str) -> dict[str, str]:
    return {f"dataset.columns.{ours}": theirs for ours, theirs in names.items()}


def mapped(question: str, answer: str, **more: str) -> dict[str, str]:
    return {"format": "instruction", **columns(instruction=question, **more, output=answer)}


def of_text(before: str, behind: str, column: str = "text") -> dict[str, str]:
    return {
        "format": "text",
        **({} if column == "text" else {"format.text_field": column}),
        "loss": "response_template",
        "loss.response_template": behind,
        "loss.instruction_template": before,
    }


# a row, the settings; all train the same answer
OTHERS: list[tuple[str, Row, dict[str, Any]]] = [
    *(
        (f"messages in {name}", {"id": "a", name: [ASKED, TOLD]}, {"format": "messages", **typed})
        for name, typed in [
            ("messages", {}),
            *((name, columns(messages=name)) for name in ("dialogue", "chat", "my_own", "두번째")),
        ]
    ),
    (
        "messages as JSON",
        {"messages": json.dumps([ASKED, TOLD])},
        {"format": "messages"},
    ),
    (
        "ShareGPT as JSON in another column",
        {"items": json.dumps(SHAREGPT)},
        {"format": "sharegpt", **columns(conversations="items")},
    ),
    (
        "messages beside the columns that they are made of",
        {"messages": [ASKED, TOLD], "prompt": QUESTION, "text": "a", "answer": "b"},
        {"format": "messages"},
    ),
    *(
        (
            f"ShareGPT, {user} and {assistant}",
            {"conversations": turns_of("from", "value", user, assistant)},
            {"format": "sharegpt", **typed},
        )
        for user, assistant, typed in [
            ("user", "assistant", {}),
            ("human", "chatgpt", {"format.roles.chatgpt": "assistant"}),
            ("human", "bard", {"format.roles.bard": "assistant"}),
            ("human", "model", {"format.roles.model": "assistant"}),
            ("User", "GPT", {"format.roles.User": "user", "format.roles.GPT": "assistant"}),
        ]
    ),
    *(
        (
            f"turns of {role} and {text}",
            {"messages": turns_of(role, text)},
            {"format": "messages", **typed},
        )
        for role, text, typed in [
            ("user", "utterance", {"format.fields.role": "user"}),
            ("from", "content", {"format.fields.role": "from"}),
            ("role", "value", {}),
            ("author", "body", {"format.fields.role": "author"}),
            ("role", "parts", {}),
        ]
        for typed in [{**typed, **({} if text == "content" else {"format.fields.content": text})}]
    ),
    *(
        (f"{question} and {answer}", pair(question, answer), mapped(question, answer))
        for question, answer in [
            ("question", "response"),
            ("query", "response"),
            ("problem", "solution"),
            ("input", "target"),
            ("source", "target"),
            ("prompt", "response"),
            ("Question", "Answer"),
            ("지시", "출력"),
            ("문제", "풀이"),
            ("user", "assistant"),
            ("Q", "A"),
            ("document", "summary"),
        ]
    ),
    (
        "the short answer beside the solution",
        {"problem": QUESTION, "solution": ANSWER, "answer": "N"},
        mapped("problem", "solution"),
    ),
    (
        "input and output",
        pair("input", "output"),
        {"format": "instruction", **columns(instruction="input")},
    ),
    (
        "a system text under another name",
        pair("question", "response", system_prompt="Be short."),
        {**mapped("question", "response"), **columns(system="system_prompt")},
    ),
    (
        "a context in Korean",
        pair("질문", "답변", 맥락="Oslo is in Norway."),
        mapped("질문", "답변", input="맥락"),
    ),
    *(
        (f"texts in {name}", {name: ANSWER, "id": 1}, {"format": "text", "loss": "full", **typed})
        for name, typed in [
            ("text", {}),
            ("Body", {"format.text_field": "Body"}),
        ]
    ),
    (
        "markers of Llama 2",
        {"id": "a", "content": f"[INST] {QUESTION} [/INST]{ANSWER}"},
        of_text("[INST]", "[/INST]", "content"),
    ),
    (
        "markers of Alpaca in Korean",
        {"text": f"### 질문: {QUESTION}\n\n### 답변:{ANSWER}"},
        of_text("### 질문:", "### 답변:"),
    ),
    (
        "chosen texts with markers",
        {"chosen": f"\n\nHuman: {QUESTION}\n\nAssistant:{ANSWER}", "rejected": "a"},
        of_text("Human:", "Assistant:", "chosen"),
    ),
]


@pytest.mark.parametrize(
    ("row", "settings"), [pytest.param(row, found, id=name) for name, row, found in OTHERS]
)
def test_names_of_other_sets_are_mapped_and_train_the_answer(
    row: Row, settings: dict[str, Any], answers: Answers
) -> None:
    layout = found([row])
    assert layout.settings == settings
    assert layout.code == ""
    assert answers([row], layout) == [NORWAY]


# a row that a function reads
BY_FUNCTION: list[tuple[str, Row]] = [
    ("texts in turn, as JSON", {"conversations": json.dumps([QUESTION, ANSWER])}),
    ("turns and their answer", {"prompt": [ASKED], "completion": ANSWER}),
    (
        "ShareGPT turns and their answer",
        {"conversations": [SHAREGPT[0]], "response": ANSWER, "system": "Be short."},
    ),
    ("pairs of texts", {"dialog": [[QUESTION, ANSWER]]}),
    ("pairs of user and assistant", {"turns": [{"user": QUESTION, "assistant": ANSWER}] * 2}),
    ("a list of answers", {"question": QUESTION, "answers": [ANSWER, "North."]}),
    (
        "SQuAD as JSON",
        {"context": "a", "question": QUESTION, "answers": json.dumps({"text": [ANSWER]})},
    ),
    (
        "a result of a tool in ShareGPT turns",
        {"conversations": [SHAREGPT[0], {"from": "observation", "value": "a"}, SHAREGPT[1]]},
    ),
    (
        "roles of two words",
        {"talk": turns_of("speaker", "text", "User", "The AI")},
    ),
    (
        "a system text beside lists of texts",
        {"conversations": [QUESTION, ANSWER], "system_prompt": "Be short."},
    ),
    (
        "a tree without ranks",
        {
            "prompt": {
                "text": QUESTION,
                "role": "prompter",
                "replies": [
                    {
                        "text": ANSWER,
                        "role": "assistant",
                        "replies": [{"text": "And Rome?", "role": "prompter", "replies": []}],
                    }
                ],
            }
        },
    ),
]


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in BY_FUNCTION])
def test_what_no_format_reads_is_read_by_the_function_that_is_shown(
    row: Row, answers: Answers
) -> None:
    layout = found([row])
    assert layout.code
    assert "\n\n" not in layout.code  # empty lines are the ends of what is to be pasted
    assert answers([row], layout) == [NORWAY]


def test_calls_in_turns_of_role_and_content_are_read_as_sharegpt_has_them(
    answers: Answers, tmp_path: Path
) -> None:
    called = {"role": "function_call", "content": '{"name": "find", "arguments": {"a": 1}}'}
    row = {"messages": [ASKED, called, {"role": "observation", "content": "here"}, TOLD]}
    template = tmp_path / "tools.jinja"
    template.write_text(CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls }}"))
    layout = found([row])
    assert layout.settings == {
        "format": "sharegpt",
        **columns(conversations="messages"),
        "format.fields.role": "role",
        "format.fields.content": "content",
    }
    words = (f"tokenizer.chat_template={template}", "loss=assistant_only")
    (trained,) = answers([row], layout, *words)
    assert re.fullmatch(r"\[.*'find'.*\]<\|im_end\|>In Norway\.<\|im_end\|>", trained)


def test_a_function_to_paste_keeps_the_system_text_and_the_tools(answers: Answers) -> None:
    row = {"conversations": [QUESTION, ANSWER], "system_prompt": "Be short.", "tools": None}
    layout = found([row])
    (trained,) = answers([row], layout, "loss=full")
    assert trained.startswith(f"<|im_start|>system\nBe short.{END}\n<|im_start|>user\n{QUESTION}")
    assert '"tools": row.get("tools")' in layout.code


# --- what is not recognised -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{}],
        [{"messages": []}, {"messages": None}],
        [{"sentence": "a", "translation": "b"}],
        [{"prompt": "a"}],  # half of a pair is no text
        [{"question": "a", "answer": 7}],
        [{"tags": ["a", "b"], "id": 1}],
        [{"tools": [{"name": "find", "text": "a"}]}],
        [{"history": [["a", "b"]]}],
        [{"prompt": [ASKED], "reward": 1}],  # nothing answers
        [{"messages": [ASKED], "id": "a"}],
        [{"data": "{not json"}, {"data": "[1, 2]"}],
    ],
)
def test_what_says_too_little_is_not_guessed(rows: list[Row]) -> None:
    assert recognise(rows) is None


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"version": "1", "data": [pair("question", "answer")]}, "under 'data'"),
        ({"question": {"0": "a", "1": "b"}, "answer": {"0": "c", "1": "d"}}, "by columns"),
        ({"question": ["a", "b"], "answer": ["c", "d"]}, "by columns"),
    ],
)
def test_one_object_for_a_whole_table_is_named(row: Row, name: str) -> None:
    layout = found([row])
    assert name in layout.name
    assert (layout.words, layout.code) == ((), "")
    assert layout.note in layout.fix()


def test_the_only_text_of_a_file_is_taken_for_texts_if_it_has_words() -> None:
    assert found([{"sent": "Oslo is north.", "id": 1}]).settings["format.text_field"] == "sent"
    assert recognise([{"sent": "Oslo", "id": 1}]) is None


def test_a_quarter_of_bad_rows_does_not_hide_a_layout() -> None:
    good, bad = {"conversations": SHAREGPT}, {"conversations": "a"}
    assert found([good, good, good, bad]).settings == {"format": "sharegpt"}
    assert recognise([good, bad, bad]) is None or found([good, bad, bad]).settings != {
        "format": "sharegpt"
    }


def test_a_name_that_hydra_would_misread_is_quoted(answers: Answers) -> None:
    row = {"my turns": [ASKED, TOLD]}
    layout = found([row])
    assert layout.typed == "format=messages \"dataset.columns.messages='my turns'\""
    assert answers([row], layout) == [NORWAY]
    assert found([{"it's": [ASKED, TOLD]}]).words[1] == "dataset.columns.messages='it\\'s'"
    assert found([{"null": [ASKED, TOLD]}]).words[1] == "dataset.columns.messages='null'"
    for name in ("it's", "null"):
        assert answers([{name: [ASKED, TOLD]}], found([{name: [ASKED, TOLD]}])) == [NORWAY]


KNOWN = ["messages", "conversations", "prompt", "chosen", "rejected", "answers", "text", "context"]
KEYS = ["role", "content", "from", "value", "text", "replies", "user", "assistant", "0", "a.b"]
SAID = ["user", "assistant", "human", "tool", "### Human: a ### Assistant: b", "[1]", "{"]
VALUES = st.recursive(
    st.none() | st.integers() | st.floats() | st.sampled_from(SAID) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
NAMES = st.sampled_from(KNOWN) | st.text(min_size=1, max_size=6)


@given(st.lists(st.dictionaries(NAMES, VALUES, max_size=4), max_size=3))
def test_no_row_is_a_fault_of_the_recogniser(rows: list[Row]) -> None:
    layout = recognise(rows)
    if layout is not None:
        assert layout.words or layout.note
        compile(layout.code, "my_rows", "exec")


@given(st.text(min_size=1, max_size=8))
def test_what_is_proposed_reaches_a_program_whole_whatever_the_name(name: str) -> None:
    layout = found([{name: [ASKED, TOLD]}])
    assert shlex.split(layout.typed) == list(layout.words)


# --- where a user is stuck ------------------------------------------------------------------------


@pytest.fixture
def checked(model: Path, tmp_path: Path) -> Callable[..., DataError]:
    """The error of rows that a config does not read."""

    def run(rows: Sequence[Row], *words: str) -> DataError:
        files = ["dataset=json", f"dataset.data_files={write(tmp_path, rows)}"]
        cfg = compose([*files, f"model.name_or_path={model}", "evaluation=none", *words])
        return refused(DataError, lambda: prepare(cfg))

    return run


Checked = Callable[..., DataError]


def test_a_missing_column_is_told_with_what_the_file_looks_like(
    checked: Checked, golden_error: Pin
) -> None:
    error = checked([{"dialog": [ASKED, TOLD], "id": "a"}] * 3)
    layout = found([{"dialog": [ASKED, TOLD]}])
    assert told(error) == {"format=instruction (train)": (layout.typed,)}
    assert error.words == layout.words
    golden_error(error)


def test_a_missing_column_is_told_with_the_function_to_paste(
    checked: Checked, golden_error: Pin
) -> None:
    rows = [{"conversations": [QUESTION, ANSWER]}]
    error = checked(rows)
    assert f"\n\n{found(rows).code}\n\n" in str(error)
    assert told(error) == {"format=instruction (train)": (found(rows).typed,)}
    golden_error(error)


def test_a_template_with_a_line_break_stands_where_no_indent_comes_into_it(
    checked: Checked, golden_error: Pin
) -> None:
    (case,) = (case for case in CASES if case.name == "ChatML in a text")
    error = checked(case.rows)
    assert f"\n\n{case.typed}\n" in str(error)
    assert told(error) == {"format=instruction (train)": (case.typed,)}
    golden_error(error)


def test_a_name_that_is_nearly_right_is_mapped_where_nothing_is_recognised(
    checked: Checked,
) -> None:
    error = checked([{"instruction": "a", "ouput": "b"}])
    assert told(error) == {"format=instruction (train)": ("dataset.columns.output=ouput",)}
    assert error.words == ()


def test_patterns_stay_and_are_given_their_columns(checked: Checked) -> None:
    error = checked([pair("question", "answer", system_prompt="a")], "format=alpaca")
    typed = "dataset.columns.instruction=question dataset.columns.output=answer"
    assert told(error) == {"format=template (train)": (typed,)}
    own = ("format=template", "format.prompt='{ask}'", "format.completion='{tell}'")
    assert told(checked([pair("question", "answer")], *own)) == {"format=template (train)": ()}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"conversations": [ASKED, TOLD]}, ["format=sharegpt"]),
        ({"conversations": [QUESTION, ANSWER]}, ["format=sharegpt"]),
        ({"messages": SHAREGPT}, ["format=messages"]),
        ({"talk": SHAREGPT}, ["format=messages", "dataset.columns.messages=talk"]),
        ({"messages": turns_of("role", "content", "human", "bot")}, ["format=messages"]),
        (pair("prompt", "completion"), ["dataset.columns.instruction=id", "format=instruction"]),
    ],
)
def test_rows_of_another_shape_are_told_with_what_reads_them(
    row: Row, words: list[str], checked: Checked, answers: Answers
) -> None:
    if "instruction" in words[-1]:
        row = {**row, "id": 7, "output": None}
    error = checked([row] * 2, *words)
    layout = found([row])
    assert error.problems[0].where == "train"
    assert error.problems[0].commands == (layout.typed,)
    assert answers([row], layout) != []


def test_rows_that_the_config_reads_in_part_are_told_as_before(checked: Checked) -> None:
    good = {"messages": [ASKED, TOLD]}
    told_as_before = ("preflight.max_empty_rows=1",)
    for bad in ({"messages": [TOLD, ASKED]}, {"messages": None}):
        error = checked([good, bad], "format=messages")
        assert error.problems[0].commands == told_as_before
    in_part = [{"conversations": SHAREGPT}] * 3 + [{"conversations": [ASKED, TOLD]}]
    assert checked(in_part, "format=sharegpt").problems[0].commands == told_as_before


def test_a_file_of_another_format_may_hold_a_good_row(checked: Checked) -> None:
    rows = [{"conversations": [ASKED, TOLD]}] * 4 + [{"conversations": SHAREGPT}]
    typed = "format=messages dataset.columns.messages=conversations"
    assert checked(rows, "format=sharegpt").problems[0].commands == (typed,)


def test_columns_of_text_and_of_parquet_are_recognised_as_those_of_json(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = json.dumps(SHAREGPT).replace('"', '""')
    (tmp_path / "rows.csv").write_text(f'talk,id\n"{turns}",1\n', encoding="utf-8")
    rows = datasets.Dataset.from_list([{"talk": SHAREGPT, "id": 1}])
    rows.to_parquet(tmp_path / "rows.parquet")
    for kind in ("csv", "parquet"):
        words = [f"dataset={kind}", f"dataset.data_files={tmp_path / f'rows.{kind}'}"]
        assert main(["check", *words, f"model.name_or_path={model}", "evaluation=none"]) == 2
        command = shlex.split(capsys.readouterr().err.splitlines()[-1])
        assert command[-2:] == ["format=sharegpt", "dataset.columns.conversations=talk"]
        assert main(command[1:]) == 0


def test_a_source_of_a_mixture_is_told_without_words_that_reach_nothing(
    model: Path, tmp_path: Path
) -> None:
    def error_of(rows: list[Row], form: str) -> DataError:
        file = f"{{path: json, data_files: '{write(tmp_path, rows)}', format: {{type: {form}}}}}"
        sources = f"dataset.sources=[{file}, {{path: embedded, name: yoda, format: {YODA}}}]"
        words = [f"model.name_or_path={model}", "evaluation=none", "dataset=mixture", sources]
        return refused(DataError, lambda: prepare(compose(words)))

    error = error_of([{"conversations": SHAREGPT}], "instruction")
    assert error.problems[0].commands == ()
    assert error.problems[0].fix.endswith("format=sharegpt")
    assert error.words == ()
    error = error_of([{"conversations": [QUESTION, ANSWER]}] * 2, "sharegpt")
    assert error.problems[0].commands == ()
    assert "def to_messages" in error.problems[0].fix
    error = error_of([{"conversations": SHAREGPT[::-1]}], "sharegpt")
    assert error.problems[0].commands == ("preflight.max_empty_rows=1",)


YODA = "{type: prompt_completion}"


@pytest.mark.parametrize(
    ("rows", "typed", "kept"),
    [
        ([{"conversations": SHAREGPT}], [], ["format=sharegpt"]),
        (
            [{"dialog": [ASKED, TOLD]}],
            ["format=sharegpt", "format.system=a", "dataset.columns.x=dialog", "dataset.limit=3"],
            ["dataset.limit=3", "format=messages", "dataset.columns.messages=dialog"],
        ),
        (
            [{"text": f"### Human: {QUESTION}### Assistant: {ANSWER}"}],
            ["loss=full"],
            list(found([{"text": f"### Human: {QUESTION}### Assistant: {ANSWER}"}]).words),
        ),
    ],
)
def test_check_ends_with_the_command_that_goes_on(
    rows: list[Row],
    typed: list[str],
    kept: list[str],
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = ["dataset=json", f"dataset.data_files={write(tmp_path, rows)}"]
    words = [*files, f"model.name_or_path={model}", "evaluation=none"]
    assert main(["check", *words, *typed]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    command = shlex.split(told.splitlines()[-1])
    assert command == ["sftpipe", "check", *words, *kept]
    assert main(command[1:]) == 0


def test_code_to_paste_has_no_indent_on_a_terminal(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"conversations": [QUESTION, ANSWER]}]
    words = ["dataset=json", f"dataset.data_files={write(tmp_path, rows)}"]
    assert main(["check", *words, f"model.name_or_path={model}"]) == 2
    assert f"\n\n{found(rows).code}\n\n" in capsys.readouterr().err


def test_a_set_of_trees_is_read_without_the_file_of_before(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (case,) = (case for case in CASES if case.name == "A message in each row")
    words = ["dataset=json", f"dataset.data_files={write(tmp_path, case.rows)}"]
    assert main(["check", *words, f"model.name_or_path={model}"]) == 2
    command = shlex.split(capsys.readouterr().err.splitlines()[-1])
    assert command[2:] == [f"model.name_or_path={model}", *found(case.rows).words]


def test_a_layout_is_told_from_the_first_rows(checked: Checked) -> None:
    rows = [{"note": 7}] * FIRST_ROWS + [{"conversations": SHAREGPT}] * 300
    assert told(checked(rows)) == {"format=instruction (train)": ()}
