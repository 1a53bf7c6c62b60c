"""Two processes train what one does, and are stopped and killed as one is.

Whole runs through the real command line, on two gloo processes with one thread each.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from support.kills import outcome
from support.sources import write_rows
from support.tokenizers import config_of, write_kind

TWO = ("distributed=ddp", "distributed.num_processes=2")
AUTO = "sft.resume_from_checkpoint=auto"
NO_DROPOUT = "lora.lora_dropout=0"
TEXTS = ("loss=full", "format=text", "sft.train_sampling_strategy=random")
# 21 rows in batches of 8: the last one has 5, so that one process has 4 rows and the other 1
WAYS: dict[str, tuple[str, ...]] = {
    "plain": (NO_DROPOUT,),
    "packed": (NO_DROPOUT, "packing=bfd", "sft.max_length=48", "packing.pack_eval=true"),
    "blocks": (NO_DROPOUT, "packing=blocks", "packing.block_size=16", *TEXTS),
    "nf4": (NO_DROPOUT, "quantization=nf4", "sft.gradient_accumulation_steps=2"),
    "shuffled": (
        *(NO_DROPOUT, "sft.train_sampling_strategy=random", "model.fast=false"),
        "sft.activation_checkpointing=true",
    ),
    "dropped end": ("lora=none", "sft.learning_rate=0.001", "sft.dataloader_drop_last=true"),
}
QUICK = ("plain",)
# with dropout, in eight epochs of three steps: a signal has time to come
LONGER = (*TWO, "sft.per_device_train_batch_size=4", "sft.num_train_epochs=8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 50,000 weights beside a small tokenizer."""
    from transformers import AutoModelForCausalLM

    folder = write_kind("chatml", tmp_path_factory.mktemp("distributed") / "model")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config_of("chatml")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pairs = [(f"What is {n} and {n}?", f"Of {n}, {'two ' * (n % 7)}it is.") for n in range(35)]
    return write_rows(
        tmp_path_factory.mktemp("rows") / "rows.jsonl",
        [{"instruction": one, "output": two, "text": f"{one} {two}"} for one, two in pairs],
    )


@contextlib.contextmanager
def starter(model: Path, rows: Path, folder: Path) -> Iterator[Any]:
    """Starts `sftpipe train` on the rows, in a folder; what is left of it is killed."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(name: str, *words: str, cwd: Path = folder) -> subprocess.Popen[bytes]:
        command = [
            "recipe=yoda",
            "model=custom",
            f"model.name_or_path={model}",
            *([] if "quantization=nf4" in words else ["quantization=none"]),
            "dataset=json",
            f"dataset.data_files={rows}",
            "dataset.validation_size=7",
            "dataset.test_size=7",
            "evaluation.max_new_tokens=2",
            "sft.num_train_epochs=2",
            "sft.per_device_eval_batch_size=2",
            "sft.logging_steps=1",
            "sft.eval_strategy=steps",
            "+sft.eval_steps=2",
            "sft.save_steps=2",
            *([] if "lora=none" in words else ["sft.learning_rate=0.01"]),
            *words,
            *([] if "-m" in words else [f"run={folder / name}"]),
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", "sftpipe", "train", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        if process.poll() is None:
            for one in [*ranks_of(process), psutil.Process(process.pid)]:
                one.kill()
        process.communicate()


@pytest.fixture
def started(model: Path, rows: Path, tmp_path: Path) -> Iterator[Any]:
    with starter(model, rows, tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def whole(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a run of two processes makes that nothing stops."""
    folder = tmp_path_factory.mktemp("whole")
    with starter(model, rows, folder) as start:
        code, said = ended(start("run", *LONGER))
    assert code == 0, said
    return outcome(folder / "run")


def ended(process: subprocess.Popen[bytes], seconds: float = 200) -> tuple[int, str]:
    said, _ = process.communicate(timeout=seconds)
    return process.returncode, said.decode()


def ranks_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The worker processes of a launcher, the first rank first."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        if "sftpipe.worker" in child.cmdline():
            found.append((int(child.environ()["RANK"]), child))
    return [child for _, child in sorted(found, key=lambda pair: pair[0])]


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def until(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a step is in the log."""
    while process.poll() is None:
        if (run / "log.jsonl").is_file() and any(one["step"] >= step for one in logged(run)):
            return
        time.sleep(0.01)
    raise AssertionError(ended(process))


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way in QUICK else pytest.mark.slow) for way in WAYS]
)
def test_two_processes_are_one(way: str, started: Any, tmp_path: Path) -> None:
    """The batch of one is divided between two: same losses, same evaluations, same weights."""
    two = started("two", *TWO, "sft.per_device_train_batch_size=4", *WAYS[way])
    one = started("one", "sft.per_device_train_batch_size=8", *WAYS[way])
    for process in (two, one):
        code, said = ended(process)
        assert code == 0, said

    expected, found = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert [entry["step"] for entry in found] == [entry["step"] for entry in expected]
    for entry, other in zip(expected, found, strict=True):
        for name, within in (("loss", 1e-5), ("eval_loss", 1e-6), ("grad_norm", 1e-4)):
            if name in entry:
                assert other[name] == pytest.approx(entry[name], abs=within)
        for name in ("num_tokens", "mean_token_accuracy", "eval_mean_token_accuracy", "epoch"):
            assert other.get(name) == entry.get(name)
    metrics = [
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")
    ]
    for part in ("validation", "test"):
        assert flat(metrics[1][part]) == pytest.approx(flat(metrics[0][part]), rel=1e-6)
    (file,) = (tmp_path / "one").glob("*.safetensors")
    weights, others = load_file(file), load_file(tmp_path / "two" / file.name)
    assert weights.keys() == others.keys()
    far = max(float((others[name] - value).abs().max()) for name, value in weights.items())
    assert far < 1e-4
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert manifest["processes"] == 2


def flat(part: Any) -> list[float]:
    return [
        one
        for value in part.values()
        for one in (flat(value) if isinstance(value, dict) else [value])
    ]


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_the_run_goes_on_to_the_same_bits(
    whole: Any, started: Any, tmp_path: Path
) -> None:
    run = started("run", *LONGER)
    until(tmp_path / "run", 5, run)
    first, second = ranks_of(run)
    second.kill()
    at = time.monotonic()
    code, said = ended(run)
    assert time.monotonic() - at < 60
    assert code == 1
    assert "rank 1" in said
    assert "ended by SIGKILL" in said
    assert "Traceback" not in said
    assert not first.is_running()

    code, said = ended(started("run", *LONGER, AUTO))
    assert code == 0, said
    assert outcome(tmp_path / "run") == whole


@pytest.mark.slow
@pytest.mark.parametrize("to", ["parent", "rank 0", "rank 1"])
def test_a_signal_to_any_process_stops_all_with_a_checkpoint(
    to: str, whole: Any, started: Any, tmp_path: Path
) -> None:
    run = started("run", *LONGER)
    until(tmp_path / "run", 3, run)
    if to == "parent":
        run.send_signal(signal.SIGTERM)
    else:
        ranks_of(run)[int(to[-1])].send_signal(signal.SIGTERM)
    code, said = ended(run)
    assert code == 143, said
    assert said.count("stopped by SIGTERM; a checkpoint was written") == 1

    code, said = ended(started("run", *LONGER, AUTO))
    assert code == 0, said
    assert outcome(tmp_path / "run") == whole


@pytest.mark.slow
def test_ranks_whose_launcher_is_killed_stop_with_a_checkpoint(
    started: Any, tmp_path: Path
) -> None:
    words = (*TWO, "sft.per_device_train_batch_size=4", "sft.num_train_epochs=400")
    run = started("run", *words)
    until(tmp_path / "run", 3, run)
    workers = ranks_of(run)
    run.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    assert list((tmp_path / "run").glob("checkpoint-*"))
    assert not (tmp_path / "run" / "COMPLETE").exists()


@pytest.mark.slow
def test_two_machines_train_what_one_does(whole: Any, started: Any, tmp_path: Path) -> None:
    """Two launchers with one process each, which meet at a port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"distributed.rendezvous=127.0.0.1:{free.getsockname()[1]}"
    words = (*LONGER, "distributed.num_machines=2", endpoint)
    second = started("run", *words, "distributed.machine_rank=1")
    first = started("run", *words)
    for process in (first, second):
        code, said = ended(process)
        assert code == 0, said
    assert outcome(tmp_path / "run") == whole


@pytest.mark.slow
def test_machines_with_other_data_are_refused(started: Any, rows: Path, tmp_path: Path) -> None:
    """The name of the file is the same on both; each has its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"distributed.rendezvous=127.0.0.1:{free.getsockname()[1]}"
    words = (*LONGER, "distributed.num_machines=2", endpoint, "dataset.data_files=rows.jsonl")
    begun = []
    for machine in (0, 1):
        folder = tmp_path / str(machine)
        folder.mkdir()
        (folder / "rows.jsonl").write_text(rows.read_text().replace("What is 3", f"So {machine}"))
        begun.append(started("run", *words, f"distributed.machine_rank={machine}", cwd=folder))
    code, said = ended(begun[0])
    assert code == 2
    assert "the processes differ: data.sha256: " in said
    assert " on rank 1" in said
    assert not (tmp_path / "run" / "manifest.json").exists()
    assert ended(begun[1])[0] == 2


@pytest.mark.slow
def test_a_mistake_that_only_ranks_find_is_told_once(started: Any) -> None:
    run = started("run", *TWO, "dataset.columns={output: none_such}")
    code, said = ended(run)
    assert code == 2
    assert said.count("none_such") >= 1
    assert said.count("\nerror") == 1
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_sweep_trains_each_job_in_two_processes(started: Any, tmp_path: Path) -> None:
    words = ("-m", f"hydra.sweep.dir={tmp_path / 'sweep'}", "lora.r=4,8")
    code, said = ended(started("sweep", *TWO, *words))
    assert code == 0, said
    manifests = [json.loads(file.read_text()) for file in tmp_path.glob("sweep/*/manifest.json")]
    assert [one["processes"] for one in manifests] == [2, 2]
    assert len(list(tmp_path.glob("sweep/*/COMPLETE"))) == 2
