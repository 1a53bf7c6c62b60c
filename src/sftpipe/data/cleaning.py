"""What is done to the strings of a data set before a template takes them in: markers are stripped, special tokens are kept from acting."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sftpipe.config.schema import DatasetConfig, FormatConfig, PreflightConfig
from sftpipe.data.formats import Conversation, PromptCompletion, Row, Sample
from sftpipe.errors import Problem, RowError

FORGED = "forged turn"  # the reason of rows that are dropped for it
# zero width space: put into a special token, it makes plain text of it that looks the same
_BREAK = "\u200b"


class Guard:
    """Keeps the texts of a data set from ending or opening turns.

    A tokenizer reads `<|im_end|>` as the end of a turn wherever it stands, so an answer or a
    question that quotes it would forge one. Finished texts (format=text, and the strings that a
    user's own format makes) may hold special tokens: they are how those are written.
    """

    def __init__(self, tokenizer: Any, dataset: DatasetConfig, preflight: PreflightConfig) -> None:
        self._escapes = preflight.forged_turns == "escape"
        self._tokens = _alternatives(control_tokens(tokenizer))
        self._broken = _alternatives(
            _broken(token) for token in control_tokens(tokenizer) if len(token) > 1
        )
        self._strips = dataset.markers == "strip"
        self._markers = _alternatives(dataset.marker_tokens)

    def strip(self, row: Row) -> Row:
        """The row, without the markers of `dataset.markers=strip`."""
        return (
            dict(_map_strings(row, lambda text, _: self._markers.sub("", text), "", names=False))
            if self._strips
            else row
        )

    def row(self, row: Row, columns: Iterable[str], where: str) -> Row:
        """A row whose `columns` a pattern or a template takes in.

        Raises:
            RowError: a text in them holds a special token (`preflight.forged_turns=error`).
        """
        found = {
            name: _map_strings(row[name], self._check, f"{where}.{name}")
            for name in columns
            if name in row
        }
        return {**row, **found} if found else row

    def filled(self, sample: PromptCompletion, cfg: FormatConfig, where: str) -> PromptCompletion:
        """A filled pattern, whose columns `row` has seen.

        Raises: RowError: pieces of a special token stood in columns that the pattern puts next to
            each other.
        """
        found = self._tokens.findall(sample.prompt + sample.completion)
        patterns = (cfg.prompt, cfg.prompt if cfg.prompt_no_input is None else cfg.prompt_no_input)
        if not found or any(
            found == self._tokens.findall(f"{pattern}{cfg.completion}") for pattern in patterns
        ):
            return sample
        problem = Problem(
            where,
            f"the columns together make the special token {found[0]!r}",
            allowed="text that neither opens nor ends a turn",
            fix="mend or remove the row, or put text between the columns in the pattern",
        )
        raise RowError(FORGED, problem)

    def conversation(self, chat: Conversation, where: str) -> Conversation:
        """Turns that a chat template takes in; see `row`."""
        plain = (
            not chat.tools
            and not chat.template_kwargs
            and all(len(message) == 2 for message in chat.messages)
        )
        texts = (
            [message["content"] for message in chat.messages]
            if plain
            else _strings((chat.messages, chat.tools, chat.template_kwargs))
        )
        if not self._tokens.search("\0".join(texts)):
            return chat
        return replace(
            chat,
            messages=tuple(_map_strings(chat.messages, self._check, f"{where}.messages")),
            tools=tuple(_map_strings(chat.tools, self._check, f"{where}.tools")),
            template_kwargs=_map_strings(
                chat.template_kwargs, self._check, f"{where}.chat_template_kwargs"
            ),
        )

    def has_escaped(self, sample: Sample) -> bool:
        """Whether special tokens in the texts of a sample were made plain text."""
        return self._escapes and any(
            self._broken.search(text) for text in _strings(list(vars(sample).values()))
        )

    def _check(self, text: str, where: str) -> str:
        found = self._tokens.search(text)
        if found is None:
            return text
        if (
            self._escapes and len(found[0]) > 1
        ):  # again: a broken token may have hidden another that overlaps it
            return self._check(self._tokens.sub(lambda match: _broken(match[0]), text), where)
        raise RowError(
            FORGED,
            Problem(
                where,
                f"the special token {found[0]!r} in "
                f"{text[max(0, found.start() - 20) : found.end() + 20]!r}",
                allowed="text that neither opens nor ends a turn",
                fix="mend or remove the row, or preflight.forged_turns=escape to have such tokens "
                "read as plain text",
            ),
        )


def control_tokens(tokenizer: Any) -> list[str]:
    """The special tokens of a tokenizer, and the added tokens that its chat template writes."""
    template = tokenizer.chat_template
    source = " ".join(template.values()) if isinstance(template, dict) else template or ""
    added = tokenizer.added_tokens_decoder.values()
    return sorted(
        {str(token) for token in added if token.special or str(token) in source}
        | set(tokenizer.all_special_tokens)
    )


def _broken(token: str) -> str:
    return f"{token[0]}{_BREAK}{token[1:]}"


def _alternatives(words: Iterable[str]) -> re.Pattern[str]:
    """Any of the words, the longest first; without words what never matches."""
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)")


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield str(name)
            yield from _strings(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _strings(item)


def _map_strings(
    value: Any, change: Callable[[str, str], str], where: str, *, names: bool = True
) -> Any:
    """The value with each string in it changed, by default names of fields too; `where` grows with the way to it."""
    if isinstance(value, str):
        return change(value, where)
    if isinstance(value, Mapping):
        return {
            change(str(name), where) if names else name: _map_strings(
                item, change, f"{where}.{name}", names=names
            )
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [
            _map_strings(item, change, f"{where}[{index}]", names=names)
            for index, item in enumerate(value)
        ]
    return value
