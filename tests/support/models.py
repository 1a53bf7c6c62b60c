"""Models that are made in milliseconds, and the precision of tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from sftpipe.model.precision import Precision
from sftpipe.model.weights import Weights

CPU = Precision("cpu", torch.float32, torch.float32, "")
HALF = Precision("cpu", torch.bfloat16, torch.float32, "")  # frozen weights, and trained ones


def _tiny(rows: int, tied: bool, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": rows,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "tie_word_embeddings": tied,
        "pad_token_id": 0,
    }


def llama(rows: int, *, tied: bool) -> Any:
    """A Llama of one tiny layer, with so many rows of the embedding."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**_tiny(rows, tied, 1)))


def saved(model: Any, folder: Path) -> Weights:
    """A model as a user has it: in a folder, without a tokenizer."""
    model.save_pretrained(folder)
    return Weights(str(folder), None, "tiny", hashed=True)


# --- a class whose small models are better than its large ones ------------------------------------


class DeepLeakConfig(LlamaConfig):
    """Of `DeepLeak`."""

    model_type = "deep_leak"


class DeepLeak(LlamaForCausalLM):
    """A Llama that isolates packed rows with two layers, and with more adds to the logits of a
    token those of the token before it, whichever sequence that is of.
    """

    config_class = DeepLeakConfig

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As of Llama."""
        output = super().forward(*args, **kwargs)
        if self.config.num_hidden_layers > 2:
            output.logits = output.logits + output.logits.roll(1, dims=1)
        return output


@contextmanager
def deep_leak(rows: int) -> Iterator[DeepLeak]:
    """One of three layers; transformers knows its class as long as the block runs."""
    AutoConfig.register("deep_leak", DeepLeakConfig)
    AutoModelForCausalLM.register(DeepLeakConfig, DeepLeak)
    try:
        torch.manual_seed(0)
        yield DeepLeak(DeepLeakConfig(**_tiny(rows, True, 3)))
    finally:
        CONFIG_MAPPING._extra_content.pop("deep_leak")
        AutoModelForCausalLM._model_mapping._extra_content.pop(DeepLeakConfig)


# --- a model in one file --------------------------------------------------------------------------


def write_gguf(file: Path, pre: str = "smollm") -> dict[str, torch.Tensor]:
    """Write a Llama of one layer as GGUF, and a tokenizer of bytes (0 to 255), `<|im_start|>`
    (256), `<|im_end|>` (257) and " 1" (258).

    Args:
        file: where to.
        pre: how the tokenizer takes texts apart, by GGUF's name of it.

    Returns:
        The tensors by the names that transformers has for them, without those that GGUF stores in
        another order.
    """
    import gguf
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), "<|im_start|>", "<|im_end|>", "Ġ1"]
    kinds = [gguf.TokenType.NORMAL] * len(tokens)
    kinds[256] = kinds[257] = gguf.TokenType.CONTROL
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(48)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["Ġ 1"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    layer = "model.layers.0"
    names = {
        "token_embd": ("model.embed_tokens", (len(tokens), 8)),
        "output_norm": ("model.norm", (8,)),
        "blk.0.attn_norm": (f"{layer}.input_layernorm", (8,)),
        "blk.0.attn_q": ("", (8, 8)),
        "blk.0.attn_k": ("", (8, 8)),
        "blk.0.attn_v": (f"{layer}.self_attn.v_proj", (8, 8)),
        "blk.0.attn_output": (f"{layer}.self_attn.o_proj", (8, 8)),
        "blk.0.ffn_norm": (f"{layer}.post_attention_layernorm", (8,)),
        "blk.0.ffn_gate": (f"{layer}.mlp.gate_proj", (16, 8)),
        "blk.0.ffn_up": (f"{layer}.mlp.up_proj", (16, 8)),
        "blk.0.ffn_down": (f"{layer}.mlp.down_proj", (8, 16)),
    }
    generator, written = torch.Generator().manual_seed(0), {}
    for name, (ours, shape) in names.items():
        value = torch.randn(shape, generator=generator)
        writer.add_tensor(f"{name}.weight", value.numpy())
        if ours:
            written[f"{ours}.weight"] = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written
