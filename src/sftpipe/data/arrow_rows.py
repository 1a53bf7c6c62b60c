"""Typed tables (Parquet, `save_to_disk`, `datasets`) to rows, a batch at a time.

Arrow gives each struct of a column the same fields, and fills those that a row did not have with
null. They are left out again, at every depth, and counted; nulls in lists and whole columns stay.

A column of any type gives rows: what JSON cannot hold leaves its type. Bytes are never copied.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftpipe.data.stored import RowToStore, no_json, row_of
from sftpipe.errors import DataError, Problem, one_line

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, IterableDataset

_TOGETHER = 1000  # rows that are in memory together
_TOGETHER_WITH_BYTES = 20  # of a file whose structs hold bytes, such as images


def parquet_rows(file: Path) -> Iterator[RowToStore]:
    """The rows of a Parquet file, by its own schema.

    Raises:
        DataError: it is damaged, or of another kind.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            skipped = {field.name for field in schema if _is_bytes(field.type)}
            kept = [name for name in schema.names if name not in skipped]
            has_bytes = any(_holds_bytes(field.type) for field in schema if field.name in kept)
            together = _TOGETHER_WITH_BYTES if has_bytes else _TOGETHER
            for batch in opened.iter_batches(together, columns=kept):
                for value, filled in _values(batch):
                    value |= dict.fromkeys(sorted(skipped), no_json("bytes"))
                    yield row_of(value, f"{file.name}, row {number}", filled)
                    number += 1
    except (pa.ArrowException, OSError) as error:
        problem = Problem(
            "dataset.data_files",
            f"{file} cannot be read as parquet: {one_line(error)[:200]}",
            fix="fix the file, or choose the right one of dataset=json|csv|parquet|text|arrow",
        )
        raise DataError(problem) from None


def dataset_rows(rows: Dataset | IterableDataset, name: str, stop: int | None) -> Iterator[Any]:
    """The rows of an object of `datasets`, at most `stop`; their origin is `name`."""
    import datasets

    together = _TOGETHER if stop is None else min(stop, _TOGETHER)
    if isinstance(rows, datasets.Dataset) and rows.format["type"] != "custom":
        if any(_holds_bytes(field.type) for field in rows.data.schema):
            together = min(together, _TOGETHER_WITH_BYTES)
        found = _of_tables(rows.with_format("arrow").iter(together))
    elif isinstance(rows, datasets.IterableDataset) and _is_typed(rows):
        found = _of_tables(rows.with_format("arrow").iter(together))
    else:  # rows of a generator, or of a function that is called over others
        found = ((_without_nulls(row), _nulls(row)) for row in rows)
    for number, (value, filled) in enumerate(islice(found, stop)):
        yield row_of(value, f"{name}, row {number}", filled)


def _is_typed(rows: IterableDataset) -> bool:
    """True for a stream of tables of one schema."""
    return rows.features is not None and bool(rows._ex_iterable.iter_arrow)


def _of_tables(tables: Iterable[pa.Table]) -> Iterator[tuple[dict[str, Any], int]]:
    for table in tables:
        for batch in table.to_batches():
            yield from _values(batch)


def _values(batch: pa.RecordBatch) -> Iterator[tuple[dict[str, Any], int]]:
    """The rows of a batch, each with the number of nulls that were left out."""
    columns = [list(_column(array)) for array in batch.columns]
    for at in range(batch.num_rows):
        yield (
            {name: column[at][0] for name, column in zip(batch.schema.names, columns, strict=True)},
            sum(column[at][1] for column in columns),
        )


def _column(array: pa.Array) -> Iterator[tuple[Any, int]]:
    """(value, nulls that were left out of it) of each row of a column."""
    if _is_bytes(array.type):
        yield from ((no_json("bytes") if one else None, 0) for one in array.is_valid().to_pylist())
        return
    try:
        values = array.to_pylist()
    except Exception:  # a date of the year 20000, broken UTF-8: Arrow raises many things
        values = [_value(scalar) for scalar in array]
    as_json = _converter(array.type)
    for value in values:
        filled = [0]
        if as_json and value is not None and not isinstance(value, _NoJson):
            value = as_json(value, filled)
        yield value, filled[0]


class _NoJson(dict[str, str]):
    """What stands for a value that Python cannot hold."""


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except Exception:  # see above
        return _NoJson(no_json(str(scalar.type)))


# makes JSON of a value that is not null, and adds the nulls that it leaves out to the number
_Convert = Callable[[Any, list[int]], Any]


def _converter(kind: pa.DataType) -> _Convert | None:
    """What makes JSON of the values of an Arrow type; None for those that are left as they are."""
    from pyarrow import BaseExtensionType, types

    if isinstance(kind, BaseExtensionType):
        # `datasets` stores values of mixed types as JSON
        is_json = kind.extension_name == "arrow.json"
        return _parsed if is_json else _converter(kind.storage_type)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _converter(kind.value_type)
    if types.is_struct(kind):
        return partial(_struct, {field.name: _converter(field.type) for field in kind})
    if types.is_map(kind):
        return partial(_map, _converter(kind.item_type))
    if kind.num_fields == 1:  # a list of any kind
        inner = _converter(kind.field(0).type)
        return partial(_list, inner) if inner else None
    return None


def _struct(
    inner: Mapping[str, _Convert | None], value: Mapping[str, Any], filled: list[int]
) -> dict[str, Any]:
    kept = {name: one for name, one in value.items() if one is not None}
    filled[0] += len(value) - len(kept)
    return {
        name: convert(one, filled) if (convert := inner[name]) else one
        for name, one in kept.items()
    }


def _map(inner: _Convert | None, value: Any, filled: list[int]) -> dict[str, Any]:
    return {
        str(key): inner(one, filled) if inner and one is not None else one for key, one in value
    }


def _list(inner: _Convert, value: Sequence[Any], filled: list[int]) -> list[Any]:
    return [None if one is None else inner(one, filled) for one in value]


def _parsed(value: Any, _: list[int]) -> Any:
    try:
        return json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return value


def _is_bytes(kind: pa.DataType) -> bool:
    from pyarrow import BaseExtensionType, types

    if isinstance(kind, BaseExtensionType):
        return _is_bytes(kind.storage_type)
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return types.is_fixed_size_binary(kind) or any(test(kind) for test in tests)


def _holds_bytes(kind: pa.DataType) -> bool:
    """True if bytes lie in the type, at any depth."""
    inner = [kind.field(at).type for at in range(kind.num_fields)]
    return _is_bytes(kind) or any(_holds_bytes(one) for one in inner)


# --- Python values that `datasets` made -----------------------------------------------------------


def _without_nulls(value: Any, top: bool = True) -> Any:
    if isinstance(value, Mapping):
        return {
            name: _without_nulls(one, False)
            for name, one in value.items()
            if top or one is not None
        }
    if isinstance(value, list):
        return [_without_nulls(one, False) for one in value]
    return value


def _nulls(value: Any, top: bool = True) -> int:
    """The null fields of mappings inside a row."""
    if isinstance(value, Mapping):
        own = 0 if top else sum(one is None for one in value.values())
        return own + sum(_nulls(one, False) for one in value.values())
    return sum(_nulls(one, False) for one in value) if isinstance(value, list) else 0
