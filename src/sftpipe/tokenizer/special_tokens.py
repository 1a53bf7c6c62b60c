"""Special tokens: what they are, which the config adds, and which of them have a meaning."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import AddedToken, PreTrainedTokenizerFast

from sftpipe.config.schema import TokenizerConfig
from sftpipe.errors import ModelError, Problem, nearest

_NEW_PAD = "[PAD]"  # as Stanford Alpaca calls it
# of `auto`, where a tokenizer has none; also Alpaca's
_DEFAULTS = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
_SPARE = re.compile(r"pad|reserved|unused|extra_id", re.IGNORECASE)
_TURN_TOKEN = re.compile(r"<\|[a-z0-9_]+\|>")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)  # of Jinja
_BEFORE_QUOTE = re.compile(r"(\\*)('|\Z)")
_SHELL = re.compile(r'[$`"\\!]')  # what a shell changes between double quotes


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens that a tokenizer finds wherever they are written: the only definition of them.

    ids: of every special token and of every token added to the vocabulary.
    added: every added token, special or not, as it is written.
    special: the special ones of `added`; decoding with `skip_special_tokens` leaves them out.
    """

    ids: frozenset[int]
    added: tuple[str, ...]
    special: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> SpecialTokens:
        """Those of a tokenizer after `set_special_tokens`."""
        added = tokenizer.added_tokens_decoder
        special = {str(token) for token in added.values() if token.special}
        named = set(tokenizer.all_special_tokens)
        return cls(
            ids=frozenset({*tokenizer.all_special_ids, *added}),
            added=tuple(str(token) for token in added.values()),
            special=tuple(sorted(special | named)),
        )

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches each of `added` in a text."""
        return any_of(self.added)

    def __contains__(self, token: int) -> bool:
        return token in self.ids


def any_of(words: Iterable[str]) -> re.Pattern[str]:
    """A pattern of any of the words, the longest first; without words it matches nowhere."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def set_special_tokens(
    tokenizer: PreTrainedTokenizerFast,
    cfg: TokenizerConfig,
    templates: Path,
    markers: Sequence[str] = (),
) -> range:
    """Give a tokenizer its new tokens, its PAD, EOS, BOS and UNK, and its chat template.

    New tokens get the ids after the vocabulary, in this order: `special_tokens`, `tokens`,
    `markers`, then what `auto` has to add.

    Args:
        tokenizer: a fast tokenizer; changed in place. Training pads on the right.
        cfg: the `tokenizer` group.
        templates: folder of named chat templates (`conf/chat_template`).
        markers: strings of the data set that become special tokens (`dataset.markers=special`).

    Returns:
        The ids of the new tokens.

    Raises:
        ModelError: a token that is not in the vocabulary, that is an ordinary word of it, or that
            cannot have the meaning; no such template.
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
    for role in ("eos_token", "bos_token", "unk_token"):
        _set_role(tokenizer, role, getattr(cfg, role))
    tokenizer.add_special_tokens({"pad_token": choose_pad_token(tokenizer, cfg.pad_token)})
    if cfg.chat_template:
        tokenizer.chat_template = _read_template(cfg.chat_template, templates)
    return range(known, len(tokenizer))


def choose_pad_token(tokenizer: PreTrainedTokenizerFast, wanted: str) -> str:
    """The PAD token: `wanted`, for `keep` the tokenizer's own, for `auto` one that no text uses.

    `auto` tries in this order: the tokenizer's own PAD unless it is EOS; a special token made for
    padding or left unused; UNK; a new one. PAD = EOS is an error, because a padded EOS is masked
    and the model would never learn to stop.

    Raises:
        ModelError: the token is EOS or not in the vocabulary, or there is none to keep.
    """
    key, auto = "tokenizer.pad_token", "`tokenizer.pad_token=auto`"
    eos = tokenizer.eos_token
    if wanted == "keep":
        if tokenizer.pad_token is None:
            raise ModelError(Problem(key, "keep, and the tokenizer has no PAD", fix=auto))
        wanted = tokenizer.pad_token
    if wanted != "auto":
        _check_known(tokenizer, key, wanted)
        if wanted == eos:
            found = (
                f"{wanted!r} is the EOS token: padding would hide the end of every row from "
                "the loss"
            )
            raise ModelError(Problem(key, found, fix=auto))
        return wanted
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    spare = sorted((t for t in special if _SPARE.search(t)), key=lambda t: "pad" not in t.lower())
    for candidate in (tokenizer.pad_token, *spare, tokenizer.unk_token):
        is_free = candidate and candidate not in (eos, tokenizer.bos_token)
        if is_free and _id_of(tokenizer, candidate) is not None:
            return str(candidate)
    return _NEW_PAD  # which the tokenizer adds to its vocabulary


def unknown_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Strings such as `<|im_end|>` that the template writes and the tokenizer splits."""
    written = _TURN_TOKEN.findall(_COMMENT.sub("", _template_source(tokenizer)))
    return [token for token in dict.fromkeys(written) if _id_of(tokenizer, token) is None]


def how_to_add(tokens: Sequence[str]) -> str:
    """The override that makes special tokens of these strings, in backticks for `Problem.fix`."""
    return _override("tokenizer.special_tokens", f"[{','.join(map(_quoted, tokens))}]")


def _override(key: str, value: str) -> str:
    """An override whose value has quotes, as a shell takes it, in backticks for `Problem.fix`."""
    typed = f"{key}={value}"
    return f"`{shlex.quote(typed)}`" if _SHELL.search(typed) else f'`"{typed}"`'


def _quoted(token: str) -> str:
    """A token in quotes for Hydra, which reads a backslash as one unless a quote follows."""
    doubled = _BEFORE_QUOTE.sub(lambda match: match[1] * 2 + match[2].replace("'", r"\'"), token)
    return f"'{doubled}'"


def _template_source(tokenizer: PreTrainedTokenizerFast) -> str:
    """The text of the chat template, or of all of them where there are several."""
    template = tokenizer.chat_template
    return " ".join(template.values()) if isinstance(template, dict) else template or ""


def _id_of(tokenizer: PreTrainedTokenizerFast, token: str) -> int | None:
    """The id of a token; None for what is no token. `get_vocab` would copy the vocabulary."""
    found: int | None = tokenizer.backend_tokenizer.token_to_id(token)
    return found


def _set_role(tokenizer: PreTrainedTokenizerFast, role: str, wanted: str) -> None:
    """Give a role to `wanted`, or for `auto` to the token that has it, or else to a new one."""
    if wanted == "keep":
        return
    if wanted == "auto":
        wanted = getattr(tokenizer, role) or _DEFAULTS[role]
    else:
        _check_known(tokenizer, f"tokenizer.{role}", wanted)
    tokenizer.add_special_tokens({role: wanted})


def _check_new(tokenizer: PreTrainedTokenizerFast, key: str, words: Sequence[str]) -> None:
    """A new token must not be a word of the vocabulary: it would be split off other words."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    for word in words:
        if not word.strip():
            allowed = "tokens with at least one character"
            raise ModelError(Problem(key, f"{word!r}", allowed=allowed, fix="remove it"))
        known = _id_of(tokenizer, word)
        if known is not None and word not in added:
            found = (
                f"{word!r} is an ordinary token of the vocabulary (id {known}); as a new one it "
                "would be cut out of words"
            )
            allowed = "strings that are no token yet"
            fix = "remove it from the list"
            raise ModelError(Problem(key, found, allowed=allowed, fix=fix))


def _check_known(tokenizer: PreTrainedTokenizerFast, key: str, wanted: str) -> None:
    """A token that gets a meaning must be one that the tokenizer does not split."""
    if _id_of(tokenizer, wanted) is not None:
        return
    pieces = tokenizer.tokenize(wanted)
    match = nearest(wanted, tokenizer.all_special_tokens)
    new = f"{how_to_add([wanted])} makes one token of it"
    raise ModelError(
        Problem(
            key,
            f"{wanted!r} is not in the vocabulary: it is split into {len(pieces)} tokens, "
            f"{' '.join(pieces[:12])}",
            allowed=f"auto, keep, or a token such as {', '.join(tokenizer.all_special_tokens)}",
            fix=_override(key, _quoted(match)) if match else new,
        )
    )


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
                fix=f"`tokenizer.chat_template={match}`" if match else "",
            )
        )
    return file.read_text(encoding="utf-8")
