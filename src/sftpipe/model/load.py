"""The base model on its device: loaded, and quantized if asked for, or made from scratch."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import sftpipe.ranks as ranks
from sftpipe.config.schema import ModelConfig, TrainConfig
from sftpipe.errors import ModelError, Problem, one_line, override
from sftpipe.model.architecture import model_config, rejected
from sftpipe.model.precision import Precision
from sftpipe.model.weights import Weights


def make_base(
    cfg: TrainConfig, weights: Weights, tokenizer: PreTrainedTokenizerFast, precision: Precision
) -> PreTrainedModel:
    """The base model of a run on its device: loaded, or from scratch (`model.init`).

    Raises:
        ModelError: see `load_base` and `random_base`.
    """
    if cfg.model.init == "random":
        return random_base(cfg.model, weights, tokenizer, cfg.seed, precision)
    return load_base(
        cfg.model,
        cfg.quantization,
        weights,
        precision,
        frozen=bool(cfg.lora),
        divided=is_divided(cfg),
    )


def is_divided(cfg: TrainConfig) -> bool:
    """True where this is one of several processes, and each holds a part of the model."""
    asked = cfg.distributed
    return asked is not None and asked.strategy == "fsdp2" and ranks.world_size() > 1


def load_base(
    cfg: ModelConfig,
    quantization: Mapping[str, Any],
    weights: Weights,
    precision: Precision,
    *,
    frozen: bool,
    divided: bool = False,
) -> PreTrainedModel:
    """Load the base model onto its device (`_device`), quantized if asked for.

    Args:
        cfg: the `model` group.
        quantization: `BitsAndBytesConfig` fields; empty for none.
        weights: what `find_weights` found.
        precision: what `choose_precision` decided.
        frozen: an adapter is trained; else all weights are, and load in `precision.trained`.
        divided: among processes.

    Raises:
        ModelError: the weights cannot be loaded, or not divided as they are packed.
    """
    # longer than most: a line for each thing that is asked of transformers
    extra = attention(cfg)
    if quantization:
        extra["quantization_config"] = quantization_config(quantization, precision, divided=divided)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            weights.path,
            revision=weights.revision,
            dtype=precision.compute if frozen else precision.trained,
            device_map={"": _device(precision, apart=divided and not quantization)},
            use_safetensors=True,
            **extra,
        )
    except (OSError, ValueError, ImportError) as error:
        found = f"{weights.identity} cannot be loaded: {one_line(error)[:300]}"
        allowed = "a causal language model of transformers, with safetensors weights"
        fix = "check model.name_or_path, model.attn_implementation and quantization"
        raise ModelError(Problem("model", found, allowed=allowed, fix=fix)) from None
    # what is written down as the base: an identity, not a path of this machine
    name = weights.identity if weights.revision is None else weights.path
    model.name_or_path = model.config._name_or_path = name
    model.config.use_cache = False  # generation asks for its cache itself
    keep_gradients_of_4bit(model)
    keep_scales_of_8bit(model)
    return model


def _device(precision: Precision, *, apart: bool) -> str | int:
    """Where this process loads a base: onto its device, or apart from it, to be divided later.

    Of several processes the first alone reads it then, into the memory of its CPU; the others have
    it on torch's device `meta`. A quantized one is not kept apart: each process packs it on its
    device, which takes the whole of it until it is divided.
    """
    if apart:
        return "cpu" if ranks.is_first() else "meta"
    return ranks.local_rank() if precision.device == "cuda" else "cpu"


def random_base(
    cfg: ModelConfig,
    weights: Weights,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    precision: Precision,
) -> PreTrainedModel:
    """A model from scratch (`model.init=random`), with the tokenizer's vocabulary.

    Its weights are drawn from `seed`, and from no other random state.

    Raises:
        ModelError: transformers rejects the config.
    """
    config = model_config(cfg, weights)
    config.vocab_size = len(tokenizer)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForCausalLM.from_config(
                config, dtype=precision.trained, **attention(cfg)
            )
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            raise rejected(error) from None
    model.name_or_path = model.config._name_or_path = weights.identity
    model.config.use_cache = False
    return model.to(precision.device)


def quantization_config(
    quantization: Mapping[str, Any], precision: Precision, divided: bool = False
) -> BitsAndBytesConfig:
    """The `BitsAndBytesConfig` of the `quantization` group, whose `auto` is the run's precision.

    Raises:
        ModelError: packed weights that are to be divided, in other numbers than the rest.
    """
    fields = dict(quantization)
    if divided and fields.get("load_in_4bit"):
        fields["bnb_4bit_quant_storage"] = _storage(fields, precision)
    if fields.get("bnb_4bit_compute_dtype") == "auto":
        fields["bnb_4bit_compute_dtype"] = precision.compute
    if "llm_int8_threshold" in fields:  # it takes no whole number
        fields["llm_int8_threshold"] = float(fields["llm_int8_threshold"])
    return BitsAndBytesConfig(**fields)


def _storage(fields: Mapping[str, Any], precision: Precision) -> torch.dtype:
    """What packed weights pass for while they are divided: the numbers that the layer computes in.

    fully_shard exchanges all weights of a layer at once, and no whole numbers.
    """
    key, needed = "bnb_4bit_quant_storage", str(precision.compute).removeprefix("torch.")
    asked = fields.get(key)
    if asked not in (None, needed):
        found = f"{asked}, and weights that are divided by fsdp2 are packed as model.dtype"
        fix = override(f"quantization.{key}", needed)
        raise ModelError(Problem(f"quantization.{key}", found, allowed=needed, fix=fix))
    return precision.compute


def packed_weights(model: torch.nn.Module) -> set[str]:
    """The names of the 4-bit weights, which are no numbers, whatever dtype they pass for."""
    layers = model.named_modules()
    return {f"{name}.weight" for name, layer in layers if isinstance(layer, Linear4bit)}


def attention(cfg: ModelConfig) -> dict[str, Any]:
    """The keyword of `model.attn_implementation` for transformers, or none."""
    auto = cfg.attn_implementation == "auto"
    return {} if auto else {"attn_implementation": cfg.attn_implementation}


def keep_gradients_of_4bit(model: PreTrainedModel) -> None:
    """Switch off a kernel of bitsandbytes that has no backward pass.

    On CPUs with AVX512-BF16, bitsandbytes repacks the weights for it at the first forward in eval
    mode. Training after an evaluation would lose every gradient through the frozen weights, with a
    warning only.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def keep_scales_of_8bit(model: PreTrainedModel) -> None:
    """Let DoRA work on the 8-bit layers of a CPU.

    There PEFT puts a copy of the weight into the layer each time that DoRA asks for its norms, and
    the copy has no scales any more. bitsandbytes would take them from it at the next forward, which
    would fail.
    """
    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            module.init_8bit_state = functools.partial(_init_8bit_state, module)


def _init_8bit_state(layer: Linear8bitLt) -> None:
    scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
    Linear8bitLt.init_8bit_state(layer)
    layer.state.SCB = scales
