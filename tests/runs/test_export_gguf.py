"""A run as a GGUF file, in llama.cpp itself: its tokens, its answers, and what is refused."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sftpipe
from sftpipe.config.hydra import compose_requests
from sftpipe.config.schema import ExportConfig
from sftpipe.errors import ConfigError, ExportError
from sftpipe.export import gguf_proof
from sftpipe.runs import export_gguf
from sftpipe.runs.export import export
from sftpipe.runs.load import Run, load_run
from support.configs import compose
from support.errors import Pin, places, refused, told


@pytest.fixture(scope="module")
def small_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run on two layers with the embedded tokenizer."""
    folder = tmp_path_factory.mktemp("gguf") / "Small Run"
    words = ["recipe=yoda", "quantization=none", "model=custom", "dataset.limit=8"]
    words += [f"model.name_or_path={tiny_model}", "sft.max_steps=2", "sft.learning_rate=1e-2"]
    words += ["evaluation.max_new_tokens=4", f"run='{folder}'"]
    sftpipe.train(compose(words))
    return folder


@pytest.fixture
def run(small_run: Path) -> Run:
    return load_run(small_run)


def asked(folder: Path, *words: str) -> ExportConfig:
    return compose_requests(["export=gguf", f"export.output={folder / 'out'}", *words]).export


def test_llama_cpp_reads_the_prompts_as_training_did_and_the_card_says_so(
    run: Run, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    found = export(run, asked(tmp_path))
    folder = tmp_path / "out"
    names = {file.name for file in folder.iterdir()}
    assert names == {"Small-Run-f16.gguf", "Modelfile", "README.md", "export.json", "hashes.json"}
    assert found["llama_cpp"]["prompts"] == 8
    assert found["llama_cpp"]["answers"] == 8
    assert found["readback"]["top1"] >= 0.995
    assert found["readback"]["kl"] <= 1e-3
    card = (folder / "README.md").read_text()
    assert "| token ids of prompts | 8 equal |" in card
    assert "ollama create small-run -f Modelfile" in card
    modelfile = (folder / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./Small-Run-f16.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in modelfile


@pytest.mark.slow
def test_without_llama_cpp_the_card_says_that_ids_are_unproved(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_proof, "PACKAGE", "no_such_package")
    found = export(run, asked(tmp_path, "export.type=q8_0"))
    assert found["llama_cpp"] is None
    assert found["readback"]["limits"] == {"top1": 0.95, "kl": 5e-2}
    assert "unproved" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_other_tokens_in_llama_cpp_leave_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden_error: Pin
) -> None:
    pytest.importorskip("xllamacpp")
    real = export_gguf._asked

    def other(prompt: Any, ids: list[int]) -> gguf_proof.Prompt:
        return real(prompt, [*ids[:-1], 1])

    monkeypatch.setattr(export_gguf, "_asked", other)
    golden_error(refused(ExportError, lambda: export(run, asked(tmp_path))))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_drifts_too_far_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"q8_0": gguf_proof.Limits(1.0, 0.0)}
    monkeypatch.setattr(export_gguf, "LIMITS", limits)
    cfg = asked(tmp_path, "export.type=q8_0")
    error = refused(ExportError, lambda: export(run, cfg))
    assert told(error) == {"export.type": ("export.type=f16",)}
    assert list(tmp_path.iterdir()) == []


def test_a_class_that_llama_cpp_has_not_is_refused_by_name(tiny_opt: Path, tmp_path: Path) -> None:
    words = ["recipe=yoda", "quantization=none", "model=custom", "dataset.limit=8"]
    words += [f"model.name_or_path={tiny_opt}", "sft.max_steps=1", f"run={tmp_path / 'run'}"]
    words += ["evaluation=none"]
    opt = sftpipe.train(compose(words))
    error = refused(ExportError, lambda: export(opt, asked(tmp_path)))
    assert "OPTForCausalLM" in str(error)
    assert "export=merged" in str(error)
    assert {one.name for one in tmp_path.iterdir()} == {"run"}


@pytest.mark.slow
def test_a_model_without_a_chat_has_no_modelfile_and_the_card_says_why(
    tiny_model: Path, tmp_path: Path, rows_file: Callable[..., str]
) -> None:
    file = rows_file([{"text": f"A line of text, number {n}."} for n in range(8)])
    words = ["dataset=json", f"dataset.data_files={file}", "format=text", "loss=full"]
    words += ["model=custom", f"model.name_or_path={tiny_model}", "lora=default"]
    words += ["sft.max_steps=1", "evaluation=none", f"run={tmp_path / 'run'}"]
    text = sftpipe.train(compose(words))
    found = export(text, asked(tmp_path))
    assert "trained on texts" in found["modelfile"]
    assert not (tmp_path / "out" / "Modelfile").exists()
    assert found["modelfile"] in (tmp_path / "out" / "README.md").read_text()


# --- other types ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_other_types_are_made_by_the_users_own_llama_cpp(run: Run, tmp_path: Path) -> None:
    program = tmp_path / "llama.cpp" / "build" / "bin" / "llama-quantize"
    program.parent.mkdir(parents=True)
    # as the real one is called: INPUT OUTPUT TYPE
    program.write_text('#!/bin/sh\ncp "$1" "$2" && echo "$3" > "$(dirname "$0")/type"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    words = ["export.type=q4_k_m", f"export.llama_cpp={tmp_path / 'llama.cpp'}"]
    found = export(run, asked(tmp_path, *words))
    assert (program.parent / "type").read_text() == "Q4_K_M\n"
    assert (found["file"], found["readback"]["limits"]) == ("Small-Run-q4_k_m.gguf", None)
    program.write_text("#!/bin/sh\necho 'invalid ftype' >&2\nexit 1\n")
    other = compose_requests(["export=gguf", f"export.output={tmp_path / 'x'}", *words]).export
    error = refused(ExportError, lambda: export(run, other))
    assert "refused q4_k_m: invalid ftype" in str(error)


def test_a_llama_cpp_that_is_not_there_is_told_how_to_build(
    run: Run, tmp_path: Path, golden_error: Pin
) -> None:
    words = ["export.type=q4_k_m", f"export.llama_cpp={tmp_path}"]
    golden_error(refused(ExportError, lambda: export(run, asked(tmp_path, *words))))


def test_a_type_that_needs_llama_cpp_is_an_error_without_it() -> None:
    error = refused(ConfigError, lambda: compose_requests(["export=gguf", "export.type=q4_0"]))
    assert places(error) == ["export.type"]
    assert error.problems[0].commands == ("export.type=q8_0",)
    assert json.dumps(error.problems[0].allowed) == '"f16, bf16, q8_0"'
