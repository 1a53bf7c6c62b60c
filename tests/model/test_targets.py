"""Each entry of the `lora` group must be in the model, and the message names what is near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sftpipe.errors import ModelError
from sftpipe.model.targets import check_matches, check_targets
from sftpipe.model.weights import find_weights
from sftpipe.tables import adapter_line
from support.errors import places, refused
from support.models import llama
from support.trainers import tiny

RIGHT: list[dict[str, Any]] = [
    {},
    {"target_modules": "all-linear", "rank_pattern": {"q_proj": 4, r"layers\.0\..*": 2}},
    {"target_modules": ["q_proj", "mlp.up_proj"], "modules_to_save": ["lm_head", "norm"]},
    {"target_modules": r".*\.layers\.\d+\.self_attn\.[qv]_proj"},
    {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [0, 63]}},
    {"target_parameters": ["self_attn.q_proj.weight"]},
]
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"target_modules": ["q_proj", "v_prj"]}, "target_modules", "lora.target_modules=[q_proj,v_p"),
    ({"target_modules": ["query"]}, "target_modules", "lora.target_modules=all-linear"),
    ({"target_modules": "q_proj"}, "target_modules", "lora.target_modules=all-linear"),
    ({"modules_to_save": ["lm_haed"]}, "modules_to_save", "lora.modules_to_save=[lm_head]"),
    ({"exclude_modules": ["zzz"]}, "exclude_modules", "lora.exclude_modules=null"),
    ({"target_modules": ["q_proj"], "rank_pattern": {"k_proj": 4}}, "rank_pattern", ""),
    ({"target_modules": "all-linear", "alpha_pattern": {"lm_head": 4}}, "alpha_pattern", ""),
    (
        {"target_modules": ["q_proj"], "layers_to_transform": [0, 7]},
        "layers_to_transform",
        "lora.layers_to_transform=[0]",
    ),
    (
        {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": ["layer"]},
        "layers_pattern",
        "lora.layers_pattern=[layers]",
    ),
    ({"target_parameters": ["q_proj.wieght"]}, "target_parameters", "lora.target_parameters=[q_"),
    ({"trainable_token_indices": [64]}, "trainable_token_indices", ""),
    ({"trainable_token_indices": {"wte": [1]}}, "trainable_token_indices", ""),
]


@pytest.mark.parametrize("lora", RIGHT)
def test_entries_that_are_in_the_model_are_right(lora: dict[str, Any]) -> None:
    check_matches(lora, llama(64, tied=True))


@pytest.mark.parametrize(("lora", "key", "typed"), WRONG)
def test_an_entry_that_matches_nothing_is_an_error(
    lora: dict[str, Any], key: str, typed: str
) -> None:
    error = refused(ModelError, lambda: check_matches(lora, llama(64, tied=True)))
    assert places(error) == [f"lora.{key}"]
    assert [one for one in error.problems[0].commands if one.strip('"').startswith(typed)] or (
        not typed and not error.problems[0].commands
    )


def test_every_bad_entry_is_named_at_once_before_the_weights_are_loaded(tiny_model: Path) -> None:
    words = ["lora.target_modules=[q_porj,zzz]", "lora.modules_to_save=[nrm]"]
    cfg = tiny(tiny_model, *words)
    error = refused(ModelError, lambda: check_targets(cfg, find_weights(cfg.model)))
    assert places(error) == ["lora.target_modules"] * 2 + ["lora.modules_to_save"]
    check_targets(tiny(tiny_model, "lora.target_modules=[q_proj]"), find_weights(cfg.model))


def test_the_summary_names_kinds_and_counts_modules() -> None:
    line = adapter_line(["a.0.q_proj", "a.1.q_proj", "a.0.v_proj"], 8)
    assert line == "adapter   q_proj, v_proj (2 kinds, 3 modules), r=8"
