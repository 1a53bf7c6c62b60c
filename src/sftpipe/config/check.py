"""What a composed config may hold.

Every key is checked against the schema (our groups) or the installed upstream sources (`sft`,
`lora`, `quantization`), every value against its type and choices, and then the choices against each
other (clashes.py). All problems of a config are reported together.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sftpipe.config.conflicts import clashes
from sftpipe.config.options import conf_dir, display, find_recipes, groups, how_to_write, read_yaml
from sftpipe.config.schema import (
    DatasetConfig,
    EvaluationConfig,
    MixtureSource,
    PackingConfig,
    TrackingConfig,
    TrainConfig,
)
from sftpipe.config.synonyms import SYNONYMS
from sftpipe.config.upstream import accepts, upstream_fields
from sftpipe.errors import ConfigError, Problem, nearest, show_value, wrong_choice

UPSTREAM = {"sft": "SFTConfig", "lora": "LoraConfig", "quantization": "BitsAndBytesConfig"}
_NOT_SET = "not set, and it has no default"
_DATACLASSES = {
    "packing": PackingConfig,
    "evaluation": EvaluationConfig,
    "tracking": TrackingConfig,
}
OFF = (
    "quantization",
    "lora",
    "packing",
    "evaluation",
    "tracking",
)  # groups whose empty option means off

# fields of upstream classes that another key owns: {group: {field: what to write instead}}
MOVED: dict[str, dict[str, str]] = {
    "sft": {
        **dict.fromkeys(("packing", "packing_strategy", "padding_free", "eval_packing"), "packing"),
        **dict.fromkeys(("completion_only_loss", "assistant_only_loss"), "loss"),
        **dict.fromkeys(("seed", "data_seed"), "seed"),
        **dict.fromkeys(("output_dir", "run_name", "overwrite_output_dir"), "output_dir"),
        **dict.fromkeys(("report_to", "project", "trackio_space_id"), "tracking"),
        **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"), "model.dtype"),
        "pad_token": "tokenizer.pad_token",
        "chat_template_path": "tokenizer.chat_template",
        "dataset_text_field": "format",
        "dataset_num_proc": "dataset.num_proc",
        "dataset_kwargs": "dataset",
        "shuffle_dataset": "dataset.shuffle_seed",
        "truncation_mode": "over_length",
        "gradient_checkpointing": "sft.activation_checkpointing",
        "gradient_checkpointing_kwargs": "sft.activation_checkpointing_kwargs",
        "model_init_kwargs": "model",
        "trust_remote_code": "model",
    },
    "lora": {"base_model_name_or_path": "model.name_or_path", "revision": "model.revision"},
}
# fields that only sftpipe itself can set rightly: {group: {field: why}}
OURS: dict[str, dict[str, str]] = {
    "sft": {
        "eos_token": "EOS stays what the tokenizer says",
        "disable_tqdm": "sftpipe draws its own progress bar",
        "restore_callback_states_from_checkpoint": "a resumed run always restores them",
        "hub_token": "secrets stay out of configs and run folders; use `hf auth login` or HF_TOKEN",
        **dict.fromkeys(
            (
                "deepspeed",
                "fsdp",
                "fsdp_config",
                "ddp_backend",
                "ddp_bucket_cap_mb",
                "ddp_broadcast_buffers",
                "ddp_find_unused_parameters",
                "ddp_static_graph",
                "ddp_timeout",
                "parallelism_config",
                "local_rank",
            ),
            "a run is one process on one device",
        ),
    },
    "lora": dict.fromkeys(
        (
            "task_type",
            "peft_type",
            "inference_mode",
            "auto_mapping",
            "peft_version",
            "runtime_config",
        ),
        "sftpipe trains causal language models and sets it",
    ),
}


Place = Callable[[str], str]  # a key, with where it stands


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the keys of a composed config may have been written.

    choices: {group: option}, the recipe among them.
    command_line: the dotted keys of its overrides.
    chosen: the groups whose option stands on the command line.
    default: what to say of a key that is found nowhere.
    """

    choices: Mapping[str, str | None]
    command_line: Sequence[str] = ()
    chosen: Sequence[str] = ()
    default: str = "config"

    def of(self, key: str) -> str:
        """`key (place)`: the command line, or the file that holds it."""
        return f"{key} ({self._place(key)})"

    def switched_off(self, key: str) -> bool:
        """Whether the command line chose none for the key's group, over a recipe that set the key."""
        return key.partition(".")[0] in self.chosen and key not in self.command_line

    def _place(self, key: str) -> str:
        key = key.partition("[")[0]  # an item of a list stands where the list does
        if any(
            f"{key}.".startswith(f"{written}.") or f"{written}.".startswith(f"{key}.")
            for written in self.command_line
        ):
            return "command line"
        recipe = find_recipes().get(self.choices.get("recipe") or "")
        if recipe is not None and _holds(read_yaml(recipe), key.split(".")):
            return display(recipe)
        group, _, rest = key.partition(".")
        file = conf_dir() / group / f"{self.choices.get(group)}.yaml"
        return (
            display(file)
            if rest and file.is_file() and _holds(read_yaml(file), rest.split("."))
            else self.default
        )


def _holds(tree: Any, path: list[str]) -> bool:
    for part in path:
        named = {str(key): value for key, value in tree.items()} if isinstance(tree, dict) else {}
        if part not in named:
            return False
        tree = named[part]
    return True


def check(tree: dict[str, Any], origin: Origin, earlier: Sequence[Problem] = ()) -> TrainConfig:
    """Turn plain values into a `TrainConfig`.

    Args:
        tree: the composed config.
        origin: where its keys stand, for messages.
        earlier: what was already found; reported with the rest.

    Raises:
        ConfigError: holds every problem.
    """
    problems: list[Problem] = []
    place = origin.of
    for group in OFF:
        if origin.choices.get(group) == "none" and isinstance(tree.get(group), Mapping):
            problems += _check_off(group, tree[group], origin)
            tree[group] = {}
        if not tree.get(group):
            tree[group] = None if group in _DATACLASSES else {}
    built = _build(TrainConfig, tree, "", place, problems)
    _build_sources(built.dataset, place, problems)
    for group, class_name in UPSTREAM.items():
        if isinstance(tree.get(group), Mapping):
            problems += _check_upstream(group, class_name, tree[group], place)
    if not problems and not earlier:
        problems += clashes(built)
    if problems or earlier:
        raise ConfigError(*earlier, *problems)
    return typing.cast(TrainConfig, built)


def _build_sources(dataset: Any, place: Place, problems: list[Problem]) -> None:
    """The sources of a mixture, in place."""
    if isinstance(dataset, DatasetConfig) and isinstance(dataset.sources, list):
        for index, source in enumerate(dataset.sources):
            key = f"dataset.sources[{index}]"
            if isinstance(source, Mapping):
                dataset.sources[index] = _build(MixtureSource, source, f"{key}.", place, problems)
            else:
                problems.append(
                    Problem(
                        place(key),
                        show_value(source),
                        allowed="a mapping, such as {path: json, data_files: a.jsonl, weight: 0.5}",
                    )
                )


def _check_off(group: str, tree: Mapping[str, Any], origin: Origin) -> list[Problem]:
    """Keys of a group whose option is none: their names are checked all the same, and right ones say that nothing reads them."""
    problems: list[Problem] = []
    if group in UPSTREAM:
        problems += _check_upstream(group, UPSTREAM[group], tree, origin.of)
    elif group in _DATACLASSES:
        _build(_DATACLASSES[group], tree, f"{group}.", origin.of, problems)
        problems = [problem for problem in problems if problem.found != _NOT_SET]
    if problems:
        return problems
    options = [option for option in groups().get(group, ()) if option != "none"]
    for key in _leaves(tree, f"{group}."):
        if not origin.switched_off(key):
            found = f"{group}=none is chosen, and nothing would read it"
            problems.append(
                Problem(
                    origin.of(key),
                    found,
                    allowed=", ".join(options),
                    fix=f"{group}={options[0]} {key}=...",
                )
            )
    return problems


def _leaves(tree: Mapping[Any, Any], prefix: str) -> list[str]:
    """The dotted keys of all values in a tree."""
    found = []
    for key, value in tree.items():
        found += (
            _leaves(value, f"{prefix}{key}.")
            if isinstance(value, Mapping) and value
            else [f"{prefix}{key}"]
        )
    return found


def _build(
    cls: type, tree: Mapping[str, Any], prefix: str, place: Place, problems: list[Problem]
) -> Any:
    """An instance of the dataclass `cls` from plain values; what does not fit is added to `problems`."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in tree.items():
        if key not in fields:
            problems += [
                unknown_key(name, place, list(fields)) for name in _leaves({key: value}, prefix)
            ]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        key = f"{prefix}{name}"
        if name not in tree or tree[name] == "???":
            if (
                field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING
            ):
                fix = f"{key}=..." if "." in key else f"sftpipe list {key}"
                problems.append(Problem(key, _NOT_SET, fix=fix))
            continue
        values[name] = _value(hints[name], field, tree[name], key, place, problems)
    missing = [
        n
        for n, f in fields.items()
        if n not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    return cls(**values, **dict.fromkeys(missing))


def _value(
    hint: Any, field: Any, value: Any, key: str, place: Place, problems: list[Problem]
) -> Any:
    inner = [a for a in typing.get_args(hint) if a is not type(None)]
    optional = len(inner) < len(typing.get_args(hint))
    plain = inner[0] if optional else hint
    if value is None and optional:
        return None
    if dataclasses.is_dataclass(plain) and isinstance(value, Mapping):
        return _build(typing.cast(type, plain), value, f"{key}.", place, problems)
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        problems.append(wrong_choice(key, value, choices, place(key)))
        return value
    if plain is Any:
        return value
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    origin = typing.get_origin(plain) or plain
    wanted = {
        list: "a list, such as [a,b]",
        dict: "a mapping, such as {a: b}",
        str: "a string",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
    }.get(origin, f"the keys of {key}")
    if not isinstance(value, origin) or (isinstance(value, bool) and origin is not bool):
        fix = (
            f"an option is chosen with {key}={value}, in a recipe with `- override /{key}: {value}`"
        )
        is_option = isinstance(value, str) and value in groups().get(key, ())
        problems.append(
            Problem(
                place(key),
                show_value(value),
                allowed=wanted + (" or null" if optional else ""),
                fix=fix if is_option else "",
            )
        )
    elif (least := field.metadata.get("at_least")) is not None and not value >= least:
        problems.append(Problem(place(key), show_value(value), allowed=f"{least} or more"))
    return value


def unknown_key(key: str, place: Place, siblings: Sequence[str]) -> Problem:
    """Names the right key: another tool's name first, then a close sibling, then the same name in another group."""
    parent, _, leaf = key.rpartition(".")
    prefix = f"{parent}." if parent else ""
    synonyms = [
        (tool, ours)
        for name in (key, leaf, key.replace(".", "_"))
        for tool, table in SYNONYMS.items()
        if (ours := table.get(name))
    ]
    for tool, ours in synonyms[:1]:
        if ours != key:
            return Problem(
                place(key), f"unknown key; this is {tool}'s name", fix=how_to_write(ours)
            )
    group = key.split(".")[0]
    if match := nearest(leaf, siblings):
        return Problem(place(key), "unknown key", fix=f"did you mean {prefix}{match}?")
    elsewhere = [k for k in _all_keys() if k.rpartition(".")[2] == leaf]
    if not parent and not elsewhere:  # sedd=1, lerning_rate=1
        elsewhere = [k for k in _all_keys() if nearest(leaf, [k.rpartition(".")[2]])]
    if elsewhere:
        return Problem(place(key), "unknown key", fix=f"did you mean {elsewhere[0]}?")
    known = (
        ", ".join(siblings) if len(siblings) < 30 else f"the fields of {UPSTREAM.get(group, group)}"
    )
    return Problem(place(key), "unknown key", allowed=known)


def _all_keys() -> list[str]:
    keys = []
    for f in dataclasses.fields(TrainConfig):
        hint = typing.get_type_hints(TrainConfig)[f.name]
        inner = next(
            (a for a in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(a)), None
        )
        keys += (
            [f.name]
            if inner is None
            else [f"{f.name}.{sub.name}" for sub in dataclasses.fields(inner)]
        )
    return keys + [
        f"{g}.{n}"
        for g, cls in UPSTREAM.items()
        for n in upstream_fields(cls)
        if n not in MOVED.get(g, {})
    ]


def _check_upstream(
    group: str, class_name: str, tree: Mapping[str, Any], place: Place
) -> list[Problem]:
    known = upstream_fields(class_name)
    moved, ours = MOVED.get(group, {}), OURS.get(group, {})
    problems = []
    for name, value in tree.items():
        key = f"{group}.{name}"
        if name in moved:
            problems.append(
                Problem(place(key), "another key owns this", fix=how_to_write(moved[name]))
            )
        elif name in ours:
            problems.append(
                Problem(place(key), f"not for a config: {ours[name]}", fix="leave it out")
            )
        elif name not in known:
            problems.append(
                unknown_key(key, place, [n for n in known if n not in moved and n not in ours])
            )
        elif not accepts(known[name], value):
            problems.append(Problem(place(key), show_value(value), allowed=str(known[name])))
    return problems
