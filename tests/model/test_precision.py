"""Device and dtypes."""

from __future__ import annotations

import os

import pytest
import torch

from sftpipe.config.schema import ModelConfig
from sftpipe.errors import ModelError
from sftpipe.model.precision import choose_precision, use_all_cores


def test_auto_on_a_cpu_is_float32_with_its_reason() -> None:
    precision = choose_precision(ModelConfig("x"), use_cpu=True)
    assert (precision.device, precision.compute, precision.trained) == (
        "cpu",
        torch.float32,
        torch.float32,
    )
    assert "CPU" in precision.reason
    assert "float32" in precision.reason


def test_auto_uses_every_core(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(1)
    assert use_all_cores() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    assert use_all_cores() == 1
    torch.set_num_threads(before)


def test_float16_on_a_cpu_is_an_error() -> None:
    with pytest.raises(ModelError) as error:
        choose_precision(ModelConfig("x", dtype="float16"), use_cpu=True)
    assert "model.dtype=auto" in str(error.value)
