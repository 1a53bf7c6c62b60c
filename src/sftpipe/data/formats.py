"""A row of a data set to one neutral value. Pure Python: knows columns, not tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sftpipe.errors import DataError, Problem, nearest
from sftpipe.schema import FormatConfig


@dataclass(frozen=True)
class Conversation:
    """Turns for a chat template: `({"role": ..., "content": ...}, ...)`, the last one the assistant's."""

    messages: tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class PromptCompletion:
    """Two strings that follow each other as they are."""

    prompt: str
    completion: str


Sample = Conversation | PromptCompletion
Prompt = str | tuple[Mapping[str, str], ...]  # a string as it is, or turns for the chat template
Row = Mapping[str, Any]


def to_sample(row: Row, cfg: FormatConfig, where: str) -> Sample:
    """Turn a row into a `Sample`.

    Args:
        row: the columns that the format needs, by our names.
        cfg: the `format` group.
        where: `split[row]`, for messages.

    Raises:
        DataError: a field is missing, empty or of the wrong type, or the turns make no conversation.
    """
    return _FORMATS[cfg.type][0](row, cfg, where)


def split_prompt(sample: Sample) -> tuple[Prompt, str]:
    """What generation is given for a sample, and the answer that the data set holds."""
    if isinstance(sample, Conversation):
        return sample.messages[:-1], sample.messages[-1]["content"]
    return sample.prompt, sample.completion


def to_prompt(text: str, cfg: FormatConfig) -> Prompt:
    """A user's own words as the format would ask them."""
    if cfg.type == "prompt_completion":
        return text
    system = ({"role": "system", "content": cfg.system},) if cfg.system is not None else ()
    return (*system, {"role": "user", "content": text})


def check_columns(columns: Sequence[str], cfg: FormatConfig, split: str) -> None:
    """Check that a split has the columns that the format needs.

    Raises:
        DataError: names each missing column and how to map one onto it.
    """
    needed = _FORMATS[cfg.type][1]
    problems = []
    for name in needed:
        if name not in columns:
            match = nearest(name, columns)
            problems.append(
                Problem(
                    where=f"format={cfg.type} ({split})",
                    found=f"no column {name!r}; the data set has {', '.join(columns)}",
                    allowed=f"columns {', '.join(needed)}",
                    fix=f"dataset.columns.{name}={match or 'COLUMN'}, or another format",
                )
            )
    if problems:
        raise DataError(*problems)


def _instruction(row: Row, cfg: FormatConfig, where: str) -> Conversation:
    """The input, where there is one, stands below the instruction (figure 7.4 of "LLMs from scratch")."""
    question = _text(row, "instruction", where)
    extra = row.get("input")
    if extra is not None and not isinstance(extra, str):
        raise DataError(_wrong_type(f"{where}.input", extra, "a string or null"))
    if extra:
        question = f"{question}\n{extra}"
    answer = _text(row, "output", where)
    return _conversation([{"role": "user", "content": question}, {"role": "assistant", "content": answer}], cfg.system, where)


def _messages(row: Row, cfg: FormatConfig, where: str) -> Conversation:
    messages = row["messages"]
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise DataError(_wrong_type(f"{where}.messages", messages, "a list of {role, content}"))
    turns = []
    for index, message in enumerate(messages):
        place = f"{where}.messages[{index}]"
        if not isinstance(message, Mapping):
            raise DataError(_wrong_type(place, message, "{role, content}"))
        turns.append({"role": _text(message, "role", place), "content": _text(message, "content", place)})
    return _conversation(turns, cfg.system, where)


def _prompt_completion(row: Row, cfg: FormatConfig, where: str) -> PromptCompletion:
    return PromptCompletion(_text(row, "prompt", where), _text(row, "completion", where))


# format -> (function, columns that it needs)
_FORMATS: dict[str, tuple[Callable[[Row, FormatConfig, str], Sample], tuple[str, ...]]] = {
    "instruction": (_instruction, ("instruction", "output")),
    "messages": (_messages, ("messages",)),
    "prompt_completion": (_prompt_completion, ("prompt", "completion")),
}


def columns_of(cfg: FormatConfig) -> tuple[str, ...]:
    """All columns that a format reads, the optional ones too."""
    return (*_FORMATS[cfg.type][1], *(("input",) if cfg.type == "instruction" else ()))


def _conversation(turns: list[dict[str, str]], system: str | None, where: str) -> Conversation:
    """Check the order system? (user assistant)+ and put the format's system turn in front."""
    roles = [turn["role"] for turn in turns]
    body = roles[1:] if roles[:1] == ["system"] else roles
    if not body or body != ["user", "assistant"] * (len(body) // 2):
        raise DataError(
            Problem(
                where=f"{where}.messages",
                found=f"the roles {', '.join(roles) or '(none)'}",
                allowed="system (optional), then user and assistant in turn, the assistant last",
                fix="mend or remove the row; other names (human, gpt) have to become user and assistant",
            )
        )
    if system is not None and roles[0] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    return Conversation(tuple(turns))


def _text(row: Row, name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise DataError(_wrong_type(f"{where}.{name}", value, "a string"))
    if not value.strip():
        raise DataError(Problem(where=f"{where}.{name}", found="an empty string", allowed="text", fix="mend or remove the row"))
    return value


def _wrong_type(where: str, value: Any, allowed: str) -> Problem:
    found = "null or missing" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
    return Problem(where=where, found=found, allowed=allowed, fix="mend or remove the row")
