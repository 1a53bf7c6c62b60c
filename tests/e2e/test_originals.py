"""Recipes of the hub and what the sources do on their models, through the real command line.

The real tokenizer, the original data and the original architecture, made small, with random
weights: two steps.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

import sftpipe

pytestmark = pytest.mark.slow

SMALL: dict[str, dict[str, int]] = {
    "opt-350m": {
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    },
    "phi-3-mini-4k-instruct": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
}
YODA_CSV = ("dataset.path=csv", "dataset.data_files=sentences.csv")
FUNCTIONS = """
def one(row):
    question = "<s><|user|>\\n" + row["instruction"] + "<|end|>\\n<|assistant|>\\n"
    return question + row["output"] + "<|end|>\\n<|endoftext|>"

def many(rows):
    return [one(dict(zip(rows, values))) for values in zip(*rows.values())]
"""
FUNCTION = (
    "format=function",
    "format.function=yoda_texts.one",
    "allowed_targets=[yoda_texts]",
    "loss=full",
)
OWN_TEMPLATE = (
    "tokenizer.chat_template=null",
    "tokenizer.special_tokens=['<|im_start|>']",
    "tokenizer.bos_token='<|im_start|>'",
    "tokenizer.tokens=['##[YODA]##>']",
    "format=template",
    "format.prompt='{instruction} ##[YODA]##>'",
    "format.completion=' {output}'",
)


@pytest.fixture(scope="module")
def bases(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a small random model of an architecture, and the tokenizer of its model."""
    made = tmp_path_factory.mktemp("bases")

    def base(name: str) -> Path:
        if not (made / name).is_dir():
            shutil.copytree(golden / "tokenizers" / name, made / name)
            if name == "gpt2":
                config: Any = GPT2Config(n_embd=64, n_layer=2, n_head=4)
            else:
                config = AutoConfig.from_pretrained(made / name, **SMALL[name])
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(
                made / name
            )
        return made / name

    return base


@pytest.fixture
def train(
    bases: Callable[[str], Path], golden: Path, cli: Any, tmp_path: Path
) -> Callable[..., sftpipe.Run]:
    """Two steps of a recipe in a folder that holds its data."""
    shutil.copy(golden / "data" / "yoda" / "sentences.csv", tmp_path)
    shutil.copy(golden / "data" / "rasbt" / "instruction-data.json", tmp_path)
    (tmp_path / "yoda_texts.py").write_text(FUNCTIONS)

    def run(recipe: str, name: str, *more: str) -> sftpipe.Run:
        done = cli(
            "train",
            f"recipe={recipe}",
            f"model.name_or_path={bases(name)}",
            "dataset.limit=16",
            "sft.max_steps=2",
            "sft.logging_steps=1",
            "evaluation.max_new_tokens=4",
            "run=run",
            *more,
        )
        assert done.returncode == 0, done.stderr
        return sftpipe.load_run(tmp_path / "run")

    return run


def test_yoda_on_opt_gets_a_chat_template(train: Callable[..., sftpipe.Run]) -> None:
    run = train("yoda_opt350m", "opt-350m", *YODA_CSV)
    assert run.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi."}], tokenize=False
    ).startswith("</s>user\nHi.</s>")
    assert run.metrics["validation"]["before"]["loss"] == pytest.approx(
        10.8, abs=0.6
    )  # ln(50272): nothing is known yet


def test_opts_own_template_gets_the_golden_ids_and_trains_their_rows(
    train: Callable[..., sftpipe.Run],
) -> None:
    run = train("yoda_opt350m", "opt-350m", *YODA_CSV, *OWN_TEMPLATE)
    assert run.tokenizer.convert_tokens_to_ids(["<|im_start|>", "##[YODA]##>"]) == [50265, 50266]
    assert run.tokenizer.bos_token == "<|im_start|>"
    assert json.loads((run.dir / "adapter_config.json").read_text())["trainable_token_indices"] == {
        "embed_tokens": [50265, 50266]
    }
    assert run.load_model().get_input_embeddings().weight.shape[0] == 50272


@pytest.mark.parametrize(
    "more",
    [
        (),
        FUNCTION,
        (*FUNCTION, "format.function=yoda_texts.many", "format.batched=true"),
        ("format=text", "dataset.columns={text: translation}", "loss=full"),
        ("loss=response_template", "loss.response_template='<|assistant|>'"),
        (
            "loss=response_template",
            "loss.response_template='<|assistant|>'",
            "loss.instruction_template='<|user|>'",
        ),
        ("packing=padding_free",),
        ("packing=bfd", "sft.max_length=128"),
        ("packing=wrapped", "sft.max_length=64"),
    ],
    ids=[
        "recipe",
        "function",
        "function of a batch",
        "text",
        "response",
        "response and instruction",
        "flattened",
        "bfd",
        "wrapped",
    ],
)
def test_yoda_on_phi3(train: Callable[..., sftpipe.Run], more: tuple[str, ...]) -> None:
    run = train("yoda_phi3", "phi-3-mini-4k-instruct", *YODA_CSV, *more)
    assert run.tokenizer.pad_token_id != run.tokenizer.eos_token_id
    assert run.metrics["train"]["steps"] == 2
    assert (run.dir / "adapter_model.safetensors").is_file()
    assert run.load_model().get_input_embeddings().weight.shape[0] == 32064


def test_chapter_7_on_gpt2(train: Callable[..., sftpipe.Run]) -> None:
    run = train(
        "instruct_gpt2_medium",
        "gpt2",
        "dataset.data_files=instruction-data.json",
        "sft.eval_steps=1",
    )
    assert [
        row["phase"]
        for row in map(json.loads, (run.dir / "samples.jsonl").read_text().splitlines())
    ][::5] == [
        "before",
        "epoch 1",
        "after",
    ]
    assert (run.dir / "model.safetensors").is_file()
