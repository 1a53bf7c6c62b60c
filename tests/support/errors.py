"""Errors: how a test gets one, what it asserts of it, and the reviewed file of their texts.

A test asserts the class, the places and what to type. How the text reads stands in
`tests/golden/errors.txt` alone, in a section a test; the fixture `golden_error` compares it, and
`make golden` writes it anew.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sftpipe.errors import SftpipeError

E = TypeVar("E", bound=SftpipeError)
Pin = Callable[..., None]  # the type of the fixture `golden_error`
TESTS = Path(__file__).parents[1]
FILE = TESTS / "golden" / "errors.txt"
HEAD, LABEL = "=== ", " / "


def refused(kind: type[E], run: Callable[[], object]) -> E:
    """The error that `run` raises, which is exactly of this class."""
    with pytest.raises(kind) as caught:
        run()
    assert type(caught.value) is kind
    return caught.value


def places(error: SftpipeError) -> list[str]:
    """Where the problems of an error are."""
    return [problem.where for problem in error.problems]


def told(error: SftpipeError) -> dict[str, tuple[str, ...]]:
    """{where: what to type} of the problems of an error."""
    return {problem.where: problem.commands for problem in error.problems}


def named(table: Iterable[Sequence[Any]]) -> list[Any]:
    """Rows of a table as cases of `pytest.mark.parametrize`; the first column is the id."""
    return [pytest.param(*columns, id=name) for name, *columns in table]


def examples(table: Iterable[Sequence[Any]], kind: int = 1) -> list[Any]:
    """`named` with a column more: whether a row is the first of its kind, whose text stands for
    the others. What its last `kind` columns hold is the kind of a row.
    """
    seen: set[tuple[Any, ...]] = set()
    rows = []
    for row in table:
        rows.append([*row, tuple(row[-kind:]) not in seen])
        seen.add(tuple(row[-kind:]))
    return named(rows)


def check_commands(error: object) -> None:
    """What an error says to type is a line for a shell, and Hydra reads its overrides."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for problem in getattr(error, "problems", ()):
        for command in problem.commands:
            words = shlex.split(command)
            if words[0] == "sftpipe":
                words = [word for word in words[2:] if "=" in word]
            elif "=" not in words[0]:
                continue  # another program
            OverridesParser.create().parse_overrides(words)


# --- the file -------------------------------------------------------------------------------------


def section_of(nodeid: str) -> str:
    """The name of the section of a test."""
    return nodeid.removeprefix("tests/")


@functools.cache
def sections() -> dict[str, str]:
    """{name: text} of the file."""
    if not FILE.is_file():
        return {}
    parts = re.split(f"^{HEAD}", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {name: text.rstrip("\n") for name, _, text in (part.partition("\n") for part in parts)}


def write(texts: Mapping[str, str]) -> None:
    """Write the file: sections in the order of their names."""
    lines = [f"{HEAD}{name}\n{text}\n" for name, text in sorted(texts.items())]
    FILE.write_text("\n".join(lines), encoding="utf-8")


def gone(tests: Mapping[str, bool], arguments: Sequence[str]) -> set[str]:
    """The sections that no test pins any more.

    Args:
        tests: {section of a collected test: whether it asks for the fixture}, before any of them
            is deselected.
        arguments: what pytest was called with; single tests of a file say nothing of the others.
    """
    whole = {name.partition("::")[0] for name in tests if "::" not in " ".join(arguments)}
    found = set()
    for name in sections():
        test = name.partition(LABEL)[0]
        file = test.partition("::")[0]
        if not (TESTS / file).is_file() or (file in whole and not tests.get(test, False)):
            found.add(name)
    return found


def neutral(text: str, folders: Mapping[Path, str]) -> str:
    """A text without what differs between machines (folders, ports) and its last line break."""
    for folder in sorted(folders, key=lambda one: -len(str(one))):
        text = text.replace(str(folder), folders[folder])
    return re.sub(r"(127\.0\.0\.1|localhost):\d+", r"\1:<port>", text).rstrip("\n")
