"""Choices of a config that do not go together, and keys that the chosen options do not read.

Each check takes a block of a config whose keys and types are right, and returns its problems, each
with what to type instead. To add a rule, add it to the check of its group. What is true of a single
choice (the keys that a format reads, say) is a fact in the tables of schema.py.
"""

from __future__ import annotations

import codecs
import dataclasses
import encodings.aliases
from collections.abc import Mapping, Sequence
from typing import Any

from sftpipe.config.distributed import check_distributed
from sftpipe.config.lora import check_initialisation
from sftpipe.config.options import how_to_write
from sftpipe.config.patterns import pattern_fields
from sftpipe.config.schema import (
    DATASETS,
    FORMATS,
    HUB_DATASET,
    LOSSES,
    PACKING,
    ROLES,
    TRACKERS,
    TURN_FIELDS,
    DatasetConfig,
    EvaluationConfig,
    FormatConfig,
    LossConfig,
    MixtureSource,
    ModelConfig,
    TokenizerConfig,
    TrackingConfig,
    TrainConfig,
)
from sftpipe.config.upstream_conflicts import find_upstream_conflicts
from sftpipe.errors import Problem, nearest, override, show_value, wrong_choice


def find_conflicts(cfg: TrainConfig) -> list[Problem]:
    """All conflicts of a config, each with what to type instead."""
    return [
        *_check_quantization(cfg),
        *find_upstream_conflicts(cfg),
        *(check_initialisation(cfg) if cfg.lora else []),
        *_check_dataset(cfg.dataset, "dataset"),
        *_check_format(cfg.format, "format"),
        *_check_tracking(cfg.tracking),
        *_check_templates(cfg.loss),
        *_check_loss(cfg),
        *_check_mixture(cfg.dataset),
        *_check_sources(cfg.dataset),
        *_check_model(cfg),
        *_check_tokenizer(cfg),
        *_check_windows(cfg),
        *_check_length(cfg),
        *_check_sampling(cfg.evaluation),
        *_check_sample_steps(cfg.evaluation),
        *check_distributed(cfg),
    ]


def only_with(
    key: str,
    is_set: bool,
    readers: Sequence[str],
    chosen: str,
    *,
    kind: str = "type: ",
    why: str = "",
    allowed: str = "",
    fix: str = "leave it out",
) -> list[Problem]:
    """The problem of a key that is set although the chosen option does not read it.

    Args:
        key: the key, such as `format.system`.
        is_set: the key has another value than its default.
        readers: the options that read the key.
        chosen: the option of this config.
        kind: how a config chooses one, such as `type: `.
        why: the reason, where the option's name does not say it.
        allowed: as in `Problem`.
        fix: as in `Problem`.
    """
    if not is_set or chosen in readers:
        return []
    return [Problem(key, f"nothing reads it with {kind}{chosen}{why}", allowed=allowed, fix=fix)]


def _is_set(block: Any, name: str) -> bool:
    """True if a field of a dataclass has another value than its default."""
    field = next(one for one in dataclasses.fields(block) if one.name == name)
    made = field.default_factory
    default = field.default if made is dataclasses.MISSING else made()
    return bool(getattr(block, name) != default)


# --- model, quantization, LoRA --------------------------------------------------------------------


def _check_quantization(cfg: TrainConfig) -> list[Problem]:
    quantization, problems = cfg.quantization, []
    if quantization and not cfg.lora:
        found = "quantized weights cannot be trained, and lora=none adds nothing that can"
        fix = "`lora=default`, or `quantization=none`"
        problems.append(Problem("quantization + lora", found, fix=fix))
    if quantization.get("load_in_4bit") and quantization.get("load_in_8bit"):
        found = "load_in_4bit and load_in_8bit are both true"
        fix = "`quantization.load_in_8bit=false`, or `quantization.load_in_4bit=false`"
        problems.append(Problem("quantization", found, fix=fix))
    return problems


def _check_model(cfg: TrainConfig) -> list[Problem]:
    """Weights that are loaded, or a model from scratch; each with keys of its own."""
    model, problems = cfg.model, []
    if model.init == "random":
        return [*_check_scratch(model), *_check_base(cfg)]
    if model.name_or_path is None:
        found = "not set, and model.init=pretrained loads weights"
        problems.append(Problem("model.name_or_path", found, fix="model.name_or_path=..."))
    problems += only_with(
        "model.config",
        bool(model.config),
        ("random",),
        model.init,
        kind="init: ",
        why=": weights bring their own config",
        fix="`model.init=random`, or leave it out",
    )
    return problems


_OWNERS = {  # fields of a model's config that other keys own
    **dict.fromkeys(("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"), "tokenizer"),
    "dtype": "model.dtype",
}


def _check_scratch(model: ModelConfig) -> list[Problem]:
    """The keys that describe a model from scratch."""
    problems = []
    key, is_named = "model.config.model_type", model.name_or_path is not None
    if not is_named and not model.config.get("model_type"):
        found = "not set, and model.init=random makes a model of that kind"
        fix = f"`{key}=gpt2`, or model.name_or_path=..."
        problems.append(Problem(key, found, fix=fix))
    if is_named and "model_type" in model.config:
        problems.append(Problem(key, "model.name_or_path brings it", fix="leave one out"))
    for name in ("revision", "source"):
        if not is_named and _is_set(model, name):
            found = f"{getattr(model, name)!r}, and no model.name_or_path is named"
            problems.append(Problem(f"model.{name}", found, fix="leave it out"))
    for name in model.config:
        if name in _OWNERS:
            fix = how_to_write(_OWNERS[name])
            problems.append(Problem(f"model.config.{name}", "another key owns this", fix=fix))
    return problems


def _check_base(cfg: TrainConfig) -> list[Problem]:
    """The keys that need trained weights, or a tokenizer that comes with a model."""
    problems = []
    for group in ("lora", "quantization"):
        if getattr(cfg, group):
            found = (
                f"{group} keeps the weights of a base as they are, and model.init=random has none "
                "that are worth keeping"
            )
            fix = f"`{group}=none`, or `model.init=pretrained`"
            problems.append(Problem(f"{group} + model.init", found, fix=fix))
    named = cfg.model.name_or_path or cfg.tokenizer.name_or_path
    if named is None and cfg.tokenizer.type == "pretrained":
        found = "not set, and a model from scratch has no tokenizer of its own"
        fix = "`tokenizer=char`, `tokenizer=bpe`, or tokenizer.name_or_path=..."
        problems.append(Problem("tokenizer.name_or_path", found, fix=fix))
    return problems


def _check_tokenizer(cfg: TrainConfig) -> list[Problem]:
    """A tokenizer that is loaded, or one that the run trains."""
    tokenizer: TokenizerConfig = cfg.tokenizer
    kind, problems = tokenizer.type, []
    if kind != "pretrained" and cfg.model.init == "pretrained":
        found = "the model was trained on other tokens, and would have to learn these from nothing"
        fix = "`tokenizer=default`, or `model.init=random`"
        problems.append(Problem(f"tokenizer.type={kind}", found, fix=fix))
    problems += only_with(
        "tokenizer.name_or_path",
        tokenizer.name_or_path is not None,
        ("pretrained",),
        kind,
        why=", which is trained on the data",
        fix="`tokenizer=default`, or leave it out",
    )
    key = "tokenizer.vocab_size"
    if kind == "bpe" and tokenizer.vocab_size is None:
        found = "not set, and type: bpe makes so many tokens"
        problems.append(Problem(key, found, fix=f"`{key}=4096`"))
    problems += only_with(key, tokenizer.vocab_size is not None, ("bpe",), kind, allowed="bpe")
    problems += only_with(
        "tokenizer.unk_token",
        tokenizer.unk_token != "keep",
        ("pretrained", "char"),
        kind,
        why=", which knows every byte",
    )
    return problems


# --- data set and format --------------------------------------------------------------------------


def _check_dataset(dataset: DatasetConfig, key: str) -> list[Problem]:
    problems = _check_keys_of_path(dataset, key)
    for name in ("validation_size", "test_size"):
        size = getattr(dataset, name)
        if size > 1 and not size.is_integer():
            allowed = "below 1 a share of the rows, else a number of rows"
            problems.append(Problem(f"{key}.{name}", repr(size), allowed=allowed))
    problems += _check_text(dataset, key)
    if dataset.split is not None and not _is_split(dataset.split):
        allowed = (
            "the name of a split of the source, or {train: its name, validation: ..., test: ...}"
        )
        problems.append(Problem(f"{key}.split", show_value(dataset.split), allowed=allowed))
    if dataset.markers != "keep" and not dataset.marker_tokens:
        found = f"{dataset.markers!r}, and there are no {key}.marker_tokens"
        fix = override(f"{key}.marker_tokens", "['|SOUND|>']")
        problems.append(Problem(f"{key}.markers", found, fix=fix))
    return problems


def _check_text(dataset: DatasetConfig, key: str) -> list[Problem]:
    """The keys that say how text files are read."""
    problems = []
    if not _is_text_encoding(dataset.encoding):
        known = sorted({*encodings.aliases.aliases, *encodings.aliases.aliases.values()})
        spelled = dataset.encoding.lower().replace("-", "_")
        match = nearest(spelled, [name for name in known if _is_text_encoding(name)]) or "utf-8"
        problem = Problem(
            f"{key}.encoding",
            f"{dataset.encoding!r}",
            allowed="a text encoding that Python knows, such as utf-8, cp949, utf-16, cp1252",
            fix=override(f"{key}.encoding", match),
        )
        problems.append(problem)
    mark = dataset.delimiter
    if mark is not None and mark not in ("tab", "\\t") and (len(mark) != 1 or mark in '\r\n"'):
        allowed = "one character, such as ';', or tab"
        fix = override(f"{key}.delimiter", "tab" if mark.lower() in ("tabs", "tsv") else "';'")
        problems.append(Problem(f"{key}.delimiter", repr(mark), allowed=allowed, fix=fix))
    columns: dict[str, object] = {**dataset.columns}
    for ours, theirs in columns.items():
        if not isinstance(theirs, str | None):
            allowed = "the name of a column of the data set, or null, which hides the column"
            where = f"{key}.columns.{ours}"
            fix = override(where, f"'{theirs}'") if isinstance(theirs, int) else ""
            problems.append(Problem(where, show_value(theirs), allowed=allowed, fix=fix))
    return problems


def _is_text_encoding(name: str) -> bool:
    try:
        return codecs.lookup(name)._is_text_encoding and name not in ("idna", "undefined")
    except (LookupError, ValueError):
        return False


def _is_split(split: object) -> bool:
    if not isinstance(split, Mapping):
        return isinstance(split, str)
    ours = {"train", "validation", "test"}
    return bool(split) and split.keys() <= ours and all(isinstance(v, str) for v in split.values())


_SOME_KINDS = ("name", "revision", "data_files", "encoding", "delimiter", "field", "sample_by")
_ONE_KIND = ("function", "sources")  # keys whose presence shows which kind of data set was meant


def _check_keys_of_path(dataset: DatasetConfig, key: str) -> list[Problem]:
    """The keys that only some kinds of data set read, and those that this kind needs."""
    path, problems = dataset.path, []
    facts = DATASETS.get(path, HUB_DATASET)
    needed = facts.needs
    if needed and not getattr(dataset, needed):
        reason = "reads files" if needed == "data_files" else "needs it"
        found = f"not set, and dataset={path} {reason}"
        fix = override(f"{key}.{needed}", facts.example)
        problems.append(Problem(f"{key}.{needed}", found, fix=fix))
    # a source of a mixture has a name, under which the reports list it
    read = (*facts.reads, "name") if isinstance(dataset, MixtureSource) else facts.reads
    for name in _ONE_KIND:
        (reader,) = (kind for kind, other in DATASETS.items() if name in other.reads)
        way_out = override(key if key == "dataset" else f"{key}.path", reader)
        is_unread = _is_set(dataset, name) and name not in read
        problems += only_with(
            f"{key}.{name}",
            is_unread,
            (reader,),
            path,
            kind="path: ",
            fix=f"{way_out}, or leave it out",
        )
    # _check_mixture says which keys belong to the sources of a mixture
    for name in () if path == "mixture" else _SOME_KINDS:
        readers = [kind for kind, other in DATASETS.items() if name in other.reads]
        readers += ["a set of the hub"] if name in HUB_DATASET.reads else []
        is_unread = _is_set(dataset, name) and name not in read
        problems += only_with(
            f"{key}.{name}",
            is_unread,
            readers,
            path,
            kind="path: ",
            allowed=", ".join(readers),
            fix="another dataset=OPTION, or leave it out",
        )
    return problems


def _check_mixture(mixture: DatasetConfig) -> list[Problem]:
    """The keys that belong to the sources of a mixture and not to the mixture."""
    if mixture.path != "mixture":
        return []
    of_the_mixture = ("path", "sources", "limit", "num_proc", "markers", "marker_tokens")
    found = "a mixture reads it from its sources"
    problems = []
    for field in dataclasses.fields(DatasetConfig):
        if field.name not in of_the_mixture and _is_set(mixture, field.name):
            fix = f"dataset.sources=[{{..., {field.name}: ...}}, ...]"
            problems.append(Problem(f"dataset.{field.name}", found, fix=fix))
    for index, source in enumerate(mixture.sources):
        problems += _check_share(source, f"dataset.sources[{index}]")
    bare = [f"sources[{at}]" for at, one in enumerate(mixture.sources) if one.weight is None]
    if 0 < len(bare) < len(mixture.sources):
        found = f"some have a weight, and {', '.join(bare)} has none"
        problems.append(Problem("dataset.sources", found, fix="a weight for each, or counts"))
    return problems


def _check_share(source: MixtureSource, key: str) -> list[Problem]:
    """One source as a part of its mixture."""
    problems = []
    if source.path == "mixture":
        problems.append(Problem(f"{key}.path", "a mixture in a mixture", allowed="a data set"))
    if source.weight is not None and source.count is not None:
        found, fix = "both weight and count", "leave one out"
        problems.append(Problem(key, found, allowed="one of them", fix=fix))
    if source.weight == 0:
        fix = "leave the source out"
        problems.append(Problem(f"{key}.weight", "0", allowed="more than 0", fix=fix))
    for name in ("markers", "marker_tokens", "num_proc"):
        if _is_set(source, name):
            found = "one policy serves the whole mixture"
            problems.append(Problem(f"{key}.{name}", found, fix=f"dataset.{name}=..."))
    return problems


def _check_sources(dataset: DatasetConfig) -> list[Problem]:
    """Each source of a mixture as a data set of its own."""
    problems = []
    for index, source in enumerate(dataset.sources):
        problems += _check_dataset(source, f"dataset.sources[{index}]")
        if source.format is not None:
            problems += _check_format(source.format, f"dataset.sources[{index}].format")
    return problems


_EXAMPLES = {
    "prompt": "'{prompt} ##>'",
    "completion": "' {completion}'",
    "function": "my_module.my_function",
}


def _check_format(form: FormatConfig, key: str) -> list[Problem]:
    problems = []
    for name in (field.name for field in dataclasses.fields(form) if field.name != "type"):
        readers = [kind for kind, facts in FORMATS.items() if name in facts.reads]
        fix = "put it into the texts, or leave it out" if name == "system" else "leave it out"
        problems += only_with(
            f"{key}.{name}",
            _is_set(form, name),
            readers,
            form.type,
            allowed=", ".join(readers),
            fix=fix,
        )
    for name in FORMATS[form.type].needs:
        if getattr(form, name) is None:
            found = f"not set, and format={form.type} needs it"
            fix = override(f"{key}.{name}", _EXAMPLES[name])
            problems.append(Problem(f"{key}.{name}", found, fix=fix))
    for name in ("prompt", "prompt_no_input", "completion"):
        pattern = getattr(form, name)
        if name in FORMATS[form.type].reads and pattern is not None:
            problems += _check_pattern(pattern, f"{key}.{name}")
    for name, theirs in form.fields.items():
        if name not in TURN_FIELDS:
            match = nearest(name, TURN_FIELDS)
            fix = override(f"{key}.fields", f"{{{match}: {theirs}}}") if match else "leave it out"
            allowed = ", ".join(TURN_FIELDS)
            problems.append(Problem(f"{key}.fields", repr(name), allowed=allowed, fix=fix))
    for name, role in form.roles.items():
        if role not in ROLES:
            where = f"{key}.roles.{name}"
            problems.append(wrong_choice(where, role, ROLES, where))
    return problems


def _check_tracking(tracking: TrackingConfig | None) -> list[Problem]:
    problems: list[Problem] = []
    if tracking is None:
        return problems
    for name in (one.name for one in dataclasses.fields(tracking) if one.name != "type"):
        readers = [kind for kind, facts in TRACKERS.items() if name in facts.reads]
        problems += only_with(
            f"tracking.{name}",
            _is_set(tracking, name),
            readers,
            tracking.type,
            allowed=", ".join(readers),
        )
    return problems


def _check_pattern(pattern: str, key: str) -> list[Problem]:
    allowed = "text with {column} fields; a brace of the text itself is written twice: {{ }}"
    try:
        fields = pattern_fields(pattern)
    except ValueError as error:
        return [Problem(key, f"{pattern!r}: {error}", allowed=allowed)]
    return [] if fields else [Problem(key, f"{pattern!r} has no field", allowed=allowed)]


# --- loss and packing -----------------------------------------------------------------------------


def _check_templates(loss: LossConfig) -> list[Problem]:
    """The two templates of loss=response_template: texts, or lists of token ids."""
    names, facts = {"response_template": "answer", "instruction_template": "question"}, LOSSES
    problems = []
    for name, role in names.items():
        value, key = getattr(loss, name), f"loss.{name}"
        readers = [kind for kind in facts if name in facts[kind].reads]
        fix = override("loss", readers[0])
        problems += only_with(key, value is not None, readers, loss.type, fix=fix)
        is_optional = value is None and name == "instruction_template"
        if loss.type in readers and not is_optional and not _is_template(value):
            found = "not set" if value is None else show_value(value)
            allowed = f"the text before each {role}, or its token ids"
            fix = override(key, f"'### {role.title()}:'")
            problems.append(Problem(key, found, allowed=allowed, fix=fix))
    values = [getattr(loss, name) for name in names if getattr(loss, name) is not None]
    is_text = {isinstance(value, str) for value in values}
    if loss.type in readers and len(is_text) == 2:
        found = "one template is text and the other ids"
        problems.append(Problem("loss", found, allowed="both text, or both ids"))
    return problems


def _is_template(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(type(token) is int for token in value)
    return isinstance(value, str) and bool(value)


_NO_TURNS = {"text": "a finished text", "prompt_completion": "a prompt and its completion"}


def _check_loss(cfg: TrainConfig) -> list[Problem]:
    """A loss with its own keys, and with the samples that the formats make."""
    loss, problems = cfg.loss, []
    if _is_set(loss, "boundary") and "boundary" not in LOSSES[loss.type].reads:
        found = f"'joint', and {loss.type} has no single prompt whose length could be masked"
        fix = "`loss.boundary=split`, or `loss=completion_only`"
        problems.append(Problem("loss.boundary", found, allowed="split", fix=fix))
    if loss.unroll and "unroll" not in LOSSES[loss.type].reads:
        found = f"true, and loss={loss.type} has no turns to make rows of"
        fix = "`loss=assistant_only`, or `loss.unroll=false`"
        problems.append(Problem("loss.unroll", found, allowed="with loss=assistant_only", fix=fix))
    forms = {"format": cfg.format}
    if cfg.dataset.path == "mixture":
        sources = enumerate(cfg.dataset.sources)
        forms = {f"dataset.sources[{at}].format": one.format or cfg.format for at, one in sources}
    for key, form in forms.items():
        made = FORMATS[form.type].makes
        if made != "any" and made not in LOSSES[loss.type].takes:
            takers = [f"`loss={kind}`" for kind, facts in LOSSES.items() if made in facts.takes]
            found = f"{key}={form.type} makes {_NO_TURNS[made]}, which has no turns to tell apart"
            fix = ", or ".join((", ".join(takers[:-1]), takers[-1]))
            problems.append(Problem(f"loss={loss.type}", found, fix=fix))
    return problems


def _check_windows(cfg: TrainConfig) -> list[Problem]:
    """Windows come from one stream of all tokens; keys about rows have nothing to act on."""
    packing = cfg.packing
    if packing is None:
        return []
    chosen = packing.strategy
    windows = [name for name, facts in PACKING.items() if facts.windows]
    rows = [name for name, facts in PACKING.items() if not facts.windows]
    problems = only_with(
        "packing.block_size",
        packing.block_size is not None,
        windows,
        chosen,
        kind="strategy: ",
        allowed=", ".join(windows),
        fix=f"`packing={windows[0]}`, or leave it out",
    )
    if chosen in windows and packing.block_size is None:
        found = f"not set, and packing={chosen} makes windows of that length"
        fix = "`packing.block_size=256`"
        problems.append(Problem("packing.block_size", found, fix=fix))
    if chosen in windows and cfg.loss.type != "full":
        found = f"packing={chosen} trains every token of its windows"
        fix = f"`loss=full`, or `packing={rows[0]}`"
        problems.append(Problem(f"loss={cfg.loss.type}", found, fix=fix))
    order = cfg.sft.get("train_sampling_strategy", "random")
    for key, is_set, why in (
        (
            "packing.pack_eval",
            packing.pack_eval,
            "validation and test are always split into windows",
        ),
        (
            "packing.isolation",
            _is_set(packing, "isolation"),
            "documents see each other in blocks, by design",
        ),
        ("sft.train_sampling_strategy", order != "random", "windows are drawn at random"),
    ):
        problems += only_with(key, is_set, rows, chosen, kind="packing=", why=f": {why}")
    return problems


def _check_length(cfg: TrainConfig) -> list[Problem]:
    """Rows that are longer than `sft.max_length`, and packing, which fills that length."""
    facts = PACKING[cfg.packing.strategy] if cfg.packing else None
    chosen = f"packing={cfg.packing.strategy}" if cfg.packing else ""
    has_length = cfg.sft.get("max_length") is not None
    truncates = cfg.over_length == "truncate"
    problems = []
    if facts and facts.needs_length and not has_length:
        found = f"null, and {chosen} fills sequences of that length"
        problems.append(Problem("sft.max_length", found, fix="`sft.max_length=1024`"))
    if facts and facts.splits and truncates:
        found = f"'truncate', and {chosen} splits long rows"
        fix = "`over_length=error`, or `packing=bfd`"
        problems.append(Problem("over_length", found, fix=fix))
    if truncates and not has_length:
        found = "'truncate', and sft.max_length sets no length"
        problems.append(Problem("over_length", found, fix="`sft.max_length=1024`"))
    return problems


# --- evaluation and preflight ---------------------------------------------------------------------


def _check_sampling(evaluation: EvaluationConfig | None) -> list[Problem]:
    if evaluation is None:
        return []
    if evaluation.do_sample:
        if evaluation.temperature > 0:
            return []
        key, found = "evaluation.temperature", repr(evaluation.temperature)
        fix = f"`{key}=0.7`; without do_sample and temperature the most likely token is taken"
        return [Problem(key, found, allowed="above 0", fix=fix)]
    return [
        Problem(
            f"evaluation.{name}",
            f"{getattr(evaluation, name)!r}, and nothing reads it with evaluation.do_sample=false",
            fix="`evaluation.do_sample=true`, or leave it out",
        )
        for name in ("temperature", "top_k")
        if _is_set(evaluation, name)
    ]


def _check_sample_steps(evaluation: EvaluationConfig | None) -> list[Problem]:
    if evaluation is None:
        return []
    key, steps, strategy = "evaluation.sample_steps", evaluation.sample_steps, "steps"
    if evaluation.sample_strategy == strategy and steps is None:
        found = "not set, and evaluation.sample_strategy=steps answers after so many"
        return [Problem(key, found, fix=f"`{key}=100`")]
    return only_with(
        key,
        steps is not None,
        (strategy,),
        evaluation.sample_strategy,
        kind="evaluation.sample_strategy=",
        fix=f"`evaluation.sample_strategy={strategy}`, or leave it out",
    )
