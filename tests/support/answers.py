"""Answers that are worked out without a cache, a batch or `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def lively_model(rows: int = 2000, dropout: float = 0.0) -> Any:
    """A Llama of one tiny layer whose next token depends on every token before it: its weights are
    large, and its output embedding is its own. It knows the first `rows` tokens; EOS is 2.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=1.0,
        attention_dropout=dropout,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def ids_by_hand(
    model: Any,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    *,
    temperature: float | None = None,
    top_k: int = 0,
    seed: int = 0,
) -> list[list[int]]:
    """The tokens that follow each prompt: the most likely ones, or with a temperature drawn ones. A
    forward pass has one prompt and no padding.
    """
    new: list[list[int]] = [[] for _ in prompts]
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(tokens):
            rows = [[*prompt, *ids] for prompt, ids in zip(prompts, new, strict=True)]
            logits = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in rows])
            if temperature is None:
                picked = logits.argmax(-1)
            else:
                logits = logits / temperature
                if top_k:
                    least = logits.topk(top_k).values[:, -1:]
                    logits = logits.masked_fill(logits < least, -torch.inf)
                picked = torch.multinomial(logits.softmax(-1), 1)[:, 0]
            for ids, token in zip(new, picked.tolist(), strict=True):
                ids.append(token)
    return new


def answers_by_hand(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], tokens: int, **drawn: Any
) -> list[str]:
    """The texts of `ids_by_hand`, each up to EOS."""
    ids = ids_by_hand(model, prompts, tokens, **drawn)
    ended = [one[: one.index(2)] if 2 in one else one for one in ids]
    return [tokenizer.decode(one, skip_special_tokens=True).strip() for one in ended]


def write_lively_model(folder: Path, tokenizer: Any) -> Path:
    """A folder with a lively model for a tokenizer, and that."""
    lively_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
