"""What a report reads of a run folder, whole, unfinished, torn or old."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sftpipe.errors import RunError
from sftpipe.runs.lock import held
from sftpipe.runs.report.found import find
from support.errors import refused
from support.run_folders import EVALUATION, LOG, METRICS, SAMPLES, write_run

OLD = Path(__file__).parents[2] / "fixtures" / "run_0_1_0"


def test_all_of_a_whole_run_is_read(tmp_path: Path) -> None:
    found = find(write_run(tmp_path / "run"))
    assert (found.state, found.missing, found.name) == ("complete", [], "yoda")
    assert (found.metrics, found.evaluation) == (METRICS, EVALUATION)
    assert (found.log, found.samples) == (LOG, SAMPLES)
    assert len(found.responses) == len(found.base_responses) == 12
    assert found.config["lora"]["r"] == 16


@pytest.mark.parametrize("name", ["full", "interrupted"])
def test_a_run_of_0_1_0_lacks_nothing(name: str) -> None:
    found = find(OLD / name)
    assert found.missing == []
    assert found.state == ("complete" if name == "full" else "stopped")
    assert found.config["evaluation"]["verdict"]  # a key of today, with its default


def test_a_run_is_running_while_a_process_holds_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", complete=False, metrics=None, evaluation=None, judge=None)
    assert find(run).state == "stopped"
    code = (
        "import sys, time; from pathlib import Path; from sftpipe.runs.lock import held\n"
        f"with held(Path({str(run)!r})): print('held', flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert find(run).state == "running"
        process.kill()
    assert find(run).missing == []  # what an unfinished run does not have is not missed


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("metrics.json", None, "metrics.json is missing"),
        ("metrics.json", '{"train": {"lo', "metrics.json is damaged"),
        ("evaluation.json", "[1]", "evaluation.json is damaged"),
        ("preflight.json", "", "preflight.json is damaged"),
        ("config.yaml", "a: [", "config.yaml is damaged"),
        ("config.yaml", "- a", "config.yaml is damaged"),
        ("manifest.json", None, "manifest.json is missing"),
        ("responses.json", "[1, 2]", "responses.json is damaged"),
        ("log.jsonl", None, "log.jsonl is missing"),
        ("log.jsonl", '{"step": 1}\n{"st', "1 line of log.jsonl cannot be read, and left out"),
        ("samples.jsonl", "1\n2\n", "2 lines of samples.jsonl cannot be read, and left out"),
        ("judge.json", "[" * 100_000, "judge.json is damaged"),
    ],
)
def test_a_torn_or_missing_file_is_named(
    file: str, text: str | None, told: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run")
    (run / file).unlink() if text is None else (run / file).write_text(text)
    assert find(run).missing == [told]


def test_bytes_that_are_no_text_are_a_damaged_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "metrics.json").write_bytes(b'{"a": "\xff"}')
    assert find(run).missing == ["metrics.json is damaged"]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    error = refused(RunError, lambda: find(tmp_path))
    assert "no run of sftpipe" in error.problems[0].found
    error = refused(RunError, lambda: find(tmp_path / "nothing"))
    assert "no such folder" in error.problems[0].found


def test_a_folder_of_runs_says_how_they_are_compared(tmp_path: Path) -> None:
    for name in ("0", "1"):
        write_run(tmp_path / name)
    error = refused(RunError, lambda: find(tmp_path))
    assert error.problems[0].found == "a folder of 2 runs: 0, 1"
    assert error.problems[0].commands == (f"sftpipe report run={tmp_path}/0,{tmp_path}/1",)


def test_the_state_that_the_training_process_knows_is_taken(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", complete=False)
    with held(run):
        assert find(run, "complete").state == "complete"


def test_lines_are_separated_by_line_feeds_alone(tmp_path: Path) -> None:
    row = {"phase": "after", "prompt": "a\u2028b\x85c", "completion": "", "step": 1}
    run = write_run(tmp_path / "run")
    (run / "samples.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    assert find(run).samples == [row]
