"""A tokenizer as a run gets it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sftpipe.config.options import conf_dir
from sftpipe.config.schema import TokenizerConfig
from sftpipe.model.weights import Weights
from sftpipe.tokenizer.load import load_tokenizer, settle_tokenizer


def settled(
    cfg: TokenizerConfig, weights: Weights | None = None, markers: Sequence[str] = ()
) -> Any:
    """Loaded, with its special tokens and its template."""
    tokenizer = load_tokenizer(cfg, weights or Weights("", None, ""))
    settle_tokenizer(tokenizer, cfg, conf_dir() / "chat_template", markers)
    return tokenizer
