"""Adapters that start as a part of the base weights (PiSSA, OLoRA), and what they are saved as.

Such an adapter starts as A0 and B0 made of the base weights W, and trains on W - s * B0 @ A0. A run
keeps A0 and B0, so that a resumed run has the same weights to the bit, and is saved as the plain
LoRA [A; A0], [B, -B0] on W itself: W - s * B0 @ A0 + s * B @ A.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from sftpipe.config.lora import initialisation
from sftpipe.errors import ModelError, Problem
from sftpipe.storage import is_whole, publish_folder, write_json

NAME = "default"  # PEFT's, of the only adapter
_WEIGHTS = "adapter_model.safetensors"


def takes_from_base(config: Any) -> bool:
    """True for the config of an adapter that starts as a part of the base weights."""
    found = initialisation(getattr(config, "init_lora_weights", True))
    return found is not None and found.residual


def start_from_base(model: PeftModel, init: str, folder: Path, seed: int) -> None:
    """Give an adapter its first weights, and take them out of the base.

    Args:
        model: with a new adapter, whose `init_lora_weights` was True.
        init: `pissa`, `pissa_niter_<n>` or `olora`.
        folder: where the first weights are kept; they are read where it exists.
        seed: what `pissa_niter_<n>` draws from.

    Raises:
        ModelError: a layer that it does not work for, or first weights that are lost.
    """
    layers = _layers(model, init)
    if not is_whole(folder):
        if folder.exists() or any(folder.parent.glob("checkpoint-*")):
            raise ModelError(_lost(folder, init))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            first = {name: _first_weights(layer, init) for name, layer in layers.items()}
        tensors = {f"{name}.{part}": pair[part] for name, pair in first.items() for part in pair}
        folder.parent.mkdir(parents=True, exist_ok=True)
        with publish_folder(folder) as partial:
            save_file(tensors, partial / _WEIGHTS, metadata={"format": "pt"})
    kept = load_file(folder / _WEIGHTS, device="cpu")
    for name, layer in layers.items():
        a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        a.data = kept[f"{name}.lora_A"].to(a)
        b.data = kept[f"{name}.lora_B"].to(b)
        weight = layer.get_base_layer().weight
        part = layer.scaling[NAME] * b.data.float() @ a.data.float()
        part = part.T if getattr(layer, "fan_in_fan_out", False) else part
        weight.data = (weight.data.float() - part).to(weight.dtype)
    model.peft_config[NAME].init_lora_weights = init  # what a checkpoint says of itself


def make_plain(folder: Path, initial: Path) -> None:
    """Turn a saved adapter into one of the plain base; its rank doubles.

    Args:
        folder: with the files of the trained adapter, which are replaced.
        initial: what `start_from_base` kept.
    """
    first = load_file(initial / _WEIGHTS)
    tensors = load_file(folder / _WEIGHTS)
    for name, value in tensors.items():
        start = first.get(name.removesuffix(".weight"))
        if start is None:
            continue
        rows = ".lora_A." in name
        tensors[name] = torch.cat(
            [value, (start if rows else -start).to(value.dtype)], dim=0 if rows else 1
        )
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    file = folder / "adapter_config.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    write_json(file, _doubled(fields))


def _doubled(fields: dict[str, Any]) -> dict[str, Any]:
    """An adapter's config with twice the rank and the same scale: alpha / r, or alpha / sqrt(r)."""
    factor = 2**0.5 if fields.get("use_rslora") else 2
    alphas = {key: alpha * factor for key, alpha in (fields.get("alpha_pattern") or {}).items()}
    ranks = {key: rank * 2 for key, rank in (fields.get("rank_pattern") or {}).items()}
    return {
        **fields,
        "init_lora_weights": True,
        "r": fields["r"] * 2,
        "lora_alpha": fields["lora_alpha"] * factor,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }


def _layers(model: PeftModel, init: str) -> dict[str, LoraLayer]:
    """{name: layer} of the layers with an A and a B."""
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and NAME in layer.lora_A
    }
    shared = _shared(model)
    for name, layer in layers.items():
        base = layer.get_base_layer()
        weight = getattr(base, "weight", None)
        turned = init == "olora" and getattr(layer, "fan_in_fan_out", False)
        if weight is None or weight.ndim != 2 or turned:
            why = f"a {type(base).__name__}"
        elif id(weight) in shared:
            why = "whose weights are also those of another module"
        else:
            continue
        found = f"{init} cannot start from {name.rpartition('.')[2]}, {why}"
        fix = "`lora.init_lora_weights=true`"
        raise ModelError(Problem("lora.init_lora_weights", found, fix=fix))
    return layers


def _shared(model: PeftModel) -> set[int]:
    """Ids of the parameters that two modules have."""
    seen: set[int] = set()
    shared: set[int] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _first_weights(layer: LoraLayer, init: str) -> dict[str, torch.Tensor]:
    """A0 and B0 of a layer, by PEFT; its base weight stays as it was."""
    weight = layer.get_base_layer().weight
    before = weight.data.clone()
    dtype = layer.lora_A[NAME].weight.dtype
    with torch.no_grad():
        if init == "olora":
            layer.olora_init(NAME)
        else:
            layer.pissa_init(NAME, init)
    weight.data = before
    return {
        part: getattr(layer, part)[NAME].weight.data.to("cpu", dtype).contiguous()
        for part in ("lora_A", "lora_B")
    }


def _lost(folder: Path, init: str) -> Problem:
    found = (
        f"missing or damaged: the weights that the {init} adapter began with, which its "
        "checkpoints are trained on"
    )
    return Problem(str(folder), found, fix="start a new run")
