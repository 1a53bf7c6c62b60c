"""A run in miniature, before its data are loaded: what only upstream's own code knows of a config.

The real config objects, a small random model of the same class with the run's quantization and
adapter, and one step of the real trainer, optimizer and schedule.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, set_seed

from sftpipe.config.schema import TokenizerConfig, TrainConfig
from sftpipe.config.upstream import UPSTREAM
from sftpipe.errors import ConfigError, Problem, SftpipeError, one_line
from sftpipe.model.adapters import lora_config
from sftpipe.model.architecture import model_config, small_config
from sftpipe.model.load import attention, load_base
from sftpipe.model.precision import Precision
from sftpipe.model.weights import Weights
from sftpipe.tokenizer.train import train_tokenizer
from sftpipe.training.trainer import SFTPipeTrainer, build_arguments

_STEPS = 8  # of the rehearsed schedule
_STEPPED = 16  # parameters that its step moves
_TOKENS = (5, 9)  # of its two rows
# what costs time, writes files or asks the network, and has no part in a single step
_LEFT_OUT: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_steps": _STEPS,
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "eval_on_start": False,
    "push_to_hub": False,
    "torch_compile": False,
    "torch_compile_backend": None,
    "torch_compile_mode": None,
    "dataloader_num_workers": 0,
    "dataloader_prefetch_factor": None,
    "dataloader_persistent_workers": False,
    "dataloader_multiprocessing_context": None,
}
# schedules that follow a metric
_FOLLOWERS = ("reduce_lr_on_plateau", "greedy")


def rehearse(cfg: TrainConfig, weights: Weights, precision: Precision) -> None:
    """Make every object of the run on a small model, and one step; nothing of it is kept.

    Args:
        cfg: a checked config.
        weights: their config describes the class of the model.
        precision: of the run.

    Raises:
        ConfigError: transformers, TRL, PEFT or bitsandbytes refuse a value; names the key where
            that can be told.
        ModelError: they cannot make a model of this class.
    """
    state = torch.random.get_rng_state()
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _rehearse(cfg, weights, precision, Path(folder))
    finally:
        torch.random.set_rng_state(state)


def _rehearse(cfg: TrainConfig, weights: Weights, precision: Precision, folder: Path) -> None:
    with _named(cfg, "sft"):
        build_arguments(cfg.sft, seed=cfg.seed, folder=folder, precision=precision)
    with _named(cfg, "quantization"):
        model = _small_base(cfg, weights, precision, folder / "base")
    with _named(cfg, "lora"):
        adapter = lora_config(cfg.lora, weights) if cfg.lora else None
        _fit_ids(adapter)
        # a check of the names in `adapter` on the whole model, on the meta device, belongs here
    sft = {**cfg.sft, **{name: off for name, off in _LEFT_OUT.items() if name in cfg.sft}}
    sft |= {name: _LEFT_OUT[name] for name in ("max_steps", "save_strategy")}
    if sft.get("lr_scheduler_type") in _FOLLOWERS:  # SFTConfig asks for evaluations
        sft["eval_strategy"] = "epoch"
    arguments = build_arguments(sft, seed=cfg.seed, folder=folder / "run", precision=precision)
    rows = [list(range(3, 3 + length)) for length in _TOKENS]
    data = Dataset.from_dict({"input_ids": rows, "labels": rows})
    with _named(cfg, "lora" if cfg.lora else "sft"):
        trainer = SFTPipeTrainer(
            adapter_dtype=precision.trained,
            model=model,
            args=arguments,
            train_dataset=data,
            eval_dataset=data,
            data_collator=lambda batch: batch,
            processing_class=train_tokenizer(TokenizerConfig(type="char"), "ab"),
            peft_config=adapter,
        )
    _step(trainer, cfg, rows)


def _small_base(
    cfg: TrainConfig, weights: Weights, precision: Precision, folder: Path
) -> PreTrainedModel:
    """A small random model of the run's class, quantized and placed by the run's own code."""
    config = small_config(model_config(cfg.model, weights))
    set_seed(cfg.seed)
    if not cfg.quantization:  # as `load_base` would load it, without the way over a disk
        dtype = precision.compute if cfg.lora else precision.trained
        made = AutoModelForCausalLM.from_config(config, dtype=dtype, **attention(cfg.model))
        return made.to(precision.device)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    small = Weights(str(folder), None, weights.name)
    return load_base(cfg.model, cfg.quantization, small, precision, frozen=bool(cfg.lora))


def _fit_ids(adapter: Any) -> None:
    """Token ids of the adapter within the small vocabulary."""
    indices = getattr(adapter, "trainable_token_indices", None)
    if isinstance(indices, dict):
        adapter.trainable_token_indices = {name: [5] for name in indices}
    elif indices:
        adapter.trainable_token_indices = [5]


def _step(trainer: SFTPipeTrainer, cfg: TrainConfig, rows: list[list[int]]) -> None:
    """A pass of training, one of evaluation, and one step of optimizer and schedule."""
    device = trainer.model.device
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    batch = {"input_ids": ids, "labels": ids, "attention_mask": (ids != 0).long()}
    with _named(cfg, "sft"):
        trainer.create_optimizer_and_scheduler(_STEPS)
    with _named(cfg, "lora" if cfg.lora else "sft"):
        trainer.model.train()
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        trainer.model.eval()  # a second pass, as some layers change in the first
        with torch.no_grad(), trainer.compute_loss_context_manager():
            trainer.compute_loss(trainer.model, batch)
    for parameter in list(trainer.model.parameters())[_STEPPED:]:
        parameter.grad = None  # a step of a few says as much, in a fraction of the time
    with _named(cfg, "sft"):
        trainer.optimizer.step()
        if cfg.sft.get("lr_scheduler_type") in _FOLLOWERS:
            trainer.lr_scheduler.step(1.0)
        else:
            trainer.lr_scheduler.step()


@contextlib.contextmanager
def _named(cfg: TrainConfig, group: str) -> Iterator[None]:
    """Turn whatever upstream raises into a ConfigError that names the key, or else the group.

    Args:
        cfg: whose key or value is in the message is to blame.
        group: the one to name where the message names nothing.
    """
    try:
        yield
    except SftpipeError:
        raise
    except Exception as error:  # upstream raises whatever it likes
        said = f"{type(error).__name__}: {one_line(error)[:300]}"
        blamed = _blamed(cfg, said)
        group = blamed[0].partition(".")[0] if blamed else group
        given = [f"{key}={getattr(cfg, key.split('.')[0])[key.split('.')[1]]}" for key in blamed]
        found = f"{', '.join(given)}: {said}" if given else said
        fix = f"a value that {UPSTREAM[group]} takes (see its docs)"
        fix = f"leave it out, or {fix}" if blamed else fix
        raise ConfigError(Problem(" + ".join(blamed) or group, found, fix=fix)) from error


def _blamed(cfg: TrainConfig, said: str) -> list[str]:
    """At most three keys whose name, or else whose value, a message has; named ones come first."""
    named, by_value = [], []
    for group in UPSTREAM:
        for name, value in getattr(cfg, group).items():
            inner = list(value) if isinstance(value, Mapping | list) else []
            words = [name, *(one for one in inner if isinstance(one, str))]
            if any(re.search(rf"\b{re.escape(word)}\b", said) for word in words if len(word) > 2):
                named.append(f"{group}.{name}")
            elif isinstance(value, str) and len(value) > 4 and value.lower() in said.lower():
                by_value.append(f"{group}.{name}")
    return (named or by_value)[:3]
