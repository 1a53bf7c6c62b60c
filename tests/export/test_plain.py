"""Plain weights: their files, their configs, and what is wrong with them told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sftpipe.errors import ExportError
from sftpipe.export import plain
from sftpipe.model.adapters import count_parameters
from support.errors import places, refused
from support.models import llama


def test_weights_are_cut_into_files_of_a_size_and_read_back(
    chatml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plain.SHARD == "2GB"
    model = llama(64, tied=False)
    table = max(one.numel() for one in model.parameters()) * 4
    monkeypatch.setattr(plain, "SHARD", f"{table // 1000}KB")
    plain.write_plain(model, chatml, tmp_path)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2
    assert max(file.stat().st_size for file in files) < table + 4000  # and a header
    total = json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]
    assert total["total_size"] == 4 * count_parameters(model)[1]
    again = plain.read_plain(tmp_path, "cpu").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_tied_weights_count_once() -> None:
    tied, untied = llama(64, tied=True), llama(64, tied=False)
    table = tied.get_input_embeddings().weight.numel()
    assert 2 * count_parameters(untied)[1] - 2 * count_parameters(tied)[1] == 2 * table


def test_configs_are_those_of_a_model_that_is_used(chatml: Any, tmp_path: Path) -> None:
    model = llama(64, tied=False).to(torch.bfloat16)
    model.config.use_cache = False
    model.config.quantization_config = {"load_in_4bit": True}
    model.generation_config.eos_token_id = [2, 7]
    plain.write_plain(model, chatml, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["use_cache"], config["dtype"]) == (True, "bfloat16")
    assert "quantization_config" not in config
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [2, 7]
    assert (tmp_path / "chat_template.jinja").read_text() == chatml.chat_template


def test_a_weight_that_is_missing_or_damaged_is_told(chatml: Any, tmp_path: Path) -> None:
    plain.write_plain(llama(64, tied=False), chatml, tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    kept = {name: one for name, one in weights.items() if name != "model.norm.weight"}
    save_file(kept, file, metadata={"format": "pt"})
    error = refused(ExportError, lambda: plain.read_plain(tmp_path, "cpu"))
    assert places(error) == [str(tmp_path)]
    assert "missing_keys: model.norm.weight" in str(error)
    file.write_bytes(file.read_bytes()[:100])
    error = refused(ExportError, lambda: plain.read_plain(tmp_path, "cpu"))
    assert "cannot read what was written" in str(error)
