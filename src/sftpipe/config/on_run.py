"""The command line of a verb on a finished run: what is asked, and what is changed for now."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sftpipe.config.hydra import compose_requests, from_recorded, values_of
from sftpipe.config.options import run_groups
from sftpipe.config.schema import RunConfig, TrainConfig
from sftpipe.errors import ConfigError, Problem, nearest

# keys of the recorded config that a verb may change: they decide neither weights nor data
CHANGEABLE = (
    "evaluation",
    "allowed_targets",
    "sft.use_cpu",
    "sft.per_device_eval_batch_size",
    "model.dtype",
    "model.attn_implementation",
    "dataset.num_proc",
)
_TEXTS = ("generate.prompt", "judge.prompt")  # taken as they are: no list, no sweep


@dataclass(frozen=True)
class RunCommand:
    """A parsed command line of a verb on a run.

    folder: of `run=DIR`; None with `run=null`, which asks a base model alone.
    requests: the groups of conf/run.yaml.
    rest: the overrides of the run's own config.
    """

    folder: str | None
    requests: RunConfig
    rest: Sequence[str]


def parse_run_command(verb: str, words: Sequence[str]) -> RunCommand:
    """Sort the words of a verb on a run.

    Raises:
        ConfigError: `run` is missing, or a request is wrong.
    """
    named = [word.partition("=")[2] for word in words if _key(word) == "run"]
    if not named:
        fix = f"sftpipe {verb} run=DIR, with the folder that sftpipe train printed"
        raise ConfigError(Problem("run", "not set: which run?", fix=fix))
    groups = run_groups()
    others = [word for word in words if _key(word) != "run"]
    asked = [word for word in others if _key(word).split(".")[0] in groups]
    texts = {_key(word): word.partition("=")[2] for word in asked if _is_text(word)}
    asked = [word for word in asked if not _is_text(word)]
    rest = [word for word in others if _key(word).split(".")[0] not in groups]
    folder = None if named[-1] in ("null", "") else named[-1].strip("'\"")
    return RunCommand(folder, compose_requests(asked, texts), rest)


def change_recorded(tree: Mapping[str, Any], file: str, overrides: Sequence[str]) -> TrainConfig:
    """The config of a run with what a verb may change in it.

    Args:
        tree: the mapping in the run's `config.yaml`.
        file: the name of that file.
        overrides: such as `["model.dtype=float32"]`.

    Raises:
        ConfigError: a key that the run has decided, or a value that is not allowed.
    """
    values = values_of(overrides)
    problems = [_decided(key, tree) for key, _ in values if not _may_change(key)]
    if problems:
        raise ConfigError(*problems)
    return from_recorded(dict(tree), file, values)


def _may_change(key: str) -> bool:
    return any(f"{key}.".startswith(f"{free}.") for free in CHANGEABLE)


def _decided(key: str, tree: Mapping[str, Any]) -> Problem:
    value: Any = tree
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    found = f"decided when the run was trained: {json.dumps(value, ensure_ascii=False)}"
    allowed = ", ".join([*run_groups(), *CHANGEABLE])
    near = nearest(key, CHANGEABLE)
    fix = f"did you mean {near}?" if near else "leave it out, or train another run"
    return Problem(f"{key} (command line)", found, allowed=allowed, fix=fix)


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _is_text(word: str) -> bool:
    """True for a prompt that is taken as it is: what Hydra reads has quotes of its own."""
    value = word.partition("=")[2]
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return _key(word) in _TEXTS and "=" in word and value != "null" and not quoted
