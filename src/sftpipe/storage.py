"""Files that are whole or absent, and the one cache.

A file or folder appears under its name only when it is complete: it is written beside its place,
flushed to disk and renamed; a folder holds the hashes of its files. The cache keeps what can be
made again in such folders, named after a hash of everything that they depend on:

    SFTPIPE_CACHE/<kind>/<key>/         one entry, with `hashes.json` of its files
    SFTPIPE_CACHE/<kind>/<key>.lock     held by the process that builds, loads or evicts it
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
from filelock import FileLock, Timeout

from sftpipe.terminal import console

HASHES = "hashes.json"  # {relative file: sha256}, the last file written into a published folder
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
    """
    partial = _partial(path)
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of readable JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def publish_folder(final: Path) -> Iterator[Path]:
    """A folder to fill; on success it is hashed, flushed and renamed to `final`.

    It replaces what was there. On an exception nothing appears under `final`. Leftovers of killed
    processes start with a dot and are overwritten.
    """
    partial = _partial(final)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
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
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def publish_files(folder: Path) -> Iterator[Path]:
    """A folder to fill; on success its files are flushed and renamed into `folder`, one by one."""
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in sorted(partial.iterdir()):
            _fsync(path)
            path.replace(folder / path.name)
        _fsync(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
    *,
    verify: bool = False,
) -> Loaded:
    """Load the entry `key`, after building it if nobody has.

    Of several processes that ask at once, one builds and the others wait for it. An entry appears
    whole or not at all.

    Args:
        kind: one of `KINDS`.
        key: name of the entry: `digest` of everything that it depends on.
        build: fills an empty folder.
        load: reads a built folder; called while no other process can evict it.
        verify: compare the bytes with their hashes first, and build a damaged entry again.
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
        if not (is_whole(folder) if verify else folder.is_dir()):
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
