"""The task in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sftpipe.bench import epoch, train


def test_what_trainers_print_is_kept_apart_from_the_line_of_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(implementation: str, rows: int, folder: Path) -> dict[str, Any]:
        print("{'loss': '2.5'}")
        return {"implementation": implementation, "rows": rows, "empty": not list(folder.iterdir())}

    monkeypatch.setattr(epoch, "trained", trained)
    assert epoch.main(["trl", "--rows", "16"]) == 0

    said = capsys.readouterr()
    assert json.loads(said.out) == {"implementation": "trl", "rows": 16, "empty": True}
    assert said.err == "{'loss': '2.5'}\n"


@pytest.mark.slow
def test_sftpipe_and_trl_train_the_same_to_the_same_losses() -> None:
    ours, theirs = (train._epoch(name, 16) for name in ("sftpipe", "trl"))

    assert len(ours["losses"]) == 2
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-3)
    assert ours["losses"][1] < ours["losses"][0]
    same = ("tokens", "trained_tokens", "sha256")
    assert [ours[name] for name in same] == [theirs[name] for name in same]
    for told in (ours, theirs):
        assert told["seconds"] > 0
        assert 2**30 < told["peak_bytes"] < 2**33  # bytes, and of a model in float32
