"""A row of a data set to one neutral value. Pure Python: knows columns, not tokenizers.

To add a format: a function `(row, cfg, where, clean) -> Sample` here, its line in `_CONVERT`, and a
row of facts in `config/schema.py` (`FORMATS`). Each text that it takes from a row passes `clean`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from sftpipe.config.patterns import pattern_fields
from sftpipe.config.schema import FORMATS, FormatConfig
from sftpipe.data.layouts import Layout, recognise
from sftpipe.data.messages import (
    UNREAD_COLUMN,
    Clean,
    Turn,
    as_it_is,
    chat_columns,
    conversation,
    is_nothing,
    parsed,
    read_optional_text,
    read_text,
    read_turns,
    wrong_type,
)
from sftpipe.data.samples import Conversation, Prompt, PromptCompletion, Remark, Row, Sample, Text
from sftpipe.errors import DataError, Problem, RowError, nearest, override_text

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


def read_columns(cfg: FormatConfig) -> frozenset[str] | None:
    """Every column that a format may read; None of a function, which is given them all."""
    if cfg.type == "function":
        return None
    without_input = ("input",) if cfg.prompt_no_input is not None else ()
    optional = without_input if cfg.type == "template" else FORMATS[cfg.type].optional
    return frozenset((*required_columns(cfg), *optional))


def unread_columns(row: Row, read: Set[str]) -> list[str]:
    """The columns of a row that say something and are not among those that are read."""
    return [name for name, value in row.items() if name not in read and not is_nothing(value)]


def check_columns(
    columns: Sequence[str],
    cfg: FormatConfig,
    split: str,
    first_rows: Callable[[], Sequence[Row]] = tuple,
    *,
    alone: bool = True,
) -> None:
    """Check that a split has the columns that the format needs.

    Args:
        columns: of the split, by our names.
        cfg: the `format` group.
        split: its name, for messages.
        first_rows: gives some rows by the names of the file, to tell what they look like.
        alone: it is the only data set of the run.

    Raises:
        DataError: says what reads such rows; or names each missing column and how to map one onto
            it.
    """
    needed = required_columns(cfg)
    missing = [name for name in needed if name not in columns]
    layout = layout_for(cfg, first_rows()) if missing else None
    if layout is not None:
        named = f"{'column' if len(missing) == 1 else 'columns'} {', '.join(map(repr, missing))}"
        problem = Problem(
            f"format={cfg.type} ({split})",
            f"no {named}; the data set has {', '.join(columns)}",
            allowed=f"columns {', '.join(needed)}",
            fix=layout.fix(alone=alone),
        )
        error = DataError(problem)
        error.words = layout.words if alone else ()
        raise error
    if missing:
        raise DataError(*(_missing(name, columns, cfg, split) for name in missing))


def layout_for(cfg: FormatConfig, rows: Sequence[Row]) -> Layout | None:
    """What rows look like, with what a format needs to read them.

    A pattern takes any question and answer, once its columns have their names.
    """
    layout = recognise(rows)
    if layout is None or cfg.type != "template" or layout.settings.get("format") != "instruction":
        return layout
    keys = {f"dataset.columns.{name}" for name in (*required_columns(cfg), "input")}
    settings = {key: value for key, value in layout.settings.items() if key in keys}
    return replace(layout, settings=settings) if settings else None


def _missing(name: str, columns: Sequence[str], cfg: FormatConfig, split: str) -> Problem:
    """The problem of a column that the data set lacks, and how to map one onto it."""
    match = nearest(name, columns)
    typed = [override_text("format.text_field", match)] if match and cfg.type == "text" else []
    typed += [override_text(f"dataset.columns.{name}", match)] if match else []
    way_out = typed or [f"dataset.columns.{name}=COLUMN"]
    if cfg.type == "text" and not match:
        way_out = ["format.text_field=COLUMN", *way_out]
    return Problem(
        f"format={cfg.type} ({split})",
        f"no column {name!r}; the data set has {', '.join(columns)}",
        allowed=f"columns {', '.join(required_columns(cfg))}",
        fix=", or ".join([*way_out, "another format"]),
    )


# --- formats --------------------------------------------------------------------------------------


def _instruction(row: Row, cfg: FormatConfig, where: str, clean: Clean) -> Conversation:
    """The input, if there is one, follows the instruction (figure 7.4 of "LLMs from scratch")."""
    question = read_text(row, "instruction", where, clean)
    extra = read_optional_text(row, "input", where, clean)
    if extra and extra.strip():
        question = f"{question}\n{extra}"
    answer = read_text(row, "output", where, clean, "assistant")
    turns = [
        Turn({"role": "user", "content": question}),
        Turn({"role": "assistant", "content": answer}),
    ]
    return conversation(turns, row, cfg, where, clean)


def _messages(row: Row, cfg: FormatConfig, where: str, clean: Clean) -> Conversation:
    turns = read_turns(row.get("messages"), f"{where}.messages", clean, cfg)
    return conversation(turns, row, cfg, where, clean)


def _sharegpt(row: Row, cfg: FormatConfig, where: str, clean: Clean) -> Conversation:
    """`{from, value}` turns, as ShareGPT exports name them."""
    turns = read_turns(row.get("conversations"), f"{where}.conversations", clean, cfg)
    return conversation(turns, row, cfg, where, clean, "conversations")


def _prompt_completion(row: Row, cfg: FormatConfig, where: str, clean: Clean) -> Sample:
    """Two strings, which are finished texts, or two lists of messages.

    Of messages the assistant turns of the completion are trained; that is TRL's conversational
    prompt-completion form.
    """
    prompt, completion = _turns_of(row.get("prompt")), _turns_of(row.get("completion"))
    # a text may happen to be the JSON of turns; two of them are no accident
    if not isinstance(prompt, list) or not isinstance(completion, list):
        prompt, completion = row.get("prompt"), row.get("completion")
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return PromptCompletion(
            read_text(row, "prompt", where),
            read_text(row, "completion", where),
            remarks=chat_columns(row),
        )
    before = read_turns(prompt, f"{where}.prompt", clean, cfg)
    after = read_turns(completion, f"{where}.completion", clean, cfg)
    chat = conversation([*before, *after], row, cfg, where, clean)
    return replace(chat, prompt_length=len(chat.messages) - len(after))


def _turns_of(value: Any) -> Any:
    """The turns of which a string is the JSON; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        turns = parsed(value, "")
    except RowError:
        return value
    are_turns = turns and all(isinstance(turn, Mapping) and "role" in turn for turn in turns)
    return turns if are_turns else value


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
    asked = pattern_fields(prompt)
    values = {
        name: read_text(row, name, where, clean, "user" if name in asked else "assistant")
        for name in pattern_fields(prompt + completion)
    }
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
        ({"messages"}, _messages, FORMATS["messages"].optional),
        ({"prompt", "completion"}, _prompt_completion, FORMATS["prompt_completion"].optional),
        ({cfg.text_field}, _text_only, ()),
    )
    for names, convert, optional in kinds if isinstance(value, Mapping) else ():
        if names <= value.keys():
            sample = convert(value, cfg, here, clean)
            unread = unread_columns(value, {*names, *optional})
            remarks = tuple(Remark(UNREAD_COLUMN, name) for name in unread)
            return replace(sample, remarks=(*sample.remarks, *remarks)) if remarks else sample
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
