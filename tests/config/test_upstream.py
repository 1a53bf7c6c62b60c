"""Upstream field names, read from sources, against the real classes."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from sftpipe.config.check import Origin, check
from sftpipe.config.hydra import compose
from sftpipe.config.schema import to_plain
from sftpipe.config.upstream import accepts, upstream_fields
from sftpipe.errors import ConfigError


def real_class(name: str) -> Any:
    """The class itself (imports torch)."""
    import peft
    import transformers
    import trl

    return {
        "SFTConfig": trl.SFTConfig,
        "LoraConfig": peft.LoraConfig,
        "BitsAndBytesConfig": transformers.BitsAndBytesConfig,
    }[name]


@pytest.mark.parametrize("name", ["SFTConfig", "LoraConfig"])
def test_the_names_in_the_sources_are_the_init_fields_of_the_dataclass(name: str) -> None:
    assert set(upstream_fields(name)) == {
        field.name for field in dataclasses.fields(real_class(name)) if field.init
    }


def test_the_names_in_the_sources_are_the_parameters_of_bitsandbytes() -> None:
    parameters = inspect.signature(real_class("BitsAndBytesConfig").__init__).parameters
    assert set(upstream_fields("BitsAndBytesConfig")) == set(parameters) - {"self", "kwargs"}


@pytest.mark.parametrize("name", ["SFTConfig", "LoraConfig"])
def test_the_default_of_every_field_is_accepted(name: str) -> None:
    for field in dataclasses.fields(real_class(name)):
        if field.init and field.default is not dataclasses.MISSING:
            default = field.default.value if isinstance(field.default, enum.Enum) else field.default
            assert accepts(upstream_fields(name)[field.name], default), field.name


@pytest.mark.parametrize(
    ("name", "field", "annotation"),
    [
        ("SFTConfig", "max_length", "int | None"),  # TRL's own
        ("SFTConfig", "num_train_epochs", "float"),  # of transformers' TrainingArguments
        ("LoraConfig", "r", "int"),
        ("LoraConfig", "revision", "Optional[str]"),  # of PeftConfig
        ("BitsAndBytesConfig", "bnb_4bit_quant_type", None),  # its source gives none
    ],
)
def test_a_field_comes_with_its_annotation(name: str, field: str, annotation: str | None) -> None:
    assert upstream_fields(name)[field] == annotation


# what sftpipe fills in from a key of its own, and the key: the field is never a key itself
OWNED = {
    "sft.packing": "packing",
    "sft.packing_strategy": "packing",
    "sft.padding_free": "packing",
    "sft.eval_packing": "packing",
    "sft.completion_only_loss": "loss",
    "sft.assistant_only_loss": "loss",
    "sft.seed": "seed",
    "sft.data_seed": "seed",
    "sft.output_dir": "output_dir",
    "sft.run_name": "output_dir",
    "sft.overwrite_output_dir": "output_dir",
    "sft.report_to": "tracking",
    "sft.project": "tracking",
    "sft.trackio_space_id": "tracking",
    "sft.bf16": "model.dtype",
    "sft.fp16": "model.dtype",
    "sft.bf16_full_eval": "model.dtype",
    "sft.fp16_full_eval": "model.dtype",
    "sft.pad_token": "tokenizer.pad_token",
    "sft.chat_template_path": "tokenizer.chat_template",
    "sft.dataset_text_field": "format",
    "sft.dataset_num_proc": "dataset.num_proc",
    "sft.dataset_kwargs": "dataset",
    "sft.shuffle_dataset": "dataset.shuffle_seed",
    "sft.truncation_mode": "over_length",
    "sft.gradient_checkpointing": "sft.activation_checkpointing",
    "sft.gradient_checkpointing_kwargs": "sft.activation_checkpointing_kwargs",
    "sft.model_init_kwargs": "model",
    "sft.trust_remote_code": "model",
    "lora.base_model_name_or_path": "model.name_or_path",
    "lora.revision": "model.revision",
}
# what a config may not say at all
FORBIDDEN = {
    "sft": {
        "eos_token",
        "disable_tqdm",
        "restore_callback_states_from_checkpoint",
        "hub_token",
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
        "do_train",
        "do_eval",
        "do_predict",
        "push_to_hub",
        "hub_private_repo",
        "hub_model_id",
        "hub_strategy",
        "hub_always_push",
        "hub_revision",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "prediction_loss_only",
        "eval_do_concat_batches",
        "eval_use_gather_object",
        "eval_accumulation_steps",
        "include_for_metrics",
        "batch_eval_metrics",
        "remove_unused_columns",
        "label_names",
        "length_column_name",
        "use_cache",
        "ignore_data_skip",
        "enable_jit_checkpoint",
        "average_tokens_across_devices",
        "log_on_each_node",
        "log_level_replica",
        "save_on_each_node",
    },
    "lora": {
        "task_type",
        "peft_type",
        "inference_mode",
        "auto_mapping",
        "peft_version",
        "runtime_config",
        "megatron_config",
        "megatron_core",
        "use_qalora",
        "qalora_group_size",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "loftq_config",
        "arrow_config",
        "fan_in_fan_out",
    },
    "quantization": {"llm_int8_has_fp16_weight"},
}


def test_a_field_that_another_key_owns_or_nobody_may_set_is_refused_whatever_its_value() -> None:
    tree = to_plain(compose(["lora=default", "quantization=nf4"]))
    for key in OWNED:
        group, _, name = key.partition(".")
        tree[group][name] = None
    for group, names in FORBIDDEN.items():
        tree[group] |= dict.fromkeys(names)

    with pytest.raises(ConfigError) as caught:
        check(tree, Origin({}, default="old"))

    owned, forbidden = {}, []
    for problem in caught.value.problems:
        key = problem.where.removesuffix(" (old)")
        if problem.found == "another key owns this":
            owned[key] = problem.fix.removeprefix("write ").partition("=")[0]
        else:
            assert problem.found.startswith("not for a config: ")
            forbidden.append(key)
    assert owned == OWNED
    assert set(forbidden) == {f"{group}.{name}" for group in FORBIDDEN for name in FORBIDDEN[group]}


@pytest.mark.parametrize("name", ["push_to_hub", "hub_model_id", "hub_private_repo"])
def test_an_upload_by_the_trainer_is_refused_with_the_verb_that_uploads(
    name: str, golden_error: Callable[..., None]
) -> None:
    tree = to_plain(compose([]))
    tree["sft"][name] = None
    with pytest.raises(ConfigError) as caught:
        check(tree, Origin({}, default="old"))
    typed = "sftpipe export run=DIR export=hub export.repo_id=OWNER/NAME"
    assert typed in caught.value.problems[0].found
    golden_error(caught.value)


def test_reading_the_sources_imports_none_of_the_libraries() -> None:
    code = (
        "import sys; from sftpipe.config.upstream import upstream_fields\n"
        "assert len(upstream_fields('SFTConfig')) > 100 and upstream_fields('LoraConfig') and "
        "upstream_fields('BitsAndBytesConfig')\n"
        "print(sorted({'torch', 'transformers', 'trl', 'peft', 'datasets'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


# annotation, values that fit, values that do not
TABLE: list[tuple[str | None, list[object], list[object]]] = [
    ("int", [1, 0, -1, 2.0, None], [1.5, "1", True, [1], {}]),
    ("float", [1, 0.5, None], ["1e-3", True, [0.5]]),
    ("bool", [True, False, None], [1, 0, "true", "no", []]),
    ("str", ["a", "", None], [1, 1.5, True, ["a"], {"a": 1}]),
    ("int | None", [1, None], ["1", True]),
    ("Optional[float]", [1, 0.5, None], ["0.5", True]),
    ("typing.Optional[float]", [0.5, None], ["0.5"]),
    ("'int | None'", [1, None], ["1"]),
    ("Optional[Union[list[str], str]]", ["all-linear", ["q_proj"], None], [1, True]),
    ("Union[int, list[int]]", [1, [1, 2]], ["1", True]),
    ("list[str] | None", [["a"], None], ["a", 1, True]),
    ("dict[str, Any] | str | None", [{"a": 1}, "{}", None], [1, True]),
    ("Optional[dict]", [{"a": 1}, None], ["a", 1]),
    ("IntervalStrategy | str", ["steps", None], [1, True]),
    ("str | bool", ["a", True], [1, [1]]),
    ("bool | Literal['gaussian', 'eva']", [True, "gaussian", "anything", 1], []),
    ("Optional[EvaConfig]", [{"rho": 2.0}, "anything", 1, True], []),
    (None, ["a", 1, True, [1], {}], []),
]


@pytest.mark.parametrize(
    ("annotation", "value"), [(a, value) for a, fit, _ in TABLE for value in fit]
)
def test_a_value_that_fits_is_accepted(annotation: str | None, value: object) -> None:
    assert accepts(annotation, value)


@pytest.mark.parametrize(
    ("annotation", "value"), [(a, value) for a, _, wrong in TABLE for value in wrong]
)
def test_a_value_that_does_not_fit_is_refused(annotation: str | None, value: object) -> None:
    assert not accepts(annotation, value)


def test_a_value_that_a_literal_names_is_accepted() -> None:
    assert accepts("str | None | Literal[False]", False)  # trackio_static_space_id


def test_a_field_of_an_unknown_class_is_a_bug_and_raises() -> None:
    with pytest.raises(KeyError):
        upstream_fields("NoConfig")
