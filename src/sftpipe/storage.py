"""Files that are whole or absent, and the one cache.

A file or folder appears under its name only when it is complete: it is written beside its place,
hashed, flushed to disk and renamed. The cache keeps what can be made again in folders of this kind,
named after a hash of everything that they depend on:

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
from filelock import FileLock, Timeout

from sftpipe.terminal import console

HASHES = "hashes.json"  # {relative file: sha256}, the last file written into a published folder

CAP_BYTES = 20 * 2**30  # of all entries together; the least recently used ones go first
KINDS = ("rows", "encoded", "packed", "tokenizers", "downloads", "models", "isolation")

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
    """`sha256_file`, remembered within this process for as long as the file's size, time of change and inode stay the same."""
    stat = path.stat()
    return _sha256_of(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.lru_cache(maxsize=256)
def _sha256_of(path: Path, _size: int, _changed: int, _inode: int) -> str:
    return sha256_file(path)


def sha256_text(text: str) -> str:
    """Hex SHA-256 of a string in UTF-8."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def digest(*parts: Any) -> str:
    """Hex SHA-256 of plain values, as a key of the cache."""
    return sha256_text(json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str))


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place, flush it to disk and rename it: a reader sees the old text or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
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
    """A folder to fill; on success it is hashed, flushed and renamed to `final`, replacing what was there.

    On an exception nothing appears under `final`. Leftovers of killed processes start with a dot
    and are overwritten.
    """
    partial = final.with_name(f".{final.name}.partial")
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
    """Whether a published folder still holds exactly the bytes that were written."""
    try:
        hashes = json.loads((folder / HASHES).read_text(encoding="utf-8"))
        return bool(hashes) and all(
            sha256_cached(folder / name) == digest for name, digest in hashes.items()
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

    Of several processes that ask at once, one builds and the others wait. An entry appears whole or
    not at all.

    Args:
        kind: one of `KINDS`.
        key: name of the entry: `digest` of everything that it depends on.
        build: fills an empty folder.
        load: reads a built folder; called while no other process can evict it.
        verify: compare the bytes with their hashes first, and build a damaged entry anew.
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
    """Remove what killed builds left, and the entries that were not used for longest until the rest fits `CAP_BYTES`."""
    folders = [
        folder for kind in KINDS for folder in (cache_dir() / kind).glob("*") if folder.is_dir()
    ]
    for partial in (folder for folder in folders if folder.name.startswith(".")):
        _remove(partial, partial.with_name(partial.name.removeprefix(".").removesuffix(".partial")))
    used, sizes = {}, {}
    for entry in (folder for folder in folders if not folder.name.startswith(".")):
        with contextlib.suppress(FileNotFoundError):  # another process removes entries, too
            used[entry] = entry.stat().st_mtime
            sizes[entry] = sum(file.stat().st_size for file in entry.rglob("*") if file.is_file())
    total = sum(sizes.values())
    for entry in sorted(sizes, key=lambda entry: used[entry]):
        if total <= CAP_BYTES:
            return
        if entry != keep and _remove(entry, entry):
            total -= sizes[entry]


def _remove(folder: Path, entry: Path) -> bool:
    """Remove a folder of an entry, unless a process builds or loads the entry."""
    try:
        with _lock(entry).acquire(timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
            return True
    except Timeout:
        return False


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
