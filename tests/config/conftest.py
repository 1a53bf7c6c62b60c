"""Each test of a config starts in an empty folder, without recipes of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., None]:
    """Write ./recipes/NAME.yaml of the working folder."""

    def write(text: str, name: str = "mine") -> None:
        (tmp_path / "recipes").mkdir(exist_ok=True)
        (tmp_path / "recipes" / f"{name}.yaml").write_text(text, encoding="utf-8")

    return write


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with copies of conf/ and recipes/ that a test may change."""
    folder = tmp_path / "shipped"
    for name in ("conf", "recipes"):
        shutil.copytree(REPOSITORY / name, folder / name)
    monkeypatch.setattr("sftpipe.config.options.shipped_dir", lambda: folder)
    return folder
