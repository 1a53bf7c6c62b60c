"""Compose a run from conf/, recipes/ and overrides.

Hydra composes plain YAML; `checks.py` then checks every key, so that a typo is found wherever it
stands.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sftpipe.config.check import Origin, check, unknown_key
from sftpipe.config.options import conf_dir, display, find_recipes, groups, read_yaml
from sftpipe.config.schema import TrainConfig
from sftpipe.errors import ConfigError, Problem, nearest, one_line

_FOLDERS = ("hydra.run", "hydra.sweep.", "hydra.output_subdir", "hydra.job.chdir")
_REFUSED = (
    HydraException,
    OmegaConfBaseException,
    yaml.YAMLError,
    ValueError,
)  # what Hydra raises for bad YAML


def compose(overrides: Sequence[str] = ()) -> TrainConfig:
    """Compose and check one run, as `sftpipe train OVERRIDES` would.

    Args:
        overrides: Hydra overrides such as `["recipe=yoda", "lora.r=8"]`.

    Raises:
        ConfigError: holds every problem that was found.
    """
    if isinstance(overrides, str):
        raise TypeError(f'compose takes a list: compose(["{overrides}"])')
    parsed, problems = parse_overrides(overrides)
    problems += [
        Problem(
            str(o.input_line),
            "several values for one run",
            fix=f"use -m for a sweep: sftpipe train -m {' '.join(overrides)}",
        )
        for o in parsed
        if o.is_sweep_override()
    ]
    parsed = [override for override in parsed if not override.is_sweep_override()]
    with _hydra():
        try:
            composed = hydra_compose(
                "config", overrides=hydra_overrides(parsed), return_hydra_config=True
            )
        except _REFUSED as error:
            raise ConfigError(*problems, _refused(error, parsed)) from None
    return from_composed(composed, composed.hydra.runtime.choices, parsed, problems)


def from_composed(
    composed: DictConfig,
    choices: Mapping[str, Any],
    overrides: Sequence[Override] = (),
    problems: Sequence[Problem] = (),
) -> TrainConfig:
    """Check what Hydra composed and turn it into dataclasses.

    Args:
        composed: the config; a `hydra` node in it is left aside.
        choices: {group: option} as Hydra's runtime records them.
        overrides: the command line, to say where a wrong key stands.
        problems: what was already found; reported with the rest.

    Raises: ConfigError: unknown or misplaced keys, wrong types, values that are not allowed,
        choices that clash; all together.
    """
    known = groups()
    written = [str(override.key_or_group) for override in overrides]
    origin = Origin(
        {group: option for group, option in choices.items() if group in known},
        command_line=[key for key in written if key not in known],
        chosen=[key for key in written if key in known],
    )
    raw = OmegaConf.create({key: composed._get_node(key) for key in composed if key != "hydra"})
    if "recipe" in raw and raw["recipe"] is not None:
        problems = [
            *problems,
            Problem(origin.of("recipe"), "a recipe's name is its file's", fix="leave the key out"),
        ]
    raw["recipe"] = origin.choices.get("recipe")
    try:
        tree = OmegaConf.to_container(raw, resolve=True)
    except _REFUSED as error:
        raise ConfigError(*problems, _refused(error, overrides)) from None
    return check(cast(dict[str, Any], tree), origin, problems)


def from_recorded(tree: dict[str, Any], file: str) -> TrainConfig:
    """The config of an earlier run, from the mapping in its `config.yaml`.

    Raises:
        ConfigError: the file holds what this version does not know.
    """
    return check(tree, Origin({}, default=file))


@contextlib.contextmanager
def _hydra() -> Iterator[None]:
    """Hydra set up on our conf folder, with the recipes registered; an application's own Hydra is left as it was."""
    register_recipes()
    previous = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = previous


def register_recipes() -> None:
    """Make each recipe file an option of the group `recipe` that writes at the top level of the config.

    Raises:
        ConfigError: a recipe is no YAML that Hydra reads; names the file.
    """
    for name, file in find_recipes().items():
        node = _load_recipe(file, file.stat().st_mtime_ns)
        ConfigStore.instance().store(group="recipe", name=name, package="_global_", node=node)


@functools.lru_cache(maxsize=256)
def _load_recipe(file: Path, _changed: int) -> Any:
    try:
        return OmegaConf.load(file)
    except _REFUSED as error:
        raise ConfigError(
            Problem(display(file), f"no valid YAML: {one_line(error)}", fix="mend that line")
        ) from None


def _refused(error: Exception, overrides: Sequence[Override]) -> Problem:
    recipes = [find_recipes().get(str(o.value())) for o in overrides if o.key_or_group == "recipe"]
    where = next((f"recipe ({display(file)})" for file in recipes if file), "config")
    return Problem(
        where, f"Hydra cannot compose it: {one_line(error)}", fix="mend the YAML or the override"
    )


def enter_hydra(
    flags: Sequence[str],
    overrides: Sequence[str],
    settings: Sequence[str],
    job: Callable[[TrainConfig, int], None],
) -> None:
    """Run jobs under hydra.main, which writes `.hydra` and goes through a sweep.

    Args:
        flags: Hydra's own, such as `--multirun` or `--cfg job`.
        overrides: the user's.
        settings: ours, with literal values (`hydra.run.dir` cannot resolve the recipe).
        job: called with the config and the number of each job.
    """

    def task(composed: DictConfig) -> None:
        runtime = HydraConfig.get()
        number = runtime.job.num if "--multirun" in flags else 0
        job(
            from_composed(
                composed, runtime.runtime.choices, parse_overrides(runtime.overrides.task)[0]
            ),
            number,
        )

    register_recipes()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # a bug keeps its traceback
    before = sys.argv
    sys.argv = [before[0], *flags, *hydra_overrides(parse_overrides(overrides)[0]), *settings]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    finally:
        sys.argv = before


# --- the command line -----------------------------------------------------------------------------


def parse_overrides(overrides: Sequence[str]) -> tuple[list[Override], list[Problem]]:
    """Parse command-line overrides and check the group options that they, and the chosen recipe, select.

    Returns:
        The overrides that Hydra can compose, and a problem for each of the others.
    """
    options = groups()
    parsed: list[Override] = []
    problems: list[Problem] = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
            found = _check_choice(override, options)
        except HydraException:
            found = [_unparsable(text)]
        problems += found
        if not found and not (
            override.key_or_group == "recipe" and override.value() is None
        ):  # recipe=null: none
            parsed.append(override)
    return parsed, problems


def hydra_overrides(overrides: Sequence[Override]) -> list[str]:
    """The overrides as Hydra gets them: values are forced in (`++`), so that unknown keys reach our own check."""
    options = groups()

    def forced(override: Override) -> str:
        text = str(override.input_line)
        is_value = (
            override.key_or_group not in options
            and not override.is_hydra_override()
            and not override.is_delete()
        )
        return "++" + text.lstrip("+") if is_value else text

    return [forced(override) for override in overrides]


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a `-m` grid, in Hydra's order (the last swept key varies fastest).

    Raises: ConfigError: an override cannot be parsed, chooses an unknown option, or is no list of
        values.
    """
    parsed, problems = parse_overrides(overrides)
    jobs: list[list[str]] = [[]]
    for override in parsed:
        try:
            jobs = [[*job, value] for job in jobs for value in _values(override)]
        except HydraException:
            allowed = "values with commas between them, range(start,stop) or choice(a,b)"
            problems.append(Problem(str(override.input_line), "no list of values", allowed=allowed))
    if problems:
        raise ConfigError(*problems)
    return jobs


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _unparsable(text: str) -> Problem:
    if text.startswith("-"):
        return Problem(text, "unknown flag", fix="sftpipe --help")
    if "=" not in text:
        recipe = nearest(text, find_recipes())
        allowed = "key=value, such as recipe=yoda or lora.r=8"
        return Problem(
            text,
            "neither a flag nor key=value",
            allowed=allowed,
            fix=f"recipe={recipe}" if recipe else "",
        )
    key, value = text.split("=", 1)
    return Problem(
        key, f"Hydra cannot read the value {value!r}", fix=f"put it in quotes: '{key}=\"{value}\"'"
    )


def _check_choice(override: Override, options: dict[str, list[str]]) -> list[Problem]:
    group = str(override.key_or_group)
    if override.is_delete():
        return []
    if group.startswith(_FOLDERS):
        return [
            Problem(
                f"{group} (command line)",
                "sftpipe names the folders itself",
                fix="run=DIR, or output_dir=DIR",
            )
        ]
    if not group:
        return [Problem(str(override.input_line), "a value without a key", allowed="key=value")]
    if group not in options:
        is_folder = (
            conf_dir() / group
        ).is_dir()  # conf/chat_template holds no options, and Hydra would take it for a group
        return (
            [unknown_key(group, lambda key: f"{key} (command line)", list(options))]
            if is_folder
            else []
        )
    values = (
        [str(v) for v in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [override.value()]
    )
    problems = [
        p
        for value in values
        if (p := _unknown_option(group, value, options[group], "command line"))
    ]
    if group == "recipe" and not problems:
        problems += [
            p
            for value in values
            if value is not None
            for p in _check_recipe(find_recipes()[str(value)], options)
        ]
    return problems


def _unknown_option(group: str, value: Any, options: list[str], place: str) -> Problem | None:
    if value in options or (group == "recipe" and value is None):
        return None
    match = nearest(str(value), options)
    what = "recipe" if group == "recipe" else f"option of {group}"
    return Problem(
        f"{group}={value} ({place})",
        f"no such {what}",
        allowed=", ".join(options),
        fix=f"{group}={match}" if match else "",
    )


def _check_recipe(file: Path, options: dict[str, list[str]]) -> list[Problem]:
    """A recipe's defaults list: `override /group: option`, `_self_`, or another recipe to start from."""
    place = display(file)
    recipe = read_yaml(file)
    entries = recipe.get("defaults", [])
    if not isinstance(entries, list):
        return [
            Problem(
                f"defaults ({place})",
                f"{entries!r}",
                allowed="a list of entries such as `- override /lora: default`",
            )
        ]
    problems: list[Problem | None] = []
    for entry in entries:
        if isinstance(entry, str) and entry not in ("_self_", *options["recipe"]):
            match = nearest(entry, options["recipe"])
            allowed = "override /group: option, _self_, or a recipe to start from"
            problems.append(
                Problem(
                    f"defaults: {entry} ({place})",
                    "no such recipe",
                    allowed=allowed,
                    fix=f"did you mean {match}?" if match else "",
                )
            )
        for key, value in entry.items() if isinstance(entry, dict) else ():
            group = str(key).removeprefix("override ").strip().lstrip("/")
            if group not in options:
                match = nearest(group, options)
                fix = f"did you mean override /{match}?" if match else ""
                problems.append(
                    Problem(
                        f"{key}: {value} ({place})",
                        f"no such group {group!r}",
                        allowed=", ".join(options),
                        fix=fix,
                    )
                )
            elif key != f"override /{group}":
                problems.append(
                    Problem(
                        f"{key}: {value} ({place})",
                        "the group is chosen already",
                        fix=f"write override /{group}: {value}",
                    )
                )
            else:
                problems.append(_unknown_option(group, value, options[group], place))
    return [problem for problem in problems if problem]
