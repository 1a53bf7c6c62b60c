"""Load the tokenizer, settle its special tokens, attach the chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer

from sftpipe.config.schema import TokenizerConfig
from sftpipe.errors import ModelError, Problem, nearest, one_line
from sftpipe.model.weights import Weights

_NEW_PAD = "[PAD]"  # as Stanford Alpaca calls it
_DEFAULTS = {
    "eos_token": "</s>",
    "bos_token": "<s>",
    "unk_token": "<unk>",
}  # of `auto`, where a tokenizer has none; Alpaca's, too
_SPARE = re.compile(r"pad|reserved|unused|extra_id", re.IGNORECASE)


def load_tokenizer(cfg: TokenizerConfig, weights: Weights) -> Any:
    """The tokenizer as it was published: fast, or not at all.

    Args:
        cfg: the `tokenizer` group.
        weights: the base weights, whose tokenizer is the default.

    Raises:
        ModelError: there is no fast tokenizer.
    """
    name, revision = (
        (cfg.name_or_path, None) if cfg.name_or_path else (weights.path, weights.revision)
    )
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(
            Problem(
                "tokenizer.name_or_path",
                f"no tokenizer could be loaded from {name} ({one_line(error)[:160]})",
                fix="name a folder or hub id that holds a tokenizer.json",
            )
        ) from None
    if not tokenizer.is_fast:
        raise ModelError(
            Problem(
                "tokenizer.name_or_path",
                f"{name} has no fast tokenizer, and masks need its character offsets",
                fix="convert it once: AutoTokenizer.from_pretrained(...).save_pretrained(...) with "
                "`tokenizers` installed",
            )
        )
    return tokenizer


def settle_tokenizer(
    tokenizer: Any, cfg: TokenizerConfig, templates: Path, markers: Sequence[str] = ()
) -> range:
    """Give a tokenizer its new tokens, PAD, EOS, BOS and UNK, and its chat template.

    New tokens get the ids behind the vocabulary, in this order: `special_tokens`, `tokens`,
        `markers`, then what `auto` has to add.

    Args:
        tokenizer: a fast tokenizer; changed in place. Training pads on the right.
        cfg: the `tokenizer` group.
        templates: folder of named chat templates (`conf/chat_template`).
        markers: strings of the data set that become special tokens (`dataset.markers=special`).

    Returns:
        The ids of the new tokens.

    Raises: ModelError: a token that is not in the vocabulary, that is an ordinary word of it, or
        that cannot have the meaning; no such
            template.
    """
    known = len(tokenizer)
    tokenizer.padding_side = "right"
    for key, words, special in (
        ("tokenizer.special_tokens", cfg.special_tokens, True),
        ("tokenizer.tokens", cfg.tokens, False),
        ("dataset.marker_tokens", markers, True),
    ):
        _check_new(tokenizer, key, words)
        tokenizer.add_tokens(
            [AddedToken(word, special=special, normalized=False) for word in words],
            special_tokens=special,
        )
    for role, wanted in (
        ("eos_token", cfg.eos_token),
        ("bos_token", cfg.bos_token),
        ("unk_token", cfg.unk_token),
    ):
        if wanted == "auto":
            wanted = getattr(tokenizer, role) or _DEFAULTS[role]
        elif wanted != "keep":
            _check_known(tokenizer, f"tokenizer.{role}", wanted)
        if wanted != "keep":
            tokenizer.add_special_tokens({role: wanted})
    tokenizer.add_special_tokens({"pad_token": choose_pad_token(tokenizer, cfg.pad_token)})
    if cfg.chat_template:
        tokenizer.chat_template = _read_template(cfg.chat_template, templates)
    return range(known, len(tokenizer))


def unknown_tokens(tokenizer: Any) -> list[str]:
    """Strings such as `<|im_end|>` that the chat template writes and the tokenizer would split into pieces."""
    template = tokenizer.chat_template
    source = re.sub(
        r"\{#.*?#\}",
        "",
        " ".join(template.values()) if isinstance(template, dict) else template or "",
        flags=re.DOTALL,
    )
    vocabulary = tokenizer.get_vocab()
    return list(
        dict.fromkeys(
            token for token in re.findall(r"<\|[a-z0-9_]+\|>", source) if token not in vocabulary
        )
    )


def how_to_add(tokens: Sequence[str]) -> str:
    """What to type so that these strings become special tokens."""
    return f"tokenizer.special_tokens=[{','.join(map(repr, tokens))}]"


def _check_new(tokenizer: Any, key: str, words: Sequence[str]) -> None:
    """Refuse to make a new token of a word that the vocabulary holds: it would be cut out of other words from then on."""
    vocabulary, added = (
        tokenizer.get_vocab(),
        {str(token) for token in tokenizer.added_tokens_decoder.values()},
    )
    for word in words:
        if not word.strip():
            raise ModelError(
                Problem(
                    key, f"{word!r}", allowed="tokens with at least one character", fix="remove it"
                )
            )
        if word in vocabulary and word not in added:
            found = (
                f"{word!r} is an ordinary token of the vocabulary (id {vocabulary[word]}); as a new "
                "one it would be cut out of words"
            )
            raise ModelError(
                Problem(
                    key,
                    found,
                    allowed="strings that are no token yet",
                    fix="remove it from the list",
                )
            )


def _check_known(tokenizer: Any, key: str, wanted: str) -> None:
    """Refuse a token that the tokenizer would split."""
    if wanted in tokenizer.get_vocab():
        return
    pieces = tokenizer.tokenize(wanted)
    match = nearest(wanted, tokenizer.all_special_tokens)
    raise ModelError(
        Problem(
            key,
            f"{wanted!r} is not in the vocabulary: it is split into {len(pieces)} tokens, "
            f"{' '.join(pieces[:12])}",
            allowed=f"auto, keep, or a token such as {', '.join(tokenizer.all_special_tokens)}",
            fix=f"{key}='{match}'" if match else f"{how_to_add([wanted])} makes one token of it",
        )
    )


def choose_pad_token(tokenizer: Any, wanted: str) -> str:
    """The PAD token: `wanted`, the tokenizer's own for `keep`, or for `auto` one that no text uses.

    In this order: the tokenizer's own PAD unless it is EOS; a special token made for padding or
    left unused; UNK; a new one. PAD = EOS is refused, because a padded EOS is masked and the model
    would never learn to stop.

    Raises:
        ModelError: the token is EOS or not in the vocabulary, or there is none to keep.
    """
    vocabulary, eos = tokenizer.get_vocab(), tokenizer.eos_token
    if wanted == "keep":
        if tokenizer.pad_token is None:
            raise ModelError(
                Problem(
                    "tokenizer.pad_token",
                    "keep, and the tokenizer has no PAD",
                    fix="tokenizer.pad_token=auto",
                )
            )
        wanted = tokenizer.pad_token
    if wanted != "auto":
        _check_known(tokenizer, "tokenizer.pad_token", wanted)
        if wanted == eos:
            raise ModelError(
                Problem(
                    "tokenizer.pad_token",
                    f"{wanted!r} is the EOS token: padding would hide the end of every row from "
                    "the loss",
                    fix="tokenizer.pad_token=auto",
                )
            )
        return wanted
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    spare = sorted((t for t in special if _SPARE.search(t)), key=lambda t: "pad" not in t.lower())
    for candidate in (tokenizer.pad_token, *spare, tokenizer.unk_token):
        if (
            candidate is not None
            and candidate not in (eos, tokenizer.bos_token)
            and candidate in vocabulary
        ):
            return str(candidate)
    return _NEW_PAD  # which the tokenizer adds to its vocabulary


def _read_template(name: str, templates: Path) -> str:
    named = {file.stem: file for file in sorted(templates.glob("*.jinja"))}
    file = named.get(name, Path(name).expanduser())
    if not file.is_file():
        match = nearest(name, named)
        raise ModelError(
            Problem(
                "tokenizer.chat_template",
                f"{name!r} is neither a named template nor a file",
                allowed=f"{', '.join(named)}, or the path of a .jinja file",
                fix=f"tokenizer.chat_template={match}" if match else "",
            )
        )
    return file.read_text(encoding="utf-8")
