"""Finished rows as a person can check them: what the model reads, and which part of it is trained."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from sftpipe.data.labels import IGNORED

TRAINED, MASKED = "bold green", "dim"


def preview_rows(rows: Any, tokenizer: Any, count: int) -> Iterator[dict[str, Any]]:
    """The first `count` rows as plain values.

    Yields:
        {index, text, input_ids, labels, position_ids}; the lists are (T,).
    """
    for index, row in enumerate(rows.select(range(min(count, len(rows))))):
        yield {
            "index": index,
            "text": tokenizer.decode(row["input_ids"]),
            "input_ids": row["input_ids"],
            "labels": row["labels"],
            "position_ids": list(range(len(row["input_ids"]))),
        }


def spans(row: Mapping[str, Any], tokenizer: Any) -> list[tuple[str, bool]]:
    """The text of a row cut where training begins and ends: [(text, trained), ...]."""
    tokens = zip(row["input_ids"], (label != IGNORED for label in row["labels"]), strict=True)
    return [
        (tokenizer.decode([token for token, _ in group]), trained) for trained, group in itertools.groupby(tokens, key=lambda pair: pair[1])
    ]


def colored(row: Mapping[str, Any], tokenizer: Any) -> Text:
    """A row for the terminal: trained text green and bold, masked text dim, special tokens as they are written."""
    text = Text()
    for part, trained in spans(row, tokenizer):
        text.append(part, style=TRAINED if trained else MASKED)
    return text
