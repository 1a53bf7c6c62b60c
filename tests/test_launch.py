"""How the processes of one run are started; e2e/test_distributed.py starts them."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from sftpipe import launch
from sftpipe.errors import ConfigError, Interrupted, Problem, RankError, RunError
from sftpipe.ranks import NOTES
from sftpipe.runs.plan import RunPlan
from support.configs import compose
from support.errors import Pin, places, refused

DDP = ["recipe=yoda", "distributed=ddp"]


def distributed(*words: str) -> Any:
    return compose([*DDP, *words])


def test_torchrun_is_told_what_the_config_says() -> None:
    two = distributed("distributed.num_processes=2").distributed
    words = launch._words(two, 2, Path("/runs/a run"))
    assert words[0] == "--standalone"
    assert words[words.index("--nproc-per-node") + 1] == "2"
    assert words[-3:] == ["--module", "sftpipe.worker", "/runs/a run"]

    many = distributed(
        "run=many",
        "distributed.num_processes=8",
        "distributed.num_machines=2",
        "distributed.machine_rank=1",
        "distributed.rendezvous='[::1]:29500'",
        "distributed.rendezvous_timeout=30",
    ).distributed
    words = launch._words(many, 4, Path("/runs/many"))
    told = dict(zip(words[::2], words[1::2], strict=False))
    assert "--standalone" not in words
    assert (told["--nnodes"], told["--node-rank"], told["--nproc-per-node"]) == ("2", "1", "4")
    assert (told["--master-addr"], told["--master-port"]) == ("[::1]", "29500")
    assert told["--rdzv-conf"] == "timeout=30"


def test_torchrun_waits_for_a_checkpoint_before_it_kills() -> None:
    from torch.distributed.run import config_from_args, parse_args

    two = distributed("distributed.num_processes=2").distributed
    config, _, words = config_from_args(parse_args(launch._words(two, 2, Path("/run"))))
    assert config.shutdown_timeout == 3600
    assert config.max_restarts == 0
    assert words == ["-u", "-m", "sftpipe.worker", "/run"]


@pytest.mark.parametrize(
    ("gpus", "words", "expected"),
    [
        (["0", "1", "2", "3"], [], 4),
        (["0", "1"], ["distributed.num_processes=1"], 1),
        (
            ["0", "1"],
            [
                "distributed.num_processes=4",
                "distributed.num_machines=2",
                "distributed.rendezvous=a:1",
                "run=many",
            ],
            2,
        ),
        (["0"], ["distributed.num_processes=2", "sft.use_cpu=true"], 2),
        ([], ["distributed.num_processes=2"], 2),
    ],
)
def test_a_machine_has_a_process_for_each_device(
    gpus: list[str], words: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(launch, "cores", lambda: 2)
    assert launch.processes_here(distributed(*words)) == expected


@pytest.mark.parametrize(
    ("gpus", "words", "where"),
    [
        (["0", "1"], ["distributed.num_processes=3"], "distributed.num_processes"),
        ([], ["distributed.num_processes=3"], "distributed.num_processes"),
        ([], [], "distributed.num_processes"),
        ([], ["distributed.strategy=fsdp2"], "distributed.strategy"),
    ],
)
def test_more_processes_than_devices_are_refused(
    gpus: list[str],
    words: list[str],
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    golden_error: Pin,
) -> None:
    monkeypatch.setattr(launch, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(launch, "cores", lambda: 2)
    error = refused(ConfigError, lambda: launch.processes_here(distributed(*words)))
    assert places(error) == [where]
    golden_error(error)


def test_machines_need_the_name_of_their_run(tmp_path: Path, golden_error: Pin) -> None:
    cfg = distributed(
        "distributed.num_processes=2",
        "distributed.num_machines=2",
        "distributed.rendezvous=a:1",
    )
    error = refused(ConfigError, lambda: launch.launch(cfg, RunPlan(tmp_path / "run"), {}))
    assert places(error) == ["run"]
    golden_error(error)
    assert not (tmp_path / "run").exists()


def test_a_process_of_another_launcher_is_refused(
    monkeypatch: pytest.MonkeyPatch, golden_error: Pin
) -> None:
    """Each would plan a run folder of its own, and train alone."""
    launch.check_launched_once()
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    launch.check_launched_once()
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = refused(ConfigError, launch.check_launched_once)
    golden_error(error)


@pytest.mark.parametrize("machine", [0, 1])
def test_machines_that_do_not_meet_say_who_waited_where(machine: int, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    cfg = distributed(
        f"run={tmp_path / 'run'}",
        "distributed.num_processes=2",
        "distributed.num_machines=2",
        f"distributed.machine_rank={machine}",
        f"distributed.rendezvous={endpoint}",
        "distributed.rendezvous_timeout=1",
    )
    error = refused(RankError, lambda: launch.launch(cfg, RunPlan(tmp_path / "run"), {}))
    assert places(error) == ["distributed.rendezvous"]
    (problem,) = error.problems
    assert f"machine {machine} of 2, {socket.gethostname()}" in problem.found
    assert f"at {endpoint}" in problem.found
    assert "has waited 1 s" in problem.found


class Stopped(Exception):
    """As of torchrun."""


def test_a_signal_is_handed_on_once_and_one_that_comes_later_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slurm signals every process of a job, and sftpipe's own job hands it on."""
    now = 100.0
    monkeypatch.setattr(launch.time, "monotonic", lambda: now)
    before = signal.getsignal(signal.SIGTERM)
    with launch._listening(Stopped):
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        now += 4
        signal.raise_signal(signal.SIGTERM)
        now += 2
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


# --- what a rank leaves behind --------------------------------------------------------------------

PLAN = RunPlan(Path("outputs/yoda/1"))


@pytest.fixture
def note_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def write(number: int, error: BaseException, said: str = "") -> None:
        monkeypatch.setenv(NOTES, str(tmp_path))
        monkeypatch.setenv("RANK", str(number))
        launch.write_note(error, said)

    return write


def test_a_users_mistake_is_told_as_the_rank_told_it(note_of: Any, tmp_path: Path) -> None:
    told = RunError(Problem("a", "b", allowed="c", fix="d"), Problem("e", "f"))
    note_of(1, told)
    error = launch._failed(1, 2, PLAN, tmp_path)
    assert (error.problems, error.exit_code) == (told.problems, 2)


def test_a_signal_that_the_ranks_agreed_on_is_told_once(note_of: Any, tmp_path: Path) -> None:
    for number in (0, 1):
        note_of(number, Interrupted(signal.SIGTERM, Problem("run", "stopped by SIGTERM")))
    for error in (
        launch._failed(1, 143, PLAN, tmp_path),
        launch._failed(0, -15, PLAN, tmp_path),
        launch._stopped(signal.SIGTERM, PLAN, tmp_path),
    ):
        assert isinstance(error, Interrupted)
        assert error.exit_code == 143
        assert [one.found for one in error.problems] == ["stopped by SIGTERM"]


def test_a_second_signal_ends_all_with_130(note_of: Any, tmp_path: Path) -> None:
    note_of(0, KeyboardInterrupt())
    error = launch._stopped(signal.SIGINT, PLAN, tmp_path)
    assert error.exit_code == 130
    assert "second signal" in error.problems[0].found


def test_a_signal_before_the_first_step_says_how_to_go_on(
    tmp_path: Path, golden_error: Pin
) -> None:
    error = launch._stopped(signal.SIGTERM, PLAN, tmp_path)
    assert error.exit_code == 143
    golden_error(error)


def test_a_rank_that_was_killed_is_named_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("x" * 5000 + "the end")
    error = launch._failed(1, -9, PLAN, tmp_path)
    (problem,) = error.problems
    assert problem.where == f"rank 1 on {socket.gethostname()}"
    assert "ended by SIGKILL; was memory short?" in problem.found
    assert problem.found.endswith("the end")
    assert len(problem.found) < 4200
    assert error.exit_code == 1
    assert problem.commands == ("sftpipe train run=outputs/yoda/1 sft.resume_from_checkpoint=auto",)


def test_a_bug_of_a_rank_keeps_its_traceback(note_of: Any, tmp_path: Path) -> None:
    note_of(1, ZeroDivisionError(), "Traceback: division by zero")
    error = launch._failed(1, 1, PLAN, tmp_path)
    assert error.exit_code == 1
    assert "Traceback: division by zero" in error.problems[0].found
