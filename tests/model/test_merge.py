"""Adapters merged into their base: the same logits, and weights that are rounded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from sftpipe.config.schema import ModelConfig
from sftpipe.errors import ExportError
from sftpipe.model.load import load_base
from sftpipe.model.merge import dequantize, merge_adapter
from sftpipe.model.weights import Weights
from support.errors import named, refused, told
from support.models import CPU, llama, saved

IDS = torch.tensor([[1, 5, 9, 33, 2, 60]])


def awake(model: Any) -> Any:
    """Every trained number is moved, so that nothing of an adapter is zero or one."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.data += noise.to(parameter.dtype)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "fields",
    named(
        [
            ["plain", {}],
            ["dora", {"use_dora": True}],
            ["rslora", {"use_rslora": True}],
            ["new tokens", {"trainable_token_indices": {"embed_tokens": [7, 33]}}],
            ["a whole module", {"modules_to_save": ["norm"]}],
            ["the embedding", {"target_modules": ["embed_tokens", "q_proj"]}],
            ["the output", {"target_modules": ["lm_head", "q_proj"]}],
            ["a new embedding", {"modules_to_save": ["embed_tokens"]}],
            ["a new output", {"modules_to_save": ["lm_head"]}],
            ["ranks of their own", {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 9}}],
        ]
    ),
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_merged_model_says_what_the_adapter_said(
    fields: dict[str, Any], tied: bool, tmp_path: Path
) -> None:
    asked = {"r": 2, "lora_alpha": 8, "target_modules": "all-linear", **fields}
    base = llama(64, tied=tied)
    adapted = awake(get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **asked)))
    before = logits(adapted)
    with adapted.disable_adapter():
        plain = logits(adapted)
    assert (before - plain).abs().max() > 0.01
    merged = merge_adapter(adapted)
    assert type(merged) is LlamaForCausalLM
    assert not any("lora" in name for name in merged.state_dict())
    torch.testing.assert_close(logits(merged), before, atol=1e-5, rtol=1e-4)
    merged.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again), logits(merged), atol=0, rtol=0)


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
def test_biases_that_the_base_has_no_place_for_are_told() -> None:
    base = llama(64, tied=False)
    adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj"], lora_bias=True))
    error = refused(ExportError, lambda: merge_adapter(adapted))
    assert told(error) == {"lora.lora_bias": ("export=hub",)}


def test_a_layer_in_half_precision_is_added_in_float32_and_rounded_once() -> None:
    base = llama(64, tied=False).to(torch.bfloat16)
    before = base.model.layers[0].self_attn.q_proj.weight.data.clone()
    adapted = awake(get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"])))
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    added = layer.get_delta_weight("default").clone()
    assert added.dtype == torch.float32
    merged = merge_adapter(adapted).model.layers[0].self_attn.q_proj.weight.data
    assert torch.equal(merged, (before.float() + added).to(torch.bfloat16))
    assert not torch.equal(merged, before + added.to(torch.bfloat16))


@pytest.fixture
def weights(tmp_path: Any) -> Weights:
    return saved(llama(64, tied=False), tmp_path / "tiny")


@pytest.mark.parametrize(
    ("option", "kind"), [("load_in_4bit", Linear4bit), ("load_in_8bit", Linear8bitLt)]
)
def test_the_plain_weights_of_a_quantized_base_are_those_that_it_computes_with(
    option: str, kind: type, weights: Weights
) -> None:
    def load() -> Any:
        return load_base(ModelConfig("x"), {option: True}, weights, CPU, frozen=True).eval()

    quantized = load()
    (name, layer), *_ = (
        (name, one) for name, one in quantized.named_modules() if isinstance(one, kind)
    )
    held: Any = layer.weight
    numbers = (
        dequantize_4bit(held.data, held.quant_state)
        if option == "load_in_4bit"
        else held.data * (held.SCB / 127).unsqueeze(1)
    )
    before = logits(quantized)
    plain = dequantize(load(), torch.float32)
    assert not any(isinstance(one, kind) for one in plain.modules())
    torch.testing.assert_close(plain.get_submodule(name).weight, numbers, atol=1e-6, rtol=1e-5)
    # int8 rounds the activations of evaluation, too
    near = 1e-5 if option == "load_in_4bit" else 0.05
    torch.testing.assert_close(logits(plain), before, atol=near, rtol=near)
