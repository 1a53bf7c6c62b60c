"""Tokenizers: as a run gets them, and small ones that stand for the kinds that are published.

The small ones are made in milliseconds and loaded as any published one. Every word of `WORDS` is a
token of them, alone and after a space, so that a test can say which tokens a text has.
`tests/tokenizer/test_kinds.py` holds that they behave as the real ones.
"""

from __future__ import annotations

import copy
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from sftpipe.config.options import conf_dir
from sftpipe.config.schema import TokenizerConfig
from sftpipe.model.weights import Weights
from sftpipe.tokenizer.load import load_tokenizer
from sftpipe.tokenizer.special_tokens import set_special_tokens
from support.byte_model import CHATML

# name of a kind -> its folder among the golden tokenizers
PUBLISHED = {"phi3": "phi-3-mini-4k-instruct", "opt": "opt-350m", "gpt2": "gpt2"}
# name of a kind -> how many tokens its small tokenizer has
TOKENS = {"phi3": 587, "opt": 473, "gpt2": 470, "chatml": 474}

# rows of the embedding to spare as in the published models: 53 of Phi-3's 64 * 501, 7 of OPT's
# 32 * 1571, none of GPT-2's
_CONFIGS: dict[str, PretrainedConfig] = {
    "phi3": Phi3Config(
        vocab_size=640,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        original_max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=579,
        pad_token_id=579,
    ),
    "opt": OPTConfig(
        vocab_size=480,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=16,
        max_position_embeddings=512,
        do_layer_norm_before=False,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=1,
    ),
    "gpt2": GPT2Config(
        vocab_size=470,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=1024,
        bos_token_id=469,
        eos_token_id=469,
    ),
    "chatml": LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    ),
}


def config_of(kind: str) -> PretrainedConfig:
    """The config of a small model of a kind, of the caller's own: a model that grows changes it."""
    return copy.deepcopy(_CONFIGS[kind])


# ":-" and "###" are what the rules on boundaries and response templates are about
WORDS = [
    "yes", "one", "two", "three", "four", "five", "six", "user", "assistant", "Human",
    "Assistant", "###", ":-", "question", "the", "and", "of", "is", "are", "it", "you", "sky",
    "blue", "Hello", "Hi", "big", "end", "what", "learn", "patience", "number", "birch", "canoe",
    "smooth", "planks", "Question", "Answer", "Instruction", "Response",
]  # fmt: skip

PHI3 = (
    "{% for message in messages %}{% if message['role'] in ['system', 'user', 'assistant'] %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}"
    "{% endif %}"
)
_TURNS = ("assistant", "placeholder1", "placeholder2", "system", "end", "placeholder3", "user")


def settled(
    cfg: TokenizerConfig, weights: Weights | None = None, markers: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Loaded, with its special tokens and its template."""
    path, revision = (weights.path, weights.revision) if weights else ("", None)
    tokenizer = load_tokenizer(cfg, path, revision)
    set_special_tokens(tokenizer, cfg, conf_dir() / "chat_template", markers)
    return tokenizer


def tokenizer_at(folder: Path, **keys: Any) -> PreTrainedTokenizerFast:
    """`settled` on a folder, with some keys of the `tokenizer` group."""
    return settled(TokenizerConfig(name_or_path=str(folder), **keys))


class Sized:
    """A tokenizer of any length, whose PAD is its last token."""

    def __init__(self, tokenizer: Any, size: int) -> None:
        self._size = size
        self.pad_token_id = size - 1
        self.eos_token_id = tokenizer.eos_token_id
        self.bos_token_id = tokenizer.bos_token_id

    def __len__(self) -> int:
        return self._size


def write_kind(kind: str, folder: Path) -> Path:
    """Write a small tokenizer of a kind, and the config of a model with room for more tokens.

    phi3: SentencePiece pieces with byte fallback, as Llama 2 has them; tokens of turns; PAD is EOS.
    opt: bytes and merges; BOS, EOS and UNK are one token, which opens every text; no template.
    gpt2: bytes and merges; one special token, and no PAD; a model with no row to spare.
    chatml: bytes and merges; tokens of turns, of which one is EOS and PAD.
    """
    tokenizer = _pieces() if kind == "phi3" else _bytes(kind)
    assert len(tokenizer) == TOKENS[kind]
    tokenizer.save_pretrained(folder)
    config_of(kind).save_pretrained(folder)
    return folder


def _merges(space: str, count: int) -> list[tuple[str, str]]:
    """So many merges: words letter by letter, then a space to each, then a space to letters."""
    # the longest first: a merge of a short word would break a long one up
    words = sorted(WORDS, key=len, reverse=True)
    letters = [(word[:end], word[end]) for word in words for end in range(1, len(word))]
    merges = dict.fromkeys((*letters, *((space, word) for word in WORDS)))
    least = len(merges) + 2
    merges.update(dict.fromkeys((space, letter) for letter in string.ascii_letters))
    assert least <= count <= len(merges), f"{count} merges, and {least} to {len(merges)} are there"
    return list(merges)[:count]


def _pieces() -> PreTrainedTokenizerFast:
    """Phi-3's kind. A text gets a space in front, and there is no pre-tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    ids = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    ids += sorted({*string.printable} - {*string.whitespace})
    added = [f"<|{name}|>" for name in ("endoftext", *_TURNS)]
    merges = _merges("\u2581", TOKENS["phi3"] - len(ids) - len(added))
    ids += [left + right for left, right in merges]
    vocabulary = {token: number for number, token in enumerate(ids)}
    plain = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    plain.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    plain.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = [AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "<|endoftext|>")]
    plain.add_special_tokens(special)
    plain.add_tokens([AddedToken("</s>", rstrip=True, normalized=False)])
    plain.add_special_tokens(
        [AddedToken(token, rstrip=True, normalized=False) for token in added[1:]]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        chat_template=PHI3,
        clean_up_tokenization_spaces=False,
    )


def metaspace(phi3: PreTrainedTokenizerFast, scheme: str) -> PreTrainedTokenizerFast:
    """Phi-3's kind with the space of a pre-tokenizer: `first` as Llama 2 without `legacy`."""
    from tokenizers import pre_tokenizers

    other = copy.deepcopy(phi3)
    other.backend_tokenizer.normalizer = None
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme=scheme, split=False
    )
    return other


def with_prefix_space(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that puts a space before a text."""
    from tokenizers import pre_tokenizers

    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return other


_SPECIAL = {  # kind -> special tokens before the bytes, after the merges, and the roles
    "opt": (
        ("<s>", "<pad>", "</s>", "<unk>"),
        (),
        {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"},
    ),
    "gpt2": (
        (),
        ("<|endoftext|>",),
        dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    ),
    "chatml": (
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<file_sep>", "<empty_output>"),
        (),
        {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|im_end|>",
            "chat_template": CHATML,
        },
    ),
}


def _bytes(kind: str) -> PreTrainedTokenizerFast:
    """A byte-level one; only OPT's puts its BOS in front of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    first, last, roles = _SPECIAL[kind]
    ids = [*first, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = _merges("\u0120", TOKENS[kind] - len(ids) - len(last))
    ids += [*(left + right for left, right in merges), *last]
    vocabulary = {token: number for number, token in enumerate(ids)}
    plain = Tokenizer(models.BPE(vocabulary, merges))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens([*first, *last])
    if kind == "opt":
        plain.post_processor = processors.TemplateProcessing(
            single="</s> $A", special_tokens=[("</s>", vocabulary["</s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, clean_up_tokenization_spaces=False, **roles
    )
