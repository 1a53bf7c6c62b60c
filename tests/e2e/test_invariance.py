"""What must not change a training does not, through the real command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

# 22 rows: the last step of eight has six
COMMON = (
    *("recipe=yoda", "quantization=none", "model=custom", "evaluation=none"),
    *("dataset.limit=22", "dataset.validation_size=0", "dataset.test_size=0"),
    *("lora.lora_dropout=0", "sft.learning_rate=1e-2", "sft.train_sampling_strategy=sequential"),
    *("sft.logging_steps=1", "sft.save_strategy=no", "sft.num_train_epochs=2"),
)
FIRST = ("sft.per_device_train_batch_size=8",)
ADAPTER = "adapter_model.safetensors"


class Runs:
    """Trainings by their overrides, each made once."""

    def __init__(self, cli: Any, model: Path, folder: Path) -> None:
        self.cli, self.folder = cli, folder
        self.words = [*COMMON, f"model.name_or_path={model}"]

    def of(self, *words: str, name: str = "", **environment: str) -> Path:
        run = self.folder / (name or "_".join(words).replace("=", "-"))
        if not run.is_dir():
            done = self.cli("train", *self.words, *words, f"run={run}", **environment)
            assert done.returncode == 0, done.stderr
        return run


@pytest.fixture
def runs(cli: Any, tiny_model: Path, tmp_path: Path) -> Runs:
    return Runs(cli, tiny_model, tmp_path)


def losses(run: Path) -> list[float]:
    """The loss of each step."""
    entries = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


def apart(run: Path, other: Path) -> float:
    """The distance of two adapters, as a share of the first's length."""
    one, two = load_file(run / ADAPTER), load_file(other / ADAPTER)
    assert one.keys() == two.keys()
    off = torch.stack([(one[name] - two[name]).square().sum() for name in one]).sum()
    return float((off / torch.stack([one[name].square().sum() for name in one]).sum()).sqrt())


def test_what_makes_a_step_is_the_same_step_however_it_is_cut(runs: Runs) -> None:
    first = runs.of(*FIRST)
    assert len(losses(first)) == 6
    assert losses(first)[-1] < losses(first)[0]
    for words in (
        ("sft.per_device_train_batch_size=1", "sft.gradient_accumulation_steps=8"),
        ("sft.per_device_train_batch_size=4", "sft.gradient_accumulation_steps=2"),
        (*FIRST, "packing=padding_free"),
        (*FIRST, "model.fast=false"),
        (*FIRST, "model.fast=false", "packing=padding_free"),
    ):
        other = runs.of(*words)
        assert losses(other) == pytest.approx(losses(first), rel=1e-4), words
        assert apart(first, other) < 5e-3, words


def test_packed_rows_have_the_losses_of_padded_ones(runs: Runs) -> None:
    still = ("sft.learning_rate=0", "sft.num_train_epochs=1", *FIRST)
    found = [
        json.loads((runs.of(*still, *words) / "metrics.json").read_text())["train"]
        for words in (
            (),
            ("packing=bfd",),
            ("model.fast=false",),
            ("model.fast=false", "packing=bfd"),
        )
    ]
    assert found[1]["steps"] < found[0]["steps"]
    for one in found:
        assert one["loss"] == pytest.approx(found[0]["loss"], rel=1e-5)


def test_the_cache_and_the_processes_that_encode_change_no_bit(runs: Runs, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    adapters = [
        (runs.of(*FIRST, *words, name=name, SFTPIPE_CACHE=cache) / ADAPTER).read_bytes()
        for name, words in (
            ("uncached", ()),
            ("cached", ()),
            ("two processes", ("dataset.num_proc=2",)),
        )
    ]
    alone = runs.of(*FIRST, "dataset.num_proc=2", name="alone", SFTPIPE_CACHE=f"{cache}-2")
    assert {*adapters, (alone / ADAPTER).read_bytes()} == {adapters[0]}
