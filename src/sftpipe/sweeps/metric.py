"""The number that ranks the runs of a sweep."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sftpipe.config.validation_sets import validation_losses
from sftpipe.errors import ConfigError, Problem, RunError, nearest, override, wrong_choice
from sftpipe.runs.folder import RunFolder, whole_lines
from sftpipe.runs.summary import validation_parts

BEST_LOSS = "validation.loss"  # the lowest that was measured, and the default
_EVALUATED = "evaluation."
DIRECTIONS = ("minimize", "maximize")


@dataclass(frozen=True)
class Metric:
    """What ranks a sweep.

    name: `validation.loss`; a path of metrics.json such as `test.after.loss`; or `evaluation.NAME`,
        a metric of `sftpipe evaluate`.
    direction: minimize or maximize.
    """

    name: str = BEST_LOSS
    direction: str = "minimize"

    def of(self, files: RunFolder) -> float | None:
        """The value of a run; None where it has none."""
        if self.name == BEST_LOSS:
            value = min((loss for _, loss in losses(files)), default=None)
        else:
            value = _numbers(files).get(self.name)
        return value if value is not None and math.isfinite(value) else None

    def interval(self, files: RunFolder) -> tuple[float, float] | None:
        """95 % interval of the difference to the base, where `sftpipe evaluate` measured it."""
        name = "validation_loss" if self.name == BEST_LOSS else self.name.removeprefix(_EVALUATED)
        if self.name != BEST_LOSS and not self.name.startswith(_EVALUATED):
            return None
        found = _evaluated(files).get(name, {}).get("interval")
        return (float(found[0]), float(found[1])) if found else None


def metric_of(sweeper: Mapping[str, Any], launcher: Mapping[str, Any]) -> Metric:
    """The metric of a sweep: the sweeper's, else the launcher's, else the best validation loss.

    Raises:
        ConfigError: the direction is none.
    """
    for group, keys in (("hydra.sweeper", sweeper), ("hydra.launcher", launcher)):
        if keys.get("metric"):
            direction = str(keys.get("direction") or DIRECTIONS[0])
            if direction not in DIRECTIONS:
                key = f"{group}.direction"
                raise ConfigError(wrong_choice(key, direction, DIRECTIONS, key))
            return Metric(str(keys["metric"]), direction)
    return Metric()


def losses(files: RunFolder) -> Iterator[tuple[int, float]]:
    """(step, validation loss) of a run, as far as it is; the mean of several validation sets.

    What was measured before the first step is left out.
    """
    for entry in _log(files):
        found = list(validation_losses(entry).values())
        if found and entry.get("step"):
            yield int(entry["step"]), sum(found) / len(found)
    if files.complete.is_file() and files.metrics.is_file():
        metrics = files.read_metrics()
        sets = validation_parts(metrics.get("validation") or {}).values()
        after = [one["after"]["loss"] for one in sets if "after" in one]
        if after:
            yield int(metrics["train"]["steps"]), sum(after) / len(after)


def _log(files: RunFolder) -> list[dict[str, Any]]:
    """The whole lines of a log that may be growing."""
    return whole_lines(files.log.read_text(encoding="utf-8"))[0] if files.log.is_file() else []


def _numbers(files: RunFolder) -> dict[str, float]:
    """{metric that `name` can be: value} of a run."""
    found = dict(_leaves(files.read_metrics(), "")) if files.metrics.is_file() else {}
    found |= {
        f"{_EVALUATED}{name}": float(figures["run"])
        for name, figures in _evaluated(files).items()
        if isinstance(figures.get("run"), int | float)
    }
    return found


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)


def _evaluated(files: RunFolder) -> dict[str, Any]:
    try:
        return dict(json.loads(files.evaluation.read_text(encoding="utf-8"))["metrics"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def check_reported(metric: Metric, finished: list[RunFolder], key: str) -> None:
    """Do finished runs have the metric?

    Args:
        metric: of the sweep.
        finished: whole runs.
        key: that names the metric, for messages.

    Raises:
        RunError: there are finished runs, and none of them does; names what they have.
    """
    if not finished or any(metric.of(files) is not None for files in finished):
        return
    names = sorted({name for files in finished for name in _numbers(files)})
    match = nearest(metric.name, names)
    raise RunError(
        Problem(
            f"the metric {metric.name}",
            "no job reports it",
            allowed=", ".join((*((BEST_LOSS,) if metric.name != BEST_LOSS else ()), *names)),
            fix=override(key, match or "train.loss"),
        )
    )
