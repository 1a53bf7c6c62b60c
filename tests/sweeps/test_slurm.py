"""`hydra/launcher=slurm`: on a real Slurm of one node, with workers that train nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sftpipe.sweeps import slurm as launcher
from sftpipe.sweeps.folder import JobRecord, SweepFolder
from support import slurm as support
from support.errors import Pin
from support.slurm import Slurm, one_node, wait_until
from support.sweeping import FAKE, Sweeps, rows_of, states

SWEEP = Path("sweep")
ON_SLURM = ("-m", "recipe=yoda", "hydra/launcher=slurm", "hydra.sweep.dir=sweep")


def read(name: str) -> Any:
    return json.loads((SWEEP / name).read_text())


def submissions() -> int:
    """How often sbatch was called."""
    return len(list((SWEEP / "jobs/slurm").glob("*_submission.sh")))


def says(job: str, text: str) -> bool:
    log = SWEEP / f"jobs/{job}.log"
    return log.is_file() and text in log.read_text()


# --- refused before a job is submitted ------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "places"),
    [
        (["hydra.launcher.partitoin=a"], ["hydra.launcher.partitoin (command line)"]),
        (["hydra.launcher.nodes=2"], ["hydra.launcher.nodes (command line)"]),
        (["hydra.launcher.mem_gb=lots"], ["hydra.launcher.mem_gb (command line)"]),
        (
            ["hydra.launcher.timeout_min=0", "hydra.launcher.cpus_per_task=0"],
            ["hydra.launcher.timeout_min", "hydra.launcher.cpus_per_task"],
        ),
        (["hydra.launcher.timeout_min=2"], ["hydra.launcher.signal_delay_s"]),
        (
            ["hydra.launcher.additional_parameters={array: 1-3}"],
            ["hydra.launcher.additional_parameters.array"],
        ),
        (["hydra.launcher.n_jobs=0"], ["hydra.launcher.n_jobs"]),
    ],
)
def test_keys_that_cannot_be_are_refused(
    words: list[str], places: list[str], train: Sweeps, golden_error: Pin
) -> None:
    done = train(*ON_SLURM, "seed=1,2", *words)
    assert done.code == 2
    assert [place for place in places if f"\n  {place}: " not in done.err] == []
    assert not SWEEP.exists()
    golden_error(done.err)


def test_without_submitit_it_says_what_to_install(
    train: Sweeps, monkeypatch: pytest.MonkeyPatch, golden_error: Pin
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setattr(launcher, "_PROGRAMS", ())
    done = train(*ON_SLURM, "seed=1,2")
    assert done.code == 2
    assert not SWEEP.exists()
    golden_error(done.err)


def test_a_machine_without_slurm_is_told(
    train: Sweeps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden_error: Pin
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    done = train(*ON_SLURM, "seed=1,2")
    assert done.code == 2
    assert not SWEEP.exists()
    golden_error(done.err)


def test_a_job_on_a_cluster_may_run_although_its_parent_was_killed(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path)
    sweep.write_job(JobRecord("r-4", ("lora.r=4",), {}, "running", job_id="7_0"))
    assert [job.state for job in sweep.jobs()] == ["running"]


# --- on Slurm -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := support.missing():
        pytest.skip(reason)
    with one_node(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture
def slurm(cluster: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """The node, whose jobs end with the test."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launcher, "_ASK_S", 1.0)
    monkeypatch.setattr(launcher, "_SILENT_S", 3.0)
    yield cluster
    cluster("scancel", "--user=root")
    wait_until(lambda: not cluster.jobs(), "the jobs of the test are gone", 60)


def meanwhile(does: Callable[[], None]) -> threading.Thread:
    """Do something while a command runs, which is stopped where that fails."""

    def run() -> None:
        try:
            does()
        except BaseException:
            os.kill(os.getpid(), signal.SIGINT)
            raise

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_grid_is_one_array_whose_jobs_end_as_processes_do(train: Sweeps, slurm: Slurm) -> None:
    train.ends(s2="fails", s3="is killed", s4="has a bug")
    done = train(*ON_SLURM, "seed=1,2,3,4,5", "hydra.launcher.n_jobs=2")

    assert done.code == 1, done.err
    assert list(states(SWEEP).values()) == ["done", "done", "failed", "killed", "failed"]
    errors = {row["job"]: row["error"] for row in rows_of(SWEEP)}
    assert errors["seed-2"] == "train[3]: empty"
    assert errors["seed-3"] == "its process was ended by SIGKILL; was memory short?"
    assert errors["seed-4"] == "ZeroDivisionError: division by nothing"
    (script,) = (SWEEP / "jobs/slurm").glob("*_submission.sh")
    assert "#SBATCH --array=0-4%2\n" in script.read_text()
    array = script.name.partition("_")[0]
    assert [read(f"jobs/seed-{n}.json")["job_id"] for n in (1, 5)] == [f"{array}_0", f"{array}_4"]
    environment = read("seed-1/environment.json")
    assert (environment["OMP_NUM_THREADS"], environment["SFTPIPE_PARENT"]) == ("1", None)

    train.ends()
    assert train("-m", "--continue", "sweep").code == 0
    assert read("seed-3/attempt.json") == 2
    assert set(states(SWEEP).values()) == {"done"}


@pytest.mark.slow
def test_keys_reach_sbatch_by_their_names(train: Sweeps, slurm: Slurm) -> None:
    setup = "hydra.launcher.setup=['export OF_JOB=yes']"
    more = ("hydra.launcher.mem_gb=0.25", "hydra.launcher.comment='two words'")
    additional = "hydra.launcher.additional_parameters={mail-type: NONE}"
    done = train(*ON_SLURM, "seed=1", "hydra.launcher.cpus_per_task=2", setup, *more, additional)

    assert done.code == 0, done.err
    (script,) = (SWEEP / "jobs/slurm").glob("*_submission.sh")
    wanted = ("mem=256MB", "comment='two words'", "mail-type=NONE", "requeue", "cpus-per-task=2")
    assert [one for one in wanted if f"#SBATCH --{one}\n" not in script.read_text()] == []
    environment = read("job/environment.json")
    assert (environment["OF_JOB"], environment["OMP_NUM_THREADS"]) == ("yes", "2")


@pytest.mark.slow
def test_what_sbatch_refuses_is_told_in_its_own_words(
    train: Sweeps, slurm: Slurm, golden_error: Pin
) -> None:
    done = train(*ON_SLURM, "seed=1,2", "hydra.launcher.partition=nosuch")
    assert done.code == 2
    assert set(states(SWEEP).values()) == {"waiting"}
    golden_error(done.err[done.err.index("error\n") :])


@pytest.mark.slow
def test_a_job_that_slurm_ends_is_not_waited_for(
    train: Sweeps, slurm: Slurm, tmp_path: Path
) -> None:
    train.ends(s1="is slow", s2="is slow")

    def end() -> None:
        wait_until(lambda: says("seed-1", "step 4") and says("seed-2", "step 4"), "both run", 60)
        slurm("scancel", read("jobs/seed-1.json")["job_id"])
        worker = int(subprocess.check_output(["pgrep", "-f", f"{tmp_path}/sweep/seed-2$"]))
        parent = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]
        for process in (int(parent), worker):  # as where a node's memory is short
            os.kill(process, signal.SIGKILL)

    thread = meanwhile(end)
    done = train(*ON_SLURM, "seed=1,2")
    thread.join()

    assert done.code == 1, done.err
    found = {row["job"]: (row["state"], row["error"]) for row in rows_of(SWEEP)}
    assert found["seed-1"][0] == "stopped"
    assert "CANCELLED" in found["seed-1"][1]
    assert found["seed-2"][0] == "killed"
    assert "Slurm has ended its job" in found["seed-2"][1]


@pytest.mark.slow
def test_a_requeued_job_without_a_checkpoint_begins_at_its_first_step(
    train: Sweeps, slurm: Slurm
) -> None:
    train.ends(s1="is slow once")

    def requeue() -> None:
        wait_until(lambda: says("job", "step 4"), "it runs", 60)
        job = read("jobs/job.json")["job_id"]
        slurm("scontrol", "requeue", job)
        slurm.hurry(job)

    thread = meanwhile(requeue)
    done = train(*ON_SLURM, "seed=1")
    thread.join()

    assert done.code == 0, done.err
    assert says("job", "there is no checkpoint yet: the run begins at its first step")
    assert read("job/attempt.json") == 2
    assert submissions() == 1


@pytest.mark.slow
def test_a_job_whose_time_is_over_too_often_says_so(train: Sweeps, slurm: Slurm) -> None:
    train.ends(s1="is slow")
    keys = ("timeout_min=1", "signal_delay_s=55", "max_num_timeout=0")
    done = train(*ON_SLURM, "seed=1", *(f"hydra.launcher.{key}" for key in keys))
    assert done.code == 1
    (row,) = rows_of(SWEEP)
    assert row["state"] == "stopped"
    assert "hydra.launcher.timeout_min gives it more" in row["error"]


@pytest.mark.slow
def test_ctrl_c_stops_the_jobs_of_the_cluster_too(
    train: Sweeps, slurm: Slurm, golden_error: Pin
) -> None:
    train.ends(s1="is slow", s2="is slow")

    def stop() -> None:
        wait_until(lambda: says("seed-1", "step 4"), "it runs", 60)
        os.kill(os.getpid(), signal.SIGINT)

    thread = meanwhile(stop)
    done = train(*ON_SLURM, "seed=1,2", "hydra.launcher.n_jobs=1")
    thread.join()

    assert done.code == 130
    assert states(SWEEP) == {"seed-1": "stopped", "seed-2": "stopped"}
    assert slurm.jobs() == []
    assert says("seed-1", "a checkpoint was written")
    assert not (SWEEP / "jobs/seed-2.log").read_text()
    assert not list((SWEEP / "jobs/slurm").glob("*_1_0_log.*"))  # it has not begun on the node
    golden_error(done.err[done.err.index("error\n") :])

    train.ends()
    assert train("-m", "--continue", "sweep").code == 0
    assert set(states(SWEEP).values()) == {"done"}


@pytest.mark.slow
def test_jobs_of_a_parent_that_was_killed_are_followed_and_not_submitted_again(
    train: Sweeps, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_STEP_S", "2")
    code = (
        "import sys; from sftpipe.sweeps import processes; from sftpipe.cli import main\n"
        f"processes.WORKER = [{FAKE!r}]\n"
        "sys.exit(main(['train', *sys.argv[1:]]))"
    )
    words = (*ON_SLURM, "seed=1,2", "hydra.launcher.n_jobs=1")
    parent = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE)
    wait_until(lambda: says("seed-1", "step 1"), "the first job runs", 60)
    parent.kill()
    parent.communicate()
    before = [read(f"jobs/seed-{seed}.json") for seed in (1, 2)]
    assert [one["state"] for one in before] == ["running", "running"]

    done = train("-m", "--continue", "sweep")

    assert done.code == 0, done.err
    assert submissions() == 1
    assert [read(f"jobs/seed-{seed}.json")["job_id"] for seed in (1, 2)] == [
        one["job_id"] for one in before
    ]
    assert [read(f"seed-{seed}/attempt.json") for seed in (1, 2)] == [1, 1]


@pytest.mark.slow
def test_a_search_prunes_its_trials_on_slurm(
    train: Sweeps, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_STEP_S", "2")
    pruner = ("hydra.sweeper.pruner=median", "hydra.sweeper.pruner_args={n_startup_trials: 1}")
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.launcher.n_jobs=1")
    done = train(*ON_SLURM, *search, *pruner, "lora.r=choice(2,4,8,16,32,64)")
    assert done.code == 0, done.err
    assert len(rows_of(SWEEP)) == 3
    assert "pruned" in states(SWEEP).values()
    assert submissions() == 3
    assert slurm.jobs() == []
