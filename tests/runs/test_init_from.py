"""Runs that train an adapter further: from where, on which base, with which tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import sftpipe
from sftpipe.config.init_from import find_adapter
from sftpipe.config.schema import TrainConfig
from sftpipe.errors import ModelError, RunError
from sftpipe.runs.load import load_run
from support.configs import compose
from support.errors import Pin, places, refused, told

PROMPT = torch.tensor([[5, 9, 30, 31, 12]])


def further(base: Path, adapter: Path | None, run: Path, *words: str) -> TrainConfig:
    """Rows, and a step, as those of the run of `conftest.py`."""
    return compose(
        [
            "recipe=yoda",
            "quantization=none",
            "model=custom",
            f"model.name_or_path={base}",
            "dataset.limit=12",
            "sft.per_device_train_batch_size=12",
            "sft.num_train_epochs=2",
            "sft.learning_rate=1e-2",
            "evaluation.max_new_tokens=4",
            *([f"lora.init_from={adapter}"] if adapter else []),
            f"run={run}",
            *words,
        ]
    )


def validation(folder: Path) -> Any:
    return json.loads((folder / "metrics.json").read_text())["validation"]


def plain_logits(base: Path, adapter: Path) -> torch.Tensor:
    """By transformers and PEFT alone."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    with torch.no_grad():
        return model.eval()(PROMPT).logits


def test_a_run_goes_on_where_the_adapter_ended(
    lively_run: Path, lively_base: Path, tmp_path: Path
) -> None:
    run = sftpipe.train(further(lively_base, lively_run, tmp_path / "run"))

    assert validation(run.dir)["before"] == validation(lively_run)["after"]
    assert validation(run.dir)["after"]["loss"] < validation(run.dir)["before"]["loss"]
    manifest = json.loads((run.dir / "manifest.json").read_text())
    assert manifest["adapter"] == f"sha256:{find_adapter(lively_run).sha256}"
    saved = (run.dir / "adapter_config.json").read_text()
    assert str(lively_base) not in saved
    assert str(lively_run) not in saved
    with torch.no_grad():
        ours = load_run(run.dir).load_model()(PROMPT).logits
    assert torch.equal(ours, plain_logits(lively_base, run.dir))
    assert not torch.equal(ours, plain_logits(lively_base, lively_run))


@pytest.fixture
def other_base(lively_base: Path, tmp_path: Path) -> Path:
    """The base with one bit changed."""
    folder = Path(shutil.copytree(lively_base, tmp_path / "lively"))
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_an_adapter_goes_on_only_on_the_base_that_it_was_trained_on(
    lively_run: Path, lively_base: Path, other_base: Path, tmp_path: Path, golden_error: Pin
) -> None:
    """Also where a folder holds nothing but what PEFT wrote, with the hash of the base."""
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(lively_run / name, plain)
    names = {}
    for adapter in (lively_run, plain):
        cfg = further(other_base, adapter, tmp_path / "run")
        error = refused(ModelError, lambda cfg=cfg: sftpipe.prepare(cfg))
        assert places(error) == ["lora.init_from"]
        names[adapter] = str(error).partition("was trained")[2]
    assert names[lively_run] == names[plain]
    text, hashes = names[plain], [word for word in names[plain].split() if "sha256:" in word]
    assert len(set(hashes)) == 2
    for label, word in zip(("BEFORE", "NOW"), hashes, strict=True):
        text = text.replace(word, label)
    golden_error(text)
    sftpipe.prepare(further(lively_base, plain, tmp_path / "run"))


def test_a_base_whose_name_alone_is_known_is_said_to_be_unproved(
    lively_run: Path, other_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Path(shutil.copytree(lively_run, tmp_path / "plain"))
    (plain / "manifest.json").unlink()
    saved = json.loads((plain / "adapter_config.json").read_text())
    for name, said in (("/of/another/machine", "called /of/another/machine"), (None, "names no")):
        file = plain / "adapter_config.json"
        file.write_text(json.dumps({**saved, "base_model_name_or_path": name}))
        sftpipe.prepare(further(other_base, plain, tmp_path / "run"))
        told = " ".join(capsys.readouterr().err.split())
        assert said in told
        assert "cannot be proved" in told


def test_other_tokens_than_those_of_the_adapter_are_refused(
    lively_run: Path, lively_base: Path, tmp_path: Path, golden_error: Pin
) -> None:
    cfg = further(lively_base, lively_run, tmp_path / "run", "tokenizer.tokens=['<new>']")
    error = refused(ModelError, lambda: sftpipe.prepare(cfg))
    golden_error(str(error).replace(str(lively_run), "RUN"))
    (word,) = told(error)["lora.init_from"]
    sftpipe.prepare(further(lively_base, lively_run, tmp_path / "run", word))

    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(lively_run / name, plain)
    cfg = further(lively_base, plain, tmp_path / "run", "tokenizer.tokens=['<new>']")
    error = refused(ModelError, lambda: sftpipe.prepare(cfg))
    golden_error(str(error), "without a tokenizer")


def test_numbers_that_are_not_of_this_model_are_refused(
    lively_run: Path, lively_base: Path, tmp_path: Path
) -> None:
    odd = Path(shutil.copytree(lively_run, tmp_path / "odd"))
    numbers = load_file(odd / "adapter_model.safetensors")
    name = sorted(numbers)[0]
    for spoilt in ({**numbers, name: numbers[name][:1]}, {**numbers, "odd": numbers[name] * 1}):
        save_file(spoilt, odd / "adapter_model.safetensors")
        cfg = further(lively_base, odd, tmp_path / f"run-{len(spoilt)}")
        error = refused(ModelError, lambda cfg=cfg: sftpipe.train(cfg))
        assert places(error) == ["lora.init_from"]
        assert (name if len(spoilt) == len(numbers) else "odd") in str(error)


def test_a_run_is_resumed_from_the_adapter_that_it_began_from_wherever_that_is(
    lively_run: Path, lively_base: Path, tmp_path: Path
) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    words = ("sft.save_steps=1", "sft.save_strategy=steps", "sft.save_total_limit=null")
    sftpipe.train(further(lively_base, lively_run, run, *words))
    whole = (run / "adapter_model.safetensors").read_bytes()
    for name in ("COMPLETE", "adapter_model.safetensors", "adapter_config.json"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoint-2")
    shutil.copytree(lively_run, moved)
    auto = (*words, "sft.resume_from_checkpoint=auto")

    numbers = load_file(moved / "adapter_model.safetensors")
    save_file({n: v + 1 for n, v in numbers.items()}, moved / "adapter_model.safetensors")
    error = refused(RunError, lambda: sftpipe.train(further(lively_base, moved, run, *auto)))
    for folder in (lively_run, moved):
        assert find_adapter(folder).sha256 in str(error)

    shutil.copy(lively_run / "adapter_model.safetensors", moved)
    sftpipe.train(further(lively_base, moved, run, *auto))
    assert (run / "adapter_model.safetensors").read_bytes() == whole


@pytest.mark.slow
def test_pissa_and_new_tokens_go_on_to_the_same_numbers(lively_base: Path, tmp_path: Path) -> None:
    """The first run is saved as plain LoRA; the second begins at its losses to a rounding."""
    tokens = "tokenizer.tokens=['<one>','<two>']"
    init = ("lora.init_lora_weights=pissa_niter_4", "lora.r=4")
    cfg = further(lively_base, None, tmp_path / "one", tokens, *init)
    first = sftpipe.train(cfg)
    # the keys of the first run, in a recipe say, are not in the way
    cfg = further(lively_base, first.dir, tmp_path / "two", tokens, *init)
    assert cfg.lora["r"] == 8
    second = sftpipe.train(cfg)
    ended, began = validation(first.dir)["after"]["loss"], validation(second.dir)["before"]["loss"]
    assert abs(ended - began) < 1e-5
    with torch.no_grad():
        logits = load_run(second.dir).load_model()(torch.tensor([[5, 9, 30]])).logits
    assert torch.isfinite(logits).all()
