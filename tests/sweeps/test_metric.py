"""The number that ranks a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sftpipe.runs.folder import RunFolder
from sftpipe.sweeps.metric import Metric, losses

LOG = [
    {"step": 0, "eval_loss": 0.5},
    {"step": 1, "loss": 3.0},
    {"step": 2, "eval_loss": 1.25},
    {"step": 4, "eval_loss": 1.75},
]
METRICS = {
    "train": {"loss": 2.0, "steps": 4},
    "validation": {"before": {"loss": 0.5}, "after": {"loss": 1.75}},
    "test": {"loss": 1.5},
}


@pytest.fixture
def files(tmp_path: Path) -> RunFolder:
    write(tmp_path, LOG, METRICS)
    return RunFolder(tmp_path)


def write(folder: Path, log: list[dict[str, Any]], metrics: dict[str, Any]) -> None:
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in log))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "COMPLETE").write_text("now\n")


def test_the_best_loss_is_the_lowest_after_the_first_step(files: RunFolder) -> None:
    assert Metric().of(files) == 1.25
    assert list(losses(files)) == [(2, 1.25), (4, 1.75), (4, 1.75)]


def test_several_validation_sets_count_the_same(tmp_path: Path) -> None:
    log = [{"step": 2, "eval_news_loss": 1.0, "eval_chat_loss": 2.0}]
    after = {"news": {"after": {"loss": 1.0}}, "chat": {"after": {"loss": 1.5}}}
    write(tmp_path, log, {**METRICS, "validation": after})
    assert list(losses(RunFolder(tmp_path))) == [(2, 1.5), (4, 1.25)]


def test_a_line_that_is_being_written_is_passed_over(files: RunFolder) -> None:
    with files.log.open("a") as file:
        file.write('{"step": 6, "eval_lo')
    assert Metric().of(files) == 1.25


@pytest.mark.parametrize(
    ("name", "value"),
    [("test.loss", 1.5), ("validation.after.loss", 1.75), ("train.loss", 2.0), ("test.los", None)],
)
def test_every_number_of_metrics_can_rank(name: str, value: Any, files: RunFolder) -> None:
    assert Metric(name).of(files) == value
    assert Metric(name).interval(files) is None


def test_an_evaluated_run_has_the_interval_of_its_difference(files: RunFolder) -> None:
    figures = {"base": 3.0, "run": 2.5, "difference": -0.5, "interval": [-0.75, -0.25]}
    files.evaluation.write_text(json.dumps({"metrics": {"chrf": figures}}))
    assert Metric("evaluation.chrf").of(files) == 2.5
    assert Metric("evaluation.chrf").interval(files) == (-0.75, -0.25)
    assert Metric().interval(files) is None


def test_a_number_that_is_none_ranks_nothing(files: RunFolder) -> None:
    files.metrics.write_text('{"train": {"loss": NaN}}')
    assert Metric("train.loss").of(files) is None
