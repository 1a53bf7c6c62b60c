"""GGUF files in llama.cpp itself, and their logits against those of the weights."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from sftpipe.config.schema import TokenizerConfig
from sftpipe.errors import ExportError
from sftpipe.export import gguf_proof
from sftpipe.export.gguf import ARCHITECTURES, write_gguf
from sftpipe.export.gguf_proof import LIMITS, Prompt, prove_ids, read_back
from sftpipe.export.gguf_tokenizer import PRE_TOKENIZERS, read_tokenizer
from support.exported import (
    NASTY,
    SMALL,
    bytes_with,
    chat_prompts,
    exported,
    greedy_gap,
    plain_prompts,
)
from support.tokenizers import settled

QUESTIONS = ["hi", "What is 2+2?", "  list:\n1. a  1\n", "한국의 수도는 어디입니까?"]
LONG = "The quick brown fox, jumps_over (the) lazy-dog! 안녕하세요 " * 6


def proved(folder: Path, file: Path, prompts: list[Prompt], answers: int = 0) -> Any:
    """The proof of a folder's F16 file: equal ids, and answers that the weights give as well."""
    write_gguf(folder, file, "f16")
    proof = prove_ids(file, prompts, answers, new_tokens=12)
    assert proof is not None
    assert proof.differences == ()
    assert proof.equal == proof.prompts == len(prompts)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for prompt, answer in zip(prompts, proof.answers, strict=False):
        assert answer
        assert greedy_gap(model, prompt.ids, answer) < 0.05
    return proof


def test_the_embedded_models_ids_are_those_of_training_in_llama_cpp(
    tiny_model: Path, tokenizer: Any, tmp_path: Path
) -> None:
    special = ["<|im_start|>user\n a<|im_end|>\n", "x<|endoftext|> y"]
    prompts = [
        *chat_prompts(tokenizer, [*QUESTIONS, *NASTY]),
        *plain_prompts(tokenizer, [*NASTY, *special]),
    ]
    proved(tiny_model, tmp_path / "tiny.gguf", prompts)


def test_phi3_with_its_real_tokenizer_is_the_same_in_llama_cpp(
    golden: Path, tmp_path: Path
) -> None:
    path = golden / "tokenizers" / "phi-3-mini-4k-instruct"
    tokenizer = settled(TokenizerConfig(name_or_path=str(path)))
    config = Phi3Config(
        vocab_size=32064,
        original_max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=[32000, 32007],
        pad_token_id=0,
        **SMALL,
    )
    folder = exported(config, tokenizer, tmp_path / "phi")
    special = ["x<|end|>\n y<|user|>  z", "</s>  z <s> a<unk>  b", "<|endoftext|> q"]
    prompts = [
        *chat_prompts(tokenizer, [*QUESTIONS, LONG, *NASTY]),
        *plain_prompts(tokenizer, [*NASTY, *special]),
    ]
    proved(folder, tmp_path / "tuned.gguf", prompts, answers=5)


def test_gpt2_with_its_real_tokenizer_is_the_same_in_llama_cpp(
    golden: Path, tmp_path: Path
) -> None:
    path = golden / "tokenizers" / "gpt2"
    tokenizer = settled(TokenizerConfig(name_or_path=str(path)))
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
    ids = {"bos_token_id": 50256, "eos_token_id": 50256}
    config = GPT2Config(vocab_size=len(tokenizer), **sizes, **ids)
    folder = exported(config, tokenizer, tmp_path / "gpt2")
    prompts = plain_prompts(tokenizer, [LONG, *NASTY, "a<|endoftext|> b"])
    proved(folder, tmp_path / "phi3.gguf", prompts, answers=5)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
CONFIGS = {
    "llama": LlamaConfig(attention_bias=True, **SMALL),
    "llama3": LlamaConfig(rope_parameters=LLAMA3, tie_word_embeddings=True, **SMALL),
    "linear": LlamaConfig(rope_parameters=LINEAR, head_dim=32, **SMALL),
    "mistral": MistralConfig(sliding_window=None, **SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(head_dim=32, **SMALL),
    "phi3": Phi3Config(original_max_position_embeddings=512, pad_token_id=0, **SMALL),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_random_weights_of_a_class_are_the_same_in_llama_cpp(name: str, tmp_path: Path) -> None:
    tokenizer = bytes_with(pre_tokenizers.ByteLevel(add_prefix_space=False))
    config = type(CONFIGS[name]).from_dict(
        {**CONFIGS[name].to_dict(), "vocab_size": 704, "bos_token_id": 0, "eos_token_id": 1}
    )
    folder = exported(config, tokenizer, tmp_path / name)
    proved(folder, tmp_path / "x.gguf", plain_prompts(tokenizer, [LONG, *NASTY]), answers=4)

    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer(LONG).input_ids])
    with torch.no_grad():
        gap = ours(ids).logits - read_back(tmp_path / "x.gguf", folder)(ids).logits
    assert gap.abs().max() < 0.1


def test_every_class_and_only_those_with_real_tokenizers_are_proved() -> None:
    proved = {name for name, one in ARCHITECTURES.items() if one.proved_ids}
    assert proved == {"LlamaForCausalLM", "GPT2LMHeadModel", "Phi3ForCausalLM"}


def pre_of(name: str) -> Any:
    """A tokenizer whose pre-tokenizer llama.cpp calls so."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if name == "smollm":
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return bytes_with(
            pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
        )
    if name == "gpt-2":
        return bytes_with(pre_tokenizers.ByteLevel(add_prefix_space=False))
    # as published with Llama 3 and Qwen 2
    pattern = {
        "llama-bpe": (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
            r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        "qwen2": (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
            r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
    }[name]
    pre = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated", invert=False), byte_level]
    )
    normalizer = normalizers.NFC() if name == "qwen2" else None
    return bytes_with(pre, normalizer=normalizer, ignore_merges=name == "llama-bpe")


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_each_pre_tokenizer_takes_texts_apart_as_the_one_that_llama_cpp_calls_so(
    name: str, tmp_path: Path
) -> None:
    tokenizer = pre_of(name)
    config = LlamaConfig(vocab_size=704, eos_token_id=1, **SMALL)
    folder = exported(config, tokenizer, tmp_path / "model")
    assert read_tokenizer(folder).pre == name
    nfc = [
        text for text in NASTY if name != "qwen2" or normalizers.NFC().normalize_str(text) == text
    ]
    proved(folder, tmp_path / "x.gguf", plain_prompts(tokenizer, nfc))


def test_text_that_is_not_nfc_differs_where_the_tokenizer_makes_it_so(tmp_path: Path) -> None:
    tokenizer = pre_of("qwen2")
    folder = exported(LlamaConfig(vocab_size=704, **SMALL), tokenizer, tmp_path / "model")
    write_gguf(folder, tmp_path / "x.gguf", "f16")
    proof = prove_ids(tmp_path / "x.gguf", plain_prompts(tokenizer, ["e\u0301", "a"]))
    assert proof is not None
    assert proof.equal == 1
    (difference,) = proof.differences
    assert difference.text == "e\u0301"
    assert difference.expected == tuple(tokenizer("e\u0301").input_ids)
    assert difference.found != difference.expected


def test_bos_of_a_template_is_there_once(tmp_path: Path) -> None:
    from tokenizers import processors

    tokenizer = pre_of("llama-bpe")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 0)]
    )
    folder = exported(LlamaConfig(vocab_size=704, **SMALL), tokenizer, tmp_path / "model")
    assert read_tokenizer(folder).add_bos
    prompts = chat_prompts(tokenizer, QUESTIONS)
    assert all(prompt.ids.count(0) == 1 for prompt in prompts)
    proved(folder, tmp_path / "x.gguf", prompts)


# --- what the proof itself does -------------------------------------------------------------------


def test_without_xllamacpp_nothing_is_proved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gguf_proof, "PACKAGE", "no_such_package_of_llama")
    assert not gguf_proof.can_prove_ids()
    assert prove_ids(tmp_path / "none.gguf", []) is None


def test_a_file_that_llama_cpp_does_not_load_is_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], golden_error: Any
) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF\x03\0\0\0" + bytes(40))
    with pytest.raises(ExportError) as caught:
        prove_ids(file, [Prompt((1,), None, "a")])
    assert caught.value.problems[0].where == "xllamacpp"
    golden_error(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_template_that_llama_cpp_does_not_render_is_an_error_and_the_server_ends(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = pre_of("gpt-2")
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    folder = exported(LlamaConfig(vocab_size=704, **SMALL), tokenizer, tmp_path / "model")
    write_gguf(folder, tmp_path / "x.gguf", "f16")
    capfd.readouterr()
    before = children()
    with pytest.raises(ExportError, match=r"does not answer /apply-template|does not load"):
        prove_ids(tmp_path / "x.gguf", [Prompt((1,), ({"role": "user", "content": "a"},))])
    assert capfd.readouterr() == ("", "")
    assert children() == before


def children() -> set[str]:
    """The processes that this one started."""
    words = ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())]
    shown = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    return {line for line in shown.splitlines() if "gguf_proof" in line}


# --- the real model -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_the_embedded_model_stays_within_the_limits(
    kind: Any, smollm2: Any, tokenizer: Any, tmp_path: Path
) -> None:
    folder, file = Path(smollm2.path), tmp_path / f"{kind}.gguf"
    write_gguf(folder, file, kind)
    more = ["Name three colours.", "Write a haiku.", "Who are you?", "Why is the sky blue?"]
    last = ["Translate: good morning", "1, 2, 3,"]
    prompts = chat_prompts(tokenizer, [*QUESTIONS, *more, *last])
    proof = prove_ids(file, prompts, answers=len(prompts), new_tokens=24)
    assert proof is not None
    assert proof.differences == ()
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs = read_back(file)
    divergence, same = [], []
    with torch.no_grad():
        for prompt, answer in zip(prompts, proof.answers, strict=True):
            ids = torch.tensor([[*prompt.ids, *answer]])
            left, right = ours(ids).logits[0].log_softmax(-1), theirs(ids).logits[0].log_softmax(-1)
            divergence.append((left.exp() * (left - right)).sum(-1))
            same.append(left.argmax(-1) == right.argmax(-1))
    assert torch.cat(divergence).mean() <= LIMITS[kind].kl
    assert torch.cat(same).float().mean() >= LIMITS[kind].top1
    if kind == "f16":
        gaps = [
            greedy_gap(ours, one.ids, two) for one, two in zip(prompts, proof.answers, strict=True)
        ]
        assert max(gaps) < 0.05
        assert all(text and "<|im_end|>" not in text for text in proof.texts)
