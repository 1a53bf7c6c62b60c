"""Configs that are wrong."""

from __future__ import annotations

import pytest

from sftpipe.config.hydra import compose
from sftpipe.errors import ConfigError


def error_of(*overrides: str) -> str:
    """The text of the error that these overrides make."""
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return str(caught.value)
