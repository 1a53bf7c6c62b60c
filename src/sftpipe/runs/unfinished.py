"""Rows of a long piece of work, kept as they are finished, so that a second start goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sftpipe.storage import writing

FOLDER = ".unfinished"  # beside the file that will hold all rows


class Unfinished:
    """The finished rows of a piece of work that is not whole yet.

    done: {number of a row: its value}; a row whose line was cut short by a kill is not among them.
    """

    def __init__(self, folder: Path, name: str, key: str) -> None:
        """Go on with what is there.

        Args:
            folder: where the whole work will be written.
            name: of the work.
            key: digest of everything that the rows depend on; rows of another key are dropped.
        """
        self._file = folder / FOLDER / f"{name}.jsonl"
        self.done: dict[int, Any] = {}
        lines = self._file.read_bytes().split(b"\n") if self._file.is_file() else []
        if lines and _read(lines[0]) == {"key": key}:
            rows = [row for line in lines[1:] if (row := _read(line)) is not None]
            self.done = {int(row["number"]): row["value"] for row in rows}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        # written anew: what follows a line that was cut short would be lost with it
        kept = [{"number": number, "value": value} for number, value in self.done.items()]
        partial = self._file.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(_line(entry) for entry in ({"key": key}, *kept))
        partial.replace(self._file)

    def add(self, number: int, value: Any) -> None:
        """Keep one more row; it is in the file when this returns."""
        self.done[number] = value
        with writing(self._file), self._file.open("a", encoding="utf-8") as file:
            file.write(_line({"number": number, "value": value}))

    def in_order(self) -> list[Any]:
        """The values by their numbers."""
        return [self.done[number] for number in sorted(self.done)]

    def remove(self) -> None:
        """The whole work is written."""
        self._file.unlink(missing_ok=True)
        if not any(self._file.parent.iterdir()):
            self._file.parent.rmdir()


def _line(entry: Any) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _read(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
