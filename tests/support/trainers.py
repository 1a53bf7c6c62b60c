"""Trainers for tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sftpipe.config.schema import TrainConfig
from sftpipe.data.prepare import PreparedData
from sftpipe.model.adapters import lora_config
from sftpipe.model.embedding import fit_to_tokenizer
from sftpipe.model.load import load_base
from sftpipe.model.weights import find_weights
from sftpipe.training.trainer import SFTPipeTrainer, build_arguments, build_trainer
from support.configs import compose
from support.models import CPU

NO_DROPOUT = "lora.lora_dropout=0"
# what a finished run with an adapter has in its folder, whatever its model
RUN_FILES = {
    "COMPLETE",
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.yaml",
    "log.jsonl",
    "loss.png",
    "report.html",
    "manifest.json",
    "metrics.json",
    "preflight.json",
    "prompts.json",
    "samples.jsonl",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
}


def tiny(folder: Path, *overrides: str) -> TrainConfig:
    """The config of the recipe `yoda` on a tiny model, not quantized unless asked for."""
    dropout = [] if "lora=none" in overrides else [NO_DROPOUT]
    asked = any(override.startswith("quantization=") for override in overrides)
    return compose(
        [
            "recipe=yoda",
            *([] if asked else ["quantization=none"]),
            "model=custom",
            f"model.name_or_path={folder}",
            *dropout,
            *overrides,
        ]
    )


def trainer_of(cfg: TrainConfig, data: PreparedData, folder: Path) -> SFTPipeTrainer:
    torch.manual_seed(cfg.seed)  # of the adapter; as if no test had run before
    weights = find_weights(cfg.model)
    model = load_base(cfg.model, cfg.quantization, weights, CPU, frozen=bool(cfg.lora))
    fit_to_tokenizer(model, data.tokenizer)
    arguments = build_arguments(cfg.sft, seed=cfg.seed, folder=folder, precision=CPU)
    return build_trainer(
        arguments,
        model,
        lora_config(cfg.lora, weights) if cfg.lora else None,
        data,
        CPU,
        folder / "log.jsonl",
    )


def wake_adapter(model: torch.nn.Module) -> None:
    """LoRA starts as zero (B = 0), which would hide every gradient of A."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02


def batch_of(data: PreparedData, *rows: int) -> dict[str, Any]:
    return data.collate([data.train[row] for row in rows])


def few(data: PreparedData, train: int, validation: int = 2) -> PreparedData:
    """The first rows of the splits alone: an epoch of a few steps."""
    return replace(
        data,
        train=data.train.select(range(train)),
        validation=data.validation.select(range(validation)),
    )


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the parameters that are trained."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def plain_peft(run: Path, base: Path | str) -> Any:
    """The adapter of a run folder on its 4-bit base, by PEFT and transformers alone.

    In train mode without dropout: in eval mode bitsandbytes takes another kernel on some CPUs.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=quantization, dtype=torch.float32
    )
    plain = PeftModel.from_pretrained(model, str(run)).train()
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return plain


def mean_loss(model: Any, rows: Iterable[Mapping[str, Any]]) -> float:
    """The loss per trained token, one row at a time."""
    nll, tokens = 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].float()
        nll += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        tokens += int((labels != -100).sum())
    return nll / tokens
