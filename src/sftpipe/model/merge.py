"""An adapter merged into its base: the same model, without PEFT."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from sftpipe.errors import ExportError, Problem
from sftpipe.model.embedding import is_tied


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """The base with the adapter in its weights; `model` itself is used up.

    Each layer is added up in float32, the dtype of adapters, and rounded once. Tied embeddings of
    which the adapter changes only one become two tables.

    Args:
        model: its base is not quantized.

    Raises:
        ExportError: the base has no place for the biases of the adapter.
    """
    _untie(model.get_base_model())
    try:
        with warnings.catch_warnings():
            for said in _KNOWN:
                warnings.filterwarnings("ignore", message=said)
            merged = model.merge_and_unload()
    except RuntimeError as error:
        if "bias" not in str(error):
            raise
        found = "the adapter has biases for layers of the base that have none"
        fix = "`export=hub` for the adapter as it is, or train without lora.lora_bias"
        raise ExportError(Problem("lora.lora_bias", found, fix=fix)) from None
    if merged.config.tie_word_embeddings and not is_tied(merged):
        merged.config.tie_word_embeddings = False
    return merged


# of PEFT's warnings, those of what is done here on purpose
_KNOWN = (
    "Input and output embeddings are no longer tied",
    "Model with .tie_word_embeddings=True",
)


def _untie(base: PreTrainedModel) -> None:
    """Give the output a table of its own where LoRA adapts one of two tied embeddings.

    Without adapters the layers compute with one table, and a change that is merged into it would
    reach both.
    """
    tables: list[Any] = [base.get_input_embeddings(), base.get_output_embeddings()]
    adapted = [isinstance(one, BaseTunerLayer) for one in tables]
    first, last = (getattr(one, "base_layer", one) for one in tables)
    if any(adapted) and last is not None and first.weight is last.weight:
        last.weight = torch.nn.Parameter(last.weight.detach().clone(), requires_grad=False)


def dequantize(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The weights that a quantized model computes with, as plain ones.

    Args:
        model: quantized by bitsandbytes; it is used up.
        dtype: of the plain weights.
    """
    return model.dequantize(dtype).to(dtype)
