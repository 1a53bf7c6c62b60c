"""A model divided among processes by torch's fully_shard, and its trained part whole again.

Each decoder layer is a unit, and what is left of the model is one: a process holds its part of
every parameter, as a DTensor, and the whole of a unit only while it is computed. What is written
is in the format of one process, and holds trained parameters alone, so that any number of
processes can go on with it.

transformers' own `fsdp` cannot be evaluated before it has an optimizer, and writes the base beside
an adapter.

"Every process" below: each must call the function, or the others wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

import sftpipe.ranks as ranks
from sftpipe.errors import ModelError, Problem


def shard(model: torch.nn.Module, device: torch.device) -> None:
    """Divide a model among the processes; every process.

    The numbers are those of the first process, which alone needs to have them: elsewhere they may
    be on torch's device `meta`. They go to the device a unit at a time, so that none needs room
    for the whole model.

    Args:
        model: the base, or the base with its adapter; its parameters are other objects afterwards,
            so that an optimizer is made later.
        device: that the process computes on.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = set(getattr(base, "_no_split_modules", None) or ())
    units = [one for one in model.modules() if type(one).__name__ in layers]
    for unit in (*units, model):
        _place(unit, device)
        # the last unit too: torch would leave it whole after an evaluation, and an optimizer or a
        # checkpoint that is made then would not see its parts
        fully_shard(unit, reshard_after_forward=True)
    register_fsdp_forward_method(model, "generate")
    base._is_fsdp_managed_module = True  # transformers then answers until every process is done


def _place(unit: torch.nn.Module, device: torch.device) -> None:
    """Give a unit the numbers of the first process, on the device; what is divided stays."""
    placed: dict[int, torch.Tensor] = {}  # what each became, by its id: tied weights stay tied
    for module in unit.modules():
        for kind in (module._parameters, module._buffers):
            for name, old in kind.items():
                if old is None or isinstance(old, DTensor):
                    continue
                if id(old) not in placed:
                    new = _from_first(old, device)
                    placed[id(old)] = placed[id(new)] = new
                kind[name] = placed[id(old)]


def _from_first(old: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the first process, on the device of each."""
    if getattr(old, "quant_state", None) is not None:
        return old  # each process has packed it by itself, from the same file
    data = torch.empty_like(old, device=device) if old.is_meta else old.detach().to(device)
    data = data.contiguous()
    torch.distributed.broadcast(data, src=0)
    if not isinstance(old, torch.nn.Parameter):
        return data
    if not old.is_meta:
        old.data = data
        return old
    return torch.nn.Parameter(data, requires_grad=old.requires_grad)


# --- the weights ----------------------------------------------------------------------------------


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trained weights, each whole and on the CPU; every process.

    Args:
        model: divided. With an adapter only what is trained is gathered; else all of it.

    Returns:
        {name in the model: weight} in the first process, nothing in the others.
    """
    whole = {}
    for name, value in _written(model).items():
        full = _whole(value)
        if ranks.is_first():
            whole[name] = full.detach().cpu()
        del full
    return whole


def take_weights(model: torch.nn.Module, folder: Path) -> None:
    """Give a divided model the weights that a checkpoint has; every process, which all read it.

    Args:
        model: divided.
        folder: with safetensors files of an adapter, or of a model that was trained whole.

    Raises:
        ModelError: they do not fit the model.
    """
    ours: Mapping[str, torch.Tensor] = _written(model)
    if isinstance(model, PeftModel):  # files leave out the name of the adapter
        ours = get_peft_model_state_dict(model, dict(ours), save_embedding_layers=False)
    numbers: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        numbers |= load_file(file)
    have = {id(value) for name, value in ours.items() if name in numbers}
    odd = sorted(numbers.keys() - ours.keys())
    odd += sorted(name for name, value in ours.items() if id(value) not in have)  # less tied ones
    both = numbers.keys() & ours.keys()
    odd += sorted(name for name in both if ours[name].shape != numbers[name].shape)
    if odd:
        found = f"does not fit the model: {', '.join(odd[:4])}"
        raise ModelError(Problem(str(folder), found, allowed="a checkpoint of this run"))
    with torch.no_grad():
        for name, value in numbers.items():
            local(ours[name]).copy_(local(_part(value, ours[name])))


def _written(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint has of a model: the parameters that are trained; without an adapter all."""
    if not isinstance(model, PeftModel):
        state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
        return state
    named = model.named_parameters(remove_duplicate=False)
    return {name: value for name, value in named if value.requires_grad}


# --- the optimizer --------------------------------------------------------------------------------


def whole_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer of divided parameters, as one process would have it; every process.

    Returns:
        As of `optimizer.state_dict()`, each tensor whole and on the CPU; nothing but in the first
        process.
    """
    state = optimizer.state_dict()
    whole: dict[int, dict[str, Any]] = {}
    for at, values in state["state"].items():  # these are the optimizer's own: not to be changed
        for name, value in values.items():
            full = _whole(value) if isinstance(value, torch.Tensor) else value
            if ranks.is_first():
                full = full.detach().cpu() if isinstance(full, torch.Tensor) else full
                whole.setdefault(at, {})[name] = full
            del full
    return {**state, "state": whole} if ranks.is_first() else {}


def take_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimizer of divided parameters the state of `whole_optimizer`.

    Args:
        optimizer: of the same parameters.
        state: whole, in every process; each takes its part.
    """
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    numbers = [at for group in state["param_groups"] for at in group["params"]]
    parts = {
        at: {
            # a count of steps has no parts
            name: _part(value, owner) if getattr(value, "shape", None) == owner.shape else value
            for name, value in state["state"][at].items()
        }
        for at, owner in zip(numbers, parameters, strict=True)
        if at in state["state"]
    }
    optimizer.load_state_dict({**state, "state": parts})


# --- one tensor -----------------------------------------------------------------------------------


def _whole(value: torch.Tensor) -> torch.Tensor:
    full: torch.Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return full


def local(value: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process has, as a view; all of one that is not divided."""
    part: torch.Tensor = value.to_local() if isinstance(value, DTensor) else value
    return part


def _part(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, which every process has, divided like another one."""
    if not isinstance(like, DTensor):
        return whole
    there = whole.to(like.device)
    # no process tells the others: each has read the same file
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)
