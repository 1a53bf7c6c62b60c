"""What an unknown file looks like, and what to type: each proposal is typed and trains answers.

The cases stand in docs/data.md ("Your file looks like this"), for people to read; here are what
they train, and files of other names.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sftpipe import DataError, PreparedData, prepare
from sftpipe.cli import main
from sftpipe.config.schema import DatasetConfig
from sftpipe.data.layouts import FIRST_ROWS, Layout, recognise
from support.byte_model import write_byte_model
from support.configs import compose
from support.errors import Pin, refused, told

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
END = "<|im_end|>"
NORWAY = f"In Norway.{END}"
Row = dict[str, Any]
Answers = Callable[..., list[str]]


class Case(NamedTuple):
    """An example of the documents."""

    name: str
    rows: list[Row]
    typed: str
    code: str


def documented() -> list[Case]:
    """The examples of the section, in their order."""
    text = DOCS.read_text(encoding="utf-8")
    section = text[text.index("## Your file looks like this") : text.index("## Write: ")]
    cases, name = [], ""
    pattern = r"^\*\*(.+?)\*\*|^```\n(\{.*?)\n-> (.*?)\n```(?:\n```\n((?!\{).*?)\n```)?"
    for heading, rows, typed, code in re.findall(pattern, section, re.MULTILINE | re.DOTALL):
        name = heading.rstrip(".") or name
        if rows:
            again = sum(case.name.startswith(name) for case in cases)
            full = f"{name} ({again + 1})" if again else name
            cases.append(Case(full, [json.loads(row) for row in rows.splitlines()], typed, code))
    return cases


CASES = documented()
TRAINED = {  # where it is not the answer that nearly all examples have
    "Lists of questions with their answers": [f"In Italy.{END}"],
    "Prompt and completion": [f" In Norway.{END}"],
    "Texts": [f"Oslo is in Norway.{END}"],
    "Texts (2)": [f"Oslo is in Norway.{END}"],
    "Guanaco": [f" In Norway. In Italy.{END}"],
    "Results of tools that no turn calls": [f"It is 72.{END}"],
    "A message in each row": [f"In Italy.{END}", f"Far north.{END}"],
}
needs_paths = pytest.mark.skipif(
    "field" not in {one.name for one in fields(DatasetConfig)},
    reason="dataset.columns reads no dotted paths yet",
)


def marked(case: Case) -> Any:
    return pytest.param(
        case, id=case.name, marks=needs_paths if "=data.turns" in case.typed else []
    )


# --- typed as they stand --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_model(tmp_path_factory.mktemp("bytes") / "model")


@pytest.fixture
def answers(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """What rows train with a layout as a person types it, in a folder with the function."""

    def run(rows: Sequence[Row], layout: Layout, *words: str) -> list[str]:
        file = write(tmp_path, rows)
        monkeypatch.chdir(tmp_path)
        code = layout.code.replace('"messages.jsonl"', repr(str(file)))
        (tmp_path / "my_rows.py").write_text(code, encoding="utf-8")
        sys.modules.pop("my_rows", None)
        importlib.invalidate_caches()
        typed = shlex.split(layout.typed)
        files = ["dataset=json", f"dataset.data_files={file}"]
        if "dataset=function" in typed:
            files = []
        data = prepare(
            compose([*files, f"model.name_or_path={model}", "evaluation=none", *typed, *words])
        )
        assert data.preflight.dropped == []
        return list(map(trained_of(data), data.train))

    return run


def write(folder: Path, rows: Sequence[Row]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def trained_of(data: PreparedData) -> Callable[[Any], str]:
    return lambda row: str(data.tokenizer.decode([one for one in row["labels"] if one != -100]))


def found(rows: Sequence[Row]) -> Layout:
    layout = recognise(rows)
    assert layout is not None
    return layout


def test_the_documents_have_an_example_of_each_name_that_is_looked_for_here() -> None:
    names = [case.name for case in CASES]
    assert len(names) > 25
    assert set(TRAINED) <= {*names}


@pytest.mark.parametrize("case", [marked(case) for case in CASES])
def test_each_example_of_the_documents_is_recognised_and_trains_its_answers(
    case: Case, answers: Answers
) -> None:
    layout = found(case.rows)
    assert (layout.typed, layout.code) == (case.typed, case.code)
    assert shlex.split(layout.typed) == list(layout.words)
    assert answers(case.rows, layout) == TRAINED.get(case.name, [NORWAY])
