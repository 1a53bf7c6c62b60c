"""LoRA adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sftpipe.config.hydra import compose
from sftpipe.errors import ModelError
from sftpipe.model.adapters import load_adapter, lora_config, token_rows
from sftpipe.model.load import load_base
from sftpipe.model.weights import Weights, find_weights
from support.models import CPU, llama


@pytest.mark.parametrize("option", ["default", "dora", "rslora"])
def test_every_adapter_trains_itself_only(option: str, tiny_model: Path) -> None:
    from peft import get_peft_model

    cfg = compose([f"lora={option}", "model=custom", f"model.name_or_path={tiny_model}"])
    weights = find_weights(cfg.model)
    model = get_peft_model(
        load_base(cfg.model, {}, weights, CPU, frozen=True),
        lora_config(cfg.lora, weights),
    )
    assert all(
        "lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad
    )
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()


def test_lora_fields_that_peft_rejects_are_a_user_error(smollm2: Weights) -> None:
    with pytest.raises(ModelError) as error:
        lora_config({"r": 8, "layers_pattern": "x"}, smollm2)
    assert "PEFT refuses it" in str(error.value)


# --- new tokens -----------------------------------------------------------------------------------


def test_the_rows_of_new_tokens_are_named_for_peft() -> None:
    assert token_rows(llama(64, tied=True), [60, 61]) == {"embed_tokens": [60, 61]}
    assert token_rows(llama(64, tied=False), [60]) == {"embed_tokens": [60], "lm_head": [60]}
    assert token_rows(llama(64, tied=True), []) == {}


def test_an_output_bias_that_peft_would_leave_out_is_an_error() -> None:
    model = llama(64, tied=False)
    model.lm_head = torch.nn.Linear(8, 64, bias=True)
    with pytest.raises(ModelError) as error:
        token_rows(model, [60])
    assert str(error.value) == (
        "lora: 1 new tokens are to be trained beside the adapter, and the output embedding of "
        "this model has a bias\n"
        "    allowed: an output embedding without one\n    lora=none trains all weights"
    )


def test_an_adapter_on_a_base_without_its_rows_is_an_error(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    grown = llama(128, tied=True)
    get_peft_model(
        grown,
        LoraConfig(
            task_type="CAUSAL_LM", target_modules="all-linear", trainable_token_indices=[100]
        ),
    ).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(ModelError) as error:
        load_adapter(llama(64, tied=True), str(tmp_path / "adapter"))
    assert "the adapter has a row for token 100, and the embedding of its base has 64 rows" in str(
        error.value
    )
    assert "the lines of its README.md do that" in str(error.value)
