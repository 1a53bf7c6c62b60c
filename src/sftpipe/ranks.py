"""The processes that train one run on several devices: which one is this, what do the others say?

`sftpipe.launch` starts them by torchrun, which gives each its number. A run of one process, which
no launcher started, is its own first rank, and every function here answers at once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# seconds in which a signal is the same one, handed on by one more process that received it
ONCE_S = 5.0
NOTES = "SFTPIPE_RANKS"  # set by sftpipe.launch: the folder in which each rank says how it ended


def notes() -> Path | None:
    """The folder of `NOTES`; None in a process that is no rank."""
    folder = os.environ.get(NOTES)
    return Path(folder) if folder else None


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if notes() else 0


def local_rank() -> int:
    """The number of this process on its machine, from 0, which is that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if notes() else 0


def world_size() -> int:
    """How many processes train the run."""
    return int(os.environ["WORLD_SIZE"]) if notes() else 1


def is_first() -> bool:
    """True of the one process that writes, logs and speaks."""
    return rank() == 0


def only_first(context: AbstractContextManager[Any]) -> AbstractContextManager[Any]:
    """The context in the first process, and none in the others."""
    return context if is_first() else nullcontext()


def meet() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        import torch.distributed

        torch.distributed.barrier(**_device_ids())


def total(*numbers: float) -> list[float]:
    """The sums over the processes, in float64: whole numbers up to 2**53 stay exact."""
    if world_size() == 1:
        return list(numbers)
    import torch

    summed = torch.tensor(numbers, dtype=torch.float64, device=_device())
    torch.distributed.all_reduce(summed)
    return [float(one) for one in summed.tolist()]


def gathered(value: T) -> list[T]:
    """The value of each process, by its number; anything that can be pickled."""
    if world_size() == 1:
        return [value]
    import torch.distributed

    values: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """Let the first process do a block, then the first of each machine, then the rest.

    What the block leaves in the cache, the others find there.
    """
    turn = 0 if is_first() else 1 if local_rank() == 0 else 2
    for _ in range(turn):
        meet()
    yield
    for _ in range(turn, 2):
        meet()


def differing(facts: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What processes have otherwise than the first: `versions.torch: 2.13.0, and 2.12.1 on rank 1`.

    Args:
        facts: of each process, by its number; nested mappings.
    """
    plain = [_flat(one) for one in facts]
    for name in dict.fromkeys(name for one in plain for name in one):
        first = plain[0].get(name)
        other = next((at for at, one in enumerate(plain) if one.get(name) != first), None)
        if other is not None:
            yield f"{name}: {first}, and {plain[other].get(name)} on rank {other}"


def _flat(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return flat


def _device() -> Any:
    """Where a tensor must be for the processes to exchange it: NCCL takes those of a GPU alone."""
    import torch

    on_gpu = "nccl" in str(torch.distributed.get_backend())
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def _device_ids() -> dict[str, Any]:
    device = _device()
    return {"device_ids": [device.index]} if device.type == "cuda" else {}
