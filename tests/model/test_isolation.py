"""Packed rows against separate ones, on tiny models of many families: measured as the product
measures it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from sftpipe.config.schema import ModelConfig
from sftpipe.data.labels import IGNORED
from sftpipe.data.packing import Collator, Isolation
from sftpipe.errors import ModelError
from sftpipe.model import isolation
from sftpipe.model.isolation import (
    EXACT,
    find_isolation,
    measure,
    measure_leak,
    small_isolation,
    verify,
)
from sftpipe.model.weights import Weights
from support.configs import compose
from support.errors import Pin, places, refused, told

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 120,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT: dict[str, Any] = {
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 120,
    "n_positions": 128,
    "resid_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "mistral": SMALL,
    "phi3": SMALL,
    "qwen3": {**SMALL, "head_dim": 16},
    "gemma3_text": {**SMALL, "head_dim": 16},
    "gpt_neox": SMALL,
    "gpt2": GPT,
    "opt": {
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 120,
        "max_position_embeddings": 128,
        "word_embed_proj_dim": 64,
        "dropout": 0.0,
    },
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 120},
    "falcon": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 120,
    },
    "olmo2": SMALL,
    "stablelm": SMALL,
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 120},
    "gpt_bigcode": GPT,
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 120, "state_size": 8},
}
EXACT_BY_POSITIONS = (
    "llama",
    "mistral",
    "phi3",
    "qwen3",
    "gemma3_text",
    "gpt_neox",
    "gpt2",
    "olmo2",
    "stablelm",
    "gpt_bigcode",
)
BY_MASK = ("opt", "falcon", "mpt")
LEAKING = ("bloom", "mamba")
EAGER_ONLY = ("bloom", "mpt", "mamba")
ROWS = [[7, 8, 9, 10, 11], [12, 13, 14], [15, 16, 17, 18, 19, 20, 21], [22, 23, 24, 25]]


def tiny(family: str, attention: str = "sdpa") -> Any:
    """A random model of a family, as large in its weights as trained ones are, so that a leak
    shows.
    """
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family])
    extra = {} if family in EAGER_ONLY else {"attn_implementation": attention}
    return AutoModelForCausalLM.from_config(config, **extra).float()


def rows() -> list[dict[str, Any]]:
    """Rows whose first two tokens are a prompt."""
    return [{"input_ids": ids, "labels": [IGNORED, IGNORED, *ids[2:]]} for ids in ROWS]


def packed() -> list[dict[str, Any]]:
    """The same rows, two and two in one."""
    return [
        {
            "input_ids": a["input_ids"] + b["input_ids"],
            "labels": a["labels"] + b["labels"],
            "seq_lengths": [len(a["input_ids"]), len(b["input_ids"])],
        }
        for a, b in zip(rows()[::2], rows()[1::2], strict=True)
    ]


def loss_and_gradients(
    model: Any, batch: dict[str, Any]
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The loss of each trained token by its id, and the gradient of each parameter."""
    labels = batch.pop("labels")
    model.zero_grad()
    logits = model(**batch, use_cache=False).logits
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        labels[:, 1:].flatten(),
        reduction="none",
        ignore_index=IGNORED,
    )
    losses.sum().backward()
    targets = labels[:, 1:].flatten()
    order = targets[targets != IGNORED].argsort()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return losses[targets != IGNORED][order].tolist(), gradients


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", [*EXACT_BY_POSITIONS, *BY_MASK])
def test_padded_flattened_and_packed_batches_have_the_same_losses_and_gradients(
    family: str, attention: str
) -> None:
    model = tiny(family, attention)
    method = measure(model).method
    assert method == ("mask" if family in BY_MASK else "positions")
    expected, gradients = loss_and_gradients(model, Collator(0)(rows()))
    assert len(expected) == sum(len(ids) - 2 for ids in ROWS)
    batches = [Collator(0, None, method)(packed()), Collator(0, None, method)(rows())]
    if method == "positions":
        batches.append(Collator(0)(rows(), padding_free=True))
    for batch in batches:
        losses, other = loss_and_gradients(model, batch)
        assert losses == pytest.approx(expected, abs=1e-4)
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                other[name],
                gradient,
                atol=1e-4,
                rtol=1e-3,
                msg=lambda text, name=name: f"{name}: {text}",
            )


@pytest.mark.parametrize("family", BY_MASK)
def test_where_positions_leak_a_mask_is_found_and_the_leak_is_reported(family: str) -> None:
    found = measure(tiny(family))
    assert found.method == "mask"
    assert found.leak is not None
    assert found.leak < 1e-4
    assert found.leak_of_positions is not None
    assert found.leak_of_positions > 0.05


@pytest.mark.parametrize("family", LEAKING)
def test_a_model_that_leaks_whatever_it_is_given_is_an_error_with_the_leaks(family: str) -> None:
    (problem,) = refused(ModelError, lambda: measure(tiny(family))).problems
    assert problem.where.startswith(f"packing ({family.title()}ForCausalLM, ")
    assert "positions leaks (" in problem.found
    assert "mask fails (" in problem.found
    assert problem.commands == ("packing=none",)


@pytest.mark.parametrize("family", ["opt", "falcon", "mamba"])
def test_a_leak_is_far_above_what_counts_as_rounding(family: str) -> None:
    assert measure_leak(tiny(family), "positions") > 10 * max(EXACT.values())


class CountingOn(GPT2LMHeadModel):
    """Its positions never restart: packed, a sequence does not see its neighbours, and is still
    not what it is alone.
    """

    def forward(self, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        """As of GPT-2, without `position_ids`."""
        return super().forward(*args, **kwargs)


def test_a_model_that_differs_from_separate_rows_alone_leaks() -> None:
    torch.manual_seed(0)
    model = CountingOn(GPT2Config(**GPT))
    assert measure_leak(model, "mask") > 10 * max(EXACT.values())
    error = refused(ModelError, lambda: measure(model))
    assert re.search(r"mask leaks \([.0-9]+ ", error.problems[0].found)
    # rounding hides it there
    assert measure_leak(model.to(torch.bfloat16), "mask") < EXACT[torch.bfloat16]


def test_half_precision_is_judged_by_neighbours_alone() -> None:
    assert measure_leak(tiny("llama").to(torch.bfloat16), "positions") < EXACT[torch.bfloat16]
    assert measure_leak(tiny("opt").to(torch.bfloat16), "positions") > EXACT[torch.bfloat16]
    assert measure_leak(tiny("opt").to(torch.bfloat16), "mask") < EXACT[torch.bfloat16]


def test_the_trained_model_is_measured_by_the_method_of_the_small_one(golden_error: Pin) -> None:
    found, masked = Isolation("positions", 1e-6), Isolation("mask", 1e-6, 0.5)
    verify(tiny("llama"), found)
    verify(tiny("llama").to(torch.bfloat16), found)
    verify(tiny("opt"), masked)
    error = refused(ModelError, lambda: verify(tiny("opt"), found))
    leak = f"{measure_leak(tiny('opt'), 'positions'):.2g}"
    assert told(error) == {"packing (OPTForCausalLM, sdpa)": ("packing=none",)}
    assert f" {leak} " in error.problems[0].found
    golden_error(str(error).replace(leak, "<leak>"))


@pytest.mark.parametrize("found", [None, Isolation("positions")])
def test_a_run_that_is_trusted_or_joins_its_rows_is_not_measured(found: Isolation | None) -> None:
    verify(tiny("mamba"), found)
    error = refused(ModelError, lambda: verify(tiny("mamba"), Isolation("positions", 1e-6)))
    assert places(error)[0].startswith("packing (MambaForCausalLM, ")


def test_measuring_leaves_no_trace_on_the_random_state_or_the_model() -> None:
    torch.manual_seed(5)
    dropout = {"resid_pdrop": 0.5, "attn_pdrop": 0.5, "embd_pdrop": 0.5}
    model = GPT2LMHeadModel(GPT2Config(**{**GPT, **dropout})).train()
    before = torch.get_rng_state()
    found = measure(model)
    assert found.method == "positions"
    assert found.leak is not None
    assert found.leak < 1e-4
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture
def small_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The small models that are measured for an empty cache, in order."""
    monkeypatch.setenv("SFTPIPE_CACHE", str(tmp_path / "cache"))
    measured: list[Any] = []

    def seen(model: Any) -> Isolation:
        measured.append(model)
        return measure(model)

    monkeypatch.setattr(isolation, "measure", seen)
    return measured


def described(folder: Path, family: str, **fields: Any) -> Weights:
    """A model folder that holds a config alone."""
    AutoConfig.for_model(family, **{**FAMILIES[family], **fields}).save_pretrained(folder)
    return Weights(str(folder), None, "")


@pytest.mark.parametrize(
    ("family", "fields", "width"),
    [
        ("llama", {"vocab_size": 5000, "intermediate_size": 9000}, 256),
        ("gpt2", {"vocab_size": 5000, "n_layer": 12}, None),
        ("opt", {"vocab_size": 300, "ffn_dim": 128}, 128),
    ],
)
def test_a_small_model_stands_for_a_whole_one_and_is_measured_once(
    family: str, fields: dict[str, Any], width: int | None, small_ones: list[Any], tmp_path: Path
) -> None:
    weights = described(tmp_path / "model", family, **fields)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    found = small_isolation(ModelConfig(name_or_path="x"), weights)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.method == ("mask" if family == "opt" else "positions")
    assert small_isolation(ModelConfig(name_or_path="x"), weights) == found
    (model,) = small_ones
    assert type(model) is type(tiny(family))
    config = model.config
    assert (config.num_hidden_layers, config.vocab_size) == (2, min(512, fields["vocab_size"]))
    assert getattr(config, "intermediate_size", getattr(config, "ffn_dim", None)) == width
    assert (model.dtype, model.training) == (torch.float32, False)


def test_a_small_model_has_a_layer_of_each_kind(small_ones: list[Any], tmp_path: Path) -> None:
    weights = described(tmp_path / "model", "gemma3_text", num_hidden_layers=8, sliding_window=4)
    found = small_isolation(ModelConfig(name_or_path="x"), weights)
    assert found.method == "positions"
    (model,) = small_ones
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    assert model.config.sliding_window == 4


def test_another_attention_or_config_is_measured_anew(
    small_ones: list[Any], tmp_path: Path
) -> None:
    weights = described(tmp_path / "model", "llama")
    for name in ("auto", "eager", "sdpa", "flash_attention_2", "eager"):
        small_isolation(ModelConfig(name_or_path="x", attn_implementation=name), weights)
    names = [model.config._attn_implementation for model in small_ones]
    assert names == ["sdpa", "eager", "sdpa"]  # flash attention is measured as `auto` is
    described(tmp_path / "model", "llama", num_key_value_heads=4)
    small_isolation(ModelConfig(name_or_path="x"), weights)
    assert [model.config.num_key_value_heads for model in small_ones] == [2, 2, 2, 4]


@pytest.mark.parametrize(
    ("words", "method", "measured"),
    [
        (["packing=none"], None, False),
        (["packing=wrapped"], None, False),
        (["packing=bfd", "packing.isolation=trust"], "positions", False),
        (["packing=bfd"], "positions", True),
        (["packing=padding_free"], "positions", True),
    ],
)
def test_a_run_isolates_the_rows_that_share_a_sequence(
    words: list[str], method: str | None, measured: bool, smollm2: Weights
) -> None:
    found = find_isolation(compose(["recipe=yoda", *words]), smollm2)
    assert (found and found.method) == method
    assert (found is not None and found.leak is not None) == measured
