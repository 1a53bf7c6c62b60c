"""What a sweep is made of: its jobs, what varies in it, and what sweepers see of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sftpipe.config.hydra import ComposedRun
from sftpipe.config.multirun import (
    Swept,
    compose_multirun,
    folder_of,
    grid,
    job_of,
    run_multirun,
    words_of,
)
from sftpipe.errors import ConfigError
from support.errors import Pin, places, refused, told


def test_a_grid_varies_its_last_key_fastest() -> None:
    jobs = grid(["recipe=yoda", "lora.r=4,8", "sft.max_steps=2", "seed=range(1,3)"])

    assert jobs == [
        ["recipe=yoda", "lora.r=4", "sft.max_steps=2", "seed=1"],
        ["recipe=yoda", "lora.r=4", "sft.max_steps=2", "seed=2"],
        ["recipe=yoda", "lora.r=8", "sft.max_steps=2", "seed=1"],
        ["recipe=yoda", "lora.r=8", "sft.max_steps=2", "seed=2"],
    ]


def test_a_grid_over_recipes_checks_each_name() -> None:
    error = refused(ConfigError, lambda: grid(["recipe=yoda,yodaa"]))

    assert told(error) == {"recipe=yodaa (command line)": ("recipe=yoda",)}


def test_a_glob_chooses_options_and_recipes() -> None:
    assert grid(["lora=glob(d*)"]) == [["lora=default"], ["lora=dora"]]
    recipes = grid(["recipe=glob(yoda*,exclude=yoda_*)"])
    assert recipes == [["recipe=yoda"]]


@pytest.mark.parametrize(
    ("values", "place"), [("lora=glob(z*)", "lora"), ("seed=interval(1,2)", "seed=interval(1,2)")]
)
def test_a_sweep_that_cannot_be_listed_is_a_config_error(
    values: str, place: str, golden_error: Pin
) -> None:
    error = refused(ConfigError, lambda: grid([values]))

    assert places(error) == [place]
    golden_error(error)


def test_what_varies_is_told_from_what_does_not() -> None:
    words = ["recipe=yoda", "lora.r=4,8", "sft.learning_rate=tag(log,interval(1e-5,1e-3))"]

    multirun = compose_multirun([*words, "++seed=3", "hydra.launcher.n_jobs=2"])

    assert multirun.words == (*words, "seed=3")
    assert multirun.settings == ("hydra.launcher.n_jobs=2",)
    assert multirun.constants == {"recipe=yoda", "seed=3"}
    assert multirun.swept == [
        Swept("lora.r", ("4", "8")),
        Swept("sft.learning_rate", ("1e-05", "0.001"), is_interval=True, tags=frozenset({"log"})),
    ]
    assert (multirun.sweeper, multirun.launcher, multirun.directory) == ("basic", "process", None)
    assert compose_multirun(["seed=1,2", "hydra.sweep.dir=there"]).directory == Path("there")


def test_sweepers_and_launchers_see_names_as_they_are_typed(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Watching:
        """The task function of the launcher `process`: `run` gets what it composed."""

        def run(self, composed: Sequence[Any], *_: Any) -> list[Any]:
            seen.extend((words_of(one), folder_of(one), job_of(one)) for one in composed)
            return []

    def place(run: ComposedRun, words: Sequence[str]) -> str:
        assert isinstance(run, ComposedRun)
        assert "++" not in str(words)
        return words[1].partition("=")[2]

    multirun = compose_multirun(["recipe=yoda", "+sft.adam_epsilon=1e-8,1e-7", "++lora.r=4"])
    run_multirun(multirun, tmp_path, Watching(), place)  # type: ignore[arg-type]

    assert [words for words, _, _ in seen] == [
        ["recipe=yoda", f"sft.adam_epsilon={value}", "lora.r=4"] for value in ("1e-08", "1e-07")
    ]
    assert [folder for _, folder, _ in seen] == [tmp_path / "1e-08", tmp_path / "1e-07"]
    assert [run.config.sft["adam_epsilon"] for _, _, run in seen] == [1e-8, 1e-7]
