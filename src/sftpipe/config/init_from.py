"""An adapter that a run trains further (`lora.init_from`): its files, and the keys that it brings.

The rank, the modules and all else that makes an adapter what it is come with it, so the `lora`
group of such a run is the adapter's; only `lora_dropout` is free.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import yaml

from sftpipe.config.lora import initialisation
from sftpipe.config.upstream import MOVED, OURS, upstream_defaults, upstream_fields
from sftpipe.errors import ConfigError, Problem, in_hydra, override
from sftpipe.storage import COMPLETE, MANIFEST, sha256_cached

KEY = "lora.init_from"
_CONFIG, _WEIGHTS, _RUN_CONFIG = "adapter_config.json", "adapter_model.safetensors", "config.yaml"
_FREE = "lora_dropout"


class Located(Protocol):
    """What is asked of an `Origin`."""

    def locate(self, key: str) -> str: ...

    def is_chosen(self, key: str) -> bool: ...


@dataclass(frozen=True)
class AdapterFiles:
    """A saved adapter.

    path: its folder.
    saved: the content of its adapter_config.json.
    run: the config that it was trained with, of a run of sftpipe; else {}.
    base: identity of the base weights that such a run was trained on; else None.
    """

    path: Path
    saved: Mapping[str, Any] = field(repr=False)
    run: Mapping[str, Any] = field(default_factory=dict, repr=False)
    base: str | None = None

    @property
    def weights(self) -> Path:
        """The trained numbers."""
        return self.path / _WEIGHTS

    @cached_property
    def sha256(self) -> str:
        """Of the trained numbers."""
        return sha256_cached(self.weights)

    def group(self) -> dict[str, Any]:
        """The `lora` group that makes this adapter: what differs from PEFT's defaults."""
        defaults = upstream_defaults("LoraConfig")
        kept = {
            name: value
            for name, value in sorted(self.saved.items())
            if not _not_ours(name) and value not in (None, False, [], {}, defaults.get(name))
        }
        # its numbers are read from its file; of the ways to begin, only mica also decides
        # what is trained
        if kept.get("init_lora_weights") != "mica":
            kept.pop("init_lora_weights", None)
        targets = self.run.get("lora", {}).get("target_modules")
        if targets is not None:  # `all-linear`, which PEFT writes down as the names of modules
            kept["target_modules"] = targets
        return {**kept, "r": self.saved["r"], "lora_alpha": self.saved["lora_alpha"]}


def _not_ours(name: str) -> bool:
    return name in MOVED["lora"] or name in OURS["lora"]


def find_adapter(folder: str | Path) -> AdapterFiles:
    """The adapter in the folder of a finished run, or in one that PEFT wrote.

    Raises:
        ConfigError: there is none that can be trained further.
    """
    path = Path(folder).expanduser().absolute()
    allowed = f"the folder of a finished run, or one with {_CONFIG} and {_WEIGHTS}"
    if not path.is_dir():
        raise ConfigError(Problem(KEY, f"no folder {folder}", allowed=allowed))
    is_run = (path / MANIFEST).is_file()
    if is_run and not (path / COMPLETE).is_file():
        fix = "the command that began it, with `sft.resume_from_checkpoint=auto`, goes on with it"
        raise ConfigError(Problem(KEY, f"{folder} is an unfinished run", allowed=allowed, fix=fix))
    if not (path / _CONFIG).is_file() and (path / "config.json").is_file():
        found = f"{folder} holds a whole model, and no adapter"
        fix = f"leave it out, and {override('model.name_or_path', str(folder))} trains it further"
        raise ConfigError(Problem(KEY, found, allowed=allowed, fix=fix))
    for name in (_CONFIG, _WEIGHTS):
        if not (path / name).is_file():
            raise ConfigError(Problem(KEY, f"{folder} holds no {name}", allowed=allowed))
    saved = _read(path / _CONFIG)
    run = _read(path / _RUN_CONFIG) if is_run else {}
    base = _read(path / MANIFEST).get("weights") if is_run else None
    _check_kind(str(folder), saved)
    return AdapterFiles(path, saved, run, base)


def _read(file: Path) -> dict[str, Any]:
    """The mapping in a file of JSON or YAML."""
    try:
        text = file.read_text(encoding="utf-8")
        loaded = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
        return dict(loaded)
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        raise ConfigError(Problem(KEY, f"{file} is missing or damaged")) from None


def _check_kind(folder: str, saved: Mapping[str, Any]) -> None:
    """It must be a LoRA of the base as it is, of fields that the installed PEFT knows."""
    kind = saved.get("peft_type")
    if kind != "LORA" or not all(isinstance(saved.get(one), int | float) for one in _SIZES):
        found = f"{folder} holds an adapter of the kind {kind}"
        raise ConfigError(Problem(KEY, found, allowed="LORA, with r and lora_alpha"))
    init = saved.get("init_lora_weights", True)
    facts = initialisation(init)
    if init != "eva" and (facts is None or facts.residual or facts.refused):
        found = (
            f"{folder} began as {init}, and fits base weights that this has changed, which are "
            "not in the folder"
        )
        fix = "the folder of a finished run of sftpipe holds such an adapter as plain LoRA"
        raise ConfigError(Problem(KEY, found, fix=fix))
    known = upstream_fields("LoraConfig")
    new = [name for name, value in saved.items() if value and name not in known]
    if odd := [name for name in _NOT_FOR_A_RUN if saved.get(name)]:
        found = f"{folder} was made with {', '.join(odd)}, which no run can have"
        raise ConfigError(Problem(KEY, found, allowed="a plain LoRA, DoRA or rsLoRA"))
    if new:
        found = f"{folder} sets {', '.join(new)}, which the installed PEFT does not know"
        fix = f"a newer PEFT; the adapter was saved by {saved.get('peft_version', 'another one')}"
        raise ConfigError(Problem(KEY, found, fix=fix))


_SIZES = ("r", "lora_alpha")
_NOT_FOR_A_RUN = ("use_qalora", "arrow_config", "megatron_config")


def adopt(lora: Mapping[str, Any], origin: Located) -> tuple[dict[str, Any], list[Problem]]:
    """The `lora` group of a run that trains an adapter further, and the problems of its keys.

    Args:
        lora: the composed group, with `init_from`.
        origin: where its keys come from: those of the option's file, which nobody chose, give way.

    Returns:
        The adapter's own group, and a problem for each key that was chosen and differs from it.
    """
    if not isinstance(lora["init_from"], str):
        return dict(lora), []  # whose type is reported
    try:
        files = find_adapter(lora["init_from"])
    except ConfigError as error:
        where = origin.locate(KEY)
        problems = [
            Problem(where, one.found, allowed=one.allowed, fix=one.fix) for one in error.problems
        ]
        return dict(lora), problems
    theirs = files.group()
    kept, problems = {"init_from": str(files.path), **theirs}, []
    for name, value in lora.items():
        key = f"lora.{name}"
        if name == "init_from" or not origin.is_chosen(key):
            continue
        if name == _FREE or name not in files.saved:  # a name that PEFT does not know is reported
            kept[name] = value
        elif not any(_same(value, one) for one in _values(name, files)):
            own = theirs.get(name, files.saved[name])
            problems.append(_differs(origin.locate(key), key, value, own))
    return kept, problems


def _values(name: str, files: AdapterFiles) -> list[Any]:
    """What a key may be: as the adapter was saved, and as its run was asked for it."""
    return [files.saved[name], files.run.get("lora", {}).get(name, files.saved[name])]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return sorted(map(str, one)) == sorted(map(str, other))
    return bool((one or None) == (other or None))


def _differs(where: str, key: str, value: Any, saved: Any) -> Problem:
    found = f"{value!r}, and the adapter of {KEY} has {saved!r}"
    typed = in_hydra(saved)
    fix = f"{override(key, typed)}, or leave it out" if typed else "leave it out"
    allowed = "what the adapter has; only lora.lora_dropout is free"
    return Problem(where, found, allowed=allowed, fix=fix)
