"""The sections of the page of one run: what each shows, from what was found in the folder."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import yaml

from sftpipe.config.hydra import compose
from sftpipe.config.schema import to_plain
from sftpipe.data.preflight.columns import FINDINGS, SIZES, place
from sftpipe.runs.report.curves import AXES, Curve, read_curves
from sftpipe.runs.report.draw import Chart, chart, gains, histogram, packed_rows
from sftpipe.runs.report.found import Found
from sftpipe.runs.report.story import duration, losses_before_and_after
from sftpipe.runs.same_run import all_differences

PROMPTS = 40  # that are shown with their answers
PHASES = 12  # between the first and the last answers: the latest are shown
SPLITS = 12  # whose lengths are drawn
_ENDS = ("before", "after")
EXTREME = 6  # rows that are shown of those that won most, and of those that lost most
ANSWER = "model_response"  # the column of responses.json


def figures(found: Found) -> list[tuple[str, str, str]]:
    """The numbers at the top: (name, value, what else there is to say)."""
    shown = []
    for name, (before, after) in losses_before_and_after(found.metrics).items():
        shown.append((f"{name} loss", f"{after:.3f}", f"{before:.3f} before training"))
    if test := found.metrics.get("test"):
        shown.append(("test loss", f"{test['loss']:.3f}", f"perplexity {test['perplexity']:.2f}"))
    if train := found.metrics.get("train"):
        steps, tokens = train["steps"], train["tokens_per_s"]
        shown.append(("training", duration(train["runtime_s"]), f"{steps:,} optimizer steps"))
        shown.append(("speed", f"{tokens:,.0f} tokens/s", f"{train['rows_per_s']:.2f} rows/s"))
        shown.append(("peak memory", f"{train['peak_memory_bytes'] / 2**30:.1f} GiB", ""))
    return shown


def training(found: Found) -> dict[str, Any] | None:
    """The losses over each axis, and what else was logged over steps."""
    curves = read_curves(found.log)
    if not curves.losses:
        return None
    return {
        "losses": charts(curves.losses),
        "names": [curve.name for curve in curves.losses],
        "others": [
            (name, chart([curve], "step", small=True)) for name, curve in curves.others.items()
        ],
    }


def charts(curves: Sequence[Curve]) -> list[Chart]:
    """The losses over each axis."""
    return [chart(curves, axis) for axis in AXES]


# --- what came of it ------------------------------------------------------------------------------


def evaluation(found: Found) -> dict[str, Any] | None:
    """What `sftpipe evaluate` found: the verdict, each metric, rows that won and lost."""
    if not (result := found.evaluation):
        return None
    decides, counts = str(result["metric"]), [result[name] for name in ("wins", "losses", "ties")]
    shown = {
        "verdict": str(result["verdict"]),
        "sentence": str(result["sentence"]),
        "base": result["base"],
        "decides": decides,
        "counts": [f"{count:,}" for count in counts],
        "metrics": [_metric(name, one, decides) for name, one in result["metrics"].items()],
        "left_out": list(result.get("left_out") or ()),
        "tasks": [
            f"{task} {name}: {one['base']:.3f} → {one['run']:.3f}"
            for task, scores in (result.get("lm_eval") or {}).items()
            for name, one in scores.items()
        ],
        "rows": [],
        "gains": None,
    }
    if values := result.get("values"):  # 0.2.0 did not write them
        sign = 1 if result["higher_is_better"] else -1
        won = [sign * (run - old) for old, run in zip(values["base"], values["run"], strict=True)]
        title = f"test rows, by what they gained in {decides}"
        shown |= {"gains": gains(won, title), "rows": list(_rows(found, values, won))}
    return shown


def _metric(name: str, one: Mapping[str, Any], decides: str) -> dict[str, Any]:
    low, high = one["interval"]
    return {
        "name": name,
        "decides": name == decides,
        "cells": [
            (one["base"], f"{one['base']:.3f}"),
            (one["run"], f"{one['run']:.3f}"),
            (one["difference"], f"{one['difference']:+.3f}"),
            (low, f"{low:+.3f} to {high:+.3f}"),
            (one["rows"], f"{one['rows']:,}"),
        ],
        "span": span(low, high, one["difference"]),
    }


def span(low: float, high: float, at: float) -> dict[str, float]:
    """Where an interval is between its ends and zero, in percent from the left."""
    left, right = min(0.0, low), max(0.0, high)
    width = (right - left) or 1.0
    places = {"from": low, "to": high, "at": at, "zero": 0.0}
    return {name: round(100 * (value - left) / width, 1) for name, value in places.items()}


def _rows(
    found: Found, values: Mapping[str, Sequence[float]], won: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """The rows that lost most and those that won most, with what was answered."""
    order = sorted(range(len(won)), key=lambda at: won[at])
    told = len(found.responses) == len(won) == len(found.base_responses)
    for at in [*order[:EXTREME], *order[max(EXTREME, len(order) - EXTREME) :]]:
        asked = dict(found.responses[at]) if told else {}
        answer = asked.pop(ANSWER, None)
        base = found.base_responses[at].get(ANSWER) if told else None
        yield {
            "number": at,
            "change": f"{values['base'][at]:.3f} → {values['run'][at]:.3f}",
            "kind": "good" if won[at] > 0 else "bad" if won[at] < 0 else "",
            "said": {**asked, "base": base, "run": answer} if told else {},
        }


def answers(found: Found) -> dict[str, Any] | None:
    """What was answered before, during and after training, prompt by prompt."""
    asked: dict[str, dict[str, Any]] = {}
    for row in found.samples:
        one = asked.setdefault(row["prompt"], {"reference": row.get("reference"), "said": {}})
        one["said"][row["phase"]] = row["completion"]
    if not asked:
        return None
    shared = shared_beginning(list(asked))
    shown = []
    for prompt, one in list(asked.items())[:PROMPTS]:
        said = one["said"]
        ends = {phase: said[phase] for phase in _ENDS if phase in said}
        if "after" not in said and len(said) > len(ends):  # it has not ended: the latest answer
            phase, text = list(said.items())[-1]
            ends[phase] = text
        between = [(phase, text) for phase, text in said.items() if phase not in ends]
        shown.append(
            {
                "prompt": prompt.removeprefix(shared),
                "reference": one["reference"],
                "ends": list(ends.items()),
                "between": between[-PHASES:],
            }
        )
    phases = len({row["phase"] for row in found.samples} - set(_ENDS))
    left = [
        f"{len(asked) - PROMPTS:,} more prompts" if len(asked) > PROMPTS else "",
        f"the answers of {phases - PHASES:,} earlier times" if phases > PHASES else "",
    ]
    return {"shared": shared, "prompts": shown, "left": " and ".join(filter(None, left))}


def shared_beginning(prompts: Sequence[str]) -> str:
    """The lines that several prompts all begin with: they come from their format."""
    if len(prompts) < 2:
        return ""
    lines = zip(*(prompt.split("\n")[:-1] for prompt in prompts), strict=False)
    shared = takewhile(lambda same: len(set(same)) == 1, lines)
    return "".join(f"{line[0]}\n" for line in shared)


def judge(found: Found) -> dict[str, Any] | None:
    """What `sftpipe judge` was told; the scores as a histogram."""
    if not (result := found.judgement):
        return None
    told = [f"scored {result['scored']:,} rows, {result['unscored']:,} unscored"]
    scores = [row["score"] for row in result["rows"] if row.get("score") is not None]
    if result["mode"] == "score" and scores:
        low, high = result["interval"]
        told.append(f"mean {result['mean']:.1f} of 100, 95 % interval {low:.1f} to {high:.1f}")
        told.append(f"median {result['median']:.1f}")
    elif result["mode"] != "score":
        counts = f"won {result['wins']:,}, lost {result['losses']:,}, equal {result['ties']:,}"
        told.append(f"against {result['against']}: {counts}")
        if result["interval"]:
            low, high = result["interval"]
            told.append(f"win rate {result['win_rate']:.1%}, 95 % interval {low:.1%} to {high:.1%}")
    picture = histogram(_by_tens(scores), "score") if scores else None
    return {"model": result["model"], "told": "; ".join(told), "picture": picture}


def _by_tens(scores: Sequence[float]) -> list[list[int]]:
    """[[from, to, how many], ...] of scores from 0 to 100; 100 is in the last of ten."""
    counts = Counter(min(int(score) // 10, 9) for score in scores)
    return [[10 * ten, 10 * ten + 9, counts[ten]] for ten in range(10)]


# --- what it was made of --------------------------------------------------------------------------


def data(found: Found) -> dict[str, Any] | None:
    """The tables of the preflight, the lengths of rows, and the first packed rows."""
    if not (report := found.preflight):
        return None
    splits = report["splits"]
    packing = report.get("packing") or {}
    return {
        "tables": [
            {
                "columns": columns,
                "rows": [(place(one), [column.value(one) for column in columns]) for one in splits],
            }
            for columns in (SIZES, FINDINGS)
        ],
        "ends": list(report["end_tokens"]),
        "special": [
            (name, token, number) for name, (token, number) in report["special_tokens"].items()
        ],
        "padding": f"{report['padding_share']:.1%}",
        "warnings": [f"{one['where']}: {one['found']}" for one in report["warnings"]],
        "lengths": [
            (place(one), histogram(one["length_bins"], "tokens of a row"))
            for one in splits[:SPLITS]
            if one.get("length_bins")
        ],
        "packed": [
            (split, packed_rows(rows, packing.get("limit")))
            for split, rows in (packing.get("first") or {}).items()
        ],
        "left": f"Lengths of {len(splits) - SPLITS:,} more splits are in preflight.json."
        if len(splits) > SPLITS
        else "",
        "strategy": packing.get("strategy"),
        "packing": [
            f"{before:,} {split} rows packed in {after:,}, {packing['fill'].get(split, 0):.1%} full"
            for split, (before, after) in (packing.get("rows") or {}).items()
        ],
    }


def config(found: Found) -> dict[str, Any] | None:
    """What differs from the defaults, and all of it."""
    if not found.config:
        return None
    text = yaml.safe_dump(dict(found.config), sort_keys=False, allow_unicode=True)
    differences = all_differences(_defaults(), dict(found.config))
    return {"differences": [(one.key, one.now, one.before) for one in differences], "text": text}


@functools.cache  # a page that is watched is written every minute
def _defaults() -> dict[str, Any]:
    return to_plain(compose())


def environment(found: Found) -> list[tuple[str, Any]]:
    """What it was trained with and on."""
    manifest = found.manifest
    git = manifest.get("git") or {}
    commit = git.get("commit", "") + (" with changes" if git.get("dirty") else "")
    facts = {
        "begun": manifest.get("created"),
        "command": " ".join(manifest.get("command") or []),
        "base weights": manifest.get("weights"),
        "began from the adapter": manifest.get("adapter"),
        "data, SHA-256": (manifest.get("data") or {}).get("sha256"),
        "tokenizer, SHA-256": manifest.get("tokenizer_sha256"),
        "device": manifest.get("device"),
        "precision": ", ".join(f"{k} {v}" for k, v in (manifest.get("precision") or {}).items()),
        "repeats": (manifest.get("repeats") or {}).get("run"),
        "threads": manifest.get("threads"),
        "seed": manifest.get("seed"),
        **(manifest.get("hardware") or {}),
        **(manifest.get("versions") or {}),
        "git commit": commit,
    }
    return [(name, value) for name, value in facts.items() if value not in (None, "")]
