"""Whole sweeps of a tiny model: jobs that fail and are killed, a search, another launcher."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import slurm as support
from support.slurm import Slurm, one_node
from support.sweeping import rows_of, states

pytestmark = pytest.mark.slow


def on(tiny_model: Path, *more: str) -> list[str]:
    """The words of a run that takes a second when everything is imported."""
    return [
        "recipe=yoda",
        "model=custom",
        f"model.name_or_path={tiny_model}",
        "quantization=none",
        "evaluation.sample_prompts=[]",
        "dataset.limit=48",
        "sft.max_steps=6",
        "sft.logging_steps=1",
        "sft.per_device_train_batch_size=4",
        *more,
    ]


def start(words: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sftpipe", "train", *words],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(said: str, log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not (log.is_file() and said in log.read_text()):
        assert time.monotonic() < deadline, f"{log} does not say {said!r}"
        time.sleep(0.05)


def weights_of(run: Path) -> bytes:
    (file,) = run.glob("*.safetensors")
    return file.read_bytes()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of one node, where Debian's packages are installed."""
    if reason := support.missing():
        pytest.skip(reason)
    with one_node(tmp_path_factory.mktemp("slurm")) as found:
        yield found


LENGTHS = [250, 251, 252, 253, 254, 255, 256]


def test_a_sweep_of_eight_survives_a_wrong_value_and_a_kill_and_is_completed(
    tiny_model: Path, tmp_path: Path, cli: Any
) -> None:
    sweep = tmp_path / "sweep"
    swept = f"sft.max_length={','.join(map(str, [*LENGTHS, 40]))}"  # no row fits into 40
    words = on(tiny_model, "sft.save_steps=2", "sft.max_steps=40", swept)
    process = start(["-m", *words, "hydra.sweep.dir=sweep"], tmp_path)
    wait_for("step 4/40", sweep / "jobs/max_length-252.log", 300)
    os.kill(json.loads((sweep / "max_length-252/.lock").read_text())["pid"], signal.SIGKILL)
    _, said = process.communicate(timeout=600)

    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert "some jobs failed: 2 of 8" in said
    assert Counter(states(sweep).values()) == {"done": 6, "failed": 1, "killed": 1}
    errors = {row["job"]: row["error"] for row in rows_of(sweep)}
    assert "longer than sft.max_length=40" in errors["max_length-40"]
    assert [row["rank"] for row in rows_of(sweep)] == [1, 2, 3, 4, 5, 6, None, None]

    done = cli("train", "-m", "--continue", "sweep", swept.removesuffix(",40"))
    assert done.returncode == 0, done.stderr
    assert Counter(states(sweep).values()) == {"done": 7, "failed": 1}
    # exactly: the limit changes no row, so that all of them are one training
    log = (sweep / "jobs/max_length-252.log").read_text()
    assert re.search(r"max_length-252 goes on from step [1-9]", log)
    assert len({weights_of(sweep / f"max_length-{length}") for length in LENGTHS}) == 1

    more = cli("train", "-m", "--continue", "sweep", swept.replace(",40", ",257"), "--json")
    assert more.returncode == 0, more.stderr
    assert more.stderr.count("was done before") == 7
    assert len(more.stdout.splitlines()) == 8


def test_a_search_finds_the_best_prunes_and_survives_a_kill_of_its_parent(
    tiny_model: Path, tmp_path: Path, cli: Any
) -> None:
    sweep = tmp_path / "sweep"
    # the loss falls with the rate, over this whole grid: 40 steps learn little, and none too fast
    words = on(
        tiny_model,
        "sft.learning_rate=choice(1e-8,1e-7,1e-6,1e-5,1e-4,1e-3)",
        "sft.max_steps=40",
        "sft.save_steps=4",
        "sft.eval_strategy=steps",
        "+sft.eval_steps=4",
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=5",
        "hydra.sweeper.pruner=median",
        "hydra.sweeper.pruner_args={n_startup_trials: 1}",
        "hydra.sweep.dir=sweep",
    )
    process = start(["-m", *words], tmp_path)
    deadline = time.monotonic() + 300
    while len(list(sweep.glob("jobs/*.log"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = max(sweep.glob("jobs/*.log"), key=lambda log: log.stat().st_mtime)
    wait_for("step 4/40", second)
    process.kill()
    process.communicate()

    done = cli("train", "-m", *words)

    assert done.returncode == 0, done.stderr
    rows = rows_of(sweep)
    assert len({row["values"]["sft.learning_rate"] for row in rows}) == len(rows) == 5  # of 6
    assert rows[0]["values"]["sft.learning_rate"] == 0.001
    assert "pruned" in states(sweep).values()
    pruned = next(row["job"] for row in rows if row["state"] == "pruned")
    assert list((sweep / pruned).glob("checkpoint-*"))
    assert "goes on from step" in second.read_text()


def test_another_launcher_of_hydra_reports_both_values_of_a_grid(
    tiny_model: Path, tmp_path: Path, cli: Any
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = on(tiny_model, "lora.r=4,8", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done = cli("train", "-m", *words, "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "sweep")
    assert [row["rank"] for row in rows] == [1, 2]
    assert all(row["metric"] > 0 for row in rows)
    forked = cli("train", "-m", *words, "hydra/launcher=process", "hydra.sweep.dir=forked")
    assert forked.returncode == 0, forked.stderr
    for job in ("r-4", "r-8"):  # a worker that is a fork trains the same as one that imports
        assert weights_of(tmp_path / "forked" / job) == weights_of(tmp_path / "sweep" / job)


def test_what_is_imported_before_the_forks_is_what_a_training_imports() -> None:
    code = (
        "import json, sys, sftpipe.preloaded\n"
        "before = set(sys.modules)\n"
        "print(json.dumps([n for n in ('trl', 'peft', 'datasets', 'bitsandbytes', "
        "'sftpipe.training.trainer', 'sftpipe.runs.report') if n not in before]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (json.loads(done.stdout), done.stderr) == ([], "")


def test_the_data_of_a_sweep_are_prepared_once(tiny_model: Path, tmp_path: Path, cli: Any) -> None:
    words = on(tiny_model, "sft.learning_rate=1e-5,1e-4,1e-3", "hydra.launcher.n_jobs=3")
    cache = tmp_path / "cache"
    done = cli("train", "-m", *words, "hydra.sweep.dir=sweep", SFTPIPE_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    counted = {kind.name: len(list(kind.glob("[!.]*/"))) for kind in cache.iterdir()}
    assert (counted["rows"], counted["encoded"]) == (1, 3)  # train, validation and test

    def written() -> dict[str, int]:
        files = (file for kind in ("rows", "encoded") for file in (cache / kind).glob("*/*"))
        return {str(file): file.stat().st_mtime_ns for file in files}

    before = written()
    words = ["sft.learning_rate=1e-2"]
    done = cli("train", "-m", "--continue", "sweep", *words, SFTPIPE_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "sweep")) == 4
    assert written() == before


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_a_sweep_with_checkpoints_and_a_table(
    times: int, tiny_model: Path, tmp_path: Path, cli: Any
) -> None:
    words = on(tiny_model, "lora.r=4,8", "sft.max_steps=5000", "hydra.sweep.dir=sweep")
    process = start(["-m", *words], tmp_path)
    log = tmp_path / "sweep/jobs/r-4.log"
    wait_for("step 3/", log)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "sftpipe train -m --continue sweep goes on from there" in said
    assert states(tmp_path / "sweep") == {"r-4": "stopped", "r-8": "waiting"}
    assert times == 2 or list((tmp_path / "sweep/r-4").glob("checkpoint-*"))
    assert not (tmp_path / "sweep/r-4/.lock").exists()


def test_a_job_of_slurm_that_is_preempted_is_queued_again_and_goes_on_exactly(
    tiny_model: Path, tmp_path: Path, cli: Any, slurm: Slurm
) -> None:
    words = on(tiny_model, "sft.max_steps=60", "lora.r=4,8")
    here = cli("train", "-m", *words, "hydra.sweep.dir=here", OMP_NUM_THREADS="1")
    assert here.returncode == 0, here.stderr

    there = (*words, "hydra/launcher=slurm", "hydra.sweep.dir=there")
    process = start(["-m", *there], tmp_path, **slurm.environment)
    sweep = tmp_path / "there"
    for job in ("r-4", "r-8"):
        wait_for("step 3/60", sweep / f"jobs/{job}.log")
    # a partition of a higher priority takes the whole node for a moment
    slurm("sbatch", "--partition=urgent", "--cpus-per-task=2", "--wrap", "true", "--output=none")
    for job in ("r-4", "r-8"):
        slurm.hurry(json.loads((sweep / f"jobs/{job}.json").read_text())["job_id"])
    _, said = process.communicate(timeout=300)

    assert process.returncode == 0, said
    assert states(sweep) == {"r-4": "done", "r-8": "done"}
    for job in ("r-4", "r-8"):
        log = (sweep / f"jobs/{job}.log").read_text()
        assert "stopped by SIGTERM; a checkpoint was written" in log
        assert re.search(r"begins on \S+, for the 2\. time\n", log)
        assert re.search(rf"{job} goes on from step [1-9]", log)
        assert weights_of(sweep / job) == weights_of(tmp_path / "here" / job)
