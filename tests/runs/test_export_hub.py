"""What of a run leaves for the hub: real files of a real run, by a server that keeps every byte."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
from sftpipe.export.card import RUN_KEY, adapter_use
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


def test_the_lines_of_the_card_load_an_adapter_with_a_new_token(
    lively_base: Path, hub: HubServer, tmp_path: Path
) -> None:
    words = ["recipe=yoda", "quantization=none", "model=custom", "dataset.limit=12"]
    words += [f"model.name_or_path={lively_base}", "sft.max_steps=2", "sft.learning_rate=3e-2"]
    words += ["dataset.markers=special", "dataset.marker_tokens=['|SOUND|>']"]
    run = sftpipe.train(compose([*words, "evaluation=none", f"run={tmp_path / 'run'}"]))
    export(run, asked())
    folder = arrived(hub, tmp_path / "there")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert "resize_token_embeddings" in code
    code = code.replace("PATH/OF/THE/BASE", str(lively_base)).replace("me/yoda", str(folder))
    names: dict[str, Any] = {}
    exec(code, names)
    (new,) = run.tokenizer.convert_tokens_to_ids(["|SOUND|>"])
    ids = torch.tensor([[5, 9, new, 33]])
    with torch.no_grad():
        theirs, ours = names["model"].eval()(ids).logits, run.model(ids).logits
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"r": 8}, "vllm serve a/base --enable-lora --lora-modules model=me/model\n"),
        ({"r": 20}, "--lora-modules model=me/model --max-lora-rank 32\n"),
        ({"r": 8, "rank_pattern": {"q_proj": 64}}, "--max-lora-rank 64\n"),
        ({"r": 8, "use_dora": True}, "(DoRA)"),
        ({"r": 8, "modules_to_save": ["lm_head"]}, "(lora.modules_to_save)"),
        ({"r": 8, "trainable_token_indices": [5]}, "(new tokens)"),
        ({"r": 8, "bias": "all"}, "(biases)"),
    ],
)
def test_the_card_says_how_vllm_serves_an_adapter_or_why_it_does_not(
    lora: dict[str, Any], said: str
) -> None:
    text = adapter_use("me/model", "a/base@abc", lora, [])
    assert said in text
    assert ("vllm serve" in text) == ("--enable-lora" in text)


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
