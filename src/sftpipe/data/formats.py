"""A row of a data set to one neutral value. Pure Python: knows columns, not tokenizers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import Formatter
from typing import Any

from sftpipe.config.schema import FormatConfig
from sftpipe.errors import DataError, Problem, RowError, nearest

Row = Mapping[str, Any]
Message = Mapping[str, Any]


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
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    train: tuple[bool | None, ...] = ()
    prompt_length: int = 0


@dataclass(frozen=True)
class PromptCompletion:
    """Two strings that follow each other as they are."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """One finished string."""

    text: str


Sample = Conversation | PromptCompletion | Text
Prompt = str | Conversation  # a string as it is, or turns without the answer
RowFunction = Callable[[Any], Any]


def to_samples(
    rows: Sequence[Row],
    cfg: FormatConfig,
    places: Sequence[str],
    function: RowFunction | None = None,
) -> list[Sample | RowError]:
    """Turn rows into samples; a row that makes none becomes its error.

    Args:
        rows: B rows, by our column names.
        cfg: the `format` group.
        places: B times `split[row]`, for messages.
        function: the user's own, of format=function.

    Raises:
        DataError: a batched function does not return one value for each row.
    """
    values: Sequence[Any] = rows
    if cfg.type == "function" and cfg.batched:
        values = _call_batched(function, rows, cfg)
    samples: list[Sample | RowError] = []
    for value, where in zip(values, places, strict=True):
        try:
            if cfg.type == "function":
                samples.append(
                    _returned(
                        value if cfg.batched else _call(function, value, cfg, where), cfg, where
                    )
                )
            else:
                samples.append(_FORMATS[cfg.type].convert(value, cfg, where))
        except RowError as error:
            samples.append(error)
    return samples


def to_sample(
    row: Row, cfg: FormatConfig, where: str, function: RowFunction | None = None
) -> Sample:
    """Turn one row into a `Sample`.

    Raises:
        RowError: a field is missing, empty or of the wrong type, or the turns make no conversation.
    """
    (sample,) = to_samples([row], cfg, [where], function)
    if isinstance(sample, RowError):
        raise sample
    return sample


def split_prompt(sample: Sample) -> tuple[Prompt, str]:
    """What generation is given for a sample, and the answer that the data set holds.

    Of a text, which has no prompt, the first fifth up to a space stands in for one.
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


def to_prompt(text: str, cfg: FormatConfig, like: Sample) -> Prompt:
    """A user's own words as the format would ask them.

    Args:
        text: what the user asks.
        cfg: the `format` group.
        like: a sample of the data set; it tells whether the format makes conversations.

    Raises:
        DataError: a pattern with several fields, which one text cannot fill.
    """
    if isinstance(like, Conversation):
        system = ({"role": "system", "content": cfg.system},) if cfg.system is not None else ()
        return Conversation(
            (*system, {"role": "user", "content": text}), like.tools, like.template_kwargs
        )
    if cfg.type != "template":
        return text
    pattern = cfg.prompt_no_input or cfg.prompt or ""
    fields = pattern_fields(pattern)
    if len(fields) != 1:
        raise DataError(
            Problem(
                "evaluation.sample_prompts",
                f"the prompt pattern has the fields {', '.join(fields) or '(none)'}, and a "
                "sample prompt fills one",
                fix="leave sample_prompts out (rows of the data set are asked), or set "
                "format.prompt_no_input with one field",
            )
        )
    return pattern.format_map({fields[0]: text})


def pattern_fields(pattern: str) -> list[str]:
    """The columns that a pattern names, each once: ["instruction", "input"] of "{instruction}: {input}".

    Raises:
        ValueError: a brace without its partner, or a field that is more than a name.
    """
    fields = []
    for _, name, spec, conversion in Formatter().parse(pattern):
        if name is not None:
            if not name.isidentifier() or spec or conversion:
                raise ValueError(f"the field {{{name}}} is no plain column name")
            fields.append(name)
    return list(dict.fromkeys(fields))


def required_columns(cfg: FormatConfig) -> tuple[str, ...]:
    """The columns that a format cannot do without."""
    return _FORMATS[cfg.type].required(cfg)


def guarded_columns(cfg: FormatConfig) -> tuple[str, ...]:
    """The columns whose texts a pattern or a template takes in one by one, so that a text in them is told by its column."""
    if cfg.type == "template":
        return tuple(pattern_fields(f"{cfg.prompt}{cfg.prompt_no_input or ''}{cfg.completion}"))
    return {"instruction": ("instruction", "input", "output"), "sharegpt": ("conversations",)}.get(
        cfg.type, ()
    )


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
            by_text_field = (
                f"format.text_field={match or 'COLUMN'}, or " if cfg.type == "text" else ""
            )
            problems.append(
                Problem(
                    f"format={cfg.type} ({split})",
                    f"no column {name!r}; the data set has {', '.join(columns)}",
                    allowed=f"columns {', '.join(needed)}",
                    fix=f"{by_text_field}dataset.columns.{name}={match or 'COLUMN'}, or another "
                    "format",
                )
            )
    if problems:
        raise DataError(*problems)


# --- formats --------------------------------------------------------------------------------------


def _instruction(row: Row, cfg: FormatConfig, where: str) -> Conversation:
    """The input, where there is one, stands below the instruction (figure 7.4 of "LLMs from scratch")."""
    question = _text(row, "instruction", where)
    extra = _optional_text(row, "input", where)
    if extra:
        question = f"{question}\n{extra}"
    answer = _text(row, "output", where)
    return _conversation(
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        row,
        cfg,
        where,
    )


def _messages(row: Row, cfg: FormatConfig, where: str) -> Conversation:
    return _conversation(_turns(row.get("messages"), f"{where}.messages"), row, cfg, where)


_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


def _sharegpt(row: Row, cfg: FormatConfig, where: str) -> Conversation:
    """`{from, value}` turns, as ShareGPT exports name them."""
    place = f"{where}.conversations"
    turns = []
    for index, turn in enumerate(_list(row.get("conversations"), place, "a list of {from, value}")):
        here = f"{place}[{index}]"
        if not isinstance(turn, Mapping):
            raise _wrong_type(here, turn, "{from, value}")
        role = _text(turn, "from", here)
        if role not in _SHAREGPT_ROLES:
            raise _bad_role(f"{here}.from", role, list(_SHAREGPT_ROLES))
        content = _text(turn, "value", here)
        turns.append(
            {"role": _SHAREGPT_ROLES[role], "content": content, "train": _flag(turn, here)}
        )
    return _conversation(turns, row, cfg, where, "conversations")


def _prompt_completion(row: Row, cfg: FormatConfig, where: str) -> Sample:
    """Two strings, or two lists of messages of which the second's assistant turns are trained (TRL's conversational form)."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return PromptCompletion(_text(row, "prompt", where), _text(row, "completion", where))
    before, after = _turns(prompt, f"{where}.prompt"), _turns(completion, f"{where}.completion")
    chat = _conversation([*before, *after], row, cfg, where)
    return replace(chat, prompt_length=len(chat.messages) - len(after))


def _text_only(row: Row, cfg: FormatConfig, where: str) -> Text:
    return Text(_text(row, cfg.text_field, where))


def _template(row: Row, cfg: FormatConfig, where: str) -> PromptCompletion:
    """Patterns with `{column}` fields; `prompt_no_input` serves rows whose `input` is empty (as the two prompts of Stanford Alpaca do)."""
    prompt, completion = cfg.prompt or "", cfg.completion or ""
    if cfg.prompt_no_input is not None and not (_optional_text(row, "input", where) or "").strip():
        prompt = cfg.prompt_no_input
    values = {name: _text(row, name, where) for name in pattern_fields(prompt + completion)}
    return PromptCompletion(prompt.format_map(values), completion.format_map(values))


def _returned(value: Any, cfg: FormatConfig, where: str) -> Sample:
    """What a user's function gave, checked as the built-in formats check their rows."""
    place = f"{where} (format.function)"
    if isinstance(value, str):
        return _text_only({cfg.text_field: value}, cfg, place)
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
        return _messages({"messages": value}, cfg, place)
    if isinstance(value, Mapping):
        for names, convert in (
            ({"messages"}, _messages),
            ({"prompt", "completion"}, _prompt_completion),
            ({cfg.text_field}, _text_only),
        ):
            if names <= value.keys():
                return convert(value, cfg, place)
    fix = (
        "the function seems to take a batch: format.batched=true"
        if isinstance(value, list)
        else "mend the function"
    )
    problem = _wrong_type(
        place, value, f"a string, {{messages}}, {{prompt, completion}} or {{{cfg.text_field}}}"
    ).problem
    raise RowError("format.function gave no sample", replace(problem, fix=fix))


@dataclass(frozen=True)
class _Format:
    """convert: row -> sample; required: the columns it cannot do without."""

    convert: Callable[[Row, FormatConfig, str], Sample]
    required: Callable[[FormatConfig], tuple[str, ...]]


def _template_columns(cfg: FormatConfig) -> tuple[str, ...]:
    fields = pattern_fields((cfg.prompt or "") + (cfg.completion or ""))
    return tuple(name for name in fields if cfg.prompt_no_input is None or name != "input")


_FORMATS = {
    "instruction": _Format(_instruction, lambda cfg: ("instruction", "output")),
    "messages": _Format(_messages, lambda cfg: ("messages",)),
    "sharegpt": _Format(_sharegpt, lambda cfg: ("conversations",)),
    "prompt_completion": _Format(_prompt_completion, lambda cfg: ("prompt", "completion")),
    "text": _Format(_text_only, lambda cfg: (cfg.text_field,)),
    "template": _Format(_template, _template_columns),
    "function": _Format(_returned, lambda cfg: ()),
}


# --- a user's function ----------------------------------------------------------------------------


def _call(function: RowFunction | None, row: Row, cfg: FormatConfig, where: str) -> Any:
    assert function is not None
    try:
        return function(dict(row))
    except Exception as error:  # a user's code can raise anything
        raise RowError(
            "format.function failed",
            Problem(
                f"{where} (format.function)",
                f"{cfg.function} raised {type(error).__name__}: {error}",
                allowed=f"it is given the columns {', '.join(row)}",
                fix="mend the function or the row",
            ),
        ) from error


def _call_batched(
    function: RowFunction | None, rows: Sequence[Row], cfg: FormatConfig
) -> Sequence[Any]:
    """One call for all rows; what a per-row function makes of a batch is told apart."""
    assert function is not None
    names = list(dict.fromkeys(name for row in rows for name in row))
    batch = {name: [row.get(name) for row in rows] for name in names}
    try:
        result = function(batch)
    except Exception as error:  # a user's code can raise anything
        raise DataError(
            Problem(
                "format.function",
                f"{cfg.function} raised {type(error).__name__}: {error}",
                allowed=f"with format.batched=true it is given {{column: [values]}} of {len(rows)} rows; "
                f"columns {', '.join(names)}",
                fix="format.batched=false if it takes one row",
            )
        ) from error
    columns = list(result.values()) if isinstance(result, Mapping) else []
    one_chat = isinstance(result, Mapping) and any(
        isinstance(turn, Mapping) for turn in result.get("messages") or ()
    )
    if (
        columns
        and not one_chat
        and all(isinstance(column, list) and len(column) == len(rows) for column in columns)
    ):
        return [dict(zip(result, values, strict=True)) for values in zip(*columns, strict=True)]
    if not isinstance(result, list) or len(result) != len(rows):
        found = (
            f"{len(result)} values" if isinstance(result, list) else f"one {type(result).__name__}"
        )
        raise DataError(
            Problem(
                "format.function",
                f"{cfg.function} returned {found} for a batch of {len(rows)} rows; it looks like "
                "a function of one row",
                allowed="with format.batched=true a list with one value for each row",
                fix="format.batched=false, or let the function loop over the batch",
            )
        )
    return result


# --- fields and turns -----------------------------------------------------------------------------

_SURROGATE = re.compile("[\ud800-\udfff]")
_ROLES = ("system", "user", "assistant", "tool")
_ORDER = (
    "system (optional), then user and assistant in turn, the assistant last; "
    "results of tools between an assistant's tool_calls and its answer"
)
_NO_VARIABLES = (
    "messages",
    "conversations",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "return_assistant_tokens_mask",
)
_OTHER_FLAGS = (
    "weight",
    "training",
    "loss",
)  # how other tools call `train`; read over, they would train what must not be


def _turns(value: Any, place: str) -> list[dict[str, Any]]:
    """Checked messages, each with a `train` of True, False or None."""
    turns = []
    for index, message in enumerate(_list(value, place, "a list of {role, content}")):
        here = f"{place}[{index}]"
        if not isinstance(message, Mapping):
            raise _wrong_type(here, message, "{role, content}")
        role = _text(message, "role", here)
        if role not in _ROLES:
            raise _bad_role(f"{here}.role", role, _ROLES)
        turn = {name: item for name, item in message.items() if item is not None}
        calls = turn.get("tool_calls")
        if calls:
            turn["tool_calls"] = [
                _tool_call(call, f"{here}.tool_calls[{at}]")
                for at, call in enumerate(_list(calls, f"{here}.tool_calls", "a list"))
            ]
        if role == "tool" or (role == "assistant" and calls):
            turn["content"] = _optional_text(message, "content", here) or ""
        else:
            turn["content"] = _text(message, "content", here)
        for name in _OTHER_FLAGS:
            if name in turn:
                raise RowError(
                    "a field of another tool",
                    Problem(
                        f"{here}.{name}",
                        f"{turn[name]!r}",
                        allowed="train: true or train: false",
                        fix="rename the field to train",
                    ),
                )
        turns.append({**turn, "train": _flag(message, here)})
    return turns


def _tool_call(call: Any, here: str) -> dict[str, Any]:
    """Arguments as a mapping, which templates write as JSON; the OpenAI API gives them as a string of JSON."""
    if not isinstance(call, Mapping):
        raise _wrong_type(here, call, "{type: function, function: {name, arguments}}")
    function = call.get("function", call)
    if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
        try:
            function = {**function, "arguments": json.loads(function["arguments"])}
        except ValueError:
            raise _wrong_type(
                f"{here}.function.arguments", function["arguments"], "a mapping, or JSON of one"
            ) from None
        return {**call, "function": function} if "function" in call else dict(function)
    return dict(call)


def _flag(message: Row, here: str) -> bool | None:
    flag = message.get("train")
    if flag is not None and not isinstance(flag, bool):
        raise _wrong_type(f"{here}.train", flag, "true, false or nothing")
    return flag


def _conversation(
    turns: list[dict[str, Any]], row: Row, cfg: FormatConfig, where: str, column: str = "messages"
) -> Conversation:
    """Check the order of roles, put the format's system turn in front, and take tools and template variables from the row."""
    if not _in_order(turns):
        roles = [turn["role"] for turn in turns]
        listed = ", ".join(roles if len(roles) <= 12 else [*roles[:6], "...", *roles[-5:]])
        raise RowError(
            "roles out of order",
            Problem(
                f"{where}.{column}",
                f"the roles {listed or '(none)'}",
                allowed=_ORDER,
                fix="mend or remove the row",
            ),
        )
    for index, turn in enumerate(turns):
        if turn.get("train") and turn["role"] != "assistant":
            problem = Problem(
                f"{where}.{column}[{index}].train",
                f"true on a turn of {turn['role']}",
                allowed="true on assistant turns",
                fix="mend or remove the row",
            )
            raise RowError("train flag on another role", problem)
    if cfg.system is not None and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": cfg.system}, *turns]
    flags = tuple(turn.pop("train", None) for turn in turns)
    variables = _mapping(row.get("chat_template_kwargs"), f"{where}.chat_template_kwargs")
    for name in _NO_VARIABLES:
        if name in variables:
            problem = Problem(
                f"{where}.chat_template_kwargs.{name}",
                "not the row's to set",
                allowed="variables of the template's own",
                fix="mend or remove the row",
            )
            raise RowError("reserved template variable", problem)
    return Conversation(
        tuple(turns),
        _tools(row.get("tools"), where),
        variables,
        flags if any(flag is not None for flag in flags) else (),
    )


def _in_order(turns: Sequence[Row]) -> bool:
    allowed = {"system", "user"}  # what may come next
    for turn in turns:
        role = turn["role"]
        if role not in allowed:
            return False
        if role in ("system", "tool"):
            allowed = {"user"} if role == "system" else {"tool", "assistant"}
        elif role == "user":
            allowed = {"assistant"}
        else:
            allowed = {"user", "tool"} if turn.get("tool_calls") else {"user"}
    return bool(turns) and turns[-1]["role"] == "assistant"


def _tools(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    value = _parsed(value, f"{where}.tools")
    if not value:
        return ()
    tools = _list(value, f"{where}.tools", "a list of JSON schemas")
    return tuple(_mapping(tool, f"{where}.tools[{index}]") for index, tool in enumerate(tools))


def _mapping(value: Any, where: str) -> dict[str, Any]:
    value = _parsed(value, where)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _wrong_type(where, value, "a mapping")
    return dict(value)


def _parsed(value: Any, where: str) -> Any:
    """A value, or what the JSON in a string says: data sets store nested columns either way."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise _wrong_type(where, value, "JSON") from None


def _list(value: Any, where: str, allowed: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise _wrong_type(where, value, allowed)
    return value


def _text(row: Row, name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise _wrong_type(f"{where}.{name}", value, "a string")
    if not value.strip():
        problem = Problem(
            f"{where}.{name}", "an empty string", allowed="text", fix="mend or remove the row"
        )
        raise RowError("empty text", problem)
    return _whole(value, f"{where}.{name}")


def _optional_text(row: Row, name: str, where: str) -> str | None:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise _wrong_type(f"{where}.{name}", value, "a string or null")
    return value and _whole(value, f"{where}.{name}")


def _whole(text: str, where: str) -> str:
    """Text, none of whose characters is half of one: JSON can escape such, and no file in UTF-8 can hold it."""
    half = _SURROGATE.search(text)
    if half is None:
        return text
    found = (
        f"a lone surrogate, U+{ord(half[0]):04X}, in "
        f"{text[max(0, half.start() - 20) : half.end() + 20]!r}"
    )
    raise RowError(
        "broken text",
        Problem(where, found, allowed="whole characters", fix="mend or remove the row"),
    )


def _bad_role(where: str, role: str, allowed: Sequence[str]) -> RowError:
    return RowError(
        "unknown role",
        Problem(where, repr(role), allowed=", ".join(allowed), fix="mend or remove the row"),
    )


def _wrong_type(where: str, value: Any, allowed: str) -> RowError:
    found = "null or missing" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
    reason = "null or missing" if value is None else "wrong type"
    return RowError(reason, Problem(where, found, allowed=allowed, fix="mend or remove the row"))
