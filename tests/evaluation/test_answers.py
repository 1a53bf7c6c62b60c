"""Greedy and drawn answers, and answers after each epoch."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sftpipe.config.schema import EvaluationConfig
from sftpipe.data.prepare import PreparedData
from sftpipe.evaluation.answers import generate
from sftpipe.evaluation.losses import sample_answers
from sftpipe.runs.record import samples_until
from sftpipe.training.callbacks import EpochSamples
from support.trainers import tiny, trainer_of

PROMPTS = [[1, 500, 600], [1, 700, 800, 900]]
DRAWN = {"do_sample": True, "temperature": 1.0, "top_k": 50}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


def answers(model: Any, tokenizer: Any, **options: Any) -> list[str]:
    return generate(model, tokenizer, PROMPTS, max_new_tokens=6, **options)


def test_a_seed_draws_the_same_answers_again_and_another_seed_others(
    model: Any, tokenizer: Any
) -> None:
    first, again, other = (answers(model, tokenizer, **DRAWN, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_one_candidate_is_the_most_likely_token(model: Any, tokenizer: Any) -> None:
    assert answers(model, tokenizer, **{**DRAWN, "top_k": 1}) == answers(model, tokenizer)


def test_a_temperature_near_zero_is_the_most_likely_token(model: Any, tokenizer: Any) -> None:
    cold = {**DRAWN, "temperature": 1e-4, "top_k": 0}
    assert answers(model, tokenizer, **cold) == answers(model, tokenizer)


@pytest.mark.parametrize("options", [{}, DRAWN])
def test_the_random_state_stays_as_it_was(
    model: Any, tokenizer: Any, options: dict[str, Any]
) -> None:
    before = torch.get_rng_state()
    answers(model, tokenizer, **options)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_config_says_how_the_answers_of_a_run_are_drawn(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def remember(*_: Any, **options: Any) -> list[str]:
        asked.update(options)
        return []

    monkeypatch.setattr("sftpipe.evaluation.losses.generate", remember)
    args, state = SimpleNamespace(seed=7), SimpleNamespace(global_step=0)
    trainer: Any = SimpleNamespace(model=model, processing_class=tokenizer, args=args, state=state)
    cfg = EvaluationConfig(None, 4, do_sample=True, temperature=0.5, top_k=0)
    assert sample_answers(trainer, [], "before", cfg) == []
    assert asked == {
        "max_new_tokens": 4,
        "do_sample": True,
        "temperature": 0.5,
        "top_k": 0,
        "seed": 7,
    }


def test_answers_after_each_epoch_leave_the_training_as_it_was(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    """64 rows, 8 a step, so 8 steps an epoch; with dropout, and with draws in between."""
    taken: dict[int, int] = {}
    weights = []
    for sampled in (False, True):
        cfg = tiny(tiny_model, "lora.lora_dropout=0.1", "sft.max_steps=20", "sft.save_strategy=no")
        trainer = trainer_of(cfg, data, tmp_path / str(sampled))

        def take(epoch: int, trainer: Any = trainer) -> None:
            taken[epoch] = trainer.state.global_step
            answers(trainer.model, data.tokenizer, **DRAWN, seed=1)

        if sampled:
            trainer.add_callback(EpochSamples(take))
        trainer.train()
        weights.append(
            {n: p.data.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        )
    assert taken == {1: 8, 2: 16}
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("steps", [1, 3, 7, 49, 1_000_003])
def test_an_epoch_ends_with_its_last_step_alone(steps: int) -> None:
    taken: list[int] = []
    callback = EpochSamples(taken.append)
    for epoch in (0, 1, 2, 1000):
        for step in {1, (steps + 1) // 2, steps - 1, steps} - {0}:
            # as transformers computes it
            callback.on_step_end(None, SimpleNamespace(epoch=epoch + step / steps), None)
    assert taken == [1, 2, 3, 1001]


def test_a_resumed_run_keeps_the_samples_up_to_its_checkpoint(tmp_path: Path) -> None:
    rows = [
        {"phase": "before", "step": 0},
        {"phase": "epoch 1", "step": 6},
        {"phase": "epoch 2", "step": 12},
        {"phase": "after", "step": 12},
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step, kept in ((4, 1), (6, 2), (8, 2), (12, 3)):
        assert samples_until(tmp_path / f"checkpoint-{step}") == rows[:kept]
