"""`sftpipe train -m`: a grid, job by job, continued, ranked, and what is refused."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from sftpipe.runs.lock import held
from sftpipe.sweeps.processes import Slot, cores, slots, visible_gpus
from support.disks import small_disk
from support.errors import Pin
from support.sweeping import Sweeps, rows_of, states

GRID = ("-m", "recipe=yoda", "lora.r=4,8,32", "hydra.sweep.dir=sweep")
SWEEP = Path("sweep")


def read(name: str) -> Any:
    return json.loads((SWEEP / name).read_text())


# --- a whole sweep --------------------------------------------------------------------------------


def test_each_job_has_a_folder_named_by_its_values_and_is_ranked(train: Sweeps) -> None:
    done = train(*GRID, "seed=7", "--json")

    assert done.code == 0, done.err
    assert [(row["rank"], row["job"]) for row in rows_of(SWEEP)] == [
        (1, "r-8"),
        (2, "r-4"),
        (3, "r-32"),
    ]
    assert [Path(line["run"]).name for line in done.lines] == ["r-8", "r-4", "r-32"]
    assert done.lines[0]["metrics"]["validation"]["after"]["loss"] == 1.0
    assert yaml.safe_load((SWEEP / "r-4/config.yaml").read_text())["lora"]["r"] == 4
    best = rows_of(SWEEP)[0]
    assert best["command"] == "sftpipe train recipe=yoda lora.r=8 seed=7"
    assert (best["values"], best["seconds"], best["memory_bytes"]) == ({"lora.r": 8}, 1.5, 2**30)
    assert best["command"] in done.err
    assert not (SWEEP / ".lock").exists()


def test_the_table_is_written_for_spreadsheets_too(train: Sweeps) -> None:
    train.ends(s2="fails")
    train("-m", "recipe=yoda", "seed=1,2", "hydra.sweep.dir=sweep")

    with (SWEEP / "results.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["rank"], first["seed"], first["state"]) == ("1", "1", "done")
    assert float(first["validation.loss"]) == 1 + 8 / 10
    assert (second["rank"], second["state"], second["error"]) == ("", "failed", "train[3]: empty")


@pytest.mark.slow
def test_without_a_name_a_sweep_lies_where_runs_lie(train: Sweeps) -> None:
    assert train("-m", "recipe=yoda,yoda_full", "seed=3").code == 0
    (folder,) = Path("outputs/sweep").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[0-9a-f]{4}", folder.name)
    assert set(states(folder)) == {"recipe-yoda", "recipe-yoda_full"}


def test_all_jobs_run_although_one_fails_and_one_is_killed(
    train: Sweeps, golden_error: Pin
) -> None:
    train.ends(s2="fails", s3="is killed", s4="has a bug")

    done = train("-m", "recipe=yoda", "seed=range(1,6)", "hydra.sweep.dir=sweep")

    assert done.code == 1
    assert "Traceback" not in done.err
    found = {"seed-1": "done", "seed-5": "done"}
    assert states(SWEEP) == {**found, "seed-2": "failed", "seed-3": "killed", "seed-4": "failed"}
    errors = {row["job"]: row["error"] for row in rows_of(SWEEP)}
    assert errors["seed-2"] == "train[3]: empty"
    assert errors["seed-3"] == "its process was ended by SIGKILL; was memory short?"
    assert errors["seed-4"] == "ZeroDivisionError: division by nothing"
    golden_error(done.err[done.err.index("error\n") :])


@pytest.mark.slow
def test_later_batches_of_hydras_sweeper_run_too(train: Sweeps) -> None:
    train.ends(s1="fails")
    words = ("seed=1,2,3", "hydra.sweeper.max_batch_size=1", "hydra.sweep.dir=sweep")
    assert train("-m", "recipe=yoda", *words).code == 1
    assert list(states(SWEEP).values()) == ["done", "done", "failed"]


def test_every_job_failing_is_said_so(train: Sweeps, golden_error: Pin) -> None:
    train.ends(s1="fails", s2="fails")
    done = train("-m", "recipe=yoda", "seed=1,2", "hydra.sweep.dir=sweep")
    assert done.code == 1
    golden_error(done.err[done.err.index("error\n") :])


# --- continued ------------------------------------------------------------------------------------


def test_a_sweep_is_continued_by_what_its_jobs_train(train: Sweeps) -> None:
    train.ends(s2="fails", s3="is killed")
    assert train("-m", "recipe=yoda", "seed=1,2,3", "hydra.sweep.dir=sweep").code == 1
    first = (SWEEP / "seed-1/COMPLETE").stat().st_mtime_ns

    train.ends()
    done = train("-m", "seed=3,2,1", "recipe=yoda", "hydra.sweep.dir=sweep")  # in another order

    assert done.code == 0, done.err
    assert set(states(SWEEP).values()) == {"done"}
    assert (SWEEP / "seed-1/COMPLETE").stat().st_mtime_ns == first
    assert "seed-1 done  was done before" in done.err
    assert [read(f"seed-{seed}/attempt.json") for seed in (1, 2, 3)] == [1, 1, 2]
    assert read("jobs/seed-3.json")["error"] == ""


def test_continue_takes_the_recorded_words_and_adds_values(
    train: Sweeps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(*GRID, "seed=7")

    (tmp_path / "elsewhere").mkdir()
    with monkeypatch.context() as patch:
        patch.chdir("elsewhere")
        assert train("-m", "--continue", "../sweep").code == 0
    done = train("-m", "--continue", "sweep", "lora.r=4,8,16")

    assert done.code == 0, done.err
    assert set(states(SWEEP)) == {"r-4", "r-8", "r-16", "r-32"}  # r-32 stays in the table
    assert read("sweep.json")["words"][-1] == "lora.r=4,8,16"
    assert yaml.safe_load((SWEEP / "r-16/config.yaml").read_text())["seed"] == 7


def test_a_further_key_varies_and_old_jobs_keep_their_folders(train: Sweeps) -> None:
    train(*GRID, "seed=7")
    assert train("-m", "--continue", "sweep", "lora.r=4,8", "seed=7,9").code == 0

    values = {
        row["job"]: (row["values"]["lora.r"], row["values"]["seed"]) for row in rows_of(SWEEP)
    }
    assert values == {
        "r-4": (4, 7),
        "r-8": (8, 7),
        "r-32": (32, 7),
        "r-4__seed-9": (4, 9),
        "r-8__seed-9": (8, 9),
    }


def test_values_that_decide_no_weights_have_jobs_of_their_own(train: Sweeps) -> None:
    words = ("-m", "recipe=yoda", "dataset.num_proc=1,2", "hydra.sweep.dir=sweep")
    assert train(*words).code == 0
    again = train(*words)
    assert set(states(SWEEP)) == {"num_proc-1", "num_proc-2"}
    assert again.err.count("was done before") == 2


def test_another_value_of_what_does_not_vary_is_another_training(train: Sweeps) -> None:
    train("-m", "recipe=yoda", "lora.r=4", "seed=7", "hydra.sweep.dir=sweep")
    assert train("-m", "--continue", "sweep", "seed=9").code == 0
    assert sorted(row["values"]["seed"] for row in rows_of(SWEEP)) == [7, 9]


def test_one_value_twice_is_one_job(train: Sweeps) -> None:
    assert train("-m", "recipe=yoda", "seed=1,1", "hydra.sweep.dir=sweep").code == 0
    assert list(states(SWEEP)) == ["seed-1"]


def test_a_sweep_of_other_data_is_refused(
    train: Sweeps, monkeypatch: pytest.MonkeyPatch, golden_error: Pin
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("FAKE_DATA", "other")
        train(*GRID)
    before = sorted(path.name for path in SWEEP.rglob("*"))

    done = train(*GRID)

    assert done.code == 2
    assert sorted(path.name for path in SWEEP.rglob("*")) == before
    golden_error(done.err[done.err.index("error\n") :])


def test_a_sweep_of_other_code_is_refused(train: Sweeps, golden_error: Pin) -> None:
    train(*GRID)
    record = read("sweep.json")
    record["code"]["trl"] = "1.15.0"
    (SWEEP / "sweep.json").write_text(json.dumps(record))

    done = train(*GRID)

    assert done.code == 2
    assert "trl was 1.15.0 and is " in done.err


def test_two_parents_cannot_have_one_folder(train: Sweeps) -> None:
    with held(SWEEP, "this sweep"):
        other = subprocess.run(
            [sys.executable, "-m", "sftpipe", "train", *GRID], capture_output=True, text=True
        )
    assert other.returncode == 2
    assert re.search(rf"sweep: process {os.getpid()} on .* trains this sweep", other.stderr)
    assert "leave hydra.sweep.dir out" in other.stderr


def test_a_folder_of_something_else_is_left_alone(train: Sweeps, golden_error: Pin) -> None:
    SWEEP.mkdir()
    (SWEEP / "mine.txt").write_text("mine")
    done = train(*GRID)
    assert (done.code, [path.name for path in SWEEP.iterdir()]) == (2, ["mine.txt"])
    golden_error(done.err)


# --- the grammar ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "jobs"),
    [
        pytest.param("lora.r=choice(4,8)", {"r-4", "r-8"}, marks=pytest.mark.slow),
        pytest.param("seed=range(1,4)", {"seed-1", "seed-2", "seed-3"}, marks=pytest.mark.slow),
        ("lora=glob(d*)", {"lora-default", "lora-dora"}),
        pytest.param("recipe=glob(yoda*,exclude=yoda_*)", {"job"}, marks=pytest.mark.slow),
        pytest.param(
            "lora.target_modules=[q_proj],[q_proj,v_proj]",
            {"target_modules-q_proj"},
            marks=pytest.mark.slow,
        ),
        ("+sft.weight_decay=0.1,0.2", {"weight_decay-0.1", "weight_decay-0.2"}),
        pytest.param("seed=5", {"job"}, marks=pytest.mark.slow),
    ],
)
def test_the_whole_grammar_makes_jobs(word: str, jobs: set[str], train: Sweeps) -> None:
    recipe = [] if word.startswith("recipe") else ["recipe=yoda"]
    done = train("-m", *recipe, word, "hydra.sweep.dir=sweep")
    assert done.code == 0, done.err
    assert set(states(SWEEP)) >= jobs


def test_a_recipe_says_what_is_swept(train: Sweeps) -> None:
    Path("recipes").mkdir()
    Path("recipes/sweeping.yaml").write_text(
        "# A sweep.\n"
        "defaults: [yoda, _self_]\n"
        "hydra:\n"
        "  mode: MULTIRUN\n"
        "  sweep: {dir: sweep}\n"
        "  sweeper:\n"
        "    params:\n"
        "      lora.r: 4,8\n"
        "      sft.adam_epsilon: 1e-8,1e-7\n"  # a key that conf/ does not hold
    )
    done = train("recipe=sweeping")
    assert done.code == 0, done.err
    assert set(states(SWEEP)) == {
        f"r-{rank}__adam_epsilon-{value}" for rank in (4, 8) for value in ("1e-08", "1e-07")
    }
    assert train("-m", "recipe=sweeping", "lora.r=4").code == 0  # the command line wins


def test_callbacks_and_the_environment_of_jobs(train: Sweeps) -> None:
    Path("mine.py").write_text(
        "from hydra.experimental.callback import Callback\n"
        "class Mine(Callback):\n"
        "    def on_multirun_start(self, config, **kwargs): print('BEGAN')\n"
        "    def on_job_start(self, config, **kwargs):\n"
        "        print('JOB', list(config.hydra.overrides.task))\n"
        "    def on_job_end(self, config, job_return, **kwargs):\n"
        "        print('ENDED', job_return.status.name, job_return.return_value)\n"
    )
    sys.path.insert(0, str(Path.cwd()))
    try:
        train.ends(s2="fails")
        callback = "+hydra.callbacks.mine={_target_: mine.Mine}"
        variable = "+hydra.job.env_set.OF_JOB=yes"
        done = train("-m", "recipe=yoda", "seed=1,2", callback, variable, "hydra.sweep.dir=sweep")
    finally:
        sys.path.remove(str(Path.cwd()))
    assert done.out.splitlines() == [
        "BEGAN",
        "JOB ['recipe=yoda', 'seed=1']",
        "ENDED COMPLETED 1.8",
        "JOB ['recipe=yoda', 'seed=2']",
        "ENDED FAILED nan",
    ]
    assert read("seed-1/environment.json")["OF_JOB"] == "yes"


def test_cfg_of_a_sweep_prints_the_config_of_each_job(train: Sweeps) -> None:
    done = train("-m", "recipe=yoda", "lora.r=4,8", "+sft.adam_epsilon=1e-7", "--cfg", "job")
    assert done.code == 0, done.err
    first, second = done.out.split("# job ")[1:]
    assert first.startswith("0: recipe=yoda lora.r=4 sft.adam_epsilon=1e-07\n")
    configs = [yaml.safe_load(text.partition("\n")[2]) for text in (first, second)]
    assert [config["lora"]["r"] for config in configs] == [4, 8]
    assert not Path("outputs").exists()


# --- refused before the first job -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["lora.r=4,x"], "lora.r (command line)"),
        (["seed=interval(1,2)"], "seed=interval(1,2)"),
        (["run=mine"], "run"),
        (["sft.resume_from_checkpoint=auto"], "sft.resume_from_checkpoint"),
        (["hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs"),
        (["hydra.launcher.metric=x", "hydra.launcher.direction=up"], "hydra.launcher.direction"),
        (["hydra.sweep.subdir=x"], "hydra.sweep.subdir (command line)"),
        (["hydra/sweeper=nevergrad"], "hydra/sweeper=nevergrad (command line)"),
        (["lora=glob(z*)"], "lora"),
    ],
)
def test_what_cannot_be_swept_is_refused(
    words: list[str], place: str, train: Sweeps, golden_error: Pin
) -> None:
    done = train("-m", "recipe=yoda", *words)
    assert done.code == 2
    assert done.err.startswith(f"error\n  {place}: ")
    golden_error(done.err)


def test_a_metric_that_no_job_reports_is_told_with_those_that_are(
    train: Sweeps, golden_error: Pin
) -> None:
    done = train(*GRID, "hydra.launcher.metric=test.los")
    assert done.code == 2
    assert set(states(SWEEP).values()) == {"done"}
    golden_error(done.err[done.err.index("error\n") :])


def test_another_metric_ranks_and_may_be_maximized(train: Sweeps) -> None:
    words = ("hydra.launcher.metric=validation.after.loss", "hydra.launcher.direction=maximize")
    assert train(*GRID, *words).code == 0
    assert [row["job"] for row in rows_of(SWEEP)] == ["r-32", "r-4", "r-8"]


def test_jobs_without_a_metric_stay_unranked(train: Sweeps) -> None:
    train.ends(s1="measures nothing")
    assert train("-m", "recipe=yoda", "seed=1", "hydra.sweep.dir=sweep").code == 0
    (row,) = rows_of(SWEEP)
    assert (row["rank"], row["metric"]) == (None, None)


# --- processes ------------------------------------------------------------------------------------


def test_cores_are_divided_and_gpus_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert slots(2, ["0", "1"], 8) == [Slot(4, "0"), Slot(4, "1")]
    assert slots(3, ["5"], 8) == [Slot(2, "5")] * 3
    assert slots(4, [], 2) == [Slot(1)] * 4
    assert slots(2, ["0", "1", "2", "3"], 8, 2) == [Slot(2, "0,1"), Slot(2, "2,3")]
    assert slots(1, ["0"], 8, 2) == [Slot(4, "0")]  # too few, which the job says
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # the user knows better
    assert slots(2, [], 8) == [Slot(3)] * 2


def test_visible_gpus_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-ab")
    assert visible_gpus() == ["2", "GPU-ab"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_jobs_at_a_time_get_gpus_and_threads_of_their_own(
    train: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("FAKE_STEP_S", "0.1")  # so that both run at once
    assert train(*GRID[:2], "seed=1,2", GRID[3], "hydra.launcher.n_jobs=2").code == 0
    found = [read(f"seed-{seed}/environment.json") for seed in (1, 2)]
    assert sorted(one["CUDA_VISIBLE_DEVICES"] for one in found) == ["3", "5"]
    threads = max(1, cores() // 2)
    assert {one["OMP_NUM_THREADS"] for one in found} == {str(threads)}
    assert read("jobs/seed-1.json")["threads"] == threads
    assert "step 4/4" in (SWEEP / "jobs/seed-1.log").read_text()


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_stops_the_running_jobs_and_starts_no_other(
    number: signal.Signals, train: Sweeps, golden_error: Pin
) -> None:
    train.ends(s1="is slow")

    def later() -> None:
        log = SWEEP / "jobs/seed-1.log"
        while not log.is_file() or "step 4" not in log.read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=later).start()
    done = train("-m", "recipe=yoda", "seed=1,2,3", "hydra.sweep.dir=sweep")

    assert done.code == 128 + number
    assert states(SWEEP) == {"seed-1": "stopped", "seed-2": "waiting", "seed-3": "waiting"}
    golden_error(done.err[done.err.index("error\n") :])
    train.ends()
    assert train("-m", "--continue", "sweep").code == 0


def test_other_launchers_of_hydra_run_the_jobs_in_processes_too(train: Sweeps) -> None:
    train.ends(s2="fails")
    words = ("seed=1,2,3", "hydra/launcher=basic", "hydra.sweep.dir=sweep")
    assert train("-m", "recipe=yoda", *words).code == 1
    assert states(SWEEP) == {"seed-1": "done", "seed-3": "done", "seed-2": "failed"}
    assert (SWEEP / "seed-1/.hydra/overrides.yaml").read_text() == "- recipe=yoda\n- seed=1\n"


def test_a_full_disk_ends_a_sweep_and_leaves_no_worker(train: Sweeps, tmp_path: Path) -> None:
    train.ends(s1="is slow")
    with small_disk(tmp_path / "disk", 1) as disk:

        def fill() -> None:
            log = disk / "sweep/jobs/seed-1.log"
            while not log.is_file() or "step 4" not in log.read_text():
                time.sleep(0.02)
            with (disk / "full").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * 4096)
            os.kill(workers(disk)[0], signal.SIGTERM)  # its end cannot be recorded

        threading.Thread(target=fill).start()
        words = ("seed=1,2", f"hydra.sweep.dir={disk / 'sweep'}")
        done = train("-m", "recipe=yoda", *words)
        assert workers(disk) == []
        shown = done.err.replace(str(disk), "DISK")
    assert done.code == 2
    assert "Traceback" not in shown
    assert re.search(r"DISK/sweep/\S+: No space left on device", shown)


def workers(folder: Path) -> list[int]:
    """The processes that train below a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_text().split("\0")
            is_worker = any(word.endswith("fake_worker.py") for word in words)
            if is_worker and any(word.startswith(str(folder)) for word in words):
                found.append(int(process.name))
    return found


@pytest.mark.slow
def test_weights_and_biases_groups_the_jobs(train: Sweeps) -> None:
    words = ("tracking=wandb", "tracking.mode=offline", "seed=1,2", "hydra.sweep.dir=sweep")
    assert train("-m", "recipe=yoda", *words).code == 0
    groups = {
        yaml.safe_load((SWEEP / f"seed-{seed}/config.yaml").read_text())["tracking"]["group"]
        for seed in (1, 2)
    }
    assert groups == {"sweep"}
