"""A data file that a URL names: fetched once, then read from disk."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from sftpipe.errors import DataError, Problem, one_line
from sftpipe.storage import HASHES, cached, digest
from sftpipe.terminal import console

TIMEOUT_S = 30
_CHUNK_BYTES = 2**20


def fetched(name: str) -> str:
    """The path of a data file: `name` itself, or the local copy of a URL.

    A file of the same name in the working folder comes before the copy in the cache. What is in
    neither is downloaded into the cache, with a hash of its bytes; a damaged copy is fetched again.

    Raises:
        DataError: the URL names no file, or gives none; says how to work without the network.
    """
    if not name.startswith(("http://", "https://")):
        return name
    file_name = unquote(urlsplit(name).path).rpartition("/")[2]
    if not file_name or file_name.startswith(".") or file_name == HASHES:
        raise DataError(
            Problem(
                "dataset.data_files",
                f"{name} names no file",
                allowed="a URL that ends in the name of a file",
            )
        )
    if Path(file_name).is_file():
        return file_name
    return cached(
        "downloads",
        digest(name),
        lambda folder: _download(name, folder / file_name),
        lambda folder: str(folder / file_name),
    )


def _download(url: str, file: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, file.open("wb") as out:
            length = response.headers.get("Content-Length")
            expected = int(length) if length else None
            size = _copy(response, out, file.name, expected)
        if expected is not None and size != expected:
            raise urllib.error.URLError(
                f"the connection broke off after {size:,} of {expected:,} bytes"
            )
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        reason = one_line(getattr(error, "reason", error))[:160]
        found = f"{url} cannot be fetched ({reason})"
        fix = f"go online; or put {file.name} into the working folder; or dataset.data_files=FILE"
        raise DataError(Problem("dataset.data_files", found, fix=fix)) from None


def _copy(response: IO[bytes], out: IO[bytes], name: str, expected: int | None) -> int:
    """Copies all bytes and shows how far it is; returns their number."""
    size = 0
    of_all = f" of {expected / 1e6:.1f}" if expected else ""
    with console.status(f"Fetching {name} ...") as status:
        while chunk := response.read(_CHUNK_BYTES):
            out.write(chunk)
            size += len(chunk)
            status.update(f"Fetching {name}: {size / 1e6:.1f}{of_all} MB")
    console.print(f"fetched   {name}, {size:,} bytes")
    return size
