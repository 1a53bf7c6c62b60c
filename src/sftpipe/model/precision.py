"""Where a run computes, and in which numbers."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

import sftpipe.ranks as ranks
from sftpipe.config.schema import ModelConfig
from sftpipe.errors import ModelError, Problem


@dataclass(frozen=True)
class Precision:
    """Where and in which numbers a run computes.

    device: `cuda` or `cpu`.
    compute: dtype of the frozen weights and of autocast.
    trained: dtype of the parameters that the optimizer holds.
    reason: one line for people.
    fast: steps go the way of `sftpipe.model.fast`.
    """

    device: str
    compute: torch.dtype
    trained: torch.dtype
    reason: str
    fast: bool = False

    def record(self) -> dict[str, str | bool]:
        """As a manifest holds it: plain names."""
        return {
            "device": self.device,
            "compute": _name(self.compute),
            "trained": _name(self.trained),
            "fast": self.fast,
        }


@dataclass(frozen=True)
class Began:
    """How a run began to compute, as far as that is known: names of dtypes, threads, the way."""

    compute: str | None = None
    trained: str | None = None
    threads: int | None = None
    fast: bool | None = None


def choose_precision(
    cfg: ModelConfig,
    *,
    use_cpu: bool = False,
    compiled: bool = False,
    began: Began | None = None,
) -> Precision:
    """Decide each `auto` of `model.dtype` and `model.adapter_dtype` for this machine, and the way.

    Args:
        cfg: the `model` group.
        use_cpu: of `sft.use_cpu`.
        compiled: of `sft.torch_compile`, which makes its own way of the model's.
        began: of a run that goes on or is repeated: each `auto` is what it was then, where this
            machine computes that, and so are the number of threads and the way.

    Raises:
        ModelError: float16 on a CPU.
    """
    began = began or Began()
    device = "cuda" if torch.cuda.is_available() and not use_cpu else "cpu"
    if device == "cuda" and ranks.world_size() > 1:
        torch.cuda.set_device(ranks.local_rank())
    bf16 = device == "cuda" and torch.cuda.is_bf16_supported()
    if cfg.dtype != "auto":
        compute, why = getattr(torch, cfg.dtype), f"model.dtype={cfg.dtype}"
    elif _computes(began.compute, device, bf16=bf16):
        compute, why = getattr(torch, str(began.compute)), "as the run began"
    elif bf16:
        compute, why = torch.bfloat16, "this GPU computes bfloat16"
    elif device == "cuda":
        compute, why = torch.float32, "this GPU has no bfloat16"
    elif _multiplies_bfloat16():
        compute, why = torch.float32, "exact; model.dtype=bfloat16 is faster on this CPU"
    else:
        compute, why = torch.float32, "exact, and at home on every CPU"
    if device == "cpu" and compute is torch.float16:
        allowed, fix = "auto, float32, bfloat16", "`model.dtype=auto`"
        raise ModelError(Problem("model.dtype", "float16 on a CPU", allowed=allowed, fix=fix))
    named = cfg.adapter_dtype if cfg.adapter_dtype != "auto" else began.trained
    trained = getattr(torch, named or "float32")
    threads = use_threads(began.threads, all_cores=device == "cpu")
    where = _gpu() if device == "cuda" else f"CPU, {threads} threads"
    fast = cfg.fast and device == "cpu" and not compiled and began.fast is not False
    return Precision(device, compute, trained, f"{where}; {_name(compute)}: {why}", fast)


def _gpu() -> str:
    """The GPU of this process, and what to type where others are idle."""
    name, visible = str(torch.cuda.get_device_name()), torch.cuda.device_count()
    if ranks.world_size() > 1 or visible <= 1:
        return name
    return f"{name}, 1 of {visible} (distributed=ddp trains on all)"


def _computes(dtype: str | None, device: str, *, bf16: bool) -> bool:
    able = {"float32": True, "bfloat16": bf16 or device == "cpu", "float16": device == "cuda"}
    return able.get(str(dtype), False)


def _multiplies_bfloat16() -> bool:
    """True of a CPU that multiplies bfloat16 faster than float32: with AVX512-BF16 or AMX."""
    # torch before 2.12 does not tell
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def use_threads(wanted: int | None = None, *, all_cores: bool = True) -> int:
    """Let torch compute with so many threads, or with all cores; returns how many."""
    if all_cores:
        use_all_cores()
    if wanted is not None:
        torch.set_num_threads(wanted)
    return int(torch.get_num_threads())


def use_all_cores() -> int:
    """Let torch use every core of this process, unless OMP_NUM_THREADS is set; returns how many."""
    if "OMP_NUM_THREADS" not in os.environ:
        has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        torch.set_num_threads(cores)
    return int(torch.get_num_threads())
