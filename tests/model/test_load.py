"""Device and precision, real NF4, agreement with the tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sftpipe.config.hydra import compose
from sftpipe.config.schema import ModelConfig
from sftpipe.errors import ModelError
from sftpipe.model import load as models
from sftpipe.model.weights import Weights, find_weights

CPU = models.Precision("cpu", torch.float32, torch.float32, "")


def test_auto_on_a_cpu_is_float32_with_its_reason() -> None:
    precision = models.choose_precision(ModelConfig("x"), use_cpu=True)
    assert (precision.device, precision.compute, precision.trained) == (
        "cpu",
        torch.float32,
        torch.float32,
    )
    assert "CPU" in precision.reason
    assert "float32" in precision.reason


def test_auto_uses_every_core(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(1)
    assert models.use_all_cores() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    assert models.use_all_cores() == 1
    torch.set_num_threads(before)


def test_float16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ModelError) as error:
        models.choose_precision(ModelConfig("x", dtype="float16"), use_cpu=True)
    assert "model.dtype=auto" in str(error.value)


@pytest.mark.parametrize("option", ["nf4", "fp4", "int8"])
def test_every_quantization_loads_and_answers(option: str, tiny_model: Path) -> None:
    cfg = compose(
        [
            f"quantization={option}",
            "lora=default",
            "model=custom",
            f"model.name_or_path={tiny_model}",
        ]
    )
    model = models.load_base(cfg.model, cfg.quantization, find_weights(cfg.model), CPU, frozen=True)
    assert model.is_quantized
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


@pytest.mark.parametrize("option", ["default", "dora", "rslora"])
def test_every_adapter_trains_itself_only(option: str, tiny_model: Path) -> None:
    from peft import get_peft_model

    cfg = compose([f"lora={option}", "model=custom", f"model.name_or_path={tiny_model}"])
    weights = find_weights(cfg.model)
    model = get_peft_model(
        models.load_base(cfg.model, {}, weights, CPU, frozen=True),
        models.lora_config(cfg.lora, weights),
    )
    assert all(
        "lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad
    )
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()


def test_weights_that_are_no_language_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError) as error:
        models.load_base(
            ModelConfig(str(tmp_path)),
            {},
            find_weights(ModelConfig(str(tmp_path))),
            CPU,
            frozen=True,
        )
    assert "cannot be loaded" in str(error.value)
    assert "model.name_or_path" in str(error.value)


def test_lora_fields_that_peft_refuses_are_a_user_error(smollm2: Weights) -> None:
    with pytest.raises(ModelError) as error:
        models.lora_config({"r": 8, "layers_pattern": "x"}, smollm2)
    assert "PEFT refuses it" in str(error.value)
