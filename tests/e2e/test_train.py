"""Whole runs through the real command line, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.trainers import RUN_FILES, plain_peft

RUN_FOLDER = {".hydra", *RUN_FILES}
REAL = [
    "recipe=yoda",
    "dataset.limit=16",
    "sft.per_device_train_batch_size=2",
    "sft.max_steps=2",
    "evaluation.max_new_tokens=4",
]


def on(tiny_model: Path, *more: str) -> list[str]:
    """The recipe's overrides on the tiny model: seconds instead of minutes."""
    return [
        "recipe=yoda",
        "model=custom",
        f"model.name_or_path={tiny_model}",
        "quantization=none",
        "evaluation.max_new_tokens=4",
        "sft.max_steps=2",
        "sft.logging_steps=1",
        *more,
    ]


# --- the real model -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """`sftpipe train recipe=yoda` on the embedded model with NF4 and LoRA, for two steps on 16
    rows, from an empty folder: the run, what was printed as JSON, and what was said.
    """
    folder = tmp_path_factory.mktemp("real")
    done = subprocess.run(
        [sys.executable, "-m", "sftpipe", "train", *REAL, "--json"],
        cwd=folder,
        env={**os.environ, "WANDB_API_KEY": "a-secret-key", "HF_TOKEN": "hf_a_secret_token"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    return folder / result["run"], result, done.stderr


@pytest.mark.slow
def test_a_run_of_the_real_model_names_its_folder_its_base_and_its_numbers(
    real_run: tuple[Path, dict[str, Any], str], smollm2: Any
) -> None:
    run, result, said = real_run
    assert {path.name for path in run.iterdir()} >= RUN_FOLDER
    assert (run.parent.parent.name, run.parent.name) == ("outputs", "yoda")
    assert smollm2.identity in said
    assert "float32" in said
    assert json.loads((run / "manifest.json").read_text())["weights"] == smollm2.identity
    metrics = result["metrics"]
    assert metrics == json.loads((run / "metrics.json").read_text())
    assert metrics["train"]["steps"] == 2
    assert 2.5 < metrics["validation"]["before"]["loss"] < 3.5  # as recipes/yoda.yaml says


@pytest.mark.slow
def test_no_secret_and_no_path_of_this_machine_is_written(
    real_run: tuple[Path, dict[str, Any], str], smollm2: Any
) -> None:
    run, _, _ = real_run
    files = [path for path in run.rglob("*") if path.is_file() and ".hydra" not in path.parts]
    for file in files:
        content = file.read_bytes()
        assert b"a-secret-key" not in content
        assert b"hf_a_secret_token" not in content
        assert str(Path(smollm2.path).parents[1]).encode() not in content, file


@pytest.mark.slow
def test_the_recorded_config_and_the_adapter_make_the_same_model(
    real_run: tuple[Path, dict[str, Any], str], smollm2: Any
) -> None:
    import torch

    from sftpipe import compose, load_run
    from sftpipe.config.schema import to_plain

    run = load_run(real_run[0])
    assert to_plain(run.config) == to_plain(compose(REAL))
    ids = torch.tensor([run.tokenizer("The old mill grinds corn.").input_ids])
    ours, plain = run.load_model(), plain_peft(run.dir, smollm2.path)
    with torch.no_grad():
        logits = plain(ids).logits
        torch.testing.assert_close(ours(ids).logits, logits, atol=1e-4, rtol=1e-4)
        with ours.disable_adapter():
            assert (ours(ids).logits - logits).abs().max() > 1e-3


# --- signals, kills -----------------------------------------------------------------------


# four epochs of 6 steps, with dropout, accumulation and evaluations in between
LONG = (
    "dataset.limit=48",
    "sft.num_train_epochs=4",
    "sft.max_steps=24",
    "sft.save_steps=4",
    "sft.gradient_accumulation_steps=2",
    "sft.per_device_train_batch_size=4",
    "sft.eval_strategy=steps",
    "+sft.eval_steps=5",
)
WAYS: dict[str, tuple[str, ...]] = {
    "random": ("sft.train_sampling_strategy=random",),
    "by length": (
        "sft.train_sampling_strategy=group_by_length",
        "evaluation.sample_strategy=epoch",
        "evaluation.do_sample=true",
    ),
    "new tokens": (
        "sft.train_sampling_strategy=random",
        "tokenizer.special_tokens=['<|turn|>']",
        "format=template",
        "format.prompt='<|turn|>{instruction}'",
        "format.completion=' {output}'",
    ),
    "packed": (
        "packing=bfd",
        "sft.max_length=160",
        "sft.train_sampling_strategy=random",
        "dataset.limit=120",
    ),
    "blocks": ("dataset.limit=4",),  # 52 windows, 7 steps an epoch
}


def long_run(way: str, tiny_model: Path) -> list[str]:
    if way == "blocks":
        return [
            "recipe=char_gpt_ko",
            "evaluation.max_new_tokens=4",
            "sft.logging_steps=1",
            *LONG,
            *WAYS[way],
            "run=run",
        ]
    return on(tiny_model, *LONG, *WAYS[way], "run=run")


def weights_of(folder: Path) -> bytes:
    (file,) = folder.glob("*.safetensors")
    return file.read_bytes()


def stop_behind_checkpoint(
    step: int, words: list[str], folder: Path, number: signal.Signals
) -> tuple[int, str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "sftpipe", "train", *words],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (folder / "run" / f"checkpoint-{step}").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(number)
    return process.wait(timeout=120), process.communicate()[1]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    """The runs that nothing interrupts, one for each way."""
    runs = {}
    for way in WAYS:
        folder = tmp_path_factory.mktemp(way.replace(" ", "-"))
        words = long_run(way, tiny_model)
        subprocess.run(
            [sys.executable, "-m", "sftpipe", "train", *words],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=600,
        )
        runs[way] = folder / "run"
    return runs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "way"),
    [
        (signal.SIGKILL, -9, "by length"),
        (signal.SIGTERM, 143, "random"),
        (signal.SIGINT, 130, "by length"),
        (signal.SIGKILL, -9, "packed"),
        (signal.SIGKILL, -9, "new tokens"),
        (signal.SIGKILL, -9, "blocks"),
        (signal.SIGTERM, 143, "blocks"),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    number: signal.Signals,
    code: int,
    way: str,
    unbroken: dict[str, Path],
    cli: Any,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    words = long_run(way, tiny_model)
    returned, said = stop_behind_checkpoint(8, words, tmp_path, number)
    assert returned == code, said
    assert not (tmp_path / "run" / "COMPLETE").exists()
    if number is not signal.SIGKILL:
        assert "sft.resume_from_checkpoint=auto" in said
        assert "Traceback" not in said

    resumed = cli("train", *words, "sft.resume_from_checkpoint=auto")
    assert resumed.returncode == 0, resumed.stderr
    run = tmp_path / "run"
    assert (run / "attempts" / "2" / "manifest.json").is_file()
    assert weights_of(run) == weights_of(unbroken[way])

    def numbers(folder: Path) -> list[Any]:
        entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return [
            [entry["step"], entry.get("loss"), entry.get("eval_loss"), entry.get("num_tokens")]
            for entry in entries
        ]

    assert numbers(run) == numbers(unbroken[way])
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert samples == [
        json.loads(line) for line in (unbroken[way] / "samples.jsonl").read_text().splitlines()
    ]
    epochs = [f"epoch {number}" for number in range(1, 5)] if way == "by length" else []
    assert [row["phase"] for row in samples[::5]] == ["before", *epochs, "after"]
    ours, theirs = (
        json.loads((folder / "metrics.json").read_text()) for folder in (run, unbroken[way])
    )
    assert ours["validation"] == theirs["validation"]
    assert ours.get("test") == theirs.get("test")
    assert ours["train"]["loss"] == theirs["train"]["loss"]

    again = cli("train", *words, "sft.resume_from_checkpoint=auto")
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    refused = cli("train", *words)
    assert refused.returncode == 2
    assert "never overwritten" in refused.stderr


# --- packing --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_that_leaks_trains_packed_under_a_mask(
    tiny_opt: Path, cli: Any, tmp_path: Path
) -> None:
    words = [
        "recipe=yoda",
        "model=custom",
        f"model.name_or_path={tiny_opt}",
        "quantization=none",
        "evaluation.max_new_tokens=4",
        "tokenizer.chat_template=chatml_bos_eos",
        "sft.max_steps=2",
        "sft.logging_steps=1",
        "packing=bfd",
        "sft.max_length=256",
    ]
    done = cli("train", *words, "run=run")
    assert done.returncode == 0, done.stderr
    packing = json.loads((tmp_path / "run" / "preflight.json").read_text())["packing"]
    assert packing["isolation"]["method"] == "mask"
    assert packing["isolation"]["leak"] < 1e-4 < 0.1 < packing["isolation"]["leak_of_positions"]
    checked = cli("check", *words)
    assert "isolation  a block-diagonal mask; packing moves a logit by" in checked.stdout
    assert "positions alone leak" in checked.stdout


# --- the wheel ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_wheel_trains_from_an_empty_folder(tmp_path: Path, tiny_model: Path) -> None:
    """Installed into an environment of its own; the heavy dependencies come from this one's
    site-packages.
    """
    import sysconfig

    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    repository = Path(__file__).parents[2]
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path / "dist"),
        str(repository),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("sftpipe-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)],
        check=True,
        capture_output=True,
    )
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(
        sysconfig.get_paths()["purelib"]
    )  # its own .pth files, so the editable install, are not read
    empty = tmp_path / "empty"
    empty.mkdir()

    def train(*words: str) -> list[Path]:
        done = subprocess.run(
            [tmp_path / "venv" / "bin" / "sftpipe", "train", *words, "--json"],
            cwd=empty,
            env=alone,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return [empty / json.loads(line)["run"] for line in done.stdout.splitlines()]

    (run,) = train("recipe=yoda", "sft.max_steps=2", "evaluation.max_new_tokens=4")
    assert {path.name for path in run.iterdir()} >= RUN_FOLDER
    swept = train("-m", *on(tiny_model, "lora.r=4,8"), "hydra.sweep.dir=sweep")
    assert {path.name for path in swept} == {"r-4", "r-8"}
    where = subprocess.run(
        [python, "-c", "import sftpipe; print(sftpipe.__file__)"],
        cwd=empty,
        env=alone,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(site) in where.stdout
