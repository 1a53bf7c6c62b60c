"""Values of `sft`, `lora` and `quantization`: the table, and what only upstream's code finds."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sftpipe.config.upstream import (
    MOVED,
    OURS,
    UPSTREAM,
    enum_values,
    optimizer_arguments,
    scheduler_arguments,
    upstream_fields,
)
from sftpipe.config.values import check_value, package_of, rules
from support.configs import config_error
from support.errors import places, told

NAN, INF = math.nan, math.inf
# key -> (values that pass, values that are refused)
PROBES: dict[str, tuple[list[Any], list[Any]]] = {
    "sft.learning_rate": ([0, 1e-4, 1, 100], [-1, 1000.0, NAN, INF, None]),
    "sft.per_device_train_batch_size": ([1, 8], [0, -1, None]),
    "sft.per_device_eval_batch_size": ([1], [0, -1]),
    "sft.gradient_accumulation_steps": ([1, 4], [0, -1]),
    "sft.num_train_epochs": ([0.5, 3], [0, -1, NAN, INF]),
    "sft.max_steps": ([-1, 1, 500], [0, -5]),
    "sft.max_length": ([1, None], [0, -1]),
    "sft.label_smoothing_factor": ([0, 0.1], [1, 5, -0.1]),
    "sft.adam_beta1": ([0, 0.9], [1, 2, -0.1]),
    "sft.adam_beta2": ([0.999], [2, NAN]),
    "sft.adam_epsilon": ([1e-8], [0, -1]),
    "sft.weight_decay": ([0, 0.1, 1], [-0.1, NAN, 3]),
    "sft.max_grad_norm": ([0, 1], [-1, NAN]),
    "sft.warmup_steps": ([0, 0.03, 10], [-1, 1.5, NAN]),
    "sft.lr_scheduler_type": (["cosine"], ["zigzag"]),
    "sft.optim": (["sgd", "adamw_torch"], ["adam", "ADAMW_TORCH"]),
    "sft.loss_type": (["nll", "dft"], ["chunked_nll", "l2"]),
    "sft.neftune_noise_alpha": ([5, None], [0, -1, INF]),
    "sft.torch_empty_cache_steps": ([1, None], [0, -1]),
    "sft.pad_to_multiple_of": ([8, None], [0, -8]),
    "sft.dataloader_num_workers": ([0, 2], [-1]),
    "sft.dataloader_prefetch_factor": ([2, None], [0]),
    "sft.save_steps": ([1, 0.2], [0, -1, 1.5]),
    "sft.logging_steps": ([1, 0.2], [0, -1]),
    "sft.eval_steps": ([5, None], [0, 2.5]),
    "sft.save_total_limit": ([1, None], [0, -1]),
    "sft.save_strategy": (["best", "no"], ["never"]),
    "sft.eval_strategy": (["epoch"], ["best"]),
    "sft.train_sampling_strategy": (["random", "group_by_length"], ["shuffle"]),
    "sft.dataloader_multiprocessing_context": (["spawn", None], ["thread"]),
    "sft.torch_compile_mode": (["default", None], ["fast"]),
    "sft.log_level": (["info"], ["loud"]),
    "lora.r": ([1, 64], [0, -1]),
    "lora.lora_alpha": ([1, 16], [0, -16]),
    "lora.lora_dropout": ([0, 0.1], [-0.1, 1, 1.5, NAN]),
    "lora.bias": (["none", "all", "lora_only"], ["foo"]),
    "lora.init_lora_weights": (
        [True, False, "gaussian", "olora", "pissa", "pissa_niter_4", "orthogonal", "mica"],
        ["", 1, 0.5],
    ),
    "lora.layers_to_transform": ([0, [0, 1], None], [-1, [0, -1], []]),
    "lora.rank_pattern": ([{"q_proj": 4}, {}], [{"q_proj": 0}, {"q_proj": "4"}]),
    "lora.alpha_pattern": ([{"q_proj": 4}], [{"q_proj": 0}, {"q_proj": NAN}]),
    "lora.trainable_token_indices": ([[1, 2], {"embed_tokens": [1]}], [[-1], {"x": 1}]),
    "quantization.llm_int8_threshold": ([0.0, 6.0], [-1.0, NAN, None]),
    "quantization.bnb_4bit_quant_type": (["nf4"], ["nf5", None]),
    "quantization.bnb_4bit_compute_dtype": (["auto"], ["half", "int8"]),
    "quantization.bnb_4bit_quant_storage": (["uint8", None], ["uint4"]),
    "quantization.load_in_4bit": ([True], [1, "yes", None]),
    "quantization.llm_int8_skip_modules": ([["lm_head"], None], ["lm_head", [1]]),
}


def refuses(key: str, value: Any) -> bool:
    group, _, name = key.partition(".")
    return bool(check_value(group, name, value, str))


@pytest.mark.parametrize("key", PROBES)
def test_a_value_is_in_its_range_or_refused_with_one_to_type(key: str) -> None:
    good, bad = PROBES[key]
    assert [value for value in good if refuses(key, value)] == []
    assert [value for value in bad if not refuses(key, value)] == []
    group, _, name = key.partition(".")
    for value in bad:
        (problem,) = check_value(group, name, value, str)
        assert problem.where == key
        assert problem.allowed
        assert problem.commands or problem.fix == "leave it out"


def test_there_are_enough_probes() -> None:
    assert sum(len(good) + len(bad) for good, bad in PROBES.values()) >= 80


@pytest.mark.parametrize("group", UPSTREAM)
def test_every_field_that_a_config_may_set_is_in_the_table(group: str) -> None:
    """A field that an upgrade adds fails here until somebody decides what it may be."""
    owned = {*MOVED.get(group, {}), *OURS.get(group, {})}
    assert set(rules(group)) == set(upstream_fields(UPSTREAM[group])) - owned


@pytest.mark.parametrize("group", UPSTREAM)
def test_every_example_is_a_value_that_passes(group: str) -> None:
    import yaml

    for name, rule in rules(group).items():
        if rule.example:
            text = rule.example.replace("e-", ".0e-") if "e-" in rule.example else rule.example
            value = yaml.safe_load(text)
            value = rule.example if isinstance(value, str) else value
            assert value is None or rule.holds(value), name


def test_every_optimizer_has_its_package_and_arguments_from_the_source() -> None:
    needed = {name for name in enum_values("OptimizerNames") if package_of(name)}
    assert {"lomo", "galore_adamw", "schedule_free_sgd", "apollo_adamw"} <= needed
    assert not needed & {"adamw_torch", "sgd", "adafactor", "adamw_8bit", "rmsprop"}
    assert optimizer_arguments("sgd") == ("momentum", "dampening", "weight_decay", "nesterov")
    assert optimizer_arguments("adamw_torch") == ()


def test_the_keywords_of_a_schedule_are_those_of_its_function() -> None:
    assert scheduler_arguments("cosine") == (("num_cycles",), ())
    assert scheduler_arguments("warmup_stable_decay")[1] == ("num_decay_steps",)
    assert "patience" in scheduler_arguments("reduce_lr_on_plateau")[0]
    assert scheduler_arguments("constant") == ((), ())


TOGETHER: list[tuple[list[str], list[str]]] = [
    (["sft.optim=lomo"], ["sft.optim"]),
    (["sft.use_liger_kernel=true"], ["sft.use_liger_kernel"]),
    (["sft.lr_scheduler_kwargs={num_cycles: 2}"], ["sft.lr_scheduler_kwargs"]),
    (
        ["sft.lr_scheduler_type=cosine", "sft.lr_scheduler_kwargs={num_cycles: -1}"],
        ["sft.lr_scheduler_kwargs.num_cycles"],
    ),
    (["sft.lr_scheduler_type=warmup_stable_decay"], ["sft.lr_scheduler_kwargs"]),
    (["sft.lr_scheduler_type=cosine_with_min_lr"], ["sft.lr_scheduler_kwargs"]),
    (["sft.lr_scheduler_type=reduce_lr_on_plateau"], ["sft.lr_scheduler_type"]),
    (["sft.optim_args='beta=1'"], ["sft.optim_args"]),
    (["sft.optim=sgd", "sft.optim_args=momentum"], ["sft.optim_args"]),
    (["sft.dataloader_prefetch_factor=2"], ["sft.dataloader_prefetch_factor"]),
    (["sft.optim_target_modules=all-linear"], ["sft.optim_target_modules"]),
    (["sft.load_best_model_at_end=true"], ["sft.load_best_model_at_end"]),
    (
        ["sft.load_best_model_at_end=true", "sft.eval_strategy=epoch"],
        ["sft.eval_strategy + sft.save_strategy"],
    ),
    (["sft.activation_checkpointing_kwargs={a: 1}"], ["sft.activation_checkpointing_kwargs"]),
    (["quantization.load_in_4bit=false"], ["quantization"]),
    (["quantization.llm_int8_threshold=5.0"], ["quantization.llm_int8_threshold"]),
    (["lora.layers_to_transform=[0]"], ["lora.layers_to_transform"]),
    (["lora=dora", "lora.lora_bias=true"], ["lora.lora_bias"]),
]


@pytest.mark.parametrize(("words", "where"), TOGETHER, ids=lambda one: " ".join(one))
def test_fields_that_do_not_go_together(words: list[str], where: list[str]) -> None:
    error = config_error("recipe=yoda", *words)
    assert places(error) == where
    assert all(told(error).values())


def test_problems_of_all_groups_come_together() -> None:
    error = config_error(
        "recipe=yoda",
        "sft.learning_rate=-1",
        "lora.r=0",
        "quantization.llm_int8_threshold=-1",
        "seed=-1",
    )
    assert len(error.problems) == 4


@pytest.mark.parametrize(
    "word",
    [
        "evaluation.temperature=inf",
        "evaluation.temperature=-1",
        "preflight.max_empty_rows=nan",
        "preflight.max_over_length_rows=1.5",
        "preflight.max_empty_rows=2",
        "dataset.validation_size=inf",
        "seed=4294967296",
        "dataset.shuffle_seed=-1",
    ],
)
def test_numbers_of_our_own_groups_are_finite_and_in_range(word: str) -> None:
    error = config_error("recipe=yoda", word)
    assert places(error) == [f"{word.partition('=')[0]} (command line)"]
