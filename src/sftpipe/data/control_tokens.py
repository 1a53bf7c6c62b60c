r"""Which added tokens open or end a turn, learnt from renders of the chat template.

A text must not hold those: the tokenizer would read them as what they are. The source of a template
does not tell (`'<|' + role + '|>'`), so short conversations are rendered with marks in place of
their texts, and what is written around the marks tells:

    <|im_start|>user\n [0] <|im_end|>\n<|im_start|>assistant\n <think>\n\n</think> [1] <|im_end|>
    control                control                             not always: a tag   control
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from sftpipe.data.chat_template import MARK, MARKS, ChatTemplate
from sftpipe.data.samples import Arguments, Conversation
from sftpipe.errors import DataError, RowError
from sftpipe.tokenizer.special_tokens import SpecialTokens

_TAG = re.compile(r"<(/?)([^<>/|\s]+)>")
_WORD = "zqxj"  # an argument that no template writes by itself
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "d",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
    },
}
# variables with which templates write an empty block of reasoning, or leave it open
_SETTINGS: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False}, {"enable_thinking": True})


@dataclass(frozen=True)
class ControlTokens:
    """The added tokens of a tokenizer that have a meaning to its chat template.

    control: forbidden in every text: EOS, what a render writes as the header of a role or as the
        end of a turn, and special tokens, but for tags.
    tags: what the template parses, or writes inside of some assistant turns; data in assistant and
        system turns.
    wrappers: those of the tags that the template puts around the results of tools.
    """

    control: tuple[str, ...]
    tags: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()


def control_tokens(tokenizer: PreTrainedTokenizerFast) -> ControlTokens:
    """Those of a tokenizer after `set_special_tokens`; without a template all special tokens."""
    special = SpecialTokens.of(tokenizer)
    if tokenizer.chat_template is None:
        return ControlTokens(special.special)
    return _Probe(tokenizer, special).found()


class _Probe:
    """Renders of one chat template, and the added tokens in them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, special: SpecialTokens) -> None:
        self._template = ChatTemplate(tokenizer)
        self._special = special
        self._eos = {str(tokenizer.eos_token)} & set(special.special)

    def found(self) -> ControlTokens:
        """What the renders tell."""
        outside, inside = self._plain()
        calls_outside, calls_inside, wrappers = self._calls(outside)
        outside |= calls_outside
        parsed = self._template.parsed_words
        inside |= calls_inside | {one for one in self._special.added if _is_in(one, parsed)}
        # an opening tag that every turn has is a tag all the same if its end is one
        paired = {one for one in outside if _is_tag(one) and _partner(one) in inside}
        outside -= paired
        inside -= outside
        partners = {_partner(one) for one in inside} & set(self._special.added)
        inside |= partners - outside
        preamble = self._preamble(()) - inside - wrappers
        listing = self._preamble((_TOOL,)) - preamble - outside
        inside |= {one for one in listing if _is_tag(one)}  # around the list of tools
        outside |= preamble | (listing - inside - wrappers)
        control = self._eos | (set(self._special.special) - inside - wrappers) | outside
        tags = (inside | wrappers) - control
        return ControlTokens(tuple(sorted(control)), tuple(sorted(tags)), tuple(sorted(wrappers)))

    def _plain(self) -> tuple[set[str], set[str]]:
        """Tokens around texts, and those in front of some answers only."""
        texts = [
            *(
                self._render(_chat("user", "assistant", "user", "assistant"), **one)
                for one in _SETTINGS
            ),
            self._render(_chat("user", "assistant"), reasoning="r"),
            self._render(_chat("user", "assistant"), tools=(_TOOL,)),
        ]
        prompts = [self._render(_chat("user"), prompt=True, **one) for one in _SETTINGS]
        before: list[
            set[str]
        ] = []  # the tokens in front of each answer, and what ends the question
        outside: set[str] = set()
        for text in filter(None, texts):
            pieces = _pieces(text)
            before += [self._tokens(one) for one in pieces[1::2]]
            for piece in pieces[2::2]:
                outside |= self._tokens(piece)
        before += [self._tokens(_pieces(text)[-1]) for text in prompts if text]
        common = set.intersection(*before) if before else set()
        return outside | common, set().union(*before) - common - outside

    def _calls(self, known: set[str]) -> tuple[set[str], set[str], set[str]]:
        """Tokens around calls and results: outside of answers, inside of them, around results."""
        call = {"name": "lookup", "arguments": Arguments({"x": _WORD}, json.dumps({"x": _WORD}))}
        called = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "id": "a1b2c3d4e", "function": call}],
        }
        outside, inside, wrappers = set[str](), set[str](), set[str]()
        (question,) = _chat("user")
        for tools in ((), (_TOOL,)):
            alone = self._render((question, called), tools=tools)
            result = {
                "role": "tool",
                "name": "lookup",
                "tool_call_id": "a1b2c3d4e",
                "content": MARK.format(2),
            }
            answer = {"role": "assistant", "content": MARK.format(3)}
            whole = self._render((question, called, result, answer), tools=tools)
            if alone is None:
                continue
            turn = _pieces(alone)[-1]
            last = self._ordered(turn)[-1:]
            ends = {one for one in last if turn.rstrip().endswith(one) and not _is_tag(one)}
            outside |= ends
            inside |= self._tokens(turn) - known - ends
            # reasoning in front of the call may be written of the last turn alone
            end = alone.rpartition(_WORD)[2].rstrip()
            pieces = _pieces((whole or "").rpartition(_WORD)[2].removeprefix(end))
            if len(pieces) < 2:
                continue
            head, tail = pieces[:2]
            around = {
                one
                for one in self._ordered(head)
                if _is_tag(one)
                and _partner(one) in tail
                # the header of the turn is in front of it, or ended the turn of the call
                and (ends - known or head[: head.index(one)].strip())
            }
            wrappers |= around | {_partner(one) for one in around}
            outside |= self._tokens(head) | (self._tokens(tail) - inside)
        return outside - wrappers, inside, {one for one in wrappers if one in self._special.added}

    def _preamble(self, tools: Sequence[Mapping[str, Any]]) -> set[str]:
        """Tokens in front of the first question, with and without a system turn."""
        found = set[str]()
        for roles in (("user", "assistant"), ("system", "user", "assistant")):
            text = self._render(_chat(*roles), tools=tools)
            for piece in _pieces(text)[: len(roles) - 1] if text else ():
                found |= self._tokens(piece)
        return found

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        reasoning: str = "",
        **variables: Any,
    ) -> str | None:
        """The text; None where the template refuses such a conversation."""
        if reasoning:
            messages = [*messages[:-1], {**messages[-1], "reasoning_content": reasoning}]
        try:
            chat = Conversation(tuple(messages), tuple(tools), variables)
            return self._template.text(chat, "a probe", prompt=prompt)
        except (DataError, RowError):
            return None

    def _ordered(self, text: str) -> list[str]:
        return self._special.pattern.findall(text)

    def _tokens(self, text: str) -> set[str]:
        return set(self._ordered(text))


def _chat(*roles: str) -> tuple[dict[str, Any], ...]:
    return tuple({"role": role, "content": MARK.format(at)} for at, role in enumerate(roles))


def _pieces(text: str) -> list[str]:
    """The text before, between and after the marks."""
    return MARKS.split(text)[::2]  # the numbers of the marks stand between


def _is_tag(token: str) -> bool:
    return _TAG.fullmatch(token) is not None


def _partner(token: str) -> str:
    """`</x>` of `<x>`, and the other way round; a token that is no tag has itself."""
    found = _TAG.fullmatch(token)
    return token if found is None else f"<{'' if found[1] else '/'}{found[2]}>"


def _is_in(token: str, words: Iterable[str]) -> bool:
    return any(token in word for word in words)
