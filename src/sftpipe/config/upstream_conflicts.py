"""Fields of `sft`, `lora` and `quantization` that do not go together.

Each would end in an error of transformers, TRL or PEFT after the data and the model are loaded, or
in a key that nothing reads. What only their code knows, training/rehearsal.py finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sftpipe.config.schema import TrainConfig
from sftpipe.config.upstream import READ_WITH, unread
from sftpipe.config.values import check_optimizer_arguments, check_packages, check_schedule
from sftpipe.errors import Problem, override


def find_upstream_conflicts(cfg: TrainConfig) -> list[Problem]:
    """All conflicts among the fields of the three groups, each with what to type instead."""
    return [
        *check_packages(cfg.sft),
        *check_schedule(cfg.sft),
        *check_optimizer_arguments(cfg.sft),
        *_check_read_with(cfg),
        *_check_optimizer_modules(cfg.sft),
        *_check_metric_schedule(cfg.sft),
        *_check_best(cfg),
        *_check_bits(cfg.quantization),
        *_check_adapter(cfg.lora),
    ]


def _check_read_with(cfg: TrainConfig) -> list[Problem]:
    """Fields of upstream classes that nothing reads with the value of another field."""
    problems = []
    for group in READ_WITH:
        fields: Mapping[str, Any] = getattr(cfg, group)
        for name, (other, _, example) in unread(group, fields).items():
            value = fields.get(other)
            said = "not set" if value is None else str(value).lower()
            found = f"nothing reads it with {group}.{other} {said}"
            fix = f"`{group}.{other}={example}`, or leave it out"
            problems.append(Problem(f"{group}.{name}", found, fix=fix))
    return problems


# --- sft ------------------------------------------------------------------------------------------


def _check_optimizer_modules(sft: Mapping[str, Any]) -> list[Problem]:
    """The modules that GaLore and APOLLO are for; the other optimizers have all of them."""
    key, optimizer = "sft.optim_target_modules", str(sft.get("optim", "adamw_torch"))
    if not sft.get("optim_target_modules") or optimizer.startswith(("galore_", "apollo_")):
        return []
    found = f"nothing reads it with sft.optim={optimizer}"
    return [
        Problem(key, found, allowed="an optimizer galore_... or apollo_...", fix=f"`{key}=null`")
    ]


def _check_metric_schedule(sft: Mapping[str, Any]) -> list[Problem]:
    schedule = sft.get("lr_scheduler_type")
    followers = ("reduce_lr_on_plateau", "greedy")
    if sft.get("eval_strategy", "no") != "no" or schedule not in followers:
        return []
    found = f"{schedule!r} follows the validation loss, and sft.eval_strategy=no never has it"
    fix = "`sft.eval_strategy=epoch`, or `sft.lr_scheduler_type=linear`"
    return [Problem("sft.lr_scheduler_type", found, fix=fix)]


def _check_best(cfg: TrainConfig) -> list[Problem]:
    """A best checkpoint is one of an evaluation; early_stopping.py says so of its own."""
    sft, saves = cfg.sft, cfg.sft.get("save_strategy", "steps")
    evaluates, is_best = sft.get("eval_strategy", "no"), bool(sft.get("load_best_model_at_end"))
    if cfg.evaluation is not None and cfg.evaluation.early_stopping is not None:
        return []
    if evaluates == "no" and (is_best or saves == "best"):
        key, off = "sft.load_best_model_at_end", "false"
        if saves == "best":
            key, off = "sft.save_strategy", "steps"
        found = "the best checkpoint is that of an evaluation, and sft.eval_strategy=no has none"
        fix = "`sft.eval_strategy=epoch sft.save_strategy=epoch`" if is_best else ""
        fix = fix if saves != "best" else "`sft.eval_strategy=epoch`"
        return [Problem(key, found, fix=f"{fix}, or `{key}={off}`")]
    if is_best and saves not in ("best", evaluates):
        found = f"{evaluates!r} and {saves!r}, and the best model is that of a checkpoint"
        fix = f"`sft.save_strategy={evaluates}`, or `sft.load_best_model_at_end=false`"
        return [Problem("sft.eval_strategy + sft.save_strategy", found, fix=fix)]
    return _check_best_steps(sft) if is_best and evaluates == saves == "steps" else []


def _check_best_steps(sft: Mapping[str, Any]) -> list[Problem]:
    """A checkpoint of the best model needs an evaluation at its step."""
    evaluates = sft.get("eval_steps") or sft.get("logging_steps") or 500
    saves = sft.get("save_steps", 500)
    is_share = evaluates < 1, saves < 1
    ratio = saves / evaluates
    if is_share[0] == is_share[1] and abs(ratio - round(ratio)) < 1e-6 and ratio > 0.5:
        return []
    found = f"{evaluates} and {saves}, and the best model is that of a checkpoint"
    fix = f"`sft.save_steps={evaluates}`, or `sft.load_best_model_at_end=false`"
    where = "sft.eval_steps + sft.save_steps"
    return [Problem(where, found, allowed="save_steps a multiple of eval_steps", fix=fix)]


# --- quantization ---------------------------------------------------------------------------------


def _check_bits(quantization: Mapping[str, Any]) -> list[Problem]:
    """The flag that switches it on, and the fields of the other kind of weights."""
    four, eight = (bool(quantization.get(f"load_in_{bits}bit")) for bits in (4, 8))
    if not quantization or (four and eight):  # conflicts.py says it of both
        return []
    if not four and not eight:
        found = "neither load_in_4bit nor load_in_8bit is true, so nothing is quantized"
        fix = "`quantization=nf4`, `quantization=int8`, or `quantization=none`"
        return [Problem("quantization", found, fix=fix)]
    kind, other = ("4-bit", "int8") if four else ("8-bit", "nf4")
    fix = f"`quantization={other}`, or leave it out"
    others = {
        "bnb_4bit_quant_type": (eight, None),
        "bnb_4bit_use_double_quant": (eight, False),
        "bnb_4bit_compute_dtype": (eight, "auto"),
        "bnb_4bit_quant_storage": (eight, None),
    }
    return [
        Problem(f"quantization.{name}", f"nothing reads it with {kind} weights", fix=fix)
        for name, (is_unread, default) in others.items()
        if is_unread and quantization.get(name, default) != default
    ]


# --- lora -----------------------------------------------------------------------------------------


def _check_adapter(lora: Mapping[str, Any]) -> list[Problem]:
    """What `LoraConfig` refuses, and fields of an initialisation that is not chosen."""
    problems, targets = [], lora.get("target_modules")
    if isinstance(targets, str):
        for name in ("layers_to_transform", "layers_pattern"):
            if lora.get(name) is not None:
                found = f"PEFT needs a list of names in lora.target_modules, and it is {targets!r}"
                fix = f"{override('lora.target_modules', '[q_proj,v_proj]')}, or leave it out"
                problems.append(Problem(f"lora.{name}", found, fix=fix))
    elif lora.get("layers_pattern") and lora.get("layers_to_transform") is None:
        found = "nothing reads it without lora.layers_to_transform"
        fix = f"{override('lora.layers_to_transform', '[0,1]')}, or leave it out"
        problems.append(Problem("lora.layers_pattern", found, fix=fix))
    start = lora.get("init_lora_weights", True)
    if lora.get("lora_bias") and (lora.get("use_dora") or not isinstance(start, bool)):
        other = "lora.use_dora=true" if lora.get("use_dora") else f"lora.init_lora_weights={start}"
        found = f"true, and PEFT has no bias with {other}"
        problems.append(Problem("lora.lora_bias", found, fix="`lora.lora_bias=false`"))
    return problems
