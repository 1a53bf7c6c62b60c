"""Models from scratch: their configs, their weights, and what is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sftpipe
from sftpipe.config.schema import ModelConfig, TokenizerConfig
from sftpipe.errors import ConfigError, ModelError
from sftpipe.model.architecture import check_room, check_windows, model_config
from sftpipe.model.embedding import fit_to_tokenizer
from sftpipe.model.isolation import small_isolation
from sftpipe.model.load import load_base, random_base
from sftpipe.model.weights import Weights, find_weights
from sftpipe.tokenizer.train import train_tokenizer
from support.models import CPU

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
    assert model.dtype is torch.float32
    assert all(parameter.requires_grad for parameter in model.parameters())


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


def test_a_model_from_scratch_takes_the_named_models_tokenizer(tiny_model: Path) -> None:
    words = [
        "recipe=yoda",
        "model=custom",
        f"model.name_or_path={tiny_model}",
        "model.init=random",
        "lora=none",
        "quantization=none",
    ]
    data = sftpipe.prepare(sftpipe.compose([*words, "dataset.limit=4"]))
    assert data.tokenizer.eos_token == "<|im_end|>"


# --- what is an error -----------------------------------------------------------------------------


def refusal(cfg: ModelConfig) -> str:
    with pytest.raises(ModelError) as error:
        model_config(cfg, find_weights(cfg, 0))
    return str(error.value)


def test_a_misspelt_field_is_an_error_with_a_suggestion() -> None:
    assert refusal(scratch(n_embdd=3, n_laier=1)) == (
        "model.config.n_embdd: unknown field\n    did you mean model.config.n_embd?\n"
        "model.config.n_laier: unknown field\n    did you mean model.config.n_layer?"
    )
    assert refusal(scratch(zzzz=3)).startswith(
        "model.config.zzzz: unknown field\n"
        "    allowed: the fields of GPT2Config: activation_function,"
    )


def test_names_that_all_models_share_are_known() -> None:
    assert model_config(scratch(num_hidden_layers=5), Weights("", None, "")).n_layer == 5


def test_a_misspelt_field_of_a_named_models_config_is_an_error(tiny_model: Path) -> None:
    said = refusal(ModelConfig(str(tiny_model), init="random", config={"hiden_size": 8}))
    assert (
        said == "model.config.hiden_size: unknown field\n    did you mean model.config.hidden_size?"
    )


def test_an_unknown_kind_of_model_is_an_error_with_a_suggestion() -> None:
    assert refusal(scratch(model_type="gpt_2")) == (
        "model.config.model_type: transformers has no causal language model 'gpt_2'\n"
        "    allowed: such as gpt2, llama, qwen3, gemma3_text, mistral, phi3\n"
        "    model.config.model_type=gpt2"
    )
    assert "'vit'" in refusal(scratch(model_type="vit"))


def test_a_value_that_transformers_refuses_is_an_error_and_no_traceback(letters: Any) -> None:
    assert refusal(scratch(n_embd="wide")).startswith(
        "model.config: transformers refuses it: Validation error for field 'n_embd'"
    )
    with pytest.raises(ModelError, match=r"^model\.config: transformers refuses it: .*divisible"):
        made(scratch(n_head=5), letters)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["lora=default"],
            "lora + model.init: lora keeps the weights of a base as they are, and "
            "model.init=random has none that are worth keeping\n"
            "    lora=none, or model.init=pretrained",
        ),
        (
            ["quantization=nf4", "lora=default"],
            "quantization + model.init: quantization keeps the weights of a base as they are, "
            "and model.init=random has none that are worth "
            "keeping\n    quantization=none, or model.init=pretrained",
        ),
        (
            ["model.config={model_type: null}"],
            "model.config.model_type: not set, and model.init=random makes a model of that kind\n"
            "    model.config.model_type=gpt2, or model.name_or_path=...",
        ),
        (
            ["model.revision=main"],
            "model.revision: 'main', and no model.name_or_path is named\n    leave it out",
        ),
        (
            ["model.name_or_path=gpt2", "tokenizer=default"],
            "model.config.model_type: model.name_or_path brings it\n    leave one out",
        ),
        (
            ["+model.config.vocab_size=5"],
            "model.config.vocab_size: another key owns this\n    write tokenizer=OPTION, one of ",
        ),
        (
            ["+model.config.dtype=float32"],
            "model.config.dtype: another key owns this\n    write model.dtype=...",
        ),
        (
            ["model.init=pretrained"],
            "model.name_or_path: not set, and model.init=pretrained loads weights\n"
            "    model.name_or_path=...\n"
            "model.config: nothing reads it with init: pretrained: weights bring their own "
            "config\n    model.init=random, or leave it out",
        ),
    ],
)
def test_choices_that_do_not_go_together(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        sftpipe.compose(["model=char_gpt", *TEXT, *words])
    assert message in str(error.value)


def test_a_model_without_a_name_is_an_error() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^model\.name_or_path: not set, and model\.init=pretrained loads weights\n",
    ):
        sftpipe.compose(["model=custom"])


# --- packing and positions ------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["char_gpt", "tiny_random"])
def test_packed_rows_are_isolated_on_models_from_scratch(option: str) -> None:
    cfg = sftpipe.compose([f"model={option}", *TEXT]).model
    found = small_isolation(cfg, find_weights(cfg, 42))
    assert found.method == "positions"
    assert found.leak is not None
    assert found.leak < 1e-4


def test_windows_longer_than_the_models_positions_are_an_error_that_names_both() -> None:
    words = [
        "model=tiny_random",
        *TEXT,
        "packing=blocks",
        "model.config.max_position_embeddings=65",
    ]
    cfg = sftpipe.compose([*words, "packing.block_size=65"])
    with pytest.raises(ModelError) as error:
        check_windows(cfg, find_weights(cfg.model, cfg.seed))
    assert str(error.value) == (
        "packing.block_size: 65 makes windows of 66 tokens, and the model (llama) has 65 "
        "positions\n    packing.block_size=64 or less"
    )
    fitting = sftpipe.compose([*words, "packing.block_size=64"])
    assert len(sftpipe.prepare(fitting).train[0]["input_ids"]) == 65


def test_a_run_without_windows_needs_no_positions() -> None:
    cfg = sftpipe.compose(["model=tiny_random", *TEXT, "packing=none"])
    check_windows(cfg, find_weights(cfg.model, cfg.seed))


@pytest.mark.parametrize(("tokens", "fix"), [(70, "key=44 or less"), (200, "shorter ones")])
def test_the_error_names_the_largest_value_that_fits(tokens: int, fix: str) -> None:
    with pytest.raises(ModelError) as error:
        check_room(
            model_config(scratch(), Weights("", None, "")),
            tokens,
            "key",
            50,
            "rows",
            "shorter ones",
        )
    assert (
        str(error.value) == f"key: 50 makes rows of {tokens} tokens, and "
        f"the model (gpt2) has 64 positions\n    {fix}"
    )


def test_a_model_without_positions_has_room_for_all() -> None:
    cfg = ModelConfig(init="random", config={"model_type": "mamba"})
    check_room(model_config(cfg, find_weights(cfg, 0)), 10**9, "", 1, "")
