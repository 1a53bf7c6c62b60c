"""What an adapter is asked to train must be in the model: PEFT skips most other entries in silence.

The names are matched as PEFT does, on the modules of the model, or of one that is built from its
config without weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from sftpipe.config.schema import TrainConfig
from sftpipe.errors import ModelError, Problem, nearest, override
from sftpipe.model.architecture import model_config
from sftpipe.model.weights import Weights

ALL = "all-linear"
_NAMING = (
    "target_modules",
    "modules_to_save",
    "exclude_modules",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "target_parameters",
    "trainable_token_indices",
)


def check_targets(cfg: TrainConfig, weights: Weights) -> None:
    """`check_matches` before anything is loaded, on a model without weights.

    Raises:
        ModelError: see `check_matches`.
    """
    if any(cfg.lora.get(name) not in (None, ALL, [], {}) for name in _NAMING):
        with torch.device("meta"):
            check_matches(
                cfg.lora, AutoModelForCausalLM.from_config(model_config(cfg.model, weights))
            )


def check_matches(lora: Mapping[str, Any], model: PreTrainedModel) -> None:
    """Each module, parameter, layer and token that the `lora` group names must be in the model.

    Args:
        lora: fields of `LoraConfig`.
        model: the base, before an adapter is attached.

    Raises:
        ModelError: a problem for each entry that matches nothing, with the names that are near.
    """
    modules = [name for name, _ in model.named_modules() if name]
    adapted = _adapted(lora, model, modules)
    problems = []
    for field in ("target_modules", "modules_to_save", "exclude_modules"):
        if lora.get(field) not in (None, ALL):
            problems += _check_names(field, lora[field], modules, model)
    for field in ("rank_pattern", "alpha_pattern"):
        problems += [
            _unmatched(f"lora.{field}", pattern, adapted, "adapted module")
            for pattern in lora.get(field) or ()
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in adapted)
        ]
    parameters = [name for name, _ in model.named_parameters()]
    for one in lora.get("target_parameters") or ():
        if not _ends_with(one, parameters):
            others = [other for other in lora["target_parameters"] if other != one]
            key = "lora.target_parameters"
            problems.append(_unmatched(key, one, parameters, "parameter", others))
    problems += _check_layers(lora, model, modules) + _check_tokens(lora, model, modules)
    if problems:
        raise ModelError(*problems)


def _ends_with(entry: str, names: Iterable[str]) -> bool:
    return any(f".{name}".endswith(f".{entry}") for name in names)


def _check_names(
    field: str, entries: Any, modules: list[str], model: PreTrainedModel
) -> list[Problem]:
    """A regular expression over whole names, or a list of the ends of names."""
    key, kind = f"lora.{field}", "module"
    if isinstance(entries, str):
        if any(re.fullmatch(entries, name) for name in modules):
            return []
        found = f"{entries!r} matches the name of no module as a whole, such as {modules[-2]}"
        fix = f"`{key}={ALL}`" if field == "target_modules" else f"`{key}=null`"
        return [Problem(key, found, allowed=_kinds(model), fix=fix)]
    entries = list(entries)
    return [
        _unmatched(key, entry, modules, kind, [one for one in entries if one != entry], model)
        for entry in entries
        if not _ends_with(entry, modules)
    ]


def _unmatched(
    key: str,
    entry: str,
    names: Iterable[str],
    kind: str,
    others: list[str] | None = None,
    model: PreTrainedModel | None = None,
) -> Problem:
    """The problem of an entry; with the others of its list, what to type instead."""
    depth = entry.count(".") + 1
    ends = dict.fromkeys(".".join(name.split(".")[-depth:]) for name in names)
    near = nearest(entry, ends)
    found = f"{entry!r} is the name of no {kind} of this model"
    allowed = "" if near else _kinds(model) if model else ", ".join(list(ends)[:12])
    if others is None:
        fix = f"did you mean {near}?" if near else f"leave {entry} out"
    else:
        kept = [*others, near] if near and near not in others else others
        empty = ALL if key == "lora.target_modules" else "null"
        fix = override(key, f"[{','.join(kept)}]" if kept else empty)
    return Problem(key, found, allowed=allowed, fix=fix)


def _kinds(model: PreTrainedModel) -> str:
    """The ends of the names of a model's linear layers, for a message."""
    linear = [name for name, one in model.named_modules() if _is_linear(one)]
    return ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear))


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _adapted(lora: Mapping[str, Any], model: PreTrainedModel, modules: list[str]) -> list[str]:
    """The modules that get an A and a B, without regard to layers; all where PEFT chooses them."""
    targets, excluded = lora.get("target_modules"), lora.get("exclude_modules") or ()
    if targets == ALL:
        output = model.get_output_embeddings()
        modules = [n for n, m in model.named_modules() if _is_linear(m) and m is not output]
    elif isinstance(targets, str):
        modules = [name for name in modules if re.fullmatch(targets, name)]
    elif targets is not None:
        modules = [name for name in modules if any(_ends_with(one, [name]) for one in targets)]
    if isinstance(excluded, str):
        return [name for name in modules if not re.fullmatch(excluded, name)]
    return [name for name in modules if not any(_ends_with(one, [name]) for one in excluded)]


def _check_layers(
    lora: Mapping[str, Any], model: PreTrainedModel, modules: list[str]
) -> list[Problem]:
    """`layers_to_transform` and `layers_pattern`."""
    wanted = lora.get("layers_to_transform")
    if wanted is None:
        return []
    patterns = lora.get("layers_pattern") or []
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    lists = [
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
    ]
    problems = []
    for pattern in patterns:
        if not any(re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name) for name in modules):
            others = [one for one in patterns if one != pattern]
            problem = _unmatched("lora.layers_pattern", pattern, lists, "list of layers", others)
            problems.append(problem)
    expressions = [rf"(?:^|.*?\.){one}\.(\d+)\." for one in patterns] or [r".*?\.[^.]*\.(\d+)\."]
    found = {
        int(match[1])
        for name in _adapted(lora, model, modules)
        if (match := next(filter(None, (re.match(one, name) for one in expressions)), None))
    }
    asked = [wanted] if isinstance(wanted, int) else list(wanted)
    missing = [index for index in asked if index not in found]
    if missing and found and not problems:
        kept = [index for index in asked if index in found] or [max(found)]
        what = f"{missing}: no adapted module is in such a layer"
        allowed = f"{min(found)} to {max(found)}"
        key = "lora.layers_to_transform"
        problems.append(Problem(key, what, allowed=allowed, fix=override(key, _list(kept))))
    return problems


def _list(values: Iterable[int]) -> str:
    return f"[{','.join(map(str, values))}]"


def _check_tokens(
    lora: Mapping[str, Any], model: PreTrainedModel, modules: list[str]
) -> list[Problem]:
    """`trainable_token_indices`: the tables, and the rows once the model has them all."""
    key, tokens = "lora.trainable_token_indices", lora.get("trainable_token_indices") or {}
    named = tokens if isinstance(tokens, Mapping) else {}
    problems = [
        _unmatched(key, name, modules, "module")
        for name in named
        if not _ends_with(str(name), modules)
    ]
    table = model.get_input_embeddings()
    if table.weight.device.type == "meta":
        return problems  # rows for new tokens come later
    lists = named.values() if named else [tokens]
    rows = table.num_embeddings
    if above := sorted({int(one) for some in lists for one in some if not 0 <= int(one) < rows}):
        found = f"{_list(above)}: the embedding has no such rows"
        problems.append(Problem(key, found, allowed=f"0 to {rows - 1}", fix="leave them out"))
    return problems
