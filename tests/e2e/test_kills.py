"""Runs that are killed anywhere, and resumed, end in the bits of the run that nothing stopped.

Seven configs, each killed nine times at random and at least four times right before an event that
matters: 91 kills in about five minutes. docs/reliability.md has what they have shown.
"""

from __future__ import annotations

import random
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from support.kills import Aim, Ended, Runs, outcome
from support.sources import write_rows
from support.tokenizers import config_of, write_kind

pytestmark = pytest.mark.slow

RANDOM = 9  # kills of each config
AUTO = "sft.resume_from_checkpoint=auto"
CHECKPOINT = ".checkpoint-<n>.partial"
# before each config of a run is written, and while its cache is built
FIRST = ("os.rename .hydra/config.yaml", "os.rename config.yaml", "os.rename manifest.json")
LAST = ("os.rename README.md", "os.rename COMPLETE")

WAYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": (
        ("sft.train_sampling_strategy=random",),
        (
            "open .config.yaml.partial",
            *FIRST,
            "os.rename downloads/<hash>",
            "os.rename rows/<hash>",
            "os.rename encoded/<hash>",
            "os.rename checkpoint-<n>",
        ),
    ),
    "packed": (
        (
            "packing=bfd",
            "sft.max_length=160",
            "lora.lora_dropout=0.1",
            "sft.gradient_accumulation_steps=2",
            "sft.eval_strategy=steps",
            "+sft.eval_steps=3",
        ),
        (
            "os.rename packed/<hash>",
            "open log.jsonl",
            f"os.rename {CHECKPOINT}/optimizer.pt",
            "os.rename metrics.json",
        ),
    ),
    "blocks": (
        (
            "packing=blocks",
            "packing.block_size=32",
            "loss=full",
            "format=text",
            "sft.train_sampling_strategy=random",
        ),
        (
            f"os.mkdir {CHECKPOINT}",
            f"os.rename {CHECKPOINT}/hashes.json",
            "os.rename samples.jsonl",
            *LAST,
        ),
    ),
    "by length": (
        (
            "sft.train_sampling_strategy=group_by_length",
            "sft.eval_strategy=epoch",
            "evaluation.sample_strategy=epoch",
            "evaluation.do_sample=true",
        ),
        (
            f"os.rename {CHECKPOINT}/trainer_state.json",
            "os.rename checkpoint-<n>",
            "os.rename samples.jsonl",
            "os.rename loss.png",
        ),
    ),
    "best": (
        (
            "sft.eval_strategy=steps",
            "+sft.eval_steps=2",
            "+sft.load_best_model_at_end=true",
            "sft.learning_rate=0.3",
        ),
        (
            "shutil.rmtree checkpoint-<n>",
            "os.rmdir checkpoint-<n>",
            "os.rename adapter_model.safetensors",
            "os.rename trainer_state.json",
        ),
    ),
    "constant": (
        ("sft.lr_scheduler_type=constant", "sft.warmup_steps=0", "sft.max_steps=9"),
        (
            "os.rename adapter_config.json",
            "os.rename tokenizer.json",
            "open .COMPLETE.partial",
            *LAST,
        ),
    ),
    "pissa": (
        ("lora.init_lora_weights=pissa_niter_4",),
        (
            "os.rename adapter_model.safetensors",
            f"os.rename {CHECKPOINT}/adapter_model.safetensors",
            "os.rename checkpoint-<n>",
            "os.rename COMPLETE",
        ),
    ),
}


@pytest.fixture(scope="module")
def runs() -> Runs:
    return Runs()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 50,000 weights beside a small tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = write_kind("chatml", tmp_path_factory.mktemp("kills") / "model")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config_of("chatml")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where 40 rows are served, as pairs and as texts."""
    folder = tmp_path_factory.mktemp("served")
    pairs = [(f"What is {n} and {n}?", f"Of {n}, {'two ' * (n % 7)}it is.") for n in range(40)]
    write_rows(
        folder / "rows.jsonl",
        [{"instruction": one, "output": two, "text": f"{one} {two}"} for one, two in pairs],
    )

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/rows.jsonl"
    server.shutdown()
    server.server_close()


def words_of(way: str, model: Path, url: str) -> list[str]:
    """An epoch of 6 steps; entries of the log at 3, 6, ..., checkpoints at 2, 4, ..."""
    return [
        "recipe=yoda",
        "model=custom",
        f"model.name_or_path={model}",
        "quantization=none",
        "dataset=json",
        f"dataset.data_files={url}",
        "dataset.validation_size=8",
        "dataset.test_size=8",
        "evaluation.max_new_tokens=2",
        "sft.per_device_train_batch_size=4",
        "sft.num_train_epochs=2",
        "sft.save_steps=2",
        "sft.logging_steps=3",
        *WAYS[way][0],
        "run=run",
    ]


def differing(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """What is not the same, for a message: pytest would cut whole lists and weights."""

    def shown(name: str) -> Any:
        if name == "weights":
            return "other bytes"
        if name == "files":
            return sorted({*found[name]} ^ {*expected[name]})
        return found[name], expected[name]

    return {name: shown(name) for name in expected if found[name] != expected[name]}


def go_on(runs: Runs, words: list[str], folder: Path, cache: Path, expected: Any) -> str:
    """Resume a killed run to its end; returns what is wrong with it, or ""."""
    ended = runs.train([*words, AUTO], folder, cache=cache)
    if ended.code != 0:
        return f"exit {ended.code}: {ended.said}"
    wrong = differing(outcome(folder / "run"), expected)
    return f"{wrong}" if wrong else ""


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_goes_on_to_the_same_bits(
    way: str, runs: Runs, model: Path, rows_url: str, tmp_path: Path
) -> None:
    words = words_of(way, model, rows_url)
    whole = runs.train(words, tmp_path / "whole", cache=tmp_path / "cache")
    assert whole.code == 0, whole.said
    expected = outcome(tmp_path / "whole" / "run")
    assert expected["complete"]
    wrong = {}
    for number in range(RANDOM):
        folder, cache = tmp_path / f"random-{number}", tmp_path / f"cache-{number}"
        at = killed_at_random(runs, words, folder, cache, whole, random.Random(f"{way}{number}"))
        if what := go_on(runs, words, folder, cache, expected):
            wrong[f"killed after {at}"] = what
    counts = Counter(whole.events)
    for name in WAYS[way][1]:
        assert name in counts, sorted(counts)
        folder = tmp_path / name.replace("/", "_")
        cache = folder.with_name(f"{folder.name}-cache")
        aim = Aim(name, counts[name] // 2)
        killed = runs.train(words, folder, cache=cache, aim=aim)
        assert killed.code == -9, (name, killed.said)
        if what := go_on(runs, words, folder, cache, expected):
            wrong[f"killed before {aim}"] = what
    assert not wrong


def killed_at_random(
    runs: Runs, words: list[str], folder: Path, cache: Path, whole: Ended, rng: random.Random
) -> str:
    """Kill a run once, and every third one again when it is resumed; returns the times."""
    times: list[str] = []
    wanted = 1 + (rng.random() < 1 / 3)
    while len(times) < wanted:
        seconds = rng.uniform(0.05, whole.seconds)
        more = [AUTO] if times else []
        ended = runs.train([*words, *more], folder, cache=cache, seconds=seconds)
        if ended.code == -9:
            times.append(f"{seconds:.2f} s")
        else:  # it was quicker than the whole one
            assert ended.code == 0, ended.said
            if times:
                break
            shutil.rmtree(folder)
            shutil.rmtree(cache)
    return ", ".join(times)
