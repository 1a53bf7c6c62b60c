"""Base models, quantized or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sftpipe.config.hydra import compose
from sftpipe.config.schema import ModelConfig
from sftpipe.errors import ModelError
from sftpipe.model.load import load_base
from sftpipe.model.weights import find_weights
from support.models import CPU


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
    model = load_base(cfg.model, cfg.quantization, find_weights(cfg.model), CPU, frozen=True)
    assert model.is_quantized
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


def test_weights_that_are_no_language_model_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError) as error:
        load_base(
            ModelConfig(str(tmp_path)),
            {},
            find_weights(ModelConfig(str(tmp_path))),
            CPU,
            frozen=True,
        )
    assert "cannot be loaded" in str(error.value)
    assert "model.name_or_path" in str(error.value)
