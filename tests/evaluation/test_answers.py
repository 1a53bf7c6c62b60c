"""Greedy and drawn answers, the prompts of a run, and answers after each epoch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sftpipe.config.schema import EvaluationConfig
from sftpipe.data.prepare import PreparedData
from sftpipe.errors import ModelError
from sftpipe.evaluation.answers import Answer, Sampling, generate
from sftpipe.evaluation.losses import sample_answers
from sftpipe.evaluation.questions import Question, sample_questions
from sftpipe.runs.record import samples_until
from sftpipe.training.callbacks import EpochSamples
from support.answers import answers_by_hand, ids_by_hand, lively_model
from support.configs import compose
from support.errors import refused, told
from support.trainers import few, tiny, trained_weights, trainer_of

PROMPTS = [[1, 500, 600], [1, 700], [1, 800, 900, 1000, 1100, 1200]]
DRAWN = {"temperature": 1.3, "top_k": 5, "seed": 3}


def answer(model: Any, tokenizer: Any, prompts: Any, tokens: int, **options: Any) -> list[Answer]:
    """The answers in the order of the prompts."""
    size, seed = options.pop("batch_size", 16), options.pop("seed", 0)
    sampling = Sampling(tokens, seed, options)
    found = dict(generate(model, tokenizer, prompts, sampling, batch_size=size))
    return [found[at] for at in range(len(prompts))]


def texts(model: Any, tokenizer: Any, prompts: Any, tokens: int, **options: Any) -> list[str]:
    """What `answer` says."""
    return [one.text for one in answer(model, tokenizer, prompts, tokens, **options)]


@pytest.fixture(scope="module")
def model() -> Any:
    return lively_model(dropout=0.5)


def test_prompts_of_unequal_length_are_answered_as_each_alone(model: Any, tokenizer: Any) -> None:
    """So padding stands on the left, no token attends it, and nothing is dropped."""
    expected = answers_by_hand(model, tokenizer, PROMPTS, 6)
    assert len(set(expected)) == 3
    model.train()
    for size in (3, 2, 1):
        assert texts(model, tokenizer, PROMPTS, 6, batch_size=size) == expected
    assert model.training
    assert texts(model.eval(), tokenizer, PROMPTS, 6) == expected
    assert not model.training


def test_an_answer_ends_with_a_token_that_the_model_names(model: Any, tokenizer: Any) -> None:
    (ids,) = ids_by_hand(model, PROMPTS[:1], 6)
    assert len(set(ids)) == 6
    config, ends = model.generation_config, model.generation_config.eos_token_id
    config.eos_token_id = [2, ids[2]]
    try:
        answers = answer(model, tokenizer, PROMPTS[:1], 6)
    finally:
        config.eos_token_id = ends
    assert answers == [Answer(tokenizer.decode(ids[:3]).strip(), ids[:3], stopped=True)]
    assert not answer(model, tokenizer, PROMPTS[:1], 6)[0].stopped


def test_answers_are_drawn_by_temperature_candidates_and_seed(model: Any, tokenizer: Any) -> None:
    for change in ({}, {"seed": 4}, {"temperature": 0.3}, {"top_k": 2}, {"top_k": 0}):
        options: dict[str, Any] = {**DRAWN, **change}
        # the longest prompt is the first row of its batch
        order = [PROMPTS[at] for at in (2, 0, 1)]
        expected = answers_by_hand(model, tokenizer, order, 4, **options)
        assert texts(model, tokenizer, order, 4, do_sample=True, **options) == expected


@pytest.mark.parametrize("options", [{}, {**DRAWN, "do_sample": True}])
def test_the_random_state_stays_as_it_was(
    model: Any, tokenizer: Any, options: dict[str, Any]
) -> None:
    before = torch.get_rng_state()
    answer(model, tokenizer, PROMPTS, 2, **options)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_row_of_samples_is_drawn_as_the_config_and_the_seed_of_the_run_say(
    model: Any, tokenizer: Any
) -> None:
    args, state = SimpleNamespace(seed=7), SimpleNamespace(global_step=12)
    trainer: Any = SimpleNamespace(model=model, processing_class=tokenizer, args=args, state=state)
    prompts = [Question("a", PROMPTS[0], "b"), Question("c", PROMPTS[1], None)]
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


def asked(
    evaluation: EvaluationConfig | None, data: PreparedData, positions: int = 512, system: str = ""
) -> list[Question]:
    """The prompts of a run of the recipe `yoda`, but for where they come from."""
    cfg = compose(["recipe=yoda"])
    cfg.evaluation, cfg.format = evaluation, replace(cfg.format, system=system or None)
    return sample_questions(cfg, data, room(positions))


@pytest.mark.parametrize("missing", [(), ("test",), ("test", "validation")])
def test_the_prompts_of_a_run_are_the_first_five_rows_of_test_or_validation_or_train(
    missing: tuple[str, ...], data: PreparedData
) -> None:
    split = ("test", "validation", "train")[len(missing)]
    without: Any = dict.fromkeys(missing)
    prompts = asked(EvaluationConfig(None, 4), replace(data, **without))
    folder = Path(__file__).parents[2] / "src/sftpipe/data/assets/yoda"
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:5]
    rows = [json.loads(line) for line in lines]
    assert [(one.text, one.input_ids, one.reference, one.where) for one in prompts] == [
        (row["prompt"], chat(data.tokenizer, row["prompt"]), row["completion"], f"{split}[{at}]")
        for at, row in enumerate(rows)
    ]


def test_prompts_of_the_config_are_asked_as_the_rows_are_and_have_no_reference(
    data: PreparedData,
) -> None:
    place = "evaluation.sample_prompts"
    texts = ["Where is it?", "No."]
    assert asked(EvaluationConfig(texts, 4), data) == [
        Question(text, chat(data.tokenizer, text), where=place) for text in texts
    ]
    assert asked(EvaluationConfig(["No."], 4), data, system="Be brief.") == [
        Question("No.", chat(data.tokenizer, "No.", "Be brief."), where=place)
    ]
    assert asked(None, data, 1) == []


def test_prompts_and_answers_must_fit_the_positions_of_the_model(data: PreparedData) -> None:
    longest = len(chat(data.tokenizer, "Where is it?"))
    cfg = EvaluationConfig(["No.", "Where is it?"], 4)
    assert len(asked(cfg, data, longest + 4)) == 2
    error = refused(ModelError, lambda: asked(cfg, data, longest + 3))
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
            answer(trainer.model, data.tokenizer, PROMPTS, 2, do_sample=True, seed=1)

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
