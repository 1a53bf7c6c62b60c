"""A conversation with a run: on a real pseudo-terminal, and through a pipe."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runs.test_generate import by_hand, chat
from sftpipe.cli import main
from sftpipe.runs.load import Run
from sftpipe.terminal import printable

Copy = Callable[..., Run]
Piped = Callable[..., tuple[str, str]]


def command(run: Run, *words: str) -> list[str]:
    return [sys.executable, "-m", "sftpipe", "chat", f"run={run.dir}", *words]


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Piped:
    """Say these lines in this process: (stdout, stderr)."""

    def talk(run: Run, lines: str, *words: str) -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        capsys.readouterr()
        assert main(["chat", f"run={run.dir}", *words]) == 0
        said = capsys.readouterr()
        return said.out, said.err

    return talk


@pytest.mark.slow
def test_a_real_pipe_is_read_line_by_line(copy_run: Copy) -> None:
    run = copy_run()
    expected = by_hand(run, chat(run.tokenizer, "오늘은?"))[0]
    done = subprocess.run(
        command(run), input="오늘은?\n", capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout == f"{printable(expected)}\n"


def test_lines_of_a_pipe_are_answered_with_what_was_said_before(
    copy_run: Copy, tmp_path: Path, piped: Piped
) -> None:
    run = copy_run()
    saved = tmp_path / "talk.jsonl"
    first, second = "오늘 날씨는 어때?", "And now?"
    said = by_hand(run, chat(run.tokenizer, first))[0]
    both = by_hand(run, chat(run.tokenizer, first, said, second))[0]
    alone = by_hand(run, chat(run.tokenizer, second))[0]
    assert alone != both
    lines = f"{first}\n\n{second}\n/save {saved}\n/reset\n{second}\n/quit\nnever read\n"
    out, _ = piped(run, lines)
    assert out.split("\n") == [*map(printable, (said, both, alone)), ""]
    assert json.loads(saved.read_text(encoding="utf-8")) == {
        "messages": [
            {"role": "user", "content": first},
            {"role": "assistant", "content": said},
            {"role": "user", "content": second},
            {"role": "assistant", "content": both},
        ]
    }


def test_the_base_answers_beside_the_run_and_commands_change_how(
    copy_run: Copy, piped: Piped
) -> None:
    run = copy_run()
    prompt = chat(run.tokenizer, "Hi.")
    (ours,), (theirs,) = by_hand(run, prompt), by_hand(run.base, prompt)
    lines = "Hi.\n/params max_new_tokens=2\n/reset\nHi.\n/parms x\n/params top_p=7\n/save\nAnd?\n"
    text, err = piped(run, lines, "generate.base=true")
    out = text.split("\n")
    assert out[:2] == [f"run   {printable(ours)}", f"base  {printable(theirs)}"]
    short = by_hand(run, prompt, tokens=2)[0]
    assert out[2] == f"run   {printable(short)}"
    # both are told what the run said
    both = by_hand(run, chat(run.tokenizer, "Hi.", short, "And?"), tokens=2)[0]
    assert out[4] == f"run   {printable(both)}"
    assert "max_new_tokens=2" in err
    assert "did you mean /params?" in err
    assert "generate.top_p" in err
    assert "/save chat.jsonl" in err


def test_a_system_turn_begins_the_conversation_anew(copy_run: Copy, piped: Piped) -> None:
    run = copy_run()
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    text = run.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = run.tokenizer(text, add_special_tokens=False).input_ids
    out, _ = piped(run, "Ho.\n/system Be brief.\nHi.\n")
    assert out.split("\n")[1] == printable(by_hand(run, ids)[0])


# --- a terminal -----------------------------------------------------------------------------------


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, words: list[str]) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(words[0], words)
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, pattern: str, after: int = 0, timeout_s: float = 120) -> int:
        """Read until a pattern stands after a place; returns where it ends."""
        until = time.monotonic() + timeout_s
        while not (found := re.compile(pattern).search(self.text, after)):
            assert time.monotonic() < until, self.text[after:]
            self.read()
        return found.end()

    def read(self) -> bool:
        """Take what has come; False at the end of the command."""
        ready, _, _ = select.select([self._fd], [], [], 0.1)
        if not ready:
            return True
        try:
            piece = os.read(self._fd, 4096)
        except OSError:
            return False
        self.text += piece.decode("utf-8", errors="replace")
        return bool(piece)

    def end(self) -> int:
        while self.read():
            pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self._fd)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def terminal(copy_run: Copy) -> Iterator[Terminal]:
    long = ["generate.min_new_tokens=1500", "generate.max_new_tokens=1600"]
    made = Terminal(command(copy_run(), *long))
    yield made
    if made.pid:
        os.kill(made.pid, signal.SIGKILL)
        made.end()


@pytest.mark.slow
def test_a_conversation_on_a_terminal(copy_run: Copy, terminal: Terminal) -> None:
    run = copy_run()
    at = terminal.wait_for("> ")
    terminal.type("/params min_new_tokens=3 max_new_tokens=3\n")
    at = terminal.wait_for("max_new_tokens=3", at)
    terminal.type("오늘은?\n")
    (expected,) = by_hand(run, chat(run.tokenizer, "오늘은?"), tokens=3)
    at = terminal.wait_for(re.escape(printable(expected).split("\n")[0].strip()), at)
    at = terminal.wait_for("> ", at)
    terminal.type("/reset\n")
    at = terminal.wait_for("forgotten", at)
    terminal.type("/quit\n")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text


@pytest.mark.slow
def test_ctrl_c_ends_an_answer_and_not_the_program(terminal: Terminal) -> None:
    at = terminal.wait_for("> ")
    terminal.type("Tell me everything.\n")
    at = terminal.wait_for(r"everything\.\r\n\S", at)  # the first piece is there
    os.kill(terminal.pid, signal.SIGINT)
    at = terminal.wait_for(r"\[stopped\]", at)
    at = terminal.wait_for("> ", at)
    terminal.type("\x04")  # the end of the input
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text
