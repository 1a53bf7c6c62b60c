"""The run in miniature: what the table of values cannot know, and what no run ends in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sftpipe.config.schema import TrainConfig
from sftpipe.config.values import check_value
from sftpipe.errors import ConfigError
from sftpipe.model.weights import find_weights
from sftpipe.training.rehearsal import rehearse
from support.errors import places, refused, told
from support.models import CPU
from support.trainers import tiny


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


def test_activations_are_moved_to_the_cpu_from_another_device(tiny_model: Path) -> None:
    cfg = tiny(tiny_model, "sft.activation_offloading=true")
    error = refused(ConfigError, lambda: rehearse(cfg, find_weights(cfg.model), CPU))
    assert told(error) == {"sft.activation_offloading": ("sft.activation_offloading=false",)}


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
    assert check_value(group, name, value, str)
