"""Compose a run from conf/ and recipes/, and reject what nobody would read.

Hydra composes plain YAML; every key is then checked here against the schema (our groups) or the installed upstream sources (`sft`,
`lora`, `quantization`), so that a typo is found wherever it stands and all problems of a config are reported together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sftpipe.errors import ConfigError, Problem, nearest
from sftpipe.fields import accepts, upstream_fields
from sftpipe.schema import TrainConfig
from sftpipe.synonyms import SYNONYMS

UPSTREAM = {"sft": "SFTConfig", "lora": "LoraConfig", "quantization": "BitsAndBytesConfig"}
OFF = ("quantization", "lora", "packing", "evaluation", "tracking")  # groups whose empty option means off

# fields of upstream classes that another key owns: {group: {field: what to write instead}}
MOVED: dict[str, dict[str, str]] = {
    "sft": {
        **dict.fromkeys(("packing", "packing_strategy", "padding_free", "eval_packing"), "packing"),
        **dict.fromkeys(("completion_only_loss", "assistant_only_loss"), "loss"),
        **dict.fromkeys(("seed", "data_seed"), "seed"),
        **dict.fromkeys(("output_dir", "run_name", "overwrite_output_dir"), "output_dir"),
        **dict.fromkeys(("report_to", "project", "trackio_space_id"), "tracking"),
        **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"), "model.dtype"),
        "eos_token": "tokenizer",
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
        "disable_tqdm": "sftpipe draws its own progress bar",
        "restore_callback_states_from_checkpoint": "a resumed run always restores them",
        "hub_token": "secrets stay out of configs and run folders; use `hf auth login` or HF_TOKEN",
        **dict.fromkeys(
            ("deepspeed", "fsdp", "fsdp_config", "ddp_backend", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
             "ddp_find_unused_parameters", "ddp_static_graph", "ddp_timeout", "parallelism_config", "local_rank"),
            "a run is one process on one device",
        ),
    },
    "lora": dict.fromkeys(("task_type", "peft_type", "inference_mode", "auto_mapping", "peft_version", "runtime_config"),
                          "sftpipe trains causal language models and sets it"),
}  # fmt: skip


# --- where the YAML lives -------------------------------------------------------------------------------------------------------------


def conf_dir() -> Path:
    """The `conf` folder: inside the package in a wheel, at the top of the repository in an editable install."""
    return _shipped("conf")


def _shipped(name: str) -> Path:
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parents[1] / name


def find_recipes() -> dict[str, Path]:
    """{name: file} of the shipped recipes and those in `recipes/` of the working folder.

    Raises:
        ConfigError: one name stands in both.
    """
    recipes: dict[str, Path] = {}
    for folder in dict.fromkeys((_shipped("recipes").resolve(), Path("recipes").resolve())):
        for file in sorted(folder.glob("*.yaml")):
            if file.stem in recipes:
                raise ConfigError(
                    Problem(
                        where=f"recipe={file.stem}",
                        found=f"two recipes of that name: {recipes[file.stem]} and {file}",
                        fix=f"rename {file}",
                    )
                )
            recipes[file.stem] = file
    return recipes


def groups() -> dict[str, list[str]]:
    """{group: its options, the default first}: `recipe`, then the groups in the order of conf/config.yaml."""
    found = {"recipe": sorted(find_recipes())}
    for entry in _yaml(conf_dir() / "config.yaml")["defaults"]:
        for group, default in entry.items() if isinstance(entry, dict) else ():
            if (conf_dir() / group).is_dir():
                options = sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))
                found[group] = sorted(options, key=lambda option: option != default)
    return found


def header(file: Path) -> str:
    """First comment line of a YAML file or template: what the option is, in one line."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith(("#", "{#")) and "@package" not in line:
            return line.strip("{#-} ")
    return ""


def _yaml(file: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(Problem(where=str(file), found=f"no valid YAML: {' '.join(str(error).split())}", fix="mend that line")) from None
    if loaded is not None and not isinstance(loaded, dict):
        raise ConfigError(Problem(where=str(file), found=f"a YAML {type(loaded).__name__}", allowed="keys and values (a mapping)"))
    return loaded or {}


# --- composing ------------------------------------------------------------------------------------------------------------------------


def compose(overrides: Sequence[str] = ()) -> TrainConfig:
    """Compose and check one run, as `sftpipe train OVERRIDES` would.

    Args:
        overrides: Hydra overrides such as `["recipe=yoda", "lora.r=8"]`.

    Raises:
        ConfigError: holds every problem that was found.
    """
    parsed, problems = parse_overrides(overrides)
    problems += [
        Problem(where=str(o.input_line), found="several values for one run", fix=f"use -m for a sweep: sftpipe train -m {o.input_line}")
        for o in parsed
        if o.is_sweep_override()
    ]
    parsed = [override for override in parsed if not override.is_sweep_override()]
    with hydra_context():
        try:
            composed = hydra_compose("config", overrides=hydra_overrides(parsed), return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(*problems, Problem(where="config", found=" ".join(str(error).split()))) from None
    return from_composed(composed, composed.hydra.runtime.choices, parsed, problems)


@contextlib.contextmanager
def hydra_context() -> Iterator[None]:
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
    """Make each recipe file an option of the group `recipe` that writes at the top level of the config."""
    for name, file in find_recipes().items():
        _yaml(file)  # a broken file gets our message, which names it
        node = OmegaConf.load(file)
        ConfigStore.instance().store(group="recipe", name=name, package="_global_", node=node)


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
        except HydraException:
            problems.append(_unparsable(text))
            continue
        found = _check_choice(override, options)
        problems += found
        if not found:
            parsed.append(override)
    return parsed, problems


def _unparsable(text: str) -> Problem:
    if text.startswith("-"):
        return Problem(where=text, found="unknown flag", fix="sftpipe --help")
    if "=" not in text:
        recipe = nearest(text, find_recipes())
        return Problem(
            where=text,
            found="neither a flag nor key=value",
            allowed="key=value, such as recipe=yoda or lora.r=8",
            fix=f"recipe={recipe}" if recipe else "",
        )
    key, value = text.split("=", 1)
    return Problem(where=key, found=f"Hydra cannot read the value {value!r}", fix=f"put it in quotes: '{key}=\"{value}\"'")


def _check_choice(override: Override, options: dict[str, list[str]]) -> list[Problem]:
    group = override.key_or_group
    if override.is_delete():
        return []
    if group not in options:
        is_folder = (conf_dir() / group).is_dir()  # conf/chat_template holds no options, and Hydra would take it for a group
        return [_unknown_key(group, lambda key: f"{key} (command line)", list(options))] if is_folder else []
    values = [str(v) for v in override.sweep_string_iterator()] if override.is_sweep_override() else [override.value()]
    problems = [p for value in values if (p := _unknown_option(group, value, options[group], "command line"))]
    if group == "recipe" and not problems:
        problems += [p for value in values if value is not None for p in _check_recipe(find_recipes()[str(value)], options)]
    return problems


def _check_recipe(file: Path, options: dict[str, list[str]]) -> list[Problem]:
    """The group options that a recipe's defaults list selects."""
    problems = []
    for entry in _yaml(file).get("defaults", []):
        for key, value in entry.items() if isinstance(entry, dict) else ():
            group = key.removeprefix("override ").strip().lstrip("/")
            if group in options:
                problem = _unknown_option(group, value, options[group], _display(file))
            else:
                match = nearest(group, options)
                problem = Problem(
                    where=f"{key}: {value} ({_display(file)})",
                    found=f"no such group {group!r}",
                    allowed=", ".join(options),
                    fix=f"did you mean override /{match}?" if match else "",
                )
            problems += [problem] if problem else []
    return problems


def _unknown_option(group: str, value: Any, options: list[str], place: str) -> Problem | None:
    if value in options or (group == "recipe" and value is None):
        return None
    match = nearest(str(value), options)
    what = "recipe" if group == "recipe" else f"option of {group}"
    return Problem(
        where=f"{group}={value} ({place})",
        found=f"no such {what}",
        allowed=", ".join(options),
        fix=f"{group}={match}" if match else "",
    )


def hydra_overrides(overrides: Sequence[Override]) -> list[str]:
    """The overrides as Hydra gets them: values are forced in (`++`), so that unknown keys reach our own check."""
    options = groups()

    def forced(override: Override) -> str:
        text = str(override.input_line)
        is_value = override.key_or_group not in options and not override.is_hydra_override() and not override.is_delete()
        return "++" + text.lstrip("+") if is_value else text

    return [forced(override) for override in overrides]


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a `-m` grid, in Hydra's order (the last swept key varies fastest).

    Raises:
        ConfigError: an override cannot be parsed or chooses an unknown option.
    """
    parsed, problems = parse_overrides(overrides)
    if problems:
        raise ConfigError(*problems)
    jobs: list[list[str]] = [[]]
    for override in parsed:
        values = [str(override.input_line)]
        if override.is_sweep_override():
            values = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        jobs = [[*job, value] for job in jobs for value in values]
    return jobs


# --- checking -------------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Origin:
    """Where the keys of one composed config may have been written."""

    overrides: Sequence[Override]
    choices: Mapping[str, str | None]

    def of(self, key: str) -> str:
        """`command line`, or the file that holds the dotted `key`."""
        if any(f"{key}.".startswith(f"{override.key_or_group}.") for override in self.overrides):
            return "command line"
        for group, choice in self.choices.items():
            file = find_recipes().get(choice or "") if group == "recipe" else conf_dir() / group / f"{choice}.yaml"
            if file is None or not file.is_file():
                continue
            inner = key if group == "recipe" else key.removeprefix(f"{group}.")
            if (group == "recipe" or key.startswith(f"{group}.")) and _holds(_yaml(file), inner.split(".")):
                return _display(file)
        return "config"


def _holds(tree: Any, path: list[str]) -> bool:
    for part in path:
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def _display(file: Path) -> str:
    for root, name in ((_shipped("recipes"), "recipes"), (conf_dir(), "conf"), (Path("recipes"), "./recipes")):
        if file.resolve().is_relative_to(root.resolve()):
            return f"{name}/{file.resolve().relative_to(root.resolve())}"
    return str(file)


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

    Raises:
        ConfigError: unknown or misplaced keys, wrong types, values that are not allowed, choices that clash; all together.
    """
    choices = {k: v for k, v in choices.items() if not str(k).startswith("hydra")}
    raw = OmegaConf.masked_copy(composed, [str(k) for k in composed if k != "hydra"])
    OmegaConf.set_struct(raw, False)
    raw["recipe"] = choices.get("recipe")
    origin = _Origin(overrides, choices)
    try:
        tree = OmegaConf.to_container(raw, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(Problem(where="config", found=" ".join(str(error).split()))) from None
    return _checked(typing.cast(dict[str, Any], tree), origin, problems)


def from_recorded(tree: dict[str, Any], file: str) -> TrainConfig:
    """The config of an earlier run, from the mapping in its `config.yaml`.

    Raises:
        ConfigError: the file holds what this version does not know.
    """
    return _checked(tree, _Origin((), {}), default_place=file)


def _checked(tree: dict[str, Any], origin: _Origin, earlier: Sequence[Problem] = (), default_place: str = "config") -> TrainConfig:
    problems: list[Problem] = []

    def place(key: str) -> str:
        found = origin.of(key)
        return f"{key} ({default_place if found == 'config' else found})"

    for group in OFF:
        if not tree.get(group):
            tree[group] = None if group in ("evaluation", "tracking") else {}
    built = _build(TrainConfig, tree, "", place, problems)
    for group, class_name in UPSTREAM.items():
        problems += _check_upstream(group, class_name, tree.get(group) or {}, place)
    if not problems and not earlier:
        problems += _check_together(built)
    if problems or earlier:
        raise ConfigError(*earlier, *problems)
    return typing.cast(TrainConfig, built)


def _build(cls: type, tree: Mapping[str, Any], prefix: str, place: Any, problems: list[Problem]) -> Any:
    """An instance of the dataclass `cls` from plain values; what does not fit is added to `problems`."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in tree.items():
        if key not in fields:
            inner = [f"{prefix}{key}.{sub}" for sub in value] if isinstance(value, Mapping) else []
            problems += [_unknown_key(name, place, list(fields)) for name in inner or [f"{prefix}{key}"]]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        key = f"{prefix}{name}"
        if name not in tree or tree[name] == "???":
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                fix = f"{key}=..." if "." in key else f"sftpipe list {key}"
                problems.append(Problem(where=key, found="not set, and it has no default", fix=fix))
            continue
        values[name] = _value(hints[name], field, tree[name], key, place, problems)
    missing = [n for n, f in fields.items() if n not in values and f.default is dataclasses.MISSING
               and f.default_factory is dataclasses.MISSING]  # fmt: skip
    return cls(**values, **dict.fromkeys(missing))


def _value(hint: Any, field: Any, value: Any, key: str, place: Any, problems: list[Problem]) -> Any:
    inner = [a for a in typing.get_args(hint) if a is not type(None)]
    optional = len(inner) < len(typing.get_args(hint))
    plain = inner[0] if optional else hint
    if value is None and optional:
        return None
    if dataclasses.is_dataclass(plain) and isinstance(value, Mapping):
        return _build(typing.cast(type, plain), value, f"{key}.", place, problems)
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        problems.append(_wrong_choice(key, value, choices, place))
        return value
    if plain is Any:
        return value
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    origin = typing.get_origin(plain) or plain
    wanted = {list: "a list, such as [a,b]", dict: "a mapping, such as {a: b}", str: "a string", int: "a whole number",
              float: "a number", bool: "true or false"}.get(origin, f"the keys of {key}")  # fmt: skip
    if not isinstance(value, origin) or (isinstance(value, bool) and origin is not bool):
        problems.append(Problem(where=place(key), found=_show(value), allowed=wanted + (" or null" if optional else "")))
    return value


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return f"{str(value).lower()} (YAML reads yes, no, on and off without quotes as true or false)"
    return f"{value!r} ({type(value).__name__})"


def _wrong_choice(key: str, value: Any, choices: Sequence[str], place: Any) -> Problem:
    match = nearest(str(value), choices)
    found = _show(value) if isinstance(value, bool) else repr(value)
    return Problem(where=place(key), found=found, allowed=", ".join(choices), fix=f"{key}={match}" if match else "")


def _unknown_key(key: str, place: Any, siblings: Sequence[str]) -> Problem:
    """Names the right key: another tool's name first, then a close sibling, then the same name in another group."""
    parent, _, leaf = key.rpartition(".")
    prefix = f"{parent}." if parent else ""
    synonyms = [(tool, ours) for name in (key, leaf) for tool, table in SYNONYMS.items() if (ours := table.get(name))]
    for tool, ours in synonyms[:1]:
        if ours != key:
            return Problem(where=place(key), found=f"unknown key; this is {tool}'s name", fix=_use(ours))
    group = key.split(".")[0]
    if match := nearest(leaf, siblings):
        return Problem(where=place(key), found="unknown key", fix=f"did you mean {prefix}{match}?")
    elsewhere = [k for k in _all_keys() if k.rpartition(".")[2] == leaf] or [
        k for k in _all_keys() if nearest(leaf, [k.rpartition(".")[2]])
    ]
    if elsewhere:
        return Problem(where=place(key), found="unknown key", fix=f"did you mean {elsewhere[0]}?")
    known = ", ".join(siblings) if len(siblings) < 30 else f"the fields of {UPSTREAM.get(group, group)}"
    return Problem(where=place(key), found="unknown key", allowed=known)


def _use(ours: str) -> str:
    """How to write one of our keys: `lora.r=...`, `quantization=nf4`, or a group with its options."""
    if "=" in ours:
        return f"write {ours}"
    options = groups().get(ours)
    return f"write {ours}=OPTION, one of {', '.join(options)}" if options else f"write {ours}=..."


def _all_keys() -> list[str]:
    keys = []
    for f in dataclasses.fields(TrainConfig):
        hint = typing.get_type_hints(TrainConfig)[f.name]
        inner = next((a for a in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(a)), None)
        keys += [f.name] if inner is None else [f"{f.name}.{sub.name}" for sub in dataclasses.fields(inner)]
    return keys + [f"{g}.{n}" for g, cls in UPSTREAM.items() for n in upstream_fields(cls) if n not in MOVED.get(g, {})]


def _check_upstream(group: str, class_name: str, tree: Mapping[str, Any], place: Any) -> list[Problem]:
    known = upstream_fields(class_name)
    moved, ours = MOVED.get(group, {}), OURS.get(group, {})
    problems = []
    for name, value in tree.items():
        key = f"{group}.{name}"
        if name in moved:
            problems.append(Problem(where=place(key), found="another key owns this", fix=_use(moved[name])))
        elif name in ours:
            problems.append(Problem(where=place(key), found=f"not for a config: {ours[name]}", fix="leave it out"))
        elif name not in known:
            problems.append(_unknown_key(key, place, [n for n in known if n not in moved and n not in ours]))
        elif not accepts(known[name], value):
            problems.append(Problem(where=place(key), found=_show(value), allowed=str(known[name])))
    return problems


def _check_together(cfg: TrainConfig) -> list[Problem]:
    """Choices that each are fine and together are not."""
    problems = []
    quantization = cfg.quantization
    if quantization and not cfg.lora:
        problems.append(
            Problem(
                where="quantization + lora",
                found="quantized weights cannot be trained, and lora=none adds nothing that can",
                fix="lora=default, or quantization=none",
            )
        )
    if quantization.get("load_in_4bit") and quantization.get("load_in_8bit"):
        problems.append(Problem(where="quantization", found="load_in_4bit and load_in_8bit are both true", fix="quantization=nf4"))
    for name, allowed in (("bnb_4bit_quant_type", ("nf4", "fp4")),
                          ("bnb_4bit_compute_dtype", ("auto", "float32", "bfloat16", "float16"))):  # fmt: skip
        if name in quantization and quantization[name] not in allowed:
            problems.append(_wrong_choice(f"quantization.{name}", quantization[name], allowed, lambda key: key))
    if cfg.dataset.path in ("json", "csv", "parquet") and not cfg.dataset.data_files:
        problems.append(
            Problem(
                where="dataset.data_files",
                found=f"not set, and dataset={cfg.dataset.path} reads files",
                fix=f"dataset.data_files=my_rows.{'jsonl' if cfg.dataset.path == 'json' else cfg.dataset.path}",
            )
        )
    if cfg.format.system is not None and cfg.format.type == "prompt_completion":
        problems.append(
            Problem(where="format.system", found="format=prompt_completion has no turns", fix="put it into the prompts, or leave it out")
        )
    for name in ("validation_size", "test_size"):
        size = getattr(cfg.dataset, name)
        if size < 0 or (size > 1 and not float(size).is_integer()):
            problems.append(Problem(where=f"dataset.{name}", found=repr(size), allowed="a share from 0 to 1, or a number of rows"))
    if not 0 <= cfg.preflight.max_empty_rows <= 1:
        problems.append(Problem(where="preflight.max_empty_rows", found=repr(cfg.preflight.max_empty_rows), allowed="0 to 1"))
    return problems
