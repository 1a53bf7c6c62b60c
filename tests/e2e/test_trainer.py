"""The loss and its gradients, evaluation, checkpoints, and what we assume of TRL."""

from __future__ import annotations

import json
import math
import resource
from pathlib import Path

import pytest
import torch

from sftpipe.data.packing import Collator
from sftpipe.data.prepare import PreparedData
from sftpipe.errors import ConfigError
from sftpipe.evaluation.losses import split_loss
from sftpipe.storage import is_whole
from sftpipe.training.trainer import SFTPipeTrainer, build_arguments
from support.trainers import CPU, batch_of, tiny, trainer_of, wake_adapter

# --- a tiny model ---------------------------------------------------------------------------------


def test_evaluation_is_a_mean_over_trained_tokens(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(tiny(tiny_model, "sft.per_device_eval_batch_size=3"), data, tmp_path)
    rows = data.validation.select(range(7))
    nll = tokens = 0.0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            logits = trainer.model.eval()(input_ids=ids).logits
        nll += torch.nn.functional.cross_entropy(
            logits[0, :-1], labels[0, 1:], reduction="sum"
        ).item()
        tokens += (labels[:, 1:] != -100).sum().item()
    measured = trainer.evaluate(rows)
    assert measured["eval_loss"] == pytest.approx(nll / tokens, rel=1e-5)
    assert measured["eval_perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-4)


def test_weights_that_an_evaluation_has_just_measured_are_not_measured_again(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    cfg = tiny(
        tiny_model,
        "sft.max_steps=2",
        "sft.eval_strategy=steps",
        "+sft.eval_steps=1",
        "sft.warmup_steps=0",
    )
    trainer = trainer_of(cfg, data, tmp_path)

    def losses() -> list[float]:
        return [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]

    before = split_loss(trainer, data.validation, "validation")["loss"]
    trainer.train()
    first, second = losses()  # training keeps a log of its own
    assert before > first > second
    assert split_loss(trainer, data.validation, "validation")["loss"] == second
    assert losses() == [first, second]
    trainer.args.load_best_model_at_end = True  # the weights may then be those of another step
    split_loss(trainer, data.validation, "validation")
    assert len(losses()) == 3


@pytest.mark.parametrize("option", ["none", "default"])
def test_accumulation_gives_the_same_weights_as_one_large_batch(
    option: str, data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    weights = []
    for size, steps in ((8, 1), (2, 4)):
        cfg = tiny(
            tiny_model,
            f"lora={option}",
            f"sft.per_device_train_batch_size={size}",
            f"sft.gradient_accumulation_steps={steps}",
            "sft.max_steps=2",
            "sft.optim=sgd",
            "sft.learning_rate=0.5",
            "sft.warmup_steps=0",
            "sft.save_strategy=no",
            "sft.train_sampling_strategy=sequential",
        )
        trainer = trainer_of(cfg, data, tmp_path / str(size))
        wake_adapter(trainer.model)
        trainer.train()
        weights.append({n: p.data for n, p in trainer.model.named_parameters() if p.requires_grad})
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
    batch = batch_of(data, 0, 1, 2)
    ours = trainer.compute_loss(trainer.model, dict(batch))
    theirs = SFTTrainer.compute_loss(
        trainer,
        trainer.model,
        dict(batch),
        num_items_in_batch=(batch["labels"][:, 1:] != -100).sum(),
    )
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_the_auxiliary_loss_of_experts_equals_trls_own(data: PreparedData, tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM
    from trl import SFTTrainer

    torch.manual_seed(0)
    folder = tmp_path / "tiny-mixtral"
    config = MixtralConfig(
        vocab_size=len(data.tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        output_router_logits=True,
        router_aux_loss_coef=0.5,
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    data.tokenizer.save_pretrained(folder)
    trainer = trainer_of(
        tiny(folder, "lora=none", "+sft.router_aux_loss_coef=0.5"), data, tmp_path / "run"
    )
    trainer.model.train()
    batch = batch_of(data, 0, 1)
    items = (batch["labels"][:, 1:] != -100).sum()
    trainer.current_gradient_accumulation_steps = 1
    ours = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=items)
    theirs = SFTTrainer.compute_loss(trainer, trainer.model, dict(batch), num_items_in_batch=items)
    assert trainer.aux_loss_enabled
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_batch_without_a_trained_token_gives_a_finite_zero(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(tiny(tiny_model), data, tmp_path)
    batch = batch_of(data, 0)
    batch["labels"][:] = -100
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.item() == 0.0


def test_the_counter_counts_real_and_trained_tokens(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(tiny(tiny_model), data, tmp_path)
    batch = batch_of(data, 0, 1)
    trainer.compute_loss(trainer.model, dict(batch))
    rows = [data.train[0], data.train[1]]
    assert trainer.counter.tokens == sum(len(row["input_ids"]) for row in rows)
    assert trainer.counter.trained_tokens == sum(
        label != -100 for row in rows for label in row["labels"]
    )


def test_a_checkpoint_is_hashed_and_holds_no_pickled_arguments(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(
        tiny(tiny_model, "sft.max_steps=2", "sft.save_steps=1", "sft.save_total_limit=1"),
        data,
        tmp_path,
    )
    trainer.train()
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-2"]
    assert is_whole(tmp_path / "checkpoint-2")
    names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert {
        "adapter_model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "trainer_state.json",
        "hashes.json",
    } <= names
    assert not {"training_args.bin", "README.md", "checkpoint-2"} & names


def test_the_best_checkpoint_is_kept_and_named(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    cfg = tiny(
        tiny_model,
        "sft.max_steps=3",
        "sft.save_steps=1",
        "sft.save_total_limit=1",
        "sft.eval_strategy=steps",
        "+sft.eval_steps=1",
        "+sft.load_best_model_at_end=true",
        "sft.learning_rate=1e-2",
        "sft.warmup_steps=0",
    )
    trainer = trainer_of(cfg, data, tmp_path)
    trainer.train()
    best = tmp_path / f"checkpoint-{trainer.state.best_global_step}"
    assert trainer.state.best_model_checkpoint == str(best)
    assert json.loads((best / "trainer_state.json").read_text())["best_model_checkpoint"] == str(
        best
    )


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


def test_trl_casts_four_bit_adapters_to_bfloat16_unless_undone() -> None:
    import inspect

    from trl import SFTTrainer

    source = inspect.getsource(SFTTrainer.__init__)
    assert "param.data.to(torch.bfloat16)" in source, (
        "TRL no longer casts: Trainer.__init__ need not undo it"
    )


def test_the_collator_pads_right_with_pad_and_ignores_padding(data: PreparedData) -> None:
    rows = [data.train[0], data.train[1]]
    batch = Collator(data.tokenizer.pad_token_id)(rows)
    short, width = len(rows[0]["input_ids"]), batch["input_ids"].shape[1]
    assert batch["input_ids"][0].tolist() == rows[0]["input_ids"] + [
        data.tokenizer.pad_token_id
    ] * (width - short)
    assert batch["labels"][0].tolist() == rows[0]["labels"] + [-100] * (width - short)
    assert batch["attention_mask"][0].tolist() == [1] * short + [0] * (width - short)


def test_no_telemetry_leaves_the_trainer() -> None:
    from trl import SFTTrainer

    assert SFTPipeTrainer._send_telemetry is not SFTTrainer._send_telemetry
