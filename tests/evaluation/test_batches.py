"""Batches are answered as each prompt alone, whatever the architecture."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from sftpipe.data.prompts import split_answer
from sftpipe.evaluation.answers import Sampling, generate
from sftpipe.model.load import keep_gradients_of_4bit

CLOSE = 1e-4  # two best logits that are nearer may change places with the shape of a batch
LLAMA_LIKE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
SIZES: dict[str, dict[str, int]] = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "opt": {
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 64,
        "max_position_embeddings": 128,
    },
    "llama": LLAMA_LIKE,
    "phi3": LLAMA_LIKE,
    "qwen3": {**LLAMA_LIKE, "head_dim": 16},
    "gemma3_text": {**LLAMA_LIKE, "head_dim": 16},
}
PROMPTS = [[5, 9, 11], [7], list(range(20, 50)), [3, 4, 5, 6, 7, 8, 9], [60, 61]]


def small_model(kind: str, folder: Path, four_bit: bool) -> Any:
    """A model of two layers with weights that are large enough to have an opinion."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=512,
        initializer_range=0.2,
        init_std=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **SIZES[kind],
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    return loaded(folder, quantization if four_bit else None)


def loaded(folder: Any, quantization: Any) -> Any:
    """A model that computes in float32 as those of a run do, also where a CPU has bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=quantization
    ).eval()
    keep_gradients_of_4bit(model)
    return model


def assert_same_answers(
    model: Any, tokenizer: Any, prompts: list[list[int]], tokens: int, size: int
) -> None:
    """One by one and in batches: the same ids, or first another one where two are as good."""
    sampling = Sampling(tokens)
    alone = dict(generate(model, tokenizer, prompts, sampling, batch_size=1))
    together = dict(generate(model, tokenizer, prompts, sampling, batch_size=size))
    assert len({tuple(one.ids) for one in alone.values()}) > 1
    for number, prompt in enumerate(prompts):
        ids, others = alone[number].ids, together[number].ids
        if ids == others:
            continue
        at = next(at for at, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b)
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *ids[:at]]])).logits[0, -1]
        best = logits.topk(2).values
        assert float(best[0] - best[1]) < CLOSE, (number, at)


@pytest.mark.parametrize("four_bit", [False, True], ids=["float32", "nf4"])
@pytest.mark.parametrize("kind", SIZES)
def test_a_batch_is_answered_as_each_prompt_alone(
    kind: str, four_bit: bool, chatml: Any, tmp_path: Path
) -> None:
    model = small_model(kind, tmp_path, four_bit)
    assert_same_answers(model, chatml, PROMPTS, 12, 5)


@pytest.mark.slow
@pytest.mark.parametrize("four_bit", [False, True], ids=["float32", "nf4"])
def test_the_embedded_model_answers_a_batch_as_each_prompt_alone(
    smollm2: Any, tokenizer: Any, data: Any, four_bit: bool
) -> None:
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = loaded(smollm2.path, quantization if four_bit else None)
    samples = islice(data.samples("test"), 8)
    asked = [split_answer(sample, data.encoder.loss)[0] for sample in samples]
    prompts = [data.encoder.prompt_ids(prompt) for prompt in asked]
    assert_same_answers(model, tokenizer, prompts, 24, 8)
