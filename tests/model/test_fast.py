"""The fast step against PEFT and transformers themselves, with full logits, on tiny models."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear4bit
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from sftpipe.config.schema import ModelConfig
from sftpipe.data.labels import IGNORED
from sftpipe.data.packing import Collator
from sftpipe.model import fast
from sftpipe.model.fast import joined, sequences, speed_up
from sftpipe.model.load import keep_gradients_of_4bit
from sftpipe.model.weights import Weights
from support.trainers import wake_adapter

SMALL: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2: dict[str, Any] = {
    "vocab_size": 120,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "resid_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
}
OPT: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
    "dropout": 0.0,
}
# the last two see four tokens back, in every second layer or in all of them
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "model_type": "llama", "tie_word_embeddings": True},
    "untied": {**SMALL, "model_type": "llama", "tie_word_embeddings": False},
    "gpt2": {**GPT2, "model_type": "gpt2"},
    "opt": {**OPT, "model_type": "opt"},
    "phi3": {**SMALL, "model_type": "phi3"},
    "qwen3": {**SMALL, "model_type": "qwen3", "head_dim": 8},
    "gemma3": {
        **SMALL,
        "model_type": "gemma3_text",
        "head_dim": 8,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mistral": {**SMALL, "model_type": "mistral", "sliding_window": 4},
}
PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "lora_dropout": 0.0}
WAYS: dict[str, dict[str, Any] | None] = {
    "lora": PLAIN,
    "dropout": {**PLAIN, "lora_dropout": 0.3},
    "dora": {**PLAIN, "use_dora": True},
    "nf4": PLAIN,
    "new tokens": {**PLAIN, "trainable_token_indices": [118, 119]},
    "full": None,
}
ROWS = [
    [7, 8, 9, 10, 11, 30],
    [12, 13, 118],
    [15, 16, 17, 18, 119, 20, 21, 40, 41],
    [22, 23, 24, 25],
]


def made(family: str, way: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A random model of a family with the adapter of a way, whose config lies in the folder."""
    torch.manual_seed(0)
    fields = dict(FAMILIES[family])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():  # as large as trained ones, so that a leak shows
        parameter.data.mul_(3.0)
    model.save_pretrained(folder)
    extra: dict[str, Any] = {}
    if way == "nf4":
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **extra)
    keep_gradients_of_4bit(model)
    if (adapter := WAYS[way]) is not None:
        torch.manual_seed(1)
        fields = {**adapter, "fan_in_fan_out": family == "gpt2"}
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **fields))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        wake_adapter(model)
    return model.train()


def sped_up(model: Any, folder: Path, **fields: Any) -> tuple[Any, bool]:
    """A copy of a model that is fast, and whether it takes joined rows."""
    made = copy.deepcopy(model)
    return made, speed_up(made, ModelConfig(str(folder), **fields), Weights(str(folder), None, "x"))


def rows() -> list[dict[str, Any]]:
    """Rows whose first two tokens are a prompt."""
    return [{"input_ids": ids, "labels": [IGNORED, IGNORED, *ids[2:]]} for ids in ROWS]


def packed() -> list[dict[str, Any]]:
    """The same rows, two and two in one."""
    return [
        {
            "input_ids": [*a["input_ids"], *b["input_ids"]],
            "labels": [*a["labels"], *b["labels"]],
            "seq_lengths": [len(a["input_ids"]), len(b["input_ids"])],
        }
        for a, b in zip(rows()[::2], rows()[1::2], strict=True)
    ]


def loss_of(model: Any, batch: dict[str, Any], join: bool = False) -> torch.Tensor:
    """The mean loss of the trained tokens from full logits."""
    row = joined(batch) if join else None
    inputs, lengths = row or (dict(batch), None)
    labels = inputs.pop("labels")
    with sequences(lengths):
        logits = model(**inputs, use_cache=False).logits.float()
    targets = labels[:, 1:].flatten()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=IGNORED)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The distance of two sets of tensors, as a share of the second's length."""
    assert found.keys() == expected.keys()
    off = sum(float((found[name] - expected[name]).double().square().sum()) for name in expected)
    whole = sum(float(one.double().square().sum()) for one in expected.values())
    return (off / whole) ** 0.5


@pytest.mark.parametrize("way", [way for way in WAYS if way != "dropout"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_peft_with_full_logits(
    family: str, way: str, tmp_path: Path
) -> None:
    plain = made(family, way, tmp_path)
    quick, joins = sped_up(plain, tmp_path)
    assert joins
    padded = Collator(0)(rows())
    expected = loss_of(plain, padded)
    wanted = gradients(plain, expected)
    for batch in (padded, Collator(0, None, "positions")(packed()), Collator(0)(rows(), True)):
        loss = loss_of(quick, batch, joins)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert apart(gradients(quick, loss), wanted) < 1e-5


@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dropout_draws_what_peft_draws(
    family: str, words: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not words:  # as on a CPU of Intel
        monkeypatch.setattr(fast, "_reads_words", lambda: False)
    plain = made(family, "dropout", tmp_path)
    quick, joins = sped_up(plain, tmp_path)
    batch = Collator(0)(rows()[2:3])  # one row: joined, it has the same shape
    torch.manual_seed(5)
    wanted = gradients(plain, loss_of(plain, batch))
    torch.manual_seed(5)
    assert apart(gradients(quick, loss_of(quick, batch, joins)), wanted) < 1e-5
    torch.manual_seed(6)
    assert apart(gradients(quick, loss_of(quick, batch, joins)), wanted) > 0.01
    quick.eval()
    plain.eval()
    assert loss_of(quick, batch, joins).item() == pytest.approx(loss_of(plain, batch).item())


@given(st.floats(0, 1), st.integers(0, 2**32))
def test_numbers_are_drawn_as_torch_draws_them(share: float, seed: int) -> None:
    ours, theirs = (torch.Generator().manual_seed(seed) for _ in range(2))
    expected = torch.empty(50).bernoulli_(share, generator=theirs) == 1
    found = fast._kept(expected.shape, share, ours)
    if fast._reads_words():
        assert torch.equal(found, expected)
        assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize("way", ["lora", "dora", "nf4", "new tokens", "full"])
def test_steps_end_in_the_same_weights(way: str, tmp_path: Path) -> None:
    plain = made("llama", way, tmp_path)
    quick, joins = sped_up(plain, tmp_path)
    batch = Collator(0)(rows())
    before = {n: p.detach().clone() for n, p in plain.named_parameters() if p.requires_grad}
    moved = []
    for model, join in ((plain, False), (quick, joins)):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            loss_of(model, batch, join).backward()
            optimizer.step()
        after = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        moved.append({name: after[name] - before[name] for name in before})
    assert apart(moved[1], moved[0]) < 1e-4


@pytest.mark.parametrize(("way", "tolerance"), [("lora", 0.05), ("nf4", 0.05), ("dora", 0.05)])
def test_bfloat16_is_near_float32_and_no_farther_than_autocast_of_peft(
    way: str, tolerance: float, tmp_path: Path
) -> None:
    exact = made("llama", way, tmp_path)
    half = made("llama", way, tmp_path, torch.bfloat16)
    quick, joins = sped_up(half, tmp_path)
    batch = Collator(0)(rows())
    expected = loss_of(exact, batch)
    wanted = gradients(exact, expected)
    with torch.autocast("cpu", torch.bfloat16):
        usual = loss_of(half, batch)
        loss = loss_of(quick, batch, joins)
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    off = apart(gradients(quick, loss), wanted)
    assert off < max(tolerance, 1.5 * apart(gradients(half, usual), wanted))
    assert {one.dtype for one in gradients(quick, loss_again(quick, batch, joins)).values()} == {
        torch.float32
    }


def loss_again(model: Any, batch: dict[str, Any], join: bool) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return loss_of(model, batch, join)


def is_taken_over(layer: Any) -> bool:
    return isinstance(layer.__dict__.get("forward"), functools.partial)


@pytest.mark.parametrize(
    ("fields", "taken"),
    [
        (PLAIN, True),
        ({**PLAIN, "use_dora": True}, False),
        ({**PLAIN, "modules_to_save": ["lm_head"]}, True),
        ({**PLAIN, "target_modules": ["q_proj"], "bias": "lora_only"}, True),
    ],
)
def test_layers_are_taken_over_where_the_adapter_is_plain(
    fields: dict[str, Any], taken: bool, tmp_path: Path
) -> None:
    made("untied", "full", tmp_path)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path), LoraConfig(task_type="CAUSAL_LM", **fields)
    )
    sped_up_one, _ = sped_up(model, tmp_path)
    layer = sped_up_one.base_model.model.model.layers[0].self_attn.q_proj
    assert is_taken_over(layer) is taken


def test_a_bias_that_is_trained_keeps_its_layer_to_peft(tmp_path: Path) -> None:
    made("gpt2", "full", tmp_path)
    config = LoraConfig(task_type="CAUSAL_LM", **{**PLAIN, "bias": "all", "fan_in_fan_out": True})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path), config)
    quick, joins = sped_up(model, tmp_path)
    assert joins
    assert not any(map(is_taken_over, quick.modules()))
    batch = Collator(0)(rows())
    wanted = gradients(model, loss_of(model, batch))
    assert apart(gradients(quick, loss_of(quick, batch, joins)), wanted) < 1e-5


def test_an_adapter_that_is_off_merged_or_another_is_peft_s_own_matter(tmp_path: Path) -> None:
    plain = made("llama", "lora", tmp_path).eval()
    quick, _ = sped_up(plain, tmp_path)
    ids = torch.tensor([ROWS[2]])
    with torch.no_grad():
        on = quick(input_ids=ids).logits
        torch.testing.assert_close(on, plain(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
        with quick.disable_adapter(), plain.disable_adapter():
            off = quick(input_ids=ids).logits
            torch.testing.assert_close(off, plain(input_ids=ids).logits)
        assert (on - off).abs().max() > 0.01
        quick.merge_adapter()
        torch.testing.assert_close(quick(input_ids=ids).logits, on, atol=1e-3, rtol=1e-3)
        quick.unmerge_adapter()
        quick.add_adapter("other", LoraConfig(task_type="CAUSAL_LM", **PLAIN))
        quick.set_adapter("other")  # its B is zero
        torch.testing.assert_close(quick(input_ids=ids).logits, off, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", ["lora", "full"])
def test_checkpointed_layers_are_run_again_on_the_same_sequences(way: str, tmp_path: Path) -> None:
    plain = made("gemma3", way, tmp_path)
    quick, joins = sped_up(plain, tmp_path)
    for model in (plain, quick):
        model.activation_checkpointing_enable({"use_reentrant": False})
    batch = Collator(0)(rows())
    wanted = gradients(plain, loss_of(plain, batch))
    assert apart(gradients(quick, loss_of(quick, batch, joins)), wanted) < 1e-5


def test_answers_are_the_same_and_nothing_of_it_is_saved(tmp_path: Path) -> None:
    plain = made("llama", "lora", tmp_path / "base").eval()
    quick, joins = sped_up(plain, tmp_path / "base")
    assert joins
    asked = {
        "input_ids": torch.tensor([[0, 0, 7, 8, 9], [15, 16, 17, 18, 19]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
    }
    answers = [
        model.generate(**asked, max_new_tokens=8, do_sample=False) for model in (plain, quick)
    ]
    assert answers[0].tolist() == answers[1].tolist()
    quick.get_base_model().save_pretrained(tmp_path / "saved")
    assert "sftpipe" not in (tmp_path / "saved" / "config.json").read_text()
    assert quick.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_attention_that_somebody_chose_is_kept(attention: str, tmp_path: Path) -> None:
    made("llama", "full", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention)
    assert sped_up(model, tmp_path, attn_implementation=attention)[1] is (attention == "sdpa")
    assert model.config._attn_implementation == attention


def test_a_trained_model_that_differs_from_its_class_keeps_its_rows_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("llama", "full", tmp_path)
    monkeypatch.setattr(fast, "_leak", lambda one: 0.0 if one is not model else 1.0)
    assert not speed_up(model, ModelConfig(str(tmp_path)), Weights(str(tmp_path), None, "x"))
    assert model.config._attn_implementation == "sdpa"


# --- 4 bits ---------------------------------------------------------------------------------------


@pytest.fixture
def dequantized(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each weight that is dequantized by us, in order."""
    sizes: list[int] = []

    def spy(data: torch.Tensor, state: Any) -> torch.Tensor:
        whole: torch.Tensor = original(data, state)
        sizes.append(whole.numel())
        return whole

    original = fast.dequantize_4bit
    monkeypatch.setattr(fast, "dequantize_4bit", spy)
    return sizes


@pytest.mark.parametrize(
    ("cache", "share", "kept"), [("auto", 1.0, True), ("auto", 0.0, False), ("off", 1.0, False)]
)
def test_weights_in_4_bits_are_dequantized_once_where_there_is_room(
    cache: str,
    share: float,
    kept: bool,
    dequantized: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = made("llama", "nf4", tmp_path)
    layers = [one for one in plain.modules() if isinstance(one, Linear4bit)]
    needed = 4 * sum(one.weight.quant_state.shape.numel() for one in layers)
    memory = psutil.virtual_memory()._replace(available=int(share * 2 * needed))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    quick, joins = sped_up(plain, tmp_path, nf4_cache=cache)
    assert (len(dequantized) == len(layers)) is kept
    batch = Collator(0)(rows())
    wanted = gradients(plain, loss_of(plain, batch))
    dequantized.clear()
    assert apart(gradients(quick, loss_of(quick, batch, joins)), wanted) < 1e-5
    assert len(dequantized) == (0 if kept else len(layers))


def test_kept_and_dequantized_weights_give_the_same_bits(tmp_path: Path) -> None:
    plain = made("llama", "nf4", tmp_path)
    batch = Collator(0)(rows())
    found = []
    for cache in ("auto", "off"):
        quick, joins = sped_up(plain, tmp_path, nf4_cache=cache)
        found.append(gradients(quick, loss_of(quick, batch, joins)))
    assert apart(found[0], found[1]) == 0


# --- rows -----------------------------------------------------------------------------------------


def test_padding_goes_and_no_row_is_predicted_by_the_one_before() -> None:
    batch = Collator(0)(
        [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    )
    row, lengths = joined(batch)  # type: ignore[misc]
    assert lengths == [3, 1]
    assert row["input_ids"].tolist() == [[5, 6, 7, 8]]
    assert row["labels"].tolist() == [[IGNORED, 6, 7, IGNORED]]
    assert row["position_ids"].tolist() == [[0, 1, 2, 0]]
    assert "attention_mask" not in row
    assert batch["labels"][0].tolist() == [5, 6, 7]  # the batch itself is as it was


def test_packed_rows_know_their_sequences_and_a_mask_of_their_own_is_left_alone() -> None:
    batch = Collator(0, None, "positions")(packed())
    row, lengths = joined(batch)  # type: ignore[misc]
    assert lengths == [len(ids) for ids in ROWS]
    assert row["input_ids"] is batch["input_ids"]
    assert joined(Collator(0, None, "mask")(packed())) is None


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5))
def test_no_token_is_lost_and_the_same_are_trained(ids: list[list[int]]) -> None:
    made = [{"input_ids": one, "labels": [IGNORED if v < 4 else v for v in one]} for one in ids]
    row, lengths = joined(Collator(0)(made))  # type: ignore[misc]
    assert row["input_ids"].tolist() == [[token for one in ids for token in one]]
    assert lengths == [len(one) for one in ids]
    targets = [label for one in made for label in one["labels"][1:] if label != IGNORED]
    labels = row["labels"][0, 1:]
    assert labels[labels != IGNORED].tolist() == targets


def test_a_mask_that_cannot_be_read_by_position_is_refused() -> None:
    with sequences([2, 2]), pytest.raises(ValueError, match="positions"):
        fast._mask(q_length=4, use_vmap=True)
    with sequences([2, 2]), pytest.raises(ValueError, match="positions"):
        fast._mask(q_length=5)


def unused(_: Callable[..., Any]) -> None: ...
