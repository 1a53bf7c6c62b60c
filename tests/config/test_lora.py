"""Which initialisations of LoRA a config may ask for."""

from __future__ import annotations

import pytest

from sftpipe.config.lora import INITIALISATIONS, NITER, initialisation
from support.configs import compose, config_error
from support.errors import Pin, places, told

KEY = "lora.init_lora_weights"
LORA = ("model=smollm2_135m", "lora=default")


@pytest.mark.parametrize("value", ["eva", "corda", "lora_ga", "loftq"])
def test_what_no_plain_reload_could_give_is_refused(value: str, golden_error: Pin) -> None:
    error = config_error(*LORA, f"+{KEY}={value}")
    assert told(error) == {KEY: (f"{KEY}=true",)}
    golden_error(error)


@pytest.mark.parametrize("value", ["pissa", "pissa_niter_4", "olora", "orthogonal", "mica"])
def test_what_starts_from_exact_weights_is_refused_on_quantized_ones(value: str) -> None:
    compose([*LORA, f"+{KEY}={value}"])
    error = config_error(*LORA, "quantization=nf4", f"+{KEY}={value}")
    assert told(error) == {KEY: ("quantization=none", f"{KEY}=true")}


@pytest.mark.parametrize("value", ["pizza", "pissa_niter_", "pissa_niter_-1"])
def test_an_unknown_name_is_refused(value: str) -> None:
    assert places(config_error(*LORA, f"+{KEY}={value}")) == [KEY]


def test_every_name_is_found() -> None:
    for name, found in INITIALISATIONS.items():
        value = {"true": True, "false": False, NITER: "pissa_niter_16"}.get(name, name)
        assert initialisation(value) is found


def test_an_orthogonal_start_needs_even_ranks() -> None:
    error = config_error(*LORA, f"+{KEY}=orthogonal", "lora.r=7", "+lora.rank_pattern={q_proj: 3}")
    assert places(error) == ["lora.r", "lora.rank_pattern.q_proj"]
    assert error.problems[0].commands == ("lora.r=8",)
