"""`hydra/sweeper=optuna`: a search that finds, prunes, goes on and repeats nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from sftpipe.sweeps.folder import SweepFolder
from sftpipe.sweeps.search import importances
from support.errors import Pin
from support.sweeping import Sweeps, rows_of, states

SWEEP = Path("sweep")
SEARCH = ("-m", "recipe=yoda", "hydra/sweeper=optuna", "hydra.sweep.dir=sweep")
RANKS = "lora.r=choice(2,4,8,16,32,64)"


def trials() -> list[Any]:
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(SWEEP / "optuna.journal"))
    )
    found = optuna.load_study(study_name="sftpipe", storage=storage).trials
    return [one for one in found if "same_as" not in one.user_attrs]


def points() -> list[tuple[int, str]]:
    """(trial, job) of all jobs, as they were proposed."""
    return sorted((row["trial"], row["job"]) for row in rows_of(SWEEP))


def test_a_search_finds_the_best_in_fewer_trials_than_the_grid_has(train: Sweeps) -> None:
    done = train(*SEARCH, RANKS, "hydra.sweeper.n_trials=5")

    assert done.code == 0, done.err
    assert len(rows_of(SWEEP)) == 5  # of 6
    assert rows_of(SWEEP)[0]["values"]["lora.r"] == 8
    assert len({row["job"] for row in rows_of(SWEEP)}) == 5
    assert sum(importances(SweepFolder(SWEEP)).values()) == pytest.approx(1)


@pytest.mark.slow
def test_a_search_that_was_stopped_proposes_what_it_would_have_proposed(
    train: Sweeps, tmp_path: Path
) -> None:
    words = (RANKS, "sft.learning_rate=tag(log,interval(1e-5,1e-3))")
    train(*SEARCH, *words, "hydra.sweeper.n_trials=4")
    whole = points()
    SWEEP.rename("whole")

    train(*SEARCH, *words, "hydra.sweeper.n_trials=2")
    assert len(points()) == 2
    assert train(*SEARCH, *words, "hydra.sweeper.n_trials=4").code == 0

    assert points() == whole


def test_a_trial_that_was_killed_is_gone_on_with(train: Sweeps) -> None:
    train.ends(s42="is killed")
    words = (RANKS, "hydra.sweeper.n_trials=2")
    assert train(*SEARCH, *words).code == 1
    assert [one.state.name for one in trials()] == ["RUNNING", "RUNNING"]
    first = points()
    with (SWEEP / "optuna.journal").open("a") as file:
        file.write('{"op_code": 4, "wor')  # what a kill of the parent leaves of a line

    assert train("-m", "--continue", "sweep").code == 0

    assert points() == first
    assert [one.state.name for one in trials()] == ["COMPLETE", "COMPLETE"]
    job = rows_of(SWEEP)[0]["job"]
    assert json.loads((SWEEP / job / "attempt.json").read_text()) == 2


def test_a_search_ends_with_its_space_and_a_failed_trial_is_told(train: Sweeps) -> None:
    train.ends(s2="fails")
    assert train(*SEARCH, "seed=1,2,3").code == 1
    assert sorted(states(SWEEP).values()) == ["done", "done", "failed"]
    assert sorted(one.state.name for one in trials()) == ["COMPLETE", "COMPLETE", "FAIL"]


def test_a_trial_that_is_worse_than_others_is_pruned(
    train: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_STEP_S", "0.2")  # so that a look comes between two evaluations
    pruner = "hydra.sweeper.pruner=median"
    args = "hydra.sweeper.pruner_args={n_startup_trials: 1}"
    done = train(*SEARCH, RANKS, "hydra.sweeper.n_trials=3", pruner, args)
    assert done.code == 0, done.err
    assert "pruned" in states(SWEEP).values()
    pruned = [row for row in rows_of(SWEEP) if row["state"] == "pruned"]
    assert {(row["rank"], row["error"]) for row in pruned} == {(None, "")}
    assert [one.state.name for one in trials()].count("PRUNED") == len(pruned)
    assert train("-m", "--continue", "sweep").code == 0  # they stay pruned
    assert len(trials()) == 3


def test_a_metric_that_no_trial_reports_ends_a_search_after_the_first(train: Sweeps) -> None:
    done = train(*SEARCH, RANKS, "hydra.sweeper.metric=test.los")
    assert done.code == 2
    assert len(rows_of(SWEEP)) == 1
    assert "the metric test.los: no job reports it" in done.err
    assert "hydra.sweeper.metric=" in done.err


def test_a_recipe_may_hold_the_space(train: Sweeps) -> None:
    Path("recipes").mkdir()
    Path("recipes/searching.yaml").write_text(
        "# A search.\n"
        "defaults: [yoda, override /hydra/sweeper: optuna, _self_]\n"
        "hydra: {sweep: {dir: sweep}, sweeper: {n_trials: 2, params: {lora.r: 'choice(4,8)'}}}\n"
    )
    assert train("-m", "recipe=searching").code == 0
    assert set(states(SWEEP)) == {"r-4", "r-8"}


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ([], "the search"),
        (["lora.r=4,8", "hydra.sweeper.sampler=tpee"], "hydra.sweeper.sampler"),
        (["lora.r=4,8", "hydra.sweeper.pruner=x"], "hydra.sweeper.pruner"),
        (["lora.r=4,8", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials"),
        (["lora.r=4,8", "hydra/launcher=basic"], "hydra/launcher"),
        (["sft.learning_rate=tag(log,interval(0,1))"], "sft.learning_rate"),
        (["sft.learning_rate=interval(1,1)"], "sft.learning_rate"),
        (["sft.learning_rate=interval(1,1e9)"], "sft.learning_rate (command line)"),  # an end
        (["lora.r=4,x"], "lora.r (command line)"),  # a choice
        (
            ["lora.r=4,8", "hydra.sweeper.metric=train.loss", "hydra.sweeper.pruner=median"],
            "hydra.sweeper.pruner",
        ),
    ],
)
def test_a_search_that_cannot_work_is_refused_before_its_first_trial(
    words: list[str], place: str, train: Sweeps, golden_error: Pin
) -> None:
    done = train(*SEARCH, *words)
    assert done.code == 2
    assert done.err.startswith(f"error\n  {place}: ")
    assert not SWEEP.exists()
    golden_error(done.err)


def test_another_space_is_refused(train: Sweeps, golden_error: Pin) -> None:
    train(*SEARCH, "lora.r=4,8", "hydra.sweeper.n_trials=1")
    done = train("-m", "--continue", "sweep", "lora.r=4,16")
    assert done.code == 2
    golden_error(done.err[done.err.index("error\n") :])


def test_arguments_that_optuna_refuses_are_told(train: Sweeps) -> None:
    done = train(*SEARCH, "lora.r=4,8", "hydra.sweeper.sampler_args={no_such: 1}")
    assert done.code == 2
    assert "hydra.sweeper.sampler_args: Optuna refuses" in done.err


def test_without_optuna_the_extra_is_named(
    train: Sweeps, monkeypatch: pytest.MonkeyPatch, golden_error: Pin
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = train(*SEARCH, "lora.r=4,8")
    assert done.code == 2
    golden_error(done.err)
