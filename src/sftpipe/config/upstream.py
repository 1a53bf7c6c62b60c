"""Field names, types and values of the upstream config classes, read from installed sources.

`BitsAndBytesConfig` takes any keyword without complaint and importing `SFTConfig` costs seconds of
torch, so the sources are parsed with `ast` instead: exact for the versions that are installed, and
quick enough for every `sftpipe config`. The tables say which of these fields a config may not set.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import typing
from collections.abc import Mapping
from pathlib import Path

# our groups whose keys are the fields of an upstream class
UPSTREAM = {"sft": "SFTConfig", "lora": "LoraConfig", "quantization": "BitsAndBytesConfig"}

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
# fields that only sftpipe itself can set: {group: {field: why}}
OURS: dict[str, dict[str, str]] = {
    "sft": {
        "eos_token": "EOS stays what the tokenizer says",
        "auto_find_batch_size": "a run that halves its batches itself is another run when resumed",
        "disable_tqdm": "sftpipe draws its own progress bar",
        "restore_callback_states_from_checkpoint": "a resumed run always restores them",
        "hub_token": "secrets stay out of configs and run folders; use `hf auth login` or HF_TOKEN",
        **dict.fromkeys(
            ("do_train", "do_eval", "do_predict"), "the verb says what is done: train, evaluate"
        ),
        **dict.fromkeys(
            (
                "push_to_hub",
                "hub_private_repo",
                "hub_model_id",
                "hub_strategy",
                "hub_always_push",
                "hub_revision",
            ),
            "a run uploads nothing; of a finished one, "
            "sftpipe export run=DIR export=hub export.repo_id=OWNER/NAME does it",
        ),
        **dict.fromkeys(
            ("trackio_bucket_id", "trackio_static_space_id"),
            "a run uploads nothing, and keeps its figures in its folder",
        ),
        **dict.fromkeys(
            (
                "prediction_loss_only",
                "eval_do_concat_batches",
                "eval_use_gather_object",
                "eval_accumulation_steps",
                "include_for_metrics",
                "batch_eval_metrics",
            ),
            "an evaluation sums up the loss and keeps no predictions; answers are asked by "
            "the group evaluation",
        ),
        **dict.fromkeys(
            ("remove_unused_columns", "label_names", "length_column_name"),
            "rows are finished: ids, labels and their lengths, under names of sftpipe's own",
        ),
        "use_cache": "training needs no cache, and generation always has one",
        "ignore_data_skip": "a resumed run goes on with the rows that it has not seen",
        "enable_jit_checkpoint": "SIGTERM and SIGINT always end a run with a checkpoint",
        **dict.fromkeys(
            (
                "average_tokens_across_devices",
                "log_on_each_node",
                "log_level_replica",
                "save_on_each_node",
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
            "the group distributed decides it (distributed=ddp, distributed=fsdp2)",
        ),
        **dict.fromkeys(
            ("deepspeed",),
            "sftpipe divides a model by torch's own fully_shard (distributed=fsdp2)",
        ),
    },
    "lora": {
        **dict.fromkeys(
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
        **dict.fromkeys(
            ("megatron_config", "megatron_core"), "sftpipe trains models of transformers"
        ),
        **dict.fromkeys(
            ("use_qalora", "qalora_group_size"),
            "PEFT reads it with GPTQ weights alone, which sftpipe does not make",
        ),
        **dict.fromkeys(
            ("eva_config", "corda_config", "lora_ga_config", "loftq_config"),
            "it is of a start of the weights that needs a pass of its own over base or data",
        ),
        "arrow_config": "it routes between finished adapters, and a run trains one",
        "fan_in_fan_out": "PEFT sets it by the kind of each layer",
    },
    "quantization": {
        "llm_int8_has_fp16_weight": "the base is frozen, so its weights stay in 8 bits",
    },
}
# fields that upstream reads with some values of another field alone: {group: {field: (the other
# field, those values, one of them to type)}}; True stands for any but 0, false and null
Reading = tuple[str, tuple[object, ...], str]
_WORKERS: Reading = ("dataloader_num_workers", (True,), "2")
READ_WITH: dict[str, dict[str, Reading]] = {
    "sft": {
        "eval_steps": ("eval_strategy", ("steps",), "steps"),
        "eval_delay": ("eval_strategy", ("steps", "epoch"), "epoch"),
        "activation_checkpointing_kwargs": ("activation_checkpointing", (True,), "true"),
        "liger_kernel_config": ("use_liger_kernel", (True,), "true"),
        "label_smoothing_factor": ("loss_type", ("nll", None), "nll"),
        "dataloader_persistent_workers": _WORKERS,
        "dataloader_prefetch_factor": _WORKERS,
        "dataloader_multiprocessing_context": _WORKERS,
    },
    "quantization": {"llm_int8_threshold": ("load_in_8bit", (True,), "true")},
}


def unread(group: str, fields: Mapping[str, object]) -> dict[str, Reading]:
    """The fields of a group that are set, and that nothing reads with the others as they are."""
    found = {}
    for name, reading in READ_WITH.get(group, {}).items():
        value = fields.get(reading[0])
        is_read = value in reading[1] or (True in reading[1] and bool(value))
        if fields.get(name) and not is_read:
            found[name] = reading
    return found


def without_unread(group: str, fields: Mapping[str, object]) -> dict[str, object]:
    """Fields that an earlier version recorded, without those that it accepted and nothing read."""
    dead = {*OURS.get(group, {}), *unread(group, fields)}
    return {name: value for name, value in fields.items() if name not in dead}


# keys of these groups that are sftpipe's own, beside upstream's: {group: {key: its annotation}}
ADDED = {"lora": {"init_from": "str | None"}}

# fields of transformers' `GenerationConfig` that the group `generate` does not have, and why
GENERATION_OWNED = {
    **dict.fromkeys(
        ("eos_token_id", "forced_eos_token_id", "stop_strings"),
        "answers end in the tokens that the run trained as ends",
    ),
    **dict.fromkeys(
        ("pad_token_id", "bos_token_id", "decoder_start_token_id", "forced_bos_token_id"),
        "special tokens are those of the run's tokenizer",
    ),
    "max_length": "it counts the prompt too; write generate.max_new_tokens=...",
    "min_length": "it counts the prompt too; write generate.min_new_tokens=...",
    "num_return_sequences": "a prompt has one answer",
    "use_cache": "generation always uses its cache",
}


@functools.cache
def generation_fields() -> tuple[str, ...]:
    """Fields of transformers' `GenerationConfig`: the names that its `__init__` pops from `kwargs`.

    Its constructor takes any keyword, so only the source knows them.
    """
    source = _package_dir("transformers") / "generation" / "configuration_utils.py"
    init = _function(_class(source, "GenerationConfig").body, "__init__")
    return tuple(
        str(node.args[0].value)
        for node in ast.walk(init)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "kwargs.pop"
        and isinstance(node.args[0], ast.Constant)
    )


# class -> the files that hold it and its bases, base first; a later field replaces an earlier one
_SOURCES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "SFTConfig": (
        ("transformers", "training_args.py", "TrainingArguments"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/sft_config.py", "SFTConfig"),
    ),
    "LoraConfig": (
        ("peft", "config.py", "PeftConfigMixin"),
        ("peft", "config.py", "PeftConfig"),
        ("peft", "tuners/lora/config.py", "LoraConfig"),
    ),
    "BitsAndBytesConfig": (("transformers", "utils/quantization_config.py", "BitsAndBytesConfig"),),
}


@functools.cache
def upstream_fields(name: str) -> dict[str, str | None]:
    """Fields of `SFTConfig`, `LoraConfig` or `BitsAndBytesConfig`.

    Returns:
        {field name: its annotation as written, or None where the source gives none}
    """
    fields: dict[str, str | None] = {}
    for package, relative, class_name in _SOURCES[name]:
        fields |= _class_fields(_package_dir(package) / relative, class_name)
    return fields


@functools.cache
def upstream_defaults(name: str) -> dict[str, object]:
    """{field: its default} of the same classes, where the source gives a plain value."""
    defaults: dict[str, object] = {}
    for package, relative, class_name in _SOURCES[name]:
        tree = ast.parse((_package_dir(package) / relative).read_text(encoding="utf-8"))
        (cls,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name)
        for node in cls.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                defaults |= _plain_default(node.target.id, node.value)
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                named = node.args.args[len(node.args.args) - len(node.args.defaults) :]
                for argument, value in zip(named, node.args.defaults, strict=True):
                    defaults |= _plain_default(argument.arg, value)
    return defaults


def _plain_default(name: str, value: ast.expr | None) -> dict[str, object]:
    if isinstance(value, ast.Call):  # of dataclasses.field
        value = next((one.value for one in value.keywords if one.arg == "default"), None)
    try:
        return {} if value is None else {name: ast.literal_eval(value)}
    except ValueError:
        return {}


def _package_dir(package: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"{package} is not installed; sftpipe needs it: pip install {package}"
        )
    return Path(spec.origin).parent


def _class_fields(source: Path, class_name: str) -> dict[str, str | None]:
    """Dataclass fields of a class; the parameters of its `__init__` where it is no dataclass."""
    fields: dict[str, str | None] = {}
    for node in _class(source, class_name).body:
        if isinstance(node, ast.AnnAssign) and _is_init_field(node):
            fields[ast.unparse(node.target)] = ast.unparse(node.annotation)
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            for argument in node.args.args[1:] + node.args.kwonlyargs:
                annotation = argument.annotation
                fields[argument.arg] = ast.unparse(annotation) if annotation else None
    return fields


@functools.cache
def _tree(source: Path) -> ast.Module:
    return ast.parse(source.read_text(encoding="utf-8"))


def _class(source: Path, name: str) -> ast.ClassDef:
    classes = (node for node in _tree(source).body if isinstance(node, ast.ClassDef))
    return next(node for node in classes if node.name == name)


def _function(body: list[ast.stmt], name: str) -> ast.FunctionDef:
    functions = (node for node in body if isinstance(node, ast.FunctionDef))
    return next(node for node in functions if node.name == name)


def _assigned(body: list[ast.stmt], name: str) -> ast.expr:
    """What a name is assigned to, with or without an annotation."""
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if any(isinstance(one, ast.Name) and one.id == name for one in targets) and value:
            return typing.cast(ast.expr, value)
    raise LookupError(name)


def _is_init_field(node: ast.AnnAssign) -> bool:
    """True for a field that the `__init__` of its dataclass takes."""
    if not isinstance(node.target, ast.Name) or node.target.id.startswith("_"):
        return False
    if "ClassVar" in ast.unparse(node.annotation):
        return False
    keywords = node.value.keywords if isinstance(node.value, ast.Call) else []
    return not any(
        keyword.arg == "init"
        and isinstance(keyword.value, ast.Constant)
        and keyword.value.value is False
        for keyword in keywords
    )


# --- the values that upstream's sources list ------------------------------------------------------

_ENUMS = {
    "OptimizerNames": "training_args.py",
    "DebugOption": "debug_utils.py",
    **dict.fromkeys(
        ("SchedulerType", "IntervalStrategy", "SaveStrategy", "HubStrategy"), "trainer_utils.py"
    ),
}


def enum_values(name: str) -> tuple[str, ...]:
    """The values of one of transformers' enums, in their order."""
    return tuple(_members(name).values())


@functools.cache
def _members(name: str) -> dict[str, str]:
    """{name of a member: its value} of an enum."""
    cls = _class(_package_dir("transformers") / _ENUMS[name], name)
    return {
        ast.unparse(node.targets[0]): ast.literal_eval(node.value)
        for node in cls.body
        if isinstance(node, ast.Assign)
    }


@functools.cache
def field_choices(field: str) -> tuple[str, ...]:
    """The `choices` in the metadata of a field of `TrainingArguments`."""
    source = _package_dir("transformers") / "training_args.py"
    call = _assigned(_class(source, "TrainingArguments").body, field)
    for node in ast.walk(call):
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            for key, value in pairs:
                if isinstance(key, ast.Constant) and key.value == "choices":
                    return tuple(ast.literal_eval(value))
    raise LookupError(field)


def literal_values(class_name: str, field: str) -> tuple[str, ...]:
    """The values in the `Literal[...]` of a field's annotation."""
    annotation = upstream_fields(class_name)[field] or ""
    return tuple(
        str(one.value)
        for node in ast.walk(ast.parse(annotation, mode="eval"))
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal"
        for one in ast.walk(node.slice)
        if isinstance(one, ast.Constant)
    )


# what the trainer itself hands to the function of a schedule
_OF_TRAINER = {"self", "optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
# schedules that transformers calls without the keywords of the config
_BARE = ("constant", "constant_with_warmup")


@functools.cache
def scheduler_arguments(schedule: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keywords of a schedule for `lr_scheduler_kwargs`: (all, those without a default)."""
    source = _package_dir("transformers") / "optimization.py"
    functions = _assigned(_tree(source).body, "TYPE_TO_SCHEDULER_FUNCTION")
    assert isinstance(functions, ast.Dict)
    members = _members("SchedulerType")
    named = {
        members[ast.unparse(key).rpartition(".")[2]]: ast.unparse(value)
        for key, value in zip(functions.keys, functions.values, strict=True)
        if key is not None
    }
    if schedule not in named or schedule in _BARE:
        return (), ()
    function = _function(_tree(source).body, named[schedule])
    if schedule == "reduce_lr_on_plateau":
        torch = _package_dir("torch") / "optim" / "lr_scheduler.py"
        function = _function(_class(torch, "ReduceLROnPlateau").body, "__init__")
    elif function.args.kwarg is not None:  # a class behind it takes them
        function = _function(_class(source, "GreedyLR").body, "__init__")
    names = [one.arg for one in function.args.args]
    bare = names[: len(names) - len(function.args.defaults)]
    known = tuple(name for name in names if name not in _OF_TRAINER)
    return known, tuple(name for name in bare if name not in _OF_TRAINER)


@functools.cache
def optimizer_arguments(optimizer: str) -> tuple[str, ...]:
    """The names that transformers reads of `optim_args` for an optimizer."""
    body = _tree(_package_dir("transformers") / "trainer_optimizer.py").body
    table = _assigned(body, "_OPTIMIZER_HANDLERS")
    assert isinstance(table, ast.Dict)
    members = _members("OptimizerNames")
    handlers = {}
    for key, value in zip(table.keys, table.values, strict=True):
        if key is not None:
            handlers[members[ast.unparse(key).rpartition(".")[2]]] = ast.unparse(value)
        elif isinstance(value, ast.Call):  # **dict.fromkeys(LIST, function)
            names, function = map(ast.unparse, value.args)
            for one in ast.walk(_assigned(body, names)):
                if isinstance(one, ast.Attribute):
                    handlers[members[one.attr]] = function
    handler = handlers.get(optimizer, "")
    # the function of bitsandbytes reads them for one of its optimizers; to another it hands texts
    if not handler or ("bitsandbytes" in handler and "ademamix" not in optimizer):
        return ()
    return tuple(dict.fromkeys(_names_read(_function(body, handler))))


def _names_read(function: ast.FunctionDef) -> list[str]:
    """Strings that a function looks up in `ctx.optim_args`, one by one or in a loop."""
    found: list[str] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("ctx.optim_args."):
            found += [str(one.value) for one in node.args[:1] if isinstance(one, ast.Constant)]
        elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) == "ctx.optim_args":
            found += [str(node.left.value)] if isinstance(node.left, ast.Constant) else []
        elif isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
            found += ast.literal_eval(node.iter)
    return found


# --- types ----------------------------------------------------------------------------------------


def accepts(annotation: str | None, value: object) -> bool:
    """True if a plain value (as YAML gives it) fits an annotation such as `float | str | None`.

    Annotations with a name that is no plain type (`Literal[...]`, `EvaConfig`) accept everything:
    upstream checks those itself.
    """
    if annotation is None or value is None:
        return True
    names = _plain_types(annotation)
    if names is None:
        return True
    if isinstance(value, bool):
        return "bool" in names
    if isinstance(value, int):
        return bool(names & {"int", "float"})
    if isinstance(value, float):
        return "float" in names or ("int" in names and value.is_integer())
    if isinstance(value, str):
        return "str" in names
    return bool(names & {"list", "dict", "tuple", "set"})


_PLAIN = {"int", "float", "bool", "str", "None", "list", "dict", "tuple", "set"}


def _plain_types(annotation: str) -> set[str] | None:
    """{"float", "None"} of "Optional[float]"; None where a part of it is no plain type.

    Upstream writes an enum together with `str` (`SaveStrategy | str`), and its values as strings,
    so it counts as `str`.
    """
    node = ast.parse(annotation, mode="eval").body
    if isinstance(node, ast.Constant) and isinstance(node.value, str):  # a quoted annotation
        return _plain_types(node.value)

    def walk(part: ast.expr) -> set[str]:
        if isinstance(part, ast.BinOp):
            return walk(part.left) | walk(part.right)
        if isinstance(part, ast.Subscript):
            name = ast.unparse(part.value).rsplit(".")[-1]
            if name in {"Optional", "Union"}:
                inner = part.slice.elts if isinstance(part.slice, ast.Tuple) else [part.slice]
                return set().union(*map(walk, inner)) | ({"None"} if name == "Optional" else set())
            return {name.lower()}
        return {ast.unparse(part)}

    names = walk(node)
    if "str" in names and "literal" not in names:
        return names & _PLAIN
    return names if names <= _PLAIN else None
