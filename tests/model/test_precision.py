"""Device and dtypes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from sftpipe.config.schema import ModelConfig
from sftpipe.errors import ModelError
from sftpipe.model.precision import Began, Precision, choose_precision, use_all_cores
from support.errors import Pin, refused, told


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, whatever was before, and the same number as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


# what this machine is: (a GPU, one that computes bfloat16)
MACHINES = {"cpu": (False, False), "old gpu": (True, False), "gpu": (True, True)}


@pytest.fixture(autouse=True)
def no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU that multiplies it no faster."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True}, raising=False)


@pytest.mark.parametrize("able", ["avx512_bf16", "amx_bf16"])
def test_a_cpu_that_multiplies_bfloat16_fast_says_so_and_stays_exact(
    able: str, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {able: True}, raising=False)
    found = choose_precision(ModelConfig("x"), use_cpu=True)
    assert found.compute is torch.float32
    assert found.reason.endswith("; float32: exact; model.dtype=bfloat16 is faster on this CPU")


@pytest.mark.parametrize(
    ("machine", "fields", "use_cpu", "expected"),
    [
        ("cpu", {}, False, ("cpu", "float32", "float32", "exact, and at home on every CPU")),
        ("gpu", {}, True, ("cpu", "float32", "float32", "exact, and at home on every CPU")),
        ("gpu", {}, False, ("cuda", "bfloat16", "float32", "this GPU computes bfloat16")),
        ("old gpu", {}, False, ("cuda", "float32", "float32", "this GPU has no bfloat16")),
        (
            "old gpu",
            {"dtype": "float16"},
            False,
            ("cuda", "float16", "float32", "model.dtype=float16"),
        ),
        (
            "cpu",
            {"dtype": "bfloat16"},
            False,
            ("cpu", "bfloat16", "float32", "model.dtype=bfloat16"),
        ),
        (
            "gpu",
            {"adapter_dtype": "bfloat16"},
            True,
            ("cpu", "float32", "bfloat16", "exact, and at home on every CPU"),
        ),
        (
            "gpu",
            {"dtype": "float32", "adapter_dtype": "float32"},
            False,
            ("cuda", "float32", "float32", "model.dtype=float32"),
        ),
    ],
)
def test_each_auto_follows_the_machine_and_each_choice_the_config(
    machine: str,
    fields: dict[str, str],
    use_cpu: bool,
    expected: tuple[str, str, str, str],
    threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_gpu, has_bf16 = MACHINES[machine]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA T0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    device, compute, trained, why = expected
    where = "NVIDIA T0" if device == "cuda" else "CPU, 1 threads"
    assert choose_precision(ModelConfig("x", **fields), use_cpu=use_cpu) == Precision(
        device,
        getattr(torch, compute),
        getattr(torch, trained),
        f"{where}; {compute}: {why}",
        fast=device == "cpu",
    )


@pytest.mark.parametrize(
    ("fields", "compiled", "began", "expected"),
    [
        ({}, False, None, True),
        ({"fast": False}, False, None, False),
        ({}, True, None, False),
        ({}, False, Began(fast=True), True),
        ({}, False, Began(fast=False), False),
        ({"fast": False}, False, Began(fast=True), False),
    ],
)
def test_a_cpu_goes_the_fast_way_unless_the_run_began_otherwise(
    fields: dict[str, bool], compiled: bool, began: Began | None, expected: bool, threads: None
) -> None:
    cfg = ModelConfig("x", **fields)
    found = choose_precision(cfg, use_cpu=True, compiled=compiled, began=began)
    assert found.fast is found.record()["fast"] is expected


@pytest.mark.parametrize(
    ("machine", "fields", "began", "expected"),
    [
        ("gpu", {}, "float32", ("float32", "as the run began")),
        ("gpu", {}, "float16", ("float16", "as the run began")),
        ("old gpu", {}, "bfloat16", ("float32", "this GPU has no bfloat16")),
        ("cpu", {}, "bfloat16", ("bfloat16", "as the run began")),
        ("cpu", {}, "float16", ("float32", "exact, and at home on every CPU")),
        ("gpu", {"dtype": "float32"}, "bfloat16", ("float32", "model.dtype=float32")),
    ],
)
def test_an_auto_of_a_run_that_began_is_what_it_was_where_the_machine_can(
    machine: str,
    fields: dict[str, str],
    began: str,
    expected: tuple[str, str],
    threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_gpu, has_bf16 = MACHINES[machine]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA T0")

    found = choose_precision(ModelConfig("x", **fields), began=Began(began, "bfloat16", 1))

    assert (found.record()["compute"], found.reason.partition(": ")[2]) == expected
    assert found.trained is torch.bfloat16
    assert torch.get_num_threads() == 1


def test_float16_on_a_cpu_is_an_error(golden_error: Pin) -> None:
    cfg = ModelConfig("x", dtype="float16")
    error = refused(ModelError, lambda: choose_precision(cfg, use_cpu=True))
    assert told(error) == {"model.dtype": ("model.dtype=auto",)}
    golden_error(error)


def test_torch_uses_every_core_that_this_process_may(
    threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 4, 6}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert use_all_cores() == torch.get_num_threads() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert use_all_cores() == torch.get_num_threads() == 5


def test_a_number_of_threads_that_the_environment_sets_is_kept(
    threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 4, 6}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert use_all_cores() == torch.get_num_threads() == 1
