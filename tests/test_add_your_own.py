"""README, "Add your own": the steps that it names are all that is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def insert(file: Path, before: str, text: str) -> None:
    """Put a text before the one place of a file that holds another."""
    content = file.read_text(encoding="utf-8")
    assert content.count(before) == 1, before
    file.write_text(content.replace(before, text + before), encoding="utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository of one's own."""
    for name in ("src", "conf", "recipes"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=ignored)
    return tmp_path


def check(copy: Path, *words: str) -> dict[str, object]:
    """The report of `sftpipe check` in that repository."""
    done = subprocess.run(
        [sys.executable, "-m", "sftpipe", "check", "--json", *words],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy / "src")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_a_format_a_data_set_a_model_a_recipe_and_a_packing_option(
    copy: Path, tiny_model: Path
) -> None:
    conf = copy / "conf"
    rows = [{"frage": f"{number} + 1?", "antwort": str(number + 1)} for number in range(8)]
    (copy / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    # a format: a function and its line, a row of facts, an option
    formats = copy / "src/sftpipe/data/formats.py"
    insert(
        formats,
        "def _text_only(",
        "def _frage(row: Row, cfg: FormatConfig, where: str, clean: Clean) -> PromptCompletion:\n"
        '    """A question and its answer."""\n'
        '    question = read_text(row, "frage", where, clean)\n'
        '    answer = read_text(row, "antwort", where, clean)\n'
        '    return PromptCompletion(f"Frage: {question}\\nAntwort:", f" {answer}")\n\n\n',
    )
    insert(formats, '    "text": _text_only,\n', '    "frage": _frage,\n')
    insert(
        copy / "src/sftpipe/config/schema.py",
        '    "text": FormatFacts(',
        '    "frage": FormatFacts("prompt_completion", columns=("frage", "antwort")),\n',
    )
    (conf / "format/frage.yaml").write_text("# A question and its answer.\ntype: frage\n", "utf-8")

    # a data set, a model, a packing option, a recipe: a file each
    (conf / "dataset/mine.yaml").write_text(
        "# My rows.\npath: json\ndata_files: rows.jsonl\nvalidation_size: 2\n", "utf-8"
    )
    (conf / "model/mine.yaml").write_text(f"# My model.\nname_or_path: {tiny_model}\n", "utf-8")
    (conf / "packing/mine.yaml").write_text(
        "# Pack validation too.\nstrategy: bfd\npack_eval: true\n", "utf-8"
    )
    (copy / "recipes/mine.yaml").write_text(
        "# @package _global_\n# My recipe.\ndefaults:\n  - override /model: mine\n"
        "  - override /dataset: mine\n  - override /format: frage\n  - override /packing: mine\n"
        "sft: {max_length: 64}\n",
        "utf-8",
    )

    report = check(copy, "recipe=mine")
    assert report["packing"]["rows"] == {"train": [6, 2], "validation": [2, 1]}  # type: ignore[index]
    assert report["end_tokens"] == {"<|im_end|>": 8}
    listed = subprocess.run(
        [sys.executable, "-m", "sftpipe", "list", "format"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy / "src")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "A question and its answer." in listed.stdout
