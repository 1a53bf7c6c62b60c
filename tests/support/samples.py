"""Samples of rows, as a run makes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sftpipe.config.schema import FormatConfig
from sftpipe.data import formats
from sftpipe.data.row_function import as_json, call_function
from sftpipe.data.samples import Row, Sample
from sftpipe.errors import RowError


def turn(role: Any, content: Any) -> dict[str, Any]:
    """A message."""
    return {"role": role, "content": content}


def talk(roles: str) -> list[dict[str, Any]]:
    """Turns named by their first letters: "sua" is system, user, assistant; contents tell
    letter and place.
    """
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [turn(names[letter], f"{letter}{at}") for at, letter in enumerate(roles)]


def to_samples(
    rows: Sequence[Row], cfg: FormatConfig, locations: Sequence[str], function: Any = None
) -> list[Sample | RowError]:
    """Samples, of format=function by way of what is stored of its values."""
    if cfg.type == "function":
        values = call_function(function, rows, cfg, locations)
        rows = [
            json.loads(as_json(value, cfg, where))
            for value, where in zip(values, locations, strict=True)
        ]
    return formats.to_samples(rows, cfg, locations)


def to_sample(row: Row, cfg: FormatConfig, where: str, function: Any = None) -> Sample:
    """The sample of one row; raises its error."""
    (sample,) = to_samples([row], cfg, [where], function)
    if isinstance(sample, RowError):
        raise sample
    return sample
