"""The model that a run trains, on models of a few thousand weights: what `train` hands from one
step to the next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sftpipe
from sftpipe.errors import ModelError
from support.byte_model import write_byte_model
from support.configs import compose
from support.models import deep_leak, llama

ANSWER_END, KNOWN = 257, 259  # `<|im_end|>` of `write_byte_model`, and how many tokens it has
ROWS = [{"instruction": f"spell {word}", "output": word} for word in ("one", "two", "six", "ten")]


@pytest.fixture
def words(tmp_path: Path, rows_file: Callable[..., str]) -> list[str]:
    """Two steps on four rows, with the tiny Llama in the folder `model`."""
    folder = tmp_path / "model"
    write_byte_model(folder)
    llama(KNOWN, tied=True).save_pretrained(folder)
    return [
        "model=custom",
        f"model.name_or_path={folder}",
        "dataset=json",
        f"dataset.data_files={rows_file(ROWS)}",
        "format=instruction",
        "evaluation=none",
        "sft.max_steps=2",
        "sft.per_device_train_batch_size=2",
        "sft.learning_rate=1e-2",
        "sft.save_strategy=no",
        "sft.use_cpu=true",
        f"run={tmp_path / 'run'}",
    ]


def test_full_training_is_of_float32_weights_and_the_model_stops_where_answers_end(
    words: list[str],
) -> None:
    words += [
        "model.dtype=bfloat16",
        "tokenizer.special_tokens=['<|done|>']",
        "tokenizer.eos_token='<|done|>'",
        "tokenizer.pad_to_multiple_of=8",
    ]
    run = sftpipe.train(compose(words))
    weights = load_file(run.dir / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert weights["model.embed_tokens.weight"].shape == (264, 8)
    generation = json.loads((run.dir / "generation_config.json").read_text())
    # EOS, where the base stopped, and the token that answers end in
    assert generation["eos_token_id"] == [KNOWN, 2, ANSWER_END]


def test_an_adapter_has_the_dtype_of_the_config_and_trains_the_rows_of_new_tokens_alone(
    words: list[str],
) -> None:
    words += [
        "lora=default",
        "lora.r=2",
        "model.adapter_dtype=bfloat16",
        "tokenizer.special_tokens=['<|done|>']",
        "tokenizer.eos_token='<|done|>'",
        "tokenizer.tokens=['spell']",
        "packing=bfd",
        "sft.max_length=128",
    ]
    run = sftpipe.train(compose(words))
    weights = load_file(run.dir / "adapter_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    config = json.loads((run.dir / "adapter_config.json").read_text())
    assert config["trainable_token_indices"] == {"embed_tokens": [KNOWN, KNOWN + 1]}

    model = run.load_model()
    assert model.generation_config.eos_token_id == [KNOWN, 2, ANSWER_END]
    rows = model.merge_and_unload().get_input_embeddings().weight
    start = llama(KNOWN, tied=True).get_input_embeddings().weight
    assert torch.equal(rows[:KNOWN], start)
    moved = (rows[KNOWN:] - start.mean(dim=0)).abs().amax(dim=1)
    assert rows.shape == (KNOWN + 2, 8)
    assert moved.min() > 1e-3


def test_a_model_that_leaks_where_small_ones_of_its_class_do_not_is_refused_before_it_is_trained(
    words: list[str], tmp_path: Path
) -> None:
    cfg = compose([*words, "packing=bfd", "sft.max_length=128"])
    with deep_leak(KNOWN) as model:
        model.save_pretrained(tmp_path / "model")
        with pytest.raises(ModelError) as error:
            sftpipe.train(cfg)
    assert re.fullmatch(
        r"packing \(DeepLeak, sdpa\): packed sequences see each other: [1-9][.0-9]* standard "
        r"deviations of the logits, and [.0-9]+e-0[678] on a small model of the class\n"
        r"    packing=none, or another model.attn_implementation",
        str(error.value),
    )
    assert not (tmp_path / "run").exists()
