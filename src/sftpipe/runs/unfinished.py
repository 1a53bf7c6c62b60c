"""Rows of a long piece of work, kept as they are finished, so that a second start goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Unfinished:
    """The finished rows of a file that is not whole yet, in `.<name>.unfinished` beside it.

    done: {number of a row: its value}. A row whose line a kill cut short is not among them.
    """

    def __init__(self, final: Path, key: str) -> None:
        """Go on with what is there.

        Args:
            final: the file that will hold all rows.
            key: digest of everything that the rows depend on; rows of another key are dropped.
        """
        self._file = final.with_name(f".{final.name}.unfinished")
        self.done: dict[int, Any] = {}
        lines = self._file.read_bytes().splitlines() if self._file.is_file() else []
        if not lines or _read(lines[0]) != {"key": key}:
            final.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")
            return
        for line in lines[1:]:
            if (row := _read(line)) is not None:
                self.done[row["number"]] = row["value"]
        # the line after a cut one would be lost with it
        with self._file.open("a", encoding="utf-8") as file:
            file.write("\n")

    def add(self, number: int, value: Mapping[str, Any] | Any) -> None:
        """Keep one more row; it is on disk when this returns."""
        self.done[number] = value
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"number": number, "value": value}, ensure_ascii=False) + "\n")

    def remove(self) -> None:
        """The final file is written."""
        self._file.unlink(missing_ok=True)


def _read(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
