"""docs/sources.md: every step of the sources has a command, and every command composes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sftpipe.config.hydra import compose
from sftpipe.config.patterns import pattern_fields

PAGE = Path(__file__).parents[1] / "docs" / "sources.md"
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| there |"))
]
COMMANDS = [
    command.replace("\\|", "|")
    for row in ROWS
    for command in re.findall(r"`(sftpipe [^`]+)`", row[1])
]


def test_each_row_says_what_there_was_the_command_for_it_and_why() -> None:
    assert len(ROWS) > 30
    for row in ROWS:
        assert len(row) == 3
        assert all(row), row
        assert "`sftpipe " in row[1], row


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_each_command_composes(command: str) -> None:
    _, verb, *overrides = shlex.split(command)

    cfg = compose(overrides)

    assert verb in ("train", "check", "preview", "config")
    for pattern in (cfg.format.prompt, cfg.format.completion):
        assert pattern is None or pattern_fields(pattern)
