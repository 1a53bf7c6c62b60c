"""sftpipe: declarative supervised fine-tuning.

    cfg = sftpipe.compose(["recipe=yoda", "lora.r=8"])   # as `sftpipe train recipe=yoda lora.r=8`
    data = sftpipe.prepare(cfg)       # finished rows: .train .validation .test .collate(rows)
    run = sftpipe.train(cfg)          # a run folder
    run = sftpipe.load_run(run.dir)   # .config .metrics .tokenizer .load_model()

Importing the package is cheap; torch and the trainers load when a function needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sftpipe.errors import (
    ConfigError,
    DataError,
    ExportError,
    Interrupted,
    ModelError,
    Problem,
    RankError,
    RowError,
    RunError,
    SftpipeError,
    StorageError,
    SweepError,
    TrainingError,
)

if TYPE_CHECKING:
    from sftpipe.config.hydra import compose
    from sftpipe.config.schema import TrainConfig
    from sftpipe.data.prepare import PreparedData
    from sftpipe.pipeline import prepare, train
    from sftpipe.runs.load import Run, load_run

__version__ = "0.2.0"

_LAZY = {
    "PreparedData": "sftpipe.data.prepare",
    "Run": "sftpipe.runs.load",
    "TrainConfig": "sftpipe.config.schema",
    "compose": "sftpipe.config.hydra",
    "load_run": "sftpipe.runs.load",
    "prepare": "sftpipe.pipeline",
    "train": "sftpipe.pipeline",
}

__all__ = [
    "ConfigError",
    "DataError",
    "ExportError",
    "Interrupted",
    "ModelError",
    "PreparedData",
    "Problem",
    "RankError",
    "RowError",
    "Run",
    "RunError",
    "SftpipeError",
    "StorageError",
    "SweepError",
    "TrainConfig",
    "TrainingError",
    "compose",
    "load_run",
    "prepare",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'sftpipe' has no attribute {name!r}")
