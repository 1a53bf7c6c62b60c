"""A tokenizer as a run gets it."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from sftpipe.config.options import conf_dir
from sftpipe.config.schema import TokenizerConfig
from sftpipe.model.weights import Weights
from sftpipe.tokenizer.load import load_tokenizer
from sftpipe.tokenizer.special_tokens import set_special_tokens


def settled(
    cfg: TokenizerConfig, weights: Weights | None = None, markers: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Loaded, with its special tokens and its template."""
    path, revision = (weights.path, weights.revision) if weights else ("", None)
    tokenizer = load_tokenizer(cfg, path, revision)
    set_special_tokens(tokenizer, cfg, conf_dir() / "chat_template", markers)
    return tokenizer
