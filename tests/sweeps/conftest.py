from __future__ import annotations

from pathlib import Path

import pytest

from support.sweeping import Sweeps


@pytest.fixture
def train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Sweeps:
    """Sweeps in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Sweeps(monkeypatch, capsys)
