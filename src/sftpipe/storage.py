"""Files that are whole or absent, and the one cache.

A file or folder appears under its name only when it is complete: it is written beside its place,
flushed to disk and renamed; a folder holds the hashes of its files. The cache keeps what can be
made again in such folders, named after a hash of everything that they depend on:

    SFTPIPE_CACHE/<kind>/<key>/         one entry, with `hashes.json` of its files
    SFTPIPE_CACHE/<kind>/<key>.lock     held by the process that builds, loads or evicts it
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
from filelock import FileLock, Timeout

from sftpipe.errors import Problem, StorageError
from sftpipe.terminal import console

HASHES = "hashes.json"  # {relative file: sha256}, the last file written into a published folder
# of a run folder: written before training, and after everything else
MANIFEST, COMPLETE = "manifest.json", "COMPLETE"
RECENT_S = 1.0  # clocks of file systems are coarse: a younger file can change and keep its time

CAP_BYTES = 20 * 2**30  # of all entries together; the least recently used ones go first
KINDS = ("rows", "encoded", "packed", "tokenizers", "downloads", "models", "isolation")
_LEFTOVER_S = 24 * 3600  # a partial file that nobody wrote to for so long is of a killed process

Loaded = TypeVar("Loaded")


def cache_dir() -> Path:
    """Folder for what can be made again: `SFTPIPE_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("SFTPIPE_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("sftpipe")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_cached(path: Path) -> str:
    """`sha256_file`, remembered in this process until the file changes.

    A change is another size, time or inode. The time includes ctime, because `cp -p`, `rsync -t`
    and `tar` set the time of the content back.
    """
    stat = path.stat()
    if time.time() - stat.st_ctime < RECENT_S:
        return sha256_file(path)
    times = (stat.st_mtime_ns, stat.st_ctime_ns)
    return _sha256_of(path.resolve(), stat.st_size, times, stat.st_ino)


@functools.cache
def _sha256_of(path: Path, _size: int, _times: tuple[int, int], _inode: int) -> str:
    return sha256_file(path)


def file_state(path: Path) -> tuple[int, int, int] | None:
    """Size, time of change and inode of a file, to see later if it changed; None without a file."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def sha256_text(text: str) -> str:
    """Hex SHA-256 of a string in UTF-8."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def digest(*parts: Any) -> str:
    """Hex SHA-256 of plain values, as a key of the cache."""
    return sha256_text(json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str))


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place, flush it to disk and rename it.

    A reader sees the old text or the new one, never a part.

    Raises:
        StorageError: there is no room, no permission, or no folder.
    """
    partial = _partial(path)
    with writing(path):
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            with contextlib.suppress(OSError):  # the folder may be gone, or read-only
                partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of readable JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def publish_folder(final: Path, needs: int | None = None) -> Iterator[Path]:
    """A folder to fill; on success it is hashed, flushed and renamed to `final`.

    It replaces what was there. On an exception nothing appears under `final`. Leftovers of killed
    processes start with a dot and are overwritten.

    Args:
        final: its parent exists.
        needs: bytes that it will have, about, for the message where there is no room for them.

    Raises:
        StorageError: there is no room, no permission, or no parent any more.
    """
    partial = _partial(final)
    with _filling(partial, final, needs):
        yield partial
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        write_json(
            partial / HASHES, {str(path.relative_to(partial)): sha256_file(path) for path in files}
        )
        for path in (*files, *(path for path in partial.rglob("*") if path.is_dir()), partial):
            _fsync(path)
        if final.exists():
            shutil.rmtree(final)
        partial.replace(final)
        _fsync(final.parent)


@contextmanager
def publish_files(folder: Path, needs: int | None = None) -> Iterator[Path]:
    """A folder to fill; on success its files are flushed and renamed into `folder`, one by one.

    Args and errors as of `publish_folder`.
    """
    partial = folder / ".partial"
    with _filling(partial, folder, needs):
        yield partial
        for path in sorted(partial.iterdir()):
            _fsync(path)
            path.replace(folder / path.name)
        _fsync(folder)


@contextmanager
def _filling(partial: Path, final: Path, needs: int | None) -> Iterator[None]:
    """Make a folder for a block to fill, and leave nothing of it."""
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield
    except Exception as error:
        written = _bytes_of(partial) if partial.is_dir() else 0
        problem = _gone(error, partial) or cannot_write(error, final, needs, written)
        if problem is None:
            raise
        raise StorageError(problem) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# --- what cannot be written -----------------------------------------------------------------------

_MAKE_ROOM = (
    "make room there, or write elsewhere: output_dir=DIR (runs), SFTPIPE_CACHE=DIR (the cache); "
    "`sft.resume_from_checkpoint=auto` goes on with an unfinished run"
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes `path`; what the disk refuses is a user's problem, and no bug.

    Raises:
        StorageError: there is no room, no permission, or no folder.
    """
    try:
        yield
    except Exception as error:
        problem = _gone(error, path) or cannot_write(error, path)
        if problem is None:
            raise
        raise StorageError(problem) from None


def _gone(error: Exception, path: Path) -> Problem | None:
    if _system_error(error) != errno.ENOENT or path.parent.is_dir():
        return None
    fix = "begin the run again, and leave its folder where it is"
    return Problem(str(path.parent), "the folder is gone", fix=fix)


def cannot_write(
    error: Exception, path: Path, needs: int | None = None, written: int = 0
) -> Problem | None:
    """The problem of a disk that refused a file; None where `error` is another.

    torch, safetensors and tokenizers raise errors of their own, whose texts alone say what the
    system said.

    Args:
        error: what was raised.
        path: the file or folder that was being written.
        needs: bytes that it needs, about, if that is known.
        written: bytes of it that were written, and are removed again.
    """
    if isinstance(error, StorageError):
        return error.problems[0]
    number = _system_error(error)
    if number in _CLOSED:
        return Problem(str(path), os.strerror(number), fix=_MAKE_ROOM)
    if number not in _FULL:
        return None
    there = next(folder for folder in path.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(there).free + written
    wanted = f"about {_megabytes(needs)}" if needs else f"more than {_megabytes(written)}"
    found = f"{os.strerror(number)}: {_room(wanted, free)}"
    return Problem(str(path), found, fix=_MAKE_ROOM)


def check_room(folder: Path, needs: int, fix: str) -> None:
    """Before anything is written: has the disk of `folder` room for so many bytes?

    Raises:
        StorageError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < needs:
        found = _room(f"about {_megabytes(needs)}", free)
        raise StorageError(Problem(str(folder.parent), found, fix=fix))


def _room(wanted: str, free: int) -> str:
    return f"{wanted} are needed, and {_megabytes(free)} are free"


def _system_error(error: Exception) -> int:
    """The number of the system's error behind an exception; 0 where there is none."""
    if isinstance(error, OSError):
        return error.errno or 0
    text = str(error)
    if match := re.search(r"\(os error (\d+)\)", text):  # of Rust
        return int(match[1])
    if "inline_container" not in text:  # of torch
        return 0
    named = (number for number in _CLOSED if os.strerror(number) in text)
    return next(named, errno.ENOSPC)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def is_whole(folder: Path) -> bool:
    """True if a published folder still holds exactly the bytes that were written."""
    try:
        hashes = json.loads((folder / HASHES).read_text(encoding="utf-8"))
        return bool(hashes) and all(
            sha256_cached(folder / name) == sha256 for name, sha256 in hashes.items()
        )
    except (OSError, ValueError, AttributeError):
        return False


# --- the cache ------------------------------------------------------------------------------------


def cached(
    kind: str,
    key: str,
    build: Callable[[Path], object],
    load: Callable[[Path], Loaded],
) -> Loaded:
    """Load the entry `key`, after building it if nobody has.

    Of several processes that ask at once, one builds and the others wait for it. An entry appears
    whole or not at all. Its bytes are compared with their hashes, once in a process, and a damaged
    entry is built again.

    Args:
        kind: one of `KINDS`.
        key: name of the entry: `digest` of everything that it depends on.
        build: fills an empty folder.
        load: reads a built folder; called while no other process can evict it.

    Raises:
        StorageError: there is no room for it, or no permission.
    """
    folder = cache_dir() / kind / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print(f"Waiting for another process that makes the same {kind} ...")
        lock.acquire()
    try:
        if not is_whole(folder):
            if folder.is_dir():
                what = f"an entry of {kind} was damaged, and is made again"
                console.print(f"cache     {what}: {folder}", markup=False)
            with publish_folder(folder) as partial:
                build(partial)
            _evict(keep=folder)
        os.utime(folder)
        return load(folder)
    finally:
        lock.release()


def _lock(folder: Path) -> FileLock:
    return FileLock(folder.with_name(f"{folder.name}.lock"))


def _evict(keep: Path) -> None:
    """Remove leftovers, then the least recently used entries until the rest fits `CAP_BYTES`."""
    paths = [path for kind in KINDS for path in (cache_dir() / kind).glob("*")]
    for path in (path for path in paths if path.name.startswith(".")):
        _remove_leftover(path)
    used, sizes = {}, {}
    for entry in (path for path in paths if path.is_dir() and not path.name.startswith(".")):
        with contextlib.suppress(FileNotFoundError):  # another process removes entries, too
            used[entry] = entry.stat().st_mtime
            sizes[entry] = _bytes_of(entry)
    total = sum(sizes.values())
    for entry in sorted(sizes, key=lambda entry: used[entry]):
        if total <= CAP_BYTES:
            return
        if entry != keep and _remove(entry):
            total -= sizes[entry]


def _bytes_of(folder: str | Path) -> int:
    """The sizes of all files below a folder; `Path.rglob` takes five times as long."""
    with os.scandir(folder) as entries:
        return sum(
            _bytes_of(entry.path)
            if entry.is_dir(follow_symlinks=False)
            else entry.stat(follow_symlinks=False).st_size
            for entry in entries
        )


def _remove_leftover(path: Path) -> None:
    """Remove what a killed process left: the folder of an entry, or a file outside of one."""
    with contextlib.suppress(OSError):  # Timeout is one: a process works on it
        if path.is_dir():
            entry = path.with_name(path.name.removeprefix(".").removesuffix(".partial"))
            with _lock(entry).acquire(timeout=0):
                shutil.rmtree(path, ignore_errors=True)
        elif time.time() - path.stat().st_mtime > _LEFTOVER_S:
            path.unlink()


def _remove(entry: Path) -> bool:
    """Remove an entry, unless a process builds or loads it.

    It is renamed first, so that a process that is killed here leaves no half of an entry.
    """
    partial = _partial(entry)
    try:
        with _lock(entry).acquire(timeout=0):
            shutil.rmtree(partial, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                entry.replace(partial)
            shutil.rmtree(partial, ignore_errors=True)
            return True
    except OSError:  # Timeout is one
        return False


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
