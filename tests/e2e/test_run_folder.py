"""A whole run, in this process on a tiny 4-bit model: what its folder says is what happened."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sftpipe
from sftpipe.config.schema import to_plain
from sftpipe.runs.load import Run
from support.answers import answers_by_hand, write_lively_model
from support.trainers import RUN_FILES, mean_loss, plain_peft

FILES = {*RUN_FILES, "chat_template.jinja", "checkpoint-3"}
RATES = ("rows_per_s", "tokens_per_s", "trained_tokens_per_s")
ROWS = 6  # one step is an epoch, so that each step trains the same tokens


def overrides(model: Path, folder: Path) -> list[str]:
    return [
        "recipe=yoda",
        "model=custom",
        f"model.name_or_path={model}",
        f"dataset.limit={ROWS}",
        f"sft.per_device_train_batch_size={ROWS}",
        "sft.num_train_epochs=3",
        "sft.learning_rate=3e-2",
        "sft.logging_steps=1",
        "evaluation.max_new_tokens=2",
        "evaluation.sample_strategy=epoch",
        f"run={folder}",
    ]


@pytest.fixture(scope="module")
def base(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model whose answers depend on the prompts."""
    return write_lively_model(tmp_path_factory.mktemp("base") / "lively-llama", tokenizer)


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", "a-secret-key")
        patch.setenv("HF_TOKEN", "hf_a_secret_token")
        yield sftpipe.train(sftpipe.compose(overrides(base, folder)))


@pytest.fixture(scope="module")
def plain(run: Run, base: Path) -> Any:
    return plain_peft(run.dir, base)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def identity(folder: Path) -> str:
    """The name of a folder, and one hash of the names and the bytes of its files."""
    hashes = [
        f"{file.name}:{hashlib.sha256(file.read_bytes()).hexdigest()}"
        for file in sorted(folder.iterdir())
    ]
    return f"{folder.name} sha256:{hashlib.sha256(''.join(hashes).encode()).hexdigest()}"


def test_the_folder_is_complete_and_names_base_seed_and_rows(run: Run, base: Path) -> None:
    assert {path.name for path in run.dir.iterdir()} == FILES
    manifest = json.loads((run.dir / "manifest.json").read_text())
    assert manifest["weights"] == identity(base)
    assert manifest["seed"] == 42
    assert manifest["data"]["rows"] == dict.fromkeys(("train", "validation", "test"), ROWS)
    adapter = json.loads((run.dir / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == identity(base)
    assert (adapter["r"], adapter["lora_alpha"]) == (16, 32)


def test_no_secret_and_no_path_of_this_machine_is_written(run: Run, base: Path) -> None:
    files = [path for path in run.dir.rglob("*") if path.is_file()]
    assert not {path.name for path in files} & {"training_args.bin", "pytorch_model.bin"}
    for file in files:
        content = file.read_bytes()
        assert b"a-secret-key" not in content
        assert b"hf_a_secret_token" not in content
        # the config says what the user said, and the report shows it
        named = ("config.yaml", "report.html")
        assert (str(base).encode() in content) == (file.name in named), file


def test_the_recorded_config_makes_the_same_config(run: Run, base: Path) -> None:
    assert to_plain(run.config) == to_plain(sftpipe.compose(overrides(base, run.dir)))


def test_the_metrics_are_those_of_the_adapter_that_was_written(run: Run, plain: Any) -> None:
    """Losses anew by PEFT and transformers alone, counts from the rows."""
    data = sftpipe.prepare(run.config)
    metrics = json.loads((run.dir / "metrics.json").read_text())
    assert metrics == run.metrics
    after, test = mean_loss(plain, data.validation), mean_loss(plain, data.test)
    with plain.disable_adapter():
        before = mean_loss(plain, data.validation)
    expected = {"before": before, "after": after}
    for phase, loss in expected.items():
        both = {"loss": loss, "perplexity": math.exp(loss)}
        assert metrics["validation"][phase] == pytest.approx(both, rel=1e-4)
    assert metrics["test"] == pytest.approx({"loss": test, "perplexity": math.exp(test)}, rel=1e-4)
    assert before - after > 0.01

    log, train = lines(run.dir / "log.jsonl"), metrics["train"]
    steps = [entry for entry in log if "loss" in entry]
    tokens = sum(map(len, data.train["input_ids"]))
    trained = sum(label != -100 for labels in data.train["labels"] for label in labels)
    assert [(entry["step"], entry["num_tokens"]) for entry in steps] == [
        (1, tokens),
        (2, 2 * tokens),
        (3, 3 * tokens),
    ]
    assert train["steps"] == 3
    assert train["loss"] == pytest.approx(sum(entry["loss"] for entry in steps) / 3, rel=1e-5)
    counts = [train[name] * train["runtime_s"] for name in RATES]
    assert counts == pytest.approx([3 * ROWS, 3 * tokens, 3 * trained])
    logged = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    validation = metrics["validation"]
    assert logged == {0: validation["before"]["loss"], 3: validation["after"]["loss"]}


def test_five_prompts_are_answered_before_and_after_and_after_each_epoch(
    run: Run, plain: Any
) -> None:
    rows = lines(run.dir / "samples.jsonl")
    phases = ["before", "epoch 1", "epoch 2", "epoch 3", "after"]
    assert [row["phase"] for row in rows] == [phase for phase in phases for _ in range(5)]
    assert [row["step"] for row in rows[::5]] == [0, 1, 2, 3, 3]
    folder = Path(__file__).parents[2] / "src/sftpipe/data/assets/yoda"
    asked = lines(folder / "test.jsonl")[:5]
    for at in range(0, 25, 5):
        part = rows[at : at + 5]
        assert [row["prompt"] for row in part] == [row["prompt"] for row in asked]
        assert [row["reference"] for row in part] == [row["completion"] for row in asked]
    tokenizer = run.tokenizer
    ids = [
        tokenizer(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}],
                tokenize=False,
                add_generation_prompt=True,
            ),
            add_special_tokens=False,
        ).input_ids
        for row in asked
    ]
    assert [row["completion"] for row in rows[20:]] == answers_by_hand(plain, tokenizer, ids, 2)
    with plain.disable_adapter():
        first = answers_by_hand(plain, tokenizer, ids, 2)
    assert [row["completion"] for row in rows[:5]] == first
    assert len(set(first)) > 3


def test_the_adapter_loads_with_plain_peft_and_gives_the_same_logits(run: Run, plain: Any) -> None:
    ids = torch.tensor([run.tokenizer("The old mill grinds corn.").input_ids])
    ours = run.load_model()
    with torch.no_grad():
        logits = plain(ids).logits
        torch.testing.assert_close(ours(ids).logits, logits, atol=1e-4, rtol=1e-4)
        with ours.disable_adapter():
            assert (ours(ids).logits - logits).abs().max() > 1e-2
