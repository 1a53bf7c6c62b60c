"""What an adapter is saved as reloads by plain PEFT to the same logits, whatever it began as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from sftpipe.config.lora import INITIALISATIONS, NITER, initialisation, known_to_peft
from sftpipe.data.prepare import PreparedData
from sftpipe.errors import ModelError
from sftpipe.model.initial import start_from_base
from support.errors import refused, told
from support.models import llama
from support.trainers import few, tiny, trainer_of

IDS = torch.arange(2, 34)[None]


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(IDS).logits


def train(folder: Path, data: PreparedData, out: Path, *words: str, resume: int = 0) -> Any:
    words = ("sft.per_device_train_batch_size=2", "sft.num_train_epochs=1", *words)
    words += ("sft.eval_strategy=no", "sft.save_steps=1", "sft.learning_rate=1e-2")
    trainer = trainer_of(tiny(folder, *words), few(data, 4), out)
    trainer.train(out / f"checkpoint-{resume}" if resume else None)
    trainer.save_final()
    return trainer


def reloaded(folder: Path, out: Path) -> Any:
    """By plain PEFT, on the base that nothing has touched."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return PeftModel.from_pretrained(base, str(out))


WAYS = {
    "default": [],
    "random": ["lora.init_lora_weights=false"],
    "gaussian": ["lora.init_lora_weights=gaussian"],
    "orthogonal": ["lora.init_lora_weights=orthogonal"],
    "mica": ["lora.init_lora_weights=mica"],
    "pissa": ["lora.init_lora_weights=pissa"],
    "fast pissa": ["lora.init_lora_weights=pissa_niter_4"],
    "olora": ["lora.init_lora_weights=olora"],
    "pissa + dora": ["lora=dora", "lora.init_lora_weights=pissa"],
    "pissa + rslora + patterns": [
        "lora=rslora",
        "lora.init_lora_weights=pissa",
        "lora.rank_pattern={q_proj: 4}",
        "lora.alpha_pattern={v_proj: 5}",
    ],
    "pissa + a saved module": ["lora.init_lora_weights=pissa", "lora.modules_to_save=[norm]"],
    "dora": ["lora=dora"],
    "rslora": ["lora=rslora"],
}


QUICK = ("orthogonal", "fast pissa", "olora", "pissa + dora")


@pytest.mark.parametrize(
    "way", [way if way in QUICK else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]
)
def test_a_saved_adapter_reloads_by_plain_peft_and_a_resumed_one_has_the_same_bytes(
    way: str, tiny_model: Path, data: PreparedData, tmp_path: Path
) -> None:
    trained = train(tiny_model, data, tmp_path / "whole", *WAYS[way])
    expected = logits(trained.model)
    plain = reloaded(tiny_model, tmp_path / "whole")
    base = logits(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32))
    assert (expected - base).abs().max() > 1e-3
    assert torch.allclose(logits(plain), expected, atol=2e-5)
    assert torch.allclose(logits(plain.merge_and_unload()), expected, atol=2e-5)

    (tmp_path / "whole" / "adapter_model.safetensors").rename(tmp_path / "expected")
    train(tiny_model, data, tmp_path / "whole", *WAYS[way], resume=1)
    again = (tmp_path / "whole" / "adapter_model.safetensors").read_bytes()
    assert again == (tmp_path / "expected").read_bytes()


def test_each_initialisation_of_the_installed_peft_is_known() -> None:
    assert set(known_to_peft()) <= set(INITIALISATIONS)
    assert "orthogonal" in known_to_peft()
    assert initialisation("pissa_niter_4") is INITIALISATIONS[NITER]
    assert initialisation("pissa_niter_x") is None
    tried = {word.partition("=")[2] for words in WAYS.values() for word in words}
    allowed = {name for name, one in INITIALISATIONS.items() if not one.refused}
    assert allowed - {NITER, "true"} <= tried


def test_first_weights_that_are_lost_end_the_resumed_run(
    tiny_model: Path, data: PreparedData, tmp_path: Path
) -> None:
    words = WAYS["fast pissa"]
    train(tiny_model, data, tmp_path, *words)
    kept = tmp_path / "initial_adapter" / "adapter_model.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    error = refused(ModelError, lambda: trainer_of(tiny(tiny_model, *words), data, tmp_path))
    assert told(error) == {str(tmp_path / "initial_adapter"): ()}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_weights_of_two_modules_cannot_be_split(tmp_path: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"], r=2)
    model = get_peft_model(llama(64, tied=True), config)
    error = refused(ModelError, lambda: start_from_base(model, "pissa", tmp_path / "first", 0))
    assert "lm_head" in error.problems[0].found
    assert told(error) == {"lora.init_lora_weights": ("lora.init_lora_weights=true",)}
    assert not (tmp_path / "first").exists()
