"""Measurements behind the changes that were made for speed: each against its baseline, in one run."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sftpipe.terminal import console, quiet_libraries

ROUNDS = 5


def step() -> dict[str, Any]:
    """Seconds of forward and backward of one Yoda batch (8 rows, NF4 + LoRA): our loss against TRL's own.

    Ours projects hidden states at trained positions only; both run on the same model and batch, in turns.
    """
    from trl import SFTTrainer

    from sftpipe import model as models
    from sftpipe.config import compose
    from sftpipe.pipeline import prepare
    from sftpipe.trainer import build_arguments, build_trainer
    from sftpipe.weights import find_weights

    cfg = compose(["recipe=yoda"])
    precision = models.choose_precision(cfg.model)
    data = prepare(cfg)
    weights = find_weights(cfg.model)
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        arguments = build_arguments(cfg.sft, seed=cfg.seed, folder=Path(folder), precision=precision)
        model = models.load_base(cfg.model, cfg.quantization, weights, precision, frozen=True)
        models.fit_to_tokenizer(model, data.tokenizer)
        trainer = build_trainer(arguments, model, models.lora_config(cfg.lora, weights), data, precision)
    trainer.model.train()
    batch = trainer._prepare_inputs(data.collate([data.train[row] for row in range(8)]))
    items = (batch["labels"][:, 1:] != -100).sum()

    def timed(compute_loss: Callable[..., Any]) -> float:
        start = time.perf_counter()
        with trainer.compute_loss_context_manager():
            loss = compute_loss(trainer, trainer.model, dict(batch), num_items_in_batch=items)
        loss.backward()
        float(loss.detach())  # waits for a GPU
        trainer.model.zero_grad()
        return time.perf_counter() - start

    losses = {"sftpipe": type(trainer).compute_loss, "trl": SFTTrainer.compute_loss}
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    with console.status(f"{ROUNDS} rounds of two steps ..."):
        for _ in range(ROUNDS + 1):  # the first one warms up
            for name, compute_loss in losses.items():
                seconds[name].append(timed(compute_loss))
    ours, theirs = (statistics.median(seconds[name][1:]) for name in ("sftpipe", "trl"))
    rows, width = batch["input_ids"].shape
    return {
        "model": weights.identity,
        "device": precision.reason,
        "batch": f"{rows} rows x {width} tokens, {int(items)} trained",
        "sftpipe_s": round(ours, 3),
        "trl_s": round(theirs, 3),
        "trl / sftpipe": round(theirs / ours, 2),
    }


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"step": step}
