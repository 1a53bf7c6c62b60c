"""`run=FOLDER sft.resume_from_checkpoint=auto`: which config it goes on with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from sftpipe.config.schema import to_plain
from sftpipe.errors import ConfigError
from sftpipe.runs.recorded import recorded_config
from support.configs import compose
from support.errors import places, refused

AUTO = "sft.resume_from_checkpoint=auto"


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unfinished run of another config than the one that no words compose."""
    monkeypatch.chdir(tmp_path)
    folder = Path("mine")
    folder.mkdir()
    cfg = compose(["recipe=yoda", "lora.r=4"])
    (folder / "config.yaml").write_text(yaml.safe_dump(to_plain(cfg), sort_keys=False))
    (folder / "manifest.json").write_text(json.dumps({}))
    return folder


def test_the_folder_and_auto_alone_take_the_config_of_the_run() -> None:
    cfg = recorded_config(["run=mine", AUTO])
    assert cfg == compose(["recipe=yoda", "lora.r=4", "run=mine", AUTO])


def test_values_beside_them_change_it() -> None:
    cfg = recorded_config(["sft.logging_steps=7", "run=mine", AUTO, "evaluation.batch_size=3"])
    assert cfg is not None
    assert (cfg.sft["logging_steps"], cfg.lora["r"]) == (7, 4)
    assert cfg.evaluation is not None
    assert cfg.evaluation.batch_size == 3


@pytest.mark.parametrize(
    "words",
    [
        ["recipe=yoda", "run=mine", AUTO],
        ["run=mine", AUTO, "lora=default"],
        ["run=mine"],
        [AUTO],
        ["run=yours", AUTO],
        ["run=mine", "sft.resume_from_checkpoint=mine"],
    ],
)
def test_options_other_folders_and_other_ways_compose_a_config(words: Sequence[str]) -> None:
    assert recorded_config(words) is None


def test_a_wrong_word_is_refused_as_ever() -> None:
    error = refused(ConfigError, lambda: recorded_config(["run=mine", AUTO, "sft.loging_steps=7"]))
    assert places(error) == ["sft.loging_steps (command line)"]
