"""The faults of tests/mutants are put where they say, and name tests that exist."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

from mutants.run import REPOSITORY, SOURCE, Mutant, load_mutants

MUTANTS = load_mutants()
AT_LEAST = 120
MODULES = sorted(
    str(path.relative_to(REPOSITORY / SOURCE))
    for path in (REPOSITORY / SOURCE).rglob("*.py")
    if path.stem not in ("__init__", "__main__")
)


def test_there_are_many_and_each_is_another() -> None:
    assert len({(one.file, one.find, one.replace) for one in MUTANTS}) == len(MUTANTS)
    assert len(MUTANTS) >= AT_LEAST


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_fault_that_tests_must_notice(module: str) -> None:
    assert module in {one.file for one in MUTANTS}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: f"{one.file}: {one.why}")
def test_a_fault_changes_one_place_and_names_tests_that_exist(
    mutant: Mutant, tmp_path: Path
) -> None:
    source = tmp_path / SOURCE / mutant.file
    source.parent.mkdir(parents=True)
    text = (REPOSITORY / SOURCE / mutant.file).read_text(encoding="utf-8")
    source.write_text(text, encoding="utf-8")

    assert mutant.apply(tmp_path) == text  # raises where the place is none, or not the only one

    changed = source.read_text(encoding="utf-8")
    assert changed != text
    ast.parse(changed)  # a fault of syntax is noticed by everything
    assert mutant.why.strip()
    assert mutant.tests
    for test in mutant.tests:
        file, _, node = test.partition("::")
        assert node.partition("[")[0] in {"", *_tests_of(REPOSITORY / file)}, test


@functools.cache
def _tests_of(file: Path) -> set[str]:
    """The names of the tests of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
