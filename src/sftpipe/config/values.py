"""Which values the fields of `sft`, `lora` and `quantization` may have.

One table, key -> rule. Where upstream's sources list the values (enums, `Literal`s, `choices`) they
are read there (upstream.py); the rest are ranges. A field whose type alone decides is in the table
too, so that a field that a new release adds is seen.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sftpipe.config.upstream import (
    enum_values,
    field_choices,
    literal_values,
    optimizer_arguments,
    scheduler_arguments,
    upstream_fields,
)
from sftpipe.errors import Problem, nearest, override, show_value


@dataclass(frozen=True)
class Rule:
    """What a value may be.

    allowed: in words.
    holds: true for an allowed value that is not null.
    example: a value to type, or "".
    null: null is allowed too; None where the field's annotation decides.
    why: the reason, where a value that upstream takes is refused.
    """

    allowed: str
    holds: Callable[[Any], bool]
    example: str = ""
    null: bool | None = None
    why: str = ""


def number(
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
    like: str,
    null: bool | None = None,
) -> Rule:
    """A finite number within limits; `like` is one of them."""
    words = [
        *([f"{least:g} or more"] if least is not None else []),
        *([f"above {above:g}"] if above is not None else []),
        *([f"at most {most:g}"] if most is not None else []),
        *([f"below {below:g}"] if below is not None else []),
    ]
    kind = "a whole number" if whole else "a number"

    def holds(value: Any) -> bool:
        if not _is_number(value) or (whole and not float(value).is_integer()):
            return False
        return (
            (least is None or value >= least)
            and (above is None or value > above)
            and (most is None or value <= most)
            and (below is None or value < below)
        )

    return Rule(", ".join([kind, *words]), holds, like, null)


def choice(options: Sequence[Any], *, like: str = "", null: bool | None = None) -> Rule:
    """One of the options."""
    shown = ", ".join(_plain(option) for option in options)
    known = {(type(option), option) for option in options}
    return Rule(shown, lambda value: _hashable(value) and (type(value), value) in known, like, null)


def _is_number(value: Any) -> bool:
    is_plain = isinstance(value, int | float) and not isinstance(value, bool)
    return is_plain and math.isfinite(value)


def _hashable(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and one for one in value)


def _is_mapping(value: Any, holds: Callable[[Any], bool]) -> bool:
    is_named = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
    return is_named and all(holds(one) for one in value.values())


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_indices(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_index, value))


_FLAG = Rule("true or false", lambda value: isinstance(value, bool), "false")
_TEXT = Rule("a text", lambda value: isinstance(value, str) and bool(value))
_NAMES = Rule("a list of names", _is_names, "[q_proj,v_proj]")
_TARGETS = Rule(
    "a name, or a list of names",
    lambda value: (isinstance(value, str) and bool(value)) or _is_names(value),
    "all-linear",
)
_MAPPING = Rule("a mapping, such as {a: b}", lambda value: isinstance(value, Mapping))
_COUNT = number(least=1, whole=True, like="8")
_SOME = number(least=0, whole=True, like="0")
_POSITIVE = number(above=0, like="1.0")
_NOT_NEGATIVE = number(least=0, like="0.0")
_SHARE = number(least=0, below=1, like="0.1")
# steps: so many, or a share of all
_STEPS = Rule(
    "a whole number of steps, 1 or more, or a share of all steps, above 0 and below 1",
    lambda value: (
        _is_number(value) and (0 < value < 1 or (value >= 1 and float(value).is_integer()))
    ),
    "100",
)
_LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")


def _sft() -> dict[str, Rule]:
    # longer than most: a line a field
    return {
        # --- how long, how much ---
        "per_device_train_batch_size": _COUNT,
        "per_device_eval_batch_size": _COUNT,
        "gradient_accumulation_steps": number(least=1, whole=True, like="1"),
        "num_train_epochs": number(above=0, like="1"),
        "max_steps": Rule(
            "a whole number, 1 or more, or -1: sft.num_train_epochs decides",
            lambda value: (
                _is_number(value) and float(value).is_integer() and (value == -1 or value >= 1)
            ),
            "-1",
        ),
        "max_length": number(least=1, whole=True, like="1024"),
        # --- optimizer and schedule ---
        "learning_rate": number(least=0, most=100, like="2e-4"),
        "lr_scheduler_type": choice(enum_values("SchedulerType"), like="linear"),
        "lr_scheduler_kwargs": _MAPPING,  # see _check_schedule
        "warmup_steps": Rule(
            "a whole number of steps, 0 or more, or a share of all steps, below 1",
            lambda value: (
                _is_number(value) and (0 <= value < 1 or (value >= 1 and float(value).is_integer()))
            ),
            "0.03",
        ),
        "optim": choice(enum_values("OptimizerNames"), like="adamw_torch"),
        "optim_args": _TEXT,  # see _check_optimizer
        "optim_target_modules": _TARGETS,
        "weight_decay": number(least=0, most=1, like="0.01"),
        "adam_beta1": number(least=0, below=1, like="0.9"),
        "adam_beta2": number(least=0, below=1, like="0.999"),
        "adam_epsilon": number(above=0, most=1, like="1e-8"),
        "max_grad_norm": number(least=0, like="1.0"),  # 0: no clipping
        "label_smoothing_factor": number(least=0, below=1, like="0.1"),
        "neftune_noise_alpha": number(above=0, like="5"),
        "loss_type": Rule(
            "nll, dft",
            lambda value: value in ("nll", "dft"),
            "nll",
            why="TRL's chunked_nll is an old name of nll, and sftpipe has no other loss",
        ),
        "router_aux_loss_coef": number(least=0, like="0.001"),
        # --- memory and speed ---
        "activation_checkpointing": _FLAG,
        "activation_checkpointing_kwargs": _MAPPING,
        "activation_offloading": _FLAG,
        "tf32": _FLAG,
        "torch_compile": _FLAG,
        "torch_compile_backend": _TEXT,  # backends are registered while torch runs
        "torch_compile_mode": choice(
            ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
            like="default",
        ),
        "use_liger_kernel": _FLAG,
        "liger_kernel_config": Rule(
            "a mapping of names to true or false",
            lambda value: _is_mapping(value, lambda one: isinstance(one, bool)),
        ),
        "torch_empty_cache_steps": _COUNT,
        "full_determinism": _FLAG,
        "use_cpu": _FLAG,
        "pad_to_multiple_of": number(least=1, whole=True, like="8"),
        "accelerator_config": _MAPPING,  # AcceleratorConfig checks it
        # --- logging ---
        "logging_strategy": choice(enum_values("IntervalStrategy"), like="steps"),
        "logging_steps": _STEPS,
        "logging_first_step": _FLAG,
        "logging_nan_inf_filter": _FLAG,
        "include_num_input_tokens_seen": Rule(
            "no, all, non_padding, true or false",
            lambda value: isinstance(value, bool) or value in ("no", "all", "non_padding"),
            "all",
        ),
        "log_level": choice(_LOG_LEVELS, like="passive"),
        "skip_memory_metrics": _FLAG,
        "debug": choice(("", *enum_values("DebugOption")), like="underflow_overflow"),
        # --- evaluation ---
        "eval_strategy": choice(enum_values("IntervalStrategy"), like="epoch"),
        "eval_steps": _STEPS,
        "eval_delay": _NOT_NEGATIVE,
        "eval_on_start": _FLAG,
        "metric_for_best_model": _TEXT,  # early_stopping.py knows the metrics
        "greater_is_better": _FLAG,
        "load_best_model_at_end": _FLAG,
        # --- saving ---
        "save_strategy": choice(enum_values("SaveStrategy"), like="steps"),
        "save_steps": _STEPS,
        "save_total_limit": number(least=1, whole=True, like="2"),
        "save_only_model": _FLAG,
        "resume_from_checkpoint": _TEXT,
        # --- rows and batches ---
        "dataloader_drop_last": _FLAG,
        "dataloader_num_workers": _SOME,
        "dataloader_pin_memory": _FLAG,
        "dataloader_persistent_workers": _FLAG,
        "dataloader_prefetch_factor": number(least=1, whole=True, like="2"),
        "dataloader_multiprocessing_context": choice(
            field_choices("dataloader_multiprocessing_context"), like="spawn"
        ),
        "dataloader_in_order": _FLAG,
        "train_sampling_strategy": choice(field_choices("train_sampling_strategy"), like="random"),
    }


def _lora() -> dict[str, Rule]:
    # longer than most: a line or a few a field
    return {
        "r": number(least=1, whole=True, like="16"),
        "lora_alpha": number(above=0, whole=True, like="32"),
        "lora_dropout": number(least=0, below=1, like="0.05"),
        "target_modules": _TARGETS,
        "exclude_modules": _TARGETS,
        "modules_to_save": _NAMES,
        "target_parameters": _NAMES,
        "bias": choice(literal_values("LoraConfig", "bias"), like="none"),
        "init_lora_weights": Rule(  # lora.py knows the names
            "true, false, or the name of an initialisation",
            lambda value: isinstance(value, bool) or (isinstance(value, str) and bool(value)),
            "true",
        ),
        "use_rslora": _FLAG,
        "use_dora": _FLAG,
        "lora_bias": _FLAG,
        "ensure_weight_tying": _FLAG,
        "layers_to_transform": Rule(
            "the index of a layer, or a list of them",
            lambda value: _is_index(value) or _is_indices(value),
            "[0,1]",
        ),
        "layers_pattern": _TARGETS,
        "rank_pattern": Rule(
            "a mapping of names to ranks, whole numbers from 1",
            lambda value: _is_mapping(value, lambda one: _is_index(one) and one >= 1),
            "{q_proj: 8}",
        ),
        "alpha_pattern": Rule(
            "a mapping of names to alphas, numbers above 0",
            lambda value: _is_mapping(value, lambda one: _is_number(one) and one > 0),
            "{q_proj: 16}",
        ),
        "trainable_token_indices": Rule(
            "a list of token ids, or {name of an embedding: list of token ids}",
            lambda value: _is_indices(value) or (bool(value) and _is_mapping(value, _is_indices)),
            "[5,6]",
        ),
        "layer_replication": Rule(
            "a list of pairs [first, last]",
            lambda value: (
                isinstance(value, list)
                and all(_is_indices(pair) and len(pair) == 2 for pair in value)
            ),
            "[[0,2],[1,3]]",
        ),
        "alora_invocation_tokens": Rule("a list of token ids", _is_indices, "[5,6]"),
        # PEFT makes dataclasses of these and checks their keys
        **dict.fromkeys(
            (
                "velora_config",
                "monteclora_config",
                "use_bdlora",
                "kasa_config",
            ),
            _MAPPING,
        ),
    }


def _quantization() -> dict[str, Rule]:
    flag = Rule(_FLAG.allowed, _FLAG.holds, _FLAG.example, null=False)
    return {
        "load_in_8bit": flag,
        "load_in_4bit": flag,
        "llm_int8_threshold": number(least=0, like="6.0", null=False),
        "llm_int8_skip_modules": Rule(_NAMES.allowed, _NAMES.holds, "[lm_head]", null=True),
        "llm_int8_enable_fp32_cpu_offload": flag,
        "bnb_4bit_compute_dtype": choice(
            ("auto", "float32", "bfloat16", "float16"), like="auto", null=False
        ),
        "bnb_4bit_quant_type": choice(("nf4", "fp4"), like="nf4", null=False),
        "bnb_4bit_use_double_quant": flag,
        "bnb_4bit_quant_storage": choice(
            ("uint8", "float16", "float32", "bfloat16"), like="uint8", null=True
        ),
    }


_TABLES = {
    "sft": ("SFTConfig", _sft),
    "lora": ("LoraConfig", _lora),
    "quantization": ("BitsAndBytesConfig", _quantization),
}
_made: dict[str, dict[str, Rule]] = {}


def rules(group: str) -> dict[str, Rule]:
    """{field: its rule} of `sft`, `lora` or `quantization`."""
    if group not in _made:
        _made[group] = _TABLES[group][1]()
    return _made[group]


def check_value(group: str, name: str, value: Any, locate: Callable[[str], str]) -> list[Problem]:
    """The problem of a value that its field does not take.

    Args:
        group: sft, lora or quantization.
        name: a field that a config may set.
        value: plain, of the type that the annotation says.
        locate: gives the place of a dotted key, for the message.
    """
    rule = rules(group).get(name)
    if rule is None:  # a field that is newer than this table: upstream decides
        return []
    if value is None:
        annotation = upstream_fields(_TABLES[group][0])[name] or "None"
        if rule.null or (rule.null is None and re.search(r"None|Optional", annotation)):
            return []
    elif rule.holds(value):
        return []
    found = show_value(value) if isinstance(value, bool) or value is None else repr(value)
    found = "null" if value is None else found
    if rule.why:
        found = f"{found}: {rule.why}"
    match = None
    if isinstance(value, str) and ", " in rule.allowed:
        match = nearest(value, rule.allowed.split(", "))
    example = match or rule.example
    key = f"{group}.{name}"
    fix = override(key, example) if example else "leave it out"
    return [Problem(locate(key), found, allowed=rule.allowed, fix=fix)]


# --- packages -------------------------------------------------------------------------------------

# value of sft.optim -> (module, what pip calls it)
_OPTIMIZERS: dict[str, tuple[str, str]] = {
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_torch_npu_fused": ("torch_npu", "torch-npu"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), ("torchao", "torchao")),
    **dict.fromkeys(("lomo", "adalomo"), ("lomo_optim", "lomo-optim")),
    "grokadamw": ("grokadamw", "grokadamw"),
    "stable_adamw": ("optimi", "torch-optimi"),
}
_OPTIMIZER_FAMILIES = {
    "galore_": ("galore_torch", "galore-torch"),
    "apollo_": ("apollo_torch", "apollo-torch"),
    "schedule_free_": ("schedulefree", "schedulefree"),
}


def package_of(optimizer: str) -> tuple[str, str] | None:
    """(module, package) that an optimizer needs beside torch and bitsandbytes."""
    family = next((one for one in _OPTIMIZER_FAMILIES if optimizer.startswith(one)), "")
    return _OPTIMIZERS.get(optimizer) or _OPTIMIZER_FAMILIES.get(family)


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def check_packages(sft: Mapping[str, Any]) -> list[Problem]:
    """Values of `sft` that need a package which is not installed."""
    problems, optimizer = [], str(sft.get("optim"))
    needed = package_of(optimizer)
    if needed and not _is_installed(needed[0]):
        fix = f"`pip install {needed[1]}`, or `sft.optim=adamw_torch`"
        found = f"{optimizer!r} is in the package {needed[1]}, which is not installed"
        problems.append(Problem("sft.optim", found, fix=fix))
    if sft.get("use_liger_kernel") is True and not _is_installed("liger_kernel"):
        found = "true, and the package liger-kernel is not installed"
        fix = "`pip install liger-kernel`, or `sft.use_liger_kernel=false`"
        problems.append(Problem("sft.use_liger_kernel", found, fix=fix))
    return problems


# --- keywords of schedules and optimizers ---------------------------------------------------------

_KEYWORDS = {
    "num_cycles": _POSITIVE,
    "power": _POSITIVE,
    "lr_end": _NOT_NEGATIVE,
    "timescale": _COUNT,
    "min_lr": _NOT_NEGATIVE,
    "max_lr": _POSITIVE,
    **dict.fromkeys(
        ("min_lr_rate", "warmup_lr_rate", "min_lr_ratio"), number(least=0, most=1, like="0.1")
    ),
    **dict.fromkeys(("num_decay_steps", "num_stable_steps"), _SOME),
    **dict.fromkeys(("patience", "cooldown", "warmup"), _SOME),
    "window_size": _COUNT,
    "reset_start": _COUNT,
    **dict.fromkeys(
        ("warmup_type", "decay_type"), choice(("linear", "cosine", "1-sqrt"), like="linear")
    ),
    "mode": choice(("min", "max"), like="min"),
    "threshold_mode": choice(("rel", "abs"), like="rel"),
    "factor": number(above=0, below=1, like="0.5"),
    "threshold": _NOT_NEGATIVE,
    "eps": _NOT_NEGATIVE,
    "verbose": _FLAG,
    "smooth": _FLAG,
}
# one of these is needed, and one alone: transformers says so in code only
_ONE_OF = dict.fromkeys(
    ("cosine_with_min_lr", "cosine_warmup_with_min_lr"), ("min_lr_rate", "min_lr")
)


def check_schedule(sft: Mapping[str, Any]) -> list[Problem]:
    """`sft.lr_scheduler_kwargs` against the function of the schedule."""
    key, schedule = "sft.lr_scheduler_kwargs", str(sft.get("lr_scheduler_type", "linear"))
    given = sft.get("lr_scheduler_kwargs") or {}
    if not isinstance(given, Mapping):
        return []
    known, needed = scheduler_arguments(schedule)
    problems = []
    for name in given:
        if name not in known:
            match = nearest(str(name), known)
            found = f"sft.lr_scheduler_type={schedule} has no {name!r}"
            fix = override(key, f"{{{match}: {given[name]}}}") if match else f"`{key}=null`"
            allowed = ", ".join(known) or "nothing: it has no keywords"
            problems.append(Problem(key, found, allowed=allowed, fix=fix))
        elif (rule := _KEYWORDS.get(name)) and not (given[name] is None or rule.holds(given[name])):
            fix = override(key, f"{{{name}: {rule.example}}}")
            found = repr(given[name])
            problems.append(Problem(f"{key}.{name}", found, allowed=rule.allowed, fix=fix))
    alternatives = _ONE_OF.get(schedule, ())
    chosen = [name for name in alternatives if given.get(name) is not None]
    missing = [name for name in needed if name not in given]
    if alternatives and len(chosen) != 1:
        missing = [alternatives[0]]
    if missing and not problems:
        examples = ", ".join(f"{name}: {_KEYWORDS[name].example}" for name in missing)
        found = f"sft.lr_scheduler_type={schedule} needs {' or '.join(alternatives or missing)}"
        found += ", and one of them alone" if len(chosen) > 1 else ""
        problems.append(Problem(key, found, fix=override(key, f"{{{examples}}}")))
    return problems


def check_optimizer_arguments(sft: Mapping[str, Any]) -> list[Problem]:
    """`sft.optim_args` against what transformers reads for the optimizer."""
    key, text = "sft.optim_args", sft.get("optim_args")
    optimizer = str(sft.get("optim", "adamw_torch"))
    if not isinstance(text, str):
        return []
    known = optimizer_arguments(optimizer)
    parts = [part.partition("=") for part in text.replace(" ", "").split(",")]
    if not all(name and value and "=" not in value for name, _, value in parts):
        allowed = "name=value, with commas between them"
        example = f"'{known[0]}=0.9'" if known else "null"
        return [Problem(key, repr(text), allowed=allowed, fix=override(key, example))]
    unknown = [name for name, _, _ in parts if name not in known]
    if not unknown:
        return []
    found = f"nothing reads {', '.join(unknown)} with sft.optim={optimizer}"
    allowed = ", ".join(known) or "nothing: it has no arguments of its own"
    return [Problem(key, found, allowed=allowed, fix=f"`{key}=null`")]
