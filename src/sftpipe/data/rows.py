"""Rows on disk: as they were read, then encoded, and those of which nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sftpipe.data.samples import Remark, Row, Sample
from sftpipe.errors import Problem
from sftpipe.storage import digest

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from sftpipe.config.schema import FormatConfig

FILLED = "filled by Arrow"  # remark: null fields of structs that the file did not have
TOO_LONG = "longer than sft.max_length"  # the reason of rows that are dropped for their length
_BATCH = 4096  # rows that are in memory together

# columns of a table of rows as they were read: the row, its file and line, and the null fields that
# Arrow had filled it with and that were left out
JSON, ORIGIN, NULLS = "json", "origin", "filled"
_TOGETHER = 1000  # rows that are read together


@dataclass(frozen=True)
class Dropped:
    """A row of the data set that is not trained on.

    index: its number in its split.
    reason: a short phrase; rows are counted by it.
    where, found, allowed, fix: the parts of its `Problem`.
    origin: file and line, where they are known.
    tokens, trained_tokens: of a row that is too long; else 0.
    """

    index: int
    reason: str
    where: str
    found: str
    allowed: str
    fix: str
    origin: str = ""
    tokens: int = 0
    trained_tokens: int = 0

    def problem(self) -> Problem:
        """As a person reads it."""
        where = f"{self.where} ({self.origin})" if self.origin else self.where
        return Problem(where, self.found, allowed=self.allowed, fix=self.fix)


@dataclass(frozen=True)
class Remarked:
    """The rows of a part that a `Remark` is about.

    rows: how many.
    first: number of the first of them in its source.
    """

    rows: int
    first: int

    def and_then(self, other: Remarked) -> Remarked:
        """These and others."""
        return Remarked(self.rows + other.rows, min(self.first, other.first))


@dataclass(frozen=True)
class Part:
    """The encoded rows of one split of one source.

    split, source: "train", and the name of the source ("" for the only one).
    read: rows of the source.
    rows: a table of `input_ids` and `labels`, both (T,); `length`, which is T; `index`, the number
        of the row in the source; `cut` and `lost`, the tokens and the trained tokens that were
        truncated; `escaped`, true if special tokens in its text were made plain text.
    dropped: rows that made none.
    samples: number of a row in the source -> what the format makes of that row, read again; several
        samples where `loss.unroll` makes several.
    origin: number of a row in the source -> file and line, "" where they are not known.
    remarks: what is to be said of rows that are used.
    first_rows: gives some rows as the file has them.
    format: of the source, where it is known.
    """

    split: str
    source: str
    read: int
    rows: Dataset
    dropped: Sequence[Dropped]
    samples: Callable[[int], Sequence[Sample]]
    origin: Callable[[int], str]
    remarks: Mapping[Remark, Remarked] = field(default_factory=dict)
    first_rows: Callable[[], Sequence[Row]] = tuple
    format: FormatConfig | None = None

    @property
    def place(self) -> str:
        """The name of the part in messages; `[index]` follows."""
        return f"{self.source} {self.split}".strip()

    def where(self, position: int) -> str:
        """The row of the data set that became a finished row, as `split[index] (file, line)`."""
        return self.at(self.rows[position]["index"])

    def at(self, index: int) -> str:
        """A row of the data set, as `split[index] (file, line)`."""
        origin = self.origin(index)
        return f"{self.place}[{index}] ({origin})" if origin else f"{self.place}[{index}]"

    def lengths(self) -> np.ndarray:
        """Tokens of each row, (rows,)."""
        return row_lengths(self.rows)


def row_lengths(rows: Dataset) -> np.ndarray:
    """Tokens of each row of a table, (rows,): its column `length`; of packed rows, counted."""
    import numpy as np

    if "length" in rows.column_names:
        lengths = [table["length"].to_numpy() for table in batches(rows.select_columns("length"))]
    else:
        ids = rows.select_columns("input_ids")
        lengths = [list_lengths(table["input_ids"]) for table in batches(ids)]
    found: np.ndarray = np.concatenate([np.zeros(0, dtype=np.int64), *lengths])
    return found.astype(np.int64)


def batches(rows: Dataset) -> Iterator[Any]:
    """The rows as `pyarrow.Table`s of a few thousand rows each."""
    yield from rows.with_format("arrow").iter(batch_size=_BATCH) if len(rows) else ()


def list_lengths(column: Any) -> np.ndarray:
    """The lengths of the lists in an arrow column, (rows,)."""
    import pyarrow.compute as pc

    lengths: np.ndarray = pc.list_value_length(column).to_numpy()
    return lengths.astype("int64")


# --- rows as they were read -----------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """The rows of one split, read from disk as they are needed.

    table: `JSON`, `ORIGIN` and `NULLS`. A JSON text was parsed once when its file was read, to
        find a bad line, and is parsed again here: that is cheaper than forcing one schema on all
        rows.
    digest: hash of the rows and their order.
    columns: {our name: the data set's name, or a path into nested columns, or None}; a name with
        None is not read.
    columns_seen: {the data set's name: rows in which it is there and not null}, of all rows that
        were read, those that a limit or another split took included.
    """

    table: Dataset
    digest: str
    columns: Mapping[str, str | None]
    columns_seen: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), _TOGETHER):
            yield from self[start : start + _TOGETHER]

    def __getitem__(self, where: slice) -> list[Row]:
        return self.decode(self.table[where])

    @property
    def column_names(self) -> list[str]:
        """Our names of the columns of all rows that were read."""
        kept = [name for name in self.columns_seen if name not in self._taken]
        return kept + [ours for ours, theirs in self.columns.items() if self._may_have(theirs)]

    def decode(self, batch: Mapping[str, Sequence[Any]]) -> list[Row]:
        """The rows of a batch of `table`; a worker process has only the batch."""
        rows: list[Row] = [json.loads(text) for text in batch[JSON]]
        return [self._rename(row) for row in rows] if self.columns else rows

    def filled(self, batch: Mapping[str, Sequence[Any]]) -> list[int]:
        """For each row of a batch of `table` the null fields that Arrow had put there."""
        return list(batch[NULLS])

    def origin(self, index: int) -> str:
        """File and line of a row, where they are known, else ""."""
        return str(self.table[index][ORIGIN])

    def own_names(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """One of the rows by the names of the table again."""
        return {self.columns.get(name) or name: value for name, value in row.items()}

    def by_own_names(self, count: int) -> list[Row]:
        """The first rows as the table has them."""
        return replace(self, columns={})[:count]

    def select(self, indices: Any, why: str) -> Rows:
        """Some of the rows; `why` distinguishes this choice from others in the digest."""
        return replace(self, table=self.table.select(indices), digest=digest(self.digest, why))

    @property
    def _taken(self) -> set[str]:
        return {name for name in (*self.columns, *self.columns.values()) if name is not None}

    def _may_have(self, theirs: str | None) -> bool:
        return theirs is not None and bool({theirs, theirs.split(".")[0]} & set(self.columns_seen))

    def _rename(self, row: Mapping[str, Any]) -> dict[str, Any]:
        taken = self._taken
        kept = {name: value for name, value in row.items() if name not in taken}
        for ours, theirs in self.columns.items():
            if theirs is not None and (found := find_nested(row, theirs)):
                kept[ours] = found[0]
        return kept


def find_nested(row: Mapping[str, Any], path: str) -> list[Any]:
    """[the value] of a column, or of a dotted path into nested columns; [] where there is none.

    A column of exactly that name comes first. A step enters a mapping, or a string that holds the
    JSON of one.
    """
    if path in row:
        return [row[path]]
    value: Any = row
    for name in path.split("."):
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return []
        if not isinstance(value, Mapping) or name not in value:
            return []
        value = value[name]
    return [value]
