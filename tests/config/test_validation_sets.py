"""Names of validation sets: in data_files, as splits, in the log, and of the best checkpoint."""

from __future__ import annotations

from typing import Any

import pytest

from sftpipe.config.schema import DatasetConfig
from sftpipe.config.validation_sets import (
    in_order,
    log_prefix,
    named_sets,
    split_files,
    validation_losses,
)
from support.configs import compose, config_error
from support.errors import Pin, told

NAMED = ["dataset=json", "dataset.data_files={train: a, validation: {news: b, code: c}}"]
BY_EPOCH = ("sft.eval_strategy=epoch", "sft.save_strategy=epoch")


@pytest.mark.parametrize(
    ("data_files", "expected"),
    [
        ("a", {"train": "a"}),
        (["a", "b"], {"train": ["a", "b"]}),
        ({"train": "a", "validation": ["b"]}, {"train": "a", "validation": ["b"]}),
        (
            {"train": "a", "validation": {"news": "b", "code": ["c"]}, "test": "d"},
            {"train": "a", "validation.news": "b", "validation.code": ["c"], "test": "d"},
        ),
        ({"train": "a", "validation.news": "b"}, {"train": "a", "validation.news": "b"}),
    ],
    ids=str,
)
def test_files_belong_to_splits(data_files: Any, expected: dict[str, Any]) -> None:
    assert split_files(data_files) == expected
    assert list(split_files(data_files)) == list(expected)


def test_a_set_has_its_name_wherever_it_is_named() -> None:
    one = DatasetConfig("json", data_files={"train": "a", "validation": {"b": "c"}})
    two = DatasetConfig("json", data_files={"train": "a", "validation": {"a": "c", "b": "d"}})
    assert named_sets(one) == ["b"]
    assert named_sets(DatasetConfig("mixture", sources=[one, two])) == ["b", "a"]
    assert named_sets(DatasetConfig("json", data_files={"train": "a", "validation": "b"})) == []
    chosen = DatasetConfig("json", data_files=one.data_files, split={"train": "validation.b"})
    assert named_sets(chosen) == []
    splits = ["test", "validation.b", "validation.a", "train"]
    assert in_order(splits) == ["train", "validation.b", "validation.a", "test"]
    assert list(map(log_prefix, splits)) == ["test", "eval_b", "eval_a", "train"]
    assert log_prefix("validation") == "eval"


def test_the_losses_of_a_log_entry_are_found() -> None:
    assert validation_losses({"eval_loss": 1.0, "eval_perplexity": 2.7}) == {"validation": 1.0}
    named = {"eval_news_loss": 1.0, "eval_my_code_loss": 2.0, "loss": 3.0, "test_loss": 4.0}
    assert validation_losses(named) == {"validation news": 1.0, "validation my_code": 2.0}


@pytest.mark.parametrize(
    ("words", "metric"),
    [
        (["evaluation.early_stopping.patience=3"], "eval_news_loss"),
        (["sft.eval_strategy=steps", "sft.load_best_model_at_end=true"], "eval_news_loss"),
        (
            ["sft.eval_strategy=steps", "sft.save_strategy=best"],
            "eval_news_loss",
        ),
        (
            [
                "sft.eval_strategy=epoch",
                "sft.save_strategy=epoch",
                "sft.load_best_model_at_end=true",
                "sft.metric_for_best_model=eval_code_perplexity",
            ],
            "eval_code_perplexity",
        ),
        (
            [
                "sft.eval_strategy=epoch",
                "sft.save_strategy=epoch",
                "sft.load_best_model_at_end=true",
                "sft.metric_for_best_model=code_loss",
            ],
            "code_loss",
        ),
        ([], None),
    ],
    ids=str,
)
def test_the_best_checkpoint_is_that_of_the_first_set_unless_another_is_named(
    words: list[str], metric: str | None
) -> None:
    assert compose([*NAMED, *words]).sft.get("metric_for_best_model") == metric


def test_without_names_the_metric_is_left_to_transformers() -> None:
    cfg = compose(["evaluation.early_stopping.patience=3"])
    assert "metric_for_best_model" not in cfg.sft


@pytest.mark.parametrize(
    "best",
    ["evaluation.early_stopping.patience=3", "sft.save_strategy=best sft.eval_strategy=epoch"],
)
def test_a_metric_of_no_set_is_an_error_with_the_nearest(best: str, golden_error: Pin) -> None:
    error = config_error(*NAMED, *best.split(), "sft.metric_for_best_model=eval_cod_loss")
    key = "sft.metric_for_best_model"
    assert told(error) == {key: (f"{key}=eval_code_loss",)}
    golden_error(error)
