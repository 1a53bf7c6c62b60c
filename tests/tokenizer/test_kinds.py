"""The small tokenizers that tests make behave as the published ones that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sftpipe.tokenizer.special_tokens import choose_pad_token
from support.tokenizers import PUBLISHED, TOKENS, WORDS


def has_phi3s_properties(raw: Any) -> None:
    """SentencePiece pieces: what a word becomes depends on what stands in front of it."""
    pieces = {
        "yes": ["\u2581yes"],
        " yes": ["\u2581", "\u2581yes"],
        "two yes": ["\u2581two", "\u2581yes"],
        "\nyes": ["\u2581", "<0x0A>", "yes"],
        "### A": ["\u2581###", "\u2581A"],
        ":-": ["\u2581:-"],
    }
    assert {text: raw.tokenize(text) for text in pieces} == pieces
    assert set(raw.tokenize("### A")) & set(raw.tokenize("\n### A")) == {"\u2581A"}
    # a turn token takes the white space behind it, and the answer gets a space of its own
    turns = raw.convert_tokens_to_ids(["<|user|>", "\u2581yes", "<|end|>", "<|assistant|>"])
    assert raw("<|user|>\nyes<|end|>\n<|assistant|>\n").input_ids == turns
    assert set(turns) - set(raw.added_tokens_decoder) == {turns[1]}
    # a decoder drops one space in front, and bytes make any character
    for text in ("yes", " yes", "\nyes\n", "가 \U0001f600"):
        assert raw.decode(raw(text).input_ids) == text
    assert (raw.bos_token, raw.eos_token, raw.unk_token) == ("<s>", "<|endoftext|>", "<unk>")
    assert (raw.pad_token, choose_pad_token(raw, "auto")) == ("<|endoftext|>", "<unk>")
    assert raw.all_special_tokens == ["<s>", "<|endoftext|>", "<unk>"]
    answer = [{"role": "assistant", "content": "yes"}]
    assert raw.apply_chat_template(answer, tokenize=False) == (
        "<|assistant|>\nyes<|end|>\n<|endoftext|>"
    )


def has_opts_properties(raw: Any) -> None:
    """Bytes and merges, and one token that opens and ends a text."""
    _has_merges_of_bytes(raw, front=[2])
    assert (raw.bos_token, raw.eos_token, raw.unk_token, raw.pad_token) == (*["</s>"] * 3, "<pad>")
    assert raw.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert raw.decode(raw("yes").input_ids) == "</s>yes"
    assert choose_pad_token(raw, "auto") == "<pad>"
    assert raw.chat_template is None
    assert len(raw.tokenize("<|im_start|>")) > 1


def has_gpt2s_properties(raw: Any) -> None:
    """Bytes and merges, and no special token but the last one."""
    _has_merges_of_bytes(raw, front=[])
    assert (raw.bos_token, raw.eos_token, raw.unk_token) == ("<|endoftext|>",) * 3
    assert (raw.pad_token, raw.eos_token_id) == (None, len(raw) - 1)
    assert choose_pad_token(raw, "auto") == "[PAD]"
    assert raw.chat_template is None


def has_smollm2s_properties(raw: Any) -> None:
    """Bytes and merges, tokens of turns, and a PAD that is the end of a turn."""
    _has_merges_of_bytes(raw, front=[])
    roles = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_end|>")
    assert (raw.bos_token, raw.eos_token, raw.unk_token, raw.pad_token) == roles
    assert raw.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert raw("<|im_end|>\n").input_ids == [2, raw.convert_tokens_to_ids("\u010a")]
    assert choose_pad_token(raw, "auto") == "<|endoftext|>"
    answer = [{"role": "system", "content": "a"}, {"role": "assistant", "content": "yes"}]
    assert raw.apply_chat_template(answer, tokenize=False) == (
        "<|im_start|>system\na<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    )


def _has_merges_of_bytes(raw: Any, front: list[int]) -> None:
    """`front` is what the tokenizer writes before a text."""
    pieces = {
        "yes": ["yes"],
        " yes": ["\u0120yes"],
        "two yes": ["two", "\u0120yes"],
        "\nyes": ["\u010a", "yes"],
        "###": ["###"],
        "yes ###\n###": ["yes", "\u0120###", "\u010a", "###"],
        ":-": [":-"],
    }
    assert {text: raw.tokenize(text) for text in pieces} == pieces
    for text in ("yes", " two\n\n yes", "가 \U0001f600", ""):
        ids = raw(text).input_ids
        assert ids[: len(front)] == front
        assert raw.decode(ids[len(front) :]) == text


PROPERTIES: dict[str, Callable[[Any], None]] = {
    "phi3": has_phi3s_properties,
    "opt": has_opts_properties,
    "gpt2": has_gpt2s_properties,
    "chatml": has_smollm2s_properties,
}


@pytest.mark.parametrize("kind", PROPERTIES)
def test_a_small_tokenizer_has_the_properties_of_its_kind(
    made: Callable[[str], Path], kind: str
) -> None:
    raw = AutoTokenizer.from_pretrained(made(kind))
    assert len(raw) == TOKENS[kind]
    PROPERTIES[kind](raw)
    space = "\u2581" if kind == "phi3" else "\u0120"
    assert [raw.tokenize(f"two {word}")[1:] for word in WORDS] == [[space + word] for word in WORDS]
    assert [raw.tokenize(f"\n{word}")[-1] for word in WORDS] == WORDS


def test_the_embedded_tokenizer_has_the_properties_of_its_kind(smollm2: Any) -> None:
    has_smollm2s_properties(AutoTokenizer.from_pretrained(smollm2.path))


def test_golden_published_tokenizers_have_the_properties_of_their_kinds(
    golden: Path, subtests: pytest.Subtests
) -> None:
    for kind, name in PUBLISHED.items():
        with subtests.test(kind):
            PROPERTIES[kind](AutoTokenizer.from_pretrained(golden / "tokenizers" / name))
