"""Two processes against one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sftpipe.bench import ddp
from support.configs import compose


def test_both_ways_take_the_same_batches_and_the_same_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: dict[int, set[int]] = {1: set(), 2: set()}

    def run(command: list[str], env: dict[str, str], **_: Any) -> Any:
        cfg = compose(command[4:])
        processes = cfg.distributed.num_processes if cfg.distributed else 1
        assert processes is not None
        assert processes * cfg.sft["per_device_train_batch_size"] == 8
        threads[processes].add(int(env["OMP_NUM_THREADS"]))
        told = {"tokens_per_s": 60.0 * processes, "loss": 2.0, "peak_memory_bytes": 2**20}
        folder = Path(str(cfg.run))
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps({"train": told}))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(ddp.subprocess, "run", run)
    table = ddp.ddp()

    assert threads == {1: {2}, 2: {1}}
    assert table["two processes / one"] == 2.0
    assert table["losses apart by"] == "0.0e+00"
    assert table["one process, tokens/s"] == 60
    assert table["two processes, peak MiB each"] == 1
