"""How a step of ours grows with rows, tokens, width and vocabulary, on random Llamas."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sftpipe.bench.task import RANK
from sftpipe.bench.timing import median_seconds
from sftpipe.data.labels import IGNORED
from sftpipe.terminal import console, quiet_libraries

# what varies, about the middle one of each
SIZES = {
    "rows": (4, 8, 16),
    "tokens": (64, 128, 256),
    "width": (256, 512, 1024),
    "vocabulary": (8192, 16384, 32768),
}
_ROUNDS = 3


def growth() -> dict[str, Any]:
    """Seconds of forward and backward of LoRA on a Llama of four layers in float32, as it grows.

    Three sizes each of rows, tokens, width and vocabulary, the others at their middle; it is drawn
    to growth.svg in the working folder.
    """
    usual = {name: sizes[1] for name, sizes in SIZES.items()}
    ways: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder, quiet_libraries(), console.status("Models ..."):
        for name, sizes in SIZES.items():
            for size in sizes:
                ways[f"{name} {size}"] = _step(Path(folder), **{**usual, name: size})
    with quiet_libraries(), console.status(f"{_ROUNDS} rounds of {len(ways)} steps ..."):
        took = median_seconds(ways, _ROUNDS)
    _draw(took, Path("growth.svg"))
    return {f"{name}, s": round(seconds, 3) for name, seconds in took.items()}


def _step(
    folder: Path, rows: int, tokens: int, width: int, vocabulary: int
) -> Callable[[], object]:
    """Forward and backward of LoRA r=16 on rows of random tokens, the second half trained."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    from sftpipe.config.schema import ModelConfig, TokenizerConfig
    from sftpipe.data.packing import Collator
    from sftpipe.model.adapters import lora_config
    from sftpipe.model.architecture import model_config
    from sftpipe.model.fast import speed_up
    from sftpipe.model.precision import choose_precision
    from sftpipe.model.weights import Weights
    from sftpipe.tokenizer.train import train_tokenizer
    from sftpipe.training.trainer import SFTPipeTrainer, build_arguments

    cfg = ModelConfig(init="random", config=_described(width, vocabulary))
    weights = Weights("", None, "random")
    precision = choose_precision(cfg)
    torch.manual_seed(0)
    ids = torch.randint(3, vocabulary, (rows, tokens)).tolist()
    labels = [[IGNORED] * (tokens // 2) + row[tokens // 2 :] for row in ids]
    data = Dataset.from_dict({"input_ids": ids, "labels": labels})
    trainer = SFTPipeTrainer(
        adapter_dtype=precision.trained,
        model=AutoModelForCausalLM.from_config(model_config(cfg, weights)),
        args=build_arguments(
            {"activation_checkpointing": False}, seed=0, folder=folder, precision=precision
        ),
        train_dataset=data,
        data_collator=Collator(0),
        processing_class=train_tokenizer(TokenizerConfig(type="char"), "ab"),
        peft_config=lora_config({"r": RANK, "target_modules": "all-linear"}, weights),
    )
    trainer.joins_rows = speed_up(trainer.model, cfg, weights)
    trainer.model.train()
    batch = Collator(0)(list(data))

    def run() -> None:
        trainer.compute_loss(trainer.model, dict(batch)).backward()
        trainer.model.zero_grad()

    return run


def _described(width: int, vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": 4,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "max_position_embeddings": 512,
    }


def _draw(took: dict[str, float], file: Path) -> None:
    """A line for each of what varies: seconds over its size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    for axes, (name, sizes) in zip(
        figure.subplots(1, len(SIZES), sharey=True), SIZES.items(), strict=True
    ):
        axes.plot(sizes, [took[f"{name} {size}"] for size in sizes], marker="o", color="#2a78d6")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel(name)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("seconds a step")
    figure.savefig(file)
