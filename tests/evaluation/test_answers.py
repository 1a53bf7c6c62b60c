"""Greedy and drawn answers, the prompts of a run, and answers after each epoch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sftpipe.config.schema import EvaluationConfig, FormatConfig
from sftpipe.data.prepare import PreparedData
from sftpipe.errors import ModelError
from sftpipe.evaluation.answers import SamplePrompt, generate, sample_prompts
from sftpipe.evaluation.losses import sample_answers
from sftpipe.runs.record import samples_until
from sftpipe.training.callbacks import EpochSamples
from support.answers import answers_by_hand, ids_by_hand, lively_model
from support.errors import refused, told
from support.trainers import few, tiny, trained_weights, trainer_of

PROMPTS = [[1, 500, 600], [1, 700], [1, 800, 900, 1000, 1100, 1200]]
DRAWN = {"temperature": 1.3, "top_k": 5, "seed": 3}
INSTRUCTION = FormatConfig(type="instruction")


@pytest.fixture(scope="module")
def model() -> Any:
    return lively_model(dropout=0.5)


def test_prompts_of_unequal_length_are_answered_as_each_alone(model: Any, tokenizer: Any) -> None:
    """So padding stands on the left, no token attends it, and nothing is dropped."""
    expected = answers_by_hand(model, tokenizer, PROMPTS, 6)
    assert len(set(expected)) == 3
    model.train()
    for size in (3, 2, 1):
        assert generate(model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=size) == expected
    assert model.training
    assert generate(model.eval(), tokenizer, PROMPTS, max_new_tokens=6) == expected
    assert not model.training


def test_an_answer_ends_with_a_token_that_the_model_names(model: Any, tokenizer: Any) -> None:
    (ids,) = ids_by_hand(model, PROMPTS[:1], 6)
    assert len(set(ids)) == 6
    config, ends = model.generation_config, model.generation_config.eos_token_id
    config.eos_token_id = [2, ids[2]]
    try:
        answers = generate(model, tokenizer, PROMPTS[:1], max_new_tokens=6)
    finally:
        config.eos_token_id = ends
    assert answers == [tokenizer.decode(ids[:3]).strip()]


def test_answers_are_drawn_by_temperature_candidates_and_seed(model: Any, tokenizer: Any) -> None:
    drawn = {"max_new_tokens": 4, "do_sample": True}
    for change in ({}, {"seed": 4}, {"temperature": 0.3}, {"top_k": 2}, {"top_k": 0}):
        options: dict[str, Any] = {**DRAWN, **change}
        expected = answers_by_hand(model, tokenizer, PROMPTS, 4, **options)
        assert generate(model, tokenizer, PROMPTS, **drawn, **options) == expected


@pytest.mark.parametrize("options", [{}, {**DRAWN, "do_sample": True}])
def test_the_random_state_stays_as_it_was(
    model: Any, tokenizer: Any, options: dict[str, Any]
) -> None:
    before = torch.get_rng_state()
    generate(model, tokenizer, PROMPTS, max_new_tokens=2, **options)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_row_of_samples_is_drawn_as_the_config_and_the_seed_of_the_run_say(
    model: Any, tokenizer: Any
) -> None:
    args, state = SimpleNamespace(seed=7), SimpleNamespace(global_step=12)
    trainer: Any = SimpleNamespace(model=model, processing_class=tokenizer, args=args, state=state)
    prompts = [SamplePrompt("a", PROMPTS[0], "b"), SamplePrompt("c", PROMPTS[1], None)]
    cfg = EvaluationConfig(None, 4, do_sample=True, temperature=1.5, top_k=20)
    drawn, colder = (
        answers_by_hand(model, tokenizer, PROMPTS[:2], 4, temperature=by, top_k=20, seed=7)
        for by in (1.5, 1.0)
    )
    assert drawn != colder
    names = ("phase", "step", "prompt", "completion", "reference")
    assert sample_answers(trainer, prompts, "epoch 2", cfg) == [
        dict(zip(names, ("epoch 2", 12, "a", drawn[0], "b"), strict=True)),
        dict(zip(names, ("epoch 2", 12, "c", drawn[1], None), strict=True)),
    ]
    greedy = sample_answers(trainer, prompts, "after", EvaluationConfig(None, 3))
    assert [row["completion"] for row in greedy] == answers_by_hand(
        model, tokenizer, PROMPTS[:2], 3
    )


# --- the prompts of a run -------------------------------------------------------------------------


def room(positions: int) -> Any:
    """The config of a model with so many positions."""
    return SimpleNamespace(model_type="gpt2", max_position_embeddings=positions)


def chat(tokenizer: Any, text: str, system: str = "") -> list[int]:
    """The ids of a chat of one user turn that asks for an answer."""
    turns = [{"role": "system", "content": system}] if system else []
    turns += [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(rendered, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("missing", [(), ("test",), ("test", "validation")])
def test_the_prompts_of_a_run_are_the_first_five_rows_of_test_or_validation_or_train(
    missing: tuple[str, ...], data: PreparedData
) -> None:
    split = ("test", "validation", "train")[len(missing)]
    without: Any = dict.fromkeys(missing)
    prompts = sample_prompts(
        EvaluationConfig(None, 4), INSTRUCTION, replace(data, **without), room(512)
    )
    folder = Path(__file__).parents[2] / "src/sftpipe/data/assets/yoda"
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:5]
    rows = [json.loads(line) for line in lines]
    assert prompts == [
        SamplePrompt(row["prompt"], chat(data.tokenizer, row["prompt"]), row["completion"])
        for row in rows
    ]


def test_prompts_of_the_config_are_asked_as_the_rows_are_and_have_no_reference(
    data: PreparedData,
) -> None:
    cfg = EvaluationConfig(["Where is it?", "No."], 4)
    assert sample_prompts(cfg, INSTRUCTION, data, room(512)) == [
        SamplePrompt(text, chat(data.tokenizer, text), None) for text in ("Where is it?", "No.")
    ]
    brief = FormatConfig(type="instruction", system="Be brief.")
    assert sample_prompts(EvaluationConfig(["No."], 4), brief, data, room(512)) == [
        SamplePrompt("No.", chat(data.tokenizer, "No.", "Be brief."), None)
    ]
    assert sample_prompts(None, INSTRUCTION, data, room(1)) == []


def test_prompts_and_answers_must_fit_the_positions_of_the_model(data: PreparedData) -> None:
    longest = len(chat(data.tokenizer, "Where is it?"))
    cfg = EvaluationConfig(["No.", "Where is it?"], 4)
    assert len(sample_prompts(cfg, INSTRUCTION, data, room(longest + 4))) == 2
    positions = room(longest + 3)
    error = refused(ModelError, lambda: sample_prompts(cfg, INSTRUCTION, data, positions))
    assert told(error) == {"evaluation.max_new_tokens": ("evaluation.max_new_tokens=3",)}
    assert f" {longest + 4} tokens" in error.problems[0].found
    assert f" {longest + 3} positions" in error.problems[0].found


# --- answers while a model is trained -------------------------------------------------------------


def test_answers_after_each_epoch_leave_the_training_as_it_was(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    """8 rows, 4 a step, so 2 steps an epoch; with dropout, and with draws in between."""
    taken: dict[int, int] = {}
    weights = []
    rows = few(data, 8)
    for sampled in (False, True):
        cfg = tiny(
            tiny_model,
            "lora.lora_dropout=0.1",
            "sft.per_device_train_batch_size=4",
            "sft.max_steps=5",
            "sft.save_strategy=no",
        )
        trainer = trainer_of(cfg, rows, tmp_path / str(sampled))

        def take(epoch: int, trainer: Any = trainer) -> None:
            taken[epoch] = trainer.state.global_step
            options = {"max_new_tokens": 2, "do_sample": True}
            generate(trainer.model, data.tokenizer, PROMPTS, **options, seed=1)

        if sampled:
            trainer.add_callback(EpochSamples(take))
            torch.rand(3)  # what was measured before training is no part of it either
        trainer.train()
        weights.append(trained_weights(trainer.model))
    assert taken == {1: 2, 2: 4}
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
