"""Models from scratch: their configs, their weights, and what is an error."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sftpipe
from sftpipe.config.schema import ModelConfig, TokenizerConfig
from sftpipe.errors import ModelError
from sftpipe.model.architecture import check_room, check_windows, model_config
from sftpipe.model.embedding import fit_to_tokenizer
from sftpipe.model.isolation import small_isolation
from sftpipe.model.load import load_base, make_base, random_base
from sftpipe.model.weights import Weights, find_weights
from sftpipe.tokenizer.train import train_tokenizer
from support.configs import compose, config_error
from support.errors import Pin, named, places, refused, told
from support.models import CPU, HALF

GPT: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
}
TEXT = ["tokenizer=char", "dataset=ko_corpus", "format=text", "loss=full"]


def scratch(**fields: Any) -> ModelConfig:
    return ModelConfig(init="random", config={**GPT, **fields})


@pytest.fixture(scope="module")
def letters() -> Any:
    return train_tokenizer(TokenizerConfig(type="char"), ["abcdefgh"])


def made(cfg: ModelConfig, tokenizer: Any, seed: int = 42) -> Any:
    return random_base(cfg, find_weights(cfg, seed), tokenizer, seed, CPU)


# --- weights --------------------------------------------------------------------------------------


def test_the_tokenizer_gives_the_vocabulary_and_the_special_ids(letters: Any) -> None:
    model = made(scratch(), letters)
    assert model.get_input_embeddings().weight.shape == (10, 32)
    config = model.config
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id, config.bos_token_id) == (
        10,
        9,
        8,
        None,
    )
    fit_to_tokenizer(model, letters)
    assert model.generation_config.eos_token_id == [8]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert config.use_cache is False


def test_the_dtype_is_that_of_trained_weights_and_the_attention_that_of_the_config(
    letters: Any,
) -> None:
    cfg = ModelConfig(init="random", config=GPT, attn_implementation="eager")
    model = random_base(cfg, find_weights(cfg, 42), letters, 42, HALF)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config._attn_implementation == "eager"
    assert made(scratch(), letters).config._attn_implementation == "sdpa"


def test_a_run_from_scratch_draws_its_weights_from_the_seed_of_the_run(letters: Any) -> None:
    cfg = compose(["model=char_gpt", *TEXT, "seed=7"])
    cfg = replace(cfg, model=scratch())
    drawn = make_base(cfg, find_weights(cfg.model, cfg.seed), letters, HALF).state_dict()
    torch.testing.assert_close(drawn, made(scratch(), letters, 7).state_dict(), rtol=0, atol=0)


def test_weights_follow_the_seed_and_nothing_else(letters: Any) -> None:
    first = made(scratch(), letters).state_dict()
    state = torch.random.get_rng_state()
    torch.rand(3)
    again, other = (
        made(scratch(), letters).state_dict(),
        made(scratch(), letters, seed=7).state_dict(),
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])
    torch.random.set_rng_state(state)
    made(scratch(), letters)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_identity_names_the_kind_and_the_seed(letters: Any) -> None:
    assert find_weights(scratch(), 7) == Weights("", None, "gpt2", seed=7)
    assert find_weights(scratch(), 7).identity == "random gpt2 (seed 7)"
    assert made(scratch(), letters, 7).name_or_path == "random gpt2 (seed 7)"


def test_a_named_model_lends_its_config_and_its_tokenizer(tiny_model: Path, tokenizer: Any) -> None:
    cfg = ModelConfig(str(tiny_model), init="random", config={"num_hidden_layers": 1})
    weights = find_weights(cfg, 3)
    assert weights.path == str(tiny_model)
    assert weights.identity.startswith("random tiny-llama sha256:")
    assert weights.identity.endswith(" (seed 3)")
    model = made(cfg, tokenizer, 3)
    assert (model.config.model_type, model.config.hidden_size, model.config.num_hidden_layers) == (
        "llama",
        64,
        1,
    )
    loaded = load_base(
        ModelConfig(str(tiny_model)),
        {},
        find_weights(ModelConfig(str(tiny_model))),
        CPU,
        frozen=True,
    )
    assert not torch.equal(
        model.get_input_embeddings().weight, loaded.get_input_embeddings().weight
    )


@pytest.mark.slow
def test_a_model_from_scratch_takes_the_named_models_tokenizer(tiny_model: Path) -> None:
    words = [
        "recipe=yoda",
        "model=custom",
        f"model.name_or_path={tiny_model}",
        "model.init=random",
        "lora=none",
        "quantization=none",
    ]
    data = sftpipe.prepare(compose([*words, "dataset.limit=4"]))
    assert data.tokenizer.eos_token == "<|im_end|>"


# --- what is an error -----------------------------------------------------------------------------


def refusal(cfg: ModelConfig) -> ModelError:
    return refused(ModelError, lambda: model_config(cfg, find_weights(cfg, 0)))


def test_a_misspelt_field_is_an_error_with_a_suggestion(golden_error: Pin) -> None:
    error = refusal(scratch(n_embdd=3, n_laier=1))
    assert places(error) == ["model.config.n_embdd", "model.config.n_laier"]
    golden_error(error)
    (problem,) = refusal(scratch(zzzz=3)).problems
    assert problem.where == "model.config.zzzz"
    assert "GPT2Config: activation_function," in problem.allowed


def test_names_that_all_models_share_are_known() -> None:
    assert model_config(scratch(num_hidden_layers=5), Weights("", None, "")).n_layer == 5


def test_a_misspelt_field_of_a_named_models_config_is_an_error(tiny_model: Path) -> None:
    error = refusal(ModelConfig(str(tiny_model), init="random", config={"hiden_size": 8}))
    assert places(error) == ["model.config.hiden_size"]
    assert "model.config.hidden_size" in error.problems[0].fix


def test_an_unknown_kind_of_model_is_an_error_with_a_suggestion(golden_error: Pin) -> None:
    error = refusal(scratch(model_type="gpt_2"))
    assert told(error) == {"model.config.model_type": ("model.config.model_type=gpt2",)}
    golden_error(error)
    assert "'vit'" in str(refusal(scratch(model_type="vit")))


def test_a_value_that_transformers_refuses_is_an_error_and_no_traceback(letters: Any) -> None:
    error = refusal(scratch(n_embd="wide"))
    assert places(error) == ["model.config"]
    assert "field 'n_embd'" in error.problems[0].found
    error = refused(ModelError, lambda: made(scratch(n_head=5), letters))
    assert places(error) == ["model.config"]
    assert "divisible" in error.problems[0].found


KEPT = ("lora=none", "model.init=pretrained")


@pytest.mark.parametrize(
    ("words", "expected"),
    named(
        [
            ["an adapter", ["lora=default"], {"lora + model.init": KEPT}],
            [
                "quantized",
                ["quantization=nf4", "lora=default"],
                {
                    "lora + model.init": KEPT,
                    "quantization + model.init": ("quantization=none", "model.init=pretrained"),
                },
            ],
            [
                "no kind of model",
                ["model.config={model_type: null}"],
                {"model.config.model_type": ("model.config.model_type=gpt2",)},
            ],
            ["revision of nothing", ["model.revision=main"], {"model.revision": ()}],
            [
                "two kinds of model",
                ["model.name_or_path=gpt2", "tokenizer=default"],
                {"model.config.model_type": ()},
            ],
            [
                "size of the vocabulary",
                ["+model.config.vocab_size=5"],
                {"model.config.vocab_size": ()},
            ],
            ["dtype", ["+model.config.dtype=float32"], {"model.config.dtype": ()}],
            [
                "weights of no name",
                ["model.init=pretrained"],
                {
                    "model.name_or_path": (),
                    "model.config": ("model.init=random",),
                    "tokenizer.type=char": ("tokenizer=default", "model.init=random"),
                },
            ],
        ]
    ),
)
def test_choices_that_do_not_go_together(
    words: list[str], expected: dict[str, tuple[str, ...]], golden_error: Pin
) -> None:
    error = config_error("model=char_gpt", *TEXT, *words)
    assert told(error) == expected
    golden_error(error)


def test_a_model_without_a_name_is_an_error() -> None:
    assert places(config_error("model=custom")) == ["model.name_or_path"]


# --- packing and positions ------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["char_gpt", "tiny_random"])
def test_packed_rows_are_isolated_on_models_from_scratch(option: str) -> None:
    cfg = compose([f"model={option}", *TEXT]).model
    found = small_isolation(cfg, find_weights(cfg, 42))
    assert found.method == "positions"
    assert found.leak is not None
    assert found.leak < 1e-4


def test_windows_longer_than_the_models_positions_are_an_error_that_names_both(
    golden_error: Pin,
) -> None:
    words = [
        "model=tiny_random",
        *TEXT,
        "packing=blocks",
        "model.config.max_position_embeddings=65",
    ]
    cfg = compose([*words, "packing.block_size=65"])
    error = refused(ModelError, lambda: check_windows(cfg, find_weights(cfg.model, cfg.seed)))
    assert told(error) == {"packing.block_size": ("packing.block_size=64",)}
    assert re.findall(r"\d+", error.problems[0].found) == ["65", "66", "65"]
    golden_error(error)
    fitting = compose([*words, "packing.block_size=64"])
    assert len(sftpipe.prepare(fitting).train[0]["input_ids"]) == 65


def test_a_run_without_windows_needs_no_positions() -> None:
    words = ["model=tiny_random", *TEXT, "model.config.max_position_embeddings=8"]
    windows = compose([*words, "packing=blocks", "packing.block_size=8"])
    weights = find_weights(windows.model, windows.seed)
    error = refused(ModelError, lambda: check_windows(windows, weights))
    assert places(error) == ["packing.block_size"]
    assert re.findall(r"\d+", error.problems[0].found)[:2] == ["8", "9"]
    for packing in (None, replace(windows.packing, strategy="wrapped", block_size=None)):
        check_windows(replace(windows, packing=packing), find_weights(windows.model, windows.seed))


@pytest.mark.parametrize(("tokens", "fix"), [(70, "key=44 or less"), (200, "shorter ones")])
def test_the_error_names_the_largest_value_that_fits(tokens: int, fix: str) -> None:
    config = model_config(scratch(), Weights("", None, ""))
    room = (config, tokens, "key", 50, "rows", "shorter ones")
    (problem,) = refused(ModelError, lambda: check_room(*room)).problems
    assert (problem.where, problem.fix.replace("`", "")) == ("key", fix)
    assert re.findall(r"\d+", problem.found.replace("gpt2", "")) == ["50", str(tokens), "64"]


def test_a_sequence_may_fill_the_positions_and_a_model_without_any_has_room_for_all() -> None:
    endless = ModelConfig(init="random", config={"model_type": "mamba"})
    check_room(model_config(endless, find_weights(endless, 0)), 10**9, "key", 50, "rows")
    config = model_config(scratch(), Weights("", None, ""))
    check_room(config, 64, "key", 50, "rows")
    error = refused(ModelError, lambda: check_room(config, 65, "key", 50, "rows"))
    assert told(error) == {"key": ("key=49",)}
