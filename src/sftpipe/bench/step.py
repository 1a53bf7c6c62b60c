"""Part step: forward and backward of one batch, our loss against TRL's own."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sftpipe.bench.timing import ROUNDS
from sftpipe.data.labels import IGNORED
from sftpipe.terminal import console, quiet_libraries


def step() -> dict[str, Any]:
    """Seconds of forward and backward of one Yoda batch: our loss against TRL's own.

    The batch has 8 rows; the model is in NF4, with LoRA. Our loss projects hidden states at trained
    positions only. Both run on the same model and batch, alternately.
    """
    # longer than most: one measurement, from top to bottom
    from trl import SFTTrainer

    from sftpipe.config.hydra import compose
    from sftpipe.model.adapters import lora_config
    from sftpipe.model.embedding import fit_to_tokenizer
    from sftpipe.model.load import load_base
    from sftpipe.model.precision import choose_precision
    from sftpipe.model.weights import find_weights
    from sftpipe.pipeline import prepare
    from sftpipe.training.trainer import build_arguments, build_trainer

    cfg = compose(["recipe=yoda"])
    precision = choose_precision(cfg.model)
    data = prepare(cfg)
    weights = find_weights(cfg.model)
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        arguments = build_arguments(
            cfg.sft, seed=cfg.seed, folder=Path(folder), precision=precision
        )
        model = load_base(cfg.model, cfg.quantization, weights, precision, frozen=True)
        fit_to_tokenizer(model, data.tokenizer)
        trainer = build_trainer(
            arguments,
            model,
            lora_config(cfg.lora, weights),
            data,
            precision,
            Path(folder) / "log.jsonl",
        )
    trainer.model.train()
    batch = trainer._prepare_inputs(data.collate([data.train[row] for row in range(8)]))
    items = (batch["labels"][:, 1:] != IGNORED).sum()

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
