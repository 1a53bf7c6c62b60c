"""`python -m sftpipe.worker`: a planned run folder is trained from what is written in it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sftpipe.config.schema import to_plain
from sftpipe.errors import ConfigError, RunError
from sftpipe.runs.load import load_run
from sftpipe.runs.plan import RunPlan
from sftpipe.runs.planned import read_planned, write_planned
from sftpipe.worker import main
from support.errors import Pin, places, refused
from support.trainers import tiny

SHORT = ("sft.max_steps=2", "evaluation=none", "dataset.limit=40", "sft.eval_strategy=no")


def test_a_plan_is_read_back_as_it_was_written(tiny_model: Path, tmp_path: Path) -> None:
    cfg = tiny(tiny_model, "lora.r=4", "seed=3")
    plan = RunPlan(tmp_path / "run", 2, tmp_path / "run" / "checkpoint-4", said="goes on")

    write_planned(cfg, plan, {"overrides.yaml": "- seed=3\n"})
    planned = read_planned(tmp_path / "run")

    assert to_plain(planned.config) == to_plain(cfg)
    assert (planned.plan, planned.plan.said) == (plan, "goes on")
    assert planned.hydra == {"overrides.yaml": "- seed=3\n"}


def test_a_worker_trains_from_the_plan_and_composes_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = replace(tiny(tiny_model, *SHORT, "lora.r=4"), recipe="no-recipe-of-this-name")
    write_planned(cfg, RunPlan(tmp_path / "run"), {"overrides.yaml": "- lora.r=4\n"})
    monkeypatch.setattr("sftpipe.config.hydra.hydra_compose", None)

    assert main([str(tmp_path / "run")]) == 0

    run = load_run(tmp_path / "run")
    assert to_plain(run.config) == to_plain(cfg)
    assert run.metrics["train"]["steps"] == 2
    assert (run.dir / ".hydra" / "overrides.yaml").read_text() == "- lora.r=4\n"
    assert not (run.dir / ".planned.json").exists()


def test_a_folder_without_a_plan_is_refused(tmp_path: Path, golden_error: Pin) -> None:
    error = refused(RunError, lambda: read_planned(tmp_path))

    assert places(error) == [str(tmp_path)]
    golden_error(error)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"config": 1, "attempt": "x"}'])
def test_a_damaged_plan_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / ".planned.json").write_text(content)

    error = refused(RunError, lambda: read_planned(tmp_path))

    assert places(error) == [str(tmp_path / ".planned.json")]


def test_a_plan_with_an_unknown_key_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    write_planned(tiny(tiny_model), RunPlan(tmp_path), {})
    file = tmp_path / ".planned.json"
    content = json.loads(file.read_text())
    content["config"]["sft"]["lerning_rate"] = 1
    file.write_text(json.dumps(content))

    assert "lerning_rate" in str(refused(ConfigError, lambda: read_planned(tmp_path)))


@pytest.mark.parametrize("words", [[], ["a", "b"]])
def test_a_worker_takes_one_folder(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "allowed: one run folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_worker_without_its_parent_stops(tiny_model: Path, tmp_path: Path) -> None:
    cfg = tiny(tiny_model, "sft.max_steps=100000", "evaluation=none", "sft.eval_strategy=no")
    write_planned(cfg, RunPlan(tmp_path / "run"), {})
    starts = (
        "import os, subprocess, sys\n"
        "os.environ['SFTPIPE_PARENT'] = str(os.getpid())\n"
        "worker = subprocess.Popen([sys.executable, '-m', 'sftpipe.worker', sys.argv[1]],"
        " stderr=open('said', 'w'))\n"
        "while 'step' not in open('said').read(): pass\n"
        "print(worker.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", starts, str(tmp_path / "run")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    _gone(int(done.stdout), 60)
    assert "a checkpoint was written" in (tmp_path / "said").read_text()
    assert list((tmp_path / "run").glob("checkpoint-*"))


def _gone(pid: int, seconds: float) -> None:
    """Wait until a process has ended."""
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()
