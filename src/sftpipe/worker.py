"""`python -m sftpipe.worker RUN_DIR`: train one planned run folder, in a process of its own.

A parent (a sweep, a launcher of several processes) has written the plan; nothing is composed here.
Exit codes are those of the command line. A worker whose parent is gone stops with a checkpoint.

One of several processes is a rank (`sftpipe.ranks`): the first speaks, and each leaves a note of
what ended it to its parent.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import sftpipe.ranks as ranks
from sftpipe.cli import told
from sftpipe.errors import ConfigError, Interrupted, Problem, SftpipeError
from sftpipe.launch import write_note
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.planned import read_planned
from sftpipe.sweeps.processes import PARENT

_LOOK_S = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Train the run of a planned folder; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if ranks.notes() is None:
        return told(lambda: _train(words))
    return _rank(words)


def _train(words: Sequence[str]) -> int:
    if len(words) != 1:
        found = " ".join(words) or "no folder"
        raise ConfigError(Problem("python -m sftpipe.worker", found, allowed="one run folder"))
    if parent := os.environ.get(PARENT):
        threading.Thread(target=_stop_without, args=(int(parent),), daemon=True).start()
    folder = Path(words[0])
    planned = read_planned(folder)
    from sftpipe.pipeline import train
    from sftpipe.tables import print_run

    run = train(planned.config, planned.plan, planned.hydra)
    if ranks.notes() is None:
        RunFolder(folder).planned.unlink(missing_ok=True)  # it has been done
        print_run(run)
    return 0


def _rank(words: Sequence[str]) -> int:
    """Train as one of several processes, of which the first alone has the terminal."""
    notes = ranks.notes()
    assert notes is not None
    if not ranks.is_first():
        said = os.open(notes / f"{ranks.rank()}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(said, descriptor)
    try:
        return _train(words)
    except BaseException as error:
        write_note(error, traceback.format_exc())
        if isinstance(error, Interrupted):
            ranks.meet()  # torchrun stops the others as soon as one has ended
        return error.exit_code if isinstance(error, SftpipeError) else 1


def _stop_without(parent: int) -> None:
    """A parent that was killed cannot stop its workers, which would train on unseen.

    It need not be the process that has started this one: a fork's is the server of the forks.
    """
    while _is_alive(parent):
        time.sleep(_LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's, or the system has no /proc
        return True
    return state != "Z"  # dead, and nobody has asked how it ended


if __name__ == "__main__":
    sys.exit(main())
