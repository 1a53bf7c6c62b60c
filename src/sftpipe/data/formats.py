"""A row of a data set to one neutral value. Pure Python: knows columns, not tokenizers.

To add a format: a function `(row, cfg, where, clean) -> Sample` here, its line in `_CONVERT`, and a
row of facts in `config/schema.py` (`FORMATS`). Each text that it takes from a row passes `clean`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sftpipe.config.patterns import pattern_fields
from sftpipe.config.schema import FORMATS, FormatConfig
from sftpipe.data.messages import (
    Clean,
    as_it_is,
    bad_role,
    conversation,
    read_flag,
    read_list,
    read_optional_text,
    read_text,
    read_turns,
    wrong_type,
)
from sftpipe.data.samples import Conversation, Prompt, PromptCompletion, Row, Sample, Text
from sftpipe.errors import DataError, Problem, RowError, nearest

RETURNED, ERROR = "returned", "error"  # a row of format=function: the value, or its error


def to_samples(
    rows: Sequence[Row],
    cfg: FormatConfig,
    locations: Sequence[str],
    clean: Clean = as_it_is,
) -> list[Sample | RowError]:
    """Turn rows into samples; a row that makes none becomes its error.

    Args:
        rows: B rows, by our column names; of format=function, what row_function.py stored.
        cfg: the `format` group.
        locations: B times `split[row]`, for messages.
        clean: what each text passes on its way into a sample.
    """
    samples: list[Sample | RowError] = []
    for row, where in zip(rows, locations, strict=True):
        try:
            samples.append(_CONVERT[cfg.type](row, cfg, where, clean))
        except RowError as error:
            samples.append(error)
    return samples


def to_prompt(text: str, cfg: FormatConfig, like: Prompt, where: str) -> Prompt:
    """A user's own words as the format would ask them.

    Args:
        text: what the user asks.
        cfg: the `format` group.
        like: a prompt of the data set, which shows the kind that the format makes.
        where: the key of the text, for messages.

    Raises:
        DataError: a pattern with several fields, which one text cannot fill.
    """
    if isinstance(like, Conversation):
        system = ({"role": "system", "content": cfg.system},) if cfg.system is not None else ()
        messages = (*system, {"role": "user", "content": text})
        return Conversation(messages, like.tools, like.template_kwargs)
    if cfg.type != "template":
        return text
    pattern = cfg.prompt_no_input or cfg.prompt or ""
    fields = pattern_fields(pattern)
    if len(fields) != 1:
        raise DataError(
            Problem(
                where,
                f"the prompt pattern has the fields {', '.join(fields) or '(none)'}, and a "
                "single text fills one",
                fix="ask rows of the data set, or set format.prompt_no_input with one field",
            )
        )
    return pattern.format_map({fields[0]: text})


def required_columns(cfg: FormatConfig) -> tuple[str, ...]:
    """The columns that a format cannot do without."""
    if cfg.type == "text":
        return (cfg.text_field,)
    if cfg.type == "template":
        fields = pattern_fields((cfg.prompt or "") + (cfg.completion or ""))
        return tuple(name for name in fields if cfg.prompt_no_input is None or name != "input")
    return FORMATS[cfg.type].columns


def check_columns(columns: Sequence[str], cfg: FormatConfig, split: str) -> None:
    """Check that a split has the columns that the format needs.

    Raises:
        DataError: names each missing column and how to map one onto it.
    """
    needed = required_columns(cfg)
    problems = []
    for name in needed:
        if name not in columns:
            match = nearest(name, columns)
            typed = [f"format.text_field={match}"] if match and cfg.type == "text" else []
            typed += [f"dataset.columns.{name}={match}"] if match else []
            way_out = [f"`{word}`" for word in typed] or [f"dataset.columns.{name}=COLUMN"]
            if cfg.type == "text" and not match:
                way_out = ["format.text_field=COLUMN", *way_out]
            problems.append(
                Problem(
                    f"format={cfg.type} ({split})",
                    f"no column {name!r}; the data set has {', '.join(columns)}",
                    allowed=f"columns {', '.join(needed)}",
                    fix=", or ".join([*way_out, "another format"]),
                )
            )
    if problems:
        raise DataError(*problems)


# --- formats --------------------------------------------------------------------------------------


def _instruction(row: Row, cfg: FormatConfig, where: str, clean: Clean) -> Conversation:
    """The input, if there is one, follows the instruction (figure 7.4 of "LLMs from scratch")."""
    question = read_text(row, "instruction", where, clean)
    extra = read_optional_text(row, "input", where, clean)
    if extra:
        question = f"{question}\n{extra}"
    answer = read_text(row, "output", where, clean)
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return conversation(turns, row, cfg, where, clean)


def _messages(row: Row, cfg: FormatConfig, where: str, clean: Clean) -> Conversation:
    turns = read_turns(row.get("messages"), f"{where}.messages", clean)
    return conversation(turns, row, cfg, where, clean)


_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


def _sharegpt(row: Row, cfg: FormatConfig, where: str, clean: Clean) -> Conversation:
    """`{from, value}` turns, as ShareGPT exports name them."""
    column = f"{where}.conversations"
    turns = []
    rows = read_list(row.get("conversations"), column, "a list of {from, value}")
    for index, turn in enumerate(rows):
        here = f"{column}[{index}]"
        if not isinstance(turn, Mapping):
            raise wrong_type(here, turn, "{from, value}")
        role = read_text(turn, "from", here)
        if role not in _SHAREGPT_ROLES:
            raise bad_role(f"{here}.from", role, list(_SHAREGPT_ROLES))
        content = read_text(turn, "value", here, clean)
        flag = read_flag(turn, here)
        turns.append({"role": _SHAREGPT_ROLES[role], "content": content, "train": flag})
    return conversation(turns, row, cfg, where, clean, "conversations")


def _prompt_completion(row: Row, cfg: FormatConfig, where: str, clean: Clean) -> Sample:
    """Two strings, which are finished texts, or two lists of messages.

    Of messages the assistant turns of the completion are trained; that is TRL's conversational
    prompt-completion form.
    """
    prompt, completion = row.get("prompt"), row.get("completion")
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return PromptCompletion(
            read_text(row, "prompt", where), read_text(row, "completion", where)
        )
    before = read_turns(prompt, f"{where}.prompt", clean)
    after = read_turns(completion, f"{where}.completion", clean)
    chat = conversation([*before, *after], row, cfg, where, clean)
    return replace(chat, prompt_length=len(chat.messages) - len(after))


def _text_only(row: Row, cfg: FormatConfig, where: str, clean: Clean) -> Text:
    """A finished text."""
    return Text(read_text(row, cfg.text_field, where))


def patterns_of(row: Row, cfg: FormatConfig, where: str) -> tuple[str, str]:
    """The patterns of the prompt and of the completion that a row of format=template fills."""
    prompt, completion = cfg.prompt or "", cfg.completion or ""
    if cfg.prompt_no_input is not None:
        extra = read_optional_text(row, "input", where)
        if not (extra or "").strip():
            prompt = cfg.prompt_no_input
    return prompt, completion


def _template(row: Row, cfg: FormatConfig, where: str, clean: Clean) -> PromptCompletion:
    """Patterns with `{column}` fields.

    `prompt_no_input` serves rows whose `input` is empty, as the two prompts of Stanford Alpaca do.
    """
    prompt, completion = patterns_of(row, cfg, where)
    fields = pattern_fields(prompt + completion)
    values = {name: read_text(row, name, where, clean) for name in fields}
    return PromptCompletion(prompt.format_map(values), completion.format_map(values))


def _returned(row: Row, cfg: FormatConfig, where: str, clean: Clean) -> Sample:
    """The value of a user's function, checked as the built-in formats check their rows."""
    if ERROR in row:
        reason, problem = row[ERROR]
        raise RowError(reason, Problem(**problem))
    value = row[RETURNED]
    here = f"{where} (format.function)"
    if isinstance(value, str):
        return _text_only({cfg.text_field: value}, cfg, here, clean)
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
        return _messages({"messages": value}, cfg, here, clean)
    kinds = (
        ({"messages"}, _messages),
        ({"prompt", "completion"}, _prompt_completion),
        ({cfg.text_field}, _text_only),
    )
    for names, convert in kinds if isinstance(value, Mapping) else ():
        if names <= value.keys():
            return convert(value, cfg, here, clean)
    raise no_sample(value, cfg, where)


def no_sample(value: Any, cfg: FormatConfig, where: str) -> RowError:
    """The error of a value of a user's function that makes no sample."""
    allowed = f"a string, {{messages}}, {{prompt, completion}} or {{{cfg.text_field}}}"
    batched = "the function seems to take a batch: `format.batched=true`"
    fix = batched if isinstance(value, list) else "fix the function"
    problem = wrong_type(f"{where} (format.function)", value, allowed).problem
    return RowError("format.function gave no sample", replace(problem, fix=fix))


_CONVERT: dict[str, Callable[[Row, FormatConfig, str, Clean], Sample]] = {
    "instruction": _instruction,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "prompt_completion": _prompt_completion,
    "text": _text_only,
    "template": _template,
    "function": _returned,
}
