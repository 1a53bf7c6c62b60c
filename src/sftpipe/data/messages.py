"""Checks of what formats take from a row: texts, turns, tools. Pure Python.

Every text passes `clean`, at the one place that takes it, so that an error names it exactly. Where
a value may be left out, blanks, empty lists and NaN are as good as nothing, and a nested value may
be the JSON of it: files hold one value in all of these ways.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

from sftpipe.config.schema import FORMATS, ROLES, FormatConfig
from sftpipe.data.samples import Arguments, Conversation, Remark, Row
from sftpipe.errors import Problem, RowError, override

# (text or nested value of texts, location, role that says it) -> cleaned
Clean = Callable[[Any, str, str], Any]

FIX_ROW = "fix or remove the row"
UNREAD_COLUMN, UNREAD_FIELD, STRAY_FLAG = "unread column", "unread field", "stray flag"
_SURROGATE = re.compile("[\ud800-\udfff]")
_HEAD = ("system", "developer")
_ORDER = (
    "system (optional), then user and assistant in turn, the assistant last; "
    "results of tools between an assistant's call and its answer"
)
# `train` as other tools call it
_FLAGS = ("train", "weight", "loss", "training")
_KNOWN = ("role", "content", *_FLAGS, "function_call")
_SHAREGPT_FIELDS = {"role": "from", "content": "value"}
_ALIASES = {"function": "tool"}  # of the OpenAI API before it had tools
_SHAREGPT_ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_call": "assistant",
    **_ALIASES,
}
_TURNS = "a list of turns, or JSON of one"
_CALL = "function_call"  # the role of turns whose text is a call, or a list of calls
_CHAT_COLUMNS = frozenset(FORMATS["messages"].optional)
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


class Turn(NamedTuple):
    """A checked turn.

    message: role, content, and the fields that only a chat template can read.
    train: the row's own word on whether it is trained.
    remarks: what else is to be said of it.
    """

    message: dict[str, Any]
    train: bool | None = None
    remarks: tuple[Remark, ...] = ()

    @property
    def role(self) -> str:
        """One of the roles that templates know."""
        return str(self.message["role"])


def as_it_is(value: Any, where: str, role: str = "") -> Any:
    """The `Clean` of finished texts, which may hold special tokens."""
    return value


# --- turns ----------------------------------------------------------------------------------------


def read_turns(value: Any, where: str, clean: Clean, cfg: FormatConfig) -> list[Turn]:
    """Checked turns, from a list or the JSON of one; a system turn of null is none.

    Raises:
        RowError: a turn lacks its role or its text, or has flags that contradict each other.
    """
    turns = []
    for index, turn in enumerate(read_list(parsed(value, where, _TURNS), where, _TURNS)):
        here = f"{where}[{index}]"
        if not isinstance(turn, Mapping):
            raise wrong_type(here, turn, "{role, content}")
        read = _read_turn(turn, here, clean, cfg)
        if read is not None:
            turns.append(read)
    return turns


def _read_turn(raw: Row, here: str, clean: Clean, cfg: FormatConfig) -> Turn | None:
    sharegpt = cfg.type == "sharegpt"
    names = {**(_SHAREGPT_FIELDS if sharegpt else {}), **cfg.fields}
    turn, remarks = _renamed(raw, names)
    said, role = _read_role(turn, raw, names, here, cfg)
    if role in _HEAD and turn.get("content") is None:
        return None
    train, stray = _read_flag(turn, names, here)
    if train is not None and role != "assistant":
        train, remarks = None, [*remarks, Remark(STRAY_FLAG, stray)]
    field = names.get("content", "content")
    message = {"role": role, **_fields(turn)}
    if sharegpt and said == _CALL:
        calls = parsed(turn["content"], f"{here}.{field}")
        message["tool_calls"] = _wrapped(_calls(calls, here, field))
        turn["content"] = None
    elif role == "assistant":
        message |= _tool_calls(turn, here)
    message = dict(clean(message, here, role))
    # its place is second, where templates that print a whole turn expect it
    content = _content(turn, message, f"{here}.{field}", clean)
    rest = {name: value for name, value in message.items() if name != "role"}
    return Turn({"role": role, "content": content, **rest}, train, tuple(remarks))


def _renamed(raw: Row, names: Mapping[str, str]) -> tuple[dict[str, Any], list[Remark]]:
    """A turn by our names for its keys, and remarks on those that a renamed one takes away."""
    if not names:
        return dict(raw), []
    taken = {*names, *names.values()}
    turn = {name: value for name, value in raw.items() if name not in taken}
    turn |= {ours: raw[theirs] for ours, theirs in names.items() if theirs in raw}
    hidden = [
        name for name in names if name not in names.values() and not is_nothing(raw.get(name))
    ]
    return turn, [Remark(UNREAD_FIELD, name) for name in hidden]


def _read_role(
    turn: Row, raw: Row, names: Mapping[str, str], here: str, cfg: FormatConfig
) -> tuple[str, str]:
    """The role as the data set says it, and as templates do."""
    key = names.get("role", "role")
    said = turn.get("role")
    if not isinstance(said, str) or not said.strip():
        error = wrong_type(f"{here}.{key}", said, "a string")
        problem = _with_names(error.problem, raw, cfg) if said is None else error.problem
        raise RowError(error.reason, problem)
    aliases = _SHAREGPT_ALIASES if cfg.type == "sharegpt" else _ALIASES
    role = cfg.roles.get(said) or aliases.get(said, said)
    if role in ROLES:
        return said, role
    allowed = ", ".join(dict.fromkeys([*aliases, *ROLES]))
    maps = f"write {said!r}: user into format.roles of a recipe"
    if re.fullmatch(r"[\w-]+", said):
        maps = override(f"format.roles.{said}", "user")
    fix = f"{maps} (or another role), or {FIX_ROW}"
    problem = Problem(f"{here}.{key}", repr(said), allowed=allowed, fix=fix)
    raise RowError("unknown role", problem)


def _with_names(problem: Problem, turn: Row, cfg: FormatConfig) -> Problem:
    """A problem of a turn without its role, with what would read the keys that the turn has."""
    keys = ", ".join(map(str, turn)) or "no keys"
    fix = f"format.fields={{role: KEY, content: KEY}} maps other names; else {FIX_ROW}"
    if cfg.type == "sharegpt" and {"role", "content"} <= turn.keys():
        fix = "`format=messages dataset.columns.messages=conversations`"
    elif cfg.type == "messages" and {"from", "value"} <= turn.keys():
        fix = "`format=sharegpt dataset.columns.conversations=messages`"
    found = f"{problem.found}; the turn has {keys}"
    return Problem(problem.where, found, allowed=problem.allowed, fix=fix)


def _fields(turn: Row) -> dict[str, Any]:
    """What only a chat template can read: all that says something and has no meaning here."""
    return {
        name: value
        for name, value in turn.items()
        if name not in _KNOWN and name != "tool_calls" and not is_nothing(value)
    }


def _read_flag(turn: Row, names: Mapping[str, str], here: str) -> tuple[bool | None, str]:
    """Whether a turn is to be trained, and the field that says so.

    Raises:
        RowError: a value that is no flag, or two fields that disagree.
    """
    found: dict[str, bool] = {}
    for field in _FLAGS:
        value, name = turn.get(field), names.get(field, field)
        if value is None or _is_nan(value):
            continue
        is_weight = field == "weight" and isinstance(value, (int, float)) and value in (0, 1)
        if not isinstance(value, bool) and not is_weight:
            allowed = "0, 1 or nothing" if field == "weight" else "true, false or nothing"
            raise wrong_type(f"{here}.{name}", value, allowed)
        found[name] = bool(value)
    if len(set(found.values())) > 1:
        said = ", ".join(f"{name}: {str(value).lower()}" for name, value in found.items())
        problem = Problem(here, said, allowed="flags that agree", fix=FIX_ROW)
        raise RowError("flags that contradict each other", problem)
    name, flag = next(iter(found.items()), ("", None))
    return flag, name


def _content(turn: Row, message: Row, where: str, clean: Clean) -> str:
    """The text of a turn; text parts are joined. Beside calls and of tools it may be empty."""
    value, role = turn.get("content"), message["role"]
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = "".join(_part(part, f"{where}[{index}]") for index, part in enumerate(value))
    # an empty system turn is not the same as none to a template that has a default of its own
    if role in ("tool", *_HEAD) or message.get("tool_calls"):
        return read_optional_text({"": value}, "", where, clean, role) or ""
    return read_text({"": value}, "", where, clean, role)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        problem = Problem(
            where,
            f"a part of type {kind}",
            allowed="parts of text: {type: text, text: ...}",
            fix="rows of text alone; images, sounds and videos are not trained on here",
        )
        raise RowError("a part that is no text", problem)
    return text


# --- calls of tools -------------------------------------------------------------------------------


def _tool_calls(turn: Row, here: str) -> dict[str, Any]:
    """{"tool_calls": [...]} of an assistant turn that calls tools, or {}."""
    calls = parsed(turn.get("tool_calls"), f"{here}.tool_calls")
    if is_nothing(calls) and not is_nothing(turn.get("function_call")):
        calls = parsed(turn["function_call"], f"{here}.function_call")
        return {"tool_calls": _wrapped(_calls(calls, here, "function_call"))}
    return {} if is_nothing(calls) else {"tool_calls": _calls(calls, here, "tool_calls")}


def _wrapped(calls: Sequence[Any]) -> list[dict[str, Any]]:
    """Calls in the form of the OpenAI API, which every template reads."""
    return [
        call if "function" in call else {"type": "function", "function": call} for call in calls
    ]


def _calls(calls: Any, here: str, field: str) -> list[dict[str, Any]]:
    """Calls as templates read them; a single one may stand for the list of it."""
    several = [calls] if isinstance(calls, Mapping) else calls
    several = read_list(several, f"{here}.{field}", "a call {name, arguments}, or a list of them")
    return [_tool_call(call, f"{here}.{field}[{index}]") for index, call in enumerate(several)]


def _tool_call(call: Any, here: str) -> dict[str, Any]:
    """{name, arguments}, or that as the `function` of a call, with the arguments as a mapping."""
    call = parsed(call, here)
    if not isinstance(call, Mapping):
        raise wrong_type(here, call, "{type: function, function: {name, arguments}}")
    if not isinstance(call.get("function"), Mapping):
        return {**call, "arguments": _arguments(call.get("arguments"), f"{here}.arguments")}
    function, place = dict(call["function"]), f"{here}.function.arguments"
    function["arguments"] = _arguments(function.get("arguments"), place)
    return {**call, "function": function}


def _arguments(value: Any, where: str) -> Any:
    """Arguments as templates take them; the OpenAI API gives them as JSON in a string."""
    if is_nothing(value):
        return Arguments({}, "{}")
    if isinstance(value, str):
        found = parsed(value, where, "a mapping, or JSON of one")
        return Arguments(found, value) if isinstance(found, Mapping) else value
    if not isinstance(value, Mapping):
        raise wrong_type(where, value, "a mapping, or JSON of one")
    return Arguments(value, json.dumps(value, ensure_ascii=False))


# --- conversations --------------------------------------------------------------------------------


def conversation(
    turns: list[Turn],
    row: Row,
    cfg: FormatConfig,
    where: str,
    clean: Clean,
    column: str = "messages",
) -> Conversation:
    """A conversation of checked turns, with what the row has beside them.

    That is a system turn (column `system`, or else the format's), earlier turns (`history`), the
    tools, and variables of the template.

    Raises:
        RowError: the roles are out of order, there are two system turns, or the row sets a variable
            that is not its own.
    """
    beside = not _CHAT_COLUMNS.isdisjoint(row)  # most rows have nothing
    turns = _with_history(turns, row, cfg, where, clean) if beside else turns
    _check_order([turn.message for turn in turns], f"{where}.{column}")
    if beside or cfg.system is not None:
        turns = _with_system(turns, row, cfg, where, clean, column)
    messages, flags, remarks = zip(*turns, strict=True)
    return Conversation(
        messages=messages,
        tools=_read_tools(row, where, clean) if beside else (),
        template_kwargs=_read_variables(row, where, clean) if beside else {},
        train=() if set(flags) == {None} else flags,
        remarks=tuple(dict.fromkeys(chain(*remarks))) if any(remarks) else (),
    )


def chat_columns(row: Row) -> tuple[Remark, ...]:
    """A remark for each column of conversations that a row of finished strings has."""
    names = FORMATS["messages"].optional
    return tuple(Remark(UNREAD_COLUMN, name) for name in names if not is_nothing(row.get(name)))


def _with_system(
    turns: list[Turn], row: Row, cfg: FormatConfig, where: str, clean: Clean, column: str
) -> list[Turn]:
    """The turns behind a system turn of the row's own column, or else of the config."""
    own = next((turn for turn in turns[:2] if turn.message["role"] in _HEAD), None)
    here = f"{where}.system"
    value = row.get("system")
    if not is_nothing(value):
        if not isinstance(value, str):
            error = wrong_type(here, value, "a string or nothing")
            raise RowError(error.reason, _hidden(error.problem, "system"))
        text = read_text(row, "system", where, clean, "system")
        if own is None:
            return [Turn({"role": "system", "content": text}), *turns]
        if own.message["content"] != text:
            found = f"{text[:60]!r}, and {column} has a system turn of its own"
            problem = Problem(here, found, allowed="one system turn")
            raise RowError("two system turns", _hidden(problem, "system"))
    elif own is None and cfg.system is not None:
        text = str(clean(cfg.system, "format.system", "system"))
        return [Turn({"role": "system", "content": text}), *turns]
    return turns


def _hidden(problem: Problem, column: str) -> Problem:
    fix = f"`dataset.columns.{column}=null` leaves the column out, or {FIX_ROW}"
    return Problem(problem.where, problem.found, allowed=problem.allowed, fix=fix)


def _with_history(
    turns: list[Turn], row: Row, cfg: FormatConfig, where: str, clean: Clean
) -> list[Turn]:
    """The turns behind the earlier ones of the column `history`: pairs of texts, or turns."""
    here = f"{where}.history"
    value = parsed(row.get("history"), here)
    if is_nothing(value):
        return turns
    earlier: list[Turn] = []
    for index, item in enumerate(read_list(value, here, "a list of [question, answer]")):
        place = f"{here}[{index}]"
        if isinstance(item, Mapping):
            form = replace(cfg, type="messages") if "role" in item else cfg
            earlier += read_turns([item], here, clean, form)
            continue
        pair = read_list(item, place, "[question, answer]")
        if len(pair) != 2:
            raise wrong_type(place, list(pair), "[question, answer]")
        for at, role in enumerate(("user", "assistant")):
            text = read_text({"": pair[at]}, "", f"{place}[{at}]", clean, role)
            earlier.append(Turn({"role": role, "content": text}))
    head = next((at for at, turn in enumerate(turns) if turn.role not in _HEAD), len(turns))
    return [*turns[:head], *earlier, *turns[head:]]


def _check_order(turns: Sequence[Row], where: str) -> None:
    if _in_order(turns):
        return
    roles = [turn["role"] for turn in turns]
    listed = ", ".join(roles if len(roles) <= 12 else [*roles[:6], "...", *roles[-5:]])
    fix = f"{FIX_ROW}, map the names of roles (format.roles), or a function that puts them in order"
    found = f"the roles {listed or '(none)'}"
    problem = Problem(where, found, allowed=_ORDER, fix=f"{fix} (format=function)")
    raise RowError("roles out of order", problem)


def _in_order(turns: Sequence[Row]) -> bool:
    allowed = {*_HEAD, "user"}  # what may come next
    for turn in turns:
        role = turn["role"]
        if role not in allowed:
            return False
        if role in _HEAD:
            allowed = allowed - {role}
        elif role == "tool":
            allowed = {"tool", "assistant"}
        elif role == "user":
            allowed = {"assistant"}
        else:
            allowed = {"user", "tool"}  # a call may be in the text, as Hermes writes it
    return bool(turns) and turns[-1]["role"] == "assistant"


def _read_tools(row: Row, where: str, clean: Clean) -> tuple[Mapping[str, Any], ...]:
    name = "tools"
    value = parsed(row.get(name), f"{where}.{name}")
    if is_nothing(value):
        name = "functions"  # of the OpenAI API before it had tools
        value = parsed(row.get(name), f"{where}.{name}")
    if is_nothing(value):
        return ()
    here = f"{where}.{name}"
    tools = read_list(value, here, "a list of JSON schemas")
    schemas = [_read_mapping(tool, f"{here}[{index}]") for index, tool in enumerate(tools)]
    if name == "functions":
        schemas = [{"type": "function", "function": schema} for schema in schemas]
    return tuple(clean(schemas, here, "system"))


def _read_variables(row: Row, where: str, clean: Clean) -> dict[str, Any]:
    where = f"{where}.chat_template_kwargs"
    variables = _read_mapping(row.get("chat_template_kwargs"), where)
    for name in _NO_VARIABLES:
        if name in variables:
            problem = Problem(
                f"{where}.{name}",
                "not the row's to set",
                allowed="variables of the template's own",
                fix=FIX_ROW,
            )
            raise RowError("reserved template variable", problem)
    return dict(clean(variables, where, "system"))


# --- fields ---------------------------------------------------------------------------------------


def is_nothing(value: Any) -> bool:
    """True for what stands for no value: null, pandas' NaN, blanks, an empty list or mapping."""
    if value is None or _is_nan(value):
        return True
    if isinstance(value, str):
        return not value.strip()
    return isinstance(value, (Mapping, Sequence)) and not value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def read_text(row: Row, name: str, where: str, clean: Clean = as_it_is, role: str = "user") -> str:
    """A column that holds text; `name` of "" is a value at `where` itself.

    Raises:
        RowError: it is missing, no string, empty, or broken.
    """
    value, here = row.get(name), f"{where}.{name}" if name else where
    if not isinstance(value, str):
        raise wrong_type(here, value, "a string")
    if not value.strip():
        problem = Problem(here, "an empty string", allowed="text", fix=FIX_ROW)
        raise RowError("empty text", problem)
    return str(clean(_whole(value, here), here, role))


def read_optional_text(
    row: Row, name: str, where: str, clean: Clean = as_it_is, role: str = "user"
) -> str | None:
    """A column that holds text or nothing."""
    value, here = row.get(name), f"{where}.{name}" if name else where
    if value is not None and is_nothing(value) and not isinstance(value, str):
        return None
    if value is not None and not isinstance(value, str):
        raise wrong_type(here, value, "a string or null")
    return value and str(clean(_whole(value, here), here, role))


def read_list(value: Any, where: str, allowed: str) -> Sequence[Any]:
    """A value that is a list."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise wrong_type(where, value, allowed)
    return value


def _read_mapping(value: Any, where: str) -> dict[str, Any]:
    value = parsed(value, where)
    if is_nothing(value):
        return {}
    if not isinstance(value, Mapping):
        raise wrong_type(where, value, "a mapping")
    return dict(value)


def parsed(value: Any, where: str, allowed: str = "JSON") -> Any:
    """A value, or that of the JSON in a string; blanks are None.

    Data sets store nested columns either way, and CSV files can only do it so.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        error = wrong_type(where, value, allowed)
    fix = FIX_ROW
    if value.lstrip()[:1] in "[{" and "'" in value:
        fix = "write it with json.dumps: it seems to be what Python prints of the value"
    found = error.problem.found
    raise RowError(error.reason, Problem(where, found, allowed=allowed, fix=fix))


def _whole(text: str, where: str) -> str:
    """Text without lone surrogates: JSON can escape such, and no file in UTF-8 can hold them."""
    half = _SURROGATE.search(text)
    if half is None:
        return text
    around = text[max(0, half.start() - 20) : half.end() + 20]
    found = f"a lone surrogate, U+{ord(half[0]):04X}, in {around!r}"
    raise RowError("broken text", Problem(where, found, allowed="whole characters", fix=FIX_ROW))


def wrong_type(where: str, value: Any, allowed: str) -> RowError:
    """The error of a value of the wrong type, or of none."""
    missing = value is None
    found = "null or missing" if missing else f"{type(value).__name__} {str(value)[:60]!r}"
    reason = "null or missing" if missing else "wrong type"
    return RowError(reason, Problem(where, found, allowed=allowed, fix=FIX_ROW))
