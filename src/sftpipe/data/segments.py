r"""Segments of a text to ids; tokenisation starts anew at each (docs/rules.md, L1, L2).

SentencePiece puts a space before whatever it is given. At the start of a text that is right, and
so it is in generation; later it would be a token that the data do not hold. So each later segment
is tokenised behind an anchor, whose ids are taken off again:

    segments      Capital?         Paris      segments      ### 응답:\n      서울
    tokenised     Capital?  \n Paris          tokenised     ### 응답:\n   \n서울
    tokens        ▁Capital ?  ▁Paris          tokens        ▁### ...       서울

Behind an added token the anchor is that token, because the joint text of a chat template has the
space there, too. Tokenizers that add no space get each segment alone: that gives the same ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerFast

from sftpipe.tokenizer.special_tokens import any_of

# tried in this order: a segment may merge with one, as "\n" does with a line break in some
# vocabularies, and hardly with all
_ANCHORS = ("\n", ":", "a")


class Tokens(NamedTuple):
    """A tokenised segment.

    ids: its tokens.
    encoding: the `tokenizers.Encoding` that holds them, for offsets.
    first: the token of `encoding` that is the first of the segment.
    ahead: characters of `encoding` before those of the segment.
    """

    ids: list[int]
    encoding: Any
    first: int = 0
    ahead: int = 0


class SegmentTokenizer:
    """Tokenises texts that are cut into segments."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        added = sorted(tokenizer.added_tokens_decoder.values(), key=lambda one: -len(str(one)))
        self._added = tuple(str(token) for token in added)
        # added tokens that take in the white space after them
        self.swallowing = tuple(str(token) for token in added if token.rstrip)
        self._ids_of_anchors: dict[str, list[int]] = {}
        (alone,) = self._encode(["a"])
        found = [self._behind(anchor, "a") for anchor in _ANCHORS]
        self.adds_space = any(one is not None and one.ids != alone.ids for one in found)
        self._loose = self._loose_space([str(token) for token in added if token.lstrip])

    def tokenize(self, texts: Sequence[Sequence[str]]) -> list[list[Tokens]]:
        """The tokens of each segment of each text, from one call of the Rust tokenizer.

        Its results are asked for no more than is needed.
        """
        segments = list(chain.from_iterable(texts))
        if not self.adds_space:
            encoded = self._encode(segments) if segments else ()
            tokens = iter([Tokens(encoding.ids, encoding) for encoding in encoded])
        else:
            befores = list(chain.from_iterable(map(_befores, texts)))
            tokens = self._tokenize_behind(segments, befores)
        return [[next(tokens) for _ in text] for text in texts]

    def _tokenize_behind(self, segments: Sequence[str], befores: Sequence[str]) -> Iterator[Tokens]:
        """The tokens of each segment behind the text before it ("" at the start of a text)."""
        anchors = [
            self._anchors(before, segment) if before else ("",)
            for segment, before in zip(segments, befores, strict=True)
        ]
        together = [tried[0] + segment for tried, segment in zip(anchors, segments, strict=True)]
        encoded = self._encode(together) if together else ()
        for segment, tried, encoding in zip(segments, anchors, encoded, strict=True):
            yield self._without(tried[0], encoding) or self._one_by_one(tried[1:], segment)

    def _one_by_one(self, anchors: Sequence[str], segment: str) -> Tokens:
        """The tokens of a segment behind the first anchor that it does not merge with, or alone."""
        found = (self._behind(anchor, segment) for anchor in (*anchors, ""))
        return next(one for one in found if one)

    def _anchors(self, before: str, segment: str) -> tuple[str, ...]:
        """What a segment is tokenised behind, the best first."""
        token = self._last_added(before)
        # a token that swallows would take white space of the segment, and lose it
        if not token or (token in self.swallowing and segment[:1].isspace()):
            return _ANCHORS
        return (token, *_ANCHORS)

    def _last_added(self, text: str) -> str:
        """The added token that a text ends in, with the white space that it swallows; else ""."""
        if text.endswith(self._added):
            return next(token for token in self._added if text.endswith(token))
        stripped = text.rstrip()
        if len(stripped) == len(text) or not stripped.endswith(self.swallowing):
            return ""
        return next(token for token in self.swallowing if stripped.endswith(token))

    def _behind(self, anchor: str, segment: str) -> Tokens | None:
        """The tokens of a segment behind an anchor; None where the two merge."""
        (encoding,) = self._encode([anchor + segment])
        return self._without(anchor, encoding)

    def _without(self, anchor: str, encoding: Any) -> Tokens | None:
        ids = encoding.ids
        if not anchor:
            return Tokens(ids, encoding)
        if anchor not in self._ids_of_anchors:
            self._ids_of_anchors[anchor] = self._encode([anchor])[0].ids
        front = self._ids_of_anchors[anchor]
        if not front or ids[: len(front)] != front:
            return None
        return Tokens(ids[len(front) :], encoding, len(front), len(anchor))

    def _encode(self, texts: Sequence[str]) -> Any:
        backend = self._tokenizer.backend_tokenizer
        if backend.padding is not None or backend.truncation is not None:  # of an earlier call
            backend.no_padding()
            backend.no_truncation()
        return backend.encode_batch(texts, add_special_tokens=False)

    # --- white space that no token stands for -----------------------------------------------------

    def without_loose_space(self, text: str) -> str:
        """The text without the white space that cannot be read back from its ids.

        It is what added tokens take in, and the space that SentencePiece puts at the start of a
        text and behind them.
        """
        for pattern in self._loose:
            text = pattern.sub(r"\1", text)
        return text

    def _loose_space(self, before: Sequence[str]) -> list[re.Pattern[str]]:
        """Patterns of white space; `before` are the tokens that take it in before them."""
        patterns = []
        if self.swallowing:
            patterns.append(rf"({any_of(self.swallowing).pattern})\s+")
        if before:
            patterns.append(rf"\s+({any_of(before).pattern})")
        if self.adds_space:
            patterns.append(rf"(\A|{any_of(self._added).pattern}) +")
            twice = self._tokenizer.decode(self._encode(["a  a"])[0].ids)
            if str(twice).strip() != "a  a":  # a normalizer makes one space of several, as T5's
                patterns.append(r"()\s+")
        return [re.compile(pattern) for pattern in patterns]


def _befores(segments: Sequence[str]) -> list[str]:
    """What stands before each segment of a text: the last one that is not empty, or ""."""
    befores, before = [], ""
    for segment in segments:
        befores.append(before)
        before = segment or before
    return befores
