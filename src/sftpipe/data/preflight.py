"""What the data of a run looks like, and what must hold before the first step."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sftpipe.data.labels import IGNORED
from sftpipe.errors import DataError, Problem
from sftpipe.schema import PreflightConfig


@dataclass
class SplitReport:
    """One split, after encoding. Lengths are tokens.

    rows: rows that are used.
    tokens, trained_tokens: over those rows.
    length_median, length_max: of those rows.
    empty_rows: used rows without a trained token.
    over_length_rows: rows longer than `sft.max_length`; dropped.
    """

    rows: int
    tokens: int
    trained_tokens: int
    length_median: float
    length_max: int
    empty_rows: int
    over_length_rows: int


@dataclass
class Preflight:
    """The report that is written to preflight.json.

    end_tokens: {last trained token: rows that end in it}; generation must stop at each of them.
    """

    splits: dict[str, SplitReport] = field(default_factory=dict)
    duplicates_across_splits: int = 0
    end_tokens: dict[str, int] = field(default_factory=dict)
    special_tokens: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def inspect(
    splits: Mapping[str, Sequence[Mapping[str, Any]]], over_length: Mapping[str, int], tokenizer: Any, cfg: PreflightConfig
) -> Preflight:
    """Measure finished rows and check them against the limits.

    Args:
        splits: {split: rows with `input_ids`, `labels` and `index`, their place in the split before any row was dropped}.
        over_length: {split: rows that were dropped for their length}.
        tokenizer: for the ids of the special tokens.
        cfg: the limits.

    Raises:
        DataError: too many rows without a trained token, or a rendered row stands in two splits.
    """
    report = Preflight(special_tokens={name: [getattr(tokenizer, name), getattr(tokenizer, f"{name}_id")]
                                       for name in ("pad_token", "eos_token", "bos_token", "unk_token")})  # fmt: skip
    problems: list[Problem] = []
    seen: dict[tuple[int, ...], str] = {}  # rows of the earlier splits, and their places
    ends: Counter[int] = Counter()
    for split, rows in splits.items():
        lengths, trained, empty, repeated = [], [], [], []
        here: dict[tuple[int, ...], str] = {}
        for row in rows:
            place, ids = f"{split}[{row['index']}]", tuple(row["input_ids"])
            answer = [label for label in row["labels"] if label != IGNORED]
            lengths.append(len(ids))
            trained.append(len(answer))
            if answer:
                ends[answer[-1]] += 1
            else:
                empty.append(place)
            if ids in seen:
                repeated.append((place, seen[ids]))
            else:
                here.setdefault(ids, place)
        seen |= here
        report.duplicates_across_splits += len(repeated)
        report.splits[split] = SplitReport(
            rows=len(rows),
            tokens=sum(lengths),
            trained_tokens=sum(trained),
            length_median=statistics.median(lengths),
            length_max=max(lengths),
            empty_rows=len(empty),
            over_length_rows=over_length.get(split, 0),
        )
        if len(empty) > cfg.max_empty_rows * len(rows):
            problems.append(_too_many_empty(empty, len(rows), cfg))
        if repeated:
            problems.append(_in_two_splits(split, repeated))
    report.end_tokens = {tokenizer.convert_ids_to_tokens(token): count for token, count in ends.items()}
    if problems:
        raise DataError(*problems)
    return report


def _too_many_empty(empty: Sequence[str], rows: int, cfg: PreflightConfig) -> Problem:
    return Problem(
        where=empty[0],
        found=f"{len(empty)} of {rows} rows have no trained token",
        allowed=f"preflight.max_empty_rows={cfg.max_empty_rows}",
        fix="sftpipe preview shows what is trained; check format and loss",
    )


def _in_two_splits(split: str, repeated: Sequence[tuple[str, str]]) -> Problem:
    place, other = repeated[0]
    return Problem(
        where=place,
        found=f"the same row as {other}: {len(repeated)} rows of {split} were seen in another split",
        allowed="no row in two splits; the loss on it would measure memory",
        fix="remove the duplicates from the data set",
    )
