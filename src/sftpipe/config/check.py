"""The keys and values that a composed config may hold.

Every key is checked against the schema (our groups) or the installed upstream sources (`sft`,
`lora`, `quantization`), every value against its type and choices, and then the choices against each
other (conflicts.py). All problems of a config are reported together.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftpipe.config.conflicts import find_conflicts
from sftpipe.config.early_stopping import choose_metric, stop_early
from sftpipe.config.init_from import adopt
from sftpipe.config.options import conf_dir, display, find_recipes, groups, how_to_write, read_yaml
from sftpipe.config.requests import find_request_conflicts
from sftpipe.config.schema import (
    RUN_VERBS,
    DatasetConfig,
    DistributedConfig,
    EvaluationConfig,
    GenerateConfig,
    MixtureSource,
    PackingConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
)
from sftpipe.config.synonyms import SYNONYMS
from sftpipe.config.upstream import (
    ADDED,
    GENERATION_OWNED,
    MOVED,
    OURS,
    UPSTREAM,
    accepts,
    generation_fields,
    upstream_fields,
)
from sftpipe.config.values import check_value
from sftpipe.errors import ConfigError, Problem, nearest, show_value, wrong_choice

# groups whose empty option means off: those of our own, and those of upstream fields
_OPTIONAL: dict[str, type] = {
    "packing": PackingConfig,
    "evaluation": EvaluationConfig,
    "tracking": TrackingConfig,
    "distributed": DistributedConfig,
}
_OFF = ("quantization", "lora", *_OPTIONAL)
_NOT_SET = "not set, and it has no default"


@dataclasses.dataclass(frozen=True)
class Origin:
    """The files and the command line that may hold the keys of a composed config.

    choices: {group: option}, the recipe among them.
    command_line: the dotted keys of its overrides.
    chosen: the groups whose option was chosen on the command line.
    default: the location of a key that is found nowhere.
    """

    choices: Mapping[str, str | None]
    command_line: Sequence[str] = ()
    chosen: Sequence[str] = ()
    default: str = "config"

    def locate(self, key: str) -> str:
        """`key (location)`: the command line, or the file that holds the key."""
        return f"{key} ({self._location(key)})"

    def is_switched_off(self, key: str) -> bool:
        """True if the command line chose none for the key's group, over a recipe with the key."""
        return key.partition(".")[0] in self.chosen and key not in self.command_line

    def is_default(self, key: str) -> bool:
        """True if the value of a key is that of its group's option `default`: nobody chose it."""
        group = key.partition(".")[0]
        file = conf_dir() / group / "default.yaml"
        return self.choices.get(group) == "default" and self._location(key) == display(file)

    def is_chosen(self, key: str) -> bool:
        """True if a recipe, the command line or another option than `default` gives the key."""
        file = conf_dir() / key.partition(".")[0] / "default.yaml"
        return self._location(key) not in (display(file), self.default)

    def _location(self, key: str) -> str:
        key = key.partition("[")[0]  # an item of a list is where the list is
        if any(_is_within(key, one) or _is_within(one, key) for one in self.command_line):
            return "command line"
        if self._recipe is not None and _holds(read_yaml(self._recipe), key.split(".")):
            return display(self._recipe)
        group, _, rest = key.partition(".")
        file = conf_dir() / group / f"{self.choices.get(group)}.yaml"
        if rest and file.is_file() and _holds(read_yaml(file), rest.split(".")):
            return display(file)
        return self.default

    @functools.cached_property
    def _recipe(self) -> Path | None:
        return find_recipes().get(self.choices.get("recipe") or "")


def _is_within(key: str, parent: str) -> bool:
    return f"{key}.".startswith(f"{parent}.")


def _holds(tree: Any, path: list[str]) -> bool:
    for name in path:
        named = {str(key): value for key, value in tree.items()} if isinstance(tree, dict) else {}
        if name not in named:
            return False
        tree = named[name]
    return True


def check(tree: dict[str, Any], origin: Origin, earlier: Sequence[Problem] = ()) -> TrainConfig:
    """Turn plain values into a `TrainConfig`.

    Args:
        tree: the composed config.
        origin: where its keys come from, for messages.
        earlier: what was already found; reported with the rest.

    Raises:
        ConfigError: holds every problem.
    """
    builder = _Builder(origin)
    problems = builder.problems
    for group in RUN_VERBS:
        if group in tree:
            keys = _leaves({group: tree[group]}, "")
            problems += [of_a_finished_run(key, origin) for key in keys]
    tree = {key: value for key, value in tree.items() if key not in RUN_VERBS}
    for group in _OFF:
        if origin.choices.get(group) == "none" and isinstance(tree.get(group), Mapping):
            problems += _check_off(group, tree[group], origin)
            tree[group] = {}
        if not tree.get(group):
            tree[group] = None if group in _OPTIONAL else {}
    # a recorded config, whose keys come from no option, is the adapter's already
    lora = tree["lora"]
    if origin.choices and isinstance(lora, Mapping) and lora.get("init_from") is not None:
        tree["lora"], unlike = adopt(lora, origin)
        problems += unlike
    built = builder.build(TrainConfig, tree, "")
    builder.build_sources(built.dataset)
    for group in UPSTREAM:
        if isinstance(tree.get(group), Mapping):
            problems += _check_upstream(group, tree[group], origin)
    if not problems and not earlier:
        problems += stop_early(built, origin.is_default) + choose_metric(built)
        problems += find_conflicts(built)
    if problems or earlier:
        raise ConfigError(*earlier, *problems)
    return typing.cast(TrainConfig, built)


def check_requests(
    tree: dict[str, Any], origin: Origin, earlier: Sequence[Problem] = ()
) -> RunConfig:
    """Turn plain values into a `RunConfig`; arguments and errors as of `check`."""
    builder = _Builder(origin)
    built = builder.build(RunConfig, tree, "")
    problems = [*earlier, *map(_of_generation, builder.problems)]
    problems += [] if problems else find_request_conflicts(built)
    if problems:
        raise ConfigError(*problems)
    return typing.cast(RunConfig, built)


def _of_generation(problem: Problem) -> Problem:
    """A problem that says more where an unknown key is a field of `GenerationConfig`."""
    group, _, name = problem.where.split(" ")[0].partition(".")
    if group != "generate" or not problem.found.startswith("unknown key"):
        return problem
    if name not in generation_fields():
        return problem
    why = GENERATION_OWNED.get(name, "answers are to be comparable from run to run")
    known = ", ".join(
        one.name for one in dataclasses.fields(GenerateConfig) if one.name in generation_fields()
    )
    found = f"a field of GenerationConfig that is not for a config: {why}"
    return Problem(problem.where, found, allowed=known, fix="leave it out")


def _check_off(group: str, tree: Mapping[str, Any], origin: Origin) -> list[Problem]:
    """The keys of a group whose option is none.

    Their names are checked all the same; that nothing reads them is said of those that are right.
    """
    if group in UPSTREAM:
        problems = _check_upstream(group, tree, origin)
    else:
        builder = _Builder(origin)
        builder.build(_OPTIONAL[group], tree, f"{group}.")
        problems = [problem for problem in builder.problems if problem.found != _NOT_SET]
    if problems:
        return problems
    unread = [key for key in _leaves(tree, f"{group}.") if not origin.is_switched_off(key)]
    if not unread:
        return []
    options = [option for option in groups()[group] if option != "none"]
    found = f"{group}=none is chosen, and nothing would read it"
    allowed, first = ", ".join(options), f"`{group}={options[0]}`"
    return [
        Problem(origin.locate(key), found, allowed=allowed, fix=f"{first} {key}=...")
        for key in unread
    ]


def _leaves(tree: Mapping[Any, Any], prefix: str) -> list[str]:
    """The dotted keys of all values in a tree."""
    found = []
    for key, value in tree.items():
        is_tree = isinstance(value, Mapping) and value
        found += _leaves(value, f"{prefix}{key}.") if is_tree else [f"{prefix}{key}"]
    return found


# --- our groups: values to dataclasses ------------------------------------------------------------

_KINDS = {
    list: "a list, such as [a,b]",
    dict: "a mapping, such as {a: b}",
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


@dataclasses.dataclass(frozen=True)
class _Builder:
    """Makes dataclasses from plain values, and collects a problem for each that does not fit."""

    origin: Origin
    problems: list[Problem] = dataclasses.field(default_factory=list)

    def build(self, cls: type, tree: Mapping[str, Any], prefix: str) -> Any:
        """An instance of the dataclass `cls`; a field whose value is missing gets None."""
        hints = typing.get_type_hints(cls)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key, value in tree.items():
            if key not in fields:
                unknown = _leaves({key: value}, prefix)
                self.problems.extend(unknown_key(n, self.origin, list(fields)) for n in unknown)
        values: dict[str, Any] = {}
        for name, field in fields.items():
            key = f"{prefix}{name}"
            if name in tree and tree[name] != "???":
                values[name] = self._value(hints[name], field, tree[name], key)
            elif field.default is field.default_factory is dataclasses.MISSING:
                values[name] = None
                fix = f"{key}=..." if "." in key else f"`sftpipe list {key}`"
                self.problems.append(Problem(key, _NOT_SET, fix=fix))
        return cls(**values)

    def build_sources(self, dataset: Any) -> None:
        """Replace the mappings in the sources of a mixture by dataclasses."""
        if not isinstance(dataset, DatasetConfig) or not isinstance(dataset.sources, list):
            return
        for index, source in enumerate(dataset.sources):
            key = f"dataset.sources[{index}]"
            if isinstance(source, Mapping):
                dataset.sources[index] = self.build(MixtureSource, source, f"{key}.")
            else:
                allowed = "a mapping, such as {path: json, data_files: a.jsonl, weight: 0.5}"
                self._reject(key, source, allowed)

    def _value(self, hint: Any, field: dataclasses.Field[Any], value: Any, key: str) -> Any:
        inner = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        is_optional = len(inner) < len(typing.get_args(hint))
        wanted = inner[0] if is_optional else hint
        if value is None and is_optional:
            return None
        if dataclasses.is_dataclass(wanted) and isinstance(value, Mapping):
            return self.build(typing.cast(type, wanted), value, f"{key}.")
        choices = field.metadata.get("choices")
        if choices and value not in choices:
            self.problems.append(wrong_choice(key, value, choices, self.origin.locate(key)))
            return value
        if wanted is Any:
            return value
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        kind = typing.get_origin(wanted) or wanted
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            allowed = _KINDS.get(kind, f"the keys of {key}") + (" or null" if is_optional else "")
            self._reject(key, value, allowed, _choose_option(key, value))
        elif outside := _outside(value, field.metadata):
            self._reject(key, value, outside)
        return value

    def _reject(self, key: str, value: Any, allowed: str, fix: str = "") -> None:
        where = self.origin.locate(key)
        self.problems.append(Problem(where, show_value(value), allowed=allowed, fix=fix))


def _outside(value: Any, limits: Mapping[str, Any]) -> str:
    """The allowed range, in words, if a number is outside the limits of its field; else ""."""
    least, above, most = (limits.get(name) for name in ("at_least", "above", "at_most"))
    # "not >=" and not "<": NaN is outside too
    low = (least is not None and not value >= least) or (above is not None and not value > above)
    is_endless = isinstance(value, float) and not math.isfinite(value)
    if not low and not is_endless and (most is None or value <= most):
        return ""
    if least is above is most is None:
        return "a finite number" if is_endless else ""
    bounds = f"{least} or more" if above is None else f"above {above}"
    bounds += ", and finite" if is_endless and most is None else ""
    return bounds if most is None else f"{bounds}, at most {most}"


def _choose_option(group: str, value: Any) -> str:
    """How to choose an option, for someone who wrote one as a value (`lora: dora` in a recipe)."""
    if not isinstance(value, str) or value not in groups().get(group, ()):
        return ""
    return (
        f"an option is chosen with {group}={value} on the command line, "
        f"with - override /{group}: {value} in a recipe"
    )


# --- names ----------------------------------------------------------------------------------------


def of_a_finished_run(key: str, origin: Origin) -> Problem:
    """The problem of a key of conf/run.yaml in the config of a training run."""
    verb = RUN_VERBS[key.split(".")[0]]
    found = "asked of a finished run; training does not read it"
    return Problem(origin.locate(key), found, fix=f"sftpipe {verb} run=DIR {key}=...")


def unknown_key(key: str, origin: Origin, siblings: Sequence[str]) -> Problem:
    """The problem of a key that does not exist; names the right one.

    That is our key for another tool's name, else a sibling with a similar name, else the same name
    in another group.
    """
    where = origin.locate(key)
    parent, _, leaf = key.rpartition(".")
    synonyms = [
        (tool, ours)
        for name in (key, leaf, key.replace(".", "_"))
        for tool, table in SYNONYMS.items()
        if (ours := table.get(name))
    ]
    for tool, ours in synonyms[:1]:
        if ours != key:
            found = f"unknown key; this is {tool}'s name"
            return Problem(where, found, fix=how_to_write(ours))
    if match := nearest(leaf, siblings):
        right = f"{parent}.{match}" if parent else match
        return Problem(where, "unknown key", fix=f"did you mean {right}?")
    elsewhere = [known for known in _all_keys() if known.rpartition(".")[2] == leaf]
    if not parent and not elsewhere:  # sedd=1, lerning_rate=1
        elsewhere = [one for one in _all_keys() if nearest(leaf, [one.rpartition(".")[2]])]
    if elsewhere:
        return Problem(where, "unknown key", fix=f"did you mean {elsewhere[0]}?")
    group = key.split(".")[0]
    is_short = len(siblings) < 30
    allowed = ", ".join(siblings) if is_short else f"the fields of {UPSTREAM.get(group, group)}"
    return Problem(where, "unknown key", allowed=allowed)


def _all_keys() -> list[str]:
    """The dotted keys of a config, without those of upstream that it may not set."""
    keys = []
    hints = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        kinds = (hints[field.name], *typing.get_args(hints[field.name]))
        block = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if block is None:
            keys.append(field.name)
        else:
            keys += [f"{field.name}.{inner.name}" for inner in dataclasses.fields(block)]
    for group, class_name in UPSTREAM.items():
        refused = {*MOVED.get(group, {}), *OURS.get(group, {})}
        keys += [f"{group}.{name}" for name in upstream_fields(class_name) if name not in refused]
        keys += [f"{group}.{name}" for name in ADDED.get(group, ())]
    return keys


def _check_upstream(group: str, tree: Mapping[str, Any], origin: Origin) -> list[Problem]:
    """The fields of an upstream class: names and annotations of its source, values by values.py."""
    known = {**upstream_fields(UPSTREAM[group]), **ADDED.get(group, {})}
    moved, ours = MOVED.get(group, {}), OURS.get(group, {})
    free = [name for name in known if name not in moved and name not in ours]
    problems = []
    for name, value in tree.items():
        key = f"{group}.{name}"
        if name in free and accepts(known[name], value):
            problems += check_value(group, name, value, origin.locate)
            continue
        where = origin.locate(key)
        if name in moved:
            fix = how_to_write(moved[name])
            problems.append(Problem(where, "another key owns this", fix=fix))
        elif name in ours:
            problems.append(Problem(where, f"not for a config: {ours[name]}", fix="leave it out"))
        elif name not in known:
            problems.append(unknown_key(key, origin, free))
        else:
            problems.append(Problem(where, show_value(value), allowed=str(known[name])))
    return problems
