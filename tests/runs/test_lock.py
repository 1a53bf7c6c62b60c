"""One process a run folder, whatever became of the last one."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sftpipe.errors import RunError
from sftpipe.runs import lock
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.lock import forget, held, holder
from support.errors import Pin, places, refused

HOLD = """
import sys, time
from pathlib import Path
from sftpipe.errors import RunError
from sftpipe.runs.lock import held
try:
    with held(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except RunError as error:
    print(f"refused: {error}", flush=True)
"""


@contextmanager
def holding(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A second process that holds the lock of a folder, or is refused; and what it says."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def enter(folder: Path) -> None:
    with held(folder):
        pass


def test_a_second_process_is_refused_and_told_who_has_the_run(
    tmp_path: Path, golden_error: Pin
) -> None:
    run = tmp_path / "run"
    with holding(run) as (process, said):
        assert said == "held\n"
        who = json.loads((run / ".lock").read_text())
        assert (who["host"], who["pid"]) == (platform.node(), process.pid)
        error = refused(RunError, lambda: enter(run))
        assert places(error) == [str(run)]
        assert error.problems == (holder(run),)
        text = str(error).replace(str(process.pid), "<pid>").replace(who["started"], "<time>")
        golden_error(text.replace(platform.node(), "<host>"))
        with holding(run) as (_, third):
            assert third.startswith("refused: ")
    assert holder(run) is None


def test_a_killed_process_is_in_nobodys_way(tmp_path: Path) -> None:
    with holding(tmp_path) as (process, _):
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / ".lock").is_file()
        assert holder(tmp_path) is None
        with held(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock").exists()


def test_the_file_says_who_holds_it_with_a_heartbeat_and_is_removed_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.01)
    file = RunFolder(tmp_path).lock
    with held(tmp_path):
        os.utime(file, (1, 1))
        until = time.monotonic() + 5
        while file.stat().st_mtime < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_the_lock_made_goes_with_it_where_nothing_was_written(
    tmp_path: Path,
) -> None:
    enter(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    enter(tmp_path / "old")
    assert (tmp_path / "old").is_dir()


@pytest.mark.parametrize(("silent_s", "told"), [(5, "trains this run"), (600, "silent for 10 m")])
def test_a_process_of_another_machine_is_seen_by_its_heartbeat(
    silent_s: float, told: str, tmp_path: Path, golden_error: Pin
) -> None:
    """A shared file system may have no locks between machines."""
    who = {"host": "node-7", "pid": 12, "started": "2026-01-02T03:04:05+00:00"}
    file = tmp_path / ".lock"
    file.write_text(json.dumps(who))
    beat = time.time() - silent_s
    os.utime(file, (beat, beat))

    error = refused(RunError, lambda: enter(tmp_path))
    assert told in error.problems[0].found
    assert json.loads(file.read_text()) == who
    golden_error(error, f"{silent_s}")


def test_the_lock_of_a_machine_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    file.write_text(json.dumps({"host": "node-7", "pid": 12, "started": "2026-01-02T03:04:05"}))
    forget(tmp_path)
    assert not file.exists()

    forget(tmp_path)  # there is none
    file.write_text(json.dumps({"host": platform.node(), "pid": 12}))
    forget(tmp_path)
    assert file.exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", json.dumps({"host": platform.node()})])
def test_a_file_that_says_nothing_and_is_not_held_is_taken_over(
    content: str, tmp_path: Path
) -> None:
    (tmp_path / ".lock").write_text(content)
    enter(tmp_path)


def test_of_many_that_start_at_once_one_trains(tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(run)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    said = []
    for process in processes:
        assert process.stdout is not None
        said.append(process.stdout.readline())
    for process in processes:
        process.communicate()
    assert sorted(line.split(":")[0].strip() for line in said) == ["held", *["refused"] * 3]
