"""CSV with a header to rows; an error names the line.

Every value is the text that is written: "N/A" stays a word and "007" keeps its zeros. Names of
columns are taken without blanks around them; rows of blanks alone are no rows.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sftpipe.data.stored import RowToStore, row_of
from sftpipe.data.text_files import TextFile
from sftpipe.errors import DataError, override

_LONGEST_FIELD_BYTES = 2**26  # of a CSV value; more is a quote that was never closed
_DELIMITERS = (",", ";", "\t", "|")
_TYPED = {"\t": "tab"}  # how dataset.delimiter is written; others are written as they are


@dataclass(frozen=True)
class Delimiter:
    """What splits the columns of one file.

    mark: one character.
    found: True if it is another one than that of the config or of the file's name.
    """

    mark: str
    found: bool = False


def typed_delimiter(mark: str) -> str:
    """An override of `dataset.delimiter`, in backticks for `Problem.fix`."""
    return override("dataset.delimiter", _TYPED.get(mark, f"'{mark}'"))


def find_delimiter(file: TextFile, chosen: str | None, required: Collection[str]) -> Delimiter:
    """What splits the columns of a file.

    Without a choice that is the comma, or a tab in a file that is called .tsv; if a required column
    is missing then, the one of `;`, tab, `|` and comma that gives all of them.

    Args:
        file: its header is read.
        chosen: `dataset.delimiter`.
        required: columns that the format needs.
    """
    if chosen is not None:
        return Delimiter({"tab": "\t", "\\t": "\t"}.get(chosen, chosen))
    usual = "\t" if ".tsv" in [one.lower() for one in file.path.suffixes] else ","
    others = [mark for mark in _DELIMITERS if mark != usual]
    if required and not _gives_all(required, file, usual):
        found = next((mark for mark in others if _gives_all(required, file, mark)), None)
        return Delimiter(found or usual, found=found is not None)
    return Delimiter(usual)


def _gives_all(required: Collection[str], file: TextFile, mark: str) -> bool:
    """True if the header has the columns, or those that hold them."""
    names = _header_names(file, mark)
    return all({name, name.split(".")[0]} & names for name in required)


def _header_names(file: TextFile, mark: str) -> set[str]:
    """The names of the header; none where it cannot be read, which reading the rows will tell."""
    try:
        with file.lines() as lines:
            rows = csv.reader(lines, strict=True, delimiter=mark)
            return {name.strip() for name in next((row for row in rows if not _is_blank(row)), [])}
    except (csv.Error, DataError):
        return set()


def csv_rows(file: TextFile, mark: str) -> Iterator[RowToStore]:
    """The rows of a file whose columns are split by `mark`."""
    with file.lines() as lines:
        reader = csv.reader(lines, strict=True, delimiter=mark)
        header: list[str] | None = None
        begins = 1
        before = csv.field_size_limit(_LONGEST_FIELD_BYTES)
        try:
            for fields in reader:
                if not _is_blank(fields) and header is None:
                    header = _header(fields, file, begins, mark)
                elif not _is_blank(fields) and header is not None:
                    row = _row(header, fields, file, begins)
                    yield row_of(row, f"{file.path.name}, line {begins}")
                begins = reader.line_num + 1
        except csv.Error as error:
            found = f"the row that begins here cannot be read: {error}"
            fix = 'close the quote; a quote inside a quoted value is written twice: ""'
            if "new-line" in str(error):
                found = "a carriage return without a line feed (old Mac line ends)"
                fix = "save the file with line feeds"
            raise file.problem(found, fix, line=begins) from None
        finally:
            csv.field_size_limit(before)


def _is_blank(fields: Sequence[str]) -> bool:
    """Spreadsheets write rows of commas behind a table."""
    return not any(field.strip() for field in fields)


def _header(fields: list[str], file: TextFile, number: int, mark: str) -> list[str]:
    """The names of the columns, "" of those without one."""
    names = [field.strip() for field in fields]
    other = next((one for one in _DELIMITERS if one != mark and one in names[0]), None)
    if len(names) == 1 and other:
        found = f"one column, {names[0]!r}: it seems to be split by {other!r}"
        raise file.problem(found, typed_delimiter(other), line=number)
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        found = f"the column {twice[0]!r} is in the header twice"
        raise file.problem(found, "give each column a name of its own", line=number)
    return names


def _row(header: list[str], fields: list[str], file: TextFile, number: int) -> dict[str, str]:
    if len(fields) != len(header):
        names = [name or f"column {at}" for at, name in enumerate(header, start=1)]
        found = f"{len(fields)} values for the {len(header)} columns {', '.join(names)}"
        fix = 'put values that hold the separator, a quote or a line break into "..."'
        raise file.problem(found, fix, line=number)
    named = dict(zip(header, fields, strict=True))
    named.pop("", None)
    unnamed = {
        f"column {at}": field
        for at, (name, field) in enumerate(zip(header, fields, strict=True), start=1)
        if not name and field.strip()
    }
    return {**unnamed, **named}
