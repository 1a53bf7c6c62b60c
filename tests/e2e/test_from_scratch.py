"""A model from scratch: the recipe `char_gpt_ko`, shortened."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sftpipe
from e2e.char_gpt_quality import best_bigram
from sftpipe.cli import main
from sftpipe.runs.load import Run
from sftpipe.training.order import WindowSampler
from support.trainers import CPU

FILES = {
    "COMPLETE",
    "README.md",
    "config.json",
    "config.yaml",
    "generation_config.json",
    "log.jsonl",
    "loss.png",
    "report.html",
    "manifest.json",
    "metrics.json",
    "model.safetensors",
    "preflight.json",
    "prompts.json",
    "samples.jsonl",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
}
CORPUS = Path(__file__).parents[2] / "src/sftpipe/data/assets/ko_corpus/train.jsonl"


def texts() -> list[str]:
    """The pieces of the story; the last six are for validation."""
    return [json.loads(line)["text"] for line in CORPUS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    short = [
        "recipe=char_gpt_ko",
        "dataset.limit=4",
        "sft.max_steps=3",
        "sft.logging_steps=1",
        "sft.eval_strategy=no",
        "evaluation.max_new_tokens=4",
    ]
    folder = tmp_path_factory.mktemp("char") / "run"
    return sftpipe.train(sftpipe.compose([*short, f"run={folder}"]))


@pytest.fixture(scope="module")
def characters() -> set[str]:
    """Those of the four pieces of each split."""
    return set("".join([*texts()[:4], *texts()[-6:-2]]))


def test_the_run_folder_is_whole_and_says_what_it_is(run: Run, characters: set[str]) -> None:
    assert {path.name for path in run.dir.iterdir()} - {"checkpoint-3"} == FILES
    assert json.loads((run.dir / "manifest.json").read_text())["weights"] == (
        "random gpt2 (seed 42)"
    )
    card = (run.dir / "README.md").read_text()
    assert "Trained from scratch, from `random gpt2 (seed 42)`" in card
    size = json.loads((run.dir / "config.json").read_text())["vocab_size"]
    assert size == len(characters) + 2  # PAD and EOS


def test_it_begins_at_the_loss_of_guessing_and_learns(run: Run, characters: set[str]) -> None:
    losses = run.metrics["validation"]
    assert losses["before"]["loss"] == pytest.approx(math.log(len(characters) + 2), abs=0.2)
    assert losses["after"]["loss"] < losses["before"]["loss"] - 0.2


def test_it_loads_with_transformers_alone_and_gives_the_same_logits(
    run: Run, characters: set[str]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(run.dir)
    tokenizer = AutoTokenizer.from_pretrained(run.dir)
    special = {tokenizer.pad_token, tokenizer.eos_token}
    assert set(tokenizer.get_vocab()) == characters | special
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(characters) + 2))
    text = texts()[0][:40]
    assert run.tokenizer(text).input_ids == tokenizer.convert_tokens_to_ids(list(text))
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    ids = torch.tensor([tokenizer(text).input_ids])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, run.load_model()(ids).logits)


@pytest.mark.slow
def test_answers_that_the_model_has_no_positions_for_are_refused(cli: Any) -> None:
    done = cli("train", "recipe=char_gpt_ko", "evaluation.max_new_tokens=60")
    assert done.returncode == 2
    assert (
        "evaluation.max_new_tokens: 60 makes prompts and answers of 67 tokens, and the model "
        "(gpt2) has 65 positions" in done.stderr
    )
    assert "evaluation.max_new_tokens=58 or less" in done.stderr
    assert "Traceback" not in done.stderr


def test_preview_shows_windows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("recipe=char_gpt_ko", "dataset.limit=2", "preflight.show_rows=2")
    assert main(["preview", *words, "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["text"], second["text"]) == (texts()[0][:65], texts()[0][64:129])
    assert len(set(texts()[0][:65])) == len(set(first["input_ids"]))
    assert second["input_ids"][0] == first["input_ids"][-1]


def test_the_trainer_draws_its_windows_anew_each_epoch(tmp_path: Path) -> None:
    from sftpipe.model.load import random_base
    from sftpipe.model.weights import find_weights
    from sftpipe.training.trainer import build_arguments, build_trainer

    cfg = sftpipe.compose(["recipe=char_gpt_ko", "dataset.limit=3"])
    data = sftpipe.prepare(cfg)
    model = random_base(cfg.model, find_weights(cfg.model, cfg.seed), data.tokenizer, cfg.seed, CPU)
    trainer = build_trainer(
        build_arguments(cfg.sft, seed=7, folder=tmp_path, precision=CPU),
        model,
        None,
        data,
        CPU,
        tmp_path / "log.jsonl",
    )
    loader = trainer.get_train_dataloader()
    epochs = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        epochs.append(torch.cat([batch["input_ids"] for batch in loader]).tolist())
    eos = data.tokenizer.eos_token
    names = [token for text in texts()[:3] for token in (*text, eos)]
    stream = data.tokenizer.convert_tokens_to_ids(names)
    for epoch in (0, 1):
        drawn = np.random.default_rng((7, epoch)).integers(len(stream) - 64, size=len(stream) // 64)
        assert epochs[epoch] == [stream[start : start + 65] for start in drawn]
    assert epochs[0] == epochs[2] != epochs[1]
    assert len(WindowSampler(trainer.train_dataset, 7)) == len(stream) // 64


def test_the_bigram_model_that_the_recipe_must_beat_is_a_good_one() -> None:
    text = [0, 1] * 500
    loss, _ = best_bigram(text, text, 5)
    assert loss < 0.01
    loss, smoothing = best_bigram(text, [0, 2, 0, 2], 3)
    assert 0 < loss < 10
    assert smoothing
