"""The base model and its adapter: device and precision, quantized loading, agreement with the tokenizer, LoRA."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sftpipe.config.schema import ModelConfig
from sftpipe.errors import ModelError, Problem, one_line
from sftpipe.model.architecture import model_config, refused
from sftpipe.model.weights import Weights


@dataclass(frozen=True)
class Precision:
    """Where and in which numbers a run computes.

    device: `cuda` or `cpu`.
    compute: dtype of the frozen weights and of autocast.
    trained: dtype of the parameters that the optimizer holds.
    reason: one line for people.
    """

    device: str
    compute: torch.dtype
    trained: torch.dtype
    reason: str


def choose_precision(cfg: ModelConfig, *, use_cpu: bool = False) -> Precision:
    """Settle the `auto`s of `model.dtype` and `model.adapter_dtype` for the hardware that is there.

    Raises:
        ModelError: float16 on a CPU.
    """
    device = "cuda" if torch.cuda.is_available() and not use_cpu else "cpu"
    bf16 = device == "cuda" and torch.cuda.is_bf16_supported()
    if cfg.dtype != "auto":
        compute, why = getattr(torch, cfg.dtype), f"model.dtype={cfg.dtype}"
    elif bf16:
        compute, why = torch.bfloat16, "this GPU computes bfloat16"
    elif device == "cuda":
        compute, why = torch.float32, "this GPU has no bfloat16"
    else:
        compute, why = torch.float32, "exact, and at home on every CPU"
    if device == "cpu" and compute is torch.float16:
        raise ModelError(
            Problem(
                "model.dtype",
                "float16 on a CPU",
                allowed="auto, float32, bfloat16",
                fix="model.dtype=auto",
            )
        )
    trained = torch.float32 if cfg.adapter_dtype == "auto" else getattr(torch, cfg.adapter_dtype)
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {use_all_cores()} threads"
    return Precision(
        device, compute, trained, f"{where}; {str(compute).removeprefix('torch.')}: {why}"
    )


def use_all_cores() -> int:
    """Let torch use every core that this process may run on, unless OMP_NUM_THREADS says otherwise; returns the number."""
    if "OMP_NUM_THREADS" not in os.environ:
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        torch.set_num_threads(cores)
    return int(torch.get_num_threads())


def load_base(
    cfg: ModelConfig,
    quantization: Mapping[str, Any],
    weights: Weights,
    precision: Precision,
    *,
    frozen: bool,
) -> PreTrainedModel:
    """Load the base model onto its device, quantized if asked for.

    Args: cfg: the `model` group. quantization: `BitsAndBytesConfig` fields; empty for none.
        weights: what `find_weights` found. precision: what `choose_precision` settled. frozen:
        whether an adapter is trained; without one all weights are, and load in `precision.trained`.

    Raises:
        ModelError: the weights cannot be loaded.
    """
    extra: dict[str, Any] = {}
    if quantization:
        extra["quantization_config"] = quantization_config(quantization, precision)
    if cfg.attn_implementation != "auto":
        extra["attn_implementation"] = cfg.attn_implementation
    try:
        model = AutoModelForCausalLM.from_pretrained(
            weights.path,
            revision=weights.revision,
            dtype=precision.compute if frozen else precision.trained,
            device_map={"": 0 if precision.device == "cuda" else "cpu"},
            use_safetensors=True,
            **extra,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            Problem(
                "model",
                f"{weights.identity} cannot be loaded: {one_line(error)[:300]}",
                allowed="a causal language model of transformers, with safetensors weights",
                fix="check model.name_or_path, model.attn_implementation and quantization",
            )
        ) from None
    # what PEFT and save_pretrained write down as the base: an identity, not a path of this machine
    model.name_or_path = model.config._name_or_path = (
        weights.identity if weights.revision is None else weights.path
    )
    model.config.use_cache = (
        False  # generation asks for its cache itself; training has no use for one
    )
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # On CPUs with AVX512-BF16, bitsandbytes repacks the weights at the first forward in
            # eval mode, for a bfloat16 kernel without a backward: training after an evaluation
            # would lose every gradient through the frozen weights, with a warning only.
            module.support_avx512bf16_for_cpu = False
    return model


def random_base(
    cfg: ModelConfig,
    weights: Weights,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    precision: Precision,
) -> PreTrainedModel:
    """A model from scratch (`model.init=random`): its vocabulary is the tokenizer's, its weights are drawn from `seed`.

    Raises:
        ModelError: transformers refuses the config.
    """
    config = model_config(cfg, weights)
    config.vocab_size = len(tokenizer)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    extra = (
        {}
        if cfg.attn_implementation == "auto"
        else {"attn_implementation": cfg.attn_implementation}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=precision.trained, **extra)
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            raise refused(error) from None
    model.name_or_path = model.config._name_or_path = weights.identity
    model.config.use_cache = False
    return model.to(precision.device)


def quantization_config(
    quantization: Mapping[str, Any], precision: Precision
) -> BitsAndBytesConfig:
    """The `BitsAndBytesConfig` of the `quantization` group; `auto` computes in the run's precision."""
    fields = dict(quantization)
    if fields.get("bnb_4bit_compute_dtype") == "auto":
        fields["bnb_4bit_compute_dtype"] = precision.compute
    return BitsAndBytesConfig(**fields)


def fit_to_tokenizer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    end_ids: Sequence[int] = (),
    new_tokens: Sequence[int] = (),
    multiple: int | None = None,
) -> tuple[int, int]:
    """Give each token a row of the embedding, and make model and generation config name the tokenizer's PAD, BOS and EOS.

    The embedding grows only when the vocabulary outgrows its rows, and never shrinks. New tokens
    and spare new rows start as the mean of the rows before, in the input and the output embedding
    (Stanford Alpaca's train.py; Hewitt 2021, "Initializing new word embeddings").

    Args: model: the base model. tokenizer: settled. end_ids: tokens that trained answers end in;
        generation stops at them, at EOS, and at what it stopped at before. new_tokens: ids that the
        config added. multiple: a grown embedding has a multiple of it; default: of the largest
        power of two that divides the rows before, at most 64.

    Returns:
        Rows of the embedding before and after.
    """
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        multiple = multiple or min(rows & -rows, 64)
        model.resize_token_embeddings(
            -(-len(tokenizer) // multiple) * multiple, mean_resizing=False
        )
    grown = model.get_input_embeddings().num_embeddings
    fresh = sorted(
        {*new_tokens, *range(rows, grown)}
        - ({tokenizer.pad_token_id} if tokenizer.pad_token_id < rows else set())
    )
    if fresh:
        _start_as_mean(model, fresh, rows)
    model.config.pad_token_id = tokenizer.pad_token_id
    if tokenizer.bos_token_id is not None:
        model.config.bos_token_id = tokenizer.bos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    if model.generation_config is None:
        return rows, grown
    stops = model.generation_config.eos_token_id
    stops = [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
    model.generation_config.eos_token_id = list(
        dict.fromkeys([tokenizer.eos_token_id, *stops, *end_ids])
    )
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    return rows, grown


def _start_as_mean(model: PreTrainedModel, fresh: Sequence[int], rows: int) -> None:
    """Rows `fresh` of both embeddings become the mean of the first `rows` rows."""
    tables = {
        id(layer.weight): layer
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        if layer is not None
    }
    with torch.no_grad():
        for layer in tables.values():  # one, where they are tied
            layer.weight[fresh] = layer.weight[:rows].float().mean(dim=0).to(layer.weight.dtype)
            if getattr(layer, "bias", None) is not None:
                layer.bias[fresh] = layer.bias[:rows].float().mean().to(layer.bias.dtype)


def is_tied(model: PreTrainedModel) -> bool:
    """Whether input and output embedding are one table."""
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


def token_rows(model: PreTrainedModel, tokens: Sequence[int]) -> dict[str, list[int]]:
    """`LoraConfig.trainable_token_indices` that train the rows of new tokens: in the one table of tied embeddings, or in both.

    Raises:
        ModelError: the output embedding has a bias, which PEFT would leave out.
    """
    if not tokens:
        return {}
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        found = (
            f"{len(tokens)} new tokens are to be trained beside the adapter, and the output "
            "embedding of this model has a bias"
        )
        raise ModelError(
            Problem(
                "lora",
                found,
                allowed="an output embedding without one",
                fix="lora=none trains all weights",
            )
        )
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    layers = [
        model.get_input_embeddings(),
        *(() if is_tied(model) else (model.get_output_embeddings(),)),
    ]
    return {names[id(layer)]: list(tokens) for layer in layers}


def lora_config(
    lora: Mapping[str, Any], weights: Weights, rows: Mapping[str, list[int]] | None = None
) -> LoraConfig:
    """The `LoraConfig` of the `lora` group.

    Args: lora: fields of `LoraConfig`. weights: the base weights. rows: `token_rows` of new tokens,
        unless the config says itself what becomes of the embedding.

    Raises:
        ModelError: PEFT refuses the combination of fields.
    """
    fields = dict(lora)
    if rows and not {"trainable_token_indices", "modules_to_save"} & fields.keys():
        fields["trainable_token_indices"] = dict(rows)
    try:
        config = LoraConfig(task_type="CAUSAL_LM", **fields)
    except (TypeError, ValueError) as error:
        raise ModelError(
            Problem("lora", f"PEFT refuses it: {error}", fix="see LoraConfig in PEFT's docs")
        ) from None
    config.revision = weights.revision
    return config


def load_adapter(base: PreTrainedModel, folder: str) -> PeftModel:
    """A trained adapter on its base, ready for generation.

    Raises:
        ModelError: the adapter trains tokens that the base has no rows for.
    """
    trained = getattr(PeftConfig.from_pretrained(folder), "trainable_token_indices", None) or []
    last = max(
        (
            token
            for tokens in (trained.values() if isinstance(trained, dict) else [trained])
            for token in tokens
        ),
        default=-1,
    )
    rows = base.get_input_embeddings().num_embeddings
    if last >= rows:
        raise ModelError(
            Problem(
                folder,
                f"the adapter has a row for token {last}, and the embedding of its base has "
                f"{rows} rows",
                allowed="a base that was resized as in training",
                fix="the lines of its README.md do that; sftpipe.load_run(...).load_model() does it "
                "by itself",
            )
        )
    return PeftModel.from_pretrained(base, folder)


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(trained, all) parameters; packed 4-bit weights count as the numbers that they stand for."""
    trained = everything = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        count = parameter.numel() if state is None else state.shape.numel()
        everything += count
        trained += count if parameter.requires_grad else 0
    return trained, everything
