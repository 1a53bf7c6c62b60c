"""Choices that do not go together, keys that nothing reads, and the fixes that errors give."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import pytest

from sftpipe.config.multirun import grid
from sftpipe.config.schema import FormatConfig, MixtureSource
from sftpipe.errors import ConfigError, Problem
from support.configs import compose, config_error
from support.errors import Pin, named, places, told

Told = dict[str, tuple[str, ...]]

# the rows of all tables: what the conflict is, the overrides, {where: what to type}

CHOICES: list[list[Any]] = [
    [
        "4 bit and 8 bit",
        ["recipe=yoda", "quantization.load_in_8bit=true"],
        {"quantization": ("quantization.load_in_8bit=false", "quantization.load_in_4bit=false")},
    ],
    [
        "unknown kind of 4 bit",
        ["recipe=yoda", "quantization.bnb_4bit_quant_type=nf5"],
        {
            "quantization.bnb_4bit_quant_type (command line)": (
                "quantization.bnb_4bit_quant_type=nf4",
            )
        },
    ],
    [
        "unknown compute type",
        ["recipe=yoda", "quantization.bnb_4bit_compute_dtype=half"],
        {
            "quantization.bnb_4bit_compute_dtype (command line)": (
                "quantization.bnb_4bit_compute_dtype=auto",
            )
        },
    ],
    [
        "json without files",
        ["dataset=json"],
        {"dataset.data_files": ("dataset.data_files=my_rows.jsonl",)},
    ],
    [
        "csv without files",
        ["dataset=csv"],
        {"dataset.data_files": ("dataset.data_files=my_rows.csv",)},
    ],
    [
        "temperature without sampling",
        ["evaluation.temperature=0.7"],
        {"evaluation.temperature": ("evaluation.do_sample=true",)},
    ],
    [
        "top_k without sampling",
        ["evaluation.top_k=5"],
        {"evaluation.top_k": ("evaluation.do_sample=true",)},
    ],
    [
        "sampling at temperature 0",
        ["evaluation.do_sample=true", "evaluation.temperature=0"],
        {"evaluation.temperature": ("evaluation.temperature=0.7",)},
    ],
    [
        "misspelt sample strategy",
        ["evaluation.sample_strategy=epochs"],
        {"evaluation.sample_strategy (command line)": ("evaluation.sample_strategy=epoch",)},
    ],
    [
        "samples after steps, without their number",
        ["evaluation.sample_strategy=steps"],
        {"evaluation.sample_steps": ("evaluation.sample_steps=100",)},
    ],
    [
        "steps between samples, which are not taken",
        ["evaluation.sample_steps=5"],
        {"evaluation.sample_steps": ("evaluation.sample_strategy=steps",)},
    ],
    [
        "steps between samples, which are taken after epochs",
        ["evaluation.sample_steps=5", "evaluation.sample_strategy=epoch"],
        {"evaluation.sample_steps": ("evaluation.sample_strategy=steps",)},
    ],
    ["top_k below 0", ["evaluation.top_k=-1"], {"evaluation.top_k (command line)": ()}],
]

EARLY, NEVER = "evaluation.early_stopping", "evaluation.early_stopping=null"
PATIENT = f"{EARLY}.patience=3"
OF_EARLY_STOPPING: list[list[Any]] = [
    [
        "early stopping without the best checkpoint",
        [PATIENT, "sft.load_best_model_at_end=false"],
        {f"{EARLY} + sft.load_best_model_at_end": ("sft.load_best_model_at_end=true", NEVER)},
    ],
    [
        "early stopping and an evaluation before the first step",
        [PATIENT, "sft.eval_on_start=true"],
        {f"{EARLY} + sft.eval_on_start": ("sft.eval_on_start=false", NEVER)},
    ],
    [
        "early stopping without evaluations",
        [PATIENT, "sft.eval_strategy=no"],
        {f"{EARLY} + sft.eval_strategy": ("sft.eval_strategy=steps", NEVER)},
    ],
    [
        "early stopping without evaluations, but with checkpoints",
        [PATIENT, "sft.eval_strategy=no", "sft.save_strategy=epoch"],
        {f"{EARLY} + sft.eval_strategy": ("sft.eval_strategy=epoch", NEVER)},
    ],
    [
        "early stopping without checkpoints",
        [PATIENT, "sft.save_strategy=no"],
        {"sft.eval_strategy + sft.save_strategy": ("sft.save_strategy=steps", NEVER)},
    ],
    [
        "early stopping that evaluates by epochs and saves by steps",
        [PATIENT, "sft.eval_strategy=epoch", "sft.save_strategy=steps"],
        {
            "sft.eval_strategy + sft.save_strategy": (
                "sft.save_strategy=epoch",
                "sft.eval_strategy=steps",
                NEVER,
            )
        },
    ],
    [
        "early stopping that saves at every other evaluation",
        [PATIENT, "sft.eval_steps=10", "sft.save_steps=20"],
        {"sft.eval_steps + sft.save_steps": ("sft.save_steps=10", "sft.eval_steps=20", NEVER)},
    ],
    [
        "early stopping that saves at no step",
        [PATIENT, "sft.save_steps=0"],
        {"sft.save_steps (command line)": ("sft.save_steps=100",)},
    ],
    [
        "early stopping by what no evaluation gives",
        [PATIENT, "sft.metric_for_best_model=eval_los"],
        {"sft.metric_for_best_model": ("sft.metric_for_best_model=eval_loss",)},
    ],
    [
        "early stopping without a patience",
        [f"{EARLY}.threshold=0.1"],
        {f"{EARLY}.patience": ()},
    ],
]

JSON_ROWS = ["dataset=json", "dataset.data_files=rows.jsonl"]
YODA = "path: embedded, name: yoda"
MARKERS = "\"dataset.marker_tokens=['|SOUND|>']\""


def mixture(*sources: str) -> list[str]:
    return [
        "dataset=mixture",
        f"dataset.sources=[{', '.join(f'{{{source}}}' for source in sources)}]",
    ]


OF_THE_DATA_SET: list[list[Any]] = [
    [
        "text without files",
        ["dataset=text"],
        {"dataset.data_files": ("dataset.data_files=my_text.txt",)},
    ],
    [
        "arrow without files",
        ["dataset=arrow"],
        {"dataset.data_files": ("dataset.data_files=my_folder",)},
    ],
    [
        "no function of a data set",
        ["dataset=function"],
        {"dataset.function": ("dataset.function=my_module.my_function",)},
    ],
    [
        "no sources",
        ["dataset=mixture"],
        {"dataset.sources": ('"dataset.sources=[{path: json, data_files: a.jsonl}]"',)},
    ],
    [
        "a function for files",
        [*JSON_ROWS, "dataset.function=a.b"],
        {"dataset.function": ("dataset=function",)},
    ],
    [
        "sources for files",
        [*JSON_ROWS, "dataset.sources=[{path: embedded, name: yoda}]"],
        {"dataset.sources": ("dataset=mixture",)},
    ],
    ["a split that is a number", [*JSON_ROWS, "dataset.split=3"], {"dataset.split": ()}],
    ["a split of another name", [*JSON_ROWS, "dataset.split={dev: x}"], {"dataset.split": ()}],
    ["a split named by a number", [*JSON_ROWS, "dataset.split={train: 3}"], {"dataset.split": ()}],
    [
        "special markers without tokens",
        [*JSON_ROWS, "dataset.markers=special"],
        {"dataset.markers": (MARKERS,)},
    ],
    [
        "stripped markers without tokens",
        [*JSON_ROWS, "dataset.markers=strip"],
        {"dataset.markers": (MARKERS,)},
    ],
    [
        "keys of other paths",
        [*JSON_ROWS, "dataset.name=x", "dataset.revision=y", "dataset.sample_by=document"],
        {"dataset.name": (), "dataset.revision": (), "dataset.sample_by": ()},
    ],
    [
        "files for an embedded set",
        ["dataset=yoda", "dataset.data_files=rows.jsonl"],
        {"dataset.data_files": ()},
    ],
    [
        "size below 0",
        [*JSON_ROWS, "dataset.validation_size=-1"],
        {"dataset.validation_size (command line)": ()},
    ],
]

OF_A_MIXTURE: list[list[Any]] = [
    ["columns of the whole", [*mixture(YODA), "dataset.columns={a: b}"], {"dataset.columns": ()}],
    [
        "a mixture in a mixture",
        mixture("path: mixture, sources: [{path: json}]"),
        {"dataset.sources[0].path": ()},
    ],
    ["weight and count", mixture(f"{YODA}, weight: 1, count: 2"), {"dataset.sources[0]": ()}],
    ["weight 0", mixture(f"{YODA}, weight: 0"), {"dataset.sources[0].weight": ()}],
    ["weights of some", mixture(f"{YODA}, weight: 1", YODA), {"dataset.sources": ()}],
    ["num_proc of one", mixture(YODA, f"{YODA}, num_proc: 2"), {"dataset.sources[1].num_proc": ()}],
    [
        "a source that is a word",
        ["dataset=mixture", "dataset.sources=[yoda]"],
        {"dataset.sources[0] (command line)": ()},
    ],
    [
        "misspelt key",
        mixture("path: embedded, nam: yoda"),
        {"dataset.sources[0].nam (command line)": ()},
    ],
    ["a source without files", mixture(YODA, "path: json"), {"dataset.sources[1].data_files": ()}],
    [
        "a format without a function",
        mixture(f"{YODA}, format: {{type: function}}"),
        {"dataset.sources[0].format.function": ()},
    ],
    [
        "weight below 0",
        mixture(f"{YODA}, weight: -1"),
        {"dataset.sources[0].weight (command line)": ()},
    ],
]

TEMPLATE = ["format=template", "format.prompt='{question}'", "format.completion='{answer}'"]

OF_THE_FORMAT: list[list[Any]] = [
    [
        "no patterns",
        ["format=template"],
        {
            "format.prompt": ("\"format.prompt='{prompt} ##>'\"",),
            "format.completion": ("\"format.completion=' {completion}'\"",),
        },
    ],
    [
        "no function of rows",
        ["format=function"],
        {"format.function": ("format.function=my_module.my_function",)},
    ],
    ["text_field of another format", ["format.text_field=a"], {"format.text_field": ()}],
    ["system turn of a pattern", [*TEMPLATE, "format.system=Hi"], {"format.system": ()}],
    ["pattern of another format", ["format.prompt='{a}'"], {"format.prompt": ()}],
    ["batched of another format", ["format.batched=true"], {"format.batched": ()}],
    [
        "braces that make no field",
        ["format=template", "format.prompt='{a'", "format.completion='{b.c}'"],
        {"format.prompt": (), "format.completion": ()},
    ],
    ["a pattern without a field", [*TEMPLATE, "format.prompt=question"], {"format.prompt": ()}],
    ["a brace that is not opened", [*TEMPLATE, "format.prompt='question}'"], {"format.prompt": ()}],
]

RESPONSE = "\"loss.response_template='### Answer:'\""

OF_THE_LOSS: list[list[Any]] = [
    ["no response template", ["loss=response_template"], {"loss.response_template": (RESPONSE,)}],
    [
        "empty response template",
        ["loss=response_template", "loss.response_template=''"],
        {"loss.response_template": (RESPONSE,)},
    ],
    [
        "response template of no ids",
        ["loss=response_template", "loss.response_template=[]"],
        {"loss.response_template": (RESPONSE,)},
    ],
    [
        "response template of a boolean",
        ["loss=response_template", "loss.response_template=[true]"],
        {"loss.response_template": (RESPONSE,)},
    ],
    [
        "empty instruction template",
        ["loss=response_template", "loss.response_template=A", "loss.instruction_template=''"],
        {"loss.instruction_template": ("\"loss.instruction_template='### Question:'\"",)},
    ],
    [
        "text and ids",
        ["loss=response_template", "loss.response_template=[1,2]", "loss.instruction_template=Q"],
        {"loss": ()},
    ],
    [
        "response template of another loss",
        ["loss.response_template=A"],
        {"loss.response_template": ("loss=response_template",)},
    ],
    [
        "joint boundary of turns",
        ["loss=assistant_only", "loss.boundary=joint"],
        {"loss.boundary": ("loss.boundary=split", "loss=completion_only")},
    ],
    [
        "unroll without turns",
        ["loss.unroll=true"],
        {"loss.unroll": ("loss=assistant_only", "loss.unroll=false")},
    ],
    [
        "completion of a text",
        ["format=text", "loss=completion_only"],
        {"loss=completion_only": ("loss=full", "loss=response_template")},
    ],
    [
        "turns of a text",
        ["format=text", "loss=assistant_only"],
        {"loss=assistant_only": ("loss=full", "loss=response_template")},
    ],
    [
        "turns of a pattern",
        [*TEMPLATE, "loss=assistant_only"],
        {"loss=assistant_only": ("loss=completion_only", "loss=full", "loss=response_template")},
    ],
    [
        "cut to no length",
        ["over_length=truncate", "sft.max_length=null"],
        {"over_length": ("sft.max_length=1024",)},
    ],
]

# no override reaches a source of a mixture
TYPED: list[list[Any]] = [
    *CHOICES,
    *OF_EARLY_STOPPING,
    *OF_THE_DATA_SET,
    *OF_THE_FORMAT,
    *OF_THE_LOSS,
]


@pytest.mark.parametrize(("overrides", "expected"), named([*TYPED, *OF_A_MIXTURE]))
def test_choices_that_conflict_are_errors(
    overrides: list[str], expected: Told, golden_error: Pin
) -> None:
    error = config_error(*overrides)
    assert told(error) == expected
    golden_error(error)


def test_a_typo_in_a_source_of_a_recipe_names_the_file(write_recipe: Callable[..., None]) -> None:
    write_recipe(
        "defaults:\n  - override /dataset: mixture\n"
        "dataset: {sources: [{path: embedded, nam: yoda}]}\n"
    )

    assert places(config_error("recipe=mine")) == ["dataset.sources[0].nam (./recipes/mine.yaml)"]


def test_a_source_of_a_mixture_has_the_keys_of_a_data_set_and_its_share() -> None:
    source = (
        "path: embedded, name: yoda, weight: 3, columns: {question: prompt}, format: {type: "
        "text, text_field: question}"
    )

    (built,) = compose([*mixture(source), "loss=full", "format=text"]).dataset.sources

    columns, form = {"question": "prompt"}, FormatConfig(type="text", text_field="question")
    assert built == MixtureSource(
        path="embedded", name="yoda", columns=columns, weight=3.0, format=form
    )


@pytest.mark.parametrize("template", ["'### Answer:'", "[1,2]"])
def test_a_response_template_is_text_or_ids(template: str) -> None:
    wanted = "### Answer:" if template.startswith("'") else [1, 2]
    assert (
        compose(
            ["loss=response_template", f"loss.response_template={template}"]
        ).loss.response_template
        == wanted
    )


def test_a_number_out_of_range_is_an_error() -> None:
    keys = ("dataset.test_size=nan", "dataset.num_proc=0", "evaluation.max_new_tokens=0", "seed=-1")

    assert sorted(places(config_error(*keys))) == sorted(
        f"{key.partition('=')[0]} (command line)" for key in keys
    )


def test_conflicts_are_reported_together(golden_error: Pin) -> None:
    error = config_error(
        "quantization=nf4",
        "dataset=parquet",
        "dataset.test_size=1.5",
    )

    assert told(error) == {
        "quantization + lora": ("lora=default", "quantization=none"),
        "dataset.data_files": ("dataset.data_files=my_rows.parquet",),
        "dataset.test_size": (),
    }
    golden_error(error)


@pytest.mark.parametrize(("validation", "test"), [("0.1", "40"), ("0", "1")])
def test_sizes_are_shares_or_rows(validation: str, test: str) -> None:
    dataset = compose(
        [f"dataset.validation_size={validation}", f"dataset.test_size={test}"]
    ).dataset

    assert (dataset.validation_size, dataset.test_size) == (float(validation), float(test))


# --- fixes ----------------------------------------------------------------------------------------

SCRATCH = ["model=char_gpt", "tokenizer=char"]
BLOCKS = ["packing=blocks", "loss=full"]
OTHERS = [
    ["quantization=nf4"],
    ["lora.r=8"],
    ["lora=doraa"],
    ["recipe=yodaa"],
    ["yoda"],
    ["seed=[1"],
    ["output_dir=it's (here)"],
    ["lora.r=4,8", "seed=range(1,3)"],
    ["load_in_4bit=true"],
    ["train_on_inputs=true"],
    ["model.dtype=bf16"],
    ["evaluation.sample_strategy=epochs"],
    ["tokenizer=char"],
    ["tokenizer=char", "model.init=random", "tokenizer.vocab_size=300"],
    [*SCRATCH, "tokenizer.name_or_path=a"],
    [*SCRATCH, "tokenizer=bpe", "tokenizer.vocab_size=null"],
    [*SCRATCH, "lora=default"],
    [*SCRATCH, "lora=default", "quantization=nf4"],
    ["model=char_gpt"],
    ["model.init=random", "model.name_or_path=null"],
    ["model.config.n_layer=2"],
    ["packing.block_size=8", "packing=bfd"],
    [*BLOCKS, "packing.block_size=null"],
    ["packing=blocks"],
    ["packing=bfd", "sft.max_length=null"],
    ["packing=wrapped", "over_length=truncate"],
    [*BLOCKS, "over_length=truncate"],
    ["over_length=truncate", "sft.max_length=null"],
]
MISTAKES = [*(overrides for _, overrides, _ in TYPED), *OTHERS]


def problems_of(overrides: list[str]) -> dict[str, Problem]:
    """{where: problem} of what these overrides compose to."""
    try:
        compose(overrides)
    except ConfigError as error:
        return {problem.where: problem for problem in error.problems}
    return {}


def typed(problem: Problem) -> list[str]:
    """The overrides that a problem says to type, as a shell hands them on."""
    words = [shlex.split(command) for command in problem.commands]
    assert all(word[0] == "sftpipe" or len(word) == 1 for word in words)
    return [word[0] for word in words if word[0] != "sftpipe"]


def applied(fix: str, problem: Problem, overrides: list[str]) -> list[str]:
    """The overrides with a fix: it replaces its own key, and a word that is no key of ours."""
    replaced = {fix.partition("=")[0]}
    if problem.found.startswith(("unknown key", "neither a flag")):
        replaced.add(problem.where.partition(" (")[0])
    return [*(one for one in overrides if one.partition("=")[0] not in replaced), fix]


@pytest.mark.parametrize("overrides", MISTAKES, ids=" ".join)
def test_what_an_error_says_to_type_works(overrides: list[str]) -> None:
    problems = problems_of(overrides)

    assert problems
    for where, problem in problems.items():
        for fix in typed(problem):
            assert where not in problems_of(applied(fix, problem, overrides)), fix


def test_the_command_for_a_sweep_expands_to_its_jobs() -> None:
    (problem, _) = problems_of(["lora.r=4,8", "seed=range(1,3)"]).values()

    (command,) = problem.commands
    program, verb, flag, *overrides = shlex.split(command)
    assert (program, verb, flag) == ("sftpipe", "train", "-m")
    assert len(grid(overrides)) == 4
