r"""Where an answer lies in the tokens of a row: the one place that decides where its training ends.

^ marks the trained tokens.

A special token ends the turn; white space after it is not trained (docs/rules.md, L3):

    assistant \n Green . <|im_end|> \n
                  ^     ^ ^

EOS right after another special token of the turn is the end, as generation stops at EOS:

    [/INST] Green . </turn> </s>
            ^     ^ ^       ^

A tool call may hold added tokens, so it ends at a token that ends plain answers, or else at the
last special token of its turn:

    <|tool|> {...} <|/tool|> <|im_end|> \n
    ^        ^     ^         ^

A generation block, a completion and a text are closed: they are trained to their very end.

    Green . </s>
    ^     ^ ^

With boundary=joint the prompt's own length is masked, whatever the answer's first token took of it:

    prompt alone  Yes :          together  Yes :- 1
                                               masked: 2 tokens, the ":-" too
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerFast

from sftpipe.data.chat_template import Answer, rewritten
from sftpipe.data.labels import Span
from sftpipe.data.segments import Tokens
from sftpipe.errors import DataError, Problem
from sftpipe.tokenizer.special_tokens import SpecialTokens, how_to_add, unknown_tokens


class Offsets(Sequence[Span]):
    """(start, end) of each token, in characters of the whole text.

    Asked of the Rust tokenizer one by one, because few are needed.
    """

    def __init__(self) -> None:
        self._stops: list[int] = []  # the token after each segment
        # first character, encoding (None: tokens that no text gave), and what leads from its own
        # tokens and characters to those of the row
        self._segments: list[tuple[int, Any, int, int]] = []

    def add(self, stop: int, character: int, tokens: Tokens | None) -> None:
        """A segment that begins at `character` and ends before token `stop`."""
        if tokens is None:
            self._segments.append((character, None, 0, character))
        else:
            to_token, to_character = len(self) - tokens.first, character - tokens.ahead
            self._segments.append((character, tokens.encoding, to_token, to_character))
        self._stops.append(stop)

    def token_at(self, character: int) -> int | None:
        """The first token that a character of the text is in; None where it is in none."""
        for start, encoding, to_token, to_character in reversed(self._segments):
            if encoding is not None and start <= character:
                token = encoding.char_to_token(character - to_character)
                return None if token is None else token + to_token
        return None

    def __len__(self) -> int:
        return self._stops[-1] if self._stops else 0

    def __getitem__(self, token: Any) -> Any:
        if not 0 <= token < len(self):
            raise IndexError(token)
        start, encoding, to_token, to_character = self._segments[bisect_right(self._stops, token)]
        if encoding is None:
            return start, start
        start, end = encoding.token_to_chars(token - to_token)
        return start + to_character, end + to_character


@dataclass
class JoinedRow:
    """The tokens of a row, joined from those of its segments.

    ids: (T,).
    offsets: the characters of each token.
    firsts: {character at which a segment begins: its first token}.
    length: characters of the text.
    end: where training ends at the latest; white space behind the token that ends the row is not
        learnt.
    """

    ids: list[int] = field(default_factory=list)
    offsets: Offsets = field(default_factory=Offsets)
    firsts: dict[int, int] = field(default_factory=dict)
    length: int = 0
    end: int = 0

    def first(self, holds: Callable[[Span], bool], start: int = 0) -> int:
        """The first token from `start` on whose characters fulfil a condition; else T."""
        tokens = range(start, len(self.ids))
        return next((at for at in tokens if holds(self.offsets[at])), len(self.ids))


class AnswerSpans:
    """Finds the tokens of answers."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        special: SpecialTokens,
        plain_ends: Callable[[str], set[int]],
    ) -> None:
        """`plain_ends(location)` gives the tokens that end an answer without tool calls."""
        self._tokenizer, self._special, self._plain_ends = tokenizer, special, plain_ends

    def find(self, answer: Answer, row: JoinedRow, where: str) -> Span:
        """The tokens of an answer: from the first that reaches into it, to its end.

        Raises:
            RowError: the template writes the turn in another way once turns follow it.
            DataError: the template ends it with no special token.
        """
        first = row.firsts.get(answer.start)
        if first is None:
            first = row.first(lambda span: span[1] > answer.start)
        if not answer.closed:
            return first, self._end_of_turn(answer, first, row, where)
        if answer.stop == row.length:
            return first, len(row.ids)
        return first, row.first(lambda span: span[0] >= answer.stop, first)

    def find_joint(self, answer: Answer, first: int, row: JoinedRow, where: str) -> Span:
        """The tokens of an answer from a given one on (boundary=joint)."""
        end = len(row.ids) if answer.closed else self._end_of_turn(answer, first, row, where)
        return first, end

    def check_block(self, trained: Sequence[int], where: str) -> None:
        """Check that a generation block holds the token that ends the turn.

        Raises:
            DataError: it ends before that token.
        """
        written = (one for one in reversed(trained) if self._tokenizer.decode([one]).strip())
        if next(written, -1) not in self._special:
            raise DataError(
                Problem(
                    f"{where}, tokenizer.chat_template",
                    "the generation block ends before the token that ends the turn, so the "
                    "model could not learn to stop",
                    fix="a chat template with that token inside of {% generation %}",
                )
            )

    def no_end(self, where: str) -> DataError:
        """The error of a template whose answers no special token ends."""
        found = (
            "the template ends the answer with no special token, so the model could not learn "
            "to stop"
        )
        fix = "a chat template that closes each turn with eos_token or another special token"
        unknown = unknown_tokens(self._tokenizer)
        if unknown:
            found += f"; the tokenizer does not know {', '.join(unknown)}"
            fix += f", or {how_to_add(unknown)}"
        return DataError(Problem(f"{where}, tokenizer.chat_template", found, fix=fix))

    def _end_of_turn(self, answer: Answer, first: int, row: JoinedRow, where: str) -> int:
        """The token after the one that ends the turn."""
        ids, offsets = row.ids, row.offsets
        after = self._special_after(answer, first, row)
        if answer.called:
            ends = self._plain_ends(where)
            after = [at for at in after if ids[at] in ends][:1] or after[-1:]
        if after:
            eos, end = self._tokenizer.eos_token_id, after[0]
            while ids[end] != eos and end + 1 in after and self._is_bare(ids[end], offsets[end]):
                end += 1
            return (end if ids[end] == eos else after[0]) + 1
        stop = row.first(lambda span: span[1] > answer.end_of_turn, first)
        if stop < len(ids) and self._plain_ends(where):
            text = self._tokenizer.decode(ids[first:stop][-20:])
            raise rewritten(where, f"no special token ends {text!r} there")
        raise self.no_end(where)

    def _special_after(self, answer: Answer, first: int, row: JoinedRow) -> list[int]:
        """The special tokens between the answer and the end of its turn."""
        start = row.offsets.token_at(answer.stop)
        after = []
        for at in range(first if start is None else max(first, start), len(row.ids)):
            end = row.offsets[at][1]
            if end > answer.end_of_turn:
                break
            if row.ids[at] in self._special and end > answer.stop:
                after.append(at)
        return after

    def _is_bare(self, token: int, span: Span) -> bool:
        """True if an added token took in no white space around it, as some (Phi-3's) do."""
        return span[1] - span[0] == len(self._tokenizer.convert_ids_to_tokens(token))
