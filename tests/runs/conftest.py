"""A finished run that answers in milliseconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sftpipe
from sftpipe.runs.load import Run, load_run
from support.answers import write_lively_model
from support.configs import compose

ROWS = 12


@pytest.fixture(scope="session")
def lively_base(chatml: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model whose answers depend on every token of the prompts."""
    return write_lively_model(tmp_path_factory.mktemp("base") / "lively", chatml)


@pytest.fixture(scope="session")
def lively_run(lively_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run on it: 12 rows of `yoda` in each split, three steps that change much."""
    folder = tmp_path_factory.mktemp("lively") / "run"
    words = [
        "recipe=yoda",
        "quantization=none",
        "model=custom",
        f"model.name_or_path={lively_base}",
        f"dataset.limit={ROWS}",
        f"sft.per_device_train_batch_size={ROWS}",
        "sft.num_train_epochs=3",
        "sft.learning_rate=3e-2",
        "evaluation.max_new_tokens=4",
        f"run={folder}",
    ]
    sftpipe.train(compose(words))
    return folder


@pytest.fixture
def copy_run(lively_run: Path, tmp_path: Path) -> Callable[..., Run]:
    """A copy of the run that a test may write into, opened with overrides."""

    def copy(*overrides: str) -> Run:
        folder = tmp_path / "run"
        if not folder.exists():
            shutil.copytree(lively_run, folder)
        return load_run(folder, overrides)

    return copy
