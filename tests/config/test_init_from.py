"""`lora.init_from`: which folders it takes, and the keys that come with an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sftpipe.config.hydra import from_recorded
from sftpipe.config.init_from import find_adapter
from sftpipe.config.schema import TrainConfig, to_plain
from sftpipe.errors import ConfigError
from support import configs
from support.errors import Pin, named, places, refused, told

LORA = ("model=custom", "model.name_or_path=x", "lora=default")


def compose(words: list[str]) -> TrainConfig:
    return configs.compose([*LORA, *words])


def config_error(*words: str) -> ConfigError:
    return configs.config_error(*LORA, *words)


SAVED = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "base sha256:1",
    "inference_mode": True,
    "init_lora_weights": "gaussian",
    "r": 4,
    "lora_alpha": 12,
    "lora_dropout": 0.2,
    "bias": "none",
    "target_modules": ["v_proj", "q_proj"],
    "use_rslora": True,
    "use_dora": False,
    "megatron_core": "megatron.core",
    "rank_pattern": {},
    "modules_to_save": None,
}


def saved(folder: Path, **fields: Any) -> Path:
    """The files of an adapter, without numbers."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**SAVED, **fields}))
    (folder / "adapter_model.safetensors").write_bytes(b"numbers")
    return folder


def finished(folder: Path, **lora: Any) -> Path:
    """The files of a run that trained the adapter, as far as they are read."""
    (folder / "manifest.json").write_text('{"weights": "base sha256:1"}')
    (folder / "config.yaml").write_text(yaml.safe_dump({"lora": lora}))
    (folder / "COMPLETE").touch()
    return folder


def test_an_adapter_brings_its_config_and_the_options_file_gives_way(tmp_path: Path) -> None:
    lora = compose([f"lora.init_from={saved(tmp_path)}"]).lora
    assert lora == {
        "init_from": str(tmp_path),
        "r": 4,
        "lora_alpha": 12,
        "lora_dropout": 0.2,
        "target_modules": ["v_proj", "q_proj"],
        "use_rslora": True,
    }


def test_the_dropout_may_be_another_and_chosen_keys_may_be_those_of_the_adapter(
    tmp_path: Path,
) -> None:
    words = [f"lora.init_from={saved(tmp_path)}", "lora.lora_dropout=0.5", "lora.r=4"]
    lora = compose([*words, "lora.target_modules=[q_proj,v_proj]"]).lora
    assert (lora["lora_dropout"], lora["r"], lora["lora_alpha"]) == (0.5, 4, 12)


def test_keys_as_its_run_was_asked_for_them_are_taken(tmp_path: Path) -> None:
    """PiSSA is saved as plain LoRA of twice the rank, and all-linear as names of modules."""
    run = finished(
        saved(tmp_path, r=32, lora_alpha=64, init_lora_weights=True, use_rslora=False),
        r=16,
        init_lora_weights="pissa",
        target_modules="all-linear",
    )
    words = ["lora.r=16", "lora.init_lora_weights=pissa", "lora.target_modules=all-linear"]
    lora = compose([f"lora.init_from={run}", *words]).lora
    assert lora.items() >= {"r": 32, "lora_alpha": 64, "target_modules": "all-linear"}.items()
    assert "init_lora_weights" not in lora
    error = config_error(f"lora.init_from={run}", "lora.target_modules=[q_proj]")
    assert told(error) == {
        "lora.target_modules (command line)": ("\"lora.target_modules='all-linear'\"",)
    }


def test_of_ways_to_begin_the_one_that_decides_what_is_trained_is_kept(tmp_path: Path) -> None:
    lora = compose([f"lora.init_from={saved(tmp_path, init_lora_weights='mica')}"]).lora
    assert lora["init_lora_weights"] == "mica"


def test_a_chosen_key_that_differs_names_both_values(tmp_path: Path, golden_error: Pin) -> None:
    words = ["lora=dora", "lora.r=8", "lora.target_modules=[q_proj]"]
    error = config_error(f"lora.init_from={saved(tmp_path)}", *words)
    assert told(error) == {
        "lora.r (command line)": ("lora.r=4",),
        "lora.target_modules (command line)": ('"lora.target_modules=[v_proj,q_proj]"',),
        "lora.use_dora (conf/lora/dora.yaml)": ("lora.use_dora=false",),
    }
    golden_error(error)


def _unfinished(folder: Path) -> None:
    (folder / "COMPLETE").unlink()


def _whole_model(folder: Path) -> None:
    (folder / "adapter_config.json").rename(folder / "config.json")


def _no_numbers(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def _damaged(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def _other_kind(folder: Path) -> None:
    saved(folder, peft_type="IA3")


def _residual(folder: Path) -> None:
    saved(folder, init_lora_weights="pissa_niter_4")


def _routed(folder: Path) -> None:
    saved(folder, arrow_config={"top_k": 2})


def _newer(folder: Path) -> None:
    saved(folder, use_tomorrow=True, peft_version="9.0")


@pytest.mark.parametrize(
    "spoil",
    named(
        (one.__name__.strip("_"), one)
        for one in (
            _unfinished,
            _whole_model,
            _no_numbers,
            _damaged,
            _other_kind,
            _residual,
            _routed,
            _newer,
        )
    ),
)
def test_a_folder_without_an_adapter_that_can_go_on_is_refused(
    spoil: Any, tmp_path: Path, golden_error: Pin
) -> None:
    folder = finished(saved(tmp_path / "run"))
    spoil(folder)
    error = config_error(f"lora.init_from={folder}")
    assert places(error) == ["lora.init_from (command line)"]
    golden_error(error)


def test_a_folder_that_is_not_there_is_refused(golden_error: Pin) -> None:
    error = config_error("lora.init_from=nowhere/at-all")
    assert places(error) == ["lora.init_from (command line)"]
    golden_error(error)


def test_paths_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ('"~/mine"', "mine", "./mine"):
        assert compose([f"lora.init_from={path}"]).lora["init_from"] == str(folder)


def test_a_recorded_config_is_read_where_the_adapter_is_gone(tmp_path: Path) -> None:
    cfg = compose([f"lora.init_from={saved(tmp_path)}"])
    (tmp_path / "adapter_config.json").unlink()
    assert from_recorded(to_plain(cfg), "config.yaml") == cfg


def test_an_adapter_is_known_by_the_bytes_of_its_numbers(tmp_path: Path) -> None:
    before = find_adapter(saved(tmp_path)).sha256
    (tmp_path / "adapter_model.safetensors").write_bytes(b"Numbers")
    assert find_adapter(tmp_path).sha256 != before
    assert places(refused(ConfigError, lambda: find_adapter(tmp_path / "no"))) == ["lora.init_from"]
