"""Compose a run from conf/, recipes/ and overrides.

Hydra composes plain YAML; check.py then checks every key, so that a typo is found in each file and
on the command line. This is the only module that knows hydra and omegaconf.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import hydra
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, ValueType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sftpipe.config.check import Origin, check, check_requests, of_a_finished_run, unknown_key
from sftpipe.config.options import (
    conf_dir,
    display,
    find_recipes,
    groups,
    read_yaml,
    run_groups,
)
from sftpipe.config.recorded import complete
from sftpipe.config.schema import RUN_VERBS, RunConfig, TrainConfig
from sftpipe.config.upstream import UPSTREAM, without_unread
from sftpipe.errors import ConfigError, Problem, nearest, one_line, override

_FOLDERS = ("hydra.run", "hydra.sweep.", "hydra.output_subdir", "hydra.job.chdir")
_SWEEPER = "hydra.sweeper.params."
SWEEP_DIR = "hydra.sweep.dir"
# mappings of Hydra's own settings whose keys are another library's
_OPEN = (
    "hydra.sweeper.sampler_args",
    "hydra.sweeper.pruner_args",
    "hydra.launcher.additional_parameters",
)
_PLUGINS = ("hydra/sweeper", "hydra/launcher")
# what Hydra raises for bad YAML
BAD_YAML = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)


@dataclass(frozen=True)
class ComposedRun:
    """One run: its checked config, and what Hydra composed, for the records of its folder."""

    config: TrainConfig
    composed: DictConfig = field(repr=False)

    @property
    def multirun(self) -> bool:
        """True where a recipe says that it is a sweep (`hydra.mode: MULTIRUN`)."""
        return bool(self.composed.hydra.mode == RunMode.MULTIRUN)

    def records(self, folder: Path, subdir: str | Path) -> dict[str, str]:
        """The files that hydra.main would write for this run, as {name: text}.

        Args:
            folder: the run folder.
            subdir: the folder of the files, below the run folder.
        """
        composed = copy.deepcopy(self.composed)
        OmegaConf.set_readonly(composed, False)
        settings = composed.hydra
        with open_dict(composed):
            del composed["hydra"]
        with open_dict(settings):
            settings.run.dir, settings.output_subdir = str(folder), str(subdir)
            settings.mode = RunMode.RUN
            settings.overrides.hydra += [
                literal("hydra.run.dir", folder),
                literal("hydra.output_subdir", subdir),
                "hydra.mode=RUN",
            ]
            settings.runtime.output_dir = os.path.abspath(folder)
        return {
            "config.yaml": OmegaConf.to_yaml(composed),
            "hydra.yaml": OmegaConf.to_yaml(OmegaConf.create({"hydra": settings})),
            "overrides.yaml": OmegaConf.to_yaml(settings.overrides.task),
        }


def literal(key: str, path: str | Path) -> str:
    """A Hydra override whose value is this path and nothing else."""
    quoted = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{quoted}'"


def compose(overrides: Sequence[str] = ()) -> TrainConfig:
    """Compose and check one run, as `sftpipe train OVERRIDES` would.

    Args:
        overrides: Hydra overrides such as `["recipe=yoda", "lora.r=8"]`.

    Raises:
        ConfigError: holds every problem that was found.
    """
    return _compose(overrides, in_main=True).config


def compose_run(overrides: Sequence[str] = ()) -> ComposedRun:
    """Compose and check one run that trains without hydra.main.

    Args:
        overrides: as of `compose`.

    Raises:
        ConfigError: holds every problem; settings that only hydra.main acts on are among them.
    """
    return _compose(overrides, in_main=False)


def _compose(overrides: Sequence[str], *, in_main: bool) -> ComposedRun:
    """A run, whose settings of Hydra are checked where it does not go through hydra.main."""
    if isinstance(overrides, str):
        raise TypeError(f'compose takes a list: compose(["{overrides}"])')
    parsed, problems = parse_overrides(overrides)
    for one in parsed:
        if one.is_sweep_override():
            found, fix = "several values for one run", f"use -m for a sweep: {_sweep(overrides)}"
            problems.append(Problem(str(one.input_line), found, fix=fix))
    parsed = [one for one in parsed if not one.is_sweep_override()]
    with hydra_of_conf():
        try:
            composed = hydra_compose("config", hydra_overrides(parsed), return_hydra_config=True)
        except BAD_YAML as error:
            raise ConfigError(*problems, not_composed(error, parsed)) from None
    origin = origin_of(composed.hydra.runtime.choices, parsed, groups())
    if in_main or composed.hydra.mode != RunMode.MULTIRUN:  # which `train` makes a sweep of
        problems += _check_sweeping(composed, origin, overrides)
        problems += [] if in_main else _check_settings(composed, origin, overrides)
    return ComposedRun(from_composed(composed, origin, parsed, problems), composed)


def _sweep(overrides: Sequence[str]) -> str:
    """The command that trains these overrides as a sweep."""
    return f"`sftpipe train -m {shlex.join(overrides)}`"


# settings of Hydra that only hydra.main acts on
_ONLY_IN_MAIN = (
    "hydra.callbacks",
    "hydra.job.env_set",
    "hydra.verbose",
    "hydra.job_logging.handlers",
    "hydra.hydra_logging.handlers",
)


def _check_settings(
    composed: DictConfig, origin: Origin, overrides: Sequence[str]
) -> list[Problem]:
    """The settings that would have no effect on a run that does not go through hydra.main."""
    found = "a single run does not go through hydra.main, and nothing else acts on it"
    used = [key for key in _ONLY_IN_MAIN if OmegaConf.select(composed, key)]
    fix = f"leave it out, or train a sweep of one run: {_sweep(overrides)}"
    return [Problem(origin.locate(key), found, fix=fix) for key in used]


def _check_sweeping(
    composed: DictConfig, origin: Origin, overrides: Sequence[str]
) -> list[Problem]:
    """Values of a recipe that are swept, and of which the command line gives none."""
    given = {word.lstrip("+~").partition("=")[0] for word in overrides}
    where = origin.locate("hydra.sweeper.params")
    fix = f"use -m for a sweep: {_sweep(overrides)}; or give one value on the command line"
    return [
        Problem(where, f"{key}={values}: several values for one run", fix=fix)
        for key, values in leaves_of(OmegaConf.select(composed, "hydra.sweeper.params"))
        if key not in given
    ]


def leaves_of(params: Any) -> list[tuple[str, Any]]:
    """(key, values) of `hydra.sweeper.params`, also where its keys are written as a tree."""
    found = []
    for key, value in (params or {}).items():
        inner = leaves_of(value) if isinstance(value, Mapping) else [("", value)]
        found += [(f"{key}.{name}".rstrip("."), one) for name, one in inner]
    return found


def _no_sweep_here(where: str, found: str, words: Sequence[str]) -> Problem:
    """A word of the command line that would make a sweep another way than `-m` does."""
    reason = f"{found}, and a sweep is made by -m and by values with commas between them"
    fix = f"leave it out, and type {_sweep(words or ['recipe=yoda'])}"
    return Problem(where, reason, fix=fix)


def _no_search_path(where: str) -> Problem:
    found = "options of your own cannot be added to those of sftpipe"
    fix = "leave it out; recipes are read from recipes/ of the working folder"
    return Problem(where, found, fix=fix)


def origin_of(
    choices: Mapping[str, Any], overrides: Sequence[Override], known: Mapping[str, Any]
) -> Origin:
    """The files and the overrides that may hold the keys of what Hydra composed."""
    written = [str(one.key_or_group) for one in overrides]
    return Origin(
        {group: option for group, option in choices.items() if group in known},
        command_line=[key.replace("/", ".") for key in written if key not in known],
        chosen=[key for key in written if key in known],
    )


def from_composed(
    composed: DictConfig,
    origin: Origin,
    overrides: Sequence[Override],
    problems: Sequence[Problem] = (),
) -> TrainConfig:
    """Check what Hydra composed and turn it into dataclasses.

    Args:
        composed: the config; its `hydra` node is left out.
        origin: where its keys come from.
        overrides: the command line, for messages.
        problems: what was already found; reported with the rest.

    Raises:
        ConfigError: unknown or misplaced keys, wrong types, values that are not allowed, choices
            that conflict; all together.
    """
    raw = OmegaConf.create({key: composed._get_node(key) for key in composed if key != "hydra"})
    if "recipe" in raw and raw["recipe"] is not None:
        where, found = origin.locate("recipe"), "a recipe's name is its file's"
        problems = [*problems, Problem(where, found, fix="leave the key out")]
    raw["recipe"] = origin.choices.get("recipe")
    try:
        tree = OmegaConf.to_container(raw, resolve=True)
    except BAD_YAML as error:
        raise ConfigError(*problems, not_composed(error, overrides)) from None
    return check(cast(dict[str, Any], tree), origin, problems)


def from_recorded(
    tree: dict[str, Any], file: str, overrides: Sequence[tuple[str, Any]] = ()
) -> TrainConfig:
    """The config of an earlier run.

    Args:
        tree: the mapping in its `config.yaml`.
        file: the name of that file.
        overrides: (key, value) of what is changed for now.

    Raises:
        ConfigError: the file holds what this version does not know, or a value is not allowed.
    """
    tree = complete(tree)
    for group in UPSTREAM:
        if isinstance(tree.get(group), dict):
            tree = {**tree, group: without_unread(group, tree[group])}
    changed = OmegaConf.create(tree)
    for key, value in overrides:
        group, _, inner = key.partition(".")
        if inner and group in tree and changed.get(group) is None:  # switched off with group=none
            default = conf_dir() / group / "default.yaml"
            changed[group] = read_yaml(default) if default.is_file() else {}
        try:
            OmegaConf.update(changed, key, value, force_add=True)
        except BAD_YAML as error:
            where, found = f"{key} (command line)", f"no key of {file}: {one_line(error)}"
            raise ConfigError(Problem(where, found, fix="name a key that it has")) from None
    origin = Origin({}, command_line=[key for key, _ in overrides], default=file)
    return check(complete(cast(dict[str, Any], OmegaConf.to_container(changed))), origin)


def compose_requests(
    overrides: Sequence[str] = (), texts: Mapping[str, str] | None = None
) -> RunConfig:
    """Compose and check what is asked of a finished run, from conf/run.yaml.

    Args:
        overrides: of the groups in conf/run.yaml, such as `["judge=openai", "generate.top_k=5"]`.
        texts: {key: value} that Hydra's grammar does not read: prompts, taken as they are.

    Raises:
        ConfigError: holds every problem that was found.
    """
    parsed, problems = parse_overrides(overrides, run_groups())
    swept = [one for one in parsed if one.is_sweep_override()]
    for one in swept:
        fix = f"{override(str(one.key_or_group), '[a,b]')} for a list, quotes for a text"
        problems.append(Problem(str(one.input_line), "several values for one key", fix=fix))
    parsed = [one for one in parsed if one not in swept]
    with hydra_of_conf():
        try:
            words = hydra_overrides(parsed, run_groups())
            composed = hydra_compose("run", words, return_hydra_config=True)
            choices = composed.hydra.runtime.choices
            with open_dict(composed):
                del composed["hydra"]
            for key, text in (texts or {}).items():
                OmegaConf.update(composed, key, text)
            tree = OmegaConf.to_container(composed)
        except BAD_YAML as error:
            raise ConfigError(*problems, not_composed(error, parsed)) from None
    origin = origin_of(choices, parsed, run_groups())
    return check_requests(cast(dict[str, Any], tree), origin, problems)


def values_of(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """(key, value) of overrides that give values, with Hydra's reading of them.

    Raises:
        ConfigError: an override cannot be read.
    """
    parsed, problems = parse_overrides(overrides, {})
    swept = [str(one.input_line) for one in parsed if one.is_sweep_override()]
    problems += [Problem(line, "several values for one key", allowed="one") for line in swept]
    if problems:
        raise ConfigError(*problems)
    return [(str(one.key_or_group), one.value()) for one in parsed]


@contextlib.contextmanager
def hydra_of_conf() -> Iterator[None]:
    """Hydra set up on our conf folder, with the recipes; an application's own is put back after."""
    register_recipes()
    previous = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    job_name = Path(__file__).stem  # the name that hydra.main gives to a task of this module
    try:
        with initialize_config_dir(str(conf_dir()), job_name, version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = previous


def register_recipes() -> None:
    """Make each recipe file an option of the group `recipe`, which writes at the top level.

    Raises:
        ConfigError: a recipe is no YAML that Hydra reads; names the file.
    """
    for name, file in find_recipes().items():
        node = _load_recipe(file, file.stat().st_mtime_ns)
        if _registered.get(name) is not node:
            ConfigStore.instance().store(group="recipe", name=name, package="_global_", node=node)
            _registered[name] = node


_registered: dict[str, Any] = {}  # what Hydra's store holds


@functools.lru_cache(maxsize=256)
def _load_recipe(file: Path, _changed: int) -> Any:
    try:
        return OmegaConf.load(file)
    except BAD_YAML as error:
        found = f"no valid YAML: {one_line(error)}"
        raise ConfigError(Problem(display(file), found, fix="fix that line")) from None


def not_composed(error: Exception, overrides: Sequence[Override]) -> Problem:
    """The problem of words that Hydra cannot compose."""
    names = [str(one.value()) for one in overrides if one.key_or_group == "recipe"]
    files = [file for name in names if (file := find_recipes().get(name))]
    where = f"recipe ({display(files[0])})" if files else "config"
    found = f"Hydra cannot compose it: {one_line(error)}"
    return Problem(where, found, fix="fix the YAML or the override")


def enter_hydra(
    flags: Sequence[str],
    overrides: Sequence[str],
    settings: Sequence[str] = (),
) -> None:
    """Let hydra.main act on flags of its own, such as `--cfg job`; it trains nothing.

    Args:
        flags: Hydra's own; without any it writes the records of a run.
        overrides: the user's.
        settings: ours, with literal values (`hydra.run.dir` cannot resolve the recipe).
    """

    def task(_composed: DictConfig) -> None:
        return None

    register_recipes()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # a bug keeps its traceback
    before = sys.argv
    sys.argv = [before[0], *flags, *hydra_overrides(parse_overrides(overrides)[0]), *settings]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    finally:
        sys.argv = before


# --- the command line -----------------------------------------------------------------------------


def parse_overrides(
    overrides: Sequence[str],
    options: Mapping[str, Sequence[str]] | None = None,
    *,
    sweeping: bool = False,
) -> tuple[list[Override], list[Problem]]:
    """Parse overrides, and check the options that they, and the chosen recipe, select.

    Args:
        overrides: the words of the command line.
        options: {group: its options}; by default those of a training run.
        sweeping: they are those of a whole sweep, which may name its folder.

    Returns:
        The overrides that Hydra can compose, a glob as the options that it means, and a problem
        for each of the others.
    """
    options = groups() if options is None else options
    parsed: list[Override] = []
    problems: list[Problem] = []
    for text in overrides:
        try:
            one = OverridesParser.create().parse_override(text)
            if one.value_type == ValueType.GLOB_CHOICE_SWEEP:
                one = _spell_out(one, options)
            is_folder_of_sweep = sweeping and one.key_or_group == SWEEP_DIR
            found = [] if is_folder_of_sweep else _check_override(one, options)
        except HydraException:
            found = [_unparsable(text)]
        problems += found
        is_no_recipe = not found and one.key_or_group == "recipe" and one.value() is None
        if not found and not is_no_recipe:  # recipe=null
            parsed.append(one)
    return parsed, problems


def hydra_overrides(
    overrides: Sequence[Override], options: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """The overrides as Hydra gets them.

    Values are forced in (`++`), so that unknown keys reach our own check.

    Args:
        overrides: from `parse_overrides`.
        options: as of `parse_overrides`.
    """
    options = groups() if options is None else options

    def forced(one: Override) -> str:
        text = str(one.input_line)
        is_choice = one.key_or_group in options
        is_open = str(one.key_or_group).startswith(_OPEN) or not one.is_hydra_override()
        is_value = not is_choice and is_open and not one.is_delete()
        return "++" + text.lstrip("+") if is_value else text

    return [forced(one) for one in overrides]


def _spell_out(one: Override, options: Mapping[str, Sequence[str]]) -> Override:
    """`lora=glob(d*)` as `lora=default,dora`; raises a `HydraException` where it means nothing."""
    glob = cast(Glob, one.value())
    names = glob.filter(sorted(options.get(str(one.key_or_group), ())))
    if not names:
        raise HydraException(f"{one.input_line} is none of the options of a group")
    text = f"{one.get_key_element()}={','.join(names)}"
    return OverridesParser.create().parse_override(text)


def _unparsable(text: str) -> Problem:
    if text.startswith("-"):
        return Problem(text, "unknown flag", fix="`sftpipe --help`")
    if "=" not in text:
        recipe = nearest(text, find_recipes())
        allowed = "key=value, such as recipe=yoda or lora.r=8"
        fix = override("recipe", recipe) if recipe else ""
        return Problem(text, "neither a flag nor key=value", allowed=allowed, fix=fix)
    key, value = text.split("=", 1)
    if key.lstrip("+").startswith(_SWEEPER):
        return _no_sweep_here(key, text, [f"{key.partition(_SWEEPER)[2]}={value}"])
    if value.startswith("glob("):
        allowed = ", ".join(groups().get(key.lstrip("+"), groups()))
        return Problem(key, f"{value} chooses none of the options of a group", allowed=allowed)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    quoted = override(key, f'"{escaped}"')
    found = f"Hydra cannot read the value {value!r}"
    return Problem(key, found, fix=f"put it in quotes: {quoted}")


def _check_override(one: Override, options: Mapping[str, Sequence[str]]) -> list[Problem]:
    key = str(one.key_or_group)
    if one.is_delete():
        return []
    if not key:
        return [Problem(str(one.input_line), "a value without a key", allowed="key=value")]
    origin = Origin({}, command_line=[key])
    if key.startswith(_FOLDERS):
        found, fix = "sftpipe names the folders itself", "run=DIR, or output_dir=DIR"
        return [Problem(origin.locate(key), found, fix=fix)]
    if key.startswith(_SWEEPER):
        text = f"{key.removeprefix(_SWEEPER)}={one.get_value_element_as_str()}"
        return [_no_sweep_here(origin.locate(key), text, [text])]
    if f"{key}." == _SWEEPER or (key == "hydra.mode" and one.value() == "MULTIRUN"):
        return [_no_sweep_here(origin.locate(key), str(one.value()), ["lora.r=8,16"])]
    if key == "hydra.searchpath":
        return [_no_search_path(origin.locate(key))]
    if key not in options:
        # conf/chat_template holds no options, and Hydra would take it for a group
        if key in RUN_VERBS:
            return [of_a_finished_run(key, origin)]
        is_folder = (conf_dir() / key).is_dir()
        return [unknown_key(key, origin, list(options))] if is_folder else []
    is_sweep = one.is_sweep_override()
    values = list(one.sweep_string_iterator()) if is_sweep else [one.value()]
    unknown = [value for value in values if not _is_option(key, value, options)]
    problems = [_no_such_option(key, value, options, "command line") for value in unknown]
    if key == "recipe" and not problems:
        for value in values:
            if value is not None:
                problems += _check_recipe(find_recipes()[str(value)], options)
    return problems


def _is_option(group: str, value: Any, options: Mapping[str, Sequence[str]]) -> bool:
    return value in options[group] or (group == "recipe" and value is None)


def _no_such_option(
    group: str, value: Any, options: Mapping[str, Sequence[str]], location: str
) -> Problem:
    match = nearest(str(value), options[group])
    what = "recipe" if group == "recipe" else f"option of {group}"
    fix = f"write override /{group}: {match}" if location != "command line" else ""
    return Problem(
        f"{group}={value} ({location})",
        f"no such {what}",
        allowed=", ".join(options[group]),
        fix=(fix or override(group, match)) if match else "",
    )


# --- recipes --------------------------------------------------------------------------------------


def _check_recipe(file: Path, options: Mapping[str, Sequence[str]]) -> list[Problem]:
    """The defaults of a recipe: `override /group: option`, `_self_`, or a recipe to start from."""
    location = display(file)
    entries = read_yaml(file).get("defaults", [])
    if not isinstance(entries, list):
        allowed = "a list of entries such as `- override /lora: default`"
        return [Problem(f"defaults ({location})", repr(entries), allowed=allowed)]
    problems, settings = [], read_yaml(file).get("hydra")
    if isinstance(settings, dict) and "searchpath" in settings:
        problems.append(_no_search_path(f"hydra.searchpath ({location})"))
    for entry in entries:
        if isinstance(entry, str) and entry not in ("_self_", *options["recipe"]):
            match = nearest(entry, options["recipe"])
            allowed = "override /group: option, _self_, or a recipe to start from"
            fix = f"did you mean {match}?" if match else ""
            where = f"defaults: {entry} ({location})"
            problems.append(Problem(where, "no such recipe", allowed=allowed, fix=fix))
        for key, value in entry.items() if isinstance(entry, dict) else ():
            problems += _check_entry(str(key), value, location, options)
    return problems


def _check_entry(
    key: str, value: Any, location: str, options: Mapping[str, Sequence[str]]
) -> list[Problem]:
    """One `override /group: option` of a recipe."""
    group = key.removeprefix("override ").strip().lstrip("/")
    where = f"{key}: {value} ({location})"
    if group in _PLUGINS:  # Hydra knows which are installed
        return []
    if group not in options:
        match = nearest(group, options)
        found, allowed = f"no such group {group!r}", ", ".join(options)
        fix = f"did you mean override /{match}?" if match else ""
        return [Problem(where, found, allowed=allowed, fix=fix)]
    if key != f"override /{group}":
        fix = f"write override /{group}: {value}"
        return [Problem(where, "the group is chosen already", fix=fix)]
    if _is_option(group, value, options):
        return []
    return [_no_such_option(group, value, options, location)]
