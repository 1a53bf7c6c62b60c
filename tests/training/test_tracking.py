"""A real offline Weights & Biases run, read back from the file that it wrote."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sftpipe.config.schema import TrackingConfig
from sftpipe.errors import ConfigError
from sftpipe.training.tracking import WandbTracker, wandb_key_is_set

BLOCK = (
    32 * 1024
)  # .wandb files are LevelDB logs: a 7-byte file header, then records cut into blocks


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
        WandbTracker(TrackingConfig(mode="online"), tmp_path, {})
    assert "tracking.mode" in str(error.value)
    assert "wandb login" in str(error.value)
