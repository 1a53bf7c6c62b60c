"""The one door for the texts of a data set: markers stripped, special-token injection prevented.

A tokenizer reads `<|im_end|>` as the end of a turn wherever it is written, so an answer or a
question that quotes it would end or open a turn. Formats pass each text through `Cleaner.clean`
before a template or a pattern takes it in. Tags such as `<think>` are data where the model writes
them or is told of them (assistant and system turns), and no one else's to write. Finished texts
(format=text, and the strings that a user's own format makes) may hold special tokens: that is how
those are written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from sftpipe.config.schema import DatasetConfig, PreflightConfig
from sftpipe.data.control_tokens import control_tokens
from sftpipe.data.messages import FIX_ROW
from sftpipe.data.samples import PromptCompletion, Row, Sample
from sftpipe.errors import Problem, RowError
from sftpipe.tokenizer.special_tokens import any_of

FORGED = "forged turn"  # the reason of rows that are dropped for it
_ALLOWED = "text that neither opens nor ends a turn"
# zero width space: inside a special token it makes plain text of it that looks the same
_BREAK = "\u200b"
_WRITES_TAGS = ("assistant", "system", "developer")


class Cleaner:
    """Strips markers, and escapes or rejects special tokens in texts (`preflight.forged_turns`)."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        dataset: DatasetConfig,
        preflight: PreflightConfig,
    ) -> None:
        tokens = control_tokens(tokenizer)
        self._escapes = preflight.forged_turns == "escape"
        self._control = any_of(tokens.control)
        self._with_tags = any_of((*tokens.control, *tokens.tags))
        self._wrapped = [_wrapped_in(tag) for tag in tokens.wrappers if not tag.startswith("</")]
        every = (*tokens.control, *tokens.tags)
        self._escaped = any_of(_escape(token) for token in every if len(token) > 1)
        self._dataset = dataset

    def strip(self, row: Row) -> Row:
        """The row without its markers, as a format is given it; see `strip_markers`."""
        return strip_markers(row, self._dataset)

    def clean(self, value: Any, where: str, role: str = "user") -> Any:
        """A text, or a nested value, without the special tokens that its role may not write.

        Raises:
            RowError: a text holds one (`preflight.forged_turns=error`); names its location.
        """
        refused = self._control if role in _WRITES_TAGS else self._with_tags
        if isinstance(value, str):
            return self._clean_text(value, where, refused)
        if not any(refused.search(text) for text in _texts(value)):
            return value
        return _map(value, lambda text, place: self._clean_text(text, place, refused), where)

    def _clean_text(self, text: str, where: str, refused: re.Pattern[str]) -> str:
        found = refused.search(text)
        if found is None:
            return text
        if refused is not self._control and self._is_wrapped(text):
            return text
        if self._escapes and len(found[0]) > 1:
            # again: an escaped token may have hidden another that overlaps it
            escaped = refused.sub(lambda hit: _escape(hit[0]), text)
            return self._clean_text(escaped, where, refused)
        around = text[max(0, found.start() - 20) : found.end() + 20]
        escape = "`preflight.forged_turns=escape` to have such tokens read as plain text"
        found_text = f"the special token {found[0]!r} in {around!r}"
        raise RowError(
            FORGED, Problem(where, found_text, allowed=_ALLOWED, fix=f"{FIX_ROW}, or {escape}")
        )

    def _is_wrapped(self, text: str) -> bool:
        """True for results of tools that a data set wraps in tags itself, and nothing else."""
        return any(
            whole.fullmatch(text) and not self._with_tags.search(edges.sub("", text))
            for whole, edges in self._wrapped
        )

    def check_filled(self, sample: PromptCompletion, pattern: str, where: str) -> None:
        """Check a filled pattern, each of whose columns is clean.

        Args:
            sample: the prompt and the completion.
            pattern: the pattern of both.
            where: the location, for messages.

        Raises:
            RowError: columns that the pattern puts next to each other make a special token
                together.
        """
        found = self._control.findall(sample.prompt + sample.completion)
        if found and found != self._control.findall(pattern):
            problem = Problem(
                where,
                f"the columns together make the special token {found[0]!r}",
                allowed=_ALLOWED,
                fix=f"{FIX_ROW}, or put text between the columns in the pattern",
            )
            raise RowError(FORGED, problem)

    def has_escaped(self, sample: Sample) -> bool:
        """True if special tokens in the texts of a sample were made plain text."""
        texts = _texts(list(vars(sample).values())) if self._escapes else ()
        return any(self._escaped.search(text) for text in texts)


def strip_markers(row: Row, cfg: DatasetConfig) -> Row:
    """The row without the markers of `dataset.markers=strip`, wherever they are in its values."""
    if cfg.markers != "strip":
        return row
    markers = any_of(cfg.marker_tokens)
    return dict(_map(row, lambda text, _: markers.sub("", text), "", names=False))


def _wrapped_in(tag: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Patterns of a text that is a tag, anything and its end, once or more, and of the tags."""
    start, end = map(re.escape, (tag, f"</{tag[1:]}"))
    whole = re.compile(rf"(?:\s*{start}(?:(?!{start}|{end}).)*{end}\s*)+", re.DOTALL)
    return whole, re.compile(f"{start}|{end}")


def _escape(token: str) -> str:
    return f"{token[0]}{_BREAK}{token[1:]}"


def _texts(value: Any) -> Iterator[str]:
    """Every string in a nested value, names of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield str(name)
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


def _map(value: Any, change: Callable[[str, str], str], where: str, *, names: bool = True) -> Any:
    """The value with each string in it changed, by default names of fields too.

    `where` grows with the way to the string.
    """
    if isinstance(value, str):
        return change(value, where)
    if isinstance(value, Mapping):
        return {
            change(str(name), where) if names else name: _map(
                item, change, f"{where}.{name}", names=names
            )
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [
            _map(item, change, f"{where}[{index}]", names=names) for index, item in enumerate(value)
        ]
    return value
