"""The splits of one data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sftpipe.config.schema import DatasetConfig, FormatConfig
from sftpipe.data.rows import Rows
from sftpipe.data.source import load_sources


def load_splits(cfg: DatasetConfig, allowed_targets: Sequence[str] = ()) -> Mapping[str, Rows]:
    """The splits of a data set that is no mixture."""
    (source,) = load_sources(cfg, FormatConfig(), allowed_targets)
    return source.splits
