"""One batch, forward and backward."""

from __future__ import annotations

import pytest

from sftpipe.bench import step


@pytest.mark.slow
def test_the_ratio_is_their_seconds_by_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "ROUNDS", 1)
    measured = step.step()
    ratio = measured["trl_s"] / measured["sftpipe_s"]
    assert measured["trl / sftpipe"] == pytest.approx(ratio, rel=0.02)
