"""One process a run folder.

The lock is a POSIX record lock on the file `.lock`: the system lets go of it when its process
ends, however it ends, so no lock of a killed process is ever in the way. The file says who holds
it. It is touched every few seconds, for machines whose shared file system has no locks between
them.

A process must not open the file a second time while it holds the lock: closing it would let go.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sftpipe.errors import Problem, RunError
from sftpipe.runs.folder import RunFolder
from sftpipe.storage import writing

HEARTBEAT_S = 10.0
_RUN = "this run"
_SILENT_S = 120.0  # without a heartbeat for so long, the process of another machine may be gone


@contextmanager
def held(folder: Path, what: str = _RUN) -> Iterator[None]:
    """Hold the lock of a folder, which is made where it is missing, while the block runs.

    Args:
        folder: of a run, or of a sweep.
        what: is trained there, for messages.

    Raises:
        RunError: another process holds it; names process, machine and time.
        StorageError: the folder cannot be written.
    """
    file = RunFolder(folder).lock
    with writing(file):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(file, what)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(file, stop), daemon=True)
    try:
        with writing(file):
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_me()).encode(), 0)
        beat.start()
        yield
    finally:
        stop.set()
        with contextlib.suppress(OSError):  # the folder may be gone, or read-only
            file.unlink()
        os.close(descriptor)
        with contextlib.suppress(OSError):  # nothing was written: it ended before it began
            if is_new:
                folder.rmdir()


def holder(folder: Path) -> Problem | None:
    """Who trains the run of a folder; None where nobody does."""
    file = RunFolder(folder).lock
    try:
        descriptor = os.open(file, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return _busy(file, _read(descriptor))
    else:
        return _of_another_machine(file, _read(descriptor))
    finally:
        os.close(descriptor)


def forget(folder: Path) -> None:
    """Remove the lock that another machine has left, whose process is known to be gone.

    Who schedules processes there knows; a heartbeat that is missing is no proof.
    """
    file = RunFolder(folder).lock
    with contextlib.suppress(OSError, ValueError, TypeError):
        if dict(json.loads(file.read_bytes())).get("host", platform.node()) != platform.node():
            file.unlink()


def _acquire(file: Path, what: str) -> int:
    """An open file that is locked, and that still has its name."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            problem: Problem | None = _busy(file, _read(descriptor), what)
        else:
            problem = _of_another_machine(file, _read(descriptor), what)
        if problem is not None:
            os.close(descriptor)
            raise RunError(problem)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
        os.close(descriptor)  # its holder has removed it between the two calls


def _me() -> dict[str, Any]:
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return {"host": platform.node(), "pid": os.getpid(), "started": started}


def _read(descriptor: int) -> dict[str, Any]:
    try:
        return dict(json.loads(os.pread(descriptor, 10_000, 0)))
    except (OSError, ValueError, TypeError):
        return {}  # it is being written


def _busy(file: Path, who: dict[str, Any], what: str = _RUN) -> Problem:
    named = f"process {who['pid']} on {who['host']}" if who else "another process"
    since = f", since {who['started']}" if who else ""
    other = "or leave run out" if what == _RUN else "or leave hydra.sweep.dir out"
    fix = f"wait for it or stop it; or name another folder, {other}"
    return Problem(str(file.parent), f"{named} trains {what}{since}", fix=fix)


def _of_another_machine(file: Path, who: dict[str, Any], what: str = _RUN) -> Problem | None:
    """The problem of a file that another machine has left, whose processes nobody here can see."""
    if who.get("host", platform.node()) == platform.node():
        return None
    silent = time.time() - file.stat().st_mtime
    if silent < _SILENT_S:
        return _busy(file, who, what)
    found = (
        f"process {who['pid']} on {who['host']} has begun {what} at {who['started']}, and has "
        f"been silent for {silent / 60:.0f} minutes"
    )
    return Problem(str(file.parent), found, fix=f"if it is gone, delete {file}")


def _beat(file: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with contextlib.suppress(OSError):
            os.utime(file)
