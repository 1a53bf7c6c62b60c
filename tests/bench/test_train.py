"""The table of part train, from what processes told."""

from __future__ import annotations

from typing import Any

import pytest

from sftpipe.bench import train


def told(
    seconds: float, peak_mib: int, losses: list[float], sha256: str = "same"
) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "losses": losses,
        "tokens": 7200,
        "trained_tokens": 3300,
        "sha256": sha256,
        "peak_bytes": peak_mib * 2**20,
    }


OURS = [told(10, 1000, [2.0, 1.0]), told(14, 1100, [2.0, 1.0])]
THEIRS = [told(24, 2000, [2.0, 1.0005]), told(24, 2200, [2.0, 1.0005])]
PEERS = [told(36, 3000, [2.0, 1.1], "other"), told(36, 3000, [2.0, 1.1], "other")]


def test_ratios_are_of_the_medians_and_above_1_where_sftpipe_is_faster() -> None:
    assert train._measured({"sftpipe": OURS, "trl": THEIRS, "llama-factory": PEERS}) == {
        "sftpipe, s": 12,
        "sftpipe, rows/s": 16,
        "sftpipe, tokens/s": 600,
        "sftpipe, peak MiB": 1050,
        "trl, s": 24,
        "trl, rows/s": 8,
        "trl, tokens/s": 300,
        "trl, peak MiB": 2100,
        "llama-factory, s": 36,
        "llama-factory, rows/s": 5.33,
        "llama-factory, tokens/s": 200,
        "llama-factory, peak MiB": 3000,
        "sftpipe / trl": 2,
        "sftpipe / llama-factory": 3,
        "peak memory sftpipe / trl": 0.5,
    }


def test_other_rows_and_other_losses_are_told() -> None:
    assert train._same_work({"sftpipe": OURS, "trl": THEIRS}) == {
        "tokens": "7200, 3300 of them trained",
        "same ids and labels": "yes",
        "losses of 2 steps, trl": "apart by 5.0e-04 at most, within 0.001",
    }
    found = train._same_work({"sftpipe": OURS, "trl": THEIRS, "llama-factory": PEERS})
    assert found["same ids and labels"] == "NOT of llama-factory"
    assert found["losses of 2 steps, llama-factory"] == "apart by 9.1e-02 at most, NOT within 0.001"


def test_losses_of_another_number_of_steps_are_not_compared() -> None:
    with pytest.raises(ValueError, match="shorter"):
        train._close("trl", {"sftpipe": told(1, 1, [2.0, 1.0]), "trl": told(1, 1, [2.0])})


@pytest.mark.parametrize("python", [None, "venv/bin/python"])
def test_each_trains_twice_in_turns_and_then_more_steps(
    python: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    went: list[tuple[str, int]] = []

    def epoch(implementation: str, rows: int) -> dict[str, Any]:
        went.append((implementation, rows))
        return told(12, 1000, [2.0] * (rows // 8))

    monkeypatch.setattr(train, "_epoch", epoch)
    monkeypatch.setattr(train, "_by_peer", lambda path, rows: epoch(f"peer {path}", rows))
    monkeypatch.setattr(train, "version", lambda path: "0.9.5")
    table = train.train(python)

    peer = [(f"peer {python}", 192)] if python else []
    turn = [("sftpipe", 192), ("trl", 192), *peer]
    assert went == [*turn, *turn, ("sftpipe", 400), ("trl", 400)]
    assert table["llama-factory"].startswith("0.9.5" if python else "skipped: --peer-python PATH")
    assert ("sftpipe / llama-factory" in table) is bool(python)
    assert table["losses of 50 steps, trl"] == "apart by 0.0e+00 at most, within 0.001"


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="invalid choice: 'axolotl'"):
        train._epoch("axolotl", 16)
