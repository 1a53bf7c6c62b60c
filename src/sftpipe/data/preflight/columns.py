"""The tables of the preflight: what is told of each split of each source.

A column is read from a split of preflight.json, which an older version may have written: what it
does not hold counts as nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """A column of a table.

    heading: above it.
    value: of a split of preflight.json; a number, or a text.
    meaning: what the heading does not say.
    """

    heading: str
    value: Callable[[Mapping[str, Any]], Any]
    meaning: str


def share(part: int, whole: int) -> str:
    """A part of a whole in percent; a dash where there is nothing."""
    return f"{part / whole:.1%}" if whole else "-"


def place(split: Mapping[str, Any]) -> str:
    """Source and split, as rows are named."""
    return f"{split.get('source', '')} {split['split']}".strip()


def _count(heading: str, name: str, meaning: str) -> Column:
    return Column(heading, lambda split: round(split.get(name, 0)), meaning)


SIZES = (
    _count("rows", "rows", "that are used"),
    _count("tokens", "tokens", "of those rows"),
    Column(
        "trained",
        lambda split: share(split.get("trained_tokens", 0), split.get("tokens", 0)),
        "share of the tokens that have a label",
    ),
    _count("p50", "length_p50", "tokens of a row: the median"),
    _count("p95", "length_p95", "95 % of the rows are at most so long"),
    _count("p99", "length_p99", "99 % of the rows are at most so long"),
    _count("longest", "length_max", "tokens of the longest row"),
    _count("too long", "over_length_rows", "rows that were dropped for their length"),
    _count("cut", "truncated_rows", "rows that were truncated to fit"),
    _count("answers lost", "lost_answer_tokens", "trained tokens that are lost with them"),
)
FINDINGS = (
    Column("dropped", lambda split: sum(split.get("dropped", {}).values()), "rows, for any reason"),
    Column(
        "end trained",
        lambda split: share(split.get("end_trained_rows", 0), split.get("rows", 0)),
        "rows whose answer ends in a token that stops generation",
    ),
    Column(
        "BOS 0/1/2",
        lambda split: "/".join(f"{split.get('bos_rows', {}).get(n, 0):,}" for n in "012"),
        "rows with no, one or more tokens of beginning",
    ),
    _count("UNK", "unk_rows", "rows with a token for what the tokenizer does not know"),
    _count("PAD", "pad_rows", "rows with a token of padding in their text"),
    _count("forged", "forged_rows", "rows whose text holds special tokens"),
    _count("repeated", "repeated_rows", "rows that equal an earlier one of their split"),
    _count("in 2 splits", "shared_rows", "rows that equal one of an earlier split"),
    _count("prompt in 2", "shared_prompts", "other rows whose prompt is in an earlier split"),
)
