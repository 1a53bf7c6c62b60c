"""A real offline Weights & Biases run, read back from the file that it wrote."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sftpipe
from sftpipe.config.schema import TrackingConfig
from sftpipe.errors import ConfigError
from sftpipe.training.tracking import check_tracking, wandb_is_installed, wandb_key_is_set

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


def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine on which the extra `wandb` was not installed."""
    find_spec = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name == "wandb" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)


@pytest.mark.slow
def test_an_offline_run_holds_config_losses_and_samples(
    cli: Any, tiny_model: Path, tmp_path: Path
) -> None:
    done = cli(
        "train",
        "recipe=yoda",
        "model=custom",
        f"model.name_or_path={tiny_model}",
        "tracking=wandb",
        "sft.max_steps=4",
        "sft.logging_steps=2",
        "lora.r=4",
        "evaluation.max_new_tokens=4",
        "run=run",
    )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for record in records(file):
        config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        if record.history.item:
            history.append(
                {
                    ".".join(item.nested_key) or item.key: json.loads(item.value_json)
                    for item in record.history.item
                }
            )
        summary |= {
            ".".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.summary.update
        }
    assert config["lora"]["r"] == 4
    assert config["recipe"] == "yoda"
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    logged = {entry["_step"]: entry["train/loss"] for entry in history if "train/loss" in entry}
    assert logged == {entry["step"]: entry["loss"] for entry in log if "loss" in entry}
    assert len(logged) == 2
    assert any(
        entry.get("samples", {}).get("_type") == "table-file" or "samples._type" in entry
        for entry in history
    )


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
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError) as error:
        check_tracking(TrackingConfig(mode="online"))
    assert str(error.value) == (
        "tracking.mode: online, but no Weights & Biases key is set\n"
        "    wandb login, WANDB_API_KEY, or tracking.mode=offline"
    )
    check_tracking(TrackingConfig())  # offline, when no key is set


def test_a_run_without_the_package_says_what_to_install_before_it_reads_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_wandb(monkeypatch)
    monkeypatch.chdir(tmp_path)
    overrides = ["dataset=json", "dataset.data_files=missing.jsonl", "tracking=wandb", "run=run"]
    with pytest.raises(ConfigError) as error:
        sftpipe.train(sftpipe.compose(overrides))
    assert str(error.value) == (
        "tracking: the package wandb is not installed\n"
        "    pip install 'sftpipe[wandb]', or tracking=none"
    )
    assert error.value.problems[0].commands == ("pip install 'sftpipe[wandb]'", "tracking=none")
    assert not (tmp_path / "run").exists()


def test_a_missing_package_and_a_missing_key_are_named_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_wandb(monkeypatch)
    monkeypatch.setenv("NETRC", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError) as error:
        check_tracking(TrackingConfig(mode="online"))
    assert [problem.where for problem in error.value.problems] == ["tracking", "tracking.mode"]


def test_without_tracking_the_package_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    without_wandb(monkeypatch)
    check_tracking(None)


def test_a_folder_named_wandb_is_not_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    assert not wandb_is_installed()
