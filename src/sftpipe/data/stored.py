"""The one form of rows on disk: an Arrow stream of JSON texts, and what is known of all of them.

No schema is forced on the rows, so that one odd row is an error of that row and not of its file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sftpipe.data.rows import JSON, NULLS, ORIGIN, Rows
from sftpipe.storage import cache_dir, cached, digest

if TYPE_CHECKING:
    from datasets import Dataset

_TOGETHER = 1000  # rows that are written together


class RowToStore(NamedTuple):
    """A row on its way to the disk.

    text: its JSON.
    value: the same, parsed.
    origin: its file and line.
    filled: null fields that Arrow had filled it with and that were left out.
    """

    text: str
    value: Mapping[str, Any]
    origin: str
    filled: int = 0


@dataclass(frozen=True)
class StoredRows:
    """Rows on disk.

    table: as of `Rows`.
    content: SHA-256 of the rows, without their origins.
    columns_seen: as of `Rows`.
    """

    table: Dataset
    content: str
    columns_seen: Mapping[str, int]


def row_of(value: Mapping[str, Any], origin: str, filled: int = 0) -> RowToStore:
    """A row of Python values; those that JSON does not know are written as `plain` says."""
    try:
        text = json.dumps(value, default=plain)
    except (TypeError, ValueError):  # a key that is no string, or a list that holds itself
        value = {name: _with_text_keys(one) for name, one in value.items()}
        text = json.dumps(value, default=plain)
    return RowToStore(text, value, origin, filled)


def plain(value: Any) -> Any:
    """What JSON holds of a value that it does not know.

    Dates and times are ISO text and decimals their text; of anything else the type is left.
    """
    if isinstance(value, (date, time)):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    return no_json(type(value).__name__)


def no_json(kind: str) -> dict[str, str]:
    """What stands for a value that JSON cannot hold; a format that reads it names the type."""
    return {"no value of JSON": kind}


def show(value: Any) -> str:
    """The type and the beginning of a value that is no row, for messages."""
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def _with_text_keys(value: Any, depth: int = 0) -> Any:
    if depth > 100:  # it holds itself
        return no_json(type(value).__name__)
    if isinstance(value, Mapping):
        return {str(name): _with_text_keys(one, depth + 1) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_text_keys(one, depth + 1) for one in value]
    return value


def cached_splits(
    key: str,
    read: Callable[[], Mapping[str, Iterable[RowToStore]]],
    watched: contextlib.AbstractContextManager[None] | None = None,
) -> dict[str, StoredRows]:
    """The rows of some splits from the cache, after reading them if nobody has.

    Args:
        key: digest of all that they depend on.
        read: {split: its rows}, read while they are written.
        watched: a block around the reading.
    """

    def build(folder: Path) -> None:
        with watched or contextlib.nullcontext():
            about = {
                split: _write(rows, folder / f"{number}.arrow")
                for number, (split, rows) in enumerate(read().items())
            }
        (folder / "splits.json").write_text(json.dumps(about), encoding="utf-8")

    def load(folder: Path) -> dict[str, StoredRows]:
        about = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
        return {
            split: StoredRows(_load(folder / f"{number}.arrow"), **known)
            for number, (split, known) in enumerate(about.items())
        }

    return cached("rows", key, build, load)


def store_by_content(rows: Iterable[RowToStore], name: str) -> StoredRows:
    """Rows that are read each time, known by a hash of their content.

    Args:
        rows: the rows.
        name: what made them; equal rows of two makers have two entries, because origins differ.
    """
    parent = cache_dir() / "rows"
    parent.mkdir(parents=True, exist_ok=True)
    # the key is known after the last row; storage._evict removes the file of a killed process
    with tempfile.NamedTemporaryFile(dir=parent, prefix=".", suffix=".arrow", delete=False) as file:
        written = Path(file.name)
    try:
        known = _write(rows, written)
        return cached(
            "rows",
            digest(known["content"], name),
            lambda folder: written.replace(folder / "rows.arrow"),
            lambda folder: StoredRows(_load(folder / "rows.arrow"), **known),
        )
    finally:
        written.unlink(missing_ok=True)


def rows_in_memory(values: Sequence[Mapping[str, Any]]) -> Rows:
    """Rows that somebody gave, without an origin."""
    from datasets import Dataset

    rows = [row_of(value, "") for value in values]
    columns = {
        JSON: [row.text for row in rows],
        ORIGIN: [row.origin for row in rows],
        NULLS: [row.filled for row in rows],
    }
    return Rows(Dataset.from_dict(columns), digest(columns[JSON]), {}, _seen(rows))


def _write(rows: Iterable[RowToStore], file: Path) -> dict[str, Any]:
    """Write rows to an Arrow stream; returns the fields of `StoredRows` beside the table."""
    import pyarrow as pa

    kinds = (pa.large_string(), pa.large_string(), pa.int32())
    schema = pa.schema(list(zip((JSON, ORIGIN, NULLS), kinds, strict=True)))
    content, seen = hashlib.sha256(), Counter[str]()
    left = iter(rows)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while batch := list(islice(left, _TOGETHER)):
            columns = (
                [row.text for row in batch],
                [row.origin for row in batch],
                [row.filled for row in batch],
            )
            for row in batch:
                content.update(f"{row.filled} {row.text}\n".encode())
            seen.update(_seen(batch))
            arrays = [pa.array(one, kind) for one, kind in zip(columns, kinds, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    return {"content": content.hexdigest(), "columns_seen": dict(seen)}


def _seen(rows: Sequence[RowToStore]) -> Counter[str]:
    """{column: rows in which it is not null}; a column that is always null counts 0."""
    seen = Counter[str]()
    for row in rows:
        for name, value in row.value.items():
            seen[name] += value is not None
    return seen


def _load(file: Path) -> Dataset:
    """A stored table, mapped into memory."""
    import datasets

    return datasets.Dataset.from_file(str(file))


def numbered(values: Iterable[Mapping[str, Any]], name: str) -> Iterator[RowToStore]:
    """Rows of Python values, which come from no file."""
    for number, value in enumerate(values):
        yield row_of(value, f"{name}, row {number}")
