"""LoRA adapters."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from sftpipe.errors import ModelError
from sftpipe.model.adapters import (
    count_parameters,
    load_adapter,
    lora_config,
    make_adapter,
    token_rows,
)
from sftpipe.model.load import load_base
from sftpipe.model.weights import Weights
from support.configs import compose
from support.errors import Pin, places, refused, told
from support.models import CPU, llama, saved

TINY = Weights("", None, "tiny")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.tensor([[1, 2, 60, 61, 3]])


@pytest.mark.parametrize(
    ("option", "scale", "parts"),
    [
        ("default", 32 / 16, {"lora_A", "lora_B"}),
        ("dora", 32 / 16, {"lora_A", "lora_B", "lora_magnitude_vector"}),
        ("rslora", 32 / math.sqrt(16), {"lora_A", "lora_B"}),
    ],
)
def test_every_adapter_trains_itself_only(option: str, scale: float, parts: set[str]) -> None:
    lora = compose([f"lora={option}", "model=custom", "model.name_or_path=x"]).lora
    model = get_peft_model(llama(64, tied=True), lora_config(lora, TINY))
    layers = [(name, one) for name, one in model.named_modules() if isinstance(one, LoraLayer)]
    assert [name.rpartition(".")[2] for name, _ in layers] == LINEAR
    for _, layer in layers:
        assert (layer.r["default"], layer.scaling["default"]) == (16, scale)
        assert layer.lora_dropout["default"].p == 0.05
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert {name.split(".")[7] for name in trained} == parts
    assert len(trained) == len(LINEAR) * len(parts)
    model(IDS, labels=IDS).loss.backward()
    with_gradient = {name for name, one in model.named_parameters() if one.grad is not None}
    assert with_gradient == trained


def test_lora_fields_that_peft_rejects_are_a_user_error() -> None:
    error = refused(ModelError, lambda: lora_config({"r": 8, "layers_pattern": "x"}, TINY))
    assert places(error) == ["lora"]
    assert "layers_pattern" in error.problems[0].found


def test_an_adapter_names_the_commit_of_its_base() -> None:
    assert lora_config({}, Weights("user/name", "abc", "user/name@abc")).revision == "abc"
    assert lora_config({}, TINY).revision is None
    assert lora_config({}, TINY).task_type == "CAUSAL_LM"


@pytest.mark.parametrize("tied", [True, False])
def test_trained_parameters_are_counted_and_tied_tables_count_once(tied: bool) -> None:
    # 4 matrices of attention, 3 of the MLP, 3 norms, the tables
    base = 7 * 8 * 8 + 3 * 8 + (1 if tied else 2) * 64 * 8
    assert count_parameters(llama(64, tied=tied)) == (base, base)
    adapter = lora_config({"r": 2, "target_modules": "all-linear"}, TINY)
    added = 7 * 2 * (8 + 8)
    model = get_peft_model(llama(64, tied=tied), adapter)
    assert count_parameters(model) == (added, base + added)


def test_four_bit_weights_count_as_the_numbers_that_they_encode(tmp_path: Path) -> None:
    cfg = compose(["quantization=nf4", "lora=default", "model.name_or_path=x"])
    weights = saved(llama(64, tied=True), tmp_path)
    model = load_base(cfg.model, cfg.quantization, weights, CPU, frozen=True)
    assert count_parameters(model)[1] == 7 * 8 * 8 + 3 * 8 + 64 * 8


# --- new tokens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_moves_the_rows_of_new_tokens_and_no_other(tied: bool) -> None:
    base = llama(64, tied=tied)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    config = make_adapter({"r": 2, "target_modules": ["v_proj"]}, base, TINY, [60, 61])
    tables = {"embed_tokens": [60, 61]} if tied else {"embed_tokens": [60, 61], "lm_head": [60, 61]}
    assert config is not None
    assert config.trainable_token_indices == tables
    model = get_peft_model(base, config)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1.0)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    after = model.merge_and_unload().state_dict()
    moved = {
        name: (after[name] != before[name]).any(dim=-1).nonzero().flatten().tolist()
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    assert moved == {"model.embed_tokens.weight": [60, 61], "lm_head.weight": [60, 61]}


def test_the_rows_of_new_tokens_are_named_for_peft() -> None:
    assert token_rows(llama(64, tied=True), [60, 61]) == {"embed_tokens": [60, 61]}
    assert token_rows(llama(64, tied=False), [60]) == {"embed_tokens": [60], "lm_head": [60]}
    assert token_rows(llama(64, tied=True), []) == {}


def test_a_config_that_says_what_becomes_of_the_embedding_is_followed() -> None:
    rows = {"embed_tokens": [60, 61]}
    own: dict[str, Any] = {"trainable_token_indices": [5]}
    assert lora_config(own, TINY, rows).trainable_token_indices == [5]
    whole = lora_config({"modules_to_save": ["embed_tokens"]}, TINY, rows)
    assert whole.trainable_token_indices is None
    assert whole.modules_to_save == ["embed_tokens"]
    assert lora_config({}, TINY, {}).trainable_token_indices is None


def test_no_adapter_is_made_where_all_weights_are_trained() -> None:
    assert make_adapter({}, llama(64, tied=True), TINY, [60]) is None


def test_an_output_bias_that_peft_would_leave_out_is_an_error(golden_error: Pin) -> None:
    model = llama(64, tied=False)
    model.lm_head = torch.nn.Linear(8, 64, bias=True)
    error = refused(ModelError, lambda: token_rows(model, [60]))
    assert told(error) == {"lora": ("lora=none",)}
    golden_error(error)
    assert token_rows(model, []) == {}


# --- a trained one --------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [[63], {"embed_tokens": [5, 63]}, None])
def test_an_adapter_loads_on_a_base_that_has_its_rows(rows: Any, tmp_path: Path) -> None:
    fields = {"target_modules": "all-linear", "init_lora_weights": False}
    config = lora_config({**fields, "trainable_token_indices": rows}, TINY)
    trained = get_peft_model(llama(64, tied=True), config).eval()
    trained.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = load_adapter(llama(64, tied=True), str(tmp_path))
    with torch.no_grad():
        expected = trained(IDS).logits
        assert torch.equal(loaded(IDS).logits, expected)
        assert not torch.allclose(llama(64, tied=True)(IDS).logits, expected, atol=1e-3)
    assert not loaded.training


@pytest.mark.parametrize("rows", [[64], {"embed_tokens": [1, 64], "lm_head": [2]}])
def test_an_adapter_on_a_base_without_its_rows_is_an_error(
    rows: Any, tmp_path: Path, golden_error: Pin
) -> None:
    LoraConfig(task_type="CAUSAL_LM", trainable_token_indices=rows).save_pretrained(tmp_path)
    error = refused(ModelError, lambda: load_adapter(llama(64, tied=True), str(tmp_path)))
    assert places(error) == [str(tmp_path)]
    assert re.findall(r"\d+", error.problems[0].found) == ["64", "64"]
    if isinstance(rows, list):
        golden_error(error)
