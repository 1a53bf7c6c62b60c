"""A tokenizer that somebody published, from a folder or the hub."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sftpipe.config.schema import TokenizerConfig
from sftpipe.errors import ModelError, Problem, one_line


def load_tokenizer(
    cfg: TokenizerConfig, path: str, revision: str | None
) -> PreTrainedTokenizerFast:
    """The tokenizer as it was published; a slow one is an error.

    Args:
        cfg: the `tokenizer` group.
        path: folder or hub id of the base model, whose tokenizer is the default.
        revision: commit of the base model on the hub.

    Raises:
        ModelError: there is no fast tokenizer.
    """
    if cfg.name_or_path:
        path, revision = cfg.name_or_path, None
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(
            Problem(
                "tokenizer.name_or_path",
                f"no tokenizer could be loaded from {path} ({one_line(error)[:160]})",
                fix="name a folder or hub id that holds a tokenizer.json",
            )
        ) from None
    if not tokenizer.is_fast:
        raise ModelError(
            Problem(
                "tokenizer.name_or_path",
                f"{path} has no fast tokenizer, and masks need its character offsets",
                fix="convert it once: AutoTokenizer.from_pretrained(...).save_pretrained(...) with "
                "the package tokenizers installed",
            )
        )
    return without_place(tokenizer)


def without_place(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Forget where a tokenizer came from, so that it saves the same files from everywhere."""
    tokenizer.name_or_path = ""
    for name in ("name_or_path", "is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer
