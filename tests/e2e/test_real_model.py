"""The embedded model in 4 bits: its weights, the loss and its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from sftpipe.config.hydra import compose
from sftpipe.data.prepare import PreparedData
from sftpipe.model.adapters import count_parameters, lora_config
from sftpipe.model.embedding import fit_to_tokenizer
from sftpipe.model.fast import speed_up
from sftpipe.model.load import load_base, quantization_config
from sftpipe.model.weights import Weights, find_weights
from sftpipe.training.trainer import SFTPipeTrainer
from support.trainers import CPU, NO_DROPOUT, batch_of, trainer_of, wake_adapter


@pytest.mark.slow
def test_the_real_model_in_nf4_takes_less_than_a_third(smollm2: Weights, tokenizer: Any) -> None:
    cfg = compose(["recipe=yoda"])
    nf4 = load_base(cfg.model, cfg.quantization, smollm2, CPU, frozen=True)
    layers = [module for module in nf4.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 30 * 7  # every linear layer but the tied head
    assert {layer.weight.dtype for layer in layers} == {torch.uint8}
    assert {layer.compute_dtype for layer in layers} == {torch.float32}
    assert nf4.get_memory_footprint() < 4 * count_parameters(nf4)[1] / 3
    assert nf4.name_or_path == nf4.config._name_or_path == smollm2.identity
    fit_to_tokenizer(nf4, tokenizer)  # generation stops and pads as the tokenizer says
    assert nf4.config.pad_token_id == nf4.generation_config.pad_token_id == 0
    assert nf4.generation_config.eos_token_id == [2]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "fast"])
def real(
    data: PreparedData, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> SFTPipeTrainer:
    """The trainer of the recipe `yoda`, without and with `model.fast`."""
    cfg = compose(["recipe=yoda", NO_DROPOUT, "model.source=package"])
    trainer = trainer_of(cfg, data, tmp_path_factory.mktemp("real"))
    wake_adapter(trainer.model)
    if request.param:
        trainer.joins_rows = speed_up(trainer.model, cfg.model, find_weights(cfg.model))
        assert trainer.joins_rows
    trainer.model.train()
    return trainer


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {
        n.removeprefix("module."): p.grad.clone()
        for n, p in model.named_parameters()
        if p.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.slow
def test_nf4_adapter_weights_are_float32_and_alone_trained(real: SFTPipeTrainer) -> None:
    trained = {name: p.dtype for name, p in real.model.named_parameters() if p.requires_grad}
    assert set(trained.values()) == {torch.float32}
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * 30 * 7


@pytest.mark.slow
def test_loss_and_gradients_equal_plain_peft_with_full_logits(
    real: SFTPipeTrainer, data: PreparedData
) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    cfg = compose(["recipe=yoda", NO_DROPOUT, "model.source=package"])
    weights = find_weights(cfg.model)
    quantization = quantization_config(cfg.quantization, CPU)
    base = AutoModelForCausalLM.from_pretrained(
        weights.path, quantization_config=quantization, dtype=torch.float32
    )
    plain = get_peft_model(base, lora_config(cfg.lora, weights))
    wake_adapter(plain)
    lora_a = {n: p.data for n, p in real.model.named_parameters() if "lora_A" in n}
    for name, parameter in plain.named_parameters():
        if "lora_A" in name:
            parameter.data = lora_a[name].clone()
    plain.train()
    batch = batch_of(data, 0, 1, 2, 3)

    plain_loss = plain(**batch).loss
    plain_loss.backward()
    expected = gradients(plain)
    loss = real.compute_loss(real.model, dict(batch))
    loss.backward()
    found = gradients(real.model)

    assert loss.item() == pytest.approx(plain_loss.item(), rel=1e-5)
    assert found.keys() == expected.keys()
    off = torch.stack([(found[name] - one).norm() for name, one in expected.items()])
    whole = torch.stack([one.norm() for one in expected.values()])
    assert off.norm() / whole.norm() < 1e-5
    if real.joins_rows:  # other kernels, and other sums: rounding differs in single numbers
        assert (off / whole).max() < 1e-4
        return
    for name, gradient in expected.items():
        assert torch.allclose(
            found[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item()
        ), name


@pytest.mark.slow
def test_an_evaluation_leaves_the_gradients_as_they_were(
    real: SFTPipeTrainer, data: PreparedData
) -> None:
    """bitsandbytes repacks 4-bit weights in eval mode on some CPUs, for a kernel without a
    backward.
    """
    batch = batch_of(data, 4, 5)
    real.compute_loss(real.model, dict(batch)).backward()
    before = gradients(real.model)
    real.evaluate(data.validation.select(range(4)))
    real.model.train()
    real.compute_loss(real.model, dict(batch)).backward()
    after = gradients(real.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
