"""Trainers for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sftpipe.config.hydra import compose
from sftpipe.config.schema import TrainConfig
from sftpipe.data.prepare import PreparedData
from sftpipe.model.adapters import lora_config
from sftpipe.model.embedding import fit_to_tokenizer
from sftpipe.model.load import load_base
from sftpipe.model.weights import find_weights
from sftpipe.training.trainer import SFTPipeTrainer, build_arguments, build_trainer
from support.models import CPU

NO_DROPOUT = "lora.lora_dropout=0"


def tiny(folder: Path, *overrides: str) -> TrainConfig:
    dropout = [] if "lora=none" in overrides else [NO_DROPOUT]
    return compose(
        [
            "recipe=yoda",
            "quantization=none",
            "model=custom",
            f"model.name_or_path={folder}",
            *dropout,
            *overrides,
        ]
    )


def trainer_of(cfg: TrainConfig, data: PreparedData, folder: Path) -> SFTPipeTrainer:
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
