"""Load the tokenizer, settle PAD, attach the chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sftpipe.errors import ModelError, Problem, nearest
from sftpipe.schema import TokenizerConfig
from sftpipe.weights import Weights

_NEW_PAD = "[PAD]"  # as Stanford Alpaca calls it
_SPARE = re.compile(r"pad|reserved|unused|extra_id", re.IGNORECASE)


def load_tokenizer(cfg: TokenizerConfig, weights: Weights, templates: Path, markers: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    """The tokenizer of a run: fast, padding right, with a PAD that is not EOS.

    Args:
        cfg: the `tokenizer` group.
        weights: the base weights, whose tokenizer is the default.
        templates: folder of named chat templates (`conf/chat_template`).
        markers: strings of the data set that become special tokens (`dataset.markers=special`).

    Raises:
        ModelError: no fast tokenizer, no token that may pad, or no such template.
    """
    name, revision = (cfg.name_or_path, None) if cfg.name_or_path else (weights.path, weights.revision)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(
            Problem(
                where="tokenizer.name_or_path",
                found=f"no tokenizer could be loaded from {name} ({' '.join(str(error).split())[:160]})",
                fix="name a folder or hub id that holds a tokenizer.json",
            )
        ) from None
    if not tokenizer.is_fast:
        raise ModelError(
            Problem(
                where="tokenizer.name_or_path",
                found=f"{name} has no fast tokenizer, and masks need its character offsets",
                fix="convert it once: AutoTokenizer.from_pretrained(...).save_pretrained(...) with `tokenizers` installed",
            )
        )
    settle_tokenizer(tokenizer, cfg, templates, markers)
    return tokenizer


def settle_tokenizer(tokenizer: Any, cfg: TokenizerConfig, templates: Path, markers: Sequence[str] = ()) -> None:
    """Give a tokenizer, loaded or trained, its markers, PAD, UNK and chat template; changed in place.

    Raises:
        ModelError: no token that may pad, or no such template.
    """
    tokenizer.padding_side = "right"
    if markers:
        tokenizer.add_tokens(list(markers), special_tokens=True)
    if cfg.unk_token not in ("keep", "auto"):
        tokenizer.add_special_tokens({"unk_token": cfg.unk_token})
    tokenizer.add_special_tokens({"pad_token": choose_pad_token(tokenizer, cfg.pad_token)})
    if cfg.chat_template:
        tokenizer.chat_template = _read_template(cfg.chat_template, templates)


def choose_pad_token(tokenizer: Any, wanted: str) -> str:
    """The PAD token: `wanted`, or for `auto` one that no text uses.

    In this order: the tokenizer's own PAD unless it is EOS; a special token made for padding or left unused; UNK; a new one. PAD = EOS is
    refused, because a padded EOS is masked and the model would never learn to stop.

    Raises:
        ModelError: `wanted` is EOS or not in the vocabulary.
    """
    vocabulary, eos = tokenizer.get_vocab(), tokenizer.eos_token
    if wanted != "auto":
        if wanted not in vocabulary:
            match = nearest(wanted, tokenizer.all_special_tokens)
            raise ModelError(
                Problem(
                    where="tokenizer.pad_token",
                    found=f"{wanted!r} is not in the vocabulary",
                    allowed=f"auto, or a token such as {', '.join(tokenizer.all_special_tokens)}",
                    fix=f"tokenizer.pad_token='{match}'" if match else "tokenizer.pad_token=auto",
                )
            )
        if wanted == eos:
            raise ModelError(
                Problem(
                    where="tokenizer.pad_token",
                    found=f"{wanted!r} is the EOS token: padding would hide the end of every row from the loss",
                    fix="tokenizer.pad_token=auto",
                )
            )
        return wanted
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    spare = sorted((t for t in special if _SPARE.search(t)), key=lambda t: "pad" not in t.lower())
    for candidate in (tokenizer.pad_token, *spare, tokenizer.unk_token):
        if candidate is not None and candidate not in (eos, tokenizer.bos_token) and candidate in vocabulary:
            return str(candidate)
    return _NEW_PAD  # which the tokenizer adds to its vocabulary


def _read_template(name: str, templates: Path) -> str:
    named = {file.stem: file for file in sorted(templates.glob("*.jinja"))}
    file = named.get(name, Path(name).expanduser())
    if not file.is_file():
        match = nearest(name, named)
        raise ModelError(
            Problem(
                where="tokenizer.chat_template",
                found=f"{name!r} is neither a named template nor a file",
                allowed=f"{', '.join(named)}, or the path of a .jinja file",
                fix=f"tokenizer.chat_template={match}" if match else "",
            )
        )
    return file.read_text(encoding="utf-8")
