"""What of a run leaves for the hub: real files of a real run, by a server that keeps every byte."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import sftpipe
from sftpipe.cli import main
from sftpipe.config.hydra import compose_requests
from sftpipe.config.schema import ExportConfig
from sftpipe.errors import ExportError
from sftpipe.export.card import RUN_KEY
from sftpipe.runs.export import export
from sftpipe.runs.load import Run
from support.configs import compose
from support.errors import refused, told
from support.hub_server import HubServer, local_hub

Copy = Callable[..., Run]
ADAPTER = {
    ".gitattributes",
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
}
MERGED = {
    *(ADAPTER - {"adapter_config.json", "adapter_model.safetensors"}),
    "config.json",
    "generation_config.json",
    "model.safetensors",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with local_hub(monkeypatch) as server:
        yield server


def asked(*words: str) -> ExportConfig:
    return compose_requests(["export=hub", "export.repo_id=me/yoda", *words]).export


def arrived(hub: HubServer, folder: Path) -> Path:
    """What somebody downloads."""
    folder.mkdir()
    for name, content in hub.repositories["me/yoda"].files.items():
        (folder / name).write_bytes(content)
    return folder


def test_an_adapter_leaves_with_its_tokenizer_and_a_card_and_nothing_else(
    copy_run: Copy, hub: HubServer, lively_base: Path, tmp_path: Path
) -> None:
    run = copy_run()
    found = export(run, asked())
    assert set(hub.repositories["me/yoda"].files) == ADAPTER
    assert hub.repositories["me/yoda"].private is True
    assert set(found["files"]) == ADAPTER - {".gitattributes"}
    assert not (run.dir / "export").exists()
    folder = arrived(hub, tmp_path / "there")
    base = AutoModelForCausalLM.from_pretrained(lively_base)
    model = PeftModel.from_pretrained(base, folder).eval()
    ids = torch.tensor([[5, 9, 33]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, run.model(ids).logits, atol=1e-4, rtol=0)
    assert AutoTokenizer.from_pretrained(folder).chat_template == run.tokenizer.chat_template


def test_the_data_are_not_on_the_card_unless_they_are_asked_for(
    copy_run: Copy, hub: HubServer
) -> None:
    run = copy_run()
    sample = json.loads((run.dir / "samples.jsonl").read_text().splitlines()[0])
    word = sample["prompt"].split()[-1].strip(".")
    export(run, asked())
    card = hub.repositories["me/yoda"].files["README.md"].decode()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head[RUN_KEY] == run.identity()
    assert word not in card
    assert str(run.dir) not in card
    assert "training loss" in card
    assert 'PeftModel.from_pretrained(base, "me/yoda")' in card
    export(run, asked("export.samples=true"))
    assert word in hub.repositories["me/yoda"].files["README.md"].decode()


def test_merged_weights_are_made_where_there_are_none_and_taken_where_there_are(
    copy_run: Copy, hub: HubServer, tmp_path: Path
) -> None:
    run = copy_run()
    found = export(run, asked("export.what=merged", "export.private=false"))
    assert set(hub.repositories["me/yoda"].files) == MERGED
    assert hub.repositories["me/yoda"].private is False
    folder = run.dir / "export" / "merged"
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert found["drift"]["top1"] == 1.0
    assert "Merged and unmerged" in hub.repositories["me/yoda"].files["README.md"].decode()
    again = export(run, asked("export.what=merged", "export.private=false"))
    assert again["commit"] == found["commit"]
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    AutoModelForCausalLM.from_pretrained(arrived(hub, tmp_path / "there"))
    other = asked("export.what=merged", "export.dtype=bfloat16")
    error = refused(ExportError, lambda: export(run, other))
    assert "another dtype" in str(error)


def test_a_run_without_an_adapter_uploads_its_weights(
    lively_base: Path, tmp_path: Path, hub: HubServer
) -> None:
    words = ["recipe=yoda", "quantization=none", "lora=none", "model=custom", "sft.max_steps=1"]
    words += [f"model.name_or_path={lively_base}", "dataset.limit=12", f"run={tmp_path / 'run'}"]
    run = sftpipe.train(compose(words))
    error = refused(ExportError, lambda: export(run, asked()))
    assert told(error) == {"export.what": ("export.what=merged",)}
    export(run, asked("export.what=merged"))
    assert set(hub.repositories["me/yoda"].files) == MERGED


def test_the_verb_names_the_files_that_left(
    copy_run: Copy, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_run()
    assert main(["export", f"run={run.dir}", "export=hub", "export.repo_id=me/yoda"]) == 0
    out = capsys.readouterr().out
    assert f"{hub.url}/me/yoda" in out
    assert all(name in out for name in ADAPTER - {".gitattributes"})
