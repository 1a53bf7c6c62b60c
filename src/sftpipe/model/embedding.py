"""The embedding follows the tokenizer: a row for each token, and the ids of the special ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast


def fit_to_tokenizer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    end_ids: Sequence[int] = (),
    new_tokens: Sequence[int] = (),
    multiple: int | None = None,
) -> tuple[int, int]:
    """Give each token a row of the embedding, and name PAD, BOS and EOS in the model's configs.

    The embedding grows only when the vocabulary outgrows its rows, and never shrinks. New tokens
    and spare new rows start as the mean of the rows before, in the input and the output embedding
    (Stanford Alpaca's train.py; Hewitt 2021, "Initializing new word embeddings").

    Args:
        model: the base model.
        tokenizer: with its special tokens set.
        end_ids: tokens that trained answers end in; generation stops at them, at EOS, and at what
            it stopped at before.
        new_tokens: ids that the config added.
        multiple: a grown embedding has a multiple of it; default: of the largest power of two that
            divides the rows before, at most 64.

    Returns:
        Rows of the embedding before and after.
    """
    before, after = _resize(model, len(tokenizer), multiple)
    fresh = {*new_tokens, *range(before, after)}
    if tokenizer.pad_token_id < before:
        # A new PAD that takes a free row keeps that row as it is: PAD is masked, so no loss depends
        # on it, and a run without other new tokens leaves the base as it was published.
        fresh.discard(tokenizer.pad_token_id)
    if fresh:
        _start_as_mean(model, sorted(fresh), before)
    _name_special_tokens(model, tokenizer)
    _set_stops(model, tokenizer, end_ids)
    return before, after


def is_tied(model: PreTrainedModel) -> bool:
    """True if input and output embedding are one table."""
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


def _resize(model: PreTrainedModel, tokens: int, multiple: int | None) -> tuple[int, int]:
    """Grow the embedding to `tokens` rows or a few more; returns its rows before and after."""
    before = model.get_input_embeddings().num_embeddings
    after = rows_for(before, tokens, multiple)
    if after > before:
        model.resize_token_embeddings(after, mean_resizing=False)
    return before, after


def rows_for(before: int, tokens: int, multiple: int | None = None) -> int:
    """Rows of an embedding of `before` rows once it has one for each token; see above."""
    if tokens <= before:
        return before
    multiple = multiple or min(before & -before, 64)  # x & -x: the power of two that divides x
    return -(-tokens // multiple) * multiple


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


def _name_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Make the model's config name the tokenizer's PAD and EOS, and its BOS if it has one."""
    model.config.pad_token_id = tokenizer.pad_token_id
    if tokenizer.bos_token_id is not None:
        model.config.bos_token_id = tokenizer.bos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id


def _set_stops(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, end_ids: Iterable[int]
) -> None:
    """Make generation stop at EOS, at what it stopped at before, and at `end_ids`."""
    generation = model.generation_config
    if generation is None:
        return
    stops = generation.eos_token_id
    stops = [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
    in_order = dict.fromkeys([tokenizer.eos_token_id, *stops, *end_ids])
    generation.eos_token_id = list(in_order)
    generation.pad_token_id = tokenizer.pad_token_id
    generation.bos_token_id = tokenizer.bos_token_id
    generation._from_model_config = False  # else the stops may be made anew from the model's config
