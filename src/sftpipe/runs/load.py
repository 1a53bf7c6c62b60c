"""A run that was written: its config, its numbers, its model."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sftpipe.config.hydra import from_recorded
from sftpipe.config.schema import TrainConfig
from sftpipe.errors import Problem, RunError
from sftpipe.terminal import quiet, quiet_libraries


@dataclass(frozen=True)
class Run:
    """A run folder.

    dir: the folder.
    config: the config that it was trained with.
    metrics: the content of metrics.json.
    """

    dir: Path
    config: TrainConfig
    metrics: dict[str, Any]

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer as trained with, its PAD and chat template included."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.dir)

    def load_model(self) -> Any:
        """The trained model, ready for generation, on the device and in the precision that the config settles here.

        Raises:
            ModelError: the base weights cannot be had.
        """
        with quiet(), quiet_libraries():
            from sftpipe.model import load as models
            from sftpipe.model.weights import Weights, find_weights

            cfg = self.config
            precision = models.choose_precision(
                cfg.model, use_cpu=bool(cfg.sft.get("use_cpu", False))
            )
            weights = (
                find_weights(cfg.model) if cfg.lora else Weights(str(self.dir), None, self.dir.name)
            )
            base = models.load_base(cfg.model, cfg.quantization, weights, precision, frozen=True)
            ends = json.loads((self.dir / "preflight.json").read_text(encoding="utf-8"))[
                "end_tokens"
            ]
            ends = self.tokenizer.convert_tokens_to_ids(list(ends))
            models.fit_to_tokenizer(
                base, self.tokenizer, ends, multiple=cfg.tokenizer.pad_to_multiple_of
            )
            return models.load_adapter(base, str(self.dir)) if cfg.lora else base.eval()


def read_metrics(folder: Path) -> dict[str, Any]:
    """The content of metrics.json."""
    return dict(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The rows of samples.jsonl."""
    return [
        json.loads(line)
        for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def samples_until(checkpoint: Path) -> list[dict[str, Any]]:
    """The rows of samples.jsonl up to the step of a checkpoint: a run that goes on from it makes the later ones again."""
    step = int(checkpoint.name.split("-")[1])
    return [
        row
        for row in read_samples(checkpoint.parent)
        if row["phase"] != "after" and row["step"] <= step
    ]


def load_run(folder: str | Path) -> Run:
    """Open a run folder.

    Raises:
        RunError: it is no finished run.
    """
    path = Path(folder)
    if not (path / "COMPLETE").is_file():
        found = "an unfinished run" if (path / "manifest.json").is_file() else "no run of sftpipe"
        fix = (
            "the command that began it, with sft.resume_from_checkpoint=auto, goes on with it"
            if "unfinished" in found
            else ""
        )
        raise RunError(
            Problem(str(path), found, allowed="a run folder with a COMPLETE file", fix=fix)
        )
    config = from_recorded(
        yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")),
        str(path / "config.yaml"),
    )
    return Run(path, config, read_metrics(path))
