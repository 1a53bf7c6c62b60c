"""Checks of what formats take from a row: texts, turns, tools. Pure Python.

Every text passes `clean`, at the one place that takes it, so that an error names it exactly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sftpipe.config.schema import FormatConfig
from sftpipe.data.samples import Conversation, Row
from sftpipe.errors import Problem, RowError

Clean = Callable[[Any, str], Any]  # (text or nested value of texts, location) -> cleaned

FIX_ROW = "fix or remove the row"
_SURROGATE = re.compile("[\ud800-\udfff]")
_ROLES = ("system", "user", "assistant", "tool")
_ORDER = (
    "system (optional), then user and assistant in turn, the assistant last; "
    "results of tools between an assistant's tool_calls and its answer"
)
# what other tools call `train`; ignored, they would train what must not be
_OTHER_FLAGS = ("weight", "training", "loss")
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


def as_it_is(value: Any, where: str) -> Any:
    """The `Clean` of finished texts, which may hold special tokens."""
    return value


# --- turns ----------------------------------------------------------------------------------------


def read_turns(value: Any, where: str, clean: Clean) -> list[dict[str, Any]]:
    """Checked messages, each with a `train` of True, False or None."""
    turns = []
    for index, message in enumerate(read_list(value, where, "a list of {role, content}")):
        here = f"{where}[{index}]"
        if not isinstance(message, Mapping):
            raise wrong_type(here, message, "{role, content}")
        role = read_text(message, "role", here)
        if role not in _ROLES:
            raise bad_role(f"{here}.role", role, _ROLES)
        turn = {name: item for name, item in message.items() if item is not None}
        turn["content"] = _content(turn, role, here)
        for name in _OTHER_FLAGS:
            if name in turn:
                problem = Problem(
                    f"{here}.{name}",
                    f"{turn[name]!r}",
                    allowed="train: true or train: false",
                    fix="rename the field to train",
                )
                raise RowError("a field of another tool", problem)
        turns.append({**clean(turn, here), "train": read_flag(message, here)})
    return turns


def _content(turn: dict[str, Any], role: str, here: str) -> str:
    """The text of a turn, whose tool calls are checked on the way; beside those it may be empty."""
    calls = turn.get("tool_calls")
    if calls:
        calls = read_list(calls, f"{here}.tool_calls", "a list")
        turn["tool_calls"] = [
            _tool_call(call, f"{here}.tool_calls[{index}]") for index, call in enumerate(calls)
        ]
    if role == "tool" or (role == "assistant" and calls):
        return read_optional_text(turn, "content", here) or ""
    return read_text(turn, "content", here)


def _tool_call(call: Any, here: str) -> dict[str, Any]:
    """Arguments as a mapping, which templates write as JSON; the OpenAI API gives them as JSON."""
    if not isinstance(call, Mapping):
        raise wrong_type(here, call, "{type: function, function: {name, arguments}}")
    function = call.get("function", call)
    if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
        try:
            function = {**function, "arguments": json.loads(function["arguments"])}
        except ValueError:
            raise wrong_type(
                f"{here}.function.arguments", function["arguments"], "a mapping, or JSON of one"
            ) from None
        return {**call, "function": function} if "function" in call else dict(function)
    return dict(call)


def read_flag(message: Row, here: str) -> bool | None:
    """The `train` of a message."""
    flag = message.get("train")
    if flag is not None and not isinstance(flag, bool):
        raise wrong_type(f"{here}.train", flag, "true, false or nothing")
    return flag


def conversation(
    turns: list[dict[str, Any]],
    row: Row,
    cfg: FormatConfig,
    where: str,
    clean: Clean,
    column: str = "messages",
) -> Conversation:
    """A conversation of checked turns, with the format's system turn, and the row's tools.

    Raises:
        RowError: the roles are out of order, a flag is on a turn that cannot be trained, or the
            row sets a variable that is not its own.
    """
    _check_order(turns, f"{where}.{column}")
    for index, turn in enumerate(turns):
        if turn.get("train") and turn["role"] != "assistant":
            problem = Problem(
                f"{where}.{column}[{index}].train",
                f"true on a turn of {turn['role']}",
                allowed="true on assistant turns",
                fix=FIX_ROW,
            )
            raise RowError("train flag on another role", problem)
    if cfg.system is not None and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": clean(cfg.system, "format.system")}, *turns]
    flags = tuple(turn.pop("train", None) for turn in turns)
    return Conversation(
        messages=tuple(turns),
        tools=_read_tools(row.get("tools"), f"{where}.tools", clean),
        template_kwargs=_read_variables(
            row.get("chat_template_kwargs"), f"{where}.chat_template_kwargs", clean
        ),
        train=flags if any(flag is not None for flag in flags) else (),
    )


def _check_order(turns: Sequence[Row], where: str) -> None:
    if _in_order(turns):
        return
    roles = [turn["role"] for turn in turns]
    listed = ", ".join(roles if len(roles) <= 12 else [*roles[:6], "...", *roles[-5:]])
    problem = Problem(where, f"the roles {listed or '(none)'}", allowed=_ORDER, fix=FIX_ROW)
    raise RowError("roles out of order", problem)


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


def _read_tools(value: Any, where: str, clean: Clean) -> tuple[Mapping[str, Any], ...]:
    value = _parsed(value, where)
    if not value:
        return ()
    tools = read_list(value, where, "a list of JSON schemas")
    schemas = [_read_mapping(tool, f"{where}[{index}]") for index, tool in enumerate(tools)]
    return tuple(clean(schemas, where))


def _read_variables(value: Any, where: str, clean: Clean) -> dict[str, Any]:
    variables = _read_mapping(value, where)
    for name in _NO_VARIABLES:
        if name in variables:
            problem = Problem(
                f"{where}.{name}",
                "not the row's to set",
                allowed="variables of the template's own",
                fix=FIX_ROW,
            )
            raise RowError("reserved template variable", problem)
    return dict(clean(variables, where))


# --- fields ---------------------------------------------------------------------------------------


def read_text(row: Row, name: str, where: str, clean: Clean = as_it_is) -> str:
    """A column that holds text.

    Raises:
        RowError: it is missing, no string, empty, or broken.
    """
    value = row.get(name)
    if not isinstance(value, str):
        raise wrong_type(f"{where}.{name}", value, "a string")
    if not value.strip():
        problem = Problem(f"{where}.{name}", "an empty string", allowed="text", fix=FIX_ROW)
        raise RowError("empty text", problem)
    return str(clean(_whole(value, f"{where}.{name}"), f"{where}.{name}"))


def read_optional_text(row: Row, name: str, where: str, clean: Clean = as_it_is) -> str | None:
    """A column that holds text or nothing."""
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise wrong_type(f"{where}.{name}", value, "a string or null")
    return value and str(clean(_whole(value, f"{where}.{name}"), f"{where}.{name}"))


def read_list(value: Any, where: str, allowed: str) -> Sequence[Any]:
    """A value that is a list."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise wrong_type(where, value, allowed)
    return value


def _read_mapping(value: Any, where: str) -> dict[str, Any]:
    value = _parsed(value, where)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise wrong_type(where, value, "a mapping")
    return dict(value)


def _parsed(value: Any, where: str) -> Any:
    """A value, or the JSON in a string: data sets store nested columns either way."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise wrong_type(where, value, "JSON") from None


def _whole(text: str, where: str) -> str:
    """Text without lone surrogates: JSON can escape such, and no file in UTF-8 can hold them."""
    half = _SURROGATE.search(text)
    if half is None:
        return text
    around = text[max(0, half.start() - 20) : half.end() + 20]
    found = f"a lone surrogate, U+{ord(half[0]):04X}, in {around!r}"
    raise RowError("broken text", Problem(where, found, allowed="whole characters", fix=FIX_ROW))


def bad_role(where: str, role: str, allowed: Sequence[str]) -> RowError:
    """The error of a role that is none of the allowed ones."""
    problem = Problem(where, repr(role), allowed=", ".join(allowed), fix=FIX_ROW)
    return RowError("unknown role", problem)


def wrong_type(where: str, value: Any, allowed: str) -> RowError:
    """The error of a value of the wrong type, or of none."""
    missing = value is None
    found = "null or missing" if missing else f"{type(value).__name__} {str(value)[:60]!r}"
    reason = "null or missing" if missing else "wrong type"
    return RowError(reason, Problem(where, found, allowed=allowed, fix=FIX_ROW))
