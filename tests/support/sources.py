"""The splits of one data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftpipe.config.schema import DatasetConfig, FormatConfig
from sftpipe.data.rows import Rows
from sftpipe.data.source import load_sources


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as JSON Lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def load_splits(cfg: DatasetConfig, allowed_targets: Sequence[str] = ()) -> Mapping[str, Rows]:
    """The splits of a data set that is no mixture."""
    (source,) = load_sources(cfg, FormatConfig(), allowed_targets)
    return source.splits
