"""Characters that a tokenizer would lose: dropped, or written as UNK, without a word."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from sftpipe.errors import Problem, RowError
from sftpipe.tokenizer.special_tokens import SpecialTokens


class KnownCharacters:
    """The characters that a tokenizer was seen to keep; asks it once about each."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, special: SpecialTokens, *, reads_unknown: bool
    ) -> None:
        """`reads_unknown`: a character outside the vocabulary may be read as UNK."""
        self._tokenizer, self._special = tokenizer, special
        self._reads_unknown = reads_unknown
        self._known: set[str] = set()
        letter = tokenizer("a", add_special_tokens=False).input_ids
        # keeps white space from the edges of a text
        self._around = "a" if tokenizer.decode(letter).strip() == "a" else ""

    def hold(self, segments: Sequence[str]) -> bool:
        """True if all characters are known already."""
        return set().union(*segments) <= self._known

    def reads_unk(self, ids: Sequence[int]) -> bool:
        """True if UNK is among the ids, and may be."""
        return self._reads_unknown and self._tokenizer.unk_token_id in ids

    def first_lost(self, segments: Sequence[str], where: str) -> RowError | None:
        """The error of a text that the tokenizer would lose a character of; None if of none."""
        texts = [text for one in segments for text in self._special.pattern.split(one)]
        for character in sorted(set().union(*texts) - self._known):
            if "\ud800" <= character <= "\udfff":
                found = f"a lone surrogate, U+{ord(character):04X}: half of a character"
                return RowError("broken text", Problem(where, found, fix="fix the row"))
            text = f"{self._around}{character}{self._around}"
            ids = self._tokenizer(text, add_special_tokens=False).input_ids
            decoded = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            if self._around:  # some tokenizers put a space before a text, and decode it
                decoded = decoded.strip()
            if _normal(decoded) != _normal(text) and not self.reads_unk(ids):
                found = (
                    f"{character!r} (U+{ord(character):04X}) is not in the tokenizer's vocabulary; "
                    f"it would be read as {decoded!r}"
                )
                fix = "remove the character from the row, or use another tokenizer"
                return RowError("character outside the vocabulary", Problem(where, found, fix=fix))
            self._known.add(character)
        return None


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text)
