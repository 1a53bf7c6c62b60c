"""Sweeps of one job and of four."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from sftpipe.bench import sweep


def test_one_more_job_is_a_third_of_what_three_more_cost() -> None:
    assert sweep._one_more({"alone": 10.0, "one job": 12.0, "four jobs": 18.0}) == {
        "a run as a command of its own, s": 10,
        "one more job of a sweep, s": 2,
        "alone / one more job": 5,
    }


def test_no_job_is_trained_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(sweep.subprocess, "run", run)
    sweep.sweep(rounds=1)

    seeds = [
        word.removeprefix("seed=").split(",")
        for command in commands
        for word in command
        if word.startswith("seed=")
    ]
    assert [len(some) for some in seeds] == [1, 1, 4] * 2
    assert ["-m" in command[3:] for command in commands] == [False, True, True] * 2
    assert len({seed for some in seeds for seed in some}) == 12
