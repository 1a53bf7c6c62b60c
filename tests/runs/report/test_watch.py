"""A page that is written again while its run trains."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sftpipe.runs.report import watch as watching
from sftpipe.runs.report.watch import watch
from support.run_folders import LOG, write_run

BEGUN: dict[str, Any] = {"complete": False, "metrics": None, "evaluation": None, "judge": None}
# holds the lock of a run; with each line that it is told, it logs a step, and at the end it ends
TRAINS = """
import json, sys
from pathlib import Path
from sftpipe.runs.lock import held
run = Path(sys.argv[1])
with held(run):
    print("held", flush=True)
    for line in sys.stdin:
        with (run / "log.jsonl").open("a") as file:
            file.write(json.dumps({"loss": 0.5, "step": 77, "epoch": 3.0}) + chr(10))
        print("logged", flush=True)
"""


@contextmanager
def training(run: Path) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", TRAINS, str(run)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert _line(process) == "held"
        yield process


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


class Clock:
    """Time in which something happens while it passes."""

    def __init__(self, *happens: Any) -> None:
        self.happens = iter(happens)

    def sleep(self, seconds: float) -> None:
        next(self.happens)(seconds)

    def strftime(self, text: str) -> str:
        return "12:00:00"


def test_the_page_follows_a_run_until_it_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", log=LOG[:2], **BEGUN)
    pages: list[str] = []

    with training(run) as process:

        def log_a_step(seconds: float) -> None:
            assert seconds == 7
            pages.append((run / "report.html").read_text())
            assert process.stdin is not None
            process.stdin.write("log\n")
            process.stdin.flush()
            assert _line(process) == "logged"

        def end(_: float) -> None:
            pages.append((run / "report.html").read_text())
            process.communicate()

        monkeypatch.setattr(watching, "time", Clock(log_a_step, end))
        result = watch(run, every_s=7)

    assert result["state"] == "stopped"
    assert all('<meta http-equiv="refresh" content="7">' in page for page in pages)
    assert ["step 77" in page for page in pages] == [False, True]
    assert "refresh" not in (run / "report.html").read_text()
    lines = capsys.readouterr().err.splitlines()
    assert ["step 77" in line for line in lines] == [False, True]


def test_a_run_that_is_over_is_written_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    assert watch(run)["state"] == "complete"
    assert capsys.readouterr().err == ""
    assert (run / "report.html").is_file()


def test_ctrl_c_ends_the_watching_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: float) -> None:
        raise KeyboardInterrupt

    run = write_run(tmp_path / "run", **BEGUN)
    monkeypatch.setattr(watching, "time", Clock(stop))
    with training(run):
        assert watch(run)["state"] == "running"
    assert "stopped looking; the run goes on" in capsys.readouterr().err
    assert "refresh" not in (run / "report.html").read_text()
