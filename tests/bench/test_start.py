"""Short commands as whole processes."""

from __future__ import annotations

import sys

import pytest

from sftpipe.bench import start


def test_their_command_is_divided_by_each_of_ours() -> None:
    median = {"sftpipe --help": 0.5, "sftpipe config recipe=yoda": 2.0, "trl sft --help": 6.0}
    assert start._against_theirs(median) == {
        "sftpipe --help, s": 0.5,
        "sftpipe config recipe=yoda, s": 2,
        "trl sft --help, s": 6,
        "trl sft --help / sftpipe --help": 12,
        "trl sft --help / sftpipe config recipe=yoda": 3,
    }


def test_a_command_that_fails_is_not_measured() -> None:
    start._run([sys.executable, "-S", "-c", ""])
    with pytest.raises(RuntimeError, match="no such thing"):
        start._run([sys.executable, "-S", "-c", "raise SystemExit('no such thing')"])
