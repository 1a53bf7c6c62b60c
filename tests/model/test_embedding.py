"""The embedding follows the vocabulary: it grows in even steps, never shrinks, and new rows start
as the mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
)

from sftpipe.config.schema import TokenizerConfig
from sftpipe.model.embedding import fit_to_tokenizer, is_tied
from support.models import llama
from support.tokenizers import settled

YODA = "##[YODA]##>"


def opt() -> Any:
    torch.manual_seed(0)
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=50272,
            hidden_size=8,
            ffn_dim=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            word_embed_proj_dim=8,
        )
    )


@pytest.fixture
def published(golden: Path) -> Any:
    """A golden tokenizer with some keys of the `tokenizer` group."""
    return lambda name, **keys: settled(
        TokenizerConfig(name_or_path=str(golden / "tokenizers" / name), **keys)
    )


def test_golden_opt_keeps_its_rows_for_two_new_tokens(published: Any) -> None:
    tokenizer = published(
        "opt-350m", special_tokens=["<|im_start|>"], tokens=[YODA], bos_token="<|im_start|>"
    )
    model = opt()
    before = model.get_input_embeddings().weight.detach().clone()
    assert fit_to_tokenizer(model, tokenizer, new_tokens=(50265, 50266)) == (50272, 50272)
    after = model.get_input_embeddings().weight
    torch.testing.assert_close(after[50265:50267], before.mean(dim=0).expand(2, -1))
    others = [*range(50265), *range(50267, 50272)]
    assert torch.equal(after[others], before[others])
    assert str(model.get_input_embeddings()) == "Embedding(50272, 8, padding_idx=1)"
    ids = (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id)
    assert ids == (1, 50265, 2)
    assert model.generation_config.bos_token_id == 50265


def test_golden_ten_more_tokens_grow_opt_to_a_multiple_of_32(published: Any) -> None:
    tokenizer = published(
        "opt-350m",
        special_tokens=["<|im_start|>"],
        tokens=[YODA, *(f"<new {number}>" for number in range(10))],
    )
    model = opt()
    assert fit_to_tokenizer(model, tokenizer) == (50272, 50304)
    assert model.config.vocab_size == 50304


def test_golden_phi3_never_shrinks(published: Any) -> None:
    tokenizer = published("phi-3-mini-4k-instruct")
    assert len(tokenizer) == 32011
    assert fit_to_tokenizer(llama(32064, tied=False), tokenizer) == (32064, 32064)


def test_golden_one_new_token_grows_smollm2_by_64_rows(tokenizer: Any, smollm2: Any) -> None:
    assert len(tokenizer) == 49152
    assert fit_to_tokenizer(
        llama(49152, tied=True), settled(TokenizerConfig(tokens=[YODA]), smollm2)
    ) == (49152, 49216)


@pytest.mark.parametrize(
    ("rows", "multiple"), [(50272, 32), (32064, 64), (50257, 1), (32000, 64), (64, 64), (1, 1)]
)
def test_golden_growth_is_as_even_as_the_rows_were(
    rows: int, multiple: int, tokenizer: Any
) -> None:
    model = llama(rows, tied=True)
    _, grown = fit_to_tokenizer(model, _Sized(tokenizer, rows + 1))
    assert grown == -(-(rows + 1) // multiple) * multiple


def test_a_wanted_multiple_is_taken(tokenizer: Any) -> None:
    assert fit_to_tokenizer(llama(50257, tied=True), _Sized(tokenizer, 50258), multiple=128) == (
        50257,
        50304,
    )


class _Sized:
    """A tokenizer of any length."""

    def __init__(self, tokenizer: Any, size: int) -> None:
        self._size = size
        self.pad_token_id, self.eos_token_id, self.bos_token_id = (
            size - 1,
            tokenizer.eos_token_id,
            tokenizer.bos_token_id,
        )

    def __len__(self) -> int:
        return self._size


def test_golden_a_new_row_is_the_mean_and_tied_tables_stay_one(
    golden: Path, tokenizer: Any
) -> None:
    case = next(
        case
        for case in json.loads((golden / "cases.json").read_text())
        if case["id"] == "000-smart-resize-tied"
    )
    old = torch.tensor(case["input"]["old"])
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(old), n_embd=4, n_layer=1, n_head=1, n_positions=8)
    )
    model.get_input_embeddings().weight.data = old.clone()
    model.tie_weights()
    assert fit_to_tokenizer(model, _Sized(tokenizer, len(old) + 1)) == (5, 6)
    assert model.get_input_embeddings().weight[-1].tolist() == case["expected"]["new_row"]
    assert is_tied(model) is case["expected"]["still_tied"]


def test_untied_tables_get_a_mean_each_and_spare_rows_too(tokenizer: Any) -> None:
    model = llama(64, tied=False)
    before = [
        layer.weight.detach().clone()
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    assert fit_to_tokenizer(model, _Sized(tokenizer, 65)) == (64, 128)
    for old, layer in zip(
        before, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True
    ):
        assert torch.equal(layer.weight[:64], old)
        torch.testing.assert_close(layer.weight[64:], old.mean(dim=0).expand(64, -1))


@pytest.mark.parametrize(("pad", "kept"), [(60, True), (64, False)])
def test_a_new_pad_keeps_a_free_row_and_starts_as_the_mean_in_a_new_one(
    pad: int, kept: bool, tokenizer: Any
) -> None:
    model, sized = llama(64, tied=True), _Sized(tokenizer, pad + 1)
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
        fit_to_tokenizer(model, _Sized(tokenizer, 64), end_ids=[7, 2])
        assert model.generation_config.eos_token_id == expected
