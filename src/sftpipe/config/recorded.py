"""The recorded config of a run, completed with the keys that this version has and that one had not.

A release that adds a key with a default must not orphan the runs of the releases before it.
"""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from sftpipe.config.options import conf_dir, read_yaml
from sftpipe.config.schema import MixtureSource, TrainConfig
from sftpipe.config.upstream import UPSTREAM, upstream_defaults


def complete(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded config with a value for each key of ours.

    Args:
        tree: the mapping of a `config.yaml`; what this version does not know stays in it.
    """
    done = _complete(TrainConfig, tree, "")
    dataset = done.get("dataset")
    if isinstance(dataset, dict) and isinstance(dataset.get("sources"), list):
        dataset["sources"] = [
            _complete(MixtureSource, one, "") if isinstance(one, Mapping) else one
            for one in dataset["sources"]
        ]
    return done


def _complete(cls: type, tree: Mapping[str, Any], group: str) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    done = copy.deepcopy(dict(tree))
    for field in dataclasses.fields(cls):
        if field.name not in done:
            missing, value = _default(field, group)
            done |= {} if missing else {field.name: value}
        kinds = (hints[field.name], *typing.get_args(hints[field.name]))
        inner = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if isinstance(inner, type) and isinstance(done.get(field.name), Mapping):
            done[field.name] = _complete(inner, done[field.name], field.name)
    return done


def _default(field: dataclasses.Field[Any], group: str) -> tuple[bool, Any]:
    """(True where there is none, the default of a field): that of the schema, or of its group."""
    if field.default is not dataclasses.MISSING:
        return False, field.default
    if field.default_factory is not dataclasses.MISSING:
        return False, field.default_factory()
    file = conf_dir() / group / "default.yaml"
    values = read_yaml(file) if group and file.is_file() else {}
    return field.name not in values, values.get(field.name)


def upstream_value(group: str, name: str, values: Mapping[str, Any]) -> Any:
    """What a run trained with: the value of its config, else the default of the upstream class.

    A default that is no plain value in the source counts as null.
    """
    if name in values:
        return values[name]
    return upstream_defaults(UPSTREAM[group]).get(name)
