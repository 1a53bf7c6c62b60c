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


# the same bad values for both: who refuses them
PROBES: dict[str, list[tuple[str, Any]]] = {
    "the table alone": [
        ("sft.learning_rate", 1000.0),
        ("sft.per_device_train_batch_size", 0),
        ("sft.gradient_accumulation_steps", 0),
        ("sft.gradient_accumulation_steps", -1),
        ("sft.num_train_epochs", -1),
        ("sft.max_steps", 0),
        ("sft.weight_decay", -0.1),
        ("sft.max_grad_norm", -1),
        ("sft.save_total_limit", -1),
        ("sft.neftune_noise_alpha", -1.0),
        ("sft.train_sampling_strategy", "shuffle"),
        ("sft.dataloader_num_workers", -1),
        ("lora.lora_alpha", -16),
        ("lora.lora_dropout", -0.1),
        ("quantization.bnb_4bit_compute_dtype", "half"),
    ],
    "both": [
        ("sft.learning_rate", -1.0),
        ("sft.learning_rate", float("nan")),
        ("sft.label_smoothing_factor", 5.0),
        ("sft.adam_beta1", 2.0),
        ("sft.adam_epsilon", -1.0),
        ("sft.lr_scheduler_type", "foo"),
        ("sft.optim", "foo"),
        ("sft.warmup_steps", -1),
        ("sft.logging_steps", 0),
        ("lora.r", 0),
        ("lora.lora_dropout", 1.5),
        ("lora.bias", "foo"),
        ("lora.rank_pattern", {"q_proj": 0}),
        ("quantization.llm_int8_skip_modules", "lm_head"),
        ("quantization.bnb_4bit_quant_type", "nf5"),
        ("quantization.bnb_4bit_quant_storage", "uint4"),
    ],
    "the objects alone": [
        ("sft.lr_scheduler_kwargs", {"foo": 1}),
        ("sft.accelerator_config", {"foo": 1}),
        ("sft.router_aux_loss_coef", 0.1),
        ("lora.target_modules", ["foo"]),
        ("lora.target_modules", ["lm_head"]),
        ("lora.layer_replication", [[0, 9]]),
        ("lora.init_lora_weights", "foo"),
    ],
}


@pytest.mark.parametrize(
    ("finder", "key", "value"),
    [(finder, *probe) for finder, probes in PROBES.items() for probe in probes],
)
def test_what_the_table_and_what_the_objects_find(
    finder: str, key: str, value: Any, tiny_model: Path
) -> None:
    group, _, name = key.partition(".")
    cfg = tiny(tiny_model, "quantization=nf4" if group == "quantization" else "quantization=none")
    in_table = bool(check_value(group, name, value, str))
    getattr(cfg, group)[name] = value
    in_objects = bool(refusal(cfg))
    names = {(True, True): "both", (True, False): "the table alone"}
    assert names.get((in_table, in_objects), "the objects alone") == finder
    assert in_table or in_objects
