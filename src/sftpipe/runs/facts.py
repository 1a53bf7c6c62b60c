"""What decides the bits of a run beside its config: data, tokenizer, weights, and the machine.

A manifest records it; a later start computes as the first one did, and says what differs.
Sums of floating-point numbers depend on the number of threads, and kernels on versions, hardware
and dtypes.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sftpipe.ranks as ranks
from sftpipe.config.schema import TrainConfig, to_plain
from sftpipe.data.prepare import PreparedData
from sftpipe.environment import versions
from sftpipe.errors import Problem, RunError
from sftpipe.model.further import adapter_identity
from sftpipe.model.precision import Began, Precision, choose_precision
from sftpipe.model.weights import Weights
from sftpipe.runs.again import as_begun
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.plan import RunPlan
from sftpipe.runs.same_run import all_differences, key_differences
from sftpipe.storage import sha256_text
from sftpipe.terminal import console

_LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")
# {part of a manifest: {its entry: what people call it}}
_MACHINE = {
    "versions": {name: name for name in ("python", "sftpipe", *_LIBRARIES)},
    "hardware": {"system": "system", "machine": "machine", "cpu": "CPU", "gpu": "GPU"},
    "precision": {"device": "device", "compute": "dtype", "trained": "trained dtype"},
}
_DTYPES = ("float32", "bfloat16", "float16")
_SAME = "the same bits are expected"
_ON_A_GPU = "the same numbers are expected, but for the order in which a GPU adds them"


def facts_of(
    cfg: TrainConfig, weights: Weights, precision: Precision, data: PreparedData
) -> dict[str, Any]:
    """What decides the bits of a run beside its config, for its manifest."""
    adapter = adapter_identity(cfg.lora)
    tokenizer = data.tokenizer.backend_tokenizer.to_str() + str(data.tokenizer.chat_template)
    return {
        "weights": weights.identity,
        **({"adapter": adapter} if adapter else {}),
        "device": precision.reason,
        "seed": cfg.seed,
        "data": {
            "sha256": data.sha256,
            "rows": {name: len(rows) for name, rows in data.splits().items()},
        },
        "tokenizer_sha256": sha256_text(tokenizer),
        "day": data.encoder.template.day.isoformat(),
        **({"processes": ranks.world_size()} if cfg.distributed else {}),
        **_computing(precision),
    }


def compute_as_begun(plan: RunPlan, cfg: TrainConfig) -> Precision:
    """The precision of a start, which goes on with the threads and dtypes that the run began with.

    Of a run that goes on, it says what else is not as it was.

    Raises:
        ModelError: float16 on a CPU.
        RunError: the manifest or the config of the run is damaged.
    """
    files = plan.like
    manifest = files.read_manifest() if files.manifest.is_file() else {}
    precision = choose_precision(
        cfg.model,
        use_cpu=bool(cfg.sft.get("use_cpu", False)),
        compiled=bool(cfg.sft.get("torch_compile", False)),
        began=_began(files, manifest),
    )
    if plan.repeats is None:
        changed = ", ".join(_changed(manifest, _computing(precision)))
        if changed:
            console.print(f"resume    the run began with {changed}: bits may differ", markup=False)
    return precision


def _began(files: RunFolder, manifest: Mapping[str, Any]) -> Began:
    """What the run began with; a dtype that its config named, and this one leaves open, is not."""
    recorded = manifest.get("precision")
    recorded = recorded if isinstance(recorded, Mapping) else {}
    model = (files.read_config().get("model") or {}) if recorded else {}

    def decided(name: str, key: str) -> str | None:
        is_open = model.get(key, "auto") == "auto"
        return recorded[name] if is_open and recorded.get(name) in _DTYPES else None

    threads = manifest.get("threads")
    return Began(
        compute=decided("compute", "dtype"),
        trained=decided("trained", "adapter_dtype"),
        threads=threads if isinstance(threads, int) and threads > 0 else None,
        # a version that did not know the fast step did not make it
        fast=bool(recorded.get("fast")) if manifest and model.get("fast") is not False else None,
    )


def check_ranks(
    cfg: TrainConfig, weights: Weights, precision: Precision, data: PreparedData
) -> None:
    """The processes of one run must compute the same: data, packing, versions, dtypes.

    Raises:
        RunError: what a rank has otherwise than the first.
    """
    if ranks.world_size() == 1:
        return
    facts = facts_of(cfg, weights, precision, data)
    del facts["hardware"], facts["device"]  # they may be of other machines
    facts["packing"] = data.isolation.method if data.isolation else None
    found = "; ".join(ranks.differing(ranks.gathered(facts)))
    if found:
        fix = "give every machine the same versions, files and environment"
        raise RunError(Problem("distributed", f"the processes differ: {found}", fix=fix))


def say_what_differs(
    plan: RunPlan, cfg: TrainConfig, weights: Weights, precision: Precision, data: PreparedData
) -> None:
    """Say what a repeated run has otherwise than that which it repeats; nothing of another run."""
    if plan.repeats is None:
        return
    for line in _compared(plan.like, cfg, weights, facts_of(cfg, weights, precision, data)):
        console.print(f"again     {line}", markup=False)


def _compared(
    files: RunFolder, cfg: TrainConfig, weights: Weights, now: Mapping[str, Any]
) -> Iterator[str]:
    """Each difference on a line, then what is to be expected."""
    then, recorded, plain = files.read_manifest(), as_begun(files.read_config()), to_plain(cfg)
    changed = [*_changed_contents(then, now, weights), *_changed(then, now)]
    unknown = [*_unknown_contents(then), *_unknown(then, now)]
    keys = all_differences(recorded, plain)
    yield f"{files.path} from its first step, in a new run"
    yield from map(str, keys)
    yield from changed
    if unknown:
        yield f"not recorded then, and so not compared: {', '.join(unknown)}"
    expected = _SAME if now["precision"]["device"] == "cpu" else _ON_A_GPU
    if changed or key_differences(recorded, plain):
        yield "with this, the bits may differ"
    elif unknown:
        yield f"the rest is as it was; if that is, too, {expected}"
    elif keys:
        yield f"this decides no weights, and the rest is as it was: {expected}"
    else:
        yield f"same config, data, tokenizer, weights, versions: {expected}"


def _changed_contents(
    then: Mapping[str, Any], now: Mapping[str, Any], weights: Weights
) -> Iterator[str]:
    data, tokenizer = _data(then), then.get("tokenizer_sha256")
    if data not in (None, now["data"]["sha256"]):
        yield f"the data: {_rows(then)} then, {_rows(now)} now, and not the same bytes"
    if tokenizer not in (None, now["tokenizer_sha256"]):
        yield "the tokenizer is another one"
    if then.get("weights") is not None and not weights.are(then["weights"]):
        yield f"base weights {then['weights']}, now {now['weights']}"
    if then.get("adapter") != now.get("adapter"):
        before, after = (one.get("adapter") or "none" for one in (then, now))
        yield f"adapter of lora.init_from {before}, now {after}"


def _unknown_contents(then: Mapping[str, Any]) -> Iterator[str]:
    yield from ["data"] if _data(then) is None else []
    yield from ["tokenizer"] if then.get("tokenizer_sha256") is None else []
    yield from ["base weights"] if then.get("weights") is None else []
    yield from ["threads"] if then.get("threads") is None else []


def _data(manifest: Mapping[str, Any]) -> str | None:
    return dict(manifest.get("data") or {}).get("sha256")


def _rows(manifest: Mapping[str, Any]) -> str:
    rows = dict(manifest["data"].get("rows") or {})
    return " + ".join(f"{count:,} {split}" for split, count in rows.items()) + " rows"


# --- the machine ----------------------------------------------------------------------------------


def _computing(precision: Precision) -> dict[str, Any]:
    """Where and with what this process computes, for a manifest."""
    import torch

    return {
        "threads": int(torch.get_num_threads()),
        "precision": precision.record(),
        "versions": {"python": platform.python_version(), **versions()},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": os.cpu_count(),
            "cpu": f"{_cpu()}, {torch.backends.cpu.get_cpu_capability()}",
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _cpu() -> str:
    """The CPU by name, which Python itself does not tell on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of the machine was recorded otherwise, for people."""
    before, today = _machine(then), _machine(now)
    return [
        f"{name} {_shown(before[name])}, now {_shown(value)}"
        for name, value in today.items()
        if name in before and before[name] != value
    ]


def _unknown(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of the machine is recorded today, and was not then."""
    before = _machine(then)
    return [name for name in _machine(now) if name not in before]


def _machine(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """{what people call it: its value} of what a manifest records of the machine."""
    found: dict[str, Any] = {}
    for part, names in _MACHINE.items():
        recorded = manifest.get(part)
        if isinstance(recorded, Mapping):
            found |= {name: recorded[key] for key, name in names.items() if key in recorded}
    return found


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
