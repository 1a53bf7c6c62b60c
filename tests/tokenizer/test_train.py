"""Tokenizers that are trained on the run's own texts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import sftpipe
from sftpipe.config.schema import LossConfig, TokenizerConfig
from sftpipe.data.encode import Encoder
from sftpipe.errors import DataError, RowError
from sftpipe.tokenizer.train import blank_tokenizer, train_tokenizer
from support.configs import compose, config_error
from support.errors import Pin, named, refused, told
from support.rows import split_of

CHAR = TokenizerConfig(type="char")
TEXTS = ["너는 누구니?", '나는  나다.\n\n"끝"']
PROSE = ["the cat sat on the mat and the dog sat on the log, and then the cat and the dog ran"] * 3
WORDS = ["model=char_gpt", "format=text", "loss=full", "packing=none", "evaluation=none"]
RowsFile = Callable[..., str]


def read_back(tokenizer: Any, text: str) -> str:
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids))


# --- characters -----------------------------------------------------------------------------------


def test_ids_are_code_points_in_order_with_the_special_tokens_after() -> None:
    tokenizer = train_tokenizer(CHAR, ["ba", "c\n"])
    assert tokenizer.get_vocab() == {
        "\n": 0,
        "a": 1,
        "b": 2,
        "c": 3,
        "<|endoftext|>": 4,
        "[PAD]": 5,
    }
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token) == (
        "<|endoftext|>",
        "[PAD]",
        None,
        None,
    )
    assert (
        train_tokenizer(CHAR, ["c\n", "ba"]).backend_tokenizer.to_str()
        == tokenizer.backend_tokenizer.to_str()
    )


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_every_text_reads_back_exactly(text: str) -> None:
    assume("<|endoftext|>" not in text)
    assume("[PAD]" not in text)
    tokenizer = train_tokenizer(CHAR, [text])
    assert read_back(tokenizer, text) == text
    assert tokenizer(text).input_ids == [sorted(set(text)).index(character) for character in text]


@pytest.mark.parametrize(
    "text",
    [
        "a  b",
        " a ",
        "\n\n",
        "don ' t , it is .",
        unicodedata.normalize("NFD", "한글"),
        "\u00a0\u200b\t",
    ],
)
def test_white_space_and_decomposed_letters_stay_as_they_are(text: str) -> None:
    assert read_back(train_tokenizer(CHAR, [text]), text) == text


def test_a_lone_surrogate_is_left_to_the_encoder() -> None:
    tokenizer = train_tokenizer(CHAR, ["a\ud800"])
    assert "a" in tokenizer.get_vocab()
    error = Encoder(tokenizer, LossConfig("full")).characters.first_lost(["a\ud800"], "train[0]")
    assert isinstance(error, RowError)
    assert error.reason == "broken text"


@pytest.mark.parametrize(("asked", "token"), [("[UNK]", "[UNK]"), ("auto", "[UNK]"), ("?~", "?~")])
def test_unk_is_there_when_it_is_asked_for(asked: str, token: str) -> None:
    tokenizer = train_tokenizer(TokenizerConfig(type="char", unk_token=asked), ["ab"])
    assert tokenizer.get_vocab() == {"a": 0, "b": 1, "<|endoftext|>": 2, "[PAD]": 3, token: 4}
    assert tokenizer("axyb").input_ids == [0, 4, 4, 1]
    assert tokenizer.unk_token_id == 4


def test_a_pad_that_the_config_names_is_made() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(type="char", pad_token="<pad>"), ["ab"])
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<pad>", 3)


def test_a_blank_tokenizer_has_special_tokens_alone() -> None:
    assert blank_tokenizer(TokenizerConfig(type="bpe", vocab_size=300)).get_vocab() == {
        "<|endoftext|>": 0,
        "[PAD]": 1,
    }


def test_an_encoder_works_with_a_vocabulary_that_lacks_the_letter_a() -> None:
    encoder = Encoder(train_tokenizer(CHAR, ["한글 \n"]), LossConfig("full"))
    assert encoder.characters.first_lost([" 글한\n"], "train[0]") is None
    error = encoder.characters.first_lost(["한국"], "train[3]")
    assert error is not None
    assert error.reason == "character outside the vocabulary"
    assert str(error).startswith(
        "train[3]: '국' (U+AD6D) is not in the tokenizer's vocabulary; it would be read as ''\n"
    )


# --- bytes and merges -----------------------------------------------------------------------------


def test_bpe_has_as_many_tokens_as_asked_for_and_is_the_same_each_time() -> None:
    cfg = TokenizerConfig(type="bpe", vocab_size=280)
    tokenizer = train_tokenizer(cfg, PROSE)
    assert len(tokenizer) == 280
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token) == (278, 279, None)
    assert len(tokenizer("the cat").input_ids) < len("the cat")
    assert all(
        train_tokenizer(cfg, iter(PROSE)).backend_tokenizer.to_str()
        == tokenizer.backend_tokenizer.to_str()
        for _ in range(5)
    )


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_bpe_reads_back_texts_that_it_never_saw(text: str) -> None:
    assert read_back(BPE, text) == text


BPE = train_tokenizer(TokenizerConfig(type="bpe", vocab_size=270), PROSE)


def test_too_little_text_for_the_vocabulary_is_an_error(golden_error: Pin) -> None:
    cfg = TokenizerConfig(type="bpe", vocab_size=5000)
    error = refused(DataError, lambda: train_tokenizer(cfg, ["ababab", "\ud800"]))
    assert told(error) == {"tokenizer.vocab_size": ("tokenizer.vocab_size=260",)}
    assert re.findall(r"\d+", error.problems[0].found) == ["5000", "260"]
    golden_error(error)


# --- in a run -------------------------------------------------------------------------------------


def prepare(file: str, *words: str) -> Any:
    return sftpipe.prepare(compose(["dataset=json", f"dataset.data_files={file}", *WORDS, *words]))


def test_characters_come_from_all_splits_and_merges_from_train(rows_file: RowsFile) -> None:
    file = rows_file([{"text": "aaab"}, {"text": "abab"}, {"text": "xyz"}])
    cut = "dataset.validation_size=1"
    data = prepare(file, "tokenizer=char", cut)
    assert sorted(data.tokenizer.get_vocab(), key=data.tokenizer.get_vocab().get) == [
        *"abxyz",
        "<|endoftext|>",
        "[PAD]",
    ]
    assert data.train[1]["input_ids"] == [0, 1, 0, 1, 5]
    assert data.validation[0]["input_ids"] == [2, 3, 4, 5]
    bpe = prepare(
        rows_file([{"text": "aaab"}, {"text": "abab"}, {"text": "xyxyxy"}], "b.jsonl"),
        "tokenizer=bpe",
        cut,
        "tokenizer.vocab_size=259",
    )
    assert bpe.tokenizer.convert_ids_to_tokens(256) == "ab"


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        ["tokenizer=char"],
        ["tokenizer=char", "tokenizer.unk_token='[UNK]'"],
        ["tokenizer=bpe", "tokenizer.vocab_size=300"],
    ],
)
def test_a_saved_tokenizer_loads_with_transformers_alone(kind: list[str], tmp_path: Path) -> None:
    data = sftpipe.prepare(compose(["recipe=char_gpt_ko", *kind]))
    data.tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = next(data.samples("validation")).text
    assert loaded(text).input_ids == data.tokenizer(text).input_ids
    assert loaded.decode(loaded(text).input_ids) == text
    for name in ("eos_token", "pad_token", "unk_token", "bos_token"):
        assert getattr(loaded, name) == getattr(data.tokenizer, name)


@pytest.fixture
def saved(rows_file: RowsFile, tmp_path: Path) -> Callable[..., str]:
    """A char tokenizer of the letters b and d, in a folder."""

    def save(*words: str) -> str:
        prepare(
            rows_file([{"text": "bd"}], "saved.jsonl"), "tokenizer=char", *words
        ).tokenizer.save_pretrained(tmp_path / "saved")
        return f"tokenizer.name_or_path={tmp_path / 'saved'}"

    return save


def test_a_row_with_a_character_outside_a_loaded_vocabulary_is_named(
    saved: Callable[..., str], rows_file: RowsFile
) -> None:
    file = rows_file([{"text": "bddb"}, {"text": "bdc"}])
    count, row = refused(DataError, lambda: prepare(file, saved())).problems
    assert count.found.endswith(": 1 x character outside the vocabulary")
    assert row.where == "train[1] (rows.jsonl, line 2)"
    assert row.found.startswith("'c' (U+0063) ")
    assert row.found.endswith(" ''")


def test_such_a_character_becomes_unk_where_the_config_says_so(
    saved: Callable[..., str], rows_file: RowsFile
) -> None:
    name, file = (
        saved("tokenizer.unk_token='[UNK]'"),
        rows_file([{"text": "bddb"}, {"text": "bcd"}]),
    )
    error = refused(DataError, lambda: prepare(file, name))
    assert error.problems[-1].found.endswith(" '[UNK]'")
    data = prepare(file, name, "tokenizer.unk_token='[UNK]'")
    assert data.train[1]["input_ids"] == [0, data.tokenizer.unk_token_id, 1, 2]
    assert split_of(data.preflight, "train").unk_rows == 1
    assert any("hold '[UNK]'" in warning.found for warning in data.preflight.warnings)


def test_a_prompt_with_an_unknown_character_is_an_error(
    rows_file: RowsFile, golden_error: Pin
) -> None:
    words = ["tokenizer=char", "evaluation=default", "evaluation.sample_prompts=[bd,bXd]"]
    file = rows_file([{"text": "bddb"}])
    error = refused(DataError, lambda: prepare(file, *words))
    command = "\"tokenizer.unk_token='[UNK]'\""
    assert told(error) == {"evaluation.sample_prompts[1]": (command,)}
    assert error.problems[0].found.startswith("'X' (U+0058) ")
    golden_error(error)
    data = prepare(file, *words, "tokenizer.unk_token='[UNK]'")
    assert data.encoder.prompt_ids("bXd") == [0, data.tokenizer.unk_token_id, 1]


def test_what_a_template_writes_is_known_and_special_tokens_are_not_spelt_out(
    rows_file: RowsFile, tmp_path: Path
) -> None:
    (tmp_path / "mine.jinja").write_text(
        "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}{{ eos_token if m.role == "
        "'assistant' else '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}a: {% endif %}"
    )
    file = rows_file([{"instruction": "x", "output": "zy"}])
    template = f"tokenizer.chat_template={tmp_path / 'mine.jinja'}"
    data = prepare(file, "tokenizer=char", "format=instruction", template, "loss=completion_only")
    assert sorted(data.tokenizer.get_vocab(), key=data.tokenizer.get_vocab().get) == [
        *"\n :auxyz",
        "<|endoftext|>",
        "[PAD]",
    ]
    assert data.tokenizer.decode(data.train[0]["input_ids"]) == "u: x\na: zy<|endoftext|>"


def test_markers_are_tokens_and_not_characters(rows_file: RowsFile) -> None:
    file = rows_file([{"text": "b|HM|>d"}])
    data = prepare(
        file, "tokenizer=char", "dataset.markers=special", "dataset.marker_tokens=['|HM|>']"
    )
    assert data.tokenizer.get_vocab() == {
        "b": 0,
        "d": 1,
        "<|endoftext|>": 2,
        "[PAD]": 3,
        "|HM|>": 4,
    }
    assert data.train[0]["input_ids"] == [0, 4, 1, 2]


SIZE, NAME = "tokenizer.vocab_size", "tokenizer.name_or_path"


@pytest.mark.parametrize(
    ("words", "where", "commands"),
    named(
        [
            ["size of char", ["tokenizer=char", f"{SIZE}=300"], SIZE, ()],
            ["no size", ["tokenizer=bpe", f"{SIZE}=null"], SIZE, (f"{SIZE}=4096",)],
            ["too small", ["tokenizer=bpe", f"{SIZE}=200"], f"{SIZE} (command line)", ()],
            ["unk of bytes", ["tokenizer=bpe", "tokenizer.unk_token=x"], "tokenizer.unk_token", ()],
            ["a name", ["tokenizer=char", f"{NAME}=x"], NAME, ("tokenizer=default",)],
            [
                "a trained model",
                ["tokenizer=char", "model=smollm2_135m"],
                "tokenizer.type=char",
                ("tokenizer=default", "model.init=random"),
            ],
            ["no name", ["tokenizer=default"], NAME, ("tokenizer=char", "tokenizer=bpe")],
        ]
    ),
)
def test_keys_that_do_not_go_together(
    words: list[str], where: str, commands: tuple[str, ...], golden_error: Pin
) -> None:
    error = config_error(*WORDS, "dataset=ko_corpus", *words)
    assert told(error)[where] == commands
    golden_error(next(problem for problem in error.problems if problem.where == where))
