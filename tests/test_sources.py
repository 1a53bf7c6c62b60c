"""docs/sources.md: every step of the sources has a command, and every command composes."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from sftpipe.config.on_run import change_recorded, parse_run_command
from sftpipe.config.options import find_recipes, groups, read_yaml
from sftpipe.config.patterns import pattern_fields
from sftpipe.config.schema import to_plain
from sftpipe.run_verbs import RUN_VERBS
from support.configs import compose

PAGE = Path(__file__).parents[1] / "docs" / "sources.md"
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| there |"))
]
ALL = [
    command.replace("\\|", "|")
    for row in ROWS
    for command in re.findall(r"`(sftpipe [^`]+)`", row[1])
]
OF_RUN = [command for command in ALL if command.split()[1] in RUN_VERBS]
COMMANDS = [command for command in ALL if command not in OF_RUN]


def test_each_row_says_what_there_was_the_command_for_it_and_why() -> None:
    assert len(ROWS) > 30
    for row in ROWS:
        assert len(row) == 3
        assert all(row), row
        assert "`sftpipe " in row[1], row


@functools.cache
def values_of(group: str, option: str) -> dict[str, Any]:
    """What the file of an option says."""
    text = (PAGE.parents[1] / "conf" / group / f"{option}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text) or {}


def number_or_text(value: Any) -> Any:
    """A value of YAML; 1e-4 is a number, which PyYAML takes for a text."""
    return float(value) if re.fullmatch(r"\d+e-\d+", str(value)) else value


def value_at(cfg: Any, key: str) -> Any:
    """The value of a dotted key."""
    for name in key.split("."):
        cfg = cfg[name] if isinstance(cfg, dict) else getattr(cfg, name)
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_each_command_composes_to_what_it_says(command: str) -> None:
    _, verb, *words = shlex.split(command)
    overrides = [word for word in words if word != "-m"]

    cfg = compose(overrides)

    assert verb in ("train", "check", "preview", "config")
    typed = dict(word.split("=", 1) for word in overrides)
    recipe = read_yaml(find_recipes()[typed["recipe"]]) if "recipe" in typed else {}
    for key, value in typed.items():
        if key == "recipe":
            assert cfg.recipe == value
        elif key in groups():
            # what the option leaves to the user, or the recipe or the command line says otherwise
            says = {f"{key}.{name}": one for name, one in values_of(key, value).items()}
            kept = set(says) - {*typed, *(f"{key}.{name}" for name in recipe.get(key, ()))}
            kept -= {name for name in kept if says[name] == "???"}
            assert {name: value_at(cfg, name) for name in kept} == {
                name: number_or_text(says[name]) for name in kept
            }
        else:
            assert value_at(cfg, key) == number_or_text(yaml.safe_load(value)), key
    for pattern in (cfg.format.prompt, cfg.format.completion):
        assert pattern is None or pattern_fields(pattern)


@pytest.mark.parametrize("command", dict.fromkeys(OF_RUN))
def test_each_command_on_a_run_is_read_as_it_says(command: str) -> None:
    _, verb, *words = shlex.split(command)

    read = parse_run_command(verb, words)

    assert read.folder == "outputs/instruct/mine"
    recorded = to_plain(compose(["recipe=instruct"]))
    changed = change_recorded(recorded, "config.yaml", read.rest)
    for key, value in (word.split("=", 1) for word in words):
        if key not in ("run", "judge"):
            group = key.split(".")[0]
            asked = changed if group == "evaluation" else read.requests
            assert value_at(asked, key) == yaml.safe_load(value) or value_at(asked, key) == value
