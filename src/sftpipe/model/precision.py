"""Where a run computes, and in which numbers."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from sftpipe.config.schema import ModelConfig
from sftpipe.errors import ModelError, Problem


@dataclass(frozen=True)
class Precision:
    """Where and in which numbers a run computes.

    device: `cuda` or `cpu`.
    compute: dtype of the frozen weights and of autocast.
    trained: dtype of the parameters that the optimizer holds.
    reason: one line for people.
    """

    device: str
    compute: torch.dtype
    trained: torch.dtype
    reason: str


def choose_precision(cfg: ModelConfig, *, use_cpu: bool = False) -> Precision:
    """Decide each `auto` of `model.dtype` and `model.adapter_dtype` for this machine.

    Raises:
        ModelError: float16 on a CPU.
    """
    device = "cuda" if torch.cuda.is_available() and not use_cpu else "cpu"
    bf16 = device == "cuda" and torch.cuda.is_bf16_supported()
    if cfg.dtype != "auto":
        compute, why = getattr(torch, cfg.dtype), f"model.dtype={cfg.dtype}"
    elif bf16:
        compute, why = torch.bfloat16, "this GPU computes bfloat16"
    elif device == "cuda":
        compute, why = torch.float32, "this GPU has no bfloat16"
    else:
        compute, why = torch.float32, "exact, and at home on every CPU"
    if device == "cpu" and compute is torch.float16:
        allowed, fix = "auto, float32, bfloat16", "`model.dtype=auto`"
        raise ModelError(Problem("model.dtype", "float16 on a CPU", allowed=allowed, fix=fix))
    trained = torch.float32 if cfg.adapter_dtype == "auto" else getattr(torch, cfg.adapter_dtype)
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {use_all_cores()} threads"
    reason = f"{where}; {str(compute).removeprefix('torch.')}: {why}"
    return Precision(device, compute, trained, reason)


def use_all_cores() -> int:
    """Let torch use every core of this process, unless OMP_NUM_THREADS is set; returns how many."""
    if "OMP_NUM_THREADS" not in os.environ:
        has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        torch.set_num_threads(cores)
    return int(torch.get_num_threads())
