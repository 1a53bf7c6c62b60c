"""The architecture of a model: its transformers config, and the tokens that it has positions for.

The config comes with the weights, or `model.config` describes it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sftpipe.config.schema import ModelConfig, TrainConfig
from sftpipe.errors import ModelError, Problem, nearest, one_line
from sftpipe.model.weights import Weights


def model_config(cfg: ModelConfig, weights: Weights) -> PretrainedConfig:
    """The transformers config of a model that is loaded, or made from scratch (init=random).

    Raises:
        ModelError: no such `model_type`, a field that it does not have, or a value that it does not
            take.
    """
    if cfg.init == "pretrained":
        return AutoConfig.from_pretrained(weights.path, revision=weights.revision)
    described = dict(cfg.config)
    try:
        if cfg.name_or_path is not None:
            base = AutoConfig.from_pretrained(weights.path, revision=weights.revision)
            _check_fields(type(base), described)
            return AutoConfig.from_pretrained(weights.path, revision=weights.revision, **described)
        kind = described.pop("model_type")
        _check_kind(kind)
        _check_fields(CONFIG_MAPPING[kind], described)
        return AutoConfig.for_model(kind, **described)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise rejected(error) from None


_VOCABULARY, _WIDTH = 512, 256  # of the small model: tokens, and the inner width of its MLP


def small_config(config: PretrainedConfig) -> PretrainedConfig:
    """The config of a model of the same class that is built and run in a moment.

    It masks as the whole one does, and its modules have the same names: it has two layers, or one
    of each kind of layer if there are more.
    """
    config = copy.deepcopy(config)
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    config.num_hidden_layers = max(2, len(kinds))
    if kinds:
        config.layer_types = (kinds * 2)[: config.num_hidden_layers]
    config.vocab_size = min(config.vocab_size, _VOCABULARY)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    for name in ("intermediate_size", "moe_intermediate_size", "ffn_dim"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, min(getattr(config, name), _WIDTH))
    return config


def rejected(error: Exception) -> ModelError:
    """The user's mistake that made transformers reject a config."""
    found = f"transformers refuses it: {one_line(error)[:300]}"
    fix = "see the config class of this model_type in transformers' docs"
    return ModelError(Problem("model.config", found, fix=fix))


def check_windows(cfg: TrainConfig, weights: Weights) -> None:
    """The windows of packing=blocks must fit the model's positions.

    Raises:
        ModelError: see `check_room`.
    """
    if cfg.packing is None or cfg.packing.block_size is None:
        return
    size = cfg.packing.block_size
    check_room(model_config(cfg.model, weights), size + 1, "packing.block_size", size, "windows")


def max_positions(config: PretrainedConfig) -> int | None:
    """Tokens that a model has positions for; None where it has no limit."""
    return getattr(config, "max_position_embeddings", None)


def check_room(
    config: PretrainedConfig, tokens: int, key: str, value: int, what: str, otherwise: str = ""
) -> None:
    """Sequences must not have more tokens than the model has positions.

    Args:
        config: the model's.
        tokens: of the longest sequence.
        key: the config key that decides it.
        value: of that key; a smaller one makes the sequence as much shorter.
        what: how the key makes the sequence.
        otherwise: what to do where no value fits.

    Raises:
        ModelError: names both numbers, and the largest value that fits.
    """
    positions = max_positions(config)
    if positions is None or tokens <= positions:
        return
    found = (
        f"{value} makes {what} of {tokens} tokens, and the model ({config.model_type}) has "
        f"{positions} positions"
    )
    most = value - tokens + positions
    raise ModelError(Problem(key, found, fix=f"`{key}={most}` or less" if most > 0 else otherwise))


def _check_kind(kind: Any) -> None:
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        match = nearest(str(kind), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise ModelError(
            Problem(
                "model.config.model_type",
                f"transformers has no causal language model {kind!r}",
                allowed="such as gpt2, llama, qwen3, gemma3_text, mistral, phi3",
                fix=f"`model.config.model_type={match or 'gpt2'}`",
            )
        )


def _check_fields(kind: type[PretrainedConfig], described: Mapping[str, Any]) -> None:
    """transformers ignores a field that it does not know, in silence."""
    known = sorted({field.name for field in fields(kind)} | set(kind.attribute_map))
    problems = []
    for name in described:
        if name not in known:
            match = nearest(name, known)
            allowed = "" if match else f"the fields of {kind.__name__}: {', '.join(known)}"
            fix = f"did you mean model.config.{match}?" if match else ""
            problems.append(
                Problem(f"model.config.{name}", "unknown field", allowed=allowed, fix=fix)
            )
    if problems:
        raise ModelError(*problems)
