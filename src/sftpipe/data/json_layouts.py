"""One JSON object that holds a whole table: which layout is it, and what reads it?

A layout is named in an error and never read by itself: which of its parts are the rows is the
user's to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftpipe.errors import override

_DEEPEST = 3  # mappings in which rows are looked for


@dataclass(frozen=True)
class Layout:
    """How rows lie in one JSON value.

    name: in words.
    columns: of the rows.
    field: dotted path of a list of rows, for `dataset.field`; "" where there is none.
    orient: what `pandas.read_json` calls the layout; "" where `field` is set.
    """

    name: str
    columns: tuple[str, ...]
    field: str = ""
    orient: str = ""

    def fix(self, file: Path | str) -> str:
        """What to type to have the rows read."""
        if self.field:
            return override("dataset.field", self.field)
        read = f"pandas.read_json({str(file)!r}, orient={self.orient!r}"
        write = "orient='records', lines=True, force_ascii=False"
        # without dtype and convert_dates "007" would become 7, and a word a date
        line = f"{read}, dtype=False, convert_dates=False).to_json('rows.jsonl', {write})"
        return f'`python -c "import pandas; {line}"`, then `dataset.data_files=rows.jsonl`'


def layouts_of_object(value: Any) -> list[Layout]:
    """The layouts that a JSON value may have: [] for a value that may be an ordinary row.

    {"data": [{...}], "version": 1}               field: a list of rows under a key
    {"columns": [...], "data": [[...]]}           pandas, orient=split
    {"question": {"0": ..., "1": ...}, ...}       pandas, orient=columns
    {"question": ["...", "..."], ...}             the same, of lists
    {"0": {"question": ...}, "1": {...}}          pandas, orient=index
    [["...", "..."], ...]                         pandas, orient=values
    """
    if isinstance(value, list):
        is_table = bool(value) and all(isinstance(row, list) for row in value)
        numbers = tuple(str(at) for at in range(len(value[0]))) if is_table else ()
        name = "a list of lists, without names of columns"
        return [Layout(name, numbers, orient="values")] if is_table else []
    if not isinstance(value, Mapping) or not value:
        return []
    by_pandas = _split(value) or _columns(value) or _index(value)
    return [by_pandas] if by_pandas else _fields(value)


def layout_of_object(value: Any, required: Sequence[str] = ()) -> Layout | None:
    """The first layout whose rows have the columns that a format needs, if there is one."""
    fitting = (one for one in layouts_of_object(value) if set(required) <= {*one.columns})
    return next(fitting, None)


def is_by_columns(value: Mapping[str, Any], required: Sequence[str]) -> bool:
    """True if each required column holds a column of values, and not the value of one row.

    Turns of a conversation are a list of mappings, and a value of one row.
    """
    columns = [value.get(name) for name in required]
    return bool(columns) and all(
        (isinstance(one, Mapping) and bool(one) and all(map(_is_number, one)))
        or (isinstance(one, list) and bool(one) and not _all(one, Mapping))
        for one in columns
    )


def _split(value: Mapping[str, Any]) -> Layout | None:
    names, rows = value.get("columns"), value.get("data")
    if not isinstance(names, list) or not _all(rows, list) or not set(value) <= _SPLIT_KEYS:
        return None
    return Layout("a table by columns and data", tuple(map(str, names)), orient="split")


_SPLIT_KEYS = {"columns", "index", "data"}


def _columns(value: Mapping[str, Any]) -> Layout | None:
    name = "a table by columns: {column: its values}"
    inner = list(value.values())
    if _all(inner, Mapping):
        keys = [list(one) for one in inner]
        if keys[0] and all(one == keys[0] for one in keys) and all(map(_is_number, keys[0])):
            return Layout(name, tuple(value), orient="columns")
    alike = _all(inner, list) and len({len(one) for one in inner}) == 1 and bool(inner[0])
    # one list of mappings is a list of rows
    if alike and (len(inner) > 1 or not _all(inner[0], Mapping)):
        return Layout(name, tuple(value), orient="columns")
    return None


def _index(value: Mapping[str, Any]) -> Layout | None:
    rows = list(value.values())
    if not _all(rows, Mapping) or not rows[0]:
        return None
    alike = len(rows) > 1 and all(set(row) == set(rows[0]) for row in rows)
    if not (alike or all(map(_is_number, value))):
        return None
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Layout("a table by rows: {number: row}", columns, orient="index")


def _fields(value: Mapping[str, Any], path: str = "", depth: int = 1) -> list[Layout]:
    """Lists of mappings under a key, the outer ones first."""
    found, deeper = [], []
    for key, inner in value.items():
        here = f"{path}{key}"
        if inner and _all(inner, Mapping):
            columns = tuple(dict.fromkeys(name for row in inner for name in row))
            found.append(Layout(f"an object with a list of rows under {here!r}", columns, here))
        elif isinstance(inner, Mapping) and depth < _DEEPEST:
            deeper += _fields(inner, f"{here}.", depth + 1)
    return found + deeper


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(one, kind) for one in value)


def _is_number(key: str) -> bool:
    return str(key).isdigit()
