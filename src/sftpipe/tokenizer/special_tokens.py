"""The special tokens of a tokenizer: the one definition of which tokens are none of a text's own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class SpecialTokens:
    """What a tokenizer reads as one token wherever it is written.

    ids: of every special token and of every token added to the vocabulary.
    added: every added token, special or not, as it is written.
    special: the special ones of `added`; decoding with `skip_special_tokens` leaves them out.
    control: those that a text must not hold, because they could end or open a turn in it: the
        special tokens, and the added tokens that the chat template writes.
    """

    ids: frozenset[int]
    added: tuple[str, ...]
    special: tuple[str, ...]
    control: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> SpecialTokens:
        """Those of a tokenizer with its tokens and its chat template set."""
        template = tokenizer.chat_template
        source = " ".join(template.values()) if isinstance(template, dict) else template or ""
        added = tokenizer.added_tokens_decoder
        special = {str(token) for token in added.values() if token.special}
        written = {str(token) for token in added.values() if str(token) in source}
        named = set(tokenizer.all_special_tokens)
        return cls(
            ids=frozenset({*tokenizer.all_special_ids, *added}),
            added=tuple(str(token) for token in added.values()),
            special=tuple(sorted(special | named)),
            control=tuple(sorted(special | named | written)),
        )

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches each of `added` in a text."""
        return any_of(self.added)

    def __contains__(self, token: int) -> bool:
        return token in self.ids


def any_of(words: Iterable[str]) -> re.Pattern[str]:
    """A pattern of any of the words, the longest first; without words it matches nowhere."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
