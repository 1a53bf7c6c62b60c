"""Models that are made in milliseconds, and the precision of tests."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sftpipe.model.precision import Precision

CPU = Precision("cpu", torch.float32, torch.float32, "")


def llama(rows: int, *, tied: bool) -> Any:
    """A Llama of one tiny layer, with so many rows of the embedding."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)
