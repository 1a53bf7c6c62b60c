"""What a row becomes before it is tokenised: one of three neutral values. Pure Python.

A format makes them of rows and knows no tokenizer; the encoder tokenises them and knows no rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Row = Mapping[str, Any]
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Remark:
    """What a person should know of a row that is used all the same; rows are counted by it.

    kind: one of those that `data/preflight/remarks.py` has words for.
    what: the column, the field or the text that it is about.
    """

    kind: str
    what: str = ""


class Arguments(dict[str, Any]):
    """The arguments of a tool call: a mapping, and its `text` as the row or JSON writes it.

    Most templates take the mapping; some can only put a string into their text.
    """

    def __init__(self, values: Mapping[str, Any], text: str) -> None:
        super().__init__(values)
        self.text = text

    def __reduce__(self) -> tuple[type[Arguments], tuple[dict[str, Any], str]]:
        return Arguments, (dict(self), self.text)


@dataclass(frozen=True)
class Conversation:
    """Turns for a chat template.

    messages: `({"role": ..., "content": ..., ...}, ...)`, the last one the assistant's; as a
        prompt, without it.
    tools: JSON schemas of the tools that the template may list.
    template_kwargs: further variables of the template, such as `{"enable_thinking": False}`.
    train: for each message True or False where the row says so, None where the loss decides; empty
        when no message says it.
    prompt_length: messages that belong to the prompt, of rows that come as prompt and completion;
        their answers are not trained.
    remarks: what the format has to say of the row.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    train: tuple[bool | None, ...] = ()
    prompt_length: int = 0
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class PromptCompletion:
    """Two strings that follow each other as they are, and `remarks` as of a conversation."""

    prompt: str
    completion: str
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class Text:
    """One finished string, and `remarks` as of a conversation."""

    text: str
    remarks: tuple[Remark, ...] = ()


Sample = Conversation | PromptCompletion | Text
Prompt = str | Conversation  # a string as it is, or turns without the answer


def split_prompt(sample: Sample) -> tuple[Prompt, str]:
    """What generation is given for a sample, and the answer that the data set holds.

    A text has no prompt; its first fifth, up to a space, serves as one.
    """
    if isinstance(sample, Conversation):
        return without_answer(sample), str(sample.messages[-1].get("content") or "")
    if isinstance(sample, Text):
        cut = sample.text.find(" ", min(len(sample.text) // 5, 100))
        cut = cut if cut > 0 else (len(sample.text) + 1) // 2
        return sample.text[:cut], sample.text[cut:]
    return sample.prompt, sample.completion


def without_answer(sample: Conversation) -> Conversation:
    """The turns before the last one."""
    return replace(sample, messages=sample.messages[:-1], train=())
