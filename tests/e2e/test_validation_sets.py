"""Several validation sets with names: from the command line to the files of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import sftpipe
from sftpipe.config.validation_sets import split_files
from sftpipe.data.source import load_sources
from sftpipe.errors import DataError
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.summary import metric_rows
from support.configs import compose
from support.errors import Pin, refused, told
from support.trainers import mean_loss

FORMAT = ["dataset=json", "format=prompt_completion"]


def rows(name: str, count: int) -> list[dict[str, str]]:
    return [{"prompt": f"{name} {n}?", "completion": f"{name} is {n}."} for n in range(count)]


@pytest.fixture
def files(rows_file: Callable[..., str]) -> dict[str, str]:
    counts = {"train": 6, "news": 2, "code": 3}
    return {name: rows_file(rows(name, n), f"{name}.jsonl") for name, n in counts.items()}


def data_files(files: dict[str, str]) -> str:
    named = f"{{news: {files['news']}, code: {files['code']}}}"
    return f"dataset.data_files={{train: {files['train']}, validation: {named}}}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["dataset.data_files={train: a.jsonl, validation: {news: b.jsonl, code: c.jsonl}}"],
        ["dataset.data_files={train: a.jsonl, validation.news: b.jsonl, validation.code: c.jsonl}"],
        [
            "dataset.data_files.train=a.jsonl",
            "dataset.data_files.validation.news=b.jsonl",
            "dataset.data_files.validation.code=c.jsonl",
        ],
    ],
    ids=["one mapping", "dotted names", "a word a file"],
)
def test_the_command_line_names_the_sets(words: list[str], cli: Any) -> None:
    done = cli("config", *FORMAT, *words)
    assert done.returncode == 0, done.stderr
    assert split_files(yaml.safe_load(done.stdout)["dataset"]["data_files"]) == {
        "train": "a.jsonl",
        "validation.news": "b.jsonl",
        "validation.code": "c.jsonl",
    }


def test_each_set_has_its_losses_its_curve_and_its_report(
    files: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    cfg = compose(
        [
            *FORMAT,
            data_files(files),
            "model=custom",
            f"model.name_or_path={tiny_model}",
            "lora=none",
            "sft.max_steps=2",
            "sft.per_device_train_batch_size=2",
            "sft.learning_rate=1e-3",
            "sft.warmup_steps=0",
            "sft.eval_strategy=steps",
            "sft.eval_steps=1",
            "sft.save_strategy=best",
            "evaluation.max_new_tokens=2",
            f"run={tmp_path / 'run'}",
        ]
    )
    run, folder = sftpipe.train(cfg), RunFolder(tmp_path / "run")

    validation = run.metrics["validation"]
    assert list(validation) == ["news", "code"]
    data, model = sftpipe.prepare(cfg), run.load_model()
    assert {name: len(one) for name, one in data.splits().items()} == {
        "train": 6,
        "validation.news": 2,
        "validation.code": 3,
    }
    for name, part in validation.items():
        assert list(part) == ["before", "after"]
        expected = mean_loss(model, data.named_validation[name])
        assert part["after"]["loss"] == pytest.approx(expected, rel=1e-5)
    assert validation["news"]["after"]["loss"] != validation["code"]["after"]["loss"]
    for name in ("news", "code"):
        logged = [entry for entry in folder.read_log() if f"eval_{name}_loss" in entry]
        assert [entry["step"] for entry in logged] == [0, 1, 2]
        assert logged[-1][f"eval_{name}_loss"] == validation[name]["after"]["loss"]
    assert not any("eval_loss" in entry for entry in folder.read_log())

    assert [name for name, _ in metric_rows(run.metrics)][:4] == [
        "validation news loss",
        "validation news perplexity",
        "validation code loss",
        "validation code perplexity",
    ]
    report = json.loads(folder.preflight.read_text())
    assert [one["split"] for one in report["splits"]] == list(data.splits())
    assert folder.read_samples()[0]["prompt"] == "news 0?"
    assert run.config.sft["metric_for_best_model"] == "eval_news_loss"


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["eval_news_loss", "eval_code_loss"])
def test_early_stopping_goes_by_one_set_and_counts_each_of_its_evaluations_once(
    metric: str, files: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    """The first step is at learning rate 0, and those after it spoil the model."""
    cfg = compose(
        [
            *FORMAT,
            data_files(files),
            "model=custom",
            f"model.name_or_path={tiny_model}",
            "lora=none",
            "sft.max_steps=7",
            "sft.per_device_train_batch_size=2",
            "sft.learning_rate=1",
            "sft.lr_scheduler_type=constant_with_warmup",
            "sft.warmup_steps=1",
            "sft.eval_steps=1",
            f"sft.metric_for_best_model={metric}",
            "evaluation.early_stopping.patience=2",
            "evaluation.sample_prompts=[]",
            f"run={tmp_path / 'run'}",
        ]
    )
    run = sftpipe.train(cfg)
    assert run.metrics["train"]["steps"] == 3
    state = json.loads((run.dir / "trainer_state.json").read_text())
    logged = [entry[metric] for entry in state["log_history"] if metric in entry]
    assert state["best_global_step"] == 1
    assert state["best_metric"] == logged[0] < min(logged[1:3])
    for part in run.metrics["validation"].values():
        assert part["after"] == pytest.approx(part["before"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["dataset.data_files.validation.my-set={code}"],
            {"dataset.data_files.validation.my-set": ()},
        ),
        (
            ["dataset.validation_size=1"],
            {"dataset.validation_size": ("dataset.validation_size=0", "dataset.split=train")},
        ),
    ],
    ids=["name", "size"],
)
def test_what_does_not_go_with_named_sets_is_an_error(
    words: list[str],
    expected: dict[str, tuple[str, ...]],
    files: dict[str, str],
    golden_error: Pin,
) -> None:
    given = [word.replace("{code}", files["code"]) for word in words]
    cfg = compose([*FORMAT, data_files(files), *given])
    error = refused(DataError, lambda: load_sources(cfg.dataset, cfg.format))
    assert told(error) == expected
    golden_error(error)


def test_a_set_without_a_name_beside_others_is_an_error(
    files: dict[str, str], golden_error: Pin
) -> None:
    one = f"{{path: json, data_files: {{train: {files['train']}, validation: {files['code']}}}}}"
    named = f"{{train: {files['news']}, validation: {{news: {files['news']}}}}}"
    sources = f"dataset.sources=[{one}, {{path: json, data_files: {named}}}]"
    cfg = compose(["dataset=mixture", sources, "format=prompt_completion"])
    error = refused(DataError, lambda: load_sources(cfg.dataset, cfg.format))
    assert told(error) == {"dataset.data_files.validation": ()}
    golden_error(error)
