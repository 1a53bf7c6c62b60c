"""Sweeps of tests, whose jobs end at once (fake_worker.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sftpipe.cli import main
from sftpipe.data.source import fingerprint
from sftpipe.sweeps import processes, sweep
from support.configs import compose

FAKE = str(Path(__file__).with_name("fake_worker.py"))


@dataclass(frozen=True)
class Swept:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """The JSON lines on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


class Sweeps:
    """Types commands, in this process, with workers that train nothing."""

    def __init__(self, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = patch, capsys
        patch.setattr(processes, "WORKER", [FAKE])
        patch.setattr(sweep, "can_fork", lambda: False)
        patch.setattr(processes, "_LOOK_S", 0.01)  # for workers that live 50 ms
        patch.setenv("FAKE_DATA", fingerprint(compose(["recipe=yoda"]).dataset))
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")

    def ends(self, **jobs: str) -> None:
        """How the job of a seed ends: `ends(s3="fails")`."""
        self._patch.setenv("FAKE_JOBS", json.dumps({key[1:]: how for key, how in jobs.items()}))

    def __call__(self, *words: str) -> Swept:
        """`sftpipe train WORDS`."""
        self._capsys.readouterr()
        code = main(["train", *words])
        captured = self._capsys.readouterr()
        return Swept(code, captured.out, captured.err)


Train = Callable[..., Swept]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of results.json."""
    return list(json.loads((folder / "results.json").read_text())["jobs"])


def states(folder: Path) -> dict[str, str]:
    """{job: state} of a sweep."""
    return {row["job"]: row["state"] for row in rows_of(folder)}
