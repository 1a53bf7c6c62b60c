"""Whole runs on a disk that is too small, that becomes read-only, or that loses the run folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.disks import remount, small_disk

pytestmark = pytest.mark.slow


def words(tiny_model: Path, run: Path | str) -> list[str]:
    """All 3.3 million weights are trained: a checkpoint has 42 MB."""
    return [
        "recipe=yoda",
        "model=custom",
        f"model.name_or_path={tiny_model}",
        "quantization=none",
        "lora=none",
        "dataset.limit=24",
        "evaluation.max_new_tokens=2",
        "sft.per_device_train_batch_size=4",
        "sft.save_steps=2",
        "sft.save_total_limit=1",
        f"run={run}",
    ]


def weights_of(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def test_a_run_goes_on_to_the_same_bits_after_room_is_made(
    cli: Any, tiny_model: Path, tmp_path: Path
) -> None:
    """There is room for one checkpoint, and the second is written before the first is removed."""
    assert cli("train", *words(tiny_model, "whole")).returncode == 0
    with small_disk(tmp_path / "disk", 60) as disk:
        run = disk / "run"
        full = cli("train", *words(tiny_model, run))
        assert full.returncode == 2, full.stderr
        assert "Traceback" not in full.stderr
        said = full.stderr.rpartition("error\n")[2]
        assert said.startswith(f"  {run}/checkpoint-4: No space left on device: about ")
        needed, free = map(float, re.findall(r"([\d.]+) MB", said))
        assert 38 < needed < 40
        assert 15 < free < 25
        assert [path.name for path in run.glob("*checkpoint*")] == ["checkpoint-2"]
        remount(disk, "size=200m")
        again = cli("train", *words(tiny_model, run), "sft.resume_from_checkpoint=auto")
        assert again.returncode == 0, again.stderr
        assert weights_of(run) == weights_of(tmp_path / "whole")


def test_a_cache_without_room_is_named(cli: Any, tiny_model: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        rows = tmp_path / "rows.jsonl"
        rows.write_text(
            "".join(f'{{"instruction": "{n} {"a" * 500}", "output": "b"}}\n' for n in range(9000))
        )
        done = cli(
            "check",
            "dataset=json",
            f"dataset.data_files={rows}",
            "model=custom",
            f"model.name_or_path={tiny_model}",
            SFTPIPE_CACHE=str(disk),
        )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert f"{disk}/rows/" in done.stderr
    assert "No space left on device" in done.stderr
    assert "SFTPIPE_CACHE=DIR" in done.stderr


def begun(tiny_model: Path, run: Path) -> subprocess.Popen[str]:
    """A run that has written its first checkpoint, and has many steps before it."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "sftpipe", "train"),
            *words(tiny_model, run),
            "sft.num_train_epochs=2000",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(run.glob("checkpoint-*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    return process


def test_a_disk_that_is_read_only_is_told_before_anything_is_loaded(
    cli: Any, tiny_model: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 10) as disk:
        remount(disk, "ro")
        done = cli("train", *words(tiny_model, disk / "run"))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "Read-only file system" in done.stderr
    assert "weights" not in done.stderr


def test_a_run_whose_folder_is_deleted_ends_with_one_message(
    tiny_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = begun(tiny_model, run)
    shutil.rmtree(run, ignore_errors=True)
    shutil.rmtree(run, ignore_errors=True)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2, said
    assert "Traceback" not in said
    assert f"{run}: the folder is gone" in said
    assert not run.exists()
