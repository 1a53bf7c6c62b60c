"""JSON Lines, one JSON list of rows, or one object with such a list, to rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from sftpipe.data.json_layouts import is_by_columns, layout_of_object
from sftpipe.data.stored import RowToStore, row_of, show
from sftpipe.data.text_files import TextFile
from sftpipe.errors import DataError, nearest, override

_JSON_ROWS = "one JSON object a line, or one list of objects: [{...}, {...}]"


def json_rows(file: TextFile, field: str | None, required: Sequence[str]) -> Iterator[RowToStore]:
    """The rows of a file.

    Args:
        file: the file.
        field: dotted path of the list of rows in one object (`dataset.field`), or None.
        required: columns that the format needs, which tell a layout from a row.
    """
    with file.lines() as lines:
        if field is not None:
            text = "".join(lines)
            if text.strip():  # else the file has no rows
                value = _list_at(_parse(text, file, 1), field, file)
                yield from _list_rows(value, file)
            return
        begun = False
        for number, raw in enumerate(lines, start=1):
            line = raw.strip()
            if not line:
                continue
            if line[0] == "[" and not begun:
                rows = _parse(raw + "".join(lines), file, number)
                yield from _list_rows(rows, file)
                return
            try:
                row = _parse(line, file, number)
            except DataError:
                if not begun and line[0] == "{":
                    _reject_layout("".join(chain([raw], lines)), file, required)
                raise
            if not isinstance(row, dict):
                raise file.problem(show(row), "fix the line", _JSON_ROWS, number)
            begun = True
            yield RowToStore(line, row, f"{file.path.name}, line {number}")


def _list_rows(rows: list[Any], file: TextFile) -> Iterator[RowToStore]:
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            allowed = "a list of objects: [{...}, {...}]"
            layout = layout_of_object(rows)
            if layout is not None:
                raise file.problem(layout.name, layout.fix(file.path), allowed)
            raise file.problem(show(row), "fix the file", allowed, row=number)
        yield row_of(row, f"{file.path.name}, row {number}")


def _list_at(value: Any, field: str, file: TextFile) -> list[Any]:
    """The list of rows at a dotted path."""
    path = ""
    for name in field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            known = list(value) if isinstance(value, Mapping) else []
            found = f"no {name!r}" + (f" in {path}" if path else "")
            match = nearest(name, known)
            fix = override("dataset.field", f"{path}.{match}".strip(".")) if match else ""
            allowed = ", ".join(known[:20]) or "a key of an object"
            raise file.problem(f"{found} (dataset.field={field})", fix or "another key", allowed)
        value, path = value[name], f"{path}.{name}".strip(".")
    if not isinstance(value, list):
        found = f"{field} (dataset.field) is {show(value)}"
        raise file.problem(found, "name the key of a list of rows", "a list of objects")
    return value


def _reject_layout(text: str, file: TextFile, required: Sequence[str]) -> None:
    """An error if the whole file is one object that holds a table, spread over lines."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    is_row = isinstance(value, dict) and bool(required) and set(required) <= set(value)
    if is_row and not is_by_columns(value, required):
        return
    layout = layout_of_object(value, required) or layout_of_object(value)
    if layout is not None:
        raise file.problem(layout.name, layout.fix(file.path), _JSON_ROWS)


def _parse(text: str, file: TextFile, first: int) -> Any:
    """The value of a text that begins in line `first`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        excerpt = text[max(0, error.pos - 20) : error.pos + 20]
        found = f"no JSON: {error.msg} at character {error.colno}: {excerpt!r}"
        # to a reader of lines, an object that is spread over lines ends too early
        spread = text[0] == "{" and error.pos >= len(text)
        one_row = "write the whole object on one line, or all objects as one list"
        fix = one_row if spread else "fix the line"
        raise file.problem(found, fix, _JSON_ROWS, first + error.lineno - 1) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, deep brackets
        found = f"JSON that cannot be read: {error}"
        raise file.problem(found, "fix the line", _JSON_ROWS, first) from None
