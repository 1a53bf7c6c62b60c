"""Initialisations of LoRA: which there are, what each needs, and what becomes of the base weights.

The names are those of the installed PEFT (the annotation of `LoraConfig.init_lora_weights`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftpipe.config.schema import TrainConfig
from sftpipe.config.upstream import upstream_fields
from sftpipe.errors import Problem, override, show_value, wrong_choice

# the adapter that a run began with, in its folder, where the base weights were changed by it
INITIAL_ADAPTER = "initial_adapter"
NITER = "pissa_niter_[number of iters]"  # PEFT's name of a family


@dataclass(frozen=True)
class Initialisation:
    """What is true of a value of `lora.init_lora_weights`.

    residual: what the adapter starts with is taken out of the base weights, which are put back
        when the adapter is saved.
    on_quantized: it can start on quantized weights.
    even: ranks must be even.
    refused: why no run can have it; "" for those that one can.
    """

    residual: bool = False
    on_quantized: bool = False
    even: bool = False
    refused: str = ""


_PASS = "it needs a pass over data before training, which a config cannot ask for"
_LOFTQ = (
    "it replaces the base weights by 4-bit ones of its own, which no saved adapter holds: a plain "
    "reload would be another model"
)
INITIALISATIONS = {
    "true": Initialisation(on_quantized=True),
    "false": Initialisation(on_quantized=True),
    "gaussian": Initialisation(on_quantized=True),
    "orthogonal": Initialisation(even=True),
    "mica": Initialisation(),
    "pissa": Initialisation(residual=True),
    NITER: Initialisation(residual=True),
    "olora": Initialisation(residual=True),
    "eva": Initialisation(refused=_PASS),
    "corda": Initialisation(refused=_PASS),
    "lora_ga": Initialisation(refused=_PASS),
    "loftq": Initialisation(refused=_LOFTQ),
}


def initialisation(value: Any) -> Initialisation | None:
    """What is known of a value of `lora.init_lora_weights`; None for one that is none."""
    if value is None or isinstance(value, bool):
        return INITIALISATIONS["false" if value is False else "true"]
    if re.fullmatch(r"pissa_niter_\d+", str(value)):
        return INITIALISATIONS[NITER]
    return INITIALISATIONS.get(value) if value not in ("true", "false", NITER) else None


def known_to_peft() -> list[str]:
    """The names in the annotation of `LoraConfig.init_lora_weights`, of the installed PEFT."""
    tree = ast.parse(str(upstream_fields("LoraConfig")["init_lora_weights"]), mode="eval")
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def check_initialisation(cfg: TrainConfig) -> list[Problem]:
    """The problems of `lora.init_lora_weights` with itself and with the rest of a config."""
    key, lora = "lora.init_lora_weights", cfg.lora
    value = lora.get("init_lora_weights", True)
    found = initialisation(value)
    names = [name for name, one in INITIALISATIONS.items() if not one.refused]
    if found is None:
        if str(value) in known_to_peft() and value != NITER:
            why = "this version of sftpipe cannot say that a plain reload gives the same model"
            return [Problem(key, f"{value}: {why}", allowed=", ".join(names), fix=_DEFAULT)]
        choices = [name.replace(NITER, "pissa_niter_16") for name in names]
        return [wrong_choice(key, value, choices, key)]
    if found.refused:
        return [Problem(key, f"{value}: {found.refused}", allowed=", ".join(names), fix=_DEFAULT)]
    problems = []
    if cfg.quantization and not found.on_quantized:
        why = "it starts from the exact base weights, and these are quantized"
        fix = f"`quantization=none`, or {_DEFAULT}"
        problems.append(Problem(key, f"{value}: {why}", fix=fix))
    if found.residual and lora.get("target_parameters"):
        why = "it starts from weights of modules, and lora.target_parameters names parameters"
        problems.append(Problem(key, f"{value}: {why}", fix=_DEFAULT))
    if found.even:
        problems += _check_even(lora)
    return problems


_DEFAULT = "`lora.init_lora_weights=true`"


def _check_even(lora: Mapping[str, Any]) -> list[Problem]:
    patterns = lora.get("rank_pattern") or {}
    ranks = {"lora.r": lora.get("r", 8)}
    ranks |= {f"lora.rank_pattern.{name}": rank for name, rank in patterns.items()}
    return [
        Problem(
            key,
            f"{show_value(rank)}, and orthogonal starting weights need an even rank",
            fix=override(key, str(rank + 1)) if key == "lora.r" else _DEFAULT,
        )
        for key, rank in ranks.items()
        if isinstance(rank, int) and rank % 2
    ]
