"""What is said of rows that are used all the same: words for each kind of `Remark`.

Most remarks are only listed. Those that other tools would have acted on are warnings, or errors
with `preflight.unread=error`: a system prompt, a weight or a reasoning that nothing reads is data
that is lost in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftpipe.config.schema import FORMATS
from sftpipe.data.chat_template import DEFAULT_SYSTEM, DOUBLED, LEFT_OUT, ChatTemplate
from sftpipe.data.labels import OUT_OF_TURN
from sftpipe.data.messages import STRAY_FLAG, UNREAD_COLUMN, UNREAD_FIELD
from sftpipe.data.rows import FILLED, Part, Remarked
from sftpipe.errors import Problem, override

if TYPE_CHECKING:
    from sftpipe.data.preflight.checks import PartFindings

# columns and fields of a turn that other tools act on
_ACTED_ON = {
    "system",
    "history",
    "weight",
    "loss",
    "train",
    "training",
    "tools",
    "functions",
    "function_call",
    "tool_calls",
    "chat_template_kwargs",
    "image",
    "images",
    "video",
    "videos",
    "audio",
    "audios",
    "chosen",
    "rejected",
    "label",
}
_PREFIXES = ("reasoning", "thinking", "thought")
# fields that say which turn it is, and not what it says
_BOOKKEEPING = ("id", "index", "uuid", "timestamp", "date", "time", "model", "source", "name")
_LISTED = {
    UNREAD_COLUMN: "column {}",
    UNREAD_FIELD: "field {} of turns",
    LEFT_OUT: "field {} of trained turns",
    STRAY_FLAG: "{} of turns that are not the assistant's",
    FILLED: "null fields that Arrow filled in",
}


@dataclass(frozen=True)
class Said:
    """A remark on the rows of one split of one source, as preflight.json has it.

    split, source: as in `Part`.
    kind, what: of the `Remark`.
    rows: that it is about.
    first: the place of the first of them.
    """

    split: str
    source: str
    kind: str
    what: str
    rows: int
    first: str


def said_of(part: Part) -> list[Said]:
    """All remarks on a part."""
    return [
        Said(part.split, part.source, remark.kind, remark.what, found.rows, part.at(found.first))
        for remark, found in part.remarks.items()
    ]


def listed(remarks: list[Said]) -> Iterator[str]:
    """What was not read, on a line each, over all splits."""
    rows: dict[str, int] = {}
    for one in remarks:
        if one.kind in _LISTED:
            name = _LISTED[one.kind].format(one.what)
            rows[name] = rows.get(name, 0) + one.rows
    for name, count in rows.items():
        yield f"{name} ({count:,} row{'s' * (count != 1)})"


# --- problems -------------------------------------------------------------------------------------


def unread_values(find: PartFindings) -> list[Problem]:
    """Columns, and fields of turns, that nothing reads and that matter."""
    part, problems = find.part, []
    lost = {remark.what for remark in part.remarks if remark.kind == LEFT_OUT}
    for remark, found in part.remarks.items():
        name = remark.what
        if remark.kind == UNREAD_COLUMN and _is_acted_on(name):
            said = f"the column {name!r} is not read: {_of(part, found)} something in it"
            fix = f"{_reader_of(name, find)}`dataset.columns.{name}=null` if it is to be left out"
            problems.append(Problem(part.at(found.first), said, fix=fix))
        elif remark.kind == UNREAD_FIELD and name not in lost and _is_acted_on(name):
            said = f"the field {name!r} of turns is not read: {_of(part, found)} it"
            problems.append(Problem(part.at(found.first), said, fix=_map_of(name, find)))
        elif remark.kind == LEFT_OUT and not _is_bookkeeping(name):
            said = (
                f"the field {name!r} of a trained turn is not in the text that the chat template "
                f"writes: {_of(part, found)} it"
            )
            problems.append(Problem(part.at(found.first), said, fix=_map_of(name, find)))
    return problems


def default_system_texts(find: PartFindings) -> list[Problem]:
    """A system text that the template adds where a row has none."""
    if find.cfg.preflight.default_system == "allow":
        return []
    return [
        Problem(
            place,
            f"the chat template adds a system turn of its own, {what[:80]!r}: "
            f"{_of(find.part, found)} none",
            fix="format.system=TEXT gives such rows one of yours, or "
            "`preflight.default_system=allow`",
        )
        for place, what, found in _remarked(find, DEFAULT_SYSTEM)
    ]


def doubled_blocks(find: PartFindings) -> list[Problem]:
    """A block such as <think>, in a text and written by the template in front of it."""
    return [
        Problem(
            place,
            f"the chat template writes {what} in front of a text that begins with it: "
            f"{_of(find.part, found)} both",
            fix="a format.function that moves the block into the field that the template reads "
            "(reasoning_content, mostly), or another tokenizer.chat_template",
        )
        for place, what, found in _remarked(find, DOUBLED)
    ]


def templates_out_of_turn(find: PartFindings) -> list[Problem]:
    """Response and instruction templates that do not alternate as the text of a chat does."""
    return [
        Problem(
            place,
            f"{found.rows} of {find.part.read} rows hold the templates of the loss out of turn "
            f"({what}): what is trained may be the user's words",
            fix="look at them with sftpipe preview; templates that no text holds, or rows without "
            "such texts",
        )
        for place, what, found in _remarked(find, OUT_OF_TURN)
    ]


def _remarked(find: PartFindings, kind: str) -> Iterator[tuple[str, str, Remarked]]:
    """The place of the first row, what it is about, and the rows, of each remark of a kind."""
    for remark, found in find.part.remarks.items():
        if remark.kind == kind:
            yield find.part.at(found.first), remark.what, found


def _of(part: Part, found: Remarked) -> str:
    return f"{found.rows} of {part.read} rows {'has' if found.rows == 1 else 'have'}"


def _is_acted_on(name: str) -> bool:
    return name.lower() in _ACTED_ON or name.lower().startswith(_PREFIXES)


def _is_bookkeeping(name: str) -> bool:
    return name.lower().split("_")[-1] in _BOOKKEEPING


def _reader_of(column: str, find: PartFindings) -> str:
    """What would read a column of this name, for the beginning of a fix."""
    form = find.cfg.format
    if column in FORMATS["messages"].optional and form.type in ("template", "text"):
        return "a format of conversations reads it (format=instruction, messages), or "
    if form.type == "template":
        return f"{{{column}}} in format.prompt, or "
    return ""


def _map_of(field: str, find: PartFindings) -> str:
    """What would read a field of a turn."""
    template: ChatTemplate = find.encoder.template
    for ours in ("reasoning_content", "thinking"):
        if field.lower().startswith(_PREFIXES) and field != ours and template.reads(ours):
            return override(f"format.fields.{ours}", field)
    return "a tokenizer.chat_template that writes it, or rows without it"
