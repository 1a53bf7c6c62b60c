"""The tokenizer of a run: loaded or trained, and a trained one from the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import sftpipe
from sftpipe.config.options import conf_dir
from sftpipe.config.schema import TokenizerConfig
from sftpipe.errors import DataError
from sftpipe.model.weights import Weights
from sftpipe.tokenizer.make import make_tokenizer
from sftpipe.tokenizer.special_tokens import set_special_tokens
from sftpipe.tokenizer.train import train_tokenizer
from support.configs import compose
from support.errors import places, refused

PROSE = ["the cat sat on the mat and the dog sat on the log, and then the cat and the dog ran"] * 3
TRAINED = {
    "char": TokenizerConfig(type="char"),
    "char with UNK": TokenizerConfig(type="char", unk_token="[UNK]", tokens=["##[YODA]##>"]),
    "char with a template": TokenizerConfig(type="char", chat_template="chatml"),
    "bpe": TokenizerConfig(type="bpe", vocab_size=280),
    "bpe with PAD": TokenizerConfig(type="bpe", vocab_size=280, pad_token="<pad>"),
}
TEMPLATES = conf_dir() / "chat_template"


class Corpus:
    """Texts that count how often they are asked for."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.asked = texts, 0

    def __call__(self, blank: Any) -> Iterator[str]:
        self.asked += 1
        yield from self.texts


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SFTPIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def made(
    cfg: TokenizerConfig,
    corpus: Callable[[Any], Any],
    key: str = "one",
    markers: Sequence[str] = ("|HM|>",),
) -> Any:
    tokenizer, new_tokens = make_tokenizer(cfg, "", None, markers, TEMPLATES, corpus, key)
    assert new_tokens == ()
    return tokenizer


def files(tokenizer: Any, folder: Path) -> dict[str, bytes]:
    tokenizer.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("cfg", TRAINED.values(), ids=TRAINED)
def test_a_tokenizer_of_the_cache_is_the_one_that_was_trained(
    cfg: TokenizerConfig, tmp_path: Path
) -> None:
    fresh = train_tokenizer(cfg, PROSE)
    set_special_tokens(fresh, cfg, TEMPLATES, ["|HM|>"])
    corpus = Corpus(PROSE)
    first, second = made(cfg, corpus), made(cfg, corpus)
    assert corpus.asked == 1
    text = "the cat|HM|> sat##[YODA]##> on\n\n the  dog's mat<|endoftext|>"
    for number, tokenizer in enumerate((first, second)):
        assert type(tokenizer) is type(fresh)
        assert tokenizer.backend_tokenizer.to_str() == fresh.backend_tokenizer.to_str()
        assert tokenizer(text).input_ids == fresh(text).input_ids
        assert tokenizer.special_tokens_map == fresh.special_tokens_map
        assert files(tokenizer, tmp_path / f"{number}") == files(fresh, tmp_path / "fresh")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("char", {"key": "other"}),
        ("char", {"markers": ["|SOUND|>"]}),
        ("char", {"cfg": TokenizerConfig(type="char", pad_token="<pad>")}),
        ("char", {"cfg": TokenizerConfig(type="char", chat_template="chatml")}),
        ("bpe", {"cfg": TokenizerConfig(type="bpe", vocab_size=270)}),
    ],
)
def test_other_texts_or_another_config_train_another_one(kind: str, change: dict[str, Any]) -> None:
    corpus = Corpus(PROSE)
    made(TRAINED[kind], corpus)
    made(**{"cfg": TRAINED[kind], "corpus": corpus, **change})
    assert corpus.asked == 2


def test_an_edited_template_trains_another_one(tmp_path: Path) -> None:
    corpus, template = Corpus(PROSE), tmp_path / "mine.jinja"
    cfg = TokenizerConfig(type="char", chat_template=str(template))
    for text in ("{{ messages[0].content }}", "{{ messages[0].content }}!"):
        template.write_text(text, encoding="utf-8")
        made(cfg, corpus)
    assert corpus.asked == 2


def test_the_corpus_is_written_with_special_tokens_and_a_template() -> None:
    seen = []

    def corpus(blank: Any) -> list[str]:
        seen.append((blank.eos_token, blank.chat_template is not None, blank("|HM|>").input_ids))
        return PROSE

    made(TRAINED["char with a template"], corpus)
    assert seen == [("<|endoftext|>", True, [2])]


def test_a_tokenizer_that_cannot_be_trained_leaves_nothing_behind(empty_cache: Path) -> None:
    for _ in range(2):
        corpus = Corpus(PROSE)
        cfg = TokenizerConfig(type="bpe", vocab_size=5000)
        error = refused(DataError, partial(made, cfg, corpus))
        assert places(error) == ["tokenizer.vocab_size"]
        assert corpus.asked == 1
    assert [path for path in (empty_cache / "tokenizers").iterdir() if path.is_dir()] == []


def test_a_loaded_tokenizer_reads_no_corpus_and_names_its_new_tokens(smollm2: Weights) -> None:
    corpus = Corpus(PROSE)
    cfg = TokenizerConfig(tokens=["##[YODA]##>"])
    tokenizer, new_tokens = make_tokenizer(
        cfg, smollm2.path, smollm2.revision, ["|HM|>"], TEMPLATES, corpus, ""
    )
    assert tokenizer.convert_ids_to_tokens(list(new_tokens)) == ["##[YODA]##>", "|HM|>"]
    assert corpus.asked == 0


def test_a_run_with_other_rows_trains_another_one(rows_file: Callable[..., str]) -> None:
    words = ["model=char_gpt", "format=text", "loss=full", "packing=none", "evaluation=none"]
    vocabularies = []
    for number, text in enumerate(("ab", "abc", "ab")):
        file = rows_file([{"text": text}], f"{number}.jsonl")
        data = ["dataset=json", f"dataset.data_files={file}", "tokenizer=char"]
        prepared = sftpipe.prepare(compose([*data, *words]))
        vocabularies.append(len(prepared.tokenizer))
    assert vocabularies == [4, 5, 4]
