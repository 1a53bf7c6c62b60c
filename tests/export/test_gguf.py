"""The file itself: metadata, tensors, types, and what is refused before one is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from sftpipe.errors import ExportError, StorageError
from sftpipe.export.gguf import architecture_of, write_gguf
from sftpipe.export.gguf_proof import read_back


@pytest.fixture(scope="module")
def small(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama whose output embedding is its own, and a small tokenizer."""
    folder = tmp_path_factory.mktemp("small") / "model"
    shutil.copytree(made("chatml"), folder)
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(folder, num_key_value_heads=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def small_tied(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `small`, with one embedding."""
    folder = tmp_path_factory.mktemp("small") / "tied"
    shutil.copytree(small, folder)
    config = LlamaConfig.from_pretrained(folder, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def fields(file: Path) -> dict[str, Any]:
    """{key: value} of a file, without the lists."""
    reader = gguf.GGUFReader(file)
    values = {key: field.contents() for key, field in reader.fields.items()}
    return {key: value for key, value in values.items() if not isinstance(value, list)}


def types(file: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}


def test_the_metadata_of_a_llama_is_exact(tiny_model: Path, tmp_path: Path, tokenizer: Any) -> None:
    write_gguf(tiny_model, tmp_path / "tiny.gguf", "bf16")
    found = fields(tmp_path / "tiny.gguf")
    epsilon = found.pop("llama.attention.layer_norm_rms_epsilon")
    assert epsilon == pytest.approx(LlamaConfig().rms_norm_eps)
    assert {key: value for key, value in found.items() if not key.startswith("GGUF.")} == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "tiny",
        "general.file_type": gguf.LlamaFileType.MOSTLY_BF16,
        "general.quantization_version": 2,
        "llama.context_length": 512,
        "llama.vocab_size": len(tokenizer),
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        "tokenizer.ggml.unknown_token_id": tokenizer.unk_token_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": tokenizer.chat_template,
    }


@pytest.mark.parametrize("tied", [True, False])
def test_weights_come_back_as_they_were(
    tied: bool, small: Path, small_tied: Path, tmp_path: Path
) -> None:
    folder, file = small_tied if tied else small, tmp_path / "x.gguf"
    write_gguf(folder, file, "f16")
    assert ("output.weight" in types(file)) is not tied
    before = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    after = read_back(file).state_dict()
    assert set(after) == set(before)
    for name, weight in before.items():
        rounded = weight if weight.ndim == 1 else weight.half().float()
        assert torch.equal(after[name], rounded), name


def test_weights_in_several_files_are_the_same(small: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32)
    shutil.copytree(small, tmp_path / "shards")
    (tmp_path / "shards" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    write_gguf(small, tmp_path / "one.gguf", "q8_0")
    write_gguf(tmp_path / "shards", tmp_path / "many.gguf", "q8_0")
    one, many = (
        {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(tmp_path / name).tensors}
        for name in ("one.gguf", "many.gguf")
    )
    assert one == many


def test_matrices_have_the_type_and_vectors_are_float32(small: Path, tmp_path: Path) -> None:
    for kind in ("f16", "bf16", "q8_0"):
        write_gguf(small, tmp_path / "x.gguf", kind)
        found = types(tmp_path / "x.gguf")
        vectors = {name for name in found if "norm" in name}
        assert {found[name] for name in vectors} == {"F32"}
        assert {found[name] for name in set(found) - vectors} == {kind.upper()}


def test_rows_that_fill_no_block_of_q8_0_are_float16(tmp_path: Path, made: Any) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(made("chatml"), folder)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    write_gguf(folder, tmp_path / "x.gguf", "q8_0")
    found = types(tmp_path / "x.gguf")
    assert found["blk.0.ffn_down.weight"] == "F16"
    assert found["blk.0.ffn_up.weight"] == "Q8_0"


def test_rows_after_the_last_token_are_named_and_unused(small: Path, tmp_path: Path) -> None:
    write_gguf(small, tmp_path / "x.gguf", "f16")
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    assert len(tokens) == len(kinds) == 512
    assert tokens[-1] == "[PAD511]"
    assert set(kinds[474:]) == {gguf.TokenType.UNUSED}


def test_a_name_that_llama_cpp_takes_for_phi3_is_another_one(small: Path, tmp_path: Path) -> None:
    write_gguf(small, tmp_path / "my-Phi3-chat.gguf", "f16")
    assert fields(tmp_path / "my-Phi3-chat.gguf")["general.name"] == "my-phi 3-chat"


# --- refused --------------------------------------------------------------------------------------


def changed(folder: Path, target: Path, **keys: Any) -> Path:
    """A copy with other keys of config.json."""
    shutil.copytree(folder, target)
    file = target / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}), encoding="utf-8")
    return target


YARN = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("class", {"architectures": ["GPTNeoXForCausalLM"]}),
        ("activation", {"hidden_act": "gelu"}),
        ("rope", {"rope_parameters": YARN, "original_max_position_embeddings": 256}),
        ("quantized", {"quantization_config": {"quant_method": "bitsandbytes"}}),
    ],
)
def test_a_class_that_is_not_proved_is_refused(
    name: str, keys: dict[str, Any], small: Path, tmp_path: Path, golden_error: Any
) -> None:
    folder = changed(small, tmp_path / "other", **keys)
    with pytest.raises(ExportError) as caught:
        write_gguf(folder, tmp_path / "x.gguf", "f16")
    golden_error(caught.value)
    assert not (tmp_path / "x.gguf").exists()


def test_opt_is_refused_by_name(tiny_opt: Path, golden_error: Any) -> None:
    with pytest.raises(ExportError) as caught:
        architecture_of(tiny_opt)
    golden_error(caught.value)


def altered(folder: Path, target: Path, change: Any) -> Path:
    """A copy with other weights."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


def _large(weights: dict[str, Any]) -> None:
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 70_000.0


def _no_number(weights: dict[str, Any]) -> None:
    weights["model.norm.weight"][0] = float("nan")


def _no_output(weights: dict[str, Any]) -> None:
    del weights["lm_head.weight"]


def _unknown(weights: dict[str, Any]) -> None:
    weights["model.layers.0.mlp.gate.weight_of_mine"] = torch.zeros(2)


@pytest.mark.parametrize("change", [_large, _no_number, _no_output, _unknown])
def test_weights_that_gguf_cannot_hold_are_refused_and_no_file_is_left(
    change: Any, small: Path, tmp_path: Path, golden_error: Any
) -> None:
    folder = altered(small, tmp_path / "other", change)
    with pytest.raises(ExportError) as caught:
        write_gguf(folder, tmp_path / "x.gguf", "f16")
    golden_error(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_bfloat16_holds_what_float16_does_not(small: Path, tmp_path: Path) -> None:
    folder = altered(small, tmp_path / "other", _large)
    write_gguf(folder, tmp_path / "x.gguf", "bf16")
    (tensor,) = (
        tensor
        for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors
        if tensor.name == "blk.0.ffn_up.weight"
    )
    values = gguf.dequantize(tensor.data, tensor.tensor_type)
    assert np.isclose(values.max(), 70_000, rtol=0.01)


def test_fewer_rows_than_tokens_are_refused(small: Path, tmp_path: Path, golden_error: Any) -> None:
    def cut(weights: dict[str, Any]) -> None:
        weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:100].clone()

    folder = altered(small, tmp_path / "other", cut)
    with pytest.raises(ExportError) as caught:
        write_gguf(folder, tmp_path / "x.gguf", "f16")
    golden_error(caught.value)


def test_a_folder_that_is_gone_is_a_users_problem(small: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the folder is gone"):
        write_gguf(small, tmp_path / "none" / "x.gguf", "f16")
