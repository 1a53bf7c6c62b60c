"""What `evaluation.early_stopping` asks of the `sft` group, and the metric of the best checkpoint.

transformers' callback needs evaluations, a checkpoint at each of them, and the best one loaded at
the end. What the user has not set is filled in; what the user has set differently is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sftpipe.config.schema import TrainConfig
from sftpipe.config.validation_sets import VALIDATION, log_prefix, named_sets
from sftpipe.errors import Problem, nearest, override

_OFF = "`evaluation.early_stopping=null`"
_INTERVALS = ("steps", "epoch")
_METRICS = ("loss", "perplexity", "mean_token_accuracy")  # those of `SFTPipeTrainer`


def stop_early(cfg: TrainConfig, is_default: Callable[[str], bool]) -> list[Problem]:
    """Fill in the keys of `cfg.sft` that early stopping needs.

    Args:
        cfg: a config whose keys and types are right.
        is_default: true for a dotted key whose value nobody chose.

    Returns:
        A problem for each pair of keys that disagree.
    """
    if cfg.evaluation is None or cfg.evaluation.early_stopping is None:
        return []
    chosen = {name: value for name, value in cfg.sft.items() if not is_default(f"sft.{name}")}
    problems = _check_switches(chosen)
    cfg.sft["load_best_model_at_end"] = True
    if str(chosen.get("metric_for_best_model")).endswith("perplexity"):
        # transformers takes all but a loss for better where it is greater
        cfg.sft.setdefault("greater_is_better", False)
    asked = [chosen.get(name) for name in ("eval_strategy", "save_strategy")]
    strategy = next((one for one in asked if one in _INTERVALS), "steps")
    if chosen.get("eval_strategy") == "no":
        found = "'no', and without evaluations nothing can stop early"
        fix = f"`sft.eval_strategy={strategy}`, or {_OFF}"
        return [*problems, Problem("evaluation.early_stopping + sft.eval_strategy", found, fix=fix)]
    saves = chosen.get("save_strategy", strategy)
    if saves != strategy:
        found = f"{strategy!r} and {saves!r}, and early stopping saves where it evaluates"
        fixes = [f"`sft.save_strategy={strategy}`"]
        fixes += [f"`sft.eval_strategy={saves}`"] if saves in _INTERVALS else []
        where = "sft.eval_strategy + sft.save_strategy"
        return [*problems, Problem(where, found, fix=", or ".join([*fixes, _OFF]))]
    cfg.sft["eval_strategy"] = cfg.sft["save_strategy"] = strategy
    return [*problems, *(_fill_steps(cfg.sft, chosen) if strategy == "steps" else [])]


def _fill_steps(sft: dict[str, Any], chosen: Mapping[str, Any]) -> list[Problem]:
    """`eval_steps` and `save_steps`: each is the other one, where only that is chosen."""
    evaluates = chosen.get("eval_steps") or chosen.get("save_steps", sft.get("save_steps"))
    saves = chosen.get("save_steps", evaluates)
    sft["eval_steps"], sft["save_steps"] = evaluates, saves
    # transformers allows a multiple, but then the best weights may be those of no checkpoint
    if saves and saves == evaluates:
        return []
    found = f"{evaluates} and {saves}, and early stopping saves where it evaluates"
    fixes = [f"`sft.save_steps={evaluates or 100}`"]
    fixes += [f"`sft.eval_steps={saves}`"] if saves else []
    where = "sft.eval_steps + sft.save_steps"
    return [Problem(where, found, fix=", or ".join([*fixes, _OFF]))]


def _check_switches(chosen: Mapping[str, Any]) -> list[Problem]:
    problems = []
    for name, wanted, found in (
        ("load_best_model_at_end", True, "false, and early stopping ends with the best checkpoint"),
        ("eval_on_start", False, "true, and a resumed run would count that evaluation again"),
    ):
        if chosen.get(name, wanted) is not wanted:
            fix = f"`sft.{name}={str(wanted).lower()}`, or {_OFF}"
            problems.append(Problem(f"evaluation.early_stopping + sft.{name}", found, fix=fix))
    return problems


def choose_metric(cfg: TrainConfig) -> list[Problem]:
    """Fill in the metric of the best checkpoint where validation sets have names: the first's loss.

    Returns:
        The problem of a metric that no evaluation gives.
    """
    sft, names = cfg.sft, named_sets(cfg.dataset)
    if not sft.get("load_best_model_at_end") and sft.get("save_strategy") != "best":
        return []
    key, metric = "metric_for_best_model", sft.get("metric_for_best_model")
    prefixes = [log_prefix(f"{VALIDATION}.{name}") for name in names] or ["eval"]
    known = [f"{prefix}_{name}" for prefix in prefixes for name in _METRICS]
    if metric is None:
        sft |= {key: known[0]} if names else {}
        return []
    if metric in known or f"eval_{metric}" in known:
        return []
    fix = override(f"sft.{key}", nearest(str(metric), known) or known[0])
    found = f"no evaluation gives {metric!r}"
    return [Problem(f"sft.{key}", found, allowed=", ".join(known), fix=fix)]
