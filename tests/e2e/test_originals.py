"""Recipes of the hub and what the sources do on their models, through the real command line: two
steps, on random weights.

The architectures are the original ones, made small. Their tokenizers are small ones of the same
kinds, and the rows are made of their words; one test takes the published tokenizers and the
original data.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config

import sftpipe
from support.tokenizers import PUBLISHED, config_of

pytestmark = pytest.mark.slow

SMALL: dict[str, dict[str, int]] = {
    "opt": {
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    },
    "phi3": {
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
ON_PHI3: dict[str, tuple[str, ...]] = {
    "recipe": (),
    "function": FUNCTION,
    "function of a batch": (
        *FUNCTION,
        "format.function=yoda_texts.many",
        "format.batched=true",
    ),
    "text": ("format=text", "dataset.columns={text: translation}", "loss=full"),
    "response": ("loss=response_template", "loss.response_template='<|assistant|>'"),
    "response and instruction": (
        "loss=response_template",
        "loss.response_template='<|assistant|>'",
        "loss.instruction_template='<|user|>'",
    ),
    "flattened": ("packing=padding_free",),
    "bfd": ("packing=bfd", "sft.max_length=128"),
    "wrapped": ("packing=wrapped", "sft.max_length=64"),
}


class Originals:
    """Recipes on one folder of a tokenizer for each kind, in a folder that holds their data."""

    def __init__(self, folders: dict[str, Path], configs: dict[str, Any], cli: Any, here: Path):
        self._cli, self._here, self._runs = cli, here, 0
        self._bases = {kind: here / "bases" / kind for kind in folders}
        self.rows = {kind: configs[kind].vocab_size for kind in folders}
        self.tokens = {}
        for kind, folder in folders.items():
            shutil.copytree(folder, self._bases[kind])
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(configs[kind], dtype=torch.float32)
            model.save_pretrained(self._bases[kind])
            self.tokens[kind] = len(AutoTokenizer.from_pretrained(folder))
        (here / "yoda_texts.py").write_text(FUNCTIONS)

    def train(self, recipe: str, kind: str, *more: str) -> sftpipe.Run:
        """Two steps."""
        self._runs += 1
        done = self._cli(
            "train",
            f"recipe={recipe}",
            f"model.name_or_path={self._bases[kind]}",
            "dataset.limit=16",
            "sft.max_steps=2",
            "sft.logging_steps=1",
            "evaluation.max_new_tokens=4",
            f"run=run{self._runs}",
            *more,
        )
        assert done.returncode == 0, done.stderr
        return sftpipe.load_run(self._here / f"run{self._runs}")


@pytest.fixture
def small(made: Callable[[str], Path], cli: Any, tmp_path: Path) -> Originals:
    """With small tokenizers, and 120 rows of their words for each of the data sets."""
    with (tmp_path / "sentences.csv").open("w", encoding="utf-8", newline="") as file:
        write = csv.writer(file).writerow
        write(["sentence", "translation", "translation_extra"])
        for at in range(120):
            there = f"Blue, {at} the sky is."
            write([f"The sky {at} is blue.", there, f"{there} yes"])
    entries = [
        {"instruction": f"what is {at}", "input": "", "output": f"a number {at}"}
        for at in range(120)
    ]
    (tmp_path / "instruction-data.json").write_text(json.dumps(entries), encoding="utf-8")
    return Originals(
        {kind: made(kind) for kind in PUBLISHED},
        {kind: config_of(kind) for kind in PUBLISHED},
        cli,
        tmp_path,
    )


@pytest.fixture
def published(golden: Path, cli: Any, tmp_path: Path) -> Originals:
    """With the published tokenizers, and the data of the sources."""
    shutil.copy(golden / "data" / "yoda" / "sentences.csv", tmp_path)
    shutil.copy(golden / "data" / "rasbt" / "instruction-data.json", tmp_path)
    folders = {kind: golden / "tokenizers" / name for kind, name in PUBLISHED.items()}
    configs: dict[str, Any] = {"gpt2": GPT2Config(n_embd=64, n_layer=2, n_head=4)}
    for kind, sizes in SMALL.items():
        configs[kind] = AutoConfig.from_pretrained(folders[kind], **sizes)
    return Originals(folders, configs, cli, tmp_path)


def opt_gets_a_chat_template(originals: Originals) -> None:
    run = originals.train("yoda_opt350m", "opt", *YODA_CSV)
    assert run.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi."}], tokenize=False
    ).startswith("</s>user\nHi.</s>")
    chance = torch.tensor(float(originals.rows["opt"])).log().item()  # nothing is known yet
    assert run.metrics["validation"]["before"]["loss"] == pytest.approx(chance, abs=0.6)


def opts_own_template_trains_the_rows_of_its_new_tokens(originals: Originals) -> None:
    run = originals.train("yoda_opt350m", "opt", *YODA_CSV, *OWN_TEMPLATE)
    new = [originals.tokens["opt"], originals.tokens["opt"] + 1]
    assert run.tokenizer.convert_tokens_to_ids(["<|im_start|>", "##[YODA]##>"]) == new
    assert run.tokenizer.bos_token == "<|im_start|>"
    adapter = json.loads((run.dir / "adapter_config.json").read_text())
    assert adapter["trainable_token_indices"] == {"embed_tokens": new}
    assert run.load_model().get_input_embeddings().weight.shape[0] == originals.rows["opt"]


def phi3_trains(originals: Originals, more: Sequence[str]) -> None:
    run = originals.train("yoda_phi3", "phi3", *YODA_CSV, *more)
    assert run.tokenizer.pad_token_id != run.tokenizer.eos_token_id
    assert run.metrics["train"]["steps"] == 2
    assert (run.dir / "adapter_model.safetensors").is_file()
    assert run.load_model().get_input_embeddings().weight.shape[0] == originals.rows["phi3"]


def gpt2_trains_on_chapter_7(originals: Originals) -> None:
    data = "dataset.data_files=instruction-data.json"
    run = originals.train("instruct_gpt2_medium", "gpt2", data, "sft.eval_steps=1")
    lines = map(json.loads, (run.dir / "samples.jsonl").read_text().splitlines())
    assert [row["phase"] for row in lines][::5] == ["before", "epoch 1", "after"]
    assert (run.dir / "model.safetensors").is_file()


def test_yoda_on_opt_gets_a_chat_template(small: Originals) -> None:
    opt_gets_a_chat_template(small)


def test_opts_own_template_trains_the_rows_of_its_new_tokens(small: Originals) -> None:
    opts_own_template_trains_the_rows_of_its_new_tokens(small)


@pytest.mark.parametrize("more", ON_PHI3.values(), ids=ON_PHI3)
def test_yoda_on_phi3(small: Originals, more: tuple[str, ...]) -> None:
    phi3_trains(small, more)


def test_chapter_7_on_gpt2(small: Originals) -> None:
    gpt2_trains_on_chapter_7(small)


def test_golden_the_published_tokenizers_and_data(
    published: Originals, subtests: pytest.Subtests
) -> None:
    for check in (
        opt_gets_a_chat_template,
        opts_own_template_trains_the_rows_of_its_new_tokens,
        gpt2_trains_on_chapter_7,
    ):
        with subtests.test(check.__name__):
            check(published)
    for name in ("recipe", "function of a batch", "response and instruction", "wrapped"):
        with subtests.test("phi3 trains", name=name):
            phi3_trains(published, ON_PHI3[name])
