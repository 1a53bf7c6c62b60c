"""What people see while a sweep runs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from sftpipe.sweeps import board
from sftpipe.sweeps.board import Board
from sftpipe.sweeps.processes import Running, Slot, Work, last_step, why


class Ended:
    """A process that is over."""

    reason, job_id = "", None

    def poll(self) -> int | None:
        return 0

    def wait(self, seconds: float) -> None:
        pass

    def send(self, number: int) -> None:
        pass


def running(log: Path, text: str = "", earlier: str = "", code: int | None = None) -> Running:
    log.write_text(earlier + text)
    work = Work("r-8", log.parent, log)
    return Running(work, Slot(1), Ended(), 0.0, len(earlier.encode()), code=code)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, highlight=False, width=100)
    monkeypatch.setattr(board, "console", console)
    return shown


def test_a_terminal_shows_what_runs_and_keeps_what_ended(
    terminal: io.StringIO, tmp_path: Path
) -> None:
    job = running(tmp_path / "r-8.log", "data 48\nstep 2/40  loss 1.500  9 tokens/s\n")
    table = Board(2)
    with table.shown():
        table.update([job])
        table.ended("r-8", "done", "validation.loss 1.0000")
    shown = terminal.getvalue()
    assert "2/40" in shown
    assert "loss 1.500" in shown
    assert "job 1/2   r-8 done  validation.loss 1.0000" in shown


def test_the_step_is_that_of_this_attempt(tmp_path: Path) -> None:
    earlier = "step 30/40  loss 1.000\n"
    assert last_step(running(tmp_path / "log", "data 48\n", earlier)) is None
    found = last_step(running(tmp_path / "log", "step 31/40  loss 0.9\nends\n", earlier))
    assert found == (31, 40, "loss 0.9")


@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [
        ("x\nerror\n  train[3]: empty\n    fix the row\n", 2, "train[3]: empty"),
        ("2 errors\n  lora.r: 0\n  seed: x\n", 2, "lora.r: 0"),
        ("Traceback (most recent call last):\n  ...\nKeyError: 'x'\n", 1, "KeyError: 'x'"),
        ("", 1, "exit code 1, without a word"),
        ("step 2/4  loss 1.0\n", -9, "its process was ended by SIGKILL; was memory short?"),
        ("step 2/4  loss 1.0\n", -11, "its process was ended by SIGSEGV"),
    ],
)
def test_why_a_job_failed_is_one_line(said: str, code: int, reason: str, tmp_path: Path) -> None:
    earlier = "error\n  of an earlier attempt: bad\n"
    assert why(running(tmp_path / "log", said, earlier, code)) == reason
