"""An adapter merged into its base: the same model, without PEFT."""

from __future__ import annotations

import warnings

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """The base with the adapter in its weights; `model` itself is used up.

    A layer is added up in float32 and rounded once. In bfloat16, as PEFT would do it, the adapter
    is rounded before it is added, and what is small beside a weight is lost.

    Args:
        model: its base is not quantized.
    """
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer) and hasattr(layer, "merge"):
            _merge_layer(layer)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="(Already following|All) adapters (were|are already) merged"
        )
        merged = model.merge_and_unload()
    merged.config.use_cache = True
    return merged


def _merge_layer(layer: BaseTunerLayer) -> None:
    weights = list(layer.get_base_layer().parameters(recurse=False))
    dtypes = [one.dtype for one in weights]
    for one in weights:
        one.data = one.data.float()
    layer.merge()
    # as DoRA and others put tensors of their own in place of the weights
    for one, dtype in zip(layer.get_base_layer().parameters(recurse=False), dtypes, strict=True):
        one.data = one.data.to(dtype)


def dequantize(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The weights that a quantized model computes with, as plain ones.

    Args:
        model: quantized by bitsandbytes; it is used up.
        dtype: of the plain weights.
    """
    return model.dequantize(dtype).to(dtype)
