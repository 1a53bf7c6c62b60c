"""The tokenizer of a run: loaded, or trained on the texts of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import tokenizers
import transformers
from transformers import PreTrainedTokenizerFast

from sftpipe.config.schema import TokenizerConfig
from sftpipe.storage import cached, digest, sha256_cached
from sftpipe.tokenizer import train
from sftpipe.tokenizer.load import load_tokenizer, without_place
from sftpipe.tokenizer.special_tokens import set_special_tokens

Corpus = Callable[[PreTrainedTokenizerFast], Iterable[str]]


def make_tokenizer(
    cfg: TokenizerConfig,
    path: str,
    revision: str | None,
    markers: Sequence[str],
    templates: Path,
    corpus: Corpus,
    corpus_key: str,
) -> tuple[PreTrainedTokenizerFast, Sequence[int]]:
    """The tokenizer, with its special tokens and its chat template, and the ids of new tokens.

    A trained one comes from the cache when its texts, its config and our code are the same; then
    `corpus` is not called.

    Args:
        cfg: the `tokenizer` group.
        path: folder or hub id of the base model, whose tokenizer is the default.
        revision: commit of the base model on the hub.
        markers: strings of the data set that become special tokens (`dataset.markers=special`).
        templates: folder of named chat templates (`conf/chat_template`).
        corpus: the texts that the run tokenizes, written with a tokenizer that has special tokens
            and a chat template and nothing else.
        corpus_key: digest of all that the texts depend on, beside that tokenizer.

    Returns:
        The tokenizer, and the ids of the tokens that the config added to a loaded one. For a
        trained one they are empty: the model that learns it learns all of its tokens anew.

    Raises:
        ModelError: no fast tokenizer; a special token or a template that cannot be had.
        DataError: the texts are too few for `vocab_size` tokens, or cannot be read.
    """
    if cfg.type == "pretrained":
        tokenizer = load_tokenizer(cfg, path, revision)
        return tokenizer, set_special_tokens(tokenizer, cfg, templates, markers)
    blank = train.blank_tokenizer(cfg)
    set_special_tokens(blank, cfg, templates, markers)
    tokenizer = _trained(cfg, blank, corpus, corpus_key)
    set_special_tokens(tokenizer, cfg, templates, markers)
    return tokenizer, ()


def _trained(
    cfg: TokenizerConfig, blank: PreTrainedTokenizerFast, corpus: Corpus, corpus_key: str
) -> PreTrainedTokenizerFast:
    """`train_tokenizer` on `corpus(blank)`, through the cache."""

    def build(folder: Path) -> None:
        train.train_tokenizer(cfg, corpus(blank)).save_pretrained(folder)

    def load(folder: Path) -> PreTrainedTokenizerFast:
        # AutoTokenizer would look for a model and might choose a class that changes the ids
        return without_place(PreTrainedTokenizerFast.from_pretrained(folder))

    key = digest(
        sha256_cached(Path(train.__file__)),
        tokenizers.__version__,
        transformers.__version__,
        asdict(cfg),
        blank.backend_tokenizer.to_str(),
        blank.chat_template,
        corpus_key,
    )
    return cached("tokenizers", key, build, load)
