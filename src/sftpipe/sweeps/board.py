"""What people see while a sweep runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.live import Live
from rich.table import Table

from sftpipe.sweeps.folder import DONE
from sftpipe.sweeps.processes import Running, last_step
from sftpipe.terminal import console

_REFRESH_S = 1.0


class Board:
    """Shows the jobs that run.

    total: jobs in all; None where that is not known, 0 where several processes count them.
    """

    def __init__(self, total: int | None) -> None:
        self._total, self._ended = total, 0
        self._live: Live | None = None
        self._shown = 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the table while the block runs; it is gone from the terminal afterwards."""
        if not console.is_terminal:
            yield
            return
        with Live(console=console, transient=True, auto_refresh=False) as self._live:
            yield

    def began(self, name: str, computes_with: str, *, is_queued: bool = False) -> None:
        """A process starts, or waits in a queue."""
        what = "is queued" if is_queued else "starts"
        console.print(f"job       {name} {what} ({computes_with})", markup=False)

    def ended(self, name: str, state: str, note: str) -> None:
        """A job is over, or was so before."""
        self._ended += 1
        count = f"{self._ended}/{self._total}" if self._total else str(self._ended)
        count = "" if self._total == 0 else count
        shown = f"{state}: {note}" if note and state != DONE else f"{state}  {note}".rstrip()
        console.print(f"job {count:<6}{name} {shown}", markup=False)

    def update(self, running: Sequence[Running]) -> None:
        """Draw what runs now."""
        now = time.monotonic()
        if self._live is None or now - self._shown < _REFRESH_S:
            return
        self._shown = now
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
        for heading in ("running", "step", "", "seconds"):
            table.add_column(heading)
        for one in running:
            at = last_step(one)
            step, note = (f"{at[0]}/{at[1]}", at[2]) if at else ("-", "begins")
            table.add_row(one.work.name, step, note, f"{now - one.started:.0f}")
        self._live.update(table, refresh=True)
