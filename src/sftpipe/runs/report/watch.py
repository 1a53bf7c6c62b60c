"""The page of a run while it trains, written again every minute."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from sftpipe.runs.report.page import write_page
from sftpipe.terminal import console

EVERY_S = 60.0


def watch(folder: Path, every_s: float = EVERY_S) -> dict[str, Any]:
    """Write the page until its run is complete, or has stopped; Ctrl-C ends it sooner.

    A browser that shows the page loads it anew by itself.

    Args:
        folder: the run folder.
        every_s: seconds between two pages.

    Returns:
        The last page, as of `write_page`.

    Raises:
        SftpipeError: as of `write_page`.
    """
    try:
        while True:
            result = write_page(folder, refresh=round(every_s))
            if result["state"] != "running":
                break
            console.print(f"{time.strftime('%H:%M:%S')}  {result['sentence']}", markup=False)
            time.sleep(every_s)
    except KeyboardInterrupt:
        console.print("stopped looking; the run goes on", markup=False)
    return write_page(folder)
