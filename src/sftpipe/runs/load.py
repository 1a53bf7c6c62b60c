"""A run that was written: its config, its numbers, its model."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sftpipe.config.hydra import from_recorded
from sftpipe.config.schema import TrainConfig
from sftpipe.errors import Problem, RunError
from sftpipe.runs.folder import RunFolder
from sftpipe.terminal import quiet, quiet_libraries

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


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
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer as trained with, its PAD and chat template included."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.dir)

    def load_model(self) -> PreTrainedModel | PeftModel:
        """The trained model, ready for generation.

        Its device and precision are those that the config asks for on this machine.

        Raises:
            ModelError: the base weights cannot be had.
        """
        with quiet(), quiet_libraries():
            from sftpipe.model.adapters import load_adapter
            from sftpipe.model.embedding import fit_to_tokenizer
            from sftpipe.model.load import load_base
            from sftpipe.model.precision import choose_precision
            from sftpipe.model.weights import Weights, find_weights

            cfg = self.config
            precision = choose_precision(cfg.model, use_cpu=bool(cfg.sft.get("use_cpu", False)))
            weights = (
                find_weights(cfg.model) if cfg.lora else Weights(str(self.dir), None, self.dir.name)
            )
            base = load_base(cfg.model, cfg.quantization, weights, precision, frozen=True)
            preflight = json.loads(RunFolder(self.dir).preflight.read_text(encoding="utf-8"))
            ends = self.tokenizer.convert_tokens_to_ids(list(preflight["end_tokens"]))
            fit_to_tokenizer(base, self.tokenizer, ends, multiple=cfg.tokenizer.pad_to_multiple_of)
            return load_adapter(base, str(self.dir)) if cfg.lora else base.eval()


def load_run(folder: str | Path) -> Run:
    """Open a run folder.

    Raises:
        RunError: it is no finished run.
    """
    files = RunFolder(Path(folder))
    if not files.complete.is_file():
        unfinished = files.manifest.is_file()
        found = "an unfinished run" if unfinished else "no run of sftpipe"
        fix = "the command that began it, with `sft.resume_from_checkpoint=auto`, goes on with it"
        allowed = f"a run folder with a {files.complete.name} file"
        problem = Problem(str(files.path), found, allowed=allowed, fix=fix if unfinished else "")
        raise RunError(problem)
    recorded = yaml.safe_load(files.config.read_text(encoding="utf-8"))
    return Run(files.path, from_recorded(recorded, str(files.config)), files.read_metrics())
