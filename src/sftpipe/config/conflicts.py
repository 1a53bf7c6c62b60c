"""Choices of a config that do not go together, and keys that nothing reads next to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from sftpipe.config.options import how_to_write
from sftpipe.config.schema import (
    DatasetConfig,
    EvaluationConfig,
    FormatConfig,
    MixtureSource,
    TrainConfig,
)
from sftpipe.errors import Problem, show_value, wrong_choice


def clashes(cfg: TrainConfig) -> list[Problem]:
    """All of them, each with what to type instead."""
    problems = []
    quantization = cfg.quantization
    if quantization and not cfg.lora:
        problems.append(
            Problem(
                "quantization + lora",
                "quantized weights cannot be trained, and lora=none adds nothing that can",
                fix="lora=default, or quantization=none",
            )
        )
    if quantization.get("load_in_4bit") and quantization.get("load_in_8bit"):
        problems.append(
            Problem(
                "quantization",
                "load_in_4bit and load_in_8bit are both true",
                fix="quantization=nf4",
            )
        )
    for name, allowed in (
        ("bnb_4bit_quant_type", ("nf4", "fp4")),
        ("bnb_4bit_compute_dtype", ("auto", "float32", "bfloat16", "float16")),
    ):
        if name in quantization and quantization[name] not in allowed:
            problems.append(
                wrong_choice(
                    f"quantization.{name}", quantization[name], allowed, f"quantization.{name}"
                )
            )
    problems += (
        _check_dataset(cfg.dataset, "dataset")
        + _check_format(cfg.format, "format")
        + _check_loss(cfg)
    )
    if cfg.dataset.path == "mixture":
        problems += _check_mixture(cfg.dataset)
    for index, source in enumerate(cfg.dataset.sources):
        problems += _check_dataset(source, f"dataset.sources[{index}]")
        if source.format is not None:
            problems += _check_format(source.format, f"dataset.sources[{index}].format")
    problems += _check_model(cfg) + _check_tokenizer(cfg) + _check_blocks(cfg)
    if (
        cfg.packing
        and cfg.packing.strategy not in ("padding_free", "blocks")
        and cfg.sft.get("max_length") is None
    ):
        found = f"null, and packing={cfg.packing.strategy} fills sequences of that length"
        problems.append(Problem("sft.max_length", found, fix="sft.max_length=1024"))
    if (
        cfg.packing
        and cfg.packing.strategy in ("bfd_split", "wrapped", "blocks")
        and cfg.over_length == "truncate"
    ):
        found = f"'truncate', and packing={cfg.packing.strategy} splits long rows"
        problems.append(Problem("over_length", found, fix="over_length=error, or packing=bfd"))
    if cfg.over_length == "truncate" and cfg.sft.get("max_length") is None:
        problems.append(
            Problem(
                "over_length",
                "'truncate', and sft.max_length sets no length",
                fix="sft.max_length=1024",
            )
        )
    problems += _check_sampling(cfg.evaluation)
    for name in ("max_empty_rows", "max_over_length_rows"):
        share = getattr(cfg.preflight, name)
        if not 0 <= share <= 1:
            problems.append(Problem(f"preflight.{name}", repr(share), allowed="0 to 1"))
    return problems


def _check_sampling(evaluation: EvaluationConfig | None) -> list[Problem]:
    problems: list[Problem] = []
    if evaluation is None:
        return problems
    if evaluation.do_sample and not evaluation.temperature > 0:
        fix = "evaluation.do_sample=false takes the most likely token"
        problems.append(
            Problem(
                "evaluation.temperature", repr(evaluation.temperature), allowed="above 0", fix=fix
            )
        )
    for name in ("temperature", "top_k"):
        if not evaluation.do_sample and getattr(evaluation, name) != getattr(
            EvaluationConfig, name
        ):
            found = (
                f"{getattr(evaluation, name)!r}, and nothing "
                "reads it with evaluation.do_sample=false"
            )
            problems.append(
                Problem(
                    f"evaluation.{name}", found, fix="evaluation.do_sample=true, or leave it out"
                )
            )
    return problems


_OF_THE_TOKENIZER = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")


def _check_model(cfg: TrainConfig) -> list[Problem]:
    """Weights that are loaded, or a model from scratch; what only one of them reads."""
    model, problems = cfg.model, []
    if model.init == "pretrained":
        if model.name_or_path is None:
            problems.append(
                Problem(
                    "model.name_or_path",
                    "not set, and model.init=pretrained loads weights",
                    fix="model.name_or_path=...",
                )
            )
        if model.config:
            found = "nothing reads it with init: pretrained: weights bring their own config"
            problems.append(
                Problem("model.config", found, fix="model.init=random, or leave it out")
            )
        return problems
    named = model.name_or_path is not None
    if not named and not model.config.get("model_type"):
        found = "not set, and model.init=random makes a model of that kind"
        problems.append(
            Problem(
                "model.config.model_type",
                found,
                fix="model.config.model_type=gpt2, or model.name_or_path=...",
            )
        )
    if named and "model_type" in model.config:
        problems.append(
            Problem("model.config.model_type", "model.name_or_path brings it", fix="leave one out")
        )
    for name in ("revision", "source"):
        value = getattr(model, name)
        if not named and value not in (None, "auto"):
            problems.append(
                Problem(
                    f"model.{name}",
                    f"{value!r}, and no model.name_or_path is named",
                    fix="leave it out",
                )
            )
    for name in model.config:
        owner = (
            "tokenizer" if name in _OF_THE_TOKENIZER else "model.dtype" if name == "dtype" else ""
        )
        if owner:
            problems.append(
                Problem(f"model.config.{name}", "another key owns this", fix=how_to_write(owner))
            )
    for group in ("lora", "quantization"):
        if getattr(cfg, group):
            found = (
                f"{group} keeps the weights of a base as they are, and model.init=random has none "
                "that are worth keeping"
            )
            problems.append(
                Problem(
                    f"{group} + model.init", found, fix=f"{group}=none, or model.init=pretrained"
                )
            )
    if not named and cfg.tokenizer.type == "pretrained" and cfg.tokenizer.name_or_path is None:
        found = "not set, and a model from scratch has no tokenizer of its own"
        problems.append(
            Problem(
                "tokenizer.name_or_path",
                found,
                fix="tokenizer=char, tokenizer=bpe, or tokenizer.name_or_path=...",
            )
        )
    return problems


def _check_tokenizer(cfg: TrainConfig) -> list[Problem]:
    """A tokenizer that is loaded, or one that the run trains."""
    tokenizer, problems = cfg.tokenizer, []
    if tokenizer.type != "pretrained":
        where = f"tokenizer.type={tokenizer.type}"
        if cfg.model.init == "pretrained":
            found = (
                "the model was trained on other tokens, and would have to learn these from nothing"
            )
            problems.append(Problem(where, found, fix="tokenizer=default, or model.init=random"))
        if tokenizer.name_or_path is not None:
            found = f"nothing reads it with type: {tokenizer.type}, which is trained on the data"
            problems.append(
                Problem("tokenizer.name_or_path", found, fix="tokenizer=default, or leave it out")
            )
    if tokenizer.type == "bpe" and tokenizer.vocab_size is None:
        problems.append(
            Problem(
                "tokenizer.vocab_size",
                "not set, and type: bpe makes so many tokens",
                fix="tokenizer.vocab_size=4096",
            )
        )
    if tokenizer.type != "bpe" and tokenizer.vocab_size is not None:
        problems.append(
            Problem(
                "tokenizer.vocab_size",
                f"nothing reads it with type: {tokenizer.type}",
                allowed="bpe",
                fix="leave it out",
            )
        )
    if tokenizer.type == "bpe" and tokenizer.unk_token != "keep":
        problems.append(
            Problem(
                "tokenizer.unk_token",
                "nothing reads it with type: bpe, which knows every byte",
                fix="leave it out",
            )
        )
    return problems


def _check_blocks(cfg: TrainConfig) -> list[Problem]:
    """packing=blocks makes one stream of all tokens; keys about rows have nothing to act on."""
    packing = cfg.packing
    problems: list[Problem] = []
    if packing is None:
        return problems
    if packing.strategy != "blocks":
        if packing.block_size is not None:
            found = f"nothing reads it with strategy: {packing.strategy}"
            problems.append(
                Problem(
                    "packing.block_size",
                    found,
                    allowed="blocks",
                    fix="packing=blocks, or leave it out",
                )
            )
        return problems
    if packing.block_size is None:
        found = "not set, and packing=blocks cuts windows of that length"
        problems.append(Problem("packing.block_size", found, fix="packing.block_size=256"))
    if cfg.loss.type != "full":
        found = "packing=blocks trains every token of its windows"
        problems.append(Problem(f"loss={cfg.loss.type}", found, fix="loss=full, or packing=bfd"))
    unread = (
        ("packing.pack_eval", packing.pack_eval, "validation and test are always cut into windows"),
        (
            "packing.isolation",
            packing.isolation == "trust",
            "documents see each other in blocks, by design",
        ),
        (
            "sft.train_sampling_strategy",
            cfg.sft.get("train_sampling_strategy", "random") != "random",
            "windows are drawn at random",
        ),
    )
    problems += [
        Problem(key, f"nothing reads it with packing=blocks: {why}", fix="leave it out")
        for key, wrong, why in unread
        if wrong
    ]
    return problems


_LOCAL = ("embedded", "json", "csv", "parquet", "text", "arrow", "function", "mixture")
_DATASET_READERS = {  # dataset keys, and the paths that read them; any other path is one of the hub
    "name": ("embedded", "a set of the hub"),
    "revision": ("a set of the hub",),
    "data_files": ("json", "csv", "parquet", "text", "arrow", "a set of the hub"),
    "sample_by": ("text",),
}
_FILE_ENDINGS = {
    "json": "my_rows.jsonl",
    "csv": "my_rows.csv",
    "parquet": "my_rows.parquet",
    "text": "my_text.txt",
    "arrow": "my_folder",
}


def _check_dataset(dataset: DatasetConfig, key: str) -> list[Problem]:
    problems = []
    if dataset.path in _FILE_ENDINGS and not dataset.data_files:
        file = _FILE_ENDINGS[dataset.path]
        problems.append(
            Problem(
                f"{key}.data_files",
                f"not set, and dataset={dataset.path} reads files",
                fix=f"{key}.data_files={file}",
            )
        )
    needed = (
        ("function", "function", "my_module.my_function"),
        ("mixture", "sources", "[{path: json, data_files: a.jsonl}]"),
    )
    for path, name, fix in needed:
        value = getattr(dataset, name)
        if dataset.path == path and not value:
            problems.append(
                Problem(
                    f"{key}.{name}",
                    f"not set, and dataset={path} needs it",
                    fix=f"{key}.{name}={fix}",
                )
            )
        elif dataset.path != path and value:
            problems.append(
                Problem(
                    f"{key}.{name}",
                    f"nothing reads it with path: {dataset.path}",
                    fix=f"dataset={path}, or leave it out",
                )
            )
    plain = DatasetConfig(path=dataset.path)
    for name, paths in _DATASET_READERS.items():
        labels = name == "name" and isinstance(
            dataset, MixtureSource
        )  # the name of a source stands in reports
        if (
            dataset.path in _LOCAL
            and dataset.path not in ("mixture", *paths)
            and getattr(dataset, name) != getattr(plain, name)
            and not labels
        ):
            found = f"nothing reads it with path: {dataset.path}"
            problems.append(
                Problem(
                    f"{key}.{name}",
                    found,
                    allowed=", ".join(paths),
                    fix="another dataset=OPTION, or leave it out",
                )
            )
    for name in ("validation_size", "test_size"):
        size = getattr(dataset, name)
        if size > 1 and not size.is_integer():
            problems.append(
                Problem(
                    f"{key}.{name}",
                    repr(size),
                    allowed="below 1 a share of the rows, else a number of rows",
                )
            )
    if dataset.split is not None and not isinstance(dataset.split, str):
        splits = dataset.split if isinstance(dataset.split, Mapping) else {}
        if (
            not splits
            or not splits.keys() <= {"train", "validation", "test"}
            or not all(isinstance(v, str) for v in splits.values())
        ):
            allowed = (
                "the name of a split of the source, or {train: "
                "its name, validation: ..., test: ...}"
            )
            problems.append(Problem(f"{key}.split", show_value(dataset.split), allowed=allowed))
    if dataset.markers != "keep" and not dataset.marker_tokens:
        found = f"{dataset.markers!r}, and there are no {key}.marker_tokens"
        problems.append(Problem(f"{key}.markers", found, fix=f"{key}.marker_tokens=['|SOUND|>']"))
    return problems


def _check_mixture(mixture: DatasetConfig) -> list[Problem]:
    """What belongs to the sources, and what to the mixture."""
    problems = []
    plain = DatasetConfig(path="mixture")
    of_the_mixture = ("path", "sources", "limit", "num_proc", "markers", "marker_tokens")
    for field in dataclasses.fields(DatasetConfig):
        if field.name not in of_the_mixture and getattr(mixture, field.name) != getattr(
            plain, field.name
        ):
            found = "a mixture reads it from its sources"
            problems.append(
                Problem(
                    f"dataset.{field.name}",
                    found,
                    fix=f"dataset.sources=[{{..., {field.name}: ...}}, ...]",
                )
            )
    for index, source in enumerate(mixture.sources):
        key = f"dataset.sources[{index}]"
        if source.path == "mixture":
            problems.append(Problem(f"{key}.path", "a mixture in a mixture", allowed="a data set"))
        if source.weight is not None and source.count is not None:
            problems.append(
                Problem(key, "both weight and count", allowed="one of them", fix="leave one out")
            )
        if source.weight == 0:
            problems.append(
                Problem(f"{key}.weight", "0", allowed="more than 0", fix="leave the source out")
            )
        for name in ("markers", "marker_tokens", "num_proc"):
            if getattr(source, name) != getattr(plain, name):
                problems.append(
                    Problem(
                        f"{key}.{name}",
                        "one policy serves the whole mixture",
                        fix=f"dataset.{name}=...",
                    )
                )
    if any(source.weight is not None for source in mixture.sources) and any(
        source.weight is None for source in mixture.sources
    ):
        whole = ", ".join(
            f"sources[{index}]"
            for index, source in enumerate(mixture.sources)
            if source.weight is None
        )
        problems.append(
            Problem(
                "dataset.sources",
                f"some have a weight, and {whole} has none",
                fix="a weight for each, or counts",
            )
        )
    return problems


_READERS = {  # format keys, and the types that read them
    "system": ("instruction", "messages", "sharegpt", "prompt_completion", "function"),
    "text_field": ("text", "function"),
    "prompt": ("template",),
    "prompt_no_input": ("template",),
    "completion": ("template",),
    "function": ("function",),
    "batched": ("function",),
}


def _check_format(form: FormatConfig, key: str) -> list[Problem]:
    problems = []
    plain = FormatConfig()
    for name, types in _READERS.items():
        if getattr(form, name) != getattr(plain, name) and form.type not in types:
            fix = "put it into the texts, or leave it out" if name == "system" else "leave it out"
            problems.append(
                Problem(
                    f"{key}.{name}",
                    f"nothing reads it with type: {form.type}",
                    allowed=", ".join(types),
                    fix=fix,
                )
            )
    needed = {"template": ("prompt", "completion"), "function": ("function",)}.get(form.type, ())
    examples = {
        "prompt": "'{prompt} ##>'",
        "completion": "' {completion}'",
        "function": "my_module.my_function",
    }
    for name in needed:
        if getattr(form, name) is None:
            problems.append(
                Problem(
                    f"{key}.{name}",
                    f"not set, and format={form.type} needs it",
                    fix=f"{key}.{name}={examples[name]}",
                )
            )
    for name in ("prompt", "prompt_no_input", "completion"):
        pattern = getattr(form, name)
        if form.type == "template" and pattern is not None:
            problems += _check_pattern(pattern, f"{key}.{name}")
    return problems


def _check_pattern(pattern: str, key: str) -> list[Problem]:
    from sftpipe.data.formats import pattern_fields

    allowed = "text with {column} fields; a brace of the text itself is written twice: {{ }}"
    try:
        fields = pattern_fields(pattern)
    except ValueError as error:
        return [Problem(key, f"{pattern!r}: {error}", allowed=allowed)]
    return [] if fields else [Problem(key, f"{pattern!r} has no field", allowed=allowed)]


_NO_TURNS = {"text": "a finished text", "template": "a prompt and its completion"}


def _check_loss(cfg: TrainConfig) -> list[Problem]:
    loss, problems = cfg.loss, []
    if loss.type == "response_template":
        for name, what in (("response_template", "answer"), ("instruction_template", "question")):
            value = getattr(loss, name)
            if value is None and name == "instruction_template":
                continue
            is_ids = (
                isinstance(value, list) and value and all(type(token) is int for token in value)
            )
            if not is_ids and not (isinstance(value, str) and value):
                found, allowed = (
                    "not set" if value is None else show_value(value),
                    f"the text in front of each {what}, or its token ids",
                )
                problems.append(
                    Problem(
                        f"loss.{name}",
                        found,
                        allowed=allowed,
                        fix=f"loss.{name}='### {what.title()}:'",
                    )
                )
        kinds = {
            isinstance(value, str)
            for value in (loss.response_template, loss.instruction_template)
            if value is not None
        }
        if len(kinds) == 2:
            problems.append(
                Problem(
                    "loss",
                    "one template is text and the other ids",
                    allowed="both text, or both ids",
                )
            )
    else:
        for name in ("response_template", "instruction_template"):
            if getattr(loss, name) is not None:
                problems.append(
                    Problem(
                        f"loss.{name}",
                        f"nothing reads it with type: {loss.type}",
                        fix="loss=response_template",
                    )
                )
    if loss.boundary == "joint" and loss.type == "assistant_only":
        found = "'joint', and assistant_only has no single prompt whose length could be masked"
        problems.append(
            Problem(
                "loss.boundary",
                found,
                allowed="split",
                fix="loss.boundary=split, or loss=completion_only",
            )
        )
    if loss.unroll and loss.type != "assistant_only":
        found = f"true, and loss={loss.type} has no turns to make rows of"
        problems.append(
            Problem(
                "loss.unroll",
                found,
                allowed="with loss=assistant_only",
                fix="loss=assistant_only, or loss.unroll=false",
            )
        )
    forms = {"format": cfg.format}
    if cfg.dataset.path == "mixture":
        forms = {
            f"dataset.sources[{at}].format": source.format or cfg.format
            for at, source in enumerate(cfg.dataset.sources)
        }
    for key, form in forms.items():
        made, is_text = _NO_TURNS.get(form.type), form.type == "text"
        if made and (loss.type == "assistant_only" or (is_text and loss.type == "completion_only")):
            fix = "loss=full, or loss=response_template" if is_text else "loss=completion_only"
            problems.append(
                Problem(
                    f"loss={loss.type}",
                    f"{key}={form.type} makes {made}, which has no turns to tell apart",
                    fix=fix,
                )
            )
    return problems
