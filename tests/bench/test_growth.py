"""The growth of a step, on models that are made in a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sftpipe.bench import growth


def test_three_sizes_of_each_are_measured_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {
        "rows": (1, 2, 3),
        "tokens": (4, 6, 8),
        "width": (64, 128, 192),
        "vocabulary": (40, 50, 60),
    }
    made: list[dict[str, int]] = []
    original = growth._step

    def noted(folder: Path, **of: int) -> Callable[[], object]:
        made.append(of)
        return original(folder, **of)

    monkeypatch.setattr(growth, "SIZES", sizes)
    monkeypatch.setattr(growth, "_step", noted)
    monkeypatch.chdir(tmp_path)
    found = growth.growth()
    assert list(found) == [f"{name} {size}, s" for name, some in sizes.items() for size in some]
    middle = {"rows": 2, "tokens": 6, "width": 128, "vocabulary": 50}
    assert made == [{**middle, name: size} for name, some in sizes.items() for size in some]
    assert all(seconds > 0 for seconds in found.values())
    picture = (tmp_path / "growth.svg").read_text()
    assert all(f"<!-- {name} -->" in picture for name in sizes)
