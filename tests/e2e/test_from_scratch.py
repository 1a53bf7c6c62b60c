"""A model from scratch through the real command line: the recipe `char_gpt_ko`, shortened."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sftpipe
from e2e.char_gpt_quality import best_bigram
from sftpipe.training.trainer import SFTPipeTrainer, WindowSampler
from support.trainers import CPU

FILES = {
    ".hydra",
    "COMPLETE",
    "README.md",
    "config.json",
    "config.yaml",
    "generation_config.json",
    "log.jsonl",
    "loss.png",
    "manifest.json",
    "metrics.json",
    "model.safetensors",
    "preflight.json",
    "samples.jsonl",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
}
SHORT = (
    "recipe=char_gpt_ko",
    "sft.max_steps=3",
    "sft.logging_steps=1",
    "sft.eval_strategy=no",
    "evaluation.max_new_tokens=4",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("char")
    words = [sys.executable, "-m", "sftpipe", "train", *SHORT, "run=run", "--json"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "random gpt2 (seed 42)" in done.stderr
    return folder / "run"


def test_the_run_folder_is_whole_and_says_what_it_is(run: Path) -> None:
    assert {path.name for path in run.iterdir()} - {"checkpoint-3"} == FILES
    assert json.loads((run / "manifest.json").read_text())["weights"] == "random gpt2 (seed 42)"
    assert "Trained from scratch, from `random gpt2 (seed 42)`" in (run / "README.md").read_text()
    assert json.loads((run / "config.json").read_text())["vocab_size"] == 885


def test_it_begins_at_the_loss_of_guessing_and_learns(run: Path) -> None:
    losses = json.loads((run / "metrics.json").read_text())["validation"]
    assert losses["before"]["loss"] == pytest.approx(math.log(885), abs=0.2)
    assert losses["after"]["loss"] < losses["before"]["loss"] - 0.2


def test_it_loads_with_transformers_alone_and_gives_the_same_logits(run: Path) -> None:
    ours = sftpipe.load_run(run)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    text = "할머니는 두부를 만든다.\n"
    assert tokenizer(text).input_ids == ours.tokenizer(text).input_ids
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    ids = torch.tensor([tokenizer(text).input_ids])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, ours.load_model()(ids).logits)
    assert sftpipe.prepare(ours.config).tokenizer.get_vocab() == tokenizer.get_vocab()


@pytest.mark.slow
def test_answers_that_the_model_has_no_positions_for_are_refused(cli: Any) -> None:
    done = cli("train", *SHORT, "evaluation.max_new_tokens=60")
    assert done.returncode == 2
    assert (
        "evaluation.max_new_tokens: 60 makes prompts and answers of 67 tokens, and the model "
        "(gpt2) has 65 positions" in done.stderr
    )
    assert "evaluation.max_new_tokens=58 or less" in done.stderr
    assert "Traceback" not in done.stderr


def test_preview_shows_windows(cli: Any) -> None:
    done = cli("preview", "recipe=char_gpt_ko", "preflight.show_rows=2", "--json")
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first["text"].startswith("버들골은 산과 개울 사이에 있는 작은 마을이다.")
    assert len(first["input_ids"]) == 65
    assert second["input_ids"][0] == first["input_ids"][-1]


def test_the_trainer_draws_its_windows_anew_each_epoch(tmp_path: Path) -> None:
    from sftpipe.model.load import random_base
    from sftpipe.model.weights import find_weights
    from sftpipe.training.trainer import build_arguments, build_trainer

    cfg = sftpipe.compose(["recipe=char_gpt_ko", "dataset.limit=3"])
    data = sftpipe.prepare(cfg)
    model = random_base(cfg.model, find_weights(cfg.model, cfg.seed), data.tokenizer, cfg.seed, CPU)
    trainer: SFTPipeTrainer = build_trainer(
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
    windows = trainer.train_dataset
    assert epochs[0] == [windows[start]["input_ids"] for start in windows.starts(7, 0)]
    assert epochs[1] == [windows[start]["input_ids"] for start in windows.starts(7, 1)] != epochs[0]
    assert len(WindowSampler(windows, 7)) == len(windows) == len(epochs[0])


def test_the_bigram_model_that_the_recipe_must_beat_is_a_good_one() -> None:
    text = [0, 1] * 500
    loss, _ = best_bigram(text, text, 5)
    assert loss < 0.01
    loss, smoothing = best_bigram(text, [0, 2, 0, 2], 3)
    assert 0 < loss < 10
    assert smoothing
