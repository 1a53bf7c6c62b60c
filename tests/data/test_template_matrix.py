"""Every published template with every kind of conversation: what is trained, or why it is refused.

tests/golden/templates/NAME.txt has a line for each conversation, as a person can review it, for the
templates of TRL but those for images; `make golden` writes it anew. What is trained stands in
⟦brackets⟧, the end token included.
"""

from __future__ import annotations

import copy
import datetime
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.test_templates import NO_STRINGS, REFUSED, SOURCES, TURN_TOKENS, published, segments
from sftpipe.config.schema import FormatConfig, LossConfig
from sftpipe.data.encode import Encoded, Encoder
from sftpipe.data.samples import Row
from sftpipe.errors import DataError, RowError, one_line
from support.samples import to_samples
from support.tokenizers import tokenizer_at, write_kind

GOLDEN = Path(__file__).parents[1] / "golden" / "templates"
DAY = datetime.date(2026, 1, 2)
IMAGES = [name for name, (_, why) in REFUSED.items() if why == NO_STRINGS]
NAMES = [name for name in SOURCES if name.removesuffix("_training") not in IMAGES]

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


def turn(role: str, content: Any, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def sums(arguments: Any, *, declared: bool = True) -> Row:
    call = {
        "type": "function",
        "id": "c12345678",
        "function": {"name": "add", "arguments": arguments},
    }
    turns = [
        turn("user", "Add 2 and 3."),
        turn("assistant", None, tool_calls=[call]),
        turn("tool", "5", name="add", tool_call_id="c12345678"),
        turn("assistant", "It is 5."),
    ]
    return {"messages": turns, **({"tools": [ADD]} if declared else {})}


HI, YO = turn("user", "Hi."), turn("assistant", "Hello.")
CASES: dict[str, Row] = {
    "one turn": {"messages": [HI, YO]},
    "system": {"messages": [turn("system", "Be kind."), HI, YO]},
    "empty system": {"messages": [turn("system", ""), HI, YO]},
    "developer": {"messages": [turn("developer", "Be kind."), HI, YO]},
    "two turns": {"messages": [HI, YO, turn("user", "Bye."), turn("assistant", "See you.")]},
    "tools": sums({"a": 2, "b": 3}),
    "tools, arguments as text": sums('{"a": 2, "b": 3}'),
    "tools, none declared": sums({"a": 2, "b": 3}, declared=False),
    "empty calls": {"messages": [{**HI, "name": ""}, {**YO, "tool_calls": []}], "tools": []},
    "reasoning field": {"messages": [HI, {**YO, "reasoning_content": "A greeting."}]},
    "reasoning in the text": {
        "messages": [HI, turn("assistant", "<think>\nA greeting.\n</think>\n\nHello.")]
    },
}


@pytest.fixture(scope="module")
def dressed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """name -> a small ChatML tokenizer with that template and its tokens."""
    small = tokenizer_at(write_kind("chatml", tmp_path_factory.mktemp("chatml")))

    def dress(name: str) -> Any:
        changed = copy.deepcopy(small)
        source = SOURCES[name]
        changed.add_tokens(sorted(set(TURN_TOKENS.findall(source))), special_tokens=True)
        tags = sorted(set(re.findall(r"</?(?:think|tool_call|tool_response)>", source)))
        changed.add_tokens(tags, special_tokens=False)
        if name.startswith("cohere"):
            changed.eos_token = "<|END_OF_TURN_TOKEN|>"
        changed.chat_template = source
        return changed

    return dress


def encoded(tokenizer: Any, row: Row, loss: str) -> Encoded | RowError | DataError:
    (sample,) = to_samples([row], FormatConfig("messages"), ["row"])
    if isinstance(sample, RowError):
        return sample
    try:
        (made,) = Encoder(tokenizer, LossConfig(loss), day=DAY).encode([sample], ["row"])
    except DataError as error:
        return error
    return made


def shown(tokenizer: Any, made: Encoded | RowError | DataError) -> str:
    """What a row trains, or why it is refused, on a line."""
    if not isinstance(made, Encoded):
        problem = made.problems[0]
        return f"refused: {problem.where}: {problem.found}".replace("\n", "\\n")[:200]
    texts = [
        json.dumps(tokenizer.decode(run), ensure_ascii=False)[1:-1] for run in segments(made.labels)
    ]
    remarks = [f"{remark.kind}: {one_line(remark.what)[:40]}" for remark in made.remarks]
    return " ".join([*(f"⟦{text}⟧" for text in texts), *(f"({one})" for one in remarks)])


def lines_of(tokenizer: Any) -> list[str]:
    lines = []
    for case, row in CASES.items():
        every = shown(tokenizer, encoded(tokenizer, row, "assistant_only"))
        last = shown(tokenizer, encoded(tokenizer, row, "completion_only"))
        lines.append(f"{case}: {last}")
        if every != last:
            lines.append(f"{case}, every answer: {every}")
    return lines


@pytest.mark.parametrize("name", published(NAMES))
def test_golden_labels_of_every_template_and_kind_of_conversation(
    dressed: Callable[[str], Any], golden_text: Callable[[str, str], None], name: str
) -> None:
    golden_text(f"templates/{name}.txt", "\n".join(lines_of(dressed(name))) + "\n")


@pytest.mark.slow  # the golden lines of both show the same text
@pytest.mark.parametrize("name", NAMES)
def test_arguments_as_text_train_what_arguments_as_a_mapping_train(
    dressed: Callable[[str], Any], name: str
) -> None:
    tokenizer = dressed(name)
    as_mapping, as_text = (
        encoded(tokenizer, CASES[case], "completion_only")
        for case in ("tools", "tools, arguments as text")
    )
    if isinstance(as_mapping, Encoded):
        assert isinstance(as_text, Encoded)
        assert as_text.input_ids == as_mapping.input_ids
    else:
        assert type(as_text) is type(as_mapping)


def test_every_template_has_its_file() -> None:
    assert sorted(file.stem for file in GOLDEN.glob("*.txt")) == sorted(NAMES)
    assert len(NAMES) >= 60
