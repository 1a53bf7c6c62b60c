"""Rows, and prompts, that are in the data more than once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftpipe.data.preflight.facts import RowFacts, equal_before
from sftpipe.data.rows import Part

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Duplicates:
    """Rows are numbered over all parts, in their order; every array is (rows,).

    parts, starts: the parts, and the number of the first row of each.
    split: number of the split of each row.
    first_row, first_prompt: the first row that equals it, or that has its prompt.
    repeated: rows that equal an earlier one of their split.
    rows: rows that equal one of an earlier split.
    prompts: other rows whose prompt is in an earlier split.
    """

    parts: Sequence[Part]
    starts: np.ndarray
    split: np.ndarray
    first_row: np.ndarray
    first_prompt: np.ndarray
    repeated: np.ndarray
    rows: np.ndarray
    prompts: np.ndarray

    def of_part(self, number: int) -> slice:
        """The numbers of the rows of a part."""
        return slice(self.starts[number], self.starts[number + 1])

    def place(self, number: int) -> tuple[Part, int]:
        """The part of a row, and its position there."""
        part = bisect_right(self.starts.tolist(), number) - 1
        return self.parts[part], int(number - self.starts[part])


def find_duplicates(parts: Sequence[Part], facts: Sequence[RowFacts]) -> Duplicates:
    """Compare the digests of all rows, and of all prompts."""
    import numpy as np

    starts = np.cumsum([0, *(len(part.rows) for part in parts)])
    names = list(dict.fromkeys(part.split for part in parts))
    split = np.repeat([names.index(part.split) for part in parts], np.diff(starts))
    first_row, previous = equal_before(np.concatenate([fact.row for fact in facts]))
    prompt = np.concatenate([fact.prompt for fact in facts])
    first_prompt, _ = equal_before(prompt)
    rows = split[first_row] < split
    return Duplicates(
        parts=parts,
        starts=starts,
        split=split,
        first_row=first_row,
        first_prompt=first_prompt,
        repeated=(previous >= 0) & (split[previous] == split),
        rows=rows,
        prompts=(split[first_prompt] < split) & prompt.any(axis=1) & ~rows,
    )
