"""Special tokens and chat templates."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sftpipe.config.hydra import compose
from sftpipe.config.options import conf_dir
from sftpipe.config.schema import TokenizerConfig
from sftpipe.errors import ModelError, Problem
from sftpipe.model.weights import Weights
from sftpipe.tokenizer.load import load_tokenizer
from sftpipe.tokenizer.special_tokens import (
    SpecialTokens,
    any_of,
    choose_pad_token,
    how_to_add,
    set_special_tokens,
    unknown_tokens,
)
from support.tokenizers import settled

TEMPLATES = conf_dir() / "chat_template"
Load = Callable[..., Any]


@pytest.fixture
def load(smollm2: Weights) -> Load:
    """`load_tokenizer` with some keys of the `tokenizer` group, on the embedded model."""
    return lambda **keys: settled(TokenizerConfig(**keys), smollm2)


@pytest.fixture(scope="module")
def raw(golden: Path) -> Callable[[str], Any]:
    """A golden tokenizer as transformers loads it."""
    return lambda name: AutoTokenizer.from_pretrained(golden / "tokenizers" / name)


# --- PAD ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "before", "chosen"),
    [
        ("phi-3-mini-4k-instruct", "<|endoftext|>", "<unk>"),  # its PAD is its EOS
        ("opt-350m", "<pad>", "<pad>"),
    ],
)
def test_golden_auto_keeps_a_pad_of_its_own_and_else_takes_unk(
    raw: Callable[[str], Any], name: str, before: str, chosen: str
) -> None:
    tokenizer = raw(name)
    assert tokenizer.pad_token == before
    assert choose_pad_token(tokenizer, "auto") == chosen


def test_golden_auto_adds_a_token_where_every_special_one_is_eos(golden: Path) -> None:
    tokenizer = settled(TokenizerConfig(name_or_path=str(golden / "tokenizers" / "gpt2")))
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == ("[PAD]", 50257, 50258)
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token) == ("<|endoftext|>",) * 3


def test_golden_a_token_that_the_user_names_is_taken(raw: Callable[[str], Any]) -> None:
    assert choose_pad_token(raw("gpt2"), "\u0120SolidGoldMagikarp") == "\u0120SolidGoldMagikarp"


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
    tokenizer: Any, tokens: list[str], chosen: str
) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.pad_token = changed.eos_token
    changed.add_special_tokens({"additional_special_tokens": tokens})
    assert choose_pad_token(changed, "auto") == chosen


def test_auto_never_takes_bos_or_eos(tokenizer: Any) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.pad_token, changed.unk_token = changed.eos_token, changed.bos_token
    assert choose_pad_token(changed, "auto") == "[PAD]"


def test_a_named_token_is_taken(load: Load) -> None:
    assert load(pad_token="<file_sep>").pad_token_id == 5


def test_eos_as_pad_is_an_error(load: Load) -> None:
    with pytest.raises(ModelError) as error:
        load(pad_token="<|im_end|>")
    assert str(error.value) == (
        "tokenizer.pad_token: '<|im_end|>' is the EOS token: padding would hide the end of every "
        "row from the loss\n"
        "    tokenizer.pad_token=auto"
    )


@pytest.mark.parametrize("role", ["pad_token", "eos_token", "bos_token", "unk_token"])
@pytest.mark.parametrize(
    ("wanted", "pieces", "fix"),
    [
        (
            "<|endoftxt|>",
            "7 tokens, < | end oft xt | >",
            "\"tokenizer.{role}='<|endoftext|>'\"",
        ),
        (
            "zzz~",
            "3 tokens, zz z ~",
            "\"tokenizer.special_tokens=['zzz~']\" makes one token of it",
        ),
    ],
)
def test_a_token_that_the_vocabulary_splits_is_an_error(
    load: Load, role: str, wanted: str, pieces: str, fix: str
) -> None:
    with pytest.raises(ModelError) as error:
        load(**{role: wanted})
    assert str(error.value) == (
        f"tokenizer.{role}: {wanted!r} is not in the vocabulary: it is split into {pieces}\n"
        "    allowed: auto, keep, or a token such as <|im_start|>, <|im_end|>, <|endoftext|>\n"
        f"    {fix.format(role=role)}"
    )


def test_there_must_be_a_pad_to_keep(golden: Path, load: Load) -> None:
    with pytest.raises(ModelError, match=r"'<\|im_end\|>' is the EOS token"):
        load(pad_token="keep")
    with pytest.raises(ModelError) as error:
        load(name_or_path=str(golden / "tokenizers" / "gpt2"), pad_token="keep")
    assert (
        str(error.value)
        == "tokenizer.pad_token: keep, and the tokenizer has no PAD\n    tokenizer.pad_token=auto"
    )


@pytest.mark.parametrize(
    "tokens",
    [["zzz~"], ["<|a|>", "<|b|>"], ["it's"], ["$HOME"], ["a!b"], ["a\\b\\"], ["\\'"], ['a"b']],
)
def test_the_override_that_adds_tokens_can_be_typed(tokens: list[str]) -> None:
    (typed,) = Problem("", "", fix=f"{how_to_add(tokens)} makes tokens of them").commands
    (override,) = shlex.split(typed)
    assert compose(["recipe=yoda", override]).tokenizer.special_tokens == tokens


# --- new tokens -----------------------------------------------------------------------------------


def test_golden_new_tokens_get_the_ids_after_the_vocabulary(golden: Path) -> None:
    cfg = TokenizerConfig(
        name_or_path=str(golden / "tokenizers" / "opt-350m"),
        special_tokens=["<|im_start|>"],
        tokens=["##[YODA]##>"],
        bos_token="<|im_start|>",
        unk_token="<unk>",
    )
    tokenizer = load_tokenizer(cfg, "", None)
    assert set_special_tokens(tokenizer, cfg, TEMPLATES) == range(50265, 50267)
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "##[YODA]##>"]) == [50265, 50266]
    roles = ("bos_token", "eos_token", "unk_token", "pad_token")
    assert [getattr(tokenizer, role) for role in roles] == [
        "<|im_start|>",
        "</s>",
        "<unk>",
        "<pad>",
    ]
    assert tokenizer.decode([50265, 133, 50266], skip_special_tokens=True) == "The##[YODA]##>"


@pytest.mark.parametrize(
    ("name", "added", "roles"),
    [
        ("opt-350m", [], ("</s>", "</s>", "</s>")),
        ("gpt2", ["[PAD]"], ("<|endoftext|>",) * 3),
        ("phi-3-mini-4k-instruct", [], ("<|endoftext|>", "<s>", "<unk>")),
    ],
)
def test_golden_auto_adds_what_alpaca_adds(
    golden: Path, name: str, added: list[str], roles: tuple[str, ...]
) -> None:
    cfg = TokenizerConfig(
        name_or_path=str(golden / "tokenizers" / name),
        eos_token="auto",
        bos_token="auto",
        unk_token="auto",
    )
    tokenizer = load_tokenizer(cfg, "", None)
    assert (
        tokenizer.convert_ids_to_tokens(list(set_special_tokens(tokenizer, cfg, TEMPLATES)))
        == added
    )
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token) == roles


def test_auto_adds_alpacas_tokens_where_there_are_none(
    load: Load, tokenizer: Any, tmp_path: Path
) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = bare.bos_token = bare.unk_token = None
    bare.save_pretrained(tmp_path / "bare")
    made = load(
        name_or_path=str(tmp_path / "bare"), eos_token="auto", bos_token="auto", unk_token="auto"
    )
    assert made.convert_tokens_to_ids([made.eos_token, made.bos_token, made.unk_token]) == [
        49152,
        49153,
        49154,
    ]
    assert (made.eos_token, made.bos_token, made.unk_token) == ("</s>", "<s>", "<unk>")


@pytest.mark.parametrize(("key", "word"), [("special_tokens", "the"), ("tokens", "the")])
def test_a_word_of_the_vocabulary_becomes_no_new_token(load: Load, key: str, word: str) -> None:
    with pytest.raises(ModelError) as error:
        load(**{key: [word]})
    assert str(error.value) == (
        f"tokenizer.{key}: 'the' is an ordinary token of the vocabulary (id 1195); as a new one "
        "it would be cut out of words\n"
        "    allowed: strings that are no token yet\n    remove it from the list"
    )


def test_a_token_that_is_there_is_not_added_twice(load: Load, tokenizer: Any) -> None:
    assert len(load(special_tokens=["<|im_end|>"])) == len(tokenizer)


def test_a_blank_token_is_an_error(load: Load) -> None:
    with pytest.raises(ModelError, match=r"^tokenizer\.tokens: ' '"):
        load(tokens=[" "])


def test_tokens_that_a_template_writes_and_the_tokenizer_splits_are_found(load: Load) -> None:
    assert unknown_tokens(load()) == []
    assert unknown_tokens(load(chat_template="phi3")) == ["<|end|>", "<|assistant|>"]
    assert (
        unknown_tokens(load(chat_template="phi3", special_tokens=["<|end|>", "<|assistant|>"]))
        == []
    )


def test_rows_are_padded_on_the_right(tokenizer: Any) -> None:
    batch = tokenizer(["one two three", "one"], padding=True)
    assert batch.input_ids[1][1:] == [tokenizer.pad_token_id] * 2


# --- chat templates -------------------------------------------------------------------------------

TURN = [{"role": "user", "content": "Hi."}]


def test_the_models_own_template_is_the_default(load: Load) -> None:
    text = load().apply_chat_template(TURN, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_is_found_by_its_name(load: Load) -> None:
    tokenizer = load(chat_template="chatml_bos_eos")
    assert tokenizer.chat_template == (TEMPLATES / "chatml_bos_eos.jinja").read_text(
        encoding="utf-8"
    )
    text = tokenizer.apply_chat_template(TURN, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_is_found_by_its_path(load: Load, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }} \U0001f600", encoding="utf-8")
    tokenizer = load(chat_template=str(tmp_path / "mine.jinja"))
    assert tokenizer.apply_chat_template(TURN, tokenize=False) == "Hi. \U0001f600"


@pytest.mark.parametrize(
    ("name", "fix"),
    [("chatml_bos_eod", "\n    tokenizer.chat_template=chatml_bos_eos"), ("none/such.jinja", "")],
)
def test_an_unknown_template_names_the_ones_there_are(load: Load, name: str, fix: str) -> None:
    with pytest.raises(ModelError) as error:
        load(chat_template=name)
    assert str(error.value) == (
        f"tokenizer.chat_template: {name!r} is neither a named template nor a file\n"
        "    allowed: chatml, chatml_bos_eos, llama3, phi3, zephyr, or the path of a .jinja "
        f"file{fix}"
    )


def test_golden_opt_has_no_template_of_its_own(raw: Callable[[str], Any]) -> None:
    assert raw("opt-350m").chat_template is None


# --- markers --------------------------------------------------------------------------------------


def test_markers_become_special_tokens_of_one_id_each(smollm2: Weights) -> None:
    plain = settled(TokenizerConfig(), smollm2)
    tokenizer = settled(TokenizerConfig(), smollm2, ["|SOUND|>", "|NOISE|>"])
    assert tokenizer("a|SOUND|>b|NOISE|>").input_ids == [
        *plain("a").input_ids,
        len(plain),
        *plain("b").input_ids,
        len(plain) + 1,
    ]
    assert tokenizer.decode(tokenizer("a|SOUND|>b").input_ids, skip_special_tokens=True) == "ab"


# --- the one definition ---------------------------------------------------------------------------


def test_special_tokens_are_told_from_added_ones_and_both_have_ids(load: Load) -> None:
    tokenizer = load(special_tokens=["<|turn|>"], tokens=["##[YODA]##>"])
    special = SpecialTokens.of(tokenizer)
    assert {"<|turn|>", "##[YODA]##>"} <= set(special.added)
    assert "<|turn|>" in special.special
    assert "<|turn|>" in special.control
    assert "##[YODA]##>" not in special.special
    assert "##[YODA]##>" not in special.control
    assert tokenizer.convert_tokens_to_ids("##[YODA]##>") in special
    assert tokenizer.convert_tokens_to_ids("the") not in special
    assert special.pattern.findall("a ##[YODA]##><|turn|>b") == ["##[YODA]##>", "<|turn|>"]


def test_an_added_token_that_the_template_writes_is_a_control_token(
    load: Load, tmp_path: Path
) -> None:
    (tmp_path / "mine.jinja").write_text("##[YODA]##>{{ messages[0].content }}", encoding="utf-8")
    tokenizer = load(tokens=["##[YODA]##>"], chat_template=str(tmp_path / "mine.jinja"))
    special = SpecialTokens.of(tokenizer)
    assert "##[YODA]##>" in special.control
    assert "##[YODA]##>" not in special.special


def test_the_longest_word_is_found_first_and_no_words_match_nothing() -> None:
    assert any_of(["<a>", "<a>>"]).findall("<a>><a>") == ["<a>>", "<a>"]
    assert any_of([]).search("anything") is None
