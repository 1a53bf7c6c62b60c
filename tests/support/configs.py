"""Configs of tests: as `sftpipe.compose` makes them, in a fifth of the time."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from sftpipe.config import hydra, options
from sftpipe.config.hydra import hydra_overrides, parse_overrides
from sftpipe.config.schema import TrainConfig
from sftpipe.errors import ConfigError
from support.errors import refused


def compose(overrides: Sequence[str] = ()) -> TrainConfig:
    """As `sftpipe.compose`.

    What Hydra makes of options alone (`recipe=yoda`, `packing=bfd`) is remembered, and values
    (`sft.seed=1`) are put into a copy of it, as Hydra itself does once the options are composed.
    """
    parsed, problems = parse_overrides(overrides)
    known = options.groups()
    choices = [one for one in parsed if one.key_or_group in known]
    values = [one for one in parsed if one.key_or_group not in known]
    own_files = any(not file.is_relative_to(_SHIPPED) for file in options.find_recipes().values())
    if own_files or any(map(_is_special, parsed)):
        return hydra.compose(overrides)
    made, chosen = _of_choices(tuple(str(one.input_line) for one in choices))
    composed = copy.deepcopy(made)
    forced = hydra_overrides(values)
    parser = hydra.OverridesParser.create()
    try:
        ConfigLoaderImpl._apply_overrides_to_config(parser.parse_overrides(forced), composed)
    except HydraException:
        return hydra.compose(overrides)  # which says what is wrong
    origin = hydra.origin_of(chosen, parsed, known)
    return hydra.from_composed(composed, origin, parsed, problems)


_SHIPPED = options.shipped_dir().resolve()


def _is_special(one: Override) -> bool:
    return one.is_sweep_override() or one.is_delete() or one.is_hydra_override()


@functools.cache
def _of_choices(choices: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
    """(the config without Hydra's own settings, {group: option})."""
    with hydra.hydra_of_conf():
        made = hydra.hydra_compose("config", list(choices), return_hydra_config=True)
    chosen = dict(made.hydra.runtime.choices)
    config = OmegaConf.create({key: made._get_node(key) for key in made if key != "hydra"})
    OmegaConf.set_struct(config, True)
    return config, chosen


def config_error(*overrides: str) -> ConfigError:
    """The error that these overrides make."""
    return refused(ConfigError, lambda: compose(overrides))
