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


def load(**keys: Any) -> Any:
    """A tokenizer that the config names; no model lends one."""
    return load_tokenizer(TokenizerConfig(**keys), "", None)


def test_a_tokenizer_of_its_own_replaces_the_models(
    smollm2: Weights, tokenizer: Any, tmp_path: Path
) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = "mine"
    changed.save_pretrained(tmp_path / "mine")
    cfg = TokenizerConfig(name_or_path=str(tmp_path / "mine"))
    assert load_tokenizer(cfg, smollm2.path, None).chat_template == "mine"
    assert load_tokenizer(TokenizerConfig(), smollm2.path, None).chat_template != "mine"


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        load(name_or_path=str(tmp_path))
    assert str(error.value).startswith(
        f"tokenizer.name_or_path: no tokenizer could be loaded from {tmp_path} ("
    )
    assert str(error.value).endswith("\n    name a folder or hub id that holds a tokenizer.json")


def test_a_hub_id_without_a_network_is_named() -> None:
    with pytest.raises(
        ModelError,
        match=r"^tokenizer\.name_or_path: no tokenizer could be loaded from someone/some-model \(",
    ):
        load(name_or_path="someone/some-model")


def test_a_damaged_tokenizer_file_is_an_error_and_no_traceback(
    smollm2: Weights, tmp_path: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(smollm2.path) / name, tmp_path / name)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ModelError, match=r"^tokenizer\.name_or_path: "):
        load(name_or_path=str(tmp_path))


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
