"""Published tokenizers: where they are loaded from, and what is no tokenizer."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest

from sftpipe.config.schema import TokenizerConfig
from sftpipe.errors import ModelError
from sftpipe.model.weights import Weights
from sftpipe.tokenizer.load import load_tokenizer
from support.errors import places, refused
from support.tokenizers import write_kind


def load(**keys: Any) -> Any:
    """A tokenizer that the config names; no model lends one."""
    return load_tokenizer(TokenizerConfig(**keys), "", None)


def test_a_tokenizer_of_its_own_replaces_the_models(
    smollm2: Weights, chatml: Any, tmp_path: Path
) -> None:
    changed = copy.copy(chatml)
    changed.chat_template = "mine"
    changed.save_pretrained(tmp_path / "mine")
    cfg = TokenizerConfig(name_or_path=str(tmp_path / "mine"))
    assert load_tokenizer(cfg, smollm2.path, None).chat_template == "mine"
    assert load_tokenizer(TokenizerConfig(), smollm2.path, None).chat_template != "mine"


def test_a_commit_is_one_of_the_model_and_not_of_a_tokenizer_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, commits in (("model", ["a" * 40, "b" * 40]), ("other", ["c" * 40])):
        folder = tmp_path / f"models--someone--{name}"
        for commit in commits:
            snapshot = write_kind("chatml", folder / "snapshots" / commit)
            (snapshot / "chat_template.jinja").write_text(f"{name} {commit[0]}")
            (folder / "refs").mkdir(exist_ok=True)
            (folder / "refs" / "main").write_text(commit)
    model, other = "someone/model", TokenizerConfig(name_or_path="someone/other")
    for cfg, commit, template in (
        (TokenizerConfig(), None, "model b"),
        (TokenizerConfig(), "a" * 40, "model a"),
        (other, "a" * 40, "other c"),
    ):
        assert load_tokenizer(cfg, model, commit).chat_template == template


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    (problem,) = refused(ModelError, lambda: load(name_or_path=str(tmp_path))).problems
    assert problem.where == "tokenizer.name_or_path"
    assert f"{tmp_path} (" in problem.found
    assert problem.fix.endswith("tokenizer.json")


def test_a_hub_id_without_a_network_is_named() -> None:
    error = refused(ModelError, lambda: load(name_or_path="someone/some-model"))
    assert places(error) == ["tokenizer.name_or_path"]
    assert "someone/some-model (" in error.problems[0].found


def test_a_damaged_tokenizer_file_is_an_error_and_no_traceback(
    smollm2: Weights, tmp_path: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(smollm2.path) / name, tmp_path / name)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    error = refused(ModelError, lambda: load(name_or_path=str(tmp_path)))
    assert places(error) == ["tokenizer.name_or_path"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a  12", ["a", "  ", "1", "2"]),
        ("2024", ["2", "0", "2", "4"]),
        ("x=10;", ["x", "=", "1", "0", ";"]),
    ],
)
def test_the_embedded_tokenizer_takes_digits_one_by_one(
    tokenizer: Any, text: str, tokens: list[str]
) -> None:
    assert [tokenizer.decode([token]) for token in tokenizer(text).input_ids] == tokens
