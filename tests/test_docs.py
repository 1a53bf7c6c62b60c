"""What the documents say of the code is so."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

import sftpipe

REPOSITORY = Path(__file__).parents[1]
PACKAGE = Path(sftpipe.__file__).parent
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)
RULES = (REPOSITORY / "docs" / "rules.md").read_text(encoding="utf-8")


@functools.cache
def names_of_tests() -> set[str]:
    """The names of all tests."""
    return {
        node.name
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }


def sections(text: str) -> dict[str, str]:
    """{"L1": its section, ...} of docs/rules.md."""
    parts = re.split(r"^## (L\d+) .*$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_there_are_eleven_rules() -> None:
    assert list(sections(RULES)) == [f"L{number}" for number in range(1, 12)]


@pytest.mark.parametrize("rule", [f"L{number}" for number in range(1, 12)])
def test_each_rule_has_a_reason_an_example_and_tests_that_exist(rule: str) -> None:
    text = sections(RULES)[rule]
    assert [part in text for part in ("*Reason.*", "*Example.*", "*Tests.*")] == [True] * 3
    named = re.findall(r"`(test_\w+)`", text)
    assert named
    assert set(named) - names_of_tests() == set()


def test_each_promise_of_reliability_names_tests_that_exist() -> None:
    text = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 30
    assert named - names_of_tests() == set()


def test_comments_cite_rules_that_exist() -> None:
    cited = [
        rule
        for folder in (PACKAGE, REPOSITORY / "tests")
        for path in folder.rglob("*.py")
        for rule in re.findall(r"docs/rules\.md, (L\d+)", path.read_text(encoding="utf-8"))
    ]
    assert cited
    assert set(cited) <= set(sections(RULES))


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(PACKAGE)))
def test_the_map_of_a_room_names_every_module_of_it(room: Path) -> None:
    map_of_room = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8"))) or ""
    modules = sorted(path.name for path in room.glob("*.py") if path.name != "__init__.py")
    assert [name for name in modules if f"{name} " not in map_of_room] == []
    written = re.findall(r"^\s*(\w+\.py)\b", map_of_room, flags=re.MULTILINE)
    assert sorted(set(written) - set(modules)) == []


def test_the_tree_of_the_readme_names_every_room_and_every_top_module() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    tree = readme[readme.index("## The tree") :]
    names = [
        *(f"{room.name}/" for room in ROOMS),
        *(path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")),
    ]
    assert [name for name in names if name not in tree] == []
