"""The version of the code and of the libraries that made a row; part of the keys of the cache."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_ENCODES = ("data/*.py", "tokenizer/*.py", "config/patterns.py")  # not data/preflight/


@cache
def code_digest(package: Path = _PACKAGE) -> str:
    """SHA-256 of the code that decides ids and labels, and of the versions of its libraries.

    `data/preflight/` is left out: a reworded report keeps the cached rows of users valid.

    Args:
        package: the folder of the package.
    """
    import datasets
    import tokenizers
    import transformers

    files = [file for pattern in _ENCODES for file in sorted(package.glob(pattern))]
    libraries = f"{datasets.__version__} {tokenizers.__version__} {transformers.__version__}"
    return hashlib.sha256(
        b"".join([libraries.encode(), *(file.read_bytes() for file in files)])
    ).hexdigest()
