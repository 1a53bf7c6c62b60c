"""Tokenizers that a run trains on its own texts: of characters, or byte-level BPE.

Both become ordinary fast tokenizers, which are saved with the run and load anywhere. Their special
tokens come after the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sftpipe.config.schema import TokenizerConfig
from sftpipe.errors import DataError, Problem

_EOS, _PAD, _UNK = "<|endoftext|>", "[PAD]", "[UNK]"
_OFTEN = 2  # times that a pair of tokens must occur in all texts to be merged


def train_tokenizer(cfg: TokenizerConfig, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer made of texts, with EOS and PAD; the same texts make the same one.

    type=char: the characters in the order of their code points, so that ids do not depend on the
    order of the texts. UNK is there if `tokenizer.unk_token` asks for it. type=bpe: bytes and
    merges, `vocab_size` tokens with EOS and PAD.

    Args:
        cfg: the `tokenizer` group, type=char or bpe.
        texts: what the run tokenizes; read once, one after the other.

    Raises:
        DataError: the texts are too few for `vocab_size` tokens.
    """
    return _of_characters(cfg, texts) if cfg.type == "char" else _of_bytes(cfg, texts)


def blank_tokenizer(cfg: TokenizerConfig) -> PreTrainedTokenizerFast:
    """The special tokens of `train_tokenizer` without a vocabulary.

    It is enough for a chat template to write texts with, before a vocabulary is made of them.
    """
    return _of_characters(cfg, ())


def _of_characters(cfg: TokenizerConfig, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    # without surrogates: the encoder reports the rows that hold them
    known = sorted(character for character in characters if not "\ud800" <= character <= "\udfff")
    special = _special_tokens(cfg)
    tokens = dict.fromkeys([*known, *special.values()])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    # BPE without merges: each character is a token
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=special.get("unk_token")))
    plain.decoder = decoders.Fuse()
    return _finished(plain, special)


def _of_bytes(cfg: TokenizerConfig, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    assert cfg.vocab_size is not None
    special = _special_tokens(cfg)
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    alphabet: Sequence[str] = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=cfg.vocab_size - len(special),
        min_frequency=_OFTEN,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    plain.train_from_iterator((text for text in texts if _is_unicode(text)), trainer)
    reached = plain.get_vocab_size() + len(special)
    if reached < cfg.vocab_size:
        raise DataError(
            Problem(
                "tokenizer.vocab_size",
                f"{cfg.vocab_size}, and the texts of the train split make {reached} tokens: no "
                "other pair occurs in them twice",
                fix=f"`tokenizer.vocab_size={reached}` or less, or more text",
            )
        )
    return _finished(plain, special)


def _is_unicode(text: str) -> bool:
    """True of a text without lone surrogates, which UTF-8 cannot hold."""
    return text.isascii() or text.encode("utf-8", "replace").decode() == text


def _special_tokens(cfg: TokenizerConfig) -> dict[str, str]:
    """{meaning: token}.

    A PAD that the config names is made here, because no vocabulary can hold it yet.
    """
    special = {
        "eos_token": _EOS,
        "pad_token": cfg.pad_token if cfg.pad_token not in ("auto", "keep") else _PAD,
    }
    if cfg.type == "char" and cfg.unk_token != "keep":
        special["unk_token"] = cfg.unk_token if cfg.unk_token != "auto" else _UNK
    return special


def _finished(plain: Tokenizer, special: dict[str, str]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, clean_up_tokenization_spaces=False, **special
    )
