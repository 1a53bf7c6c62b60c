"""The files that are written before training."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

from sftpipe.config.schema import TrainConfig, to_plain
from sftpipe.data.prepare import PreparedData
from sftpipe.errors import RunError
from sftpipe.model.precision import Precision
from sftpipe.model.weights import Weights
from sftpipe.runs.plan import RunPlan
from sftpipe.runs.write import open_run
from sftpipe.storage import sha256_text
from support.configs import compose
from support.errors import Pin, refused

BASE = Weights("", None, "base==1")
CPU = Precision("cpu", torch.bfloat16, torch.float32, "a CPU")
GPU = Precision("cuda", torch.bfloat16, torch.float32, "a GPU")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cfg() -> TrainConfig:
    return compose(["recipe=yoda", "seed=7", "dataset.limit=64"])


def git(*words: str) -> str:
    user = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *user, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_new_run_writes_its_config_the_report_on_its_data_and_its_manifest(
    cfg: TrainConfig, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "/a/bin/sftpipe", "train", "seed=7"])
    open_run(RunPlan(Path("mine")), cfg, BASE, CPU, data)

    assert {path.name for path in Path("mine").iterdir()} == {
        "config.yaml",
        "preflight.json",
        "prompts.json",
        "manifest.json",
    }
    assert yaml.safe_load(Path("mine/config.yaml").read_text()) == to_plain(cfg)
    preflight = json.loads(Path("mine/preflight.json").read_text())
    assert preflight == json.loads(json.dumps(data.preflight.as_dict()))
    manifest = json.loads(Path("mine/manifest.json").read_text())
    backend, template = data.tokenizer.backend_tokenizer, data.tokenizer.chat_template
    assert manifest.pop("created")[:2] == "20"
    assert (
        manifest.pop("versions").items()
        >= {
            "python": platform.python_version(),
            "torch": version("torch"),
            "trl": version("trl"),
        }.items()
    )
    hardware = manifest.pop("hardware")
    assert set(hardware) == {"machine", "system", "cores", "cpu", "gpu"}
    assert hardware["cpu"].endswith(f", {torch.backends.cpu.get_cpu_capability()}")
    assert manifest == {
        "threads": torch.get_num_threads(),
        "weights": "base==1",
        "device": "a CPU",
        "precision": {"device": "cpu", "compute": "bfloat16", "trained": "float32", "fast": False},
        "day": data.encoder.template.day.isoformat(),
        "seed": 7,
        "data": {
            "sha256": data.sha256,
            "rows": {"train": 64, "validation": 40, "test": 40},
        },
        "tokenizer_sha256": sha256_text(backend.to_str() + template),
        "command": ["sftpipe", "train", "seed=7"],
        "git": None,
    }


def test_a_later_attempt_keeps_what_the_first_one_wrote(
    cfg: TrainConfig, data: PreparedData
) -> None:
    open_run(RunPlan(Path("mine")), cfg, BASE, CPU, data)
    before = {path: path.read_bytes() for path in Path("mine").iterdir()}

    open_run(RunPlan(Path("mine"), attempt=2), cfg, BASE, GPU, data)

    assert {path: path.read_bytes() for path in before} == before
    assert [path.name for path in Path("mine/attempts/2").iterdir()] == ["manifest.json"]
    assert json.loads(Path("mine/attempts/2/manifest.json").read_text())["device"] == "a GPU"


def test_a_later_attempt_on_other_base_weights_is_refused(
    cfg: TrainConfig, data: PreparedData
) -> None:
    open_run(RunPlan(Path("mine")), cfg, BASE, CPU, data)

    with pytest.raises(RunError) as caught:
        open_run(RunPlan(Path("mine"), attempt=2), cfg, Weights("", None, "base==2"), CPU, data)

    assert str(caught.value) == (
        "mine: it began with the weights base==1, and these are base==2\n"
        "    pin model.source and model.revision, or start a new run"
    )
    assert not Path("mine/attempts").exists()


def test_a_later_attempt_in_another_number_of_processes_is_refused(
    cfg: TrainConfig, data: PreparedData, golden_error: Pin
) -> None:
    """Where `distributed.num_processes` is left to the GPUs that are visible."""
    open_run(RunPlan(Path("mine")), cfg, BASE, CPU, data)
    manifest = json.loads(Path("mine/manifest.json").read_text())
    Path("mine/manifest.json").write_text(json.dumps({**manifest, "processes": 4}))

    again = RunPlan(Path("mine"), attempt=2)
    error = refused(RunError, lambda: open_run(again, cfg, BASE, CPU, data))

    golden_error(error)
    assert not Path("mine/attempts").exists()


def test_the_manifest_names_the_commit_and_says_whether_files_were_changed(
    cfg: TrainConfig, data: PreparedData
) -> None:
    found = []
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "one")
    for run in ("mine", "yours"):  # the folder of the first run is a change to the repository
        open_run(RunPlan(Path(run)), cfg, BASE, CPU, data)
        found.append(json.loads(Path(run, "manifest.json").read_text())["git"])

    commit = git("rev-parse", "HEAD")
    assert found[1] == {"commit": commit, "dirty": True}
    git("add", ".")
    git("commit", "--quiet", "--message", "two")
    open_run(RunPlan(Path("mine"), attempt=2), cfg, BASE, CPU, data)
    again = json.loads(Path("mine/attempts/2/manifest.json").read_text())["git"]
    assert again["commit"] == git("rev-parse", "HEAD") != commit
