"""Run folders that 0.1.0 wrote still load, answer and go on.

tests/fixtures/run_0_1_0 holds, made by 0.1.0 on rows.jsonl: `full`, a complete run from scratch;
`interrupted`, a LoRA run on `full` that was killed after step 18 of 20; and the weights with which
the same run ended where nothing stopped it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sftpipe
from sftpipe.cli import main
from sftpipe.runs.folder import RunFolder

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run_0_1_0"
COMMAND = [
    "train",
    "model=custom",
    "model.name_or_path=full",
    "lora=default",
    "lora.r=2",
    "lora.lora_dropout=0",
    "dataset=json",
    "dataset.data_files=rows.jsonl",
    "dataset.validation_size=2",
    "format=instruction",
    "packing=bfd",
    "sft.max_length=128",
    "sft.per_device_train_batch_size=1",
    "sft.num_train_epochs=4",
    "sft.save_steps=2",
    "sft.save_total_limit=2",
    "evaluation.max_new_tokens=4",
    "evaluation.sample_prompts=['Name.']",
    "sft.use_cpu=true",
    "run=interrupted",
]


@pytest.fixture(autouse=True)
def old_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixture, which is the current folder: the runs name their files from there."""
    folder = tmp_path / "runs"
    shutil.copytree(FIXTURE, folder)
    monkeypatch.chdir(folder)
    return folder


def validation_loss(model: Any, data: sftpipe.PreparedData) -> float:
    """Mean over the trained tokens, with transformers' own loss."""
    batch = data.collate(list(data.validation))
    with torch.inference_mode():
        return float(model(**batch).loss)


def test_a_complete_run_loads_and_answers() -> None:
    run = sftpipe.load_run("full")
    assert run.config.model.init == "random"
    assert run.metrics["train"]["steps"] == 10
    assert run.tokenizer.convert_tokens_to_ids(["[PAD]", "<|im_end|>"]) == [36, 39]

    model, data = run.load_model(), sftpipe.prepare(run.config)
    recorded = run.metrics["validation"]["after"]["loss"]
    assert validation_loss(model, data) == pytest.approx(recorded, rel=1e-5)

    after = RunFolder(run.dir).read_samples()[-1]
    (answer,) = run.generate(after["prompt"], max_new_tokens=4)
    assert answer.text == after["completion"]


def test_an_interrupted_run_goes_on_from_its_checkpoint_to_the_same_weights() -> None:
    folder = RunFolder(Path("interrupted"))
    before = folder.read_log(), folder.read_metrics(), folder.read_samples()

    assert main([*COMMAND, "sft.resume_from_checkpoint=auto"]) == 0

    assert folder.complete.is_file()
    expected = load_file("expected_adapter_model.safetensors")
    weights = load_file("interrupted/adapter_model.safetensors")
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-5)

    log, metrics, samples = folder.read_log(), folder.read_metrics(), folder.read_samples()
    assert log[:4] == before[0]
    (last,) = [entry for entry in log if "loss" in entry and entry["step"] > 18]
    assert (last["step"], last["num_tokens"]) == (20, 1848)
    # the mean of steps 19 and 20: transformers logs the mean since the checkpoint
    assert last["loss"] == pytest.approx(3.6595985889434814, rel=1e-5)
    assert metrics["validation"]["before"] == before[1]["validation"]["before"]
    assert metrics["validation"]["after"]["loss"] == pytest.approx(3.671581268310547, rel=1e-5)
    assert metrics["train"]["loss"] == pytest.approx(3.6286024004220963, rel=1e-5)
    assert samples[:-1] == before[2]
    assert (samples[-1]["phase"], samples[-1]["step"]) == ("after", 20)

    manifests = folder.read_manifest(), folder.attempt(2).read_manifest()
    for key in ("weights", "seed", "data", "tokenizer_sha256"):
        assert manifests[0][key] == manifests[1][key]


def test_an_interrupted_run_is_repeated_to_the_same_weights(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "--from", "interrupted", "run=again"]) == 0

    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("again ")]
    unknown = "threads, CPU, GPU, device, dtype, trained dtype"
    assert f"again     not recorded then, and so not compared: {unknown}" in said
    assert not [line for line in said if " was " in line or "the data" in line or "weights" in line]
    expected = load_file("expected_adapter_model.safetensors")
    weights = load_file("again/adapter_model.safetensors")
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-5)
    manifest = RunFolder(Path("again")).read_manifest()
    assert manifest["repeats"] == {"run": "interrupted", "created": "2026-11-25T07:11:46+00:00"}
    assert manifest["day"] == "2026-11-25"


def test_an_interrupted_run_is_not_gone_on_with_by_another_config(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*COMMAND, "lora.r=4", "sft.resume_from_checkpoint=auto"]
    assert main(words) == 2
    assert (
        "interrupted is a run of another config: lora.r was 2 and is 4" in capsys.readouterr().err
    )
