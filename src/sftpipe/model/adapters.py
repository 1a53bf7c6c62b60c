"""LoRA adapters: their config, the rows of new tokens that they train, and trained ones loaded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from sftpipe.config.upstream import ADDED
from sftpipe.errors import ModelError, Problem
from sftpipe.model.embedding import is_tied
from sftpipe.model.targets import check_matches
from sftpipe.model.weights import Weights


def make_adapter(
    lora: Mapping[str, Any], model: PreTrainedModel, weights: Weights, new_tokens: Sequence[int]
) -> LoraConfig | None:
    """The adapter of a run, which also trains the rows of new tokens; None with lora=none.

    Raises:
        ModelError: see `check_matches`, `token_rows` and `lora_config`.
    """
    if lora:
        check_matches(lora, model)
    return lora_config(lora, weights, token_rows(model, new_tokens)) if lora else None


def token_rows(model: PreTrainedModel, tokens: Sequence[int]) -> dict[str, list[int]]:
    """`LoraConfig.trainable_token_indices` that train the rows of new tokens.

    They are rows of the one table of tied embeddings, or of both tables.

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
        allowed, fix = "an output embedding without one", "`lora=none` trains all weights"
        raise ModelError(Problem("lora", found, allowed=allowed, fix=fix))
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    layers = [model.get_input_embeddings()]
    if not is_tied(model):
        layers.append(model.get_output_embeddings())
    return {names[id(layer)]: list(tokens) for layer in layers}


def lora_config(
    lora: Mapping[str, Any], weights: Weights, rows: Mapping[str, list[int]] | None = None
) -> LoraConfig:
    """The `LoraConfig` of the `lora` group.

    Args:
        lora: fields of `LoraConfig`.
        weights: the base weights.
        rows: `token_rows` of new tokens; ignored where the config itself says what becomes of the
            embedding.

    Raises:
        ModelError: PEFT rejects the combination of fields.
    """
    fields = {name: value for name, value in lora.items() if name not in ADDED["lora"]}
    if "init_from" in lora:
        rows = None  # the adapter says what becomes of them
    if rows and not {"trainable_token_indices", "modules_to_save"} & fields.keys():
        fields["trainable_token_indices"] = dict(rows)
    try:
        with warnings.catch_warnings():
            # of PEFT's conversion of PiSSA, which cannot do this; ours can
            warnings.filterwarnings("ignore", message="Using Rank-Stabilized LoRA with rank_patt")
            config = LoraConfig(task_type="CAUSAL_LM", **fields)
    except (TypeError, ValueError) as error:
        found, fix = f"PEFT refuses it: {error}", "see LoraConfig in PEFT's docs"
        raise ModelError(Problem("lora", found, fix=fix)) from None
    config.revision = weights.revision
    return config


def load_adapter(base: PreTrainedModel, folder: str) -> PeftModel:
    """A trained adapter on its base, ready for generation.

    Raises:
        ModelError: the adapter trains tokens that the base has no rows for.
    """
    trained = getattr(PeftConfig.from_pretrained(folder), "trainable_token_indices", None) or []
    lists = trained.values() if isinstance(trained, dict) else [trained]
    last = max((token for tokens in lists for token in tokens), default=-1)
    rows = base.get_input_embeddings().num_embeddings
    if last >= rows:
        raise ModelError(
            Problem(
                folder,
                f"the adapter has a row for token {last}, and the embedding of its base has "
                f"{rows} rows",
                allowed="a base that was resized as in training",
                fix="the lines of its README.md do that; sftpipe.load_run(...).load_model() does "
                "it by itself",
            )
        )
    return PeftModel.from_pretrained(base, folder)


def adapted_modules(model: torch.nn.Module) -> list[str]:
    """The names of the modules that have an adapter; empty where all weights are trained."""
    return [name for name, one in model.named_modules() if isinstance(one, LoraLayer)]


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(trained, all) parameters; packed 4-bit weights count as the numbers that they encode."""
    trained = everything = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        count = parameter.numel() if state is None else state.shape.numel()
        everything += count
        trained += count if parameter.requires_grad else 0
    return trained, everything
