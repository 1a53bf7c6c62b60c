"""A tokenizer as a run gets it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sftpipe.catalog import conf_dir
from sftpipe.schema import TokenizerConfig
from sftpipe.tokenizer import load_tokenizer, settle_tokenizer
from sftpipe.weights import Weights


def settled(cfg: TokenizerConfig, weights: Weights | None = None, markers: Sequence[str] = ()) -> Any:
    """Loaded, with its special tokens and its template."""
    tokenizer = load_tokenizer(cfg, weights or Weights("", None, ""))
    settle_tokenizer(tokenizer, cfg, conf_dir() / "chat_template", markers)
    return tokenizer
