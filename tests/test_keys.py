"""No dead keys: a key that a config accepts does something that can be seen, or is in a table that
says why it cannot be seen here. A field that an upgraded library brings fails without its row.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from sftpipe.config.hydra import from_recorded
from sftpipe.config.schema import MixtureSource, RunConfig, TrainConfig, to_plain
from sftpipe.config.upstream import MOVED, OURS, UPSTREAM, upstream_fields
from sftpipe.errors import ConfigError
from sftpipe.model.load import load_base
from sftpipe.model.weights import find_weights
from support.configs import compose
from support.models import CPU
from support.observed import Seen, differences, seen_in_data, seen_in_training


@dataclass(frozen=True)
class Try:
    """A value of a key, and the overrides with which it has its effect.

    why: why nothing of it can be seen here; "": it is seen.
    refused: what is seen is an error: this model or machine has no use for it.
    """

    value: str
    context: tuple[str, ...] = ()
    why: str = ""
    refused: bool = False


def seen(value: str, *context: str) -> Try:
    return Try(value, context)


def stops(value: str, *context: str) -> Try:
    """One of the two values stops the run, the other lets it go on."""
    return Try(value, context, refused=True)


def refused(value: str, *context: str) -> Try:
    return Try(value, context, refused=True)


def unseen(why: str, value: str, *context: str) -> Try:
    return Try(value, context, why)


EVALUATED = ("sft.eval_strategy=steps", "sft.eval_steps=2")
BEST = (*EVALUATED, "sft.load_best_model_at_end=true")
WORKER = "sft.dataloader_num_workers=1"
SGD = "sft.optim=sgd"
GPU = "of a GPU alone"
ONLY_Q = "lora.target_modules=[q_proj]"
SFT = {
    "per_device_train_batch_size": seen("4"),
    "num_train_epochs": seen("2", "sft.max_steps=-1"),
    "max_steps": seen("2"),
    "learning_rate": seen("1e-2"),
    "lr_scheduler_type": seen("constant"),
    "lr_scheduler_kwargs": seen("{num_cycles: 0.3}", "sft.lr_scheduler_type=cosine"),
    "warmup_steps": seen("2"),
    "optim": seen("sgd"),
    "optim_args": seen("'momentum=0.9'", SGD),
    "optim_target_modules": refused("[q_proj]"),  # of GaLore and APOLLO, whose packages are missing
    "weight_decay": seen("0.5"),
    "adam_beta1": seen("0.5"),
    "adam_beta2": seen("0.5"),
    "adam_epsilon": seen("0.1"),
    "gradient_accumulation_steps": seen("2"),
    "max_grad_norm": seen("0.01"),
    "label_smoothing_factor": seen("0.3"),
    "loss_type": seen("dft"),
    "neftune_noise_alpha": seen("10"),
    "router_aux_loss_coef": refused("0.1"),  # the model has no experts
    "max_length": seen("110", "over_length=truncate", "preflight.max_over_length_rows=1"),
    "pad_to_multiple_of": seen("64"),
    "train_sampling_strategy": seen("sequential"),
    "use_cpu": unseen("there is no other device here", "true"),
    "tf32": refused("true"),  # there is no GPU here
    "full_determinism": seen("true"),
    "activation_checkpointing": seen("true"),
    "activation_checkpointing_kwargs": seen(
        "{use_reentrant: false}", "sft.activation_checkpointing=true"
    ),
    "activation_offloading": refused("true"),  # the run is on a CPU
    "torch_compile": seen("true"),
    "torch_compile_backend": seen("eager"),
    "torch_compile_mode": seen("max-autotune"),
    "torch_empty_cache_steps": unseen(GPU, "1"),
    "accelerator_config": seen("{split_batches: true}"),
    "dataloader_drop_last": seen("true", "sft.max_steps=-1", "sft.per_device_train_batch_size=5"),
    "dataloader_num_workers": seen("1"),
    "dataloader_pin_memory": unseen(GPU, "true"),
    "dataloader_persistent_workers": seen("true", WORKER),
    "dataloader_prefetch_factor": seen("1", WORKER),
    "dataloader_multiprocessing_context": seen("fork", WORKER),
    "dataloader_in_order": seen("false"),
    "logging_strategy": seen("epoch"),
    "logging_steps": seen("1"),
    "logging_first_step": seen("true"),
    "logging_nan_inf_filter": unseen("it acts on a loss that is not finite", "false"),
    "include_num_input_tokens_seen": seen("all"),
    "log_level": seen("info"),
    "debug": seen("underflow_overflow"),
    "skip_memory_metrics": seen("false"),
    "eval_strategy": seen("epoch", "sft.max_steps=-1"),
    "eval_steps": seen("1", "sft.eval_strategy=steps"),
    "eval_delay": seen("3", *EVALUATED),
    "eval_on_start": seen("true"),
    "per_device_eval_batch_size": seen("5", *EVALUATED),
    "save_strategy": seen("epoch"),
    "save_steps": seen("1", "sft.save_total_limit=null"),
    "save_total_limit": seen("1"),
    "save_only_model": seen("true"),
    "load_best_model_at_end": seen("true", *EVALUATED),
    "metric_for_best_model": seen("eval_mean_token_accuracy", *BEST),
    "greater_is_better": seen("true", *BEST),
    "use_liger_kernel": unseen("of the package liger-kernel, which is not here", "false"),
    "liger_kernel_config": unseen("of the package liger-kernel, which is not here", "{}"),
    "resume_from_checkpoint": unseen("tests/e2e/test_train.py resumes runs", "null"),
}
LORA = {
    "r": seen("4"),
    "target_modules": seen("[q_proj]"),
    "exclude_modules": seen("[q_proj]"),
    "lora_alpha": seen("4"),
    "lora_dropout": seen("0.5"),
    "bias": seen("all"),
    "use_rslora": seen("true"),
    "modules_to_save": seen("[embed_tokens]"),
    "init_lora_weights": seen("gaussian"),
    "layers_to_transform": seen("[0]", ONLY_Q),
    "layers_pattern": refused("blocks", ONLY_Q, "lora.layers_to_transform=[0]"),  # there are none
    "rank_pattern": seen("{q_proj: 2}"),
    "alpha_pattern": seen("{q_proj: 2}"),
    "trainable_token_indices": seen("[3,4]"),
    "use_dora": seen("true"),
    "velora_config": seen("{num_groups: 4}"),
    "alora_invocation_tokens": seen("[3]"),
    "monteclora_config": seen("{}"),
    "layer_replication": seen("[[0,2],[1,2]]"),
    "lora_bias": seen("true"),
    "target_parameters": seen("[q_proj.weight]", "lora.target_modules=[v_proj]"),
    "use_bdlora": seen(
        "{target_modules_bd_a: [q_proj], target_modules_bd_b: [v_proj], nblocks: 2}",
        "lora.target_modules=[q_proj,v_proj]",
    ),
    "kasa_config": seen("{}"),
    "ensure_weight_tying": seen("true", "lora.modules_to_save=[embed_tokens]"),
}
INT8 = "quantization=int8"
QUANTIZATION = {
    "load_in_4bit": refused("false"),  # without it nothing is quantized
    "load_in_8bit": refused("false", INT8),
    "llm_int8_threshold": seen("0.1", INT8),
    "llm_int8_skip_modules": seen("[lm_head,q_proj]"),
    "llm_int8_enable_fp32_cpu_offload": seen("true"),
    "bnb_4bit_compute_dtype": seen("bfloat16"),
    "bnb_4bit_quant_type": seen("fp4"),
    "bnb_4bit_use_double_quant": seen("false"),
    "bnb_4bit_quant_storage": seen("float32"),
}
TABLES: dict[str, dict[str, Try]] = {"sft": SFT, "lora": LORA, "quantization": QUANTIZATION}


@pytest.mark.parametrize("group", TABLES)
def test_every_field_that_a_config_may_set_has_its_row(group: str) -> None:
    refused = {*MOVED.get(group, {}), *OURS.get(group, {})}
    assert set(TABLES[group]) == set(upstream_fields(UPSTREAM[group])) - refused


# --- the trainer and the adapter ------------------------------------------------------------------

BASE = [
    "recipe=yoda",
    "evaluation=none",
    "lora.lora_dropout=0",
    "dataset.limit=12",
    "preflight.default_system=allow",
    "sft.max_steps=3",
    "sft.per_device_train_batch_size=2",
    "sft.logging_steps=2",
    "sft.save_steps=2",
    "sft.warmup_steps=0",
    "sft.train_sampling_strategy=random",
]


@pytest.fixture(scope="session")
def small(made: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two narrow layers with biases, whose output embedding is the input one."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("small") / "small"
    shutil.copytree(made("chatml"), folder)
    config = LlamaConfig.from_pretrained(folder)
    config.update({"attention_bias": True, "tie_word_embeddings": True, "hidden_size": 64})
    config.head_dim = 32
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


Watch = Callable[[tuple[str, ...]], Seen]


@pytest.fixture(scope="session")
def trained(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Watch:
    """What is seen of a training with overrides; each is run once."""
    folder = tmp_path_factory.mktemp("trained")
    model = ["quantization=none", "model=custom", f"model.name_or_path={small}"]

    @functools.cache
    def run(words: tuple[str, ...]) -> Seen:
        try:
            cfg = compose([*BASE, *model, *words])
        except ConfigError as error:
            return {"refused": str(error)}
        return seen_in_training(cfg, folder / str(len(list(folder.iterdir()))))

    return run


@pytest.fixture(scope="session")
def loaded(small: Path) -> Watch:
    """What is seen of a quantized base: its logits, the kinds of its parameters, the layers."""

    @functools.cache
    def load(words: tuple[str, ...]) -> Seen:
        named = ["model=custom", f"model.name_or_path={small}"]
        try:
            cfg = compose([*BASE, *named, *words])
            weights = find_weights(cfg.model)
            model = load_base(cfg.model, cfg.quantization, weights, CPU, frozen=True)
        except ConfigError as error:
            return {"refused": str(error)}
        with torch.no_grad():
            logits = model(torch.tensor([[5, 6, 7, 8]])).logits
        kinds = {name: str((one.dtype, one.shape)) for name, one in model.named_parameters()}
        return {"logits": logits.tolist(), "kinds": kinds, "layers": repr(model)}

    return load


def as_overrides(group: str, name: str, row: Try) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the context, the context and the key)."""
    context = tuple(
        word if "=" in word and "." not in word.split("=")[0] else f"++{word}"
        for word in row.context
    )
    return context, (*context, f"++{group}.{name}={row.value}")


CASES = [(group, name) for group, table in TABLES.items() for name in table]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("group", "name"), CASES, ids=[".".join(case) for case in CASES])
def test_a_field_is_seen_unless_the_table_says_why_not(
    group: str, name: str, trained: Watch, loaded: Watch
) -> None:
    row = TABLES[group][name]
    watch = loaded if group == "quantization" else trained
    context, changed = as_overrides(group, name, row)
    before, after = watch(context), watch(changed)
    assert "refused" not in before
    assert ("refused" in after) == row.refused, after.get("refused")
    found = differences(before, after)
    assert bool(found) is not bool(row.why), found


# --- our own groups -------------------------------------------------------------------------------

FUNCTION = """
def rows():
    return [{"instruction": f"Say {at}.", "output": f"It is {at}."} for at in range(6)]


def texts():
    return [{"text": f"Mine {at}."} for at in range(4)]


def more_texts():
    return texts() + [{"text": "And more."}]


def fewer():
    return rows()[:4]


def to_turns(row):
    return {"prompt": row["instruction"], "completion": " " + row["output"]}


def shouted(row):
    return {"prompt": row["instruction"], "completion": " " + row["output"].upper()}


def many(rows):
    return [{"prompt": text, "completion": " batch"} for text in rows["instruction"]]


def any_number(row):
    one = isinstance(row["instruction"], str)
    return to_turns(row) if one else many(row)
"""
CSV = "instruction;output\n" + "".join(f"Say {at}.;It is {at}.\n" for at in range(6))
TEXT = "One line.\nTwo lines.\n\nA paragraph.\n"
CHAT = [
    {
        "turns": [
            {"who": "human", "content": f"Hi {at}", "other": "A"},
            {"who": "bot", "content": f"Ho {at}", "other": "B"},
        ]
        * 2
    }
    for at in range(6)
]
INSTRUCT = [
    {"instruction": f"Say {at}.", "output": "It is |X|. " * (at + 1), "note": f"No {at}."}
    for at in range(8)
]
WIDE = [{**row, "input": f"now {at}" * (at % 2)} for at, row in enumerate(INSTRUCT)]
FILES = {
    "mine_for_keys.py": FUNCTION,
    "rows.csv": CSV,
    "text.txt": TEXT,
    "chat.jsonl": CHAT,
    "rows.jsonl": INSTRUCT,
    "others.jsonl": INSTRUCT[:4],
    "wide.jsonl": WIDE,
    "qa.jsonl": [{"text": f"Q: {at} A: one Q: and A: two"} for at in range(6)],
    "rest.jsonl": [{"text": f"Rest {at} of them."} for at in range(9)],
    "more.jsonl": [{"text": f"More {at} of them."} for at in range(9, 14)],
    "two.jsonl": [{"text": f"Text {at}.", "b": f"Other {at}."} for at in range(6)],
    "texts.json": {"a": [{"text": "One."}, {"text": "Two."}], "b": [{"text": "Three."}]},
    "text.csv": "text;a|b\nYes;1|2\nNo;3|4\n",
    "nested.json": {"a": INSTRUCT, "b": INSTRUCT[:4]},
    "forged.jsonl": [{**row, "output": "a <|im_end|> b"} for row in INSTRUCT],
    "unread.jsonl": [{**row, "weight": 0} for row in INSTRUCT],
    "system.jinja": "{{ '<|im_start|>system\\nBe.<|im_end|>\\n' if messages[0].role != 'system' }}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{{ m.content }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "latin.txt": "Caf\u00e9 au lait.\nEncore.\n",
}
PAIRS = ("dataset.data_files={train: rows.jsonl, validation: others.jsonl}",)
MINE = ("allowed_targets=[mine_for_keys]",)
OF_FUNCTION = ("dataset=function", "dataset.function=mine_for_keys.rows", *MINE)
MAPPED = ("format=function", "format.function=mine_for_keys.to_turns", *MINE)
TEMPLATE = ("format=template", "format.prompt='{instruction}'", "format.completion=' {output}'")
PLAIN = ("dataset=text", "dataset.data_files=text.txt", "format=text", "loss=full")
TURNS = ("dataset.data_files=chat.jsonl", "format=messages", "dataset.columns={messages: turns}")
NAMED = ("format.fields={role: who}", "format.roles={human: user, bot: assistant}")
FULL = ("loss=full",)
BFD = ("packing=bfd", "sft.max_length=200")
MARKS = "dataset.marker_tokens=['|X|']"
QA = ("dataset.data_files=qa.jsonl", "format=text", "loss=response_template")
TWO = "{path: json, data_files: rows.jsonl, weight: 0.5}"
OTHER = "{path: json, data_files: others.jsonl, weight: 0.5}"
MIXED = ("dataset=mixture", f"dataset.sources=[{TWO}, {OTHER}]")
# what is seen in the rows, the report on them or the tokenizer
DATA: dict[str, Try] = {
    "tokenizer.pad_token": seen("'<|im_start|>'"),
    "tokenizer.eos_token": seen("'<|im_start|>'"),
    "tokenizer.bos_token": seen("'<|im_end|>'"),
    "tokenizer.unk_token": seen("'<|im_start|>'"),
    "tokenizer.special_tokens": seen("['<x>']"),
    "tokenizer.tokens": seen("['Say']"),
    "tokenizer.chat_template": seen("zephyr"),
    "dataset.path": seen("text", "dataset.data_files=qa.jsonl", "format=text", "loss=full"),
    "dataset.name": seen("instruct_ko", "dataset=instruct", "dataset.limit=4"),
    "dataset.data_files": seen("others.jsonl"),
    "dataset.encoding": stops("latin-1", *PLAIN, "dataset.data_files=latin.txt"),
    "dataset.delimiter": stops("','", "dataset=csv", "dataset.data_files=rows.csv"),
    "dataset.sample_by": seen("paragraph", *PLAIN),
    "dataset.function": seen("mine_for_keys.fewer", *OF_FUNCTION),
    "dataset.sources": seen(f"[{TWO}]", *MIXED),
    "dataset.split": seen("{train: validation}", *PAIRS, "preflight.duplicates=warn"),
    "dataset.columns": seen("{output: note}"),
    "dataset.validation_size": seen("2"),
    "dataset.test_size": seen("2"),
    "dataset.split_order": seen("[validation,train]", "dataset.validation_size=2"),
    "dataset.shuffle_seed": seen("1", "dataset.validation_size=2"),
    "dataset.limit": seen("3"),
    "dataset.markers": seen("strip", MARKS),
    "dataset.marker_tokens": seen("['It']", "dataset.markers=strip", MARKS),
    "dataset.field": seen("b", "dataset.data_files=nested.json", "dataset.field=a"),
    "format.type": seen("text", "loss=full", "dataset.columns={text: note}"),
    "format.system": seen("'Be brief.'", *TURNS, *NAMED),
    "format.fields": seen("{role: who, content: other}", *TURNS, *NAMED),
    "format.roles": stops("{human: assistant, bot: user}", *TURNS, *NAMED),
    "format.text_field": seen("note", "format=text", "loss=full", "dataset.columns={text: output}"),
    "format.prompt": seen("'{note}'", *TEMPLATE),
    "format.prompt_no_input": seen(
        "'None {instruction}'", *TEMPLATE, "dataset.data_files=wide.jsonl"
    ),
    "format.completion": seen("' {note}'", *TEMPLATE),
    "format.function": seen("mine_for_keys.shouted", *MAPPED),
    "format.batched": seen("true", *MAPPED, "format.function=mine_for_keys.any_number"),
    "loss.type": seen("full"),
    "loss.response_template": seen("'Q:'", *QA, "loss.response_template='A:'"),
    "loss.instruction_template": seen("'Q:'", *QA, "loss.response_template='A:'"),
    "loss.unroll": seen(
        "true", *TURNS, *NAMED, "loss=assistant_only", "tokenizer.chat_template=chatml"
    ),
    "packing.strategy": seen("wrapped", *BFD),
    "packing.block_size": seen("16", "packing=blocks", "packing.block_size=8", *FULL),
    "packing.isolation": seen("trust", *BFD),
    "packing.pack_eval": seen("true", *BFD, "dataset.validation_size=2"),
    "preflight.max_empty_rows": stops(
        "0.9",
        "dataset.columns={output: input}",
        "dataset.data_files=wide.jsonl",
        "preflight.max_empty_rows=0",
    ),
    "preflight.max_over_length_rows": stops(
        "1", "over_length=drop", "sft.max_length=40", "preflight.max_over_length_rows=0"
    ),
    "preflight.duplicates": stops("warn", *PAIRS),
    "preflight.forged_turns": stops("escape", "dataset.data_files=forged.jsonl"),
    "preflight.unread": stops("error", "dataset.data_files=unread.jsonl"),
    "preflight.default_system": seen("allow", "tokenizer.chat_template=system.jinja"),
    "over_length": stops("drop", "sft.max_length=40", "preflight.max_over_length_rows=1"),
    "allowed_targets": stops("[]", *OF_FUNCTION),
}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of `FILES`."""
    folder = tmp_path_factory.mktemp("files")
    for name, content in FILES.items():
        if isinstance(content, str):
            encoding = "latin-1" if name.startswith("latin") else "utf-8"
            (folder / name).write_text(content, encoding=encoding)
        else:
            rows: list[Any] = content if isinstance(content, list) else [content]
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


JSON = ["dataset=json", "dataset.data_files=rows.jsonl"]
ROWS = [
    "quantization=none",
    "evaluation=none",
    "sft.per_device_train_batch_size=2",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", DATA)
def test_a_key_of_the_data_is_seen_in_the_rows(
    key: str, small: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    monkeypatch.syspath_prepend(files)
    row, model = DATA[key], ["model=custom", f"model.name_or_path={small}"]

    def look(*words: str) -> Seen:
        named = any(word.startswith("dataset=") for word in words)
        try:
            return seen_in_data(compose([*ROWS, *([] if named else JSON), *model, *words]))
        except ConfigError as error:
            return {"refused": str(error)}

    before, after = look(*row.context), look(*row.context, f"{key}={row.value}")
    ways = {"refused" in before, "refused" in after}
    expected = {True, False} if row.refused else {False}
    assert ways == expected, (before.get("refused"), after.get("refused"))
    assert differences(before, after)


# {field of a source: (what one source says, what it says instead)}
SOURCE: dict[str, tuple[str, str]] = {
    "path": ("path: json, data_files: qa.jsonl", "path: text, data_files: qa.jsonl"),
    "name": ("path: json, data_files: qa.jsonl", "path: json, data_files: qa.jsonl, name: mine"),
    "data_files": ("path: json, data_files: qa.jsonl", "path: json, data_files: more.jsonl"),
    "encoding": (
        "path: text, data_files: latin.txt, encoding: cp1252",
        "path: text, data_files: latin.txt, encoding: cp437",
    ),
    "delimiter": (
        "path: csv, data_files: text.csv, delimiter: ';', columns: {text: 'a|b'}",
        "path: csv, data_files: text.csv, delimiter: '|', columns: {text: b}",
    ),
    "sample_by": (
        "path: text, data_files: text.txt",
        "path: text, data_files: text.txt, sample_by: paragraph",
    ),
    "function": (
        "path: function, function: mine_for_keys.texts",
        "path: function, function: mine_for_keys.more_texts",
    ),
    "split": (
        "path: json, data_files: {train: qa.jsonl, validation: more.jsonl}, split: train",
        "path: json, data_files: {train: qa.jsonl, validation: more.jsonl}, split: validation",
    ),
    "columns": (
        "path: json, data_files: two.jsonl",
        "path: json, data_files: two.jsonl, columns: {text: b}",
    ),
    "validation_size": (
        "path: json, data_files: qa.jsonl",
        "path: json, data_files: qa.jsonl, validation_size: 2",
    ),
    "test_size": (
        "path: json, data_files: qa.jsonl",
        "path: json, data_files: qa.jsonl, test_size: 2",
    ),
    "split_order": (
        "path: json, data_files: qa.jsonl, test_size: 2",
        "path: json, data_files: qa.jsonl, test_size: 2, split_order: [test, train]",
    ),
    "shuffle_seed": (
        "path: json, data_files: qa.jsonl, test_size: 2",
        "path: json, data_files: qa.jsonl, test_size: 2, shuffle_seed: 1",
    ),
    "limit": ("path: json, data_files: qa.jsonl", "path: json, data_files: qa.jsonl, limit: 2"),
    "field": (
        "path: json, data_files: texts.json, field: a",
        "path: json, data_files: texts.json, field: b",
    ),
    "weight": (
        "path: json, data_files: qa.jsonl, weight: 1",
        "path: json, data_files: qa.jsonl, weight: 2",
    ),
    "count": (
        "path: json, data_files: qa.jsonl, count: 4",
        "path: json, data_files: qa.jsonl, count: 2",
    ),
    "format": (
        "path: json, data_files: two.jsonl",
        "path: json, data_files: two.jsonl, format: {type: text, text_field: b}",
    ),
}
# fields of a source that are refused: the whole mixture has them, or none
OF_THE_MIXTURE = ("sources", "markers", "marker_tokens", "num_proc")
OF_THE_HUB = ("revision", "streaming")


def test_every_field_of_a_source_has_its_row() -> None:
    named = {one.name for one in dataclasses.fields(MixtureSource)}
    assert {*SOURCE, *OF_THE_MIXTURE, *OF_THE_HUB} == named


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SOURCE)
def test_a_field_of_a_source_is_seen_in_the_rows(
    name: str, small: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    monkeypatch.syspath_prepend(files)
    model = ["model=custom", f"model.name_or_path={small}", *MINE, "format=text", "loss=full"]
    weight = ", weight: 1" if name == "weight" else ""

    def look(source: str) -> Seen:
        rest = f"{{path: json, data_files: rest.jsonl{weight}}}"
        words = ["dataset=mixture", f"dataset.sources=[{{{source}}}, {rest}]"]
        return seen_in_data(compose([*ROWS, *model, *words]))

    before, after = map(look, SOURCE[name])
    assert "refused" not in {*before, *after}, (before.get("refused"), after.get("refused"))
    assert differences(before, after)


# --- keys whose effect another test sees ----------------------------------------------------------

_LOADS, _ASKS, _JUDGES = "model/test_weights.py", "runs/test_generate.py", "runs/test_judge.py"
_EVALUATES, _MIRRORS, _RECORDS = (
    "runs/test_evaluate.py",
    "training/test_tracking.py",
    "runs/test_record.py",
)
_DRAWN = (
    *("max_new_tokens", "min_new_tokens", "do_sample", "seed", "temperature", "top_k", "top_p"),
    *("min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size", "num_beams"),
    "length_penalty",
)
# {key: (file, the test)}; the test speaks of the key by name
_EXPORTS, _UPLOADS = "runs/test_export.py", "runs/test_export_hub.py"
ELSEWHERE: dict[str, tuple[str, str]] = {
    "model.name_or_path": (
        "model/test_architecture.py",
        "test_a_model_from_scratch_takes_the_named_models_tokenizer",
    ),
    "model.revision": (_LOADS, "test_weights_of_the_hub_are_pinned_to_the_commit_that_it_names"),
    "model.source": (
        _LOADS,
        "test_source_package_for_an_unknown_model_lists_the_known_ones",
    ),
    "model.dtype": (
        "model/test_trained.py",
        "test_full_training_is_of_float32_weights_and_the_model_stops_where_answers_end",
    ),
    "model.adapter_dtype": (
        "model/test_trained.py",
        "test_an_adapter_has_the_dtype_of_the_config_and_trains_the_rows_of_new_tokens_alone",
    ),
    "model.attn_implementation": (
        "model/test_trained.py",
        "test_a_model_that_leaks_where_small_ones_of_its_class_do_not_is_refused_before_it_is_trained",
    ),
    "model.fast": (
        "model/test_precision.py",
        "test_a_cpu_goes_the_fast_way_unless_the_run_began_otherwise",
    ),
    "model.nf4_cache": (
        "model/test_fast.py",
        "test_weights_in_4_bits_are_dequantized_once_where_there_is_room",
    ),
    "model.init": (
        "model/test_architecture.py",
        "test_a_model_from_scratch_takes_the_named_models_tokenizer",
    ),
    "model.config": (
        "model/test_isolation.py",
        "test_another_attention_or_config_is_measured_anew",
    ),
    "tokenizer.type": (
        "tokenizer/test_train.py",
        "test_bpe_has_as_many_tokens_as_asked_for_and_is_the_same_each_time",
    ),
    "tokenizer.vocab_size": (
        "tokenizer/test_train.py",
        "test_bpe_has_as_many_tokens_as_asked_for_and_is_the_same_each_time",
    ),
    "tokenizer.name_or_path": (
        "tokenizer/test_load.py",
        "test_a_folder_without_a_tokenizer_is_named",
    ),
    "tokenizer.pad_to_multiple_of": (
        "model/test_trained.py",
        "test_full_training_is_of_float32_weights_and_the_model_stops_where_answers_end",
    ),
    "dataset.streaming": (
        "data/test_stored_rows.py",
        "test_a_stream_is_read_to_its_limit_and_no_further",
    ),
    "dataset.num_proc": (
        "data/preflight/test_report.py",
        "test_rows_are_the_same_whatever_the_number_of_processes",
    ),
    "loss.boundary": (
        "data/test_encode.py",
        "test_a_joint_boundary_masks_as_many_tokens_as_the_prompt_has",
    ),
    "preflight.show_rows": ("test_cli.py", "test_preview_shows_as_many_rows_as_asked_for"),
    "output_dir": (
        "test_cli.py",
        "test_preview_writes_a_page_of_every_split_into_the_output_folder",
    ),
    "evaluation.sample_prompts": (
        "evaluation/test_answers.py",
        "test_prompts_of_the_config_are_asked_as_the_rows_are_and_have_no_reference",
    ),
    "evaluation.sample_strategy": (
        _RECORDS,
        "test_answers_after_an_epoch_are_given_where_they_are_asked_for",
    ),
    "evaluation.sample_steps": (
        _RECORDS,
        "test_answers_after_each_few_steps_are_given_where_they_are_asked_for",
    ),
    "evaluation.max_new_tokens": (
        _ASKS,
        "test_keys_of_generate_go_before_those_of_evaluation",
    ),
    **{
        f"evaluation.{name}": (
            "evaluation/test_answers.py",
            "test_a_row_of_samples_is_drawn_as_the_config_and_the_seed_of_the_run_say",
        )
        for name in ("do_sample", "temperature", "top_k")
    },
    "evaluation.verdict": (
        _EVALUATES,
        "test_a_metric_of_ones_own_is_measured_and_may_be_the_verdict",
    ),
    "evaluation.metrics": (
        _EVALUATES,
        "test_a_metric_of_ones_own_is_measured_and_may_be_the_verdict",
    ),
    "evaluation.lm_eval": (
        _EVALUATES,
        "test_a_task_of_ones_own_is_measured_for_the_run_and_its_base",
    ),
    "evaluation.data_files": (_EVALUATES, "test_training_on_these_rows_helped_on_these_rows"),
    "evaluation.base": (_EVALUATES, "test_a_run_is_not_distinguishable_from_itself"),
    **{
        f"evaluation.early_stopping.{name}": (
            "training/test_early_stopping.py",
            "test_a_worse_loss_within_the_patience_does_not_end_it",
        )
        for name in ("patience", "threshold")
    },
    **{
        f"tracking.{name}": (_MIRRORS, "test_auto_is_online_where_a_key_is_set")
        for name in ("project", "entity", "mode", "tags", "group")
    },
    "tracking.type": (
        _MIRRORS,
        "test_a_tracker_whose_package_is_missing_says_what_to_install",
    ),
    **{
        f"distributed.{name}": ("test_launch.py", "test_torchrun_is_told_what_the_config_says")
        for name in (
            *("num_processes", "num_machines", "machine_rank", "rendezvous"),
            "rendezvous_timeout",
        )
    },
    "distributed.strategy": (
        "config/test_distributed.py",
        "test_sharding_needs_gpus_and_weights_that_can_be_divided",
    ),
    "seed": (
        "evaluation/test_answers.py",
        "test_a_row_of_samples_is_drawn_as_the_config_and_the_seed_of_the_run_say",
    ),
    "run": (_EVALUATES, "test_a_run_is_not_distinguishable_from_itself"),
    "generate.prompt": (_ASKS, "test_the_answer_to_a_prompt_is_printed"),
    "generate.messages": (_ASKS, "test_the_answer_to_a_prompt_is_printed"),
    "generate.base": (_ASKS, "test_the_answer_to_a_prompt_is_printed"),
    "generate.data_files": (_ASKS, "test_a_file_of_rows_is_answered_in_its_order"),
    "generate.output": (_ASKS, "test_without_a_question_the_test_split_is_answered"),
    **{
        f"generate.{name}": (_ASKS, "test_each_key_of_drawing_changes_the_answers")
        for name in _DRAWN
    },
    **{
        f"judge.{name}": (_JUDGES, "test_the_judge_sees_input_correct_output_and_answer")
        for name in ("model", "seed", "temperature")
    },
    "export.target": (_EXPORTS, "test_the_verb_prints_where_it_is_or_json"),
    "export.output": (_EXPORTS, "test_a_folder_that_exists_is_left_alone"),
    "export.base": (
        _EXPORTS,
        "test_a_quantized_base_is_merged_as_it_was_trained_on_or_into_the_original",
    ),
    "export.dtype": (_EXPORTS, "test_weights_are_of_the_dtype_that_is_asked_for"),
    "export.max_kl": (_EXPORTS, "test_drift_above_the_limit_leaves_nothing"),
    "export.type": (
        "runs/test_export_gguf.py",
        "test_without_llama_cpp_the_card_says_that_ids_are_unproved",
    ),
    "export.llama_cpp": (
        "runs/test_export_gguf.py",
        "test_other_types_are_made_by_the_users_own_llama_cpp",
    ),
    "export.repo_id": (_UPLOADS, "test_the_verb_names_the_files_that_left"),
    "export.private": (
        _UPLOADS,
        "test_merged_weights_are_made_where_there_are_none_and_taken_where_there_are",
    ),
    "export.what": (_UPLOADS, "test_a_run_without_an_adapter_uploads_its_weights"),
    "export.samples": (
        _UPLOADS,
        "test_the_data_are_not_on_the_card_unless_they_are_asked_for",
    ),
    "judge.retries": (
        _JUDGES,
        "test_a_bad_reply_is_asked_again_with_another_seed_and_a_reminder",
    ),
    "judge.api_key_env": (_JUDGES, "test_the_key_is_sent_as_bearer_and_never_written"),
    "judge.base_url": (_JUDGES, "test_a_server_that_never_replies_is_not_asked_for_every_row"),
    "judge.timeout_s": (_JUDGES, "test_a_server_that_never_replies_is_not_asked_for_every_row"),
    "judge.concurrency": (_JUDGES, "test_a_limit_that_lasts_stops_and_finished_rows_are_kept"),
    "judge.language": (_JUDGES, "test_the_prompt_is_in_the_language_that_is_asked_for"),
    "judge.against": (_JUDGES, "test_another_run_is_compared_with_by_its_own_answers"),
    "judge.max_tokens": (_JUDGES, "test_the_judge_sees_input_correct_output_and_answer"),
    "judge.mode": (_JUDGES, "test_both_orders_are_asked_and_a_flip_is_a_tie"),
    "judge.prompt": ("evaluation/test_judge.py", "test_a_prompt_of_ones_own_must_show_everything"),
}
# keys of which nothing can be seen here, and why
UNSEEN = {
    "dataset.revision": "of sets of the hub, which no test reaches",
    "evaluation.batch_size": "answers are the same whatever it is; that is tested",
    "generate.batch_size": "answers are the same whatever it is; that is tested",
    "recipe": "the name of what was chosen, for folders and the preview page",
}


@pytest.mark.parametrize("key", ELSEWHERE)
def test_the_test_that_sees_a_key_speaks_of_it(key: str) -> None:
    file, name = ELSEWHERE[key]
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    tree = ast.parse(text)
    tests = {one.name: one for one in tree.body if isinstance(one, ast.FunctionDef)}
    test = tests[name]
    first = min([one.lineno for one in test.decorator_list], default=test.lineno)
    body = "\n".join(text.splitlines()[first - 1 : test.end_lineno])
    name = key.rpartition(".")[2]
    assert name in body or ("DRAWING" in body and f'"{name}": (' in text)


def leaves(cls: type, prefix: str) -> Iterator[str]:
    """The dotted keys of a dataclass, of its blocks and of the sources of a mixture."""
    hints = typing.get_type_hints(cls)
    for one in dataclasses.fields(cls):
        kinds = (hints[one.name], *typing.get_args(hints[one.name]))
        block = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if block is None:
            yield f"{prefix}{one.name}"
        else:
            yield from leaves(typing.cast(type, block), f"{prefix}{one.name}.")


def test_every_key_of_our_groups_has_its_row() -> None:
    keys = {*leaves(TrainConfig, ""), *leaves(RunConfig, "")} - set(UPSTREAM)
    tables = [*DATA, *ELSEWHERE, *UNSEEN]
    assert set(tables) == keys
    assert len(tables) == len(set(tables))


def test_a_field_that_nothing_reads_is_refused_and_an_old_run_with_it_loads() -> None:
    for words in (
        ["+sft.eval_steps=5"],
        ["+sft.do_eval=true"],
        ["quantization.load_in_4bit=false"],
    ):
        base = ["recipe=yoda"]
        with pytest.raises(ConfigError):
            compose([*base, *words])
    tree = to_plain(compose(["recipe=yoda"]))
    tree["sft"] |= {"eval_steps": 5, "do_eval": True}
    assert not {"eval_steps", "do_eval"} & from_recorded(tree, "config.yaml").sft.keys()
