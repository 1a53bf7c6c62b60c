"""The steps of a run, in this process: what each is given, and what is left when all are done."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sftpipe
from sftpipe.runs.folder import RunFolder
from support.byte_model import write_byte_model
from support.configs import compose
from support.trainers import tiny

ROWS = [{"instruction": f"Say {at}|SOUND|>.", "output": f"It is {at}."} for at in range(6)]


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> sftpipe.Run:
    """Two steps on a tiny base, whose tokenizer gets a new token."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return sftpipe.train(
        tiny(
            tiny_model,
            "dataset.limit=4",
            "tokenizer.special_tokens=['<|turn|>']",
            "tokenizer.pad_to_multiple_of=10",
            "format=template",
            "format.prompt='<|turn|>{instruction}'",
            "format.completion=' {output}'",
            "sft.max_steps=2",
            "sft.per_device_train_batch_size=2",
            "sft.learning_rate=0.01",
            "sft.warmup_steps=0",
            "sft.pad_to_multiple_of=32",
            "evaluation=none",
            f"run={folder}",
        )
    )


@pytest.fixture
def prepare(tmp_path: Path, rows_file: Callable[..., str]) -> Callable[..., sftpipe.PreparedData]:
    """Prepare the rows above for a model without weights."""
    model, rows = write_byte_model(tmp_path / "model"), rows_file(ROWS)

    def prepared(*overrides: str) -> sftpipe.PreparedData:
        words = ["model=custom", f"model.name_or_path={model}", "dataset=json"]
        limits = ["sft.max_length=null", "preflight.duplicates=warn"]
        return sftpipe.prepare(compose([*words, f"dataset.data_files={rows}", *limits, *overrides]))

    return prepared


def test_the_run_trains_the_row_of_its_new_token_and_the_card_says_how_to_make_it(
    run: sftpipe.Run,
) -> None:
    token = run.tokenizer.convert_tokens_to_ids("<|turn|>")
    assert token == 49152  # the first one behind the vocabulary
    adapter = json.loads((run.dir / "adapter_config.json").read_text())
    assert adapter["trainable_token_indices"] == {"embed_tokens": [token]}
    card = RunFolder(run.dir).card.read_text()
    assert "base.resize_token_embeddings(49160, mean_resizing=False)" in card
    assert "table.weight.data[49152:] = table.weight.data[:49152].mean(dim=0)" in card


def test_the_loaded_model_is_the_trained_one(run: sftpipe.Run, tiny_model: Path) -> None:
    """Against plain PEFT on the base, with the lines of the card."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    lines = RunFolder(run.dir).card.read_text().split("from_pretrained(")[1].splitlines()[1:4]
    exec("\n".join(lines), {"base": base})
    plain = PeftModel.from_pretrained(base, run.dir).eval()
    model = run.load_model()
    assert not model.training

    ids = torch.tensor([run.tokenizer("<|turn|>You will find it.").input_ids])
    with torch.no_grad():
        logits = model(ids).logits
        assert logits.shape == (1, ids.shape[1], 49160)
        torch.testing.assert_close(logits, plain(ids).logits, rtol=1e-5, atol=1e-5)
        with plain.disable_adapter():
            assert not torch.allclose(logits, plain(ids).logits, atol=1e-3)  # it learned


def test_a_run_that_is_complete_is_loaded_and_left_as_it_is(
    run: sftpipe.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.dir.rglob("*")}
    sft = {**run.config.sft, "resume_from_checkpoint": "auto"}
    cfg = dataclasses.replace(run.config, run=str(run.dir), sft=sft)

    again = sftpipe.train(cfg)

    assert (again.dir, again.metrics) == (run.dir, run.metrics)
    assert {path: path.stat().st_mtime_ns for path in run.dir.rglob("*")} == before
    said = capsys.readouterr().err.replace("\n", "")
    assert said == f"resume    {run.dir} is complete; there is nothing to do"


def test_batches_are_padded_with_pad_to_the_multiple_that_the_config_wants(
    prepare: Callable[..., sftpipe.PreparedData],
) -> None:
    data = prepare("sft.pad_to_multiple_of=64")
    rows = [data.train[0], {"input_ids": [5, 6], "labels": [-100, 6]}]

    batch = data.collate(rows)

    length = len(rows[0]["input_ids"])
    assert length % 64
    assert batch["input_ids"].shape == (2, length + 64 - length % 64)
    pad = data.tokenizer.convert_tokens_to_ids("<|pad|>")
    assert batch["input_ids"][1].tolist() == [5, 6] + [pad] * (batch["input_ids"].shape[1] - 2)
    assert batch["labels"][0, length:].unique().tolist() == [-100]
    assert batch["attention_mask"].sum(dim=1).tolist() == [length, 2]
    assert prepare().collate(rows)["input_ids"].shape == (2, length)


def test_markers_become_tokens_where_they_are_special_alone(
    prepare: Callable[..., sftpipe.PreparedData],
) -> None:
    text = ["format=text", "format.text_field=instruction", "loss=full"]
    tokens, found = "dataset.marker_tokens=['|SOUND|>']", {}
    for markers in ("keep", "special", "strip"):
        data = prepare(f"dataset.markers={markers}", tokens, *text)
        ids = data.train[0]["input_ids"]
        found[markers] = (list(data.new_tokens), len(ids), data.tokenizer.decode(ids))
    # 256 bytes, <|im_start|>, <|im_end|>, <|pad|>, the marker; a character is a token
    assert found == {
        "keep": ([], 15, "Say 0|SOUND|>.<|im_end|>"),
        "special": ([259], 8, "Say 0|SOUND|>.<|im_end|>"),
        "strip": ([], 7, "Say 0.<|im_end|>"),
    }


def test_prepared_data_know_their_splits_and_their_samples(
    prepare: Callable[..., sftpipe.PreparedData],
) -> None:
    data = prepare("dataset.validation_size=2", "dataset.test_size=1")
    answers = {
        split: [sample.messages[-1]["content"] for sample in data.samples(split)]  # type: ignore[union-attr]
        for split in data.splits()
    }
    assert answers == {
        "train": ["It is 0.", "It is 1.", "It is 2."],
        "validation": ["It is 3.", "It is 4."],
        "test": ["It is 5."],
    }
    assert {name: len(rows) for name, rows in data.splits().items()} == {
        name: len(texts) for name, texts in answers.items()
    }
    assert (prepare().validation, prepare().test, prepare().isolation) == (None, None, None)


def test_windows_that_the_model_is_too_short_for_are_refused_before_any_data_are_read() -> None:
    words = ["recipe=char_gpt_ko", "packing.block_size=100000", "dataset.name=stops-here"]
    with pytest.raises(sftpipe.ModelError, match=r"^packing.block_size: 100000 makes windows of"):
        sftpipe.prepare(compose(words))
