"""Choices that do not go together, keys that nothing reads, and the fixes that errors give."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest

from sftpipe.config.hydra import compose, expand_sweep
from sftpipe.config.schema import FormatConfig, MixtureSource
from sftpipe.errors import ConfigError, Problem
from support.configs import error_of

CHOICES = [
    (
        ["recipe=yoda", "quantization.load_in_8bit=true"],
        "quantization: load_in_4bit and load_in_8bit are both true",
    ),
    (
        ["recipe=yoda", "quantization.bnb_4bit_quant_type=nf5"],
        "quantization.bnb_4bit_quant_type: 'nf5'\n    allowed: nf4, fp4",
    ),
    (
        ["recipe=yoda", "quantization.bnb_4bit_compute_dtype=half"],
        "allowed: auto, float32, bfloat16, float16",
    ),
    (
        ["dataset=json"],
        "dataset.data_files: not set, and dataset=json reads files\n"
        "    dataset.data_files=my_rows.jsonl",
    ),
    (["dataset=csv"], "dataset.data_files=my_rows.csv"),
    (
        ["evaluation.temperature=0.7"],
        "evaluation.temperature: 0.7, and nothing reads it with evaluation.do_sample=false\n"
        "    evaluation.do_sample=true, or leave it out",
    ),
    (
        ["evaluation.top_k=5"],
        "evaluation.top_k: 5, and nothing reads it with evaluation.do_sample=false",
    ),
    (
        ["evaluation.do_sample=true", "evaluation.temperature=0"],
        "evaluation.temperature: 0.0\n    allowed: above 0\n"
        "    evaluation.temperature=0.7; without do_sample and temperature the most likely token "
        "is taken",
    ),
    (["evaluation.sample_strategy=epochs"], "evaluation.sample_strategy=epoch"),
    (["evaluation.top_k=-1"], "allowed: 0 or more"),
]


@pytest.mark.parametrize(("overrides", "message"), CHOICES)
def test_choices_that_conflict_are_errors(overrides: list[str], message: str) -> None:
    assert message in error_of(*overrides)


JSON_ROWS = ["dataset=json", "dataset.data_files=rows.jsonl"]
YODA = "path: embedded, name: yoda"


def mixture(*sources: str) -> list[str]:
    return [
        "dataset=mixture",
        f"dataset.sources=[{', '.join(f'{{{source}}}' for source in sources)}]",
    ]


OF_THE_DATA_SET = [
    (
        ["dataset=text"],
        "dataset.data_files: not set, and dataset=text reads files\n"
        "    dataset.data_files=my_text.txt",
    ),
    (
        ["dataset=arrow"],
        "dataset.data_files: not set, and dataset=arrow reads files\n"
        "    dataset.data_files=my_folder",
    ),
    (
        ["dataset=function"],
        "dataset.function: not set, and dataset=function needs it\n"
        "    dataset.function=my_module.my_function",
    ),
    (
        ["dataset=mixture"],
        "dataset.sources: not set, and dataset=mixture needs it\n"
        '    "dataset.sources=[{path: json, data_files: a.jsonl}]"',
    ),
    (
        [*JSON_ROWS, "dataset.function=a.b"],
        "dataset.function: nothing reads it with path: json\n    dataset=function, or leave it out",
    ),
    (
        [*JSON_ROWS, f"dataset.sources=[{{{YODA}}}]"],
        "dataset.sources: nothing reads it with path: json\n    dataset=mixture, or leave it out",
    ),
    *(
        (
            [*JSON_ROWS, f"dataset.split={split}"],
            f"dataset.split: {found}\n"
            "    allowed: the name of a split of the source, or {train: its name, "
            "validation: ..., test: ...}",
        )
        for split, found in (
            ("3", "3 (int)"),
            ("{dev: x}", "{'dev': 'x'} (dict)"),
            ("{train: 3}", "{'train': 3} (dict)"),
        )
    ),
    *(
        (
            [*JSON_ROWS, f"dataset.markers={markers}"],
            f"dataset.markers: '{markers}', and there are no dataset.marker_tokens\n"
            "    \"dataset.marker_tokens=['|SOUND|>']\"",
        )
        for markers in ("special", "strip")
    ),
]


@pytest.mark.parametrize(("overrides", "text"), OF_THE_DATA_SET)
def test_keys_of_the_data_set_that_conflict_are_errors(overrides: list[str], text: str) -> None:
    assert error_of(*overrides) == text


OF_A_MIXTURE = [
    (
        [*mixture(YODA), "dataset.columns={a: b}"],
        "dataset.columns: a mixture reads it from its sources\n"
        "    dataset.sources=[{..., columns: ...}, ...]",
    ),
    (
        mixture("path: mixture, sources: [{path: json}]"),
        "dataset.sources[0].path: a mixture in a mixture\n    allowed: a data set",
    ),
    (
        mixture(f"{YODA}, weight: 1, count: 2"),
        "dataset.sources[0]: both weight and count\n    allowed: one of them\n    leave one out",
    ),
    (
        mixture(f"{YODA}, weight: 0"),
        "dataset.sources[0].weight: 0\n    allowed: more than 0\n    leave the source out",
    ),
    (
        mixture(f"{YODA}, weight: 1", YODA),
        "dataset.sources: some have a weight, and sources[1] has none\n"
        "    a weight for each, or counts",
    ),
    (
        mixture(YODA, f"{YODA}, num_proc: 2"),
        "dataset.sources[1].num_proc: one policy serves the whole mixture\n"
        "    dataset.num_proc=...",
    ),
    (
        ["dataset=mixture", "dataset.sources=[yoda]"],
        "dataset.sources[0] (command line): 'yoda' (str)\n"
        "    allowed: a mapping, such as {path: json, data_files: a.jsonl, weight: 0.5}",
    ),
    (
        mixture("path: embedded, nam: yoda"),
        "dataset.sources[0].nam (command line): unknown key\n"
        "    did you mean dataset.sources[0].name?",
    ),
    (
        mixture(YODA, "path: json"),
        "dataset.sources[1].data_files: not set, and dataset=json reads files\n"
        "    write data_files: my_rows.jsonl into dataset.sources[1]",
    ),
    (
        mixture(f"{YODA}, format: {{type: function}}"),
        "dataset.sources[0].format.function: not set, and format=function needs it\n"
        "    write function: my_module.my_function into dataset.sources[0].format",
    ),
]


@pytest.mark.parametrize(("overrides", "text"), OF_A_MIXTURE)
def test_sources_of_a_mixture_are_checked_one_by_one(overrides: list[str], text: str) -> None:
    assert error_of(*overrides) == text


def test_a_typo_in_a_source_of_a_recipe_names_the_file(write_recipe: Callable[..., None]) -> None:
    write_recipe(
        "defaults:\n  - override /dataset: mixture\n"
        "dataset: {sources: [{path: embedded, nam: yoda}]}\n"
    )

    assert error_of("recipe=mine").startswith(
        "dataset.sources[0].nam (./recipes/mine.yaml): unknown key"
    )


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


TEMPLATE = ["format=template", "format.prompt='{question}'", "format.completion='{answer}'"]
PATTERN = (
    "    allowed: text with {column} fields; a brace of the text itself is written twice: {{ }}"
)


OF_THE_FORMAT = [
    (
        ["format=template"],
        "format.prompt: not set, and format=template needs it\n"
        "    \"format.prompt='{prompt} ##>'\"\n"
        "format.completion: not set, and format=template needs it\n"
        "    \"format.completion=' {completion}'\"",
    ),
    (
        ["format=function"],
        "format.function: not set, and format=function needs it\n"
        "    format.function=my_module.my_function",
    ),
    (
        ["format.text_field=a"],
        "format.text_field: nothing reads it with type: instruction\n"
        "    allowed: text, function\n    leave it out",
    ),
    (
        [*TEMPLATE, "format.system=Hi"],
        "format.system: nothing reads it with type: template\n"
        "    allowed: instruction, messages, sharegpt, prompt_completion, function\n"
        "    put it into the texts, or leave it out",
    ),
    (
        ["format.prompt='{a}'"],
        "format.prompt: nothing reads it with type: instruction\n    allowed: template\n"
        "    leave it out",
    ),
    (
        ["format.batched=true"],
        "format.batched: nothing reads it with type: instruction\n    allowed: function\n"
        "    leave it out",
    ),
    (
        ["format=template", "format.prompt='{a'", "format.completion='{b.c}'"],
        f"format.prompt: '{{a': expected '}}' before end of string\n{PATTERN}\n"
        f"format.completion: '{{b.c}}': the field {{b.c}} is no plain column name\n{PATTERN}",
    ),
    (
        [*TEMPLATE, "format.prompt=question"],
        f"format.prompt: 'question' has no field\n{PATTERN}",
    ),
]


@pytest.mark.parametrize(("overrides", "text"), OF_THE_FORMAT)
def test_keys_of_the_format_that_conflict_are_errors(overrides: list[str], text: str) -> None:
    assert error_of(*overrides) == text


RESPONSE = (
    "    allowed: the text before each answer, or its token ids\n"
    "    \"loss.response_template='### Answer:'\""
)


OF_THE_LOSS = [
    (["loss=response_template"], f"loss.response_template: not set\n{RESPONSE}"),
    (
        ["loss=response_template", "loss.response_template=''"],
        f"loss.response_template: '' (str)\n{RESPONSE}",
    ),
    (
        ["loss=response_template", "loss.response_template=[]"],
        f"loss.response_template: [] (list)\n{RESPONSE}",
    ),
    (
        ["loss=response_template", "loss.response_template=[true]"],
        f"loss.response_template: [True] (list)\n{RESPONSE}",
    ),
    (
        ["loss=response_template", "loss.response_template=A", "loss.instruction_template=''"],
        "loss.instruction_template: '' (str)\n"
        "    allowed: the text before each question, or its token ids\n"
        "    \"loss.instruction_template='### Question:'\"",
    ),
    (
        [
            "loss=response_template",
            "loss.response_template=[1,2]",
            "loss.instruction_template=Q",
        ],
        "loss: one template is text and the other ids\n    allowed: both text, or both ids",
    ),
    (
        ["loss.response_template=A"],
        "loss.response_template: nothing reads it with type: completion_only\n"
        "    loss=response_template",
    ),
    (
        ["loss=assistant_only", "loss.boundary=joint"],
        "loss.boundary: 'joint', and assistant_only has no single prompt whose length could "
        "be masked\n    allowed: split\n"
        "    loss.boundary=split, or loss=completion_only",
    ),
    (
        ["loss.unroll=true"],
        "loss.unroll: true, and loss=completion_only has no turns to make rows of\n"
        "    allowed: with loss=assistant_only\n"
        "    loss=assistant_only, or loss.unroll=false",
    ),
    *(
        (
            ["format=text", f"loss={loss}"],
            f"loss={loss}: format=text makes a finished text, which has no turns to tell "
            "apart\n"
            "    loss=full, or loss=response_template",
        )
        for loss in ("completion_only", "assistant_only")
    ),
    (
        [*TEMPLATE, "loss=assistant_only"],
        "loss=assistant_only: format=template makes a prompt and its completion, which has "
        "no turns to tell apart\n"
        "    loss=completion_only, loss=full, or loss=response_template",
    ),
    (
        ["over_length=truncate", "sft.max_length=null"],
        "over_length: 'truncate', and sft.max_length sets no length\n    sft.max_length=1024",
    ),
]


@pytest.mark.parametrize(("overrides", "text"), OF_THE_LOSS)
def test_keys_of_the_loss_that_conflict_are_errors(overrides: list[str], text: str) -> None:
    assert error_of(*overrides) == text


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
    text = error_of(
        "dataset.test_size=nan", "dataset.num_proc=0", "evaluation.max_new_tokens=0", "seed=-1"
    )

    for key in ("dataset.test_size", "dataset.num_proc", "evaluation.max_new_tokens", "seed"):
        assert f"{key} (command line): " in text


def test_conflicts_are_reported_together() -> None:
    text = error_of(
        "quantization=nf4",
        "dataset=parquet",
        "dataset.test_size=1.5",
        "preflight.max_empty_rows=2",
        "preflight.max_over_length_rows=-1",
    )

    assert text.splitlines() == [
        "quantization + lora: quantized weights cannot be trained, and lora=none adds nothing "
        "that can",
        "    lora=default, or quantization=none",
        "dataset.data_files: not set, and dataset=parquet reads files",
        "    dataset.data_files=my_rows.parquet",
        "dataset.test_size: 1.5",
        "    allowed: below 1 a share of the rows, else a number of rows",
        "preflight.max_empty_rows: 2.0",
        "    allowed: 0 to 1",
        "preflight.max_over_length_rows: -1.0",
        "    allowed: 0 to 1",
    ]


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
# no override reaches a source of a mixture
TABLES = (CHOICES, OF_THE_DATA_SET, OF_THE_FORMAT, OF_THE_LOSS)
MISTAKES = [*(overrides for table in TABLES for overrides, _ in table), *OTHERS]


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
    assert len(expand_sweep(overrides)) == 4
