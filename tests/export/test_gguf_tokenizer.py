"""Tokenizers in the terms of GGUF; that llama.cpp then gives the same ids is in test_gguf_proof."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sftpipe.config.schema import TokenizerConfig
from sftpipe.errors import ExportError
from sftpipe.export.gguf_tokenizer import GgufTokenizer, read_tokenizer
from sftpipe.tokenizer.train import train_tokenizer
from support.exported import bytes_with
from support.tokenizers import metaspace, settled, with_prefix_space


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., GgufTokenizer]:
    """A tokenizer, saved with the ids that end an answer, as GGUF holds it."""

    def saved(tokenizer: Any, stops: Any = None) -> GgufTokenizer:
        folder = tmp_path / "saved"
        tokenizer.save_pretrained(folder)
        if stops is not None:
            text = json.dumps({"eos_token_id": stops})
            (folder / "generation_config.json").write_text(text, encoding="utf-8")
        return read_tokenizer(folder)

    return saved


def plain_bytes() -> Any:
    return bytes_with(pre_tokenizers.ByteLevel(add_prefix_space=False))


def test_the_embedded_models_tokenizer_is_read_exactly(tokenizer: Any, read: Any) -> None:
    found = read(tokenizer, [2, 0])
    assert (found.model, found.pre) == ("gpt2", "smollm")
    assert len(found.tokens) == len(tokenizer) == len(found.types)
    assert found.tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert found.tokens == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = {number for number, kind in enumerate(found.types) if kind == TokenType.CONTROL}
    assert special == set(tokenizer.added_tokens_decoder)
    assert found.types.count(TokenType.NORMAL) == len(tokenizer) - len(special)
    assert found.merges[:2] == ["\u0120 t", "\u0120 a"]
    assert (found.scores, found.add_bos, found.add_space_prefix) == ([], False, False)
    assert found.ids == {
        "bos": tokenizer.bos_token_id,
        "eos": 2,
        "eot": 0,
        "pad": tokenizer.pad_token_id,
        "unk": tokenizer.unk_token_id,
    }
    assert found.chat_template == tokenizer.chat_template


def test_phi3s_tokenizer_is_read_exactly(golden: Path, read: Any) -> None:
    path = golden / "tokenizers" / "phi-3-mini-4k-instruct"
    tokenizer = settled(TokenizerConfig(name_or_path=str(path)))
    found = read(tokenizer, [32000, 32001, 32007])
    assert (found.model, found.pre, found.merges) == ("llama", "default", [])
    assert (found.add_bos, found.add_space_prefix, found.takes_space) == (False, True, True)
    assert found.types[0] == TokenType.UNKNOWN
    assert (found.types[1], found.types[2]) == (TokenType.CONTROL, TokenType.USER_DEFINED)
    assert set(found.types[3:259]) == {TokenType.BYTE}
    assert set(found.types[259:32000]) == {TokenType.NORMAL}
    assert set(found.types[32000:]) == {TokenType.CONTROL}
    # the merges begin with "▁ t", "e r", "i n", "▁ a", "e n"
    first = [found.tokens.index(text) for text in ("\u2581t", "er", "in", "\u2581a", "en")]
    assert [found.scores[number] for number in first] == [-0.0, -1.0, -2.0, -3.0, -4.0]
    assert len({found.scores[number] for number in range(259, 30000)}) > 29000
    assert (found.ids["eos"], found.ids["eot"], found.ids["eom"]) == (32000, 32001, 32007)
    assert (found.ids["bos"], found.ids["unk"], found.ids["pad"]) == (1, 0, tokenizer.pad_token_id)


def test_a_tokenizer_that_a_run_trained_is_read(read: Any) -> None:
    texts = ["the cat and the dog and the bird"] * 3
    found = read(train_tokenizer(TokenizerConfig(type="bpe", vocab_size=270), texts))
    assert found.pre == "gpt-2"
    assert found.ids == {"bos": 268, "eos": 268, "pad": 269}  # llama.cpp wants some BOS
    assert not found.add_bos


def test_added_tokens_are_typed_by_whether_they_are_special(read: Any) -> None:
    tokenizer = plain_bytes()
    tokenizer.add_tokens([AddedToken("<word>", normalized=False)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<mark>"]})
    found = read(tokenizer)
    assert found.tokens[-2:] == ["<word>", "<mark>"]
    assert found.types[-2:] == [TokenType.USER_DEFINED, TokenType.CONTROL]


def test_ids_without_a_token_are_filled_up(read: Any, tmp_path: Path) -> None:
    read(plain_bytes())
    file = tmp_path / "saved" / "tokenizer.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    entry = {**whole["added_tokens"][-1], "content": "[PAD701]", "id": 702}
    whole["added_tokens"].append(entry)
    whole["model"]["merges"] = [" ".join(pair) for pair in whole["model"]["merges"]]  # as of old
    file.write_text(json.dumps(whole), encoding="utf-8")
    found = read_tokenizer(tmp_path / "saved")
    size = len(found.tokens)
    assert size == 703
    assert found.tokens[-2:] == ["<[PAD701]>", "[PAD701]"]
    assert found.types[-2:] == [TokenType.UNUSED, TokenType.CONTROL]
    assert found.merges[0].count(" ") == 1


@pytest.mark.parametrize(
    ("adds", "template", "add_bos"),
    [
        (False, None, False),
        (True, None, True),
        (True, "{{ bos_token }}{{ messages[0]['content'] }}", True),
        (True, "<|im_start|>{{ messages[0]['content'] }}", True),
        (True, "{{ messages[0]['content'] }}", False),  # training feeds what the template writes
        (False, "{{ bos_token }}{{ messages[0]['content'] }}", False),
    ],
)
def test_bos_is_added_where_training_has_it(
    adds: bool, template: str | None, add_bos: bool, read: Any
) -> None:
    tokenizer = plain_bytes()
    tokenizer.chat_template = template
    if adds:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A <|im_end|>",
            special_tokens=[("<|im_start|>", 0), ("<|im_end|>", 1)],
        )
    assert read(tokenizer).add_bos is add_bos


@pytest.mark.parametrize(("scheme", "prefix"), [("always", True), ("never", False)])
def test_the_space_in_front_of_a_text_is_said(
    scheme: str, prefix: bool, golden: Path, read: Any
) -> None:
    path = golden / "tokenizers" / "phi-3-mini-4k-instruct"
    tokenizer = settled(TokenizerConfig(name_or_path=str(path)))
    assert read(metaspace(tokenizer, scheme)).add_space_prefix is prefix


# --- what llama.cpp cannot have -------------------------------------------------------------------


def _of(model: Any, pre: Any = None) -> Any:
    plain = Tokenizer(model)
    plain.pre_tokenizer = pre or pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="a")


def _changed(**keys: Any) -> Any:
    tokenizer = plain_bytes()
    for key, value in keys.items():
        setattr(tokenizer.backend_tokenizer, key, value)
    return tokenizer


def _with(token: AddedToken) -> Any:
    tokenizer = plain_bytes()
    tokenizer.add_tokens([token])
    return tokenizer


def _without_eos() -> Any:
    tokenizer = plain_bytes()
    tokenizer.eos_token = None
    return tokenizer


def _without_bos() -> Any:
    tokenizer = plain_bytes()
    tokenizer.bos_token = None
    tokenizer.chat_template = "{{ bos_token }}a"
    return tokenizer


def _pieces(
    merges: list[tuple[str, str]],
    extra: tuple[str, ...] = (),
    unk_token: str | None = "<unk>",
    dropout: float | None = None,
) -> Any:
    """Pieces of a, b, c and what is merged of them."""
    ids = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "c"]
    ids += [left + right for left, right in merges] + list(extra)
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(ids))}
    plain = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=unk_token, byte_fallback=True, dropout=dropout)
    )
    plain.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="a", unk_token=unk_token)


def _with_front() -> Any:
    front = processors.TemplateProcessing(
        single="<|im_end|> $A", special_tokens=[("<|im_end|>", 1)]
    )
    return _changed(post_processor=front)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "words": (lambda: _of(models.WordLevel({"a": 0}, "a")), "type WordLevel"),
    "unigram": (lambda: _of(models.Unigram([("a", 0.0)])), "type Unigram"),
    "characters": (
        lambda: train_tokenizer(TokenizerConfig(type="char"), ["abc"]),
        "one token a character",
    ),
    "space in front of bytes": (lambda: with_prefix_space(plain_bytes()), "add_prefix_space"),
    "digits by three": (
        lambda: _changed(
            pre_tokenizer=pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=False),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            )
        ),
        "no name of llama.cpp is known",
    ),
    "lower case": (lambda: _changed(normalizer=normalizers.Lowercase()), "Lowercase"),
    "merges ignored": (
        lambda: bytes_with(pre_tokenizers.ByteLevel(add_prefix_space=False), ignore_merges=True),
        '"ignore_merges": true',
    ),
    "space before a token": (lambda: _with(AddedToken("<w>", lstrip=True)), "'<w>' has lstrip"),
    "whole words": (lambda: _with(AddedToken("<w>", single_word=True)), "has single_word"),
    "space after a token": (lambda: _with(AddedToken("<w>", rstrip=True)), "rstrip"),
    "no merges": (lambda: _of(models.BPE({"a": 0}, []), pre_tokenizers.ByteLevel()), "no merges"),
    "dropout": (lambda: _pieces([("a", "b")], dropout=0.1), "dropout = 0.1"),
    "no UNK": (lambda: _pieces([("a", "b")], unk_token=None), "without an UNK token"),
    "no EOS": (_without_eos, "no EOS token"),
    "no BOS": (_without_bos, "the chat template writes bos_token"),
    "another token in front": (_with_front, "other tokens than BOS in front"),
    "a merge of llama.cpp alone": (
        lambda: _pieces([("a", "b")], ("bc", "abc")),
        "would merge 'b' and 'c'",
    ),
    "scattered merges": (
        lambda: _pieces([("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")]),
        "make 'abc' stand apart",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_would_do_otherwise_is_refused(
    name: str, read: Any, golden_error: Any
) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(ExportError) as caught:
        read(make())
    (problem,) = caught.value.problems
    assert problem.where == "tokenizer"
    assert reason in problem.found
    golden_error(caught.value)


def test_more_tokens_that_end_an_answer_than_gguf_has_places_for(
    read: Any, golden_error: Any
) -> None:
    with pytest.raises(ExportError) as caught:
        read(plain_bytes(), [1, 5, 6, 7])
    golden_error(caught.value)


def test_a_space_that_goes_in_front_of_the_first_word_alone_is_refused(
    golden: Path, read: Any
) -> None:
    path = golden / "tokenizers" / "phi-3-mini-4k-instruct"
    tokenizer = settled(TokenizerConfig(name_or_path=str(path)))
    with pytest.raises(ExportError, match='"prepend_scheme": "first"'):
        read(metaspace(tokenizer, "first"))


def test_phi3_with_a_new_token_that_takes_no_space_is_refused(golden: Path, read: Any) -> None:
    path = golden / "tokenizers" / "phi-3-mini-4k-instruct"
    tokenizer = copy.deepcopy(settled(TokenizerConfig(name_or_path=str(path))))
    tokenizer.add_tokens([AddedToken("<new>", normalized=False)])
    with pytest.raises(ExportError, match="'<new>' is against it"):
        read(tokenizer)


def test_a_folder_without_a_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no tokenizer\.json"):
        read_tokenizer(tmp_path)
