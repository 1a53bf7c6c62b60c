"""The ranked table of a sweep: rows for any report, CSV, JSON and the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from sftpipe.errors import in_shell, one_line
from sftpipe.runs.folder import RunFolder
from sftpipe.storage import write_json, write_text
from sftpipe.sweeps.folder import DONE, FAILED, KILLED, PRUNED, JobRecord, SweepFolder
from sftpipe.sweeps.metric import Metric

_COLOURS = {DONE: "green", FAILED: "red", KILLED: "red", PRUNED: "dim"}
_WIDEST = 60  # characters of an error in the table


@dataclass(frozen=True)
class Row:
    """A job of a sweep, in its table.

    rank: 1 is the best; None for a job that is not done, or has no metric.
    job: the name of its run folder in the sweep folder.
    state: done, failed, killed, stopped, pruned, running or waiting.
    values: {key: value} of what varies in the sweep: numbers, texts, booleans or None.
    metric: the value that ranks it; of a job that is not done, what it had so far.
    interval: 95 % interval of the difference to its base, where it was evaluated.
    seconds: of its training; of all its processes where it is not done.
    memory_bytes: the peak of its training.
    error: the last line of what went wrong; "" where nothing did.
    trial: its number in a search.
    command: what trains it again, alone.
    """

    rank: int | None
    job: str
    state: str
    values: dict[str, Any]
    metric: float | None
    interval: tuple[float, float] | None
    seconds: float | None
    memory_bytes: int | None
    error: str
    trial: int | None
    command: str


@dataclass(frozen=True)
class Table:
    """The jobs of a sweep, ranked.

    metric: what ranks them.
    varying: the keys of `Row.values`, in order.
    rows: the best first; behind those with a rank, those without.
    """

    metric: Metric
    varying: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def best(self) -> Row | None:
        """The best job; None where none has a rank."""
        return self.rows[0] if self.rows and self.rows[0].rank == 1 else None


def read_table(sweep: SweepFolder) -> Table:
    """The ranked jobs of a sweep, as they are now.

    Raises:
        RunError: the folder is no sweep, or a file of it is damaged.
    """
    asked = sweep.read()
    metric = Metric(asked.metric, asked.direction)
    jobs = list(sweep.jobs())
    keys = _varying(jobs)
    rows = [_row(sweep, job, keys, metric) for job in jobs]
    ranked = [row for row in rows if row.state == DONE and row.metric is not None]
    sign = 1 if metric.direction == "minimize" else -1
    ranked.sort(key=lambda row: (sign * (row.metric or 0.0), row.job))
    numbered = [replace(row, rank=rank) for rank, row in enumerate(ranked, 1)]
    others = [row for row in rows if row not in ranked]
    return Table(metric, keys, (*numbered, *others))


def _varying(jobs: Sequence[JobRecord]) -> tuple[str, ...]:
    """The keys that vary: in one command, or from one command to the next."""
    keys = dict.fromkeys(key for job in jobs for key in job.values)
    typed: dict[str, set[str]] = {}
    for job in jobs:
        for word in job.words:
            key, _, value = word.partition("=")
            typed.setdefault(key, set()).add(value)
    return tuple(keys | dict.fromkeys(key for key, values in typed.items() if len(values) > 1))


def _row(sweep: SweepFolder, job: JobRecord, keys: Iterable[str], metric: Metric) -> Row:
    files = sweep.run(job.name)
    whole = job.state == DONE
    train = files.read_metrics().get("train", {}) if whole and files.metrics.is_file() else {}
    return Row(
        rank=None,
        job=job.name,
        state=job.state,
        values={key: _value(job, files, key) for key in keys},
        metric=metric.of(files),
        interval=metric.interval(files),
        seconds=train.get("runtime_s", job.seconds or None),
        memory_bytes=train.get("peak_memory_bytes"),
        error="" if whole else job.error,
        trial=job.trial,
        command=f"sftpipe train {' '.join(map(in_shell, job.words))}",
    )


def _value(job: JobRecord, files: RunFolder, key: str) -> Any:
    """A value of a job: as it was typed, else as its config has it."""
    typed = {key: value for key, _, value in (word.partition("=") for word in job.words)}
    if key in typed:
        return _plain(typed[key])
    found: Any = files.read_config() if files.config.is_file() else {}
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if not isinstance(found, Mapping | list) else None


def _plain(text: str) -> Any:
    """A value of the command line as a number, a truth value, null or a text."""
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if value is None or isinstance(value, bool) else text.strip("'\"")


# --- written and shown ----------------------------------------------------------------------------


def write_table(sweep: SweepFolder, table: Table) -> None:
    """results.csv and results.json in the sweep folder.

    Raises:
        StorageError: there is no room, or no permission.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    name = table.metric.name
    head = ("rank", "job", "state", *table.varying, name, "low", "high")
    writer.writerow((*head, "seconds", "memory_bytes", "error", "command"))
    for row in table.rows:
        values = [row.values[key] for key in table.varying]
        low, high = row.interval or (None, None)
        numbers = (row.metric, low, high, row.seconds, row.memory_bytes)
        writer.writerow((row.rank, row.job, row.state, *values, *numbers, row.error, row.command))
    write_text(sweep.csv, text.getvalue())
    write_json(sweep.json, as_plain(table))


def as_plain(table: Table) -> dict[str, Any]:
    """The table as results.json holds it."""
    return {
        "metric": table.metric.name,
        "direction": table.metric.direction,
        "varying": list(table.varying),
        "best": table.best.command if table.best else None,
        "jobs": [vars(row) for row in table.rows],
    }


def print_table(sweep: SweepFolder, table: Table, out: Console) -> None:
    """The ranked table, and the command that trains the best again."""
    shown = RichTable(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    has_interval = any(row.interval for row in table.rows)
    for heading in ("#", *table.varying):
        shown.add_column(heading, no_wrap=True)
    shown.add_column(table.metric.name, justify="right", no_wrap=True)
    if has_interval:
        shown.add_column("against its base, 95 %", justify="right", no_wrap=True)
    for heading in ("seconds", "GiB"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("state")
    for row in table.rows:
        state = f"[{_COLOURS.get(row.state, 'yellow')}]{row.state}[/]"
        error = one_line(row.error)
        error = error if len(error) <= _WIDEST else f"{error[: _WIDEST - 3]}..."
        interval = f"[{row.interval[0]:+.3f}, {row.interval[1]:+.3f}]" if row.interval else "-"
        memory = row.memory_bytes
        shown.add_row(
            str(row.rank or "-"),
            *(escape(_text(row.values[key])) for key in table.varying),
            "-" if row.metric is None else f"{row.metric:.4f}",
            *((escape(interval),) if has_interval else ()),
            "-" if row.seconds is None else f"{row.seconds:.1f}",
            "-" if memory is None else f"{memory / 2**30:.1f}",
            f"{state} {escape(error)}".rstrip(),
        )
    out.print(shown)
    if table.best is not None:
        out.print("\nthe best again:", style="bold")
        out.print(f"  {table.best.command}", markup=False)
    out.print(f"\n{sweep.csv.name} and {sweep.json.name} are in {sweep.path}", markup=False)


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
