"""sweep.html: the ranked table of a sweep, and its metric against each parameter."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from sftpipe.runs.report.draw import history, scatter
from sftpipe.runs.report.page import render
from sftpipe.runs.report.story import duration
from sftpipe.storage import write_text
from sftpipe.sweeps.folder import SweepFolder
from sftpipe.sweeps.search import importances
from sftpipe.sweeps.table import Row, Table

PLOTS = 12  # parameters that have a picture


def write_page(sweep: SweepFolder, table: Table) -> Path:
    """Write sweep.html into the folder of a sweep, finished or not; returns the file.

    Raises:
        StorageError: there is no room, or no permission.
    """
    page = render(
        "sweep.jinja",
        title=sweep.path.name,
        folder=sweep.path,
        sentence=sentence(table),
        table=table,
        rows=[_cells(sweep, row, table) for row in table.rows],
        intervals=any(row.interval for row in table.rows),
        plots=plots(table),
        left=list(table.varying[PLOTS:]),
        search=_search(sweep, table),
        command=table.best.command if table.best else "",
        going_on=sweep.continuing.strip("`"),
    )
    write_text(sweep.page, page)
    return sweep.page


def sentence(table: Table) -> str:
    """One sentence: how many jobs ended how, and which is the best."""
    counts = Counter(row.state for row in table.rows)
    states = ", ".join(f"{count:,} {state}" for state, count in counts.most_common())
    jobs = "1 job" if len(table.rows) == 1 else f"{len(table.rows):,} jobs"
    told = f"{jobs}: {states or 'none has begun'}"
    if table.best is None or table.best.metric is None:
        return f"{told}; none of them has a {table.metric.name} yet."
    low_or_high = "lowest" if table.metric.direction == "minimize" else "highest"
    value = f"{low_or_high} {table.metric.name}, {table.best.metric:.4g}"
    return f"{told}; {table.best.job} has the {value}."


def _cells(sweep: SweepFolder, row: Row, table: Table) -> dict[str, Any]:
    report = sweep.run(row.job).report
    low_to_high = f"{row.interval[0]:+.3f} to {row.interval[1]:+.3f}" if row.interval else "-"
    memory = row.memory_bytes
    return {
        "rank": row.rank,
        "job": row.job,
        "page": f"{row.job}/{report.name}" if report.is_file() else "",
        "state": row.state,
        "values": [row.values[key] for key in table.varying],
        "metric": (row.metric, "-" if row.metric is None else f"{row.metric:.4f}"),
        "interval": low_to_high,
        "time": (row.seconds, "-" if row.seconds is None else duration(row.seconds)),
        "memory": (memory, "-" if memory is None else f"{memory / 2**30:.1f}"),
        "error": row.error,
    }


def plots(table: Table) -> list[dict[str, Any]]:
    """The metric against each parameter, of the jobs that have both."""
    found = []
    for key in table.varying[:PLOTS]:
        known = [(row.values[key], row.metric) for row in table.rows if row.metric is not None]
        if known:
            pictures, legend = scatter(known)
            found.append({"key": key, "pictures": pictures, "legend": legend})
    return found


def _search(sweep: SweepFolder, table: Table) -> dict[str, Any] | None:
    """The history of a search, and what its metric depends on; None of a grid."""
    trials = sorted(
        (row.trial, row.metric)
        for row in table.rows
        if row.trial is not None and row.metric is not None and math.isfinite(row.metric)
    )
    if not trials:
        return None
    try:
        shares = importances(sweep)
    except ImportError:  # the sweep is looked at where they are not installed
        shares = {}
    return {
        "history": history(trials, lowest=table.metric.direction == "minimize"),
        "importances": [
            (key, f"{share:.0%}", round(100 * share, 1)) for key, share in shares.items()
        ],
    }
