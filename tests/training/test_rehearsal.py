"""The run in miniature: what the table of values cannot know, and what no run ends in."""

from __future__ import annotations

import math
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from sftpipe.config.schema import TrainConfig
from sftpipe.config.upstream import enum_values
from sftpipe.config.values import check_value, package_of
from sftpipe.data.prepare import PreparedData
from sftpipe.errors import ConfigError, SftpipeError
from sftpipe.model.weights import find_weights
from sftpipe.training.rehearsal import rehearse
from support.errors import places
from support.models import CPU
from support.trainers import few, tiny, trainer_of


def refusal(cfg: TrainConfig) -> list[str]:
    try:
        rehearse(cfg, find_weights(cfg.model), CPU)
    except ConfigError as error:
        return places(error)
    return []


def test_a_right_config_passes_and_moves_no_random_state(tiny_model: Path) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    assert refusal(tiny(tiny_model)) == []
    assert refusal(tiny(tiny_model, "lora=none")) == []
    assert torch.equal(torch.random.get_rng_state(), before)


# words -> the key that is named: the table takes the value, upstream's objects do not
ONLY_OBJECTS = {
    "lora.target_modules=[foo]": "lora.target_modules",
    "lora.target_modules=[lm_head]": "lora.target_modules",
    "sft.router_aux_loss_coef=0.1": "sft.router_aux_loss_coef",
    "sft.lr_scheduler_type=polynomial sft.lr_scheduler_kwargs={lr_end:0.5}": (
        "sft.lr_scheduler_kwargs"
    ),
    "sft.accelerator_config={foo:1}": "sft",
    "sft.optim=sgd sft.optim_args='momentum=x'": "sft",
}


@pytest.mark.parametrize("words", ONLY_OBJECTS)
def test_what_only_the_objects_find_names_its_key(words: str, tiny_model: Path) -> None:
    assert refusal(tiny(tiny_model, *words.split(" "))) == [ONLY_OBJECTS[words]]


# values that the table refuses and upstream's objects take: why the table is needed
ONLY_TABLE = [
    ("sft", "learning_rate", 1000.0),
    ("sft", "num_train_epochs", -1),
    ("sft", "weight_decay", -0.1),
    ("sft", "max_grad_norm", -1),
    ("sft", "save_total_limit", -1),
    ("sft", "neftune_noise_alpha", -1.0),
    ("sft", "train_sampling_strategy", "shuffle"),
    ("sft", "label_smoothing_factor", 5.0),
    ("lora", "lora_alpha", -16),
    ("lora", "layers_to_transform", []),
]


@pytest.mark.parametrize(("group", "name", "value"), ONLY_TABLE)
def test_what_only_the_table_finds(group: str, name: str, value: Any, tiny_model: Path) -> None:
    assert check_value(group, name, value, name)


# --- random configs, two real steps ---------------------------------------------------------------


def drawn(rng: random.Random) -> list[str]:
    """A few keys with values that their rules take."""
    optimizers = [name for name in enum_values("OptimizerNames") if package_of(name) is None]
    optimizers = [name for name in optimizers if "bnb" not in name and "bit" not in name]
    choices: dict[str, list[Any]] = {
        "sft.learning_rate": [0, 1e-5, 1e-3],
        "sft.optim": [name for name in optimizers if name != "ademamix"],
        "sft.lr_scheduler_type": ["linear", "cosine", "constant", "polynomial", "inverse_sqrt"],
        "sft.warmup_steps": [0, 0.5, 1, 10],
        "sft.weight_decay": [0, 0.1, 0.9],
        "sft.max_grad_norm": [0, 0.1, 1],
        "sft.adam_beta1": [0, 0.5, 0.99],
        "sft.adam_beta2": [0, 0.5, 0.9999],
        "sft.adam_epsilon": [1e-8, 1],
        "sft.label_smoothing_factor": [0, 0.1, 0.9],
        "sft.loss_type": ["nll", "dft"],
        "sft.neftune_noise_alpha": [1, 10],
        "sft.gradient_accumulation_steps": [1, 3],
        "sft.per_device_train_batch_size": [1, 2, 5],
        "sft.pad_to_multiple_of": [1, 8],
        "sft.activation_checkpointing": ["true", "false"],
        "sft.train_sampling_strategy": ["random", "sequential", "group_by_length"],
        "sft.logging_steps": [1, 0.5],
        "sft.torch_empty_cache_steps": [1],
        "sft.include_num_input_tokens_seen": ["all", "non_padding"],
        "lora.r": [1, 3, 16],
        "lora.lora_alpha": [1, 64],
        "lora.lora_dropout": [0, 0.5],
        "lora.bias": ["none", "all", "lora_only"],
        "lora.init_lora_weights": ["true", "false", "gaussian", "olora", "pissa", "pissa_niter_2"],
        "lora.use_rslora": ["true"],
        "lora.use_dora": ["true"],
        "lora.rank_pattern": ["{q_proj: 2}"],
        "lora.modules_to_save": ["[norm]"],
    }
    keys = rng.sample(sorted(choices), rng.randint(2, 6))
    return [f"{key}={rng.choice(choices[key])}" for key in keys]


def two_steps(seed: int, model: Path, data: PreparedData, folder: Path) -> str:
    """ "" for a run that ends right, or for an error of ours; else what went wrong."""
    words = drawn(random.Random(seed))
    try:
        cfg = tiny(model, *words, "sft.max_steps=2", "sft.save_strategy=no")
        with warnings.catch_warnings():  # TRL says what it will remove one day
            warnings.simplefilter("ignore", FutureWarning)
            trainer = trainer_of(cfg, few(data, 12), folder)
            loss = trainer.train().training_loss
    except SftpipeError:
        return ""
    except Exception as error:
        return f"{words}: {type(error).__name__}: {error}"
    return "" if math.isfinite(loss) else f"{words}: {loss}"


def test_random_values_train_or_are_refused(
    tiny_model: Path, data: PreparedData, tmp_path: Path
) -> None:
    failures = [two_steps(seed, tiny_model, data, tmp_path / str(seed)) for seed in range(12)]
    assert [one for one in failures if one] == []


@pytest.mark.slow
def test_five_hundred_random_values_train_or_are_refused(
    tiny_model: Path, data: PreparedData, tmp_path: Path
) -> None:
    failures = [two_steps(seed, tiny_model, data, tmp_path / str(seed)) for seed in range(500)]
    assert [one for one in failures if one] == []
