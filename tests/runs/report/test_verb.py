"""`sftpipe report`, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sftpipe.cli import main
from support.disks import remount, small_disk
from support.run_folders import write_run


def test_one_run_is_a_sentence_and_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    assert main(["report", f"run={run}"]) == 0
    sentence, page = capsys.readouterr().out.splitlines()
    assert sentence.startswith("SmolLM2-135M-Instruct was fine-tuned")
    assert page == f"{run}/report.html"
    assert Path(page).is_file()


def test_several_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", "lora.r=8")
    for text in (f"{a},{b}", f"[{a}, {b}]"):
        (a / "comparison.html").unlink(missing_ok=True)
        assert main(["report", f"run={text}", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["runs"] == {"a": str(a), "b": str(b)}
        assert (a / "comparison.html").is_file()
    assert main(["report", f"run={a},{b}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{a}/comparison.html"


def test_a_name_may_hold_a_comma(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "lora.r=8,sft.lr=1")
    assert main(["report", f"run={run}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == []


def test_watching_a_run_that_is_over_ends_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    assert main(["report", f"run={run}", "--watch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "complete"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "run: not set: which run?"),
        (["run="], "run: empty: which run?"),
        (["run={run}", "--wach"], "--wach: report takes no such word"),
        (["run={run}", "lora.r=8"], "lora.r=8: report takes no such word"),
        (["run={run},{run}", "--watch"], "--watch: several runs"),
        (["run={run}x"], "run={run}x: no such folder"),
        (["run={run},{run}"], "one run twice"),
    ],
)
def test_what_it_does_not_take_is_refused(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    assert main(["report", *(word.format(run=run) for word in words)]) == 2
    said = capsys.readouterr()
    assert told.format(run=run) in said.err
    assert said.out == ""


def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        run = write_run(disk / "run")
        remount(disk, "ro")
        assert main(["report", f"run={run}"]) == 2
    said = capsys.readouterr().err
    assert "report.html" in said
    assert "Read-only file system" in said
