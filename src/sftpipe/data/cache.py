"""What can be made again, kept by content: a folder named after a hash of all that it depends on, built once by whoever comes first."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

import sftpipe
from sftpipe.storage import cache_dir, publish_folder
from sftpipe.terminal import console

CAP_BYTES = 20 * 2**30  # of all entries together; the ones that were not used for longest go first
KINDS = ("rows", "encoded", "packed")

Loaded = TypeVar("Loaded")


def digest(*parts: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str).encode()).hexdigest()


@cache
def code_digest() -> str:
    """SHA-256 of the package's own data code and of the libraries that it calls: one version never meets another's rows."""
    import datasets
    import tokenizers
    import transformers

    files = sorted((Path(sftpipe.__file__).parent / "data").glob("*.py"))
    libraries = f"{datasets.__version__} {tokenizers.__version__} {transformers.__version__}"
    return hashlib.sha256(b"".join([libraries.encode(), *(file.read_bytes() for file in files)])).hexdigest()


def cached(kind: str, key: str, build: Callable[[Path], object], load: Callable[[Path], Loaded]) -> Loaded:
    """Load the entry `key`, after building it if nobody has.

    Of several processes that ask at once, one builds and the others wait. An entry appears whole or not at all.

    Args:
        kind: one of `KINDS`.
        key: `digest` of everything that the entry depends on.
        build: fills an empty folder.
        load: reads a built folder; called while no other process can evict it.
    """
    folder = cache_dir() / kind / key[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print(f"Waiting for another process that makes the same {kind} ...")
        lock.acquire()
    try:
        if not folder.is_dir():
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
    folders = [folder for kind in KINDS for folder in (cache_dir() / kind).glob("*") if folder.is_dir()]
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
