"""The records of a sweep, as they are read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sftpipe.errors import RunError
from sftpipe.runs.lock import held
from sftpipe.sweeps.folder import KILLED, RUNNING, JobRecord, SweepFolder, SweepRecord
from support.errors import Pin, places, refused

RECORD = JobRecord("r-4", ("recipe=yoda", "lora.r=4"), {"lora.r": "4"}, RUNNING)


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    sweep, asked = SweepFolder(tmp_path / "sweep"), SweepRecord(("seed=1,2",), "train.loss", "min")
    done = replace(RECORD, state="failed", error="x", seconds=1.5, threads=2, gpu="0", trial=3)

    sweep.write(asked)
    sweep.write_job(done)

    assert sweep.read() == asked
    assert list(sweep.jobs()) == [done]


def test_a_job_whose_parent_was_killed_is_no_longer_running(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path)
    sweep.write_job(RECORD)
    assert [job.state for job in sweep.jobs()] == [KILLED]


def test_a_finished_run_is_done_whatever_its_record_says(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path)
    sweep.write_job(RECORD)
    (tmp_path / "r-4").mkdir()
    (tmp_path / "r-4/COMPLETE").write_text("now\n")
    assert [job.state for job in sweep.jobs()] == ["done"]


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_record_is_an_error(content: str, tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path)
    (tmp_path / "jobs").mkdir()
    for file in (sweep.record, sweep.job("r-4")):
        file.write_text(content)
    assert places(refused(RunError, sweep.read)) == [str(sweep.record)]
    assert places(refused(RunError, lambda: list(sweep.jobs()))) == [str(sweep.job("r-4"))]


def test_a_folder_that_is_no_sweep_is_told(tmp_path: Path, golden_error: Pin) -> None:
    golden_error(refused(RunError, SweepFolder(tmp_path).read))


def test_the_lock_of_a_sweep_is_told_as_such(tmp_path: Path) -> None:
    with held(tmp_path, "this sweep"):
        assert (tmp_path / ".lock").is_file()
    assert not (tmp_path / ".lock").exists()
