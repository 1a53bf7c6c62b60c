"""Fixtures of the data tests."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sftpipe.config.schema import TokenizerConfig
from support.tokenizers import settled


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[..., str]:
    """Write rows as JSON Lines; returns the path."""

    def write(rows: Sequence[Mapping[str, Any]], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
        return str(path)

    return write


@pytest.fixture
def templated(tokenizer: Any) -> Callable[[str | None], Any]:
    """The embedded tokenizer with another chat template."""

    def make(template: str | None) -> Any:
        changed = copy.copy(tokenizer)
        changed.chat_template = template
        return changed

    return make


@pytest.fixture(scope="session")
def phi3(golden: Path) -> Any:
    """Phi-3's tokenizer: SentencePiece pieces, a turn token that is not EOS, a PAD that was EOS."""
    cfg = TokenizerConfig(name_or_path=str(golden / "tokenizers" / "phi-3-mini-4k-instruct"))
    return settled(cfg)


@pytest.fixture(scope="session")
def opt(golden: Path) -> Any:
    """OPT's tokenizer: it puts BOS in front of plain text, and its BOS is its EOS; the template is
    ours.
    """
    cfg = TokenizerConfig(
        name_or_path=str(golden / "tokenizers" / "opt-350m"), chat_template="chatml_bos_eos"
    )
    return settled(cfg)
