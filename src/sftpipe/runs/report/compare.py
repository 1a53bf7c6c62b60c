"""Several runs beside each other: comparison.html."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sftpipe.errors import Problem, RunError, in_shell
from sftpipe.evaluation.compare import Difference, compare, judge_difference
from sftpipe.evaluation.metrics import mean_metric
from sftpipe.runs.report.curves import AXES, TRAINING, Curve, read_curves
from sftpipe.runs.report.draw import Chart, chart
from sftpipe.runs.report.found import MOST, Found, find
from sftpipe.runs.report.page import Guard, render
from sftpipe.runs.report.story import duration, losses_before_and_after
from sftpipe.runs.same_run import all_differences
from sftpipe.storage import write_text

PROMPTS = 40  # that are shown with their answers
LOSSES = 4  # that have curves


def write_comparison(folders: Sequence[Path]) -> dict[str, Any]:
    """Write comparison.html into the first of several run folders.

    Args:
        folders: from two to eight run folders, finished or not.

    Returns:
        page: the file.
        sentence: which run is better, and whether that is distinguishable.
        runs: {name: folder}.
        config, data: {what: value of each run} of what differs.
        missing: what cannot be read or shown.

    Raises:
        RunError: too few or too many folders, one twice, or one that is no run.
        StorageError: the page cannot be written.
    """
    _check(folders)
    runs = [find(folder) for folder in folders]
    names = short_names(folders)
    known = [
        f"{name}: {line}" for name, run in zip(names, runs, strict=True) for line in run.missing
    ]
    guard = Guard(known)
    told = guard("a run", lambda: which_is_better(names, runs)) or "Which is better is not known"
    differences = guard("config.yaml", lambda: config_differences(runs)) or {}
    of_data = guard("manifest.json or preflight.json", lambda: data_differences(runs)) or {}
    parts = {
        "figures": guard("metrics.json or evaluation.json", lambda: figures(runs)),
        "curves": guard("log.jsonl", lambda: charts(names, runs)),
        "answers": guard("samples.jsonl", lambda: answers(runs)),
        "commands": commands(runs),
    }
    result = {
        "page": str(runs[0].folder.comparison),
        "sentence": told,
        "runs": {name: str(folder) for name, folder in zip(names, folders, strict=True)},
        "config": differences,
        "data": of_data,
        "missing": guard.missing,
    }
    page = render("comparison.jinja", title=" · ".join(names), found=runs, **parts, **result)
    write_text(runs[0].folder.comparison, page)
    return result


def _check(folders: Sequence[Path]) -> None:
    where = f"run={','.join(map(str, folders))}"
    places = [folder.resolve() for folder in folders]
    if twice := [str(one) for one in folders if places.count(one.resolve()) > 1]:
        raise RunError(Problem(where, f"one run twice: {twice[0]}", fix="name each run once"))
    if len(folders) > MOST:
        allowed = f"2 to {MOST} runs beside each other"
        raise RunError(Problem(where, f"{len(folders)} runs", allowed=allowed))


def short_names(folders: Sequence[Path]) -> list[str]:
    """The ends of paths: as few folders of each as make all of them distinct."""
    parts = [folder.resolve().parts for folder in folders]
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            break
    return names


# --- which is better ------------------------------------------------------------------------------


def which_is_better(names: Sequence[str], runs: Sequence[Found]) -> str:
    """One sentence: the best run, and whether it is distinguishable from each of the others."""
    if rows := _values_of_rows(runs):
        return _by_rows(names, rows, runs[0])
    losses = [_validation_loss(one) for one in runs]
    told = [(loss, name) for loss, name in zip(losses, names, strict=True) if loss is not None]
    if len(told) < 2:
        return "Which is better is not known: fewer than two of the runs have a validation loss"
    (best, winner), *others = sorted(told)
    rest = ", ".join(f"{name} {loss:.3f}" for loss, name in others)
    same = len({_sha256(one) for one in runs}) == 1
    chance = "sftpipe evaluate on each of them tells whether that is beyond chance"
    caution = chance if same else "their data differ, so the losses are not of the same rows"
    return (
        f"{winner} has the lowest validation loss, {best:.3f} ({rest}); {caution.replace('`', '')}"
    )


def _validation_loss(found: Found) -> float | None:
    """After training, the mean over validation sets; None where there is none."""
    after = [last for _, last in losses_before_and_after(found.metrics).values()]
    return float(np.mean(after)) if after else None


def _values_of_rows(runs: Sequence[Found]) -> list[Sequence[float]]:
    """The values of rows that `sftpipe evaluate` measured; [] unless all are of the same rows."""
    results = [one.evaluation for one in runs]
    if not all("values" in result for result in results):
        return []
    kinds = {(result["metric"], len(result["values"]["run"])) for result in results}
    same_rows = len({_sha256(one) for one in runs}) == 1
    return [result["values"]["run"] for result in results] if len(kinds) == 1 and same_rows else []


def _by_rows(names: Sequence[str], rows: Sequence[Sequence[float]], first: Found) -> str:
    result = first.evaluation
    metric, higher = result["metric"], bool(result["higher_is_better"])
    means = [float(np.mean(values)) for values in rows]
    best = int(np.argmax(means) if higher else np.argmin(means))
    told = []
    for at, name in enumerate(names):
        if at != best:
            found = compare(mean_metric(rows[at]), mean_metric(rows[best]), result["seed"])
            told.append(f"{_outcome(found, len(rows[best]), higher)} {name}: {_numbers(found)}")
    rest = f"in the mean of the same {len(rows[best])} test rows"
    how = f"has the best {metric}, {means[best]:.3f} {rest}"
    return f"{names[best]} {how}; it is {'; '.join(told)}"


def _outcome(found: Difference, rows: int, higher: bool) -> str:
    outcome = judge_difference(found, rows, higher_is_better=higher)
    return "better than" if outcome == "better" else "not distinguishable from"


def _numbers(found: Difference) -> str:
    return f"{found.difference:+.3f}, 95 % interval {found.low:+.3f} to {found.high:+.3f}"


def _sha256(found: Found) -> Any:
    return (found.manifest.get("data") or {}).get("sha256")


# --- what differs ---------------------------------------------------------------------------------


def config_differences(runs: Sequence[Found]) -> dict[str, list[Any]]:
    """{key: value in each run} of the keys in which not all configs are the same."""
    first, *others = (dict(one.config) for one in runs)
    found = [{one.key: one for one in all_differences(first, other)} for other in others]
    before = {key: one.before for differences in found for key, one in differences.items()}
    return {
        key: [value, *(one[key].now if key in one else value for one in found)]
        for key, value in before.items()
        if key != "run"
    }


def data_differences(runs: Sequence[Found]) -> dict[str, list[Any]]:
    """{fact: value in each run} of the facts about data and weights that are not all the same."""
    facts = [dict(_data_facts(one)) for one in runs]
    every = dict.fromkeys(name for one in facts for name in one)
    table = {name: [one.get(name) for one in facts] for name in every}
    return {name: values for name, values in table.items() if any(v != values[0] for v in values)}


def _data_facts(found: Found) -> Iterator[tuple[str, Any]]:
    manifest = found.manifest
    yield "base weights", manifest.get("weights")
    yield "data, SHA-256", _sha256(found)
    yield "tokenizer, SHA-256", manifest.get("tokenizer_sha256")
    for split, rows in ((manifest.get("data") or {}).get("rows") or {}).items():
        yield f"{split} rows", rows
    sums: dict[str, list[int]] = {}
    for one in found.preflight.get("splits") or []:
        of = sums.setdefault(one["split"], [0, 0])
        of[0], of[1] = of[0] + one["tokens"], of[1] + one["trained_tokens"]
    for split, (tokens, trained) in sums.items():
        yield f"{split} tokens", tokens
        yield f"{split} tokens that are trained", trained


# --- numbers, curves, answers ---------------------------------------------------------------------


def figures(runs: Sequence[Found]) -> list[dict[str, Any]]:
    """A row for each number: {name, cells: [(value for sorting, text), ...], best: its runs}."""
    columns = [dict(_numbers_of(one)) for one in runs]
    every = dict.fromkeys(name for one in columns for name in one)
    table = []
    for name in every:
        cells = [one.get(name) for one in columns]
        lower = next(cell[2] for cell in cells if cell)
        values = [cell[0] for cell in cells if cell]
        best = None if lower is None or len(set(values)) < 2 else (min if lower else max)(values)
        table.append(
            {
                "name": name,
                "cells": [(cell[0], cell[1]) if cell else (None, "-") for cell in cells],
                "best": [at for at, cell in enumerate(cells) if cell and cell[0] == best],
            }
        )
    return table


def _numbers_of(found: Found) -> Iterator[tuple[str, tuple[float, str, bool | None]]]:
    """(name, (value, text, is lower better? None: neither is))."""
    for name, (_, after) in losses_before_and_after(found.metrics).items():
        yield f"{name} loss", (after, f"{after:.3f}", True)
    if test := found.metrics.get("test"):
        yield "test loss", (test["loss"], f"{test['loss']:.3f}", True)
    for name, one in (found.evaluation.get("metrics") or {}).items():
        low, high = one["interval"]
        text = f"{one['run']:.3f} ({low:+.3f} to {high:+.3f})"
        verdict = name == found.evaluation["metric"]
        higher = found.evaluation.get("higher_is_better", True) if verdict else None
        lower = True if name.endswith("loss") else (not higher if verdict else None)
        yield f"evaluated {name}", (one["run"], text, lower)
    if train := found.metrics.get("train"):
        yield "training loss", (train["loss"], f"{train['loss']:.3f}", None)
        yield "optimizer steps", (train["steps"], f"{train['steps']:,}", None)
        yield "training time", (train["runtime_s"], duration(train["runtime_s"]), None)
        yield "tokens/s", (train["tokens_per_s"], f"{train['tokens_per_s']:,.0f}", None)
        memory = train["peak_memory_bytes"] / 2**30
        yield "peak memory, GiB", (memory, f"{memory:.1f}", None)


def charts(names: Sequence[str], runs: Sequence[Found]) -> tuple[dict[str, list[Chart]], list[str]]:
    """({loss: its curves of all runs over each axis}, losses that are not drawn).

    A run has the same colour in all of them.
    """
    found = [{one.name: one for one in read_curves(run.log).losses} for run in runs]
    every = dict.fromkeys(name for one in found for name in one)
    nothing = Curve("", {axis: np.array([]) for axis in AXES}, np.array([]))
    losses = sorted(every, key=lambda name: name != TRAINING)
    drawn = {}
    for loss in losses[:LOSSES]:
        of_each = zip(found, names, strict=True)
        curves = [one.get(loss, nothing).named(name) for one, name in of_each]
        drawn[loss] = [chart(curves, axis) for axis in AXES]
    return drawn, losses[LOSSES:]


def answers(runs: Sequence[Found]) -> list[dict[str, Any]]:
    """What the runs answer to the prompts that at least two of them were asked, in the end."""
    asked: dict[str, dict[str, Any]] = {}
    for at, run in enumerate(runs):
        for row in run.samples:
            if row["phase"] != "before":
                one = asked.setdefault(
                    row["prompt"], {"reference": row.get("reference"), "said": [None] * len(runs)}
                )
                one["said"][at] = row["completion"]  # the last one stays
    shared = [{"prompt": prompt, **one} for prompt, one in asked.items()]
    return [one for one in shared if len(runs) - one["said"].count(None) > 1][:PROMPTS]


def commands(runs: Sequence[Found]) -> Mapping[str, str]:
    """{what for: command} of what tells more about these runs."""
    paths = [one.folder.path for one in runs]
    found = {}
    for one in runs:
        if one.state == "complete" and not one.evaluation:
            run = in_shell(f"run={one.folder.path}")
            found[f"measure {one.folder.path.name} row by row"] = f"sftpipe evaluate {run}"
    base = in_shell(f"evaluation.base={paths[1]}")
    found["measure the first against the second"] = (
        f"sftpipe evaluate {in_shell(f'run={paths[0]}')} {base}"
    )
    found["train the first again"] = f"sftpipe train --from {shlex.quote(str(paths[0]))}"
    return found
