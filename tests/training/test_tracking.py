"""Real offline Weights & Biases runs, read back from the files that they wrote."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sftpipe
from sftpipe.config.schema import TrackingConfig
from sftpipe.errors import ConfigError
from sftpipe.terminal import quiet
from sftpipe.training.tracking import (
    Tracker,
    WandbTracker,
    check_tracking,
    is_installed,
    track,
    wandb_key_is_set,
)
from support.errors import Pin, places, refused, told

# .wandb files are LevelDB logs: a 7-byte file header, then records that are split into blocks
BLOCK = 32 * 1024


def records(file: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # a header never crosses a block
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)
            parts = b""


Items = dict[str, Any]


def items(records: Any) -> Items:
    """Of a part of a record."""
    return {
        ".".join(getattr(item, "nested_key", ())) or item.key: json.loads(item.value_json)
        for item in records
    }


def offline_run(folder: Path) -> tuple[Items, list[Items], Items, list[Path]]:
    """The one run in a folder: its config, what was logged, its summary, the files of tables."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    (file,) = run.glob("run-*.wandb")
    config: Items = {}
    history: list[Items] = []
    summary: Items = {}
    for record in records(file):
        config |= items(record.run.config.update) | items(record.config.update)
        history += [items(record.history.item)] if record.history.item else []
        summary |= items(record.summary.update)
    return config, history, summary, sorted(run.rglob("*.table.json"))


def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine on which the extra `wandb` was not installed."""
    find_spec = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name == "wandb" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def train_tracked(cli: Any, model: Path, tracker: str) -> None:
    """Train four steps into the folder `run`, mirrored by a tracker."""
    done = cli(
        "train",
        "recipe=yoda",
        "model=custom",
        f"model.name_or_path={model}",
        f"tracking={tracker}",
        "sft.max_steps=4",
        "sft.logging_steps=2",
        "lora.r=4",
        "evaluation.max_new_tokens=4",
        "run=run",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_offline_run_holds_config_losses_and_samples(
    cli: Any, tiny_model: Path, tmp_path: Path
) -> None:
    train_tracked(cli, tiny_model, "wandb")
    config, history, _, (table,) = offline_run(tmp_path / "run")
    assert config["lora"]["r"] == 4
    assert config["recipe"] == "yoda"
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    logged = {entry["_step"]: entry["train/loss"] for entry in history if "train/loss" in entry}
    assert logged == {entry["step"]: entry["loss"] for entry in log if "loss" in entry}
    assert len(logged) == 2
    lines = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    rows = [list(json.loads(line).values()) for line in lines]
    assert json.loads(table.read_text())["data"] == rows


def test_a_tracker_writes_config_logs_samples_and_metrics_to_an_offline_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import wandb

    monkeypatch.setenv("NETRC", str(tmp_path / "nothing"))
    cfg = sftpipe.compose(["recipe=yoda", "tracking=wandb", "lora.r=4"])
    attached: list[Tracker] = []
    trainer: Any = SimpleNamespace(add_callback=attached.append)
    rows = [
        {"phase": "before", "step": 0, "completion": "It is."},
        {"completion": "Is it?", "phase": "after", "step": 2},
    ]
    with quiet(), track(cfg, tmp_path, trainer) as tracker:
        for step, logs in ((1, {"loss": 2.5, "num_tokens": 7}), (2, {"eval_loss": 1.5})):
            tracker.on_log(None, SimpleNamespace(global_step=step), None, logs)
        tracker.finish({"train": {"loss": 2.25}, "steps": 2}, rows)
    wandb.teardown()
    assert attached == [tracker]
    config, history, summary, (table,) = offline_run(tmp_path)
    assert (config["recipe"], config["lora"]["r"]) == ("yoda", 4)
    logged = [{n: v for n, v in entry.items() if "/" in n or n == "_step"} for entry in history]
    assert logged[:2] == [
        {"train/loss": 2.5, "train/num_tokens": 7, "_step": 1},
        {"eval/loss": 1.5, "_step": 2},
    ]
    content = json.loads(table.read_text())
    assert content["columns"] == ["phase", "step", "completion"]
    assert content["data"] == [["before", 0, "It is."], ["after", 2, "Is it?"]]
    assert summary["steps"] == 2
    assert summary.get("train", {}).get("loss", summary.get("train.loss")) == 2.25


@pytest.mark.parametrize(
    ("mode", "key", "asked"),
    [
        ("auto", "", "offline"),
        ("auto", "0" * 40, "online"),
        ("offline", "0" * 40, "offline"),
        ("online", "", "online"),
    ],
)
def test_auto_is_online_where_a_key_is_set(
    mode: str, key: str, asked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What wandb is asked for; the run itself is one that reaches nothing."""
    import wandb

    monkeypatch.setenv("NETRC", str(tmp_path / "nothing"))
    monkeypatch.setenv("WANDB_API_KEY", key)
    words: list[Items] = []
    init = wandb.init

    def disabled(**given: Any) -> Any:
        words.append(given)
        return init(**{**given, "mode": "disabled"})

    monkeypatch.setattr(wandb, "init", disabled)
    cfg = TrackingConfig(project="mill", entity="us", mode=mode, tags=["a"], group="sweep")
    folder = tmp_path / "yoda" / "2026-01-01"
    with quiet():
        WandbTracker(cfg, folder, {"seed": 1}).close()
    (given,) = words
    del given["settings"]
    assert given == {
        "project": "mill",
        "entity": "us",
        "mode": asked,
        "tags": ["a"],
        "group": "sweep",
        "name": "yoda/2026-01-01",
        "dir": str(folder),
        "config": {"seed": 1},
    }


def test_a_key_is_found_in_the_environment_or_netrc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not wandb_key_is_set()
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert wandb_key_is_set()
    monkeypatch.setenv("NETRC", str(tmp_path / "nothing"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_key_is_set()


def test_online_without_a_key_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, golden_error: Pin
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "nothing"))
    error = refused(ConfigError, lambda: check_tracking(TrackingConfig(mode="online")))
    assert places(error) == ["tracking.mode"]
    assert "tracking.mode=offline" in error.problems[0].commands
    golden_error(error)
    check_tracking(TrackingConfig())  # offline, when no key is set


def test_a_run_without_the_package_says_what_to_install_before_it_reads_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, golden_error: Pin
) -> None:
    without_wandb(monkeypatch)
    monkeypatch.chdir(tmp_path)
    overrides = ["dataset=json", "dataset.data_files=missing.jsonl", "tracking=wandb", "run=run"]
    error = refused(ConfigError, lambda: sftpipe.train(sftpipe.compose(overrides)))
    assert told(error) == {"tracking": ("pip install 'sftpipe[wandb]'", "tracking=none")}
    golden_error(error)
    assert not (tmp_path / "run").exists()


def test_a_missing_package_and_a_missing_key_are_named_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_wandb(monkeypatch)
    monkeypatch.setenv("NETRC", str(tmp_path / "nothing"))
    error = refused(ConfigError, lambda: check_tracking(TrackingConfig(mode="online")))
    assert places(error) == ["tracking", "tracking.mode"]


def test_without_tracking_the_package_is_not_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_wandb(monkeypatch)
    check_tracking(None)
    trainer: Any = SimpleNamespace(add_callback=lambda tracker: None)
    with track(sftpipe.compose(["recipe=yoda"]), tmp_path, trainer) as tracker:
        tracker.finish({"steps": 2}, [{"step": 2}])
    assert type(tracker) is Tracker
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_is_closed_however_the_run_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(Tracker, "close", lambda self: closed.append("closed"))
    trainer: Any = SimpleNamespace(add_callback=lambda tracker: None)
    with (
        pytest.raises(ZeroDivisionError),
        track(sftpipe.compose(["recipe=yoda"]), tmp_path, trainer),
    ):
        raise ZeroDivisionError
    assert closed == ["closed"]


def test_a_folder_named_wandb_is_not_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    assert not is_installed("wandb")


# --- other trackers -------------------------------------------------------------------------------


@pytest.mark.slow
def test_tensorboard_holds_the_losses_of_the_run_and_its_samples(
    cli: Any, tiny_model: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_tracked(cli, tiny_model, "tensorboard")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("train/loss")}
    losses = {entry["step"]: entry["loss"] for entry in log if "loss" in entry}
    assert logged == pytest.approx(losses)
    assert "samples/text_summary" in events.Tags()["tensors"]


@pytest.mark.parametrize("name", ["mlflow", "trackio"])
def test_a_tracker_whose_package_is_missing_says_what_to_install(name: str) -> None:
    if is_installed(name):
        pytest.skip(f"{name} is installed here")
    error = refused(ConfigError, lambda: check_tracking(TrackingConfig(type=name)))
    assert told(error) == {"tracking": (f"pip install {name}", "tracking=none")}


def test_a_key_of_another_tracker_is_read_by_nothing() -> None:
    words = ["recipe=yoda", "tracking=tensorboard", "tracking.entity=us"]
    error = refused(ConfigError, lambda: sftpipe.compose(words))
    assert places(error) == ["tracking.entity"]
    assert error.problems[0].allowed == "wandb"
