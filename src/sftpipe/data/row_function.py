"""format=function: a user's function runs over the rows once, and its values are kept on disk.

No one can know what such code depends on, so it is called at every start; what it returned, and not
the function, is then known by its content, like the rows of a file.

    {column: value}  ->  {"returned": value}, or {"error": [reason, {where, found, allowed, fix}]}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sftpipe.config.schema import FormatConfig, TrainConfig
from sftpipe.data.cleaning import strip_markers
from sftpipe.data.formats import ERROR, RETURNED, no_sample
from sftpipe.data.rows import Rows
from sftpipe.data.samples import Row
from sftpipe.data.source import Source
from sftpipe.data.stored import RowToStore, store_by_content
from sftpipe.data.user_code import load_function
from sftpipe.errors import DataError, Problem, RowError
from sftpipe.storage import digest
from sftpipe.terminal import console

RowFunction = Callable[[Any], Any]
_BATCH = 1000  # rows that a batched function is given together


def call_row_functions(sources: Sequence[Source], cfg: TrainConfig) -> list[Source]:
    """The sources, those with format=function with the function's values in place of their rows.

    Raises:
        DataError: there is no such function, or it fails on a batch.
    """
    return [
        replace(
            source,
            splits={
                split: _values(rows, source.format, cfg, f"{source.name} {split}".strip())
                for split, rows in source.splits.items()
            },
        )
        if source.format.type == "function"
        else source
        for source in sources
    ]


def _values(rows: Rows, form: FormatConfig, cfg: TrainConfig, place: str) -> Rows:
    """The function's value of each row, on disk; `markers=strip` comes first."""
    function = load_function(str(form.function), "format.function", cfg.allowed_targets)

    def stored() -> Iterator[RowToStore]:
        for start in range(0, len(rows), _BATCH):
            batch = [strip_markers(row, cfg.dataset) for row in rows[start : start + _BATCH]]
            locations = [f"{place}[{start + at}]" for at in range(len(batch))]
            values = call_function(function, batch, form, locations)
            for at, (value, where) in enumerate(zip(values, locations, strict=True)):
                text = as_json(value, form, where)
                yield RowToStore(text, json.loads(text), rows.origin(start + at))

    with console.status(f"Calling {form.function} on {place} ..."):
        made = store_by_content(stored(), f"{form.function} {rows.digest} {rows.origin(0)}")
    return Rows(made.table, digest("function", made.content), {}, made.columns_seen)


def call_function(
    function: RowFunction, rows: Sequence[Row], cfg: FormatConfig, locations: Sequence[str]
) -> list[Any]:
    """What the function makes of each row; a `RowError` where it fails on one.

    Raises:
        DataError: a batched function fails, or does not return one value for each row.
    """
    if cfg.batched:
        return _call_batched(function, rows, cfg)
    values: list[Any] = []
    for row, where in zip(rows, locations, strict=True):
        try:
            values.append(function(dict(row)))
        except Exception as error:  # a user's code can raise anything
            problem = Problem(
                f"{where} (format.function)",
                f"{cfg.function} raised {type(error).__name__}: {error}",
                allowed=f"it is given the columns {', '.join(row)}",
                fix="fix the function or the row",
            )
            values.append(RowError("format.function failed", problem))
    return values


def as_json(value: Any, cfg: FormatConfig, where: str) -> str:
    """What is stored of a value, or of the `RowError` in its place."""
    if not isinstance(value, RowError):
        try:
            if isinstance(value, (str, list, Mapping)):
                return json.dumps({RETURNED: dict(value) if isinstance(value, Mapping) else value})
            value = no_sample(value, cfg, where)
        except (TypeError, ValueError):  # a set or a date in it, or a list that holds itself
            value = no_sample(f"{value!r}, which is no JSON", cfg, where)
    return json.dumps({ERROR: [value.reason, asdict(value.problem)]})


def _call_batched(function: RowFunction, rows: Sequence[Row], cfg: FormatConfig) -> list[Any]:
    """One call for all rows; a per-row function that is given them is known by its result."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    batch = {name: [row.get(name) for row in rows] for name in names}
    try:
        result = function(batch)
    except Exception as error:  # a user's code can raise anything
        problem = Problem(
            "format.function",
            f"{cfg.function} raised {type(error).__name__}: {error}",
            allowed="with format.batched=true it is given {column: [values]} of "
            f"{len(rows)} rows; columns {', '.join(names)}",
            fix="`format.batched=false` if it takes one row",
        )
        raise DataError(problem) from error
    columns = list(result.values()) if isinstance(result, Mapping) else []
    turns = (result.get("messages") or ()) if isinstance(result, Mapping) else ()
    one_chat = any(isinstance(turn, Mapping) for turn in turns)
    if columns and not one_chat and all(_is_column(column, len(rows)) for column in columns):
        return [dict(zip(result, values, strict=True)) for values in zip(*columns, strict=True)]
    if not _is_column(result, len(rows)):
        is_list = isinstance(result, list)
        found = f"{len(result)} values" if is_list else f"one {type(result).__name__}"
        problem = Problem(
            "format.function",
            f"{cfg.function} returned {found} for a batch of {len(rows)} rows; "
            "it looks like a function of one row",
            allowed="with format.batched=true a list with one value for each row",
            fix="`format.batched=false`, or let the function loop over the batch",
        )
        raise DataError(problem)
    return list(result)


def _is_column(value: Any, rows: int) -> bool:
    return isinstance(value, list) and len(value) == rows
