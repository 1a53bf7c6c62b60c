"""Which version of the encoding code and of the libraries below it made a row; part of every key of the cache."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


@cache
def code_digest() -> str:
    """SHA-256 of the code that decides ids and labels, and of the versions of the libraries that it calls.

    `data/*.py` and `tokenizer/*.py`, and not `data/preflight/`: a reworded report leaves the cached
    rows of users valid.
    """
    import datasets
    import tokenizers
    import transformers

    files = [
        file
        for folder in ("data", "tokenizer")
        for file in sorted((_PACKAGE / folder).glob("*.py"))
    ]
    libraries = f"{datasets.__version__} {tokenizers.__version__} {transformers.__version__}"
    return hashlib.sha256(
        b"".join([libraries.encode(), *(file.read_bytes() for file in files)])
    ).hexdigest()
