"""A conversation to text through a chat template, and the characters that each answer takes.

One render a conversation. Where the answers lie is learnt from the template itself: a conversation
of the same shape is rendered once with marks in place of the contents, which gives the text that
the template writes between them. When the plain render equals that text with the contents filled
in, every position is known; nothing is guessed from strings. A template with `{% generation %}`
blocks says it itself.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateSyntaxError
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from sftpipe.data.messages import UNREAD_FIELD
from sftpipe.data.samples import Arguments, Conversation, Message, Remark
from sftpipe.errors import DataError, Problem, RowError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
MARK = "\ue000{}\ue001"  # private-use characters: no text of people holds them
MARKS = re.compile("\ue000(\\d+)\ue001")
_NONE = object()  # a content that the template is to see as none; other values of None are left out
_ROLE_AND_TEXT = ("role", "content")
_SEARCHES = (
    "split",
    "rsplit",
    "partition",
    "rpartition",
    "startswith",
    "endswith",
    "find",
    "replace",
)
_PROBE_TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
_TAG_IN_FRONT = re.compile(r"\s*(<[a-z_]+>)")
DEFAULT_SYSTEM, LEFT_OUT = "default system text", "left out by the chat template"
DOUBLED = "a block of the template in front of one in the text"
_KEPT = 10_000  # shapes that are remembered
_WAYS_OUT = (
    "`loss=completion_only` trains the last turn only; `loss.unroll=true` makes a row of each turn"
)
_EXACT = 32  # turns before this one are measured one by one; see `_near`

Shape = tuple[Any, ...]


@dataclass(frozen=True)
class Answer:
    """Where an assistant turn lies in the text.

    start: after the prompt that generation would be given.
    stop: end of the answer itself, or of its generation block.
    end_of_turn: where the template's text of the turn ends, with the token that ends it; of no
        use when closed.
    closed: True if `stop` includes the token that ends the turn (generation blocks); else the token
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
    """A shape rendered with marks in place of its contents.

    text: the render.
    marked: the messages that have marks, in order.
    pieces: of the text, before, between and after the marks; one more than marks.
    """

    text: str
    marked: tuple[int, ...]
    pieces: tuple[str, ...]


@dataclass
class _Known:
    """What is known of a shape.

    shape: as `_shape` gives it.
    skeleton: None if its marks come twice, out of order, or in part.
    starts: {assistant turn: (marks before it, characters from the last of them to the turn)},
        without turns that generation would see another prompt of; None until asked for.
    ends: {assistant turn: characters from its content to the end of the turn}, as far as asked for.
    """

    shape: Shape
    skeleton: _Skeleton | None
    starts: dict[int, tuple[int, int]] | None = None
    ends: dict[int, int] = field(default_factory=dict)


class ChatTemplate:
    """The chat template of a tokenizer.

    day: the date that templates with `strftime_now` write; a run keeps the one of its first start.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, day: datetime.date | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self.day = day or datetime.date.today()
        self._special_tokens = dict(tokenizer.special_tokens_map)
        self._default_systems: dict[bool, tuple[Remark, ...]] = {}  # by whether there are tools
        self._prints_turns: bool | None = None
        self._ways: dict[bool, list[tuple[bool, bool]]] = {}  # by whether there are tools
        self._known: dict[tuple[Shape, bool], _Known] = {}  # by shape, and whether as a prompt
        self._measured: dict[Hashable, int | None] = {}  # of `_near`

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
                    fix="`tokenizer.chat_template=chatml_bos_eos`, or `format=prompt_completion`",
                )
            )
        return str(self._tokenizer.get_chat_template(None, list(tools) or None))

    @property
    def writes_date(self) -> bool:
        """True if the template may write the date into its text."""
        return "strftime_now" in str(self._tokenizer.chat_template)

    # --- what a template makes of parts of a conversation -----------------------------------------

    @property
    def parsed_words(self) -> frozenset[str]:
        """The strings that the template looks for in texts, such as `</think>`."""
        return frozenset().union(*(_words(one)[1] for one in self._sources()))

    def reads(self, field: str) -> bool:
        """True if the template may write a field of a turn."""
        sources = self._sources()
        return any(field in _words(one)[0] for one in sources) or self._writes_all_fields()

    def _sources(self) -> list[str]:
        template = self._tokenizer.chat_template
        found = template.values() if isinstance(template, dict) else [template]
        return [str(one) for one in found if one is not None]

    def _writes_all_fields(self) -> bool:
        """True of a template that prints whole turns, seen by a field that no one knows."""
        if self._prints_turns is None:
            mark = MARK.format(0)
            user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
            chat = Conversation(({**user, "x_" * 8: mark}, {**answer, "x_" * 8: mark}))
            try:
                self._prints_turns = mark in self.text(chat, "a probe", prompt=False)
            except RowError:
                self._prints_turns = False
        return self._prints_turns

    def settle(self, chat: Conversation, where: str) -> tuple[Conversation, tuple[Remark, ...]]:
        """The conversation as it is rendered, and the remarks on it and on what was left out.

        It is without fields that the template does not know, and without an empty system turn that
        makes no difference.

        Raises:
            RowError: a role that the template does not know.
        """
        remarks = chat.remarks
        if any(map(_has_fields, chat.messages)):
            chat, unread = self._without_unread(chat)
            remarks += unread
        head = chat.messages[0]
        if head["role"] not in ("system", "developer"):
            return chat, remarks + self._default_system(bool(chat.tools))
        self._check_developer(chat, where)
        is_empty = head["role"] == "system" and not head["content"].strip()
        if is_empty and self._is_as_without(chat, where):
            length = chat.prompt_length - 1 if chat.prompt_length else 0
            chat = replace(
                chat, messages=chat.messages[1:], train=chat.train[1:], prompt_length=length
            )
        return chat, remarks

    def _without_unread(self, chat: Conversation) -> tuple[Conversation, tuple[Remark, ...]]:
        names = dict.fromkeys(name for message in chat.messages for name in message)
        # tool calls that it does not know are an error of the row
        known = (*_ROLE_AND_TEXT, "tool_calls")
        unread = [name for name in names if name not in known and not self.reads(name)]
        if not unread:
            return chat, ()
        messages = tuple(
            {name: value for name, value in message.items() if name not in unread}
            for message in chat.messages
        )
        remarks = tuple(Remark(UNREAD_FIELD, name) for name in unread)
        return replace(chat, messages=messages), remarks

    def _check_developer(self, chat: Conversation, where: str) -> None:
        for index, message in enumerate(chat.messages[:2]):
            if message["role"] == "developer" and not self.reads("developer"):
                problem = Problem(
                    f"{where}.messages[{index}].role",
                    "'developer', a role that the chat template does not know",
                    allowed="roles that the template writes",
                    fix="`format.roles.developer=system` reads such turns as the system's",
                )
                raise RowError("unknown role", problem)

    def _is_as_without(self, chat: Conversation, where: str) -> bool:
        """True if an empty system turn changes nothing, or is refused by the template."""
        without = replace(chat, messages=chat.messages[1:], train=())
        try:
            with_it = self.text(chat, where, prompt=False)
        except RowError:
            return True
        return with_it == self.text(without, where, prompt=False)

    def _default_system(self, tools: bool) -> tuple[Remark, ...]:
        """The system text that the template adds to a conversation without a system turn."""
        if tools not in self._default_systems:
            text = self._find_default_system(tools)
            self._default_systems[tools] = (Remark(DEFAULT_SYSTEM, text),) if text else ()
        return self._default_systems[tools]

    def _find_default_system(self, tools: bool) -> str:
        system, user, answer = (
            {"role": role, "content": MARK.format(at)}
            for at, role in enumerate(("system", "user", "assistant"))
        )
        listed = (_PROBE_TOOL,) if tools else ()
        try:
            with_it, without = (
                self.text(Conversation(messages, listed), "a probe", prompt=False)
                for messages in ((system, user, answer), (user, answer))
            )
        except RowError:
            return ""
        before, found, after = with_it.partition(MARK.format(0))
        between = MARKS.split(after)[0]
        start, _, _ = without.partition(MARK.format(1))
        if not found or not start.startswith(before) or not start.endswith(between):
            return ""
        return start[len(before) : len(start) - len(between)].strip()

    # --- rendering --------------------------------------------------------------------------------

    def text(self, chat: Conversation, where: str, *, prompt: bool) -> str:
        """The plain render; as a prompt, with the header of the answer that is to come."""
        return self._render(chat, where, prompt=prompt)[0]

    def _forget(self) -> None:
        """Empty a memory that grew too large; called where no part of it is in use."""
        for memory in (self._known, self._measured):
            if len(memory) > _KEPT:
                memory.clear()

    def _render(
        self, chat: Conversation, where: str, *, prompt: bool, blocks: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the characters of its generation blocks if they are asked for.

        Templates disagree on tool calls: the arguments are a mapping to most, and JSON to others,
        and some write calls only where the content is none. The first way that fails on nothing,
        leaves no call out and prints no mapping as Python does is taken.
        """
        if not any(message.get("tool_calls") for message in filter(_has_fields, chat.messages)):
            return self._render_once(chat, where, prompt=prompt, blocks=blocks)
        calls = [
            call.get("function", call)
            for message in chat.messages
            for call in message.get("tool_calls") or ()
        ]
        found, failed = None, None
        for text, none in self._ways_to_call(bool(chat.tools)) or [(False, False)]:
            way = tuple(_called(message, text=text, none=none) for message in chat.messages)
            try:
                made = self._render_once(
                    replace(chat, messages=way), where, prompt=prompt, blocks=blocks
                )
            except RowError as error:
                failed = failed or error
                continue
            if all(_is_called(call, made[0]) for call in calls):
                return made
            found = found or made
        if found is None:
            assert failed is not None
            raise failed
        return found

    def _ways_to_call(self, tools: bool) -> list[tuple[bool, bool]]:
        """What to try of `_called`, the way in which the template writes a call first.

        Empty for a template that writes no calls. There may be another one for rows with tools.
        """
        if tools not in self._ways:
            self._ways[tools], word = [], "zqxj"
            function = {"name": "lookup", "arguments": Arguments({"x": word}, f'{{"x": "{word}"}}')}
            call = {"type": "function", "id": "a1b2c3d4e", "function": function}
            user = {"role": "user", "content": "a"}
            called = {"role": "assistant", "content": "", "tool_calls": [call]}
            ways = [(False, False), (True, False), (False, True), (True, True)]
            for text, none in ways:
                turns = (user, _called(called, text=text, none=none))
                chat = Conversation(turns, (_PROBE_TOOL,) if tools else ())
                with contextlib.suppress(RowError):
                    made = self._render_once(chat, "a probe", prompt=False, blocks=False)[0]
                    if word in made and _is_called(function, made):
                        way = (text, none)
                        self._ways[tools] = [way, *(one for one in ways if one != way)]
                        break
        return self._ways[tools]

    def _render_once(
        self, chat: Conversation, where: str, *, prompt: bool, blocks: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        source = self.source(chat.tools)
        messages = [
            {
                name: None if value is _NONE else value
                for name, value in message.items()
                if value is not None
            }
            for message in chat.messages
        ]
        plain = all(len(message) == 2 for message in messages)
        try:
            if plain and not blocks and not chat.tools and not chat.template_kwargs:
                return self._render_plain(source, messages, prompt=prompt), []
            # transformers hands no function on that a caller gives, and keeps the compiled template
            _compile_jinja_template(source).globals["strftime_now"] = self.day.strftime
            texts, indices = render_jinja_template(
                conversations=[messages],
                tools=[dict(tool) for tool in chat.tools] or None,
                chat_template=source,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=blocks,
                **{**self._special_tokens, **chat.template_kwargs},
            )
        except TemplateSyntaxError as error:
            found = f"no valid Jinja: {error} (line {error.lineno})"
            problem = Problem("tokenizer.chat_template", found, fix="fix it")
            raise DataError(problem) from None
        except Exception as error:  # a template is a program, and can raise anything
            found = f"the chat template refuses the conversation: {error}"
            problem = Problem(where, found, fix="fix the row or the template")
            raise RowError("refused by the chat template", problem) from None
        return str(texts[0]), indices[0] if blocks else []

    def _render_plain(self, source: str, messages: list[dict[str, Any]], *, prompt: bool) -> str:
        """What `render_jinja_template` does, without its copies of what is plain already."""
        template, names = _compiled(source)
        variables = {
            **self._special_tokens,
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": prompt,
            "strftime_now": self.day.strftime,
        }
        context = template.new_context({**names, **variables}, shared=True)
        return "".join(template.root_render_func(context))

    def render(self, chat: Conversation, turns: Sequence[int], where: str) -> Rendered:
        """The text of a conversation, and where the given assistant turns lie in it.

        Raises:
            DataError: there is no chat template, or it is no valid Jinja.
            RowError: the template refuses the conversation, leaves a part of it out, or writes a
                turn's history in another way than generation would see it.
        """
        self._forget()
        blocks = _has_blocks(self.source(chat.tools))
        text, spans = self._render(chat, where, prompt=False, blocks=blocks)
        known = self._shape_of(chat, prompt=False, where=where)
        ends = _fill(known.skeleton, chat, text) if known.skeleton else None
        if ends is None:
            by_prompts = _ByPrompts(self, chat, text, where)
            starts = by_prompts.starts()
            answers = {index: by_prompts.answer(index, starts) for index in turns}
        else:
            assert known.skeleton is not None
            starts = self._starts(chat, known, ends, where)
            stops = dict(zip(known.skeleton.marked, ends, strict=True))
            answers = {
                index: self._answer(chat, known, index, starts, stops, text, where)
                for index in turns
            }
        found = [
            _in_blocks(index, answer, starts, spans, text, where) if blocks else [answer]
            for index, answer in answers.items()
        ]
        flat = tuple(answer for group in found for answer in group)
        return Rendered(text, tuple(starts.values()), flat)

    def prompt(self, chat: Conversation, where: str) -> Rendered:
        """The text that generation is given for these turns, split as `render` splits it.

        It has no answers.
        """
        self._forget()
        text = self.text(chat, where, prompt=True)
        known = self._shape_of(chat, prompt=True, where=where)
        ends = _fill(known.skeleton, chat, text) if known.skeleton else None
        if ends is None:
            return Rendered(text, tuple(_ByPrompts(self, chat, text, where).starts().values()))
        return Rendered(text, tuple(self._starts(chat, known, ends, where).values()))

    # --- shapes -----------------------------------------------------------------------------------

    def _shape_of(self, chat: Conversation, *, prompt: bool, where: str) -> _Known:
        """What is known of the conversation's shape; its skeleton is rendered if it is new."""
        shape = _shape(chat)
        if (shape, prompt) not in self._known:
            skeleton = self._make_skeleton(chat, prompt=prompt, where=where)
            self._known[shape, prompt] = _Known(shape, skeleton)
        return self._known[shape, prompt]

    def _make_skeleton(self, chat: Conversation, *, prompt: bool, where: str) -> _Skeleton | None:
        marked = tuple(
            {**message, "content": MARK.format(index)} if _has_content(message) else message
            for index, message in enumerate(chat.messages)
        )
        text = self._render(replace(chat, messages=marked), where, prompt=prompt)[0]
        pieces = MARKS.split(text)  # [text, index, text, index, ..., text]
        found = tuple(int(index) for index in pieces[1::2])
        expected = tuple(at for at, message in enumerate(chat.messages) if _has_content(message))
        for index in expected:
            if index not in found:
                role = chat.messages[index]["role"]
                problem = Problem(
                    f"{where}.messages[{index}]",
                    f"the chat template leaves out this turn ({role})",
                    fix="another tokenizer.chat_template, or rows without such turns",
                )
                raise RowError("left out by the chat template", problem)
        _check_tools(chat, text, where, writes_calls=bool(self._ways_to_call(bool(chat.tools))))
        return _Skeleton(text, found, tuple(pieces[::2])) if found == expected else None

    def _starts(
        self, chat: Conversation, known: _Known, ends: Sequence[int], where: str
    ) -> dict[int, int]:
        """{assistant turn: where it begins in the text}.

        Turns that generation would see another prompt of are left out.
        """
        if known.starts is None:
            assert known.skeleton is not None
            found = {}
            for index, message in enumerate(chat.messages):
                if message["role"] == "assistant":
                    offset = self._offset(chat, known, index, where)
                    if offset is not None:
                        found[index] = (bisect_left(known.skeleton.marked, index), offset)
            known.starts = found  # only once all are there: a render above may be an error
        return {
            index: (ends[marks - 1] if marks else 0) + offset
            for index, (marks, offset) in known.starts.items()
        }

    def _offset(self, chat: Conversation, known: _Known, index: int, where: str) -> int | None:
        """Characters from the last content before an assistant turn to the turn itself.

        None if generation sees another prompt: the skeleton of the prompt has to be a prefix of
        the conversation's.
        """
        skeleton = known.skeleton
        assert skeleton is not None

        def measure() -> int | None:
            part = replace(chat, messages=chat.messages[:index], train=())
            prompt = self._shape_of(part, prompt=True, where=where).skeleton
            is_prefix = prompt is not None and skeleton.text.startswith(prompt.text)
            return len(prompt.pieces[-1]) if prompt is not None and is_prefix else None

        if index == len(chat.messages) - 1:
            return measure()
        head, roles = known.shape
        at = bisect_left(skeleton.marked, index)
        near = ("start", head, roles[index - 1 : index + 1], skeleton.pieces[at])
        return self._near(index, near, measure)

    def _answer(
        self,
        chat: Conversation,
        known: _Known,
        index: int,
        starts: Mapping[int, int],
        stops: Mapping[int, int],
        text: str,
        where: str,
    ) -> Answer:
        """An assistant turn of a conversation whose skeleton fits."""
        if index not in starts:
            raise self.not_a_prefix(chat, index, text, where)
        stop = stops.get(index, starts[index])
        if index not in known.ends:
            known.ends[index] = self._length_of_end(chat, known, index, where)
        last = index == len(chat.messages) - 1
        end_of_turn = len(text) if last else stop + known.ends[index]
        if end_of_turn < stop:
            raise self.written_otherwise(chat, index, text, where)
        called = bool(chat.messages[index].get("tool_calls"))
        return Answer(starts[index], stop, end_of_turn, called=called)

    def _length_of_end(self, chat: Conversation, known: _Known, index: int, where: str) -> int:
        """Characters that the template writes after a turn's content, for the turn itself.

        They are there whatever follows. Negative when the turn is not written as it is where it
        comes last: what would be trained is not what generation would give.
        """
        skeleton, starts = known.skeleton, known.starts
        assert skeleton is not None
        assert starts is not None
        at = bisect_right(skeleton.marked, index)
        own = at > 0 and skeleton.marked[at - 1] == index

        def measure() -> int:
            part = replace(chat, messages=chat.messages[: index + 1], train=())
            alone = self._shape_of(part, prompt=False, where=where).skeleton
            after = sum(map(len, skeleton.pieces[at:]))
            after += sum(len(MARK.format(mark)) for mark in skeleton.marked[at:])
            stop = len(skeleton.text) - after + (0 if own else starts[index][1])
            return _common(alone.text, skeleton.text) - stop if alone is not None else -1

        head, roles = known.shape
        near = ("end", head, roles[index - 1 : index + 2], skeleton.pieces[at - own : at + 1])
        found = self._near(index, near, measure)
        assert found is not None
        return found

    def _near(self, index: int, near: Hashable, measure: Callable[[], int | None]) -> int | None:
        """A measure of a turn; far into a conversation it is looked up by what is near the turn.

        Each measure renders all turns before it, so that measuring every turn would cost the
        square of their number. From turn `_EXACT` on, turns with the same roles and the same text
        of the template around them share one measure:

            user assistant user assistant ... user assistant user assistant user assistant
            measured       measured           measured       looked up      looked up
        """
        if index < _EXACT:
            return measure()
        if near not in self._measured:
            self._measured[near] = measure()
        return self._measured[near]

    # --- errors -----------------------------------------------------------------------------------

    def not_a_prefix(self, chat: Conversation, index: int, text: str, where: str) -> RowError:
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

    def written_otherwise(self, chat: Conversation, index: int, text: str, where: str) -> RowError:
        alone = self.text(
            replace(chat, messages=chat.messages[: index + 1], train=()), where, prompt=False
        )
        return rewritten(f"{where}.messages[{index}]", _first_difference(alone, text))


class _ByPrompts:
    """Answers of a template that writes contents in another way than they are.

    They are found by the prompts that generation would really be given, a render for each turn.
    """

    def __init__(self, template: ChatTemplate, chat: Conversation, text: str, where: str) -> None:
        self._template, self._chat, self._text, self._where = template, chat, text, where

    def _part(self, stop: int) -> Conversation:
        return replace(self._chat, messages=self._chat.messages[:stop], train=())

    def starts(self) -> dict[int, int]:
        """{assistant turn: where it begins in the text}; see `ChatTemplate._starts`."""
        starts = {}
        for index, message in enumerate(self._chat.messages):
            if message["role"] == "assistant":
                prompt = self._template.text(self._part(index), self._where, prompt=True)
                if self._text.startswith(prompt):
                    starts[index] = len(prompt)
        return starts

    def answer(self, index: int, starts: Mapping[int, int]) -> Answer:
        """An assistant turn."""
        if index not in starts:
            raise self._template.not_a_prefix(self._chat, index, self._text, self._where)
        message, start = self._chat.messages[index], starts[index]
        alone = self._template.text(self._part(index + 1), self._where, prompt=False)
        stop = self._stop(index, start, alone) if _has_content(message) else start
        end_of_turn = _common(alone, self._text)
        if end_of_turn < stop:
            raise self._template.written_otherwise(self._chat, index, self._text, self._where)
        return Answer(start, stop, end_of_turn, called=bool(message.get("tool_calls")))

    def _stop(self, index: int, start: int, alone: str) -> int:
        """The end of a turn's content, from a render with a mark in place of it alone."""
        chat, text, mark = self._chat, self._text, MARK.format(index)
        marked = {**chat.messages[index], "content": mark}
        messages = (*chat.messages[:index], marked, *chat.messages[index + 1 :])
        with_mark = replace(chat, messages=messages)
        _, found, tail = self._template.text(with_mark, self._where, prompt=False).rpartition(mark)
        stop = len(text) - len(tail)
        # the beginning of the answer may be in the prompt: <think>
        answer = "".join(str(chat.messages[index]["content"]).split())
        fits = found and text.endswith(tail) and stop > start
        if fits and "".join(text[:stop].split()).endswith(answer):
            return stop
        if index < len(chat.messages) - 1 and answer in "".join(alone.split()):
            raise self._template.written_otherwise(chat, index, text, self._where)
        problem = Problem(
            f"{self._where}.messages[{index}]",
            "the chat template leaves out the answer, or a part of it",
            fix="another tokenizer.chat_template",
        )
        raise RowError("left out by the chat template", problem)


def said_of_text(
    trained: Sequence[Message], answers: Sequence[Answer], text: str
) -> tuple[Remark, ...]:
    """A remark for each field of trained turns that is not in the render, and each doubled block.

    Args:
        trained: turns of which some are trained.
        answers: where they lie in the text; empty where that does not matter.
        text: the render.
    """
    remarks: tuple[Remark, ...] = ()
    if any(map(_has_fields, trained)):
        remarks = _left_out(trained, text)
    if len(answers) == len(trained):
        for message, answer in zip(trained, answers, strict=True):
            tag = _TAG_IN_FRONT.match(message["content"])
            if tag and _is_doubled(tag[1], message["content"], answer, text):
                remarks += (Remark(DOUBLED, tag[1]),)
    return remarks


def _left_out(trained: Sequence[Message], text: str) -> tuple[Remark, ...]:
    names = {
        name
        for message in trained
        if message["role"] == "assistant"
        for name, value in message.items()
        if name not in (*_ROLE_AND_TEXT, "tool_calls")
        and any(not _is_written(one, text) for one in _strings(value))
    }
    return tuple(Remark(LEFT_OUT, name) for name in sorted(names))


def _is_doubled(tag: str, content: str, answer: Answer, text: str) -> bool:
    """True if the template writes a tag with which a text begins in front of it again."""
    # a prompt of generation may open the block
    written = text[max(0, answer.start - len(tag) - 2) : answer.stop]
    return written.count(tag) > content.count(tag)


def rewritten(where: str, difference: str) -> RowError:
    """The error of a trained turn that a template writes in another way once turns follow it."""
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
def _words(source: str) -> tuple[frozenset[str], frozenset[str]]:
    """The names and strings in a template's code, and the strings that it looks for in texts."""
    try:
        code = _compile_jinja_template(source).environment.parse(source)
    except TemplateSyntaxError:  # rendering says so
        return frozenset(), frozenset()
    names = {one.attr for one in code.find_all(nodes.Getattr)}
    names |= {one.value for one in code.find_all(nodes.Const) if isinstance(one.value, str)}
    sought: list[nodes.Node] = []
    for compared in code.find_all(nodes.Compare):
        if any(one.op in ("in", "notin") for one in compared.ops):
            sought.append(compared.expr)
    for call in code.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in _SEARCHES:
            sought += call.args[:1]
    for changed in code.find_all(nodes.Filter):
        sought += changed.args[:1] if changed.name == "replace" else []
    words = {one.value for one in sought if isinstance(one, nodes.Const)}
    return frozenset(names), frozenset(str(word) for word in words)


def _called(message: Message, *, text: bool, none: bool) -> Message:
    """A turn with its calls as some templates read them.

    Args:
        message: the turn.
        text: the arguments are JSON.
        none: an empty content is None.
    """
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"] if text else ():
        function = call.get("function", call)
        arguments = function.get("arguments")
        if isinstance(arguments, Mapping):
            written = getattr(arguments, "text", None) or json.dumps(arguments, ensure_ascii=False)
            function = {**function, "arguments": written}
        calls.append({**call, "function": function} if "function" in call else function)
    changed = {**message, "tool_calls": calls or message["tool_calls"]}
    is_empty = not (message.get("content") or "").strip()
    return {**changed, "content": _NONE} if none and is_empty else changed


def _is_called(function: Mapping[str, Any], text: str) -> bool:
    """True if a render holds a call, and not its arguments as Python prints them."""
    arguments, name = function.get("arguments"), function.get("name")
    printed = isinstance(arguments, Mapping) and arguments and repr(dict(arguments)) in text
    return not printed and (not isinstance(name, str) or name in text)


def _strings(value: Any) -> Iterator[str]:
    """Every string in a nested value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, Sequence)):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(one)


def _is_written(value: str, text: str) -> bool:
    """True if a text holds a value, as it is or as JSON writes it."""
    bare = value.strip()
    return bare in text or json.dumps(bare, ensure_ascii=False)[1:-1] in text


@cache
def _has_blocks(source: str) -> bool:
    return bool(_GENERATION.search(source))


def trained_turns(chat: Conversation, loss: str) -> tuple[int, ...]:
    """The assistant turns that a loss trains, unless a `train` flag says otherwise.

    The last one; with `assistant_only`, and of rows that come as prompt and completion, every one
    after the prompt.
    """
    answers = [
        index for index, message in enumerate(chat.messages) if message["role"] == "assistant"
    ]
    after = [index for index in answers if index >= chat.prompt_length]
    chosen = after if loss == "assistant_only" or chat.prompt_length else answers[-1:]
    flags = chat.train or (None,) * len(chat.messages)
    return tuple(
        index
        for index in answers
        if (flags[index] if flags[index] is not None else index in chosen)
    )


def unrolled(chat: Conversation, loss: str) -> list[Conversation]:
    """A conversation for each trained turn, ending with it."""
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


def _check_tools(chat: Conversation, text: str, where: str, *, writes_calls: bool) -> None:
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
        is_call = tool not in chat.tools
        if isinstance(name, str) and (name not in text or (is_call and not writes_calls)):
            problem = Problem(
                place,
                f"the chat template leaves out {what} ({name})",
                fix="another tokenizer.chat_template, or rows without tools",
            )
            raise RowError("left out by the chat template", problem)


def _has_fields(message: Message) -> bool:
    return len(message) > len(_ROLE_AND_TEXT)


def _has_content(message: Message) -> bool:
    return isinstance(message.get("content"), str) and bool(message["content"].strip())


def _shape(chat: Conversation) -> Shape:
    """All of a conversation but its contents.

    The template's text between the contents depends on nothing else.
    """
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
    """The end of each marked content in the plain render.

    None when the render is not the skeleton with the contents filled in.

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
    """The end of a content at a position of the text, with the piece after it.

    None when it is not there.
    """
    if text.startswith(content, position) and text.startswith(piece, position + len(content)):
        return position + len(content)
    core = content.strip()
    before = len(content) - len(content.lstrip())
    after = content[before + len(core) :]
    for start in range(before + 1):
        if text.startswith(content[start : before + len(core)], position):
            end = position + before - start + len(core)
            for length in range(len(after), -1, -1):
                if text.startswith(after[:length] + piece, end):
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
    """An answer as the template's generation blocks bound it.

    It is without what the prompt of generation writes.

    A block may begin in that prompt, and belongs to the last turn that begins before its end.
    """
    following = min((start for start in starts.values() if start > answer.start), default=None)
    own = [
        (start, stop)
        for start, stop in blocks
        if stop > answer.start and (following is None or stop <= following)
    ]
    if not own:
        problem = Problem(
            f"{where}.messages[{index}]",
            "no generation block of the chat template holds this turn",
            allowed="a block for each turn",
            fix="fix the chat template",
        )
        raise RowError("refused by the chat template", problem)
    if own[0][0] > answer.start:
        between = text[answer.start : own[0][0]]
        problem = Problem(
            f"{where}.messages[{index}]",
            "the generation block begins after the prompt of generation: the model would have "
            f"to write {between[:40]!r} and would never learn to",
            allowed="a block that begins where generation begins",
            fix="fix the chat template",
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
