"""Tasks of EleutherAI's lm-evaluation-harness (package `lm-eval`): `evaluation.lm_eval`."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftpipe.errors import ConfigError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Scores = dict[str, float]  # {metric: value}; a metric of standard errors ends in `_stderr`

_KEY = "evaluation.lm_eval"
_NAME = re.compile(r"^task:\s*[\"']?([\w.-]+)", re.MULTILINE)


def check_tasks(tasks: Sequence[str]) -> None:
    """Ask for what the tasks need before anything is loaded.

    Raises:
        ConfigError: the package is not installed, a file of a task is missing or names none, or it
            would run code.
    """
    if not tasks:
        return
    problems = []
    if importlib.util.find_spec("lm_eval") is None:
        fix = "`pip install lm-eval`, without its extras, or `evaluation.lm_eval=[]`"
        problems.append(Problem(_KEY, "the package lm-eval is not installed", fix=fix))
    for task in filter(_is_file, tasks):
        path = Path(task).expanduser()
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not path.is_file():
            problems.append(Problem(_KEY, f"no file {task}", fix="name a file that exists"))
        elif _NAME.search(text) is None:
            found, fix = f"{task} names no task", "begin it with task: NAME"
            problems.append(Problem(_KEY, found, fix=fix))
        elif "!function" in text:
            found = f"{task} runs code of its own (!function)"
            fix = "write it without, or install the task as a package of lm-eval and give its name"
            problems.append(Problem(_KEY, found, fix=fix))
    if problems:
        raise ConfigError(*problems)


def task_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    task: str,
    *,
    batch_size: int,
    seed: int,
) -> Scores:
    """What a model reaches in one task.

    Args:
        model: on its device.
        tokenizer: of the model.
        task: the name of a task of the package, or a YAML file of one.
        batch_size: rows that are computed together.
        seed: of the examples that a task draws.

    Raises:
        ConfigError: there is no such task, or its data cannot be read.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    name, folder = _name_and_folder(task)
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    try:
        results = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=[name],
            task_manager=TaskManager(include_path=folder),
            log_samples=False,
            bootstrap_iters=1000,
            **dict.fromkeys(seeds, seed),
        )
    except (KeyError, ValueError, OSError, ConnectionError) as error:
        fix = "a task that `lm-eval ls tasks` lists, or a YAML file of your own"
        raise ConfigError(Problem(_KEY, f"{task}: {error}", fix=fix)) from None
    assert results is not None  # of the first process
    # `,none` is the filter that filters nothing
    return {
        metric.removesuffix(",none"): float(value)
        for metric, value in results["results"][name].items()
        if isinstance(value, (int, float))
    }


def _name_and_folder(task: str) -> tuple[str, str | None]:
    """The name of a task, and where its file lies, if it has one of its own."""
    if not _is_file(task):
        return task, None
    path = Path(task).expanduser()
    found = _NAME.search(path.read_text(encoding="utf-8"))
    assert found is not None  # check_tasks
    return found[1], str(path.parent)


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def as_table(before: Scores, after: Scores) -> dict[str, dict[str, Any]]:
    """{metric: {base, run, stderr}} of one task."""
    return {
        name: {"base": before[name], "run": value, "stderr": after.get(_stderr(name))}
        for name, value in after.items()
        if "_stderr" not in name and name in before
    }


def _stderr(metric: str) -> str:
    """The name of a metric's standard error: `acc_stderr`, and behind a filter `f1_stderr,x`."""
    name, comma, rest = metric.partition(",")
    return f"{name}_stderr{comma}{rest}"
