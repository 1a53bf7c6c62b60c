"""Configs whose values pass the check are trained: each ends, or in an error of ours.

Several keys of `sft`, `lora` and `quantization` have values drawn from what the table allows.
"""

from __future__ import annotations

import contextlib
import json
import random
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from sftpipe import prepare
from sftpipe.config.schema import TrainConfig
from sftpipe.config.values import rules
from sftpipe.data.prepare import PreparedData
from sftpipe.errors import ConfigError, SftpipeError
from sftpipe.model.weights import find_weights
from sftpipe.training.rehearsal import rehearse
from support.models import CPU
from support.sources import write_rows
from support.tokenizers import config_of, write_kind
from support.trainers import few, tiny, trainer_of

ANY = (False, True)
DRAWN: dict[str, dict[str, tuple[Any, ...]]] = {
    "sft": {
        "per_device_train_batch_size": (1, 2, 3),
        "per_device_eval_batch_size": (1, 2, 64),
        "gradient_accumulation_steps": (1, 2, 3),
        "num_train_epochs": (0.01, 0.5, 1, 2.5),
        "max_steps": (-1, 1, 2),
        "learning_rate": (0, 1e-9, 1e-4, 0.1, 100),
        "lr_scheduler_type": (
            "linear",
            "cosine",
            "cosine_with_restarts",
            "polynomial",
            "constant",
            "constant_with_warmup",
            "inverse_sqrt",
            "reduce_lr_on_plateau",
            "cosine_with_min_lr",
            "cosine_warmup_with_min_lr",
            "warmup_stable_decay",
            "greedy",
        ),
        "lr_scheduler_kwargs": (
            None,
            {},
            {"num_cycles": 3},
            {"num_cycles": 0.5},
            {"power": 2.0, "lr_end": 0.0},
            {"min_lr_rate": 0.1},
            {"min_lr": 1e-6},
            {"num_decay_steps": 0},
            {"num_decay_steps": 2, "num_stable_steps": 1, "warmup_type": "cosine"},
            {"decay_type": "1-sqrt", "num_decay_steps": 9},
            {"timescale": 5},
            {"factor": 0.5, "patience": 0, "cooldown": 1},
            {"smooth": True, "window_size": 1},
        ),
        "warmup_steps": (0, 0.03, 0.99, 1, 7),
        "optim": (
            "adamw_torch",
            "adamw_torch_fused",
            "adafactor",
            "ademamix",
            "sgd",
            "adagrad",
            "adamw_8bit",
            "lion_8bit",
            "lion_32bit",
            "paged_adamw_32bit",
            "paged_adamw_8bit",
            "paged_ademamix_32bit",
            "rmsprop",
            "rmsprop_bnb",
        ),
        "optim_args": (None, "momentum=0.9", "alpha=5.0", "momentum=0.5,nesterov=true"),
        "weight_decay": (0, 0.01, 1),
        "adam_beta1": (0, 0.9, 0.999),
        "adam_beta2": (0, 0.95, 0.9999),
        "adam_epsilon": (1e-12, 1e-8, 1),
        "max_grad_norm": (0, 0.1, 1, 1e6),
        "label_smoothing_factor": (0, 0.1, 0.99),
        "neftune_noise_alpha": (None, 0.1, 5),
        "loss_type": ("nll", "dft"),
        "activation_checkpointing": ANY,
        "activation_checkpointing_kwargs": (
            None,
            {"use_reentrant": False},
            {"use_reentrant": True},
        ),
        "activation_offloading": ANY,
        "torch_empty_cache_steps": (None, 1, 3),
        "pad_to_multiple_of": (None, 1, 8),
        "logging_strategy": ("no", "steps", "epoch"),
        "logging_steps": (0.1, 1, 2),
        "logging_first_step": ANY,
        "logging_nan_inf_filter": ANY,
        "include_num_input_tokens_seen": (False, True, "no", "all", "non_padding"),
        "skip_memory_metrics": ANY,
        "eval_strategy": ("no", "steps", "epoch"),
        "eval_steps": (None, 0.5, 1, 2),
        "eval_delay": (0, 0.5, 1),
        "eval_on_start": ANY,
        "metric_for_best_model": (None, "loss", "eval_perplexity", "mean_token_accuracy"),
        "greater_is_better": (None, True, False),
        "load_best_model_at_end": ANY,
        "save_strategy": ("no", "steps", "epoch", "best"),
        "save_steps": (0.5, 1, 2, 100),
        "save_total_limit": (None, 1, 2),
        "save_only_model": ANY,
        "dataloader_drop_last": ANY,
        "dataloader_pin_memory": ANY,
        "dataloader_in_order": ANY,
        "train_sampling_strategy": ("random", "sequential", "group_by_length"),
        "router_aux_loss_coef": (0, 0.1),
        "accelerator_config": (None, {"split_batches": True}, {"even_batches": False}),
        "liger_kernel_config": (None, {"rope": True}),
        "debug": ("", "underflow_overflow"),
    },
    "lora": {
        "r": (1, 3, 64),
        "lora_alpha": (1, 16, 1000),
        "lora_dropout": (0, 0.1, 0.9),
        "target_modules": ("all-linear", ["q_proj"], ["q_proj", "down_proj"], ".*_proj"),
        "exclude_modules": (None, ["v_proj"], "v_proj"),
        "modules_to_save": (None, ["lm_head"], ["embed_tokens"]),
        "bias": ("none", "all", "lora_only"),
        "init_lora_weights": (True, False, "gaussian", "olora", "pissa", "pissa_niter_2"),
        "use_rslora": ANY,
        "use_dora": ANY,
        "lora_bias": ANY,
        "ensure_weight_tying": ANY,
        "layers_to_transform": (None, 0, [0, 1]),
        "layers_pattern": (None, "layers", ["layers"]),
        "rank_pattern": ({}, {"q_proj": 2}),
        "alpha_pattern": ({}, {"q_proj": 4}),
        "trainable_token_indices": (None, [5, 6], {"embed_tokens": [5]}),
        "layer_replication": (None, [[0, 2], [1, 2]]),
    },
    "quantization": {
        "llm_int8_threshold": (0, 6.0),
        "llm_int8_skip_modules": (None, ["lm_head"], ["q_proj"]),
        "bnb_4bit_quant_type": ("nf4", "fp4"),
        "bnb_4bit_use_double_quant": ANY,
        "bnb_4bit_compute_dtype": ("auto", "float32", "bfloat16"),
        "bnb_4bit_quant_storage": (None, "uint8", "bfloat16"),
    },
}
KINDS = ("none", "none", "nf4", "int8")  # of quantization


def draw(model: Path, seed: int) -> tuple[list[str], TrainConfig]:
    """Overrides of several keys that pass the check, and their config."""
    rng = random.Random(seed)
    while True:
        kind = rng.choice(KINDS)
        words = [f"quantization={kind}"]
        if kind == "none" and rng.random() < 0.25:
            words.append("lora=none")
        words_of = {"sft.per_device_train_batch_size": "2"}  # drop_last leaves a batch of four rows
        groups = [name for name in DRAWN if f"{name}=none" not in words]
        for _ in range(rng.randint(1, 6)):
            group = rng.choice(groups)
            name = rng.choice(list(DRAWN[group]))
            value = json.dumps(rng.choice(DRAWN[group][name])).replace('"', "'")
            words_of[f"{group}.{name}"] = value
        words += [f"{key}={value}" for key, value in words_of.items()]
        with contextlib.suppress(ConfigError):
            return words, tiny(model, *words)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose tokenizer is made in milliseconds."""
    folder = tmp_path_factory.mktemp("random") / "model"
    write_kind("chatml", folder)
    torch.manual_seed(0)
    LlamaForCausalLM(config_of("chatml")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(model: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    texts = ["the sky is blue", "big question", "one two three", "Hello you", "the end of it"]
    pairs = [(one, f"{one} and {two}") for one in texts for two in texts]
    lines = [{"instruction": one, "output": two, "text": f"{one} {two}"} for one, two in pairs]
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(file, lines)
    data = ["dataset=json", f"dataset.data_files={file}", "dataset.validation_size=4"]
    return few(prepare(tiny(model, *data, "preflight.duplicates=warn")), 4, 3)


@contextlib.contextmanager
def as_before() -> Iterator[None]:
    """What a training changes for the process is put back."""
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of upstream: a run shows them and goes on
        yield
    torch.set_num_threads(threads)


def two_steps(cfg: TrainConfig, rows: PreparedData, folder: Path) -> str:
    """Train two steps at most; what went wrong, or ""."""
    steps = cfg.sft["max_steps"]
    cfg.sft["max_steps"] = 2 if steps == -1 else min(2, steps)
    collate = replace(rows.collate, pad_to_multiple_of=cfg.sft.get("pad_to_multiple_of"))
    try:
        with as_before():
            rehearse(cfg, find_weights(cfg.model), CPU)
            trainer = trainer_of(cfg, replace(rows, collate=collate), folder)
            trainer.train()
            loss = trainer.evaluate()["eval_loss"]
            trainer.save_final()
    except SftpipeError:
        return ""
    except Exception as error:  # of any library: the test says which config it was
        return f"{type(error).__name__}: {error}"
    ran = trainer.state.global_step
    if ran != cfg.sft["max_steps"]:
        return f"{ran} steps"
    return "" if loss > 0 else f"validation loss {loss}, of no row"


def wrong_ones(model: Path, rows: PreparedData, folder: Path, seeds: range) -> dict[str, str]:
    """{overrides: what went wrong} of the configs of these seeds."""
    wrong = {}
    for seed in seeds:
        words, cfg = draw(model, seed)
        if what := two_steps(cfg, rows, folder / str(seed)):
            wrong[" ".join(words)] = what
    return wrong


def test_the_drawn_values_are_allowed() -> None:
    for group, fields in DRAWN.items():
        for name, values in fields.items():
            for value in values:
                assert value is None or rules(group)[name].holds(value), (group, name, value)


def test_an_evaluation_has_all_rows(model: Path, rows: PreparedData, tmp_path: Path) -> None:
    losses = [
        trainer_of(
            tiny(model, f"sft.dataloader_drop_last={drops}"), rows, tmp_path / drops
        ).evaluate()["eval_loss"]
        for drops in ("false", "true")
    ]
    assert losses[0] == losses[1] > 0


def test_a_few_configs_that_pass_the_check_train(
    model: Path, rows: PreparedData, tmp_path: Path
) -> None:
    assert not wrong_ones(model, rows, tmp_path, range(8))


@pytest.mark.slow
def test_configs_that_pass_the_check_train(model: Path, rows: PreparedData, tmp_path: Path) -> None:
    seeds = range(8, 168)
    assert sum(len(draw(model, seed)[0]) for seed in seeds) > 500  # values
    assert not wrong_ones(model, rows, tmp_path, seeds)
