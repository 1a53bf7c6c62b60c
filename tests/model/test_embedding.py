"""The embedding follows the vocabulary: it grows in even steps, never shrinks, and new rows start
as the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sftpipe.config.schema import TokenizerConfig
from sftpipe.model.embedding import fit_to_tokenizer, is_tied
from support.models import llama
from support.tokenizers import Sized, config_of, settled, tokenizer_at

YODA = "##[YODA]##>"


def test_opt_keeps_its_rows_for_two_new_tokens(made: Callable[[str], Path]) -> None:
    # 473 tokens in 480 rows, as the published one has 50,265 in 50,272
    keys = {"special_tokens": ["<|im_start|>"], "bos_token": "<|im_start|>"}
    tokenizer = tokenizer_at(made("opt"), tokens=[YODA], **keys)
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", YODA]) == [473, 474]
    model = AutoModelForCausalLM.from_config(config_of("opt"))
    before = model.get_input_embeddings().weight.detach().clone()
    assert fit_to_tokenizer(model, tokenizer, new_tokens=(473, 474)) == (480, 480)
    after = model.get_input_embeddings().weight
    torch.testing.assert_close(after[473:475], before.mean(dim=0).expand(2, -1))
    others = [*range(473), *range(475, 480)]
    assert torch.equal(after[others], before[others])
    assert str(model.get_input_embeddings()) == "Embedding(480, 16, padding_idx=1)"
    ids = (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id)
    assert ids == (1, 473, 2)
    assert model.generation_config.bos_token_id == 473


def test_ten_more_tokens_grow_opt_to_a_multiple_of_32(made: Callable[[str], Path]) -> None:
    tokenizer = tokenizer_at(made("opt"), tokens=[f"<new {number}>" for number in range(12)])
    model = AutoModelForCausalLM.from_config(config_of("opt"))
    assert fit_to_tokenizer(model, tokenizer) == (480, 512)
    assert model.config.vocab_size == 512


def test_phi3_never_shrinks(phi3: Any) -> None:
    # 53 rows to spare, as the published one has 32,064 - 32,011
    model = AutoModelForCausalLM.from_config(config_of("phi3"))
    assert (len(phi3), fit_to_tokenizer(model, phi3)) == (587, (640, 640))


def test_one_new_token_grows_smollm2_by_64_rows(tokenizer: Any, smollm2: Any) -> None:
    assert len(tokenizer) == 49152
    assert fit_to_tokenizer(
        llama(49152, tied=True), settled(TokenizerConfig(tokens=[YODA]), smollm2)
    ) == (49152, 49216)


@pytest.mark.parametrize(
    ("rows", "multiple"), [(50272, 32), (32064, 64), (50257, 1), (32000, 64), (64, 64), (1, 1)]
)
def test_growth_is_as_even_as_the_rows_were(rows: int, multiple: int, tokenizer: Any) -> None:
    model = llama(rows, tied=True)
    _, grown = fit_to_tokenizer(model, Sized(tokenizer, rows + 1))
    assert grown == -(-(rows + 1) // multiple) * multiple


def test_a_wanted_multiple_is_taken(tokenizer: Any) -> None:
    assert fit_to_tokenizer(llama(50257, tied=True), Sized(tokenizer, 50258), multiple=128) == (
        50257,
        50304,
    )


def test_a_new_row_is_the_mean_and_tied_tables_stay_one(tokenizer: Any) -> None:
    model = llama(5, tied=True)
    model.get_input_embeddings().weight.data = torch.arange(40.0).reshape(5, 8)
    model.tie_weights()
    assert fit_to_tokenizer(model, Sized(tokenizer, 6)) == (5, 6)
    # the mean of 0, 8, 16, 24, 32 and of the seven columns beside it
    assert model.get_input_embeddings().weight[-1].tolist() == [16.0 + at for at in range(8)]
    assert model.get_input_embeddings().weight[:-1].tolist() == [
        [8.0 * row + at for at in range(8)] for row in range(5)
    ]
    assert is_tied(model)


def test_untied_tables_get_a_mean_each_and_spare_rows_too(tokenizer: Any) -> None:
    model = llama(64, tied=False)
    before = [
        layer.weight.detach().clone()
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    assert fit_to_tokenizer(model, Sized(tokenizer, 65)) == (64, 128)
    for old, layer in zip(
        before, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True
    ):
        assert torch.equal(layer.weight[:64], old)
        torch.testing.assert_close(layer.weight[64:], old.mean(dim=0).expand(64, -1))


@pytest.mark.parametrize(("pad", "kept"), [(60, True), (64, False)])
def test_a_new_pad_keeps_a_free_row_and_starts_as_the_mean_in_a_new_one(
    pad: int, kept: bool, tokenizer: Any
) -> None:
    model, sized = llama(64, tied=True), Sized(tokenizer, pad + 1)
    before = model.get_input_embeddings().weight.detach().clone()
    fit_to_tokenizer(model, sized, new_tokens=(58, pad))
    after = model.get_input_embeddings().weight
    torch.testing.assert_close(after[58], before.mean(dim=0))
    if kept:
        assert torch.equal(after[pad], before[pad])
    else:
        torch.testing.assert_close(after[pad], before.mean(dim=0))


def test_generation_stops_at_eos_at_the_ends_of_answers_and_where_it_stopped_before(
    tokenizer: Any,
) -> None:
    model = llama(64, tied=True)
    for stops, expected in ((None, [2, 7]), (5, [2, 5, 7]), ([5, 2], [2, 5, 7])):
        model.generation_config.eos_token_id = stops
        fit_to_tokenizer(model, Sized(tokenizer, 64), end_ids=[7, 2])
        assert model.generation_config.eos_token_id == expected


def test_the_configs_name_the_special_tokens_and_keep_a_bos_that_the_tokenizer_lacks() -> None:
    model = llama(64, tied=True)
    model.config.bos_token_id = 9
    sized = SimpleNamespace(pad_token_id=3, eos_token_id=4, bos_token_id=None)
    fit_to_tokenizer(model, Sized(sized, 4))
    config, generation = model.config, model.generation_config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (3, 9, 4)
    assert (generation.pad_token_id, generation.bos_token_id) == (3, None)


def test_the_mean_is_taken_in_float32_and_of_an_output_bias_too() -> None:
    model = llama(300, tied=False)
    model.lm_head = torch.nn.Linear(8, 300, bias=True)
    model.to(torch.bfloat16)
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        for layer in layers:
            layer.weight += 1  # near 1 a sum in bfloat16 would stop at 256
    means = [layer.weight.double().mean(dim=0) for layer in layers]
    bias = model.lm_head.bias.double().mean()
    sized = SimpleNamespace(pad_token_id=1, eos_token_id=2, bos_token_id=1)
    assert fit_to_tokenizer(model, Sized(sized, 304)) == (300, 304)
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    for layer, mean in zip(layers, means, strict=True):
        assert torch.equal(layer.weight[300:], mean.bfloat16().expand(4, -1))
    assert layers[1].bias[300:].tolist() == [bias.bfloat16().item()] * 4


def test_a_model_that_does_not_generate_needs_no_stops() -> None:
    model = llama(64, tied=True)
    model.generation_config = None
    sized = SimpleNamespace(pad_token_id=1, eos_token_id=2, bos_token_id=1)
    assert fit_to_tokenizer(model, Sized(sized, 64), end_ids=[7]) == (64, 64)
    assert model.generation_config is None
    assert model.config.eos_token_id == 2
