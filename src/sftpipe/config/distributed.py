"""What the group `distributed` needs of its own keys and of the others."""

from __future__ import annotations

import re

from sftpipe.config.schema import DistributedConfig, TrainConfig
from sftpipe.errors import Problem, override

_ENDPOINT = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s:\[\]]+):(\d{1,5})")
# torch's own; bitsandbytes has no kernel for a part of a weight, Adafactor needs whole rows
_DIVIDED = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
_ALONE = "`distributed=none`"


def check_distributed(cfg: TrainConfig) -> list[Problem]:
    """The problems of a run of several processes, each with what to type instead."""
    if cfg.distributed is None:
        return []
    return [
        *_check_machines(cfg.distributed),
        *(_check_sharding(cfg) if cfg.distributed.strategy == "fsdp2" else []),
    ]


def _check_machines(asked: DistributedConfig) -> list[Problem]:
    machines, processes = asked.num_machines, asked.num_processes
    key, problems = "distributed.num_processes", []
    if processes is not None and processes % machines:
        found = f"{processes}, in all, on {machines} machines, which take the same number each"
        fix = override(key, str(machines * max(1, processes // machines)))
        problems.append(Problem(key, found, allowed=f"a multiple of {machines}", fix=fix))
    if asked.machine_rank >= machines:
        key, allowed = "distributed.machine_rank", f"0 to {machines - 1}"
        fix = override("distributed.num_machines", str(asked.machine_rank + 1))
        found = f"{asked.machine_rank}, and distributed.num_machines is {machines}"
        problems.append(Problem(key, found, allowed=allowed, fix=fix))
    key = "distributed.rendezvous"
    if asked.rendezvous is None and machines > 1:
        found = "not set: how do the machines find each other?"
        fix = "give every machine the name of machine 0 and a free port of it: `" + key
        problems.append(Problem(key, found, allowed="HOST:PORT", fix=f"{fix}=node0:29500`"))
    elif asked.rendezvous is not None and not _is_endpoint(asked.rendezvous):
        allowed, fix = "HOST:PORT, the port from 1 to 65535", override(key, "node0:29500")
        problems.append(Problem(key, repr(asked.rendezvous), allowed=allowed, fix=fix))
    elif asked.rendezvous is not None and machines == 1:
        found = "nothing reads it on one machine"
        fix = "leave it out, or `distributed.num_machines=2`"
        problems.append(Problem(key, found, fix=fix))
    return problems


def _is_endpoint(text: str) -> bool:
    match = _ENDPOINT.fullmatch(text)
    return match is not None and 0 < int(match[2]) < 65536


def _check_sharding(cfg: TrainConfig) -> list[Problem]:
    """What torch's fully_shard cannot divide, or what its checkpoints cannot hold."""
    key, problems = "distributed.strategy", []
    if cfg.quantization.get("load_in_8bit"):
        found = "fsdp2, and bitsandbytes cannot divide 8-bit weights"
        fix = "`quantization=nf4`, or `distributed.strategy=ddp`"
        problems.append(Problem(f"{key} + quantization", found, fix=fix))
    optimizer = str(cfg.sft.get("optim", _DIVIDED[0]))
    if optimizer not in _DIVIDED:
        found = f"fsdp2, and {optimizer} cannot step on weights that are divided"
        allowed, fix = ", ".join(_DIVIDED), f"`sft.optim={_DIVIDED[0]}`"
        problems.append(Problem(f"{key} + sft.optim", found, allowed=allowed, fix=fix))
    if bool(cfg.sft.get("use_cpu", False)):
        problems.append(on_a_cpu())
    return problems


def on_a_cpu() -> Problem:
    """The problem of fsdp2 without GPUs."""
    found = (
        "fsdp2 divides a model among the memories of several GPUs, and the processes of a CPU "
        "share one"
    )
    return Problem("distributed.strategy", found, fix=f"`distributed.strategy=ddp`, or {_ALONE}")
