"""Greedy and drawn answers, and answers behind each epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sftpipe.config.schema import EvaluationConfig
from sftpipe.data.prepare import PreparedData
from sftpipe.evaluation.answers import Sampling, generate
from sftpipe.runs.record import samples_until
from sftpipe.training.callbacks import EpochSamples
from support.trainers import tiny, trainer_of

PROMPTS = [[1, 500, 600], [1, 700, 800, 900]]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


def answers(model: Any, tokenizer: Any, sampling: Sampling | None) -> list[str]:
    return generate(model, tokenizer, PROMPTS, max_new_tokens=6, sampling=sampling)


def test_a_seed_draws_the_same_answers_again_and_another_seed_others(
    model: Any, tokenizer: Any
) -> None:
    first, again, other = (answers(model, tokenizer, Sampling(1.0, 50, seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_one_candidate_is_the_most_likely_token(model: Any, tokenizer: Any) -> None:
    assert answers(model, tokenizer, Sampling(1.0, 1, 1)) == answers(model, tokenizer, None)


def test_a_temperature_near_zero_is_the_most_likely_token(model: Any, tokenizer: Any) -> None:
    assert answers(model, tokenizer, Sampling(1e-4, 0, 1)) == answers(model, tokenizer, None)


@pytest.mark.parametrize("sampling", [None, Sampling(1.0, 50, 1)])
def test_the_random_state_stays_as_it_was(
    model: Any, tokenizer: Any, sampling: Sampling | None
) -> None:
    before = torch.get_rng_state()
    answers(model, tokenizer, sampling)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_config_says_how_tokens_are_drawn() -> None:
    assert Sampling.of(EvaluationConfig(None, 4), seed=7) is None
    assert Sampling.of(
        EvaluationConfig(None, 4, do_sample=True, temperature=0.5, top_k=0), seed=7
    ) == Sampling(0.5, 0, 7)


def test_answers_behind_each_epoch_leave_the_training_as_it_was(
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
            answers(trainer.model, data.tokenizer, Sampling(1.0, 50, 1))

        if sampled:
            trainer.add_callback(EpochSamples(take))
        trainer.train()
        weights.append(
            {n: p.data.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        )
    assert taken == {1: 8, 2: 16}
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


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
