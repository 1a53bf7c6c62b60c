"""Initialisations of LoRA that no saved adapter could be right with are refused, with what can."""

from __future__ import annotations

import pytest

from support.configs import compose, config_error
from support.errors import places

PLAIN = ["recipe=yoda", "quantization=none"]
KEY = "lora.init_lora_weights"


@pytest.mark.parametrize("value", ["eva", "corda", "lora_ga", "loftq", "pisa", "pissa_niter_x"])
def test_what_no_run_can_begin_with_is_refused(value: str) -> None:
    error = config_error(*PLAIN, f"{KEY}={value}")
    assert places(error) == [KEY]
    for typed in error.problems[0].commands:
        compose([*PLAIN, typed.strip('"')])


@pytest.mark.parametrize("value", ["pissa", "pissa_niter_4", "olora", "orthogonal", "mica"])
def test_what_begins_with_exact_weights_is_refused_on_quantized_ones(value: str) -> None:
    compose([*PLAIN, f"{KEY}={value}"])
    error = config_error("recipe=yoda", "quantization=nf4", f"{KEY}={value}")
    assert places(error) == [KEY]
    assert error.problems[0].commands == ("quantization=none", f"{KEY}=true")


def test_an_orthogonal_start_needs_even_ranks() -> None:
    error = config_error(*PLAIN, f"{KEY}=orthogonal", "lora.r=7", "lora.rank_pattern={q_proj: 3}")
    assert places(error) == ["lora.r", "lora.rank_pattern.q_proj"]
    assert error.problems[0].commands == ("lora.r=8",)
