"""A conversation to text through a chat template, and the characters that each answer takes.

One render a conversation. Where the answers lie is learnt from the template itself: a conversation
of the same shape is rendered once with marks in place of the contents, which gives the text that
the template writes between them. When the plain render equals that text with the contents filled
in, every position is known; nothing is guessed from strings. A template with `{% generation %}`
blocks says it itself.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from jinja2.exceptions import TemplateSyntaxError
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from sftpipe.data.samples import Conversation, Message
from sftpipe.errors import DataError, Problem, RowError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_MARK = "\ue000{}\ue001"  # private-use characters: no text of people holds them
_MARKS = re.compile("\ue000(\\d+)\ue001")
_KEPT = 10_000  # shapes that are remembered
_WAYS_OUT = (
    "loss=completion_only trains the last turn only; loss.unroll=true makes a row of each turn"
)
# turns below this are checked one by one; a later one only where the text in front of it is new
_EXACT = 32

Shape = tuple[Any, ...]


@dataclass(frozen=True)
class Answer:
    """Where an assistant turn lies in the text.

    start: behind the prompt that generation would be given.
    stop: end of the answer itself, or of its generation block.
    end_of_turn: where the template's text of the turn ends, with the token that ends it; of no
        use when closed.
    closed: whether `stop` includes the token that ends the turn (generation blocks); else the token
        follows.
    called: the turn holds tool calls, whose end is the end of the turn.
    """

    start: int
    stop: int
    end_of_turn: int = 0
    closed: bool = False
    called: bool = False


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    cuts: where each assistant turn of the text begins, in order; tokenisation starts anew there, as
        it does in generation.
    answers: what is trained, in order; one for each trained turn, or for each generation block of
        it.
    """

    text: str
    cuts: tuple[int, ...]
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True)
class _Skeleton:
    """A shape rendered with marks: `text`, and the pieces of it in front of, between and behind the marks."""

    text: str
    marked: tuple[int, ...]  # the messages that have marks, in order
    pieces: tuple[str, ...]  # one more than marks


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special_tokens = dict(tokenizer.special_tokens_map)
        self._skeletons: dict[Any, _Skeleton | None] = {}
        self._offsets: dict[Any, dict[int, tuple[int, int]]] = {}
        self._late: dict[Any, int | None] = {}
        self._limits: dict[Any, dict[int, int]] = {}
        self._late_limits: dict[Any, int] = {}

    def source(self, tools: Sequence[Any] = ()) -> str:
        """The Jinja text.

        Raises:
            DataError: the tokenizer has none.
        """
        if self._tokenizer.chat_template is None:
            raise DataError(
                Problem(
                    "tokenizer.chat_template",
                    "the tokenizer has no chat template, and the format makes conversations",
                    fix="tokenizer.chat_template=chatml_bos_eos, or format=prompt_completion",
                )
            )
        return str(self._tokenizer.get_chat_template(None, list(tools) or None))

    # --- rendering --------------------------------------------------------------------------------

    def text(self, chat: Conversation, where: str, *, prompt: bool) -> str:
        """The plain render; as a prompt, with the header of the answer that generation is to give."""
        return self._render(chat, where, prompt=prompt)[0]

    def _forget(self) -> None:
        """Empty the memory of shapes that grew too large; called where no part of it is in use."""
        for known in (self._skeletons, self._offsets, self._late, self._limits, self._late_limits):
            if len(known) > _KEPT:
                known.clear()

    def _render(
        self, chat: Conversation, where: str, *, prompt: bool, blocks: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        source = self.source(chat.tools)
        messages = [
            {name: value for name, value in message.items() if value is not None}
            for message in chat.messages
        ]
        variables = {**self._special_tokens, **chat.template_kwargs}
        try:
            if (
                not blocks
                and all(len(message) == 2 for message in messages)
                and not chat.tools
                and not chat.template_kwargs
            ):
                # what `render_jinja_template` does, without its copies of what is plain already
                template, names = _compiled(source)
                variables |= {
                    "messages": messages,
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": prompt,
                }
                context = template.new_context({**names, **variables}, shared=True)
                return "".join(template.root_render_func(context)), []
            texts, indices = render_jinja_template(
                conversations=[messages],
                tools=[dict(tool) for tool in chat.tools] or None,
                chat_template=source,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=blocks,
                **variables,
            )
        except TemplateSyntaxError as error:
            problem = Problem(
                "tokenizer.chat_template",
                f"no valid Jinja: {error} (line {error.lineno})",
                fix="mend it",
            )
            raise DataError(problem) from None
        except Exception as error:  # a template is a program, and can raise anything
            problem = Problem(
                where,
                f"the chat template refuses the conversation: {error}",
                fix="fix the row or the template",
            )
            raise RowError("refused by the chat template", problem) from None
        return str(texts[0]), indices[0] if blocks else []

    def render(self, chat: Conversation, turns: Sequence[int], where: str) -> Rendered:
        """The text of a conversation, and where the given assistant turns lie in it.

        Raises: DataError: there is no chat template, or it is no valid Jinja. RowError: the
            template refuses the conversation, leaves a part of it out, or writes a turn's history
            otherwise than generation
                would see it.
        """
        self._forget()
        blocks = _has_blocks(self.source(chat.tools))
        text, spans = self._render(chat, where, prompt=False, blocks=blocks)
        shape = _shape(chat)
        skeleton = self._skeleton(chat, shape, prompt=False, where=where)
        ends = _fill(skeleton, chat, text) if skeleton else None
        if skeleton is None or ends is None:
            starts = self._starts_by_prompts(chat, text, where)
            answers = {
                index: self._answer_by_prompts(chat, index, text, starts, where) for index in turns
            }
        else:
            starts = self._starts(chat, shape, skeleton, ends, prompt=False, where=where)
            stops = dict(zip(skeleton.marked, ends, strict=True))
            limits = self._limits.setdefault(shape, {})
            answers = {}
            for index in turns:
                if index not in starts:
                    raise self._not_a_prefix(chat, index, text, where)
                stop = stops.get(index, starts[index])
                if index not in limits:
                    limits[index] = self._limit(chat, shape, index, skeleton, where)
                limit = stop + limits[index] if index < len(chat.messages) - 1 else len(text)
                if limit < stop:
                    raise self._rewritten(chat, index, text, where)
                answers[index] = Answer(
                    starts[index], stop, limit, called=bool(chat.messages[index].get("tool_calls"))
                )
        found = [
            _in_blocks(index, answer, starts, spans, text, where) if blocks else [answer]
            for index, answer in answers.items()
        ]
        return Rendered(
            text, tuple(starts.values()), tuple(answer for group in found for answer in group)
        )

    def prompt(self, chat: Conversation, where: str) -> Rendered:
        """The text that generation is given for these turns, cut as `render` would cut it; no answers."""
        self._forget()
        text = self.text(chat, where, prompt=True)
        shape = _shape(chat)
        skeleton = self._skeleton(chat, shape, prompt=True, where=where)
        ends = _fill(skeleton, chat, text) if skeleton else None
        if skeleton is None or ends is None:
            return Rendered(text, tuple(self._starts_by_prompts(chat, text, where).values()))
        return Rendered(
            text,
            tuple(self._starts(chat, shape, skeleton, ends, prompt=True, where=where).values()),
        )

    # --- shapes -----------------------------------------------------------------------------------

    def _skeleton(
        self, chat: Conversation, shape: Shape, *, prompt: bool, where: str
    ) -> _Skeleton | None:
        """The marked render of a shape; None when its marks come twice, out of order, or in part."""
        key = (shape, prompt)
        if key not in self._skeletons:
            marked = tuple(
                {**message, "content": _MARK.format(index)} if _has_content(message) else message
                for index, message in enumerate(chat.messages)
            )
            text = self._render(replace(chat, messages=marked), where, prompt=prompt)[0]
            pieces = _MARKS.split(text)  # [text, index, text, index, ..., text]
            found = tuple(int(index) for index in pieces[1::2])
            expected = tuple(
                index for index, message in enumerate(chat.messages) if _has_content(message)
            )
            for index in expected:
                if index not in found:
                    raise RowError(
                        "left out by the chat template",
                        Problem(
                            f"{where}.messages[{index}]",
                            "the chat template leaves out this turn "
                            f"({chat.messages[index]['role']})",
                            fix="another tokenizer.chat_template, or rows without such turns",
                        ),
                    )
            _check_tools(chat, text, where)
            self._skeletons[key] = (
                _Skeleton(text, found, tuple(pieces[::2])) if found == expected else None
            )
        return self._skeletons[key]

    def _starts(
        self,
        chat: Conversation,
        shape: Shape,
        full: _Skeleton,
        ends: Sequence[int],
        *,
        prompt: bool,
        where: str,
    ) -> dict[int, int]:
        """{assistant turn: where it begins in the text}, without the turns that generation would see another prompt of."""
        key = (shape, prompt)
        if key not in self._offsets:
            offsets = {}
            for index, message in enumerate(chat.messages):
                if message["role"] == "assistant":
                    offset = self._offset(chat, shape, index, full, where)
                    if offset is not None:
                        offsets[index] = (
                            sum(1 for marked in full.marked if marked < index),
                            offset,
                        )
            self._offsets[key] = offsets
        return {
            index: (ends[marks - 1] if marks else 0) + offset
            for index, (marks, offset) in self._offsets[key].items()
        }

    def _offset(
        self, chat: Conversation, shape: Shape, index: int, full: _Skeleton, where: str
    ) -> int | None:
        """Characters between the last content in front of an assistant turn and the turn itself; None when generation sees another prompt.

        The prompt's skeleton has to be a prefix of the conversation's. Far into a long conversation
        that is looked up by what stands in front of the turn, so that the cost stays linear in the
        number of turns.
        """
        head, roles = shape
        late = index >= _EXACT and index != len(chat.messages) - 1
        at = sum(1 for marked in full.marked if marked < index)
        seen = (head, roles[index - 1 : index + 1], full.pieces[at])
        if late and seen in self._late:
            return self._late[seen]
        part = replace(chat, messages=chat.messages[:index], train=())
        skeleton = self._skeleton(part, (head, roles[:index]), prompt=True, where=where)
        offset = (
            len(skeleton.pieces[-1])
            if skeleton is not None and full.text.startswith(skeleton.text)
            else None
        )
        if late:
            self._late[seen] = offset
        return offset

    def _limit(
        self, chat: Conversation, shape: Shape, index: int, full: _Skeleton, where: str
    ) -> int:
        """Characters behind an assistant turn's content (or its start) that the template writes for the turn itself, whatever follows.

        Negative when the turn is not written as it is where it comes last: what would be trained is
        not what generation would give.
        """
        head, roles = shape
        at = bisect_right(full.marked, index)
        own = at > 0 and full.marked[at - 1] == index
        seen = (head, roles[index - 1 : index + 2], full.pieces[at - own : at + 1])
        if index >= _EXACT and seen in self._late_limits:
            return self._late_limits[seen]
        part = replace(chat, messages=chat.messages[: index + 1], train=())
        alone = self._skeleton(part, (head, roles[: index + 1]), prompt=False, where=where)
        behind = sum(map(len, full.pieces[at:])) + sum(
            len(_MARK.format(mark)) for mark in full.marked[at:]
        )
        stop = len(full.text) - behind + (0 if own else self._offsets[shape, False][index][1])
        limit = _common(alone.text, full.text) - stop if alone is not None else -1
        if index >= _EXACT:
            self._late_limits[seen] = limit
        return limit

    # --- templates that write contents otherwise --------------------------------------------------

    def _starts_by_prompts(self, chat: Conversation, text: str, where: str) -> dict[int, int]:
        """`_starts`, found by the prompts that generation would really be given."""
        starts = {}
        for index, message in enumerate(chat.messages):
            if message["role"] == "assistant":
                prompt = self.text(
                    replace(chat, messages=chat.messages[:index], train=()), where, prompt=True
                )
                if text.startswith(prompt):
                    starts[index] = len(prompt)
        return starts

    def _answer_by_prompts(
        self, chat: Conversation, index: int, text: str, starts: Mapping[int, int], where: str
    ) -> Answer:
        """An assistant turn that is found by rendering the conversation with a mark in place of this turn alone."""
        if index not in starts:
            raise self._not_a_prefix(chat, index, text, where)
        message, start = chat.messages[index], starts[index]
        stop = start
        alone = self.text(
            replace(chat, messages=chat.messages[: index + 1], train=()), where, prompt=False
        )
        if _has_content(message):
            mark = _MARK.format(index)
            messages = (
                *chat.messages[:index],
                {**message, "content": mark},
                *chat.messages[index + 1 :],
            )
            _, found, tail = self._render(replace(chat, messages=messages), where, prompt=False)[
                0
            ].rpartition(mark)
            stop = len(text) - len(tail)
            answer = "".join(
                str(message["content"]).split()
            )  # its beginning may stand in the prompt: <think>
            if (
                not found
                or not text.endswith(tail)
                or stop <= start
                or not "".join(text[:stop].split()).endswith(answer)
            ):
                if index < len(chat.messages) - 1 and answer in "".join(alone.split()):
                    raise self._rewritten(chat, index, text, where)
                raise RowError(
                    "left out by the chat template",
                    Problem(
                        f"{where}.messages[{index}]",
                        "the chat template leaves out the answer, or a part of it",
                        fix="another tokenizer.chat_template",
                    ),
                )
        limit = _common(alone, text)
        if limit < stop:
            raise self._rewritten(chat, index, text, where)
        return Answer(start, stop, limit, called=bool(message.get("tool_calls")))

    def _not_a_prefix(self, chat: Conversation, index: int, text: str, where: str) -> RowError:
        prompt = self.text(
            replace(chat, messages=chat.messages[:index], train=()), where, prompt=True
        )
        last = index == len(chat.messages) - 1
        return RowError(
            "history written otherwise than in generation",
            Problem(
                f"{where}.messages[{index}]",
                "the chat template writes the turns before this answer otherwise than the prompt "
                "of generation, "
                f"so the mask has no place to begin: {_first_difference(prompt, text)}",
                fix="another tokenizer.chat_template" if last else _WAYS_OUT,
            ),
        )

    def _rewritten(self, chat: Conversation, index: int, text: str, where: str) -> RowError:
        alone = self.text(
            replace(chat, messages=chat.messages[: index + 1], train=()), where, prompt=False
        )
        return rewritten(f"{where}.messages[{index}]", _first_difference(alone, text))


def rewritten(where: str, difference: str) -> RowError:
    """The error of a trained turn that a template writes in one way when it is the last and in another when turns follow."""
    return RowError(
        "history written otherwise than in generation",
        Problem(
            where,
            f"the chat template writes this answer otherwise once turns follow it: {difference}",
            fix=_WAYS_OUT,
        ),
    )


@cache
def _compiled(source: str) -> tuple[Any, dict[str, Any]]:
    """A template, and the global names that it may use."""
    template = _compile_jinja_template(source)
    return template, dict(template.globals)


@cache
def _has_blocks(source: str) -> bool:
    return bool(_GENERATION.search(source))


def trained_turns(chat: Conversation, loss: str) -> tuple[int, ...]:
    """The assistant turns that a loss trains, unless a `train` flag says otherwise.

    The last one; with `assistant_only`, and of rows that come as prompt and completion, every one
    behind the prompt.
    """
    answers = [
        index for index, message in enumerate(chat.messages) if message["role"] == "assistant"
    ]
    behind = [index for index in answers if index >= chat.prompt_length]
    chosen = behind if loss == "assistant_only" or chat.prompt_length else answers[-1:]
    flags = chat.train or (None,) * len(chat.messages)
    return tuple(
        index
        for index in answers
        if (flags[index] if flags[index] is not None else index in chosen)
    )


def unrolled(chat: Conversation, loss: str) -> list[Conversation]:
    """A conversation for each trained turn, cut behind it."""
    cut = []
    for index in trained_turns(chat, loss):
        flags = (
            *(
                False if message["role"] == "assistant" else None
                for message in chat.messages[:index]
            ),
            True,
        )
        cut.append(replace(chat, messages=chat.messages[: index + 1], train=flags))
    return cut


def _check_tools(chat: Conversation, text: str, where: str) -> None:
    """Refuse a template that knows no tools: it would drop calls and schemas without a word."""
    named = [(f"{where}.tools", "the tools", tool) for tool in chat.tools]
    named += [
        (f"{where}.messages[{index}]", "the tool calls of this turn", call)
        for index, message in enumerate(chat.messages)
        for call in message.get("tool_calls") or ()
    ]
    for place, what, tool in named:
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str) and name not in text:
            problem = Problem(
                place,
                f"the chat template leaves out {what} ({name})",
                fix="another tokenizer.chat_template, or rows without tools",
            )
            raise RowError("left out by the chat template", problem)


def _has_content(message: Message) -> bool:
    return isinstance(message.get("content"), str) and bool(message["content"].strip())


def _shape(chat: Conversation) -> Shape:
    """All of a conversation but its contents: what a template's text between the contents can depend on."""
    roles = tuple(
        message["role"]
        if len(message) == 2 and _has_content(message)
        else json.dumps(
            {**message, "content": "" if _has_content(message) else message.get("content")},
            sort_keys=True,
            default=str,
        )
        + f" {_has_content(message)}"
        for message in chat.messages
    )
    head = (
        json.dumps([list(chat.tools), dict(chat.template_kwargs)], default=str)
        if chat.tools or chat.template_kwargs
        else ""
    )
    return head, roles


def _fill(skeleton: _Skeleton, chat: Conversation, text: str) -> list[int] | None:
    """The end of each marked content in the plain render; None when the render is not the skeleton with the contents filled in.

    Templates may trim white space at the ends of a content; nothing else may change.
    """
    position = len(skeleton.pieces[0])
    if not text.startswith(skeleton.pieces[0]):
        return None
    ends = []
    for index, piece in zip(skeleton.marked, skeleton.pieces[1:], strict=True):
        end = _end_of(str(chat.messages[index]["content"]), piece, text, position)
        if end is None:
            return None
        ends.append(end)
        position = end + len(piece)
    return ends if position == len(text) else None


def _end_of(content: str, piece: str, text: str, position: int) -> int | None:
    """The end of a content that stands at a position of the text, with the piece behind it; None when it does not."""
    if text.startswith(content, position) and text.startswith(piece, position + len(content)):
        return position + len(content)
    core = content.strip()
    before = len(content) - len(content.lstrip())
    behind = content[before + len(core) :]
    for start in range(before + 1):
        if text.startswith(content[start : before + len(core)], position):
            end = position + before - start + len(core)
            for length in range(len(behind), -1, -1):
                if text.startswith(behind[:length] + piece, end):
                    return end + length
    return None


def _in_blocks(
    index: int,
    answer: Answer,
    starts: Mapping[int, int],
    blocks: Sequence[tuple[int, int]],
    text: str,
    where: str,
) -> list[Answer]:
    """An answer as the template's generation blocks bound it, without what the prompt of generation writes.

    A block may begin in that prompt, and belongs to the last turn that begins in front of its end.
    """
    behind = min((start for start in starts.values() if start > answer.start), default=None)
    own = [
        (start, stop)
        for start, stop in blocks
        if stop > answer.start and (behind is None or stop <= behind)
    ]
    if not own:
        problem = Problem(
            f"{where}.messages[{index}]",
            "no generation block of the chat template holds this turn",
            allowed="a block for each turn",
            fix="mend the chat template",
        )
        raise RowError("refused by the chat template", problem)
    if own[0][0] > answer.start:
        between = text[answer.start : own[0][0]]
        problem = Problem(
            f"{where}.messages[{index}]",
            "the generation block begins behind the prompt of generation: the model would have "
            f"to write {between[:40]!r} and would never learn to",
            allowed="a block that begins where generation begins",
            fix="mend the chat template",
        )
        raise RowError("refused by the chat template", problem)
    return [Answer(max(start, answer.start), stop, closed=True) for start, stop in own]


def _common(a: str, b: str) -> int:
    """Characters that both begin with."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a.startswith(b[:middle]) else (low, middle - 1)
    return low


def _first_difference(a: str, b: str) -> str:
    at = _common(a, b)
    return f"{a[max(0, at - 20) : at + 20]!r} against {b[max(0, at - 20) : at + 20]!r}"
