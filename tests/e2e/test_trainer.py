"""The loss and its gradients, evaluation, checkpoints, and what we assume of TRL."""

from __future__ import annotations

import hashlib
import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from sftpipe.data.packing import Collator
from sftpipe.data.prepare import PreparedData
from sftpipe.errors import ConfigError
from sftpipe.training.trainer import build_arguments
from support.trainers import (
    CPU,
    batch_of,
    few,
    mean_loss,
    tiny,
    trained_weights,
    trainer_of,
    wake_adapter,
)

# --- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["none", "default"])
def test_accumulation_gives_the_same_weights_as_one_large_batch(
    option: str, data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    """Rows of unequal length: a mean of the means of batches would move other weights."""
    weights = []
    for size, steps in ((4, 1), (1, 4)):
        cfg = tiny(
            tiny_model,
            f"lora={option}",
            f"sft.per_device_train_batch_size={size}",
            f"sft.gradient_accumulation_steps={steps}",
            "sft.max_steps=1",
            "sft.optim=sgd",
            "sft.learning_rate=0.5",
            "sft.warmup_steps=0",
            "sft.save_strategy=no",
            "sft.train_sampling_strategy=sequential",
        )
        trainer = trainer_of(cfg, data, tmp_path / str(size))
        wake_adapter(trainer.model)
        before = trained_weights(trainer.model)
        trainer.train()
        weights.append(trained_weights(trainer.model))
    moved = sum((value - before[name]).abs().max() > 1e-4 for name, value in weights[0].items())
    assert moved > len(before) / 2
    assert all(
        torch.allclose(value, weights[1][name], atol=1e-6) for name, value in weights[0].items()
    )


@pytest.mark.filterwarnings("ignore:.label_smoothing_factor. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "override", ["sft.loss_type=nll", "sft.loss_type=dft", "+sft.label_smoothing_factor=0.1"]
)
def test_every_loss_equals_trls_own(
    override: str, data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    from trl import SFTTrainer

    trainer = trainer_of(tiny(tiny_model, override), data, tmp_path)
    trainer.model.train()
    batch = batch_of(data, 0, 1)
    ours = trainer.compute_loss(trainer.model, dict(batch))
    theirs = SFTTrainer.compute_loss(
        trainer,
        trainer.model,
        dict(batch),
        num_items_in_batch=(batch["labels"][:, 1:] != -100).sum(),
    )
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_the_auxiliary_loss_of_experts_is_a_mean_over_the_batches_of_a_step(
    data: PreparedData, tmp_path: Path
) -> None:
    """Four batches of one row; the logged loss is that of the whole step."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    folder = tmp_path / "tiny-mixtral"
    config = MixtralConfig(
        vocab_size=len(data.tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    model = MixtralForCausalLM(config)
    model.save_pretrained(folder)
    data.tokenizer.save_pretrained(folder)
    rows = few(data, 4)
    auxiliary = [
        model(input_ids=torch.tensor([ids]), output_router_logits=True).aux_loss.item()
        for ids in rows.train["input_ids"]
    ]
    assert max(auxiliary) - min(auxiliary) > 1e-3
    cfg = tiny(
        folder,
        "lora=none",
        "+sft.router_aux_loss_coef=0.5",
        "sft.per_device_train_batch_size=1",
        "sft.gradient_accumulation_steps=4",
        "sft.max_steps=1",
        "sft.logging_steps=1",
        "sft.save_strategy=no",
    )
    trainer = trainer_of(cfg, rows, tmp_path / "run")
    trainer.train()
    expected = mean_loss(model, rows.train) + 0.5 * sum(auxiliary) / 4
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_a_trained_token_gives_a_finite_zero(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(tiny(tiny_model), data, tmp_path)
    batch = batch_of(data, 0)
    batch["labels"][:] = -100
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.item() == 0.0


def test_a_batch_adds_its_tokens_and_its_losses_to_the_counts(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    """The first trained token of each row is what the model says, so that it is right somewhere."""
    trainer = trainer_of(tiny(tiny_model), data, tmp_path)
    rows, trained = [dict(data.train[0]), dict(data.train[1])], 0
    for row in rows:
        with torch.no_grad():
            likeliest = trainer.model(torch.tensor([row["input_ids"]])).logits[0].argmax(-1)
        first = next(at for at, label in enumerate(row["labels"]) if label != -100)
        row["labels"] = [*row["labels"]]
        row["labels"][first] = int(likeliest[first - 1])
        hits = [a == b for a, b in zip(likeliest[:-1].tolist(), row["labels"][1:], strict=True)]
        assert sum(hits) == 1
        trained += sum(label != -100 for label in row["labels"])
    trainer.compute_loss(trainer.model, data.collate(rows))
    counter = trainer.counter
    counter.on_step_end(None, None, None)
    assert counter.rows == 2
    assert counter.tokens == sum(len(row["input_ids"]) for row in rows)
    assert counter.trained_tokens == trained < counter.tokens
    assert counter.loss_sum == pytest.approx(trained * mean_loss(trainer.model, rows), rel=1e-5)
    assert counter.right == 2
    logs = {"loss": 1.0}
    trainer.log(logs)
    assert logs["mean_token_accuracy"] == 2 / trained
    assert logs["num_tokens"] == counter.tokens


@pytest.mark.parametrize("option", ["nf4", "none"])
def test_adapters_are_trained_in_float32_whatever_trl_makes_of_them(
    option: str, data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    """TRL casts those of a 4-bit model to bfloat16, in which small steps round to nothing."""
    cfg = tiny(tiny_model, f"quantization={option}", "lora=default")
    trainer = trainer_of(cfg, few(data, 2), tmp_path)
    trained = {n: p.dtype for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert set(trained.values()) == {torch.float32}
    assert len(trained) == 2 * 2 * 7  # two layers of seven linear ones
    assert all("lora_" in name for name in trained)


# --- checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_lists_the_sha256_of_each_of_its_files_and_replaces_the_one_before(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    cfg = tiny(
        tiny_model,
        "sft.per_device_train_batch_size=2",
        "sft.max_steps=2",
        "sft.save_steps=1",
        "sft.save_total_limit=1",
    )
    trainer_of(cfg, few(data, 4), tmp_path).train()
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-2"]
    files = {path.name: path for path in (tmp_path / "checkpoint-2").iterdir()}
    hashes = json.loads(files.pop("hashes.json").read_text())
    assert hashes == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    }
    assert set(files) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
    }


def test_the_best_checkpoint_is_kept_named_and_loaded(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    """The first step is at learning rate 0, and those after it spoil the model."""
    cfg = tiny(
        tiny_model,
        "lora=none",
        "sft.per_device_train_batch_size=2",
        "sft.max_steps=3",
        "sft.save_steps=1",
        "sft.save_total_limit=1",
        "sft.eval_strategy=steps",
        "+sft.eval_steps=1",
        "+sft.load_best_model_at_end=true",
        "sft.learning_rate=1",
        "sft.lr_scheduler_type=constant_with_warmup",
        "sft.warmup_steps=1",
    )
    trainer = trainer_of(cfg, few(data, 6), tmp_path)
    trainer.train()
    losses = {
        entry["step"]: entry["eval_loss"]
        for entry in trainer.state.log_history
        if "eval_loss" in entry
    }
    assert losses[1] < min(losses[2], losses[3])
    best = tmp_path / "checkpoint-1"
    assert list(tmp_path.glob("*checkpoint*")) == [best]
    saved = json.loads((best / "trainer_state.json").read_text())
    assert saved["best_model_checkpoint"] == trainer.state.best_model_checkpoint == str(best)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[1], rel=1e-6)


def test_a_full_disk_leaves_no_checkpoint_that_looks_whole(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(tiny(tiny_model), data, tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (10_000, before[1])
    )  # the kernel refuses larger files
    try:
        with pytest.raises(Exception, match=r"(?i)file too large|writ"):
            trainer._save_checkpoint(trainer.model, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.glob("*checkpoint*")) == []


def test_sft_values_that_trl_refuses_are_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        build_arguments(
            {"activation_checkpointing": False, "lr_scheduler_type": "zigzag"},
            seed=1,
            folder=tmp_path,
            precision=CPU,
        )
    assert "SFTConfig refuses it" in str(error.value)
    assert "zigzag" in str(error.value)


# --- what we assume of TRL and transformers -------------------------------------------------------


def test_trl_leaves_finished_rows_alone(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(tiny(tiny_model), data, tmp_path)
    assert trainer.train_dataset["input_ids"][:5] == data.train["input_ids"][:5]
    assert trainer.train_dataset["labels"][:5] == data.train["labels"][:5]
    assert len(trainer.train_dataset) == len(data.train)


def test_the_collator_pads_right_with_pad_and_ignores_padding(data: PreparedData) -> None:
    rows = [data.train[0], data.train[1]]
    batch = Collator(data.tokenizer.pad_token_id)(rows)
    short, width = len(rows[0]["input_ids"]), batch["input_ids"].shape[1]
    assert batch["input_ids"][0].tolist() == rows[0]["input_ids"] + [
        data.tokenizer.pad_token_id
    ] * (width - short)
    assert batch["labels"][0].tolist() == rows[0]["labels"] + [-100] * (width - short)
    assert batch["attention_mask"][0].tolist() == [1] * short + [0] * (width - short)


def test_no_telemetry_leaves_the_trainer(
    data: PreparedData, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.trainer import base_trainer

    sent: list[tuple[Any, ...]] = []
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *words, **_: sent.append(words))
    trainer = trainer_of(tiny(tiny_model), few(data, 2), tmp_path)
    assert sent == []
    base_trainer._BaseTrainer._send_telemetry(trainer)  # what TRL does unless it is kept from it
    assert len(sent) == 1
