"""No dead keys: a key that a config accepts does something that can be seen, or is in a table that
says why it cannot be seen here. A field that an upgraded library brings fails without its row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sftpipe.config.upstream import MOVED, OURS, UPSTREAM, upstream_fields
from sftpipe.errors import ConfigError
from sftpipe.model.load import load_base
from sftpipe.model.weights import find_weights
from support.configs import compose
from support.models import CPU
from support.observed import Seen, differences, seen_in_training


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
    "optim_target_modules": unseen("of GaLore and APOLLO, whose packages are not here", "[q_proj]"),
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
    "auto_find_batch_size": unseen("it acts when memory is used up", "true"),
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
