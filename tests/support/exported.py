"""Folders as an export makes them: small models with the tokenizers of the real ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from sftpipe.export.gguf_proof import Prompt

# what tells pre-tokenizers, normalizers and special tokens apart
NASTY = [
    "a  1",
    "1234567 3.14 ١٢٣",
    "\tx\t\ty ",
    " lead",
    "   ",
    "a\n\n  b\n",
    "don't DON'T we'Ll",
    "안녕하세요 세계",
    "\u1112\u1161\u11ab",
    "é e\u0301 中文、ひらがな",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 ok \U0001f642",
    "a\u2581b <0x0A> </ s>",
    "The quick brown fox, jumps_over (the) lazy-dog!\r\n",
]
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def exported(config: PretrainedConfig, tokenizer: Any, folder: Path) -> Path:
    """A random model in which positions and every weight matter, and its tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.15)
            else:
                weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bytes_with(pre: Any, *, normalizer: Any = None, ignore_merges: bool = False) -> Any:
    """A byte-level tokenizer of 700 tokens, learnt from `NASTY` as `pre` takes it apart."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    plain = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    plain.pre_tokenizer, plain.decoder = pre, decoders.ByteLevel()
    if normalizer is not None:
        plain.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    plain.train_from_iterator([text for text in NASTY for _ in range(3)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )


def plain_prompts(tokenizer: Any, texts: Sequence[str] = NASTY) -> list[Prompt]:
    """Texts, with the ids that transformers gives them."""
    ids = (tokenizer(text, add_special_tokens=False).input_ids for text in texts)
    return [Prompt(tuple(row), None, text) for row, text in zip(ids, texts, strict=True)]


def chat_prompts(tokenizer: Any, texts: Sequence[str]) -> list[Prompt]:
    """Questions, with the ids of what the tokenizer's own template writes."""
    asked = [({"role": "user", "content": text},) for text in texts]
    ids = [
        tokenizer.apply_chat_template(list(one), add_generation_prompt=True, return_dict=False)
        for one in asked
    ]
    return [Prompt(tuple(row), one) for row, one in zip(ids, asked, strict=True)]


def greedy_gap(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """How far below the best logit those of an answer's tokens are, at most.

    0 where each is the most likely; rounding to float16 may change which of two equals wins.
    """
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    chosen = logits[torch.arange(len(answer)), torch.tensor(list(answer))]
    return float((logits.max(-1).values - chosen).max())
