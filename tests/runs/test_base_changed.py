"""A base whose bytes are other than in training is never answered with, nor trained on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import sftpipe
from sftpipe.cli import main
from sftpipe.errors import RunError
from sftpipe.model.weights import find_weights
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.load import load_run
from support.configs import compose
from support.errors import Pin, places, refused


@dataclass(frozen=True)
class Changed:
    """A run, and what its base was and is."""

    folder: Path
    base: Path
    before: str
    after: str


@pytest.fixture
def changed(lively_run: Path, lively_base: Path, tmp_path: Path) -> Changed:
    """A run whose base has lost one bit of its last weight."""
    folder = Path(shutil.copytree(lively_run, tmp_path / "run"))
    base = Path(shutil.copytree(lively_base, tmp_path / "lively"))
    config = folder / "config.yaml"
    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    tree["model"]["name_or_path"] = str(base)
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    before = find_weights(load_run(folder).config.model).identity
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    return Changed(folder, base, before, find_weights(load_run(folder).config.model).identity)


def test_a_base_that_has_changed_by_a_bit_is_not_loaded(
    changed: Changed, golden_error: Pin
) -> None:
    assert changed.before == RunFolder(changed.folder).read_manifest()["weights"] != changed.after
    error = refused(RunError, load_run(changed.folder).load_model)
    assert places(error) == [str(changed.folder)]
    text = str(error).replace(changed.before.split(":")[1], "BEFORE")
    golden_error(text.replace(changed.after.split(":")[1], "AFTER"))


@pytest.mark.parametrize("words", [["generate", "generate.prompt=Hi"], ["evaluate"]])
def test_no_verb_answers_with_a_base_that_has_changed(
    words: list[str], changed: Changed, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("responses.json", "responses_base.json", "evaluation.json"):
        (changed.folder / name).unlink(missing_ok=True)
    assert main([words[0], f"run={changed.folder}", *words[1:]]) == 2
    said = "".join(capsys.readouterr()).replace("\n", "")
    assert changed.before in said
    assert changed.after in said


def test_a_run_is_not_resumed_on_a_base_that_has_changed(changed: Changed) -> None:
    RunFolder(changed.folder).complete.unlink()
    words = [
        "recipe=yoda",
        "quantization=none",
        "model=custom",
        f"model.name_or_path={changed.base}",
        "dataset.limit=12",
        "sft.per_device_train_batch_size=12",
        "sft.num_train_epochs=3",
        "sft.learning_rate=3e-2",
        "evaluation.max_new_tokens=4",
        f"run={changed.folder}",
        "sft.resume_from_checkpoint=auto",
    ]
    error = refused(RunError, lambda: sftpipe.train(compose(words)))
    assert changed.before in str(error)
    assert changed.after in str(error)
    assert not (changed.folder / "attempts" / "2" / "manifest.json").exists()
