"""A log as curves: each quantity over steps, epochs and tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sftpipe.config.validation_sets import validation_losses

AXES = ("step", "epoch", "tokens")
TRAINING = "training"
# of an entry of the log: what is drawn beside the losses, as (key, name)
QUANTITIES = (
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
    ("tokens_per_s", "tokens a second"),
    ("peak_memory_bytes", "peak memory, GiB"),
    ("mean_token_accuracy", "tokens guessed right"),
)


@dataclass(frozen=True)
class Curve:
    """One quantity of a log, N entries.

    name: for people.
    places: {axis: where the entries are on it, (N,)}.
    values: (N,); NaN where an entry has no finite number.
    alone: each value stands for itself, and nothing is known between two of them.
    """

    name: str
    places: Mapping[str, np.ndarray]
    values: np.ndarray
    alone: bool = False

    def named(self, name: str) -> Curve:
        """The same under another name."""
        return Curve(name, self.places, self.values, self.alone)


@dataclass(frozen=True)
class Curves:
    """The curves of a log.

    losses: of training, then of each validation set.
    others: {name: curve} of what else was logged while training.
    """

    losses: Sequence[Curve]
    others: Mapping[str, Curve]


def read_curves(history: Sequence[Mapping[str, Any]]) -> Curves:
    """The curves of the entries of log.jsonl; an entry without a step is left out."""
    entries = [entry for entry in history if _number(entry.get("step")) is not None]
    training = [entry for entry in entries if "loss" in entry]
    seen = _tokens_at(training)
    losses = [_curve(TRAINING, training, [entry["loss"] for entry in training], seen)]
    validation: dict[str, list[tuple[Mapping[str, Any], Any]]] = {}
    for entry in entries:
        for name, loss in validation_losses(entry).items():
            validation.setdefault(name, []).append((entry, loss))
    for name, measured in validation.items():
        of, found = zip(*measured, strict=True)
        losses.append(_curve(name, of, found, seen, alone=True))
    others = {}
    for key, name in QUANTITIES:
        logged = [entry for entry in training if key in entry]
        scale = 2**30 if key.endswith("_bytes") else 1
        values = [_number(entry[key], math.nan) / scale for entry in logged]
        others[name] = _curve(name, logged, values, seen)
    return Curves(
        [curve for curve in losses if len(curve.values)],
        {name: curve for name, curve in others.items() if len(curve.values)},
    )


def _curve(
    name: str,
    entries: Sequence[Mapping[str, Any]],
    values: Sequence[Any],
    seen: tuple[Sequence[float], Sequence[float]],
    *,
    alone: bool = False,
) -> Curve:
    steps = np.array([_number(entry["step"]) for entry in entries], dtype=float)
    places = {
        "step": steps,
        "epoch": np.array([_number(entry.get("epoch"), math.nan) for entry in entries]),
        "tokens": np.interp(steps, *seen) if len(steps) else steps,
    }
    numbers = np.array([_number(value, math.nan) for value in values], dtype=float)
    return Curve(name, places, numbers, alone)


def _tokens_at(training: Sequence[Mapping[str, Any]]) -> tuple[Sequence[float], Sequence[float]]:
    """(steps, training tokens seen at them); between two entries steps count evenly."""
    known = [
        (_number(entry["step"]), tokens)
        for entry in training
        if (tokens := _number(entry.get("num_tokens"))) is not None
    ]
    steps, tokens = zip((0.0, 0.0), *known, strict=True)
    return steps, tokens


def _number(value: Any, otherwise: Any = None) -> Any:
    """A finite number as a float, or what to take in its place."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return otherwise
    return float(value)


@dataclass(frozen=True)
class Group:
    """Neighbouring entries of a curve that are drawn as one.

    place: the middle of them.
    mean, low, high: of their values that are numbers; NaN where none is.
    """

    place: float
    mean: float
    low: float
    high: float


def thin(curve: Curve, axis: str, most: int) -> list[Group]:
    """A curve in at most `most` groups of as many entries each."""
    size = max(1, -(-len(curve.values) // most))
    return list(_groups(curve.places[axis], curve.values, size))


def _groups(places: np.ndarray, values: np.ndarray, size: int) -> Iterator[Group]:
    for start in range(0, len(values), size):
        at, part = places[start : start + size], values[start : start + size]
        at, known = at[np.isfinite(at)], part[np.isfinite(part)]
        if not len(at):
            continue
        if len(known):
            yield Group(
                float(at.mean()), float(known.mean()), float(known.min()), float(known.max())
            )
        else:
            yield Group(float(at.mean()), math.nan, math.nan, math.nan)
