"""What early stopping fills in, and what it leaves as the user has set it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from sftpipe.config.hydra import from_recorded
from sftpipe.config.schema import EarlyStoppingConfig, to_plain
from support.configs import compose

PATIENT = "evaluation.early_stopping.patience=3"
FILLED = ("eval_strategy", "save_strategy", "eval_steps", "save_steps")


def filled(*words: str) -> list[Any]:
    sft = compose([PATIENT, *words]).sft
    assert sft["load_best_model_at_end"] is True
    return [sft.get(name) for name in FILLED]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["steps", "steps", 100, 100]),
        (["sft.eval_steps=7"], ["steps", "steps", 7, 7]),
        (["sft.save_steps=8"], ["steps", "steps", 8, 8]),
        (["sft.save_steps=8", "sft.eval_steps=null"], ["steps", "steps", 8, 8]),
        (["sft.save_steps=0.25"], ["steps", "steps", 0.25, 0.25]),
        (["sft.eval_strategy=epoch"], ["epoch", "epoch", None, 100]),
        (["sft.save_strategy=epoch"], ["epoch", "epoch", None, 100]),
    ],
    ids=str,
)
def test_what_is_not_set_follows_from_what_is(words: list[str], expected: list[Any]) -> None:
    assert filled(*words) == expected


def test_a_recipe_sets_keys_as_the_command_line_does() -> None:
    assert filled("recipe=yoda") == ["steps", "steps", 20, 20]  # its save_steps


def test_the_keys_are_as_they_were_without_it() -> None:
    sft = compose([]).sft
    assert "load_best_model_at_end" not in sft
    assert [sft.get(name) for name in FILLED] == ["no", "steps", None, 100]


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("loss", None), ("eval_perplexity", False), ("eval_mean_token_accuracy", None)],
)
def test_a_lower_perplexity_is_a_better_one(metric: str, greater: bool | None) -> None:
    """transformers takes every metric for better where it is greater, but a loss."""
    sft = compose([PATIENT, f"sft.metric_for_best_model={metric}"]).sft
    assert sft.get("greater_is_better") is greater


def test_the_recorded_config_makes_the_same_config() -> None:
    cfg = compose(["evaluation.early_stopping={patience: 2, threshold: 1}", "sft.eval_steps=5"])
    assert cfg.evaluation.early_stopping == EarlyStoppingConfig(2, 1.0)
    recorded = yaml.safe_load(yaml.safe_dump(to_plain(cfg)))
    assert to_plain(from_recorded(recorded, "config.yaml")) == to_plain(cfg)
