"""Files that are whole or absent: hashes, flushing to disk, and folders that appear under their name only when they are complete."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

HASHES = "hashes.json"  # {relative file: sha256}, the last file written into a published folder


def cache_dir() -> Path:
    """Folder for what can be made again: `SFTPIPE_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("SFTPIPE_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("sftpipe")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_still(path: Path) -> str:
    """`sha256_file` of a file that nobody edits: a process reads it again only where size, time of change or inode are others."""
    stat = path.stat()
    return _sha256_of(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.lru_cache(maxsize=256)
def _sha256_of(path: Path, _size: int, _changed: int, _inode: int) -> str:
    return sha256_file(path)


def sha256_text(text: str) -> str:
    """Hex SHA-256 of a string in UTF-8."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


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

    On an exception nothing appears under `final`. Leftovers of killed processes start with a dot and are overwritten.
    """
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        write_json(partial / HASHES, {str(path.relative_to(partial)): sha256_file(path) for path in files})
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
        return bool(hashes) and all(sha256_still(folder / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
