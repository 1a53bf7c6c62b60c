"""Configs that are wrong, and configs that are composed once."""

from __future__ import annotations

import copy
import functools

from sftpipe.config.hydra import compose
from sftpipe.config.schema import TrainConfig
from sftpipe.errors import ConfigError
from support.errors import refused


def config_error(*overrides: str) -> ConfigError:
    """The error that these overrides make."""
    return refused(ConfigError, lambda: compose(overrides))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> TrainConfig:
    return compose(overrides)


def composed(*overrides: str) -> TrainConfig:
    """A copy of the config of these overrides; Hydra takes longer than most of what reads it."""
    return copy.deepcopy(_composed(overrides))
