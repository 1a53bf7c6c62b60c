"""Special tokens and chat templates."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sftpipe.config.options import conf_dir
from sftpipe.config.schema import TokenizerConfig
from sftpipe.errors import ModelError, Problem
from sftpipe.tokenizer.load import load_tokenizer
from sftpipe.tokenizer.special_tokens import (
    SpecialTokens,
    any_of,
    choose_pad_token,
    how_to_add,
    set_special_tokens,
    unknown_tokens,
)
from support.configs import compose
from support.errors import Pin, places, refused, told
from support.tokenizers import settled, tokenizer_at

TEMPLATES = conf_dir() / "chat_template"
Load = Callable[..., Any]


@pytest.fixture
def load(made: Callable[[str], Path]) -> Load:
    """A small ChatML tokenizer with some keys of the `tokenizer` group."""
    return lambda **keys: settled(TokenizerConfig(**{"name_or_path": str(made("chatml")), **keys}))


# --- PAD ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "before", "chosen"),
    [
        ("phi3", "<|endoftext|>", "<unk>"),  # its PAD is its EOS
        ("opt", "<pad>", "<pad>"),
        ("gpt2", None, "[PAD]"),  # every special token is EOS
        ("chatml", "<|im_end|>", "<|endoftext|>"),  # its UNK
    ],
)
def test_auto_keeps_a_pad_of_its_own_and_else_takes_unk_or_a_new_one(
    made: Callable[[str], Path], kind: str, before: str | None, chosen: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made(kind))
    assert tokenizer.pad_token == before
    assert choose_pad_token(tokenizer, "auto") == chosen
    assert tokenizer_at(made(kind)).pad_token == chosen


def test_auto_adds_a_token_where_every_special_one_is_eos(made: Callable[[str], Path]) -> None:
    tokenizer = tokenizer_at(made("gpt2"))
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == ("[PAD]", 470, 471)
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token) == ("<|endoftext|>",) * 3


def test_a_word_that_the_user_names_is_taken(made: Callable[[str], Path]) -> None:
    assert tokenizer_at(made("gpt2"), pad_token="\u0120two").pad_token == "\u0120two"


def test_the_embedded_tokenizer_pads_with_endoftext(tokenizer: Any) -> None:
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 0)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)


@pytest.mark.parametrize(
    ("tokens", "chosen"),
    [
        (["<|reserved_0|>"], "<|reserved_0|>"),
        (["<|reserved_0|>", "<|fim_pad|>"], "<|fim_pad|>"),
        (["<|extra_id_0|>", "<turn>"], "<|extra_id_0|>"),
    ],
)
def test_auto_prefers_a_token_made_for_padding_to_an_unused_one_to_unk(
    chatml: Any, tokens: list[str], chosen: str
) -> None:
    changed = copy.deepcopy(chatml)
    changed.pad_token = changed.eos_token
    changed.add_special_tokens({"additional_special_tokens": tokens})
    assert choose_pad_token(changed, "auto") == chosen


def test_auto_prefers_its_own_pad_to_one_made_for_padding(chatml: Any) -> None:
    changed = copy.deepcopy(chatml)
    changed.pad_token = "<file_sep>"
    changed.add_special_tokens({"additional_special_tokens": ["<|fim_pad|>"]})
    assert choose_pad_token(changed, "auto") == "<file_sep>"


def test_auto_never_takes_bos_or_eos(chatml: Any) -> None:
    changed = copy.deepcopy(chatml)
    changed.pad_token, changed.unk_token = changed.eos_token, changed.bos_token
    assert choose_pad_token(changed, "auto") == "[PAD]"


def test_a_named_token_is_taken(load: Load) -> None:
    assert load(pad_token="<file_sep>").pad_token_id == 3


def test_eos_as_pad_is_an_error(load: Load, golden_error: Pin) -> None:
    error = refused(ModelError, lambda: load(pad_token="<|im_end|>"))
    assert told(error) == {"tokenizer.pad_token": ("tokenizer.pad_token=auto",)}
    golden_error(error)


@pytest.mark.parametrize("role", ["pad_token", "eos_token", "bos_token", "unk_token"])
@pytest.mark.parametrize(
    ("wanted", "pieces", "fix"),
    [
        (
            "<|endoftxt|>",
            "9 tokens, < | end of t x t | >",
            "\"tokenizer.{role}='<|endoftext|>'\"",
        ),
        (
            "zzz~",
            "4 tokens, z z z ~",
            "\"tokenizer.special_tokens=['zzz~']\"",
        ),
    ],
)
def test_a_token_that_the_vocabulary_splits_is_an_error(
    load: Load, role: str, wanted: str, pieces: str, fix: str, golden_error: Pin
) -> None:
    (problem,) = refused(ModelError, lambda: load(**{role: wanted})).problems
    assert problem.where == f"tokenizer.{role}"
    assert repr(wanted) in problem.found
    assert problem.found.endswith(pieces)
    assert problem.commands == (fix.format(role=role),)
    if role == "pad_token":
        golden_error(problem)


def test_there_must_be_a_pad_to_keep(
    made: Callable[[str], Path], load: Load, golden_error: Pin
) -> None:
    auto = {"tokenizer.pad_token": ("tokenizer.pad_token=auto",)}
    error = refused(ModelError, lambda: load(pad_token="keep"))
    assert told(error) == auto
    assert error.problems[0].found.startswith("'<|im_end|>' ")
    error = refused(ModelError, lambda: load(name_or_path=str(made("gpt2")), pad_token="keep"))
    assert told(error) == auto
    golden_error(error)


@pytest.mark.parametrize(
    "tokens",
    [["zzz~"], ["<|a|>", "<|b|>"], ["it's"], ["$HOME"], ["a!b"], ["a\\b\\"], ["\\'"], ['a"b']],
)
def test_the_override_that_adds_tokens_can_be_typed(tokens: list[str]) -> None:
    (typed,) = Problem("", "", fix=f"{how_to_add(tokens)} makes tokens of them").commands
    (override,) = shlex.split(typed)
    assert compose(["recipe=yoda", override]).tokenizer.special_tokens == tokens


# --- new tokens -----------------------------------------------------------------------------------


def test_new_tokens_get_the_ids_after_the_vocabulary(made: Callable[[str], Path]) -> None:
    cfg = TokenizerConfig(
        name_or_path=str(made("opt")),
        special_tokens=["<|im_start|>"],
        tokens=["##[YODA]##>"],
        bos_token="<|im_start|>",
        unk_token="<unk>",
    )
    tokenizer = load_tokenizer(cfg, "", None)
    assert set_special_tokens(tokenizer, cfg, TEMPLATES, ["|HM|>"]) == range(473, 476)
    new = ["<|im_start|>", "##[YODA]##>", "|HM|>"]
    assert tokenizer.convert_ids_to_tokens([473, 474, 475]) == new
    roles = ("bos_token", "eos_token", "unk_token", "pad_token")
    assert [getattr(tokenizer, role) for role in roles] == [
        "<|im_start|>",
        "</s>",
        "<unk>",
        "<pad>",
    ]
    yes = tokenizer.get_vocab()["yes"]
    ids = tokenizer("<|im_start|>yes##[YODA]##>|HM|>yes").input_ids
    assert ids == [2, 473, yes, 474, 475, yes]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "yes##[YODA]##>yes"


@pytest.mark.parametrize(
    ("kind", "added", "roles"),
    [
        ("opt", [], ("</s>", "</s>", "</s>")),
        ("gpt2", ["[PAD]"], ("<|endoftext|>",) * 3),
        ("phi3", [], ("<|endoftext|>", "<s>", "<unk>")),
    ],
)
def test_auto_adds_what_alpaca_adds(
    made: Callable[[str], Path], kind: str, added: list[str], roles: tuple[str, ...]
) -> None:
    auto = dict.fromkeys(("eos_token", "bos_token", "unk_token"), "auto")
    cfg = TokenizerConfig(name_or_path=str(made(kind)), **auto)
    tokenizer = load_tokenizer(cfg, "", None)
    assert (
        tokenizer.convert_ids_to_tokens(list(set_special_tokens(tokenizer, cfg, TEMPLATES)))
        == added
    )
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token) == roles


def test_auto_adds_alpacas_tokens_where_there_are_none(
    load: Load, chatml: Any, tmp_path: Path
) -> None:
    bare = copy.deepcopy(chatml)
    bare.eos_token = bare.bos_token = bare.unk_token = None
    bare.save_pretrained(tmp_path / "bare")
    made = load(
        name_or_path=str(tmp_path / "bare"), eos_token="auto", bos_token="auto", unk_token="auto"
    )
    assert made.convert_tokens_to_ids([made.eos_token, made.bos_token, made.unk_token]) == [
        474,
        475,
        476,
    ]
    assert (made.eos_token, made.bos_token, made.unk_token) == ("</s>", "<s>", "<unk>")


@pytest.mark.parametrize(("key", "word"), [("special_tokens", "the"), ("tokens", "the")])
def test_a_word_of_the_vocabulary_becomes_no_new_token(
    load: Load, chatml: Any, key: str, word: str, golden_error: Pin
) -> None:
    error = refused(ModelError, lambda: load(**{key: [word]}))
    assert places(error) == [f"tokenizer.{key}"]
    assert f"(id {chatml.get_vocab()['the']})" in error.problems[0].found
    if key == "tokens":
        golden_error(error)


def test_a_token_that_is_there_is_not_added_twice(load: Load) -> None:
    assert len(load(special_tokens=["<|im_end|>"])) == 474


def test_a_blank_token_is_an_error(load: Load, golden_error: Pin) -> None:
    error = refused(ModelError, lambda: load(tokens=[" "]))
    assert places(error) == ["tokenizer.tokens"]
    golden_error(error)


def test_tokens_that_a_template_writes_and_the_tokenizer_splits_are_found(load: Load) -> None:
    assert unknown_tokens(load()) == []
    assert unknown_tokens(load(chat_template="phi3")) == ["<|end|>", "<|assistant|>"]
    assert (
        unknown_tokens(load(chat_template="phi3", special_tokens=["<|end|>", "<|assistant|>"]))
        == []
    )


def test_rows_are_padded_on_the_right(chatml: Any) -> None:
    changed = copy.deepcopy(chatml)
    changed.padding_side = "left"
    set_special_tokens(changed, TokenizerConfig(), TEMPLATES)
    batch = changed(["one two three", "one"], padding=True)
    assert batch.input_ids[1][1:] == [changed.pad_token_id] * 2


def test_a_new_token_is_found_inside_a_text_of_sentencepiece(made: Callable[[str], Path]) -> None:
    tokenizer = tokenizer_at(made("phi3"), tokens=["##[YODA]##>"], special_tokens=["<|turn|>"])
    ids = tokenizer("one##[YODA]##>two <|turn|>").input_ids
    pieces = ["\u2581one", "##[YODA]##>", "\u2581two", "\u2581", "<|turn|>"]
    assert tokenizer.convert_ids_to_tokens(ids) == pieces
    assert (ids[1], ids[4]) == (588, 587)


# --- chat templates -------------------------------------------------------------------------------

TURN = [{"role": "user", "content": "Hi."}]


def test_the_models_own_template_is_the_default(load: Load) -> None:
    text = load().apply_chat_template(TURN, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_is_found_by_its_name(load: Load) -> None:
    tokenizer = load(chat_template="chatml_bos_eos")
    assert tokenizer.chat_template == (TEMPLATES / "chatml_bos_eos.jinja").read_text(
        encoding="utf-8"
    )
    text = tokenizer.apply_chat_template(TURN, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_is_found_by_its_path(load: Load, tmp_path: Path, golden_error: Pin) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }} \U0001f600", encoding="utf-8")
    tokenizer = load(chat_template=str(tmp_path / "mine.jinja"))
    assert tokenizer.apply_chat_template(TURN, tokenize=False) == "Hi. \U0001f600"


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("chatml_bos_eod", ("tokenizer.chat_template=chatml_bos_eos",)),
        ("none/such.jinja", ()),
    ],
)
def test_an_unknown_template_names_the_ones_there_are(
    load: Load, name: str, commands: tuple[str, ...], golden_error: Pin
) -> None:
    error = refused(ModelError, lambda: load(chat_template=name))
    assert told(error) == {"tokenizer.chat_template": commands}
    assert repr(name) in error.problems[0].found
    assert error.problems[0].allowed.startswith("chatml, chatml_bos_eos, llama3, phi3, zephyr, ")
    if commands:
        golden_error(error)


# --- markers --------------------------------------------------------------------------------------


def test_markers_become_special_tokens_of_one_id_each(made: Callable[[str], Path]) -> None:
    cfg = TokenizerConfig(name_or_path=str(made("chatml")))
    tokenizer = settled(cfg, markers=["|SOUND|>", "|NOISE|>"])
    vocabulary = tokenizer.get_vocab()
    ids = tokenizer("yes|SOUND|>two|NOISE|>").input_ids
    assert ids == [vocabulary["yes"], 474, vocabulary["two"], 475]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "yestwo"


# --- the one definition ---------------------------------------------------------------------------


def test_special_tokens_are_told_from_added_ones_and_both_have_ids(load: Load) -> None:
    tokenizer = load(special_tokens=["<|turn|>"], tokens=["##[YODA]##>"])
    special = SpecialTokens.of(tokenizer)
    assert {"<|turn|>", "##[YODA]##>"} <= set(special.added)
    assert "<|turn|>" in special.special
    assert "##[YODA]##>" not in special.special
    assert tokenizer.convert_tokens_to_ids("##[YODA]##>") in special
    assert tokenizer.convert_tokens_to_ids("the") not in special
    assert special.pattern.findall("a ##[YODA]##><|turn|>b") == ["##[YODA]##>", "<|turn|>"]


def test_the_longest_word_is_found_first_and_no_words_match_nothing() -> None:
    assert any_of(["<a>", "<a>>"]).findall("<a>><a>") == ["<a>>", "<a>"]
    assert any_of([]).search("anything") is None
