"""Base models: their dtypes and their attention, quantized or not, loaded or from scratch."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from sftpipe.config.schema import ModelConfig
from sftpipe.errors import ModelError
from sftpipe.model.load import load_base, make_base, packed_weights, quantization_config
from sftpipe.model.precision import Precision
from sftpipe.model.weights import Weights, find_weights
from support.configs import compose
from support.errors import Pin, places, refused
from support.models import CPU, HALF, llama, saved

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    return saved(llama(64, tied=False), tmp_path / "tiny")


def loaded(weights: Weights, precision: Precision, *, frozen: bool = True, **fields: Any) -> Any:
    return load_base(ModelConfig("x", **fields), {}, weights, precision, frozen=frozen)


def dtypes(model: Any) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}


# --- loaded ---------------------------------------------------------------------------------------


def test_a_frozen_base_has_the_dtype_of_computing_and_a_trained_one_that_of_the_optimizer(
    weights: Weights,
) -> None:
    frozen, trained = loaded(weights, HALF), loaded(weights, HALF, frozen=False)
    assert (dtypes(frozen), dtypes(trained)) == ({torch.bfloat16}, {torch.float32})
    original = llama(64, tied=False).state_dict()
    torch.testing.assert_close(trained.state_dict(), original, rtol=0, atol=0)


def test_a_run_freezes_its_base_where_it_trains_an_adapter(weights: Weights) -> None:
    words = ["recipe=yoda", "quantization=none", "model=custom", "model.name_or_path=x"]
    made = [
        make_base(compose([*words, f"lora={lora}"]), weights, None, HALF)
        for lora in ("default", "none")
    ]
    assert [model.dtype for model in made] == [torch.bfloat16, torch.float32]


def test_the_attention_is_that_of_the_config(weights: Weights) -> None:
    names = [
        loaded(weights, CPU, attn_implementation=name).config._attn_implementation
        for name in ("auto", "eager", "sdpa")
    ]
    assert names == ["sdpa", "eager", "sdpa"]


def test_a_folder_is_written_down_by_its_identity_and_a_commit_by_its_name(
    weights: Weights,
) -> None:
    folder = loaded(weights, CPU)
    assert folder.name_or_path == folder.config._name_or_path == weights.identity
    assert weights.identity.startswith("tiny sha256:")
    pinned = loaded(Weights(weights.path, "abc", "user/name@abc"), CPU)
    assert pinned.name_or_path == pinned.config._name_or_path == weights.path
    assert folder.config.use_cache is False


def test_pickled_weights_are_not_loaded(weights: Weights) -> None:
    file = Path(weights.path) / "model.safetensors"
    torch.save(llama(64, tied=False).state_dict(), file.with_name("pytorch_model.bin"))
    file.unlink()
    error = refused(ModelError, lambda: loaded(weights, CPU))
    assert places(error) == ["model"]
    assert "safetensors" in error.problems[0].allowed


def test_weights_that_are_no_language_model_are_an_error(tmp_path: Path, golden_error: Pin) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    found = find_weights(ModelConfig(str(tmp_path)))
    (problem,) = refused(ModelError, lambda: loaded(found, CPU)).problems
    assert problem.where == "model"
    assert problem.found.startswith(f"{found.identity} cannot be loaded: ")
    golden_error(replace(problem, found="<found>"))


# --- quantized ------------------------------------------------------------------------------------


@pytest.fixture
def wide(tmp_path: Path) -> tuple[Any, Weights]:
    """A Llama whose weights fill blocks of 64, and the same in a folder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    model = LlamaForCausalLM(config).eval()
    return model, saved(model, tmp_path / "wide")


def quantized(option: str, weights: Weights, precision: Precision = CPU) -> Any:
    cfg = compose([f"quantization={option}", "lora=default", "model.name_or_path=x"])
    return load_base(cfg.model, cfg.quantization, weights, precision, frozen=True)


def modules(model: Any, kind: type) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


# the widest gap between two neighbours of the numbers is twice this share of the largest
@pytest.mark.parametrize(("option", "half_a_gap"), [("nf4", 0.1520), ("fp4", 0.1667)])
def test_four_bits_hold_each_weight_to_half_a_step_of_their_numbers(
    option: str, half_a_gap: float, wide: tuple[Any, Weights]
) -> None:
    original, weights = wide
    model = quantized(option, weights)
    layers = modules(model, Linear4bit)
    assert [name.rpartition(".")[2] for name in layers] == LINEAR
    for name, layer in layers.items():
        before, state = original.get_submodule(name).weight, layer.weight.quant_state
        after = dequantize_4bit(layer.weight.data, state)
        assert 0.02 < (after - before).abs().max() / before.abs().max() < half_a_gap + 0.01
        assert (state.quant_type, state.nested) == (option, True)
        assert layer.compute_dtype is torch.float32
        # bitsandbytes has no backward pass for its kernel of such CPUs
        assert layer.support_avx512bf16_for_cpu is False
        before.data = after
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, atol=1e-5, rtol=1e-4)


def test_eight_bits_hold_each_weight_to_half_a_step(wide: tuple[Any, Weights]) -> None:
    original, weights = wide
    model = quantized("int8", weights)
    layers = modules(model, Linear8bitLt)
    assert [name.rpartition(".")[2] for name in layers] == LINEAR
    for name, layer in layers.items():
        before = original.get_submodule(name).weight
        after = layer.weight.data * (layer.weight.SCB / 127).unsqueeze(1)
        steps = (after - before).abs() / (before.abs().amax(1, keepdim=True) / 127)
        assert 0.4 < steps.max() < 0.55  # the scales are rounded, too
        assert layer.state.threshold == 6.0


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_eight_bits_keep_their_scales_through_training_and_evaluation(
    dora: bool, wide: tuple[Any, Weights]
) -> None:
    base = quantized("int8", wide[1])
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", use_dora=dora))
    ids = torch.tensor([[1, 2, 3]])
    passes = []
    for training in (True, False, True, False):
        model.train(training)
        passes.append(model(ids).logits)
        passes[-1].sum().backward()
    assert float(passes[0].detach().abs().max()) > 0.1
    torch.testing.assert_close(passes[0], passes[2], atol=0, rtol=0)
    torch.testing.assert_close(passes[1], passes[3], atol=0, rtol=0)
    # evaluation rounds the activations to 8 bits as well
    torch.testing.assert_close(passes[0], passes[1], atol=0.02, rtol=0.05)


def test_four_bits_compute_in_the_runs_precision_or_in_that_of_the_config() -> None:
    auto = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "auto"}
    assert quantization_config(auto, HALF).bnb_4bit_compute_dtype is torch.bfloat16
    assert quantization_config(auto, CPU).bnb_4bit_compute_dtype is torch.float32
    chosen = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float16"}
    assert quantization_config(chosen, HALF).bnb_4bit_compute_dtype is torch.float16
    assert auto["bnb_4bit_compute_dtype"] == "auto"


# --- to be divided among processes ----------------------------------------------------------------


def test_four_bits_that_are_divided_pass_for_the_numbers_of_the_layer() -> None:
    nf4 = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "auto"}
    for precision in (CPU, HALF):
        made = quantization_config(nf4, precision, divided=True)
        assert made.bnb_4bit_quant_storage is precision.compute
    assert quantization_config(nf4, HALF).bnb_4bit_quant_storage is torch.uint8
    asked = {**nf4, "bnb_4bit_quant_storage": "bfloat16"}
    assert quantization_config(asked, HALF, divided=True).bnb_4bit_quant_storage is torch.bfloat16


def test_four_bits_that_are_divided_are_stored_as_nothing_else(golden_error: Pin) -> None:
    asked = {"load_in_4bit": True, "bnb_4bit_quant_storage": "uint8"}
    error = refused(ModelError, lambda: quantization_config(asked, HALF, divided=True))
    assert places(error) == ["quantization.bnb_4bit_quant_storage"]
    golden_error(error)


def named_shapes(model: Any) -> list[tuple[str, torch.Size, torch.dtype]]:
    return [(name, one.shape, one.dtype) for name, one in model.named_parameters()]


def test_a_process_that_is_not_the_first_has_shapes_and_no_numbers(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = functools.partial(
        load_base, ModelConfig("x"), {}, weights, HALF, frozen=True, divided=True
    )
    first = made()
    monkeypatch.setattr("sftpipe.ranks.rank", lambda: 1)
    other = made()
    assert {one.device.type for one in first.parameters()} == {"cpu"}
    assert {one.device.type for one in other.parameters()} == {"meta"}
    found = [
        [(name, one.shape, one.dtype) for name, one in made.named_parameters()]
        for made in (first, other)
    ]
    assert found[0] == found[1]


def test_the_names_of_packed_weights_are_those_of_the_parameters(weights: Weights) -> None:
    quantization = {"load_in_4bit": True, "bnb_4bit_quant_storage": "float32"}
    model = load_base(ModelConfig("x"), quantization, weights, CPU, frozen=True)
    packed = {n for n, one in model.named_parameters() if hasattr(one, "quant_state")}
    assert packed_weights(model) == packed
    assert len(packed) == len(LINEAR)
    assert packed_weights(loaded(weights, CPU)) == set()
