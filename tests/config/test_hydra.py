"""Composing a config: which value wins, recipes, sweeps, and the records of a run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from sftpipe.config.hydra import (
    compose,
    compose_run,
    enter_hydra,
    expand_sweep,
    from_recorded,
    literal,
)
from sftpipe.config.options import find_recipes
from sftpipe.config.schema import to_plain
from sftpipe.errors import ConfigError
from support.configs import error_of

REPOSITORY = Path(__file__).parents[2]


# --- which value wins -----------------------------------------------------------------------------


def test_recipe_yoda_selects_its_groups_and_numbers() -> None:
    cfg = compose(["recipe=yoda"])

    assert cfg.recipe == "yoda"
    assert cfg.model.name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (cfg.dataset.path, cfg.dataset.name) == ("embedded", "yoda")
    assert cfg.loss.type == "completion_only"
    assert cfg.quantization == {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "auto",
    }
    assert {
        name: cfg.lora[name] for name in ("r", "lora_alpha", "lora_dropout", "target_modules")
    } == {
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "target_modules": "all-linear",
    }


def test_without_a_recipe_everything_optional_is_off() -> None:
    cfg = compose()

    assert (cfg.recipe, cfg.tracking) == (None, None)
    assert (cfg.quantization, cfg.lora, cfg.packing) == ({}, {}, None)


def test_a_recipe_wins_over_the_group_default_and_the_primary_config(
    write_recipe: Callable[..., None],
) -> None:
    write_recipe("seed: 7\nsft: {warmup_steps: 11}\n")

    cfg = compose(["recipe=mine"])

    assert (cfg.seed, cfg.sft["warmup_steps"]) == (7, 11)  # 42 and 0.03 where `_self_` comes last
    assert cfg.sft["save_steps"] == 100  # what the recipe leaves alone


def test_the_command_line_wins_over_the_recipe(write_recipe: Callable[..., None]) -> None:
    write_recipe("defaults:\n  - override /lora: dora\nseed: 7\nlora: {r: 4}\n")

    cfg = compose(["seed=9", "lora.r=2", "recipe=mine", "lora=rslora"])  # in any order

    assert (cfg.seed, cfg.lora["r"]) == (9, 2)
    assert cfg.lora.get("use_rslora") is True
    assert "use_dora" not in cfg.lora


def test_a_recipe_may_build_on_another(write_recipe: Callable[..., None]) -> None:
    write_recipe("defaults: [yoda, _self_]\nlora: {r: 4}\n")

    cfg = compose(["recipe=mine"])

    assert (cfg.recipe, cfg.lora["r"], cfg.lora["lora_alpha"]) == ("mine", 4, 32)


def test_1e_4_is_a_float_on_the_command_line() -> None:
    assert repr(compose(["sft.learning_rate=1e-4"]).sft["learning_rate"]) == "0.0001"


def test_1e_4_is_a_float_in_a_recipe(write_recipe: Callable[..., None]) -> None:
    write_recipe("sft: {learning_rate: 1e-4}\n")

    assert repr(compose(["recipe=mine"]).sft["learning_rate"]) == "0.0001"


def test_1e_4_is_a_float_in_a_group_file(shipped: Path) -> None:
    file = shipped / "conf" / "sft" / "default.yaml"
    file.write_text(re.sub(r"learning_rate: \S+", "learning_rate: 1e-4", file.read_text()))

    assert repr(compose().sft["learning_rate"]) == "0.0001"


def test_a_field_that_the_yaml_leaves_out_needs_no_plus_and_may_have_one() -> None:
    lora = compose(
        ["lora=default", "lora.use_dora=true", "+lora.use_rslora=true", "++lora.lora_bias=true"]
    ).lora

    assert (lora["use_dora"], lora["use_rslora"], lora["lora_bias"]) == (True, True, True)


def test_a_recorded_config_reads_back_equal() -> None:
    cfg = compose(["recipe=yoda", "tracking=wandb", "sft.learning_rate=1e-5", "dataset.limit=7"])
    recorded = yaml.safe_load(yaml.safe_dump(to_plain(cfg)))

    assert from_recorded(recorded, "config.yaml") == cfg


def test_a_recorded_config_with_an_unknown_key_names_its_file() -> None:
    recorded = {**to_plain(compose()), "sedd": 1}

    with pytest.raises(ConfigError, match=r"sedd \(old/config.yaml\): unknown key"):
        from_recorded(recorded, "old/config.yaml")


def test_an_application_keeps_its_own_hydra(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "theirs.yaml").write_text("answer: 42\n")

    with initialize_config_dir(config_dir=str(tmp_path / "app"), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        compose()
        error_of("sedd=1")
        assert GlobalHydra.instance().hydra is before
        assert hydra_compose("theirs").answer == 42


# --- options and recipes --------------------------------------------------------------------------


def test_a_wrong_word_on_the_command_line_lists_the_right_ones() -> None:
    wrong = {
        "lora=doraa": "lora=doraa (command line): no such option of lora\n"
        "    allowed: none, default, dora, rslora\n    lora=dora",
        "recipe=yodaa": "recipe=yodaa (command line): no such recipe\n"
        f"    allowed: {', '.join(find_recipes())}\n    recipe=yoda",
        "yoda": "yoda: neither a flag nor key=value\n"
        "    allowed: key=value, such as recipe=yoda or lora.r=8\n    recipe=yoda",
        "--fast": "--fast: unknown flag\n    sftpipe --help",
        "seed=[1": "seed: Hydra cannot read the value '[1'\n    put it in quotes: 'seed=\"[1\"'",
        "chat_template=x": "chat_template (command line): unknown key; this is axolotl's name\n"
        "    write tokenizer.chat_template=...",
    }

    assert error_of(*wrong) == "\n".join(wrong.values())


def test_a_recipe_of_the_working_folder_joins_the_shipped_ones(
    write_recipe: Callable[..., None],
) -> None:
    write_recipe("seed: 7\n")

    assert {"mine", "yoda"} <= set(find_recipes())
    assert compose(["recipe=mine"]).seed == 7
    assert re.search(r"allowed: .*\bmine, .*\byoda\b", error_of("recipe=zzz"))


def test_a_recipe_name_in_both_folders_is_an_error(
    write_recipe: Callable[..., None], tmp_path: Path
) -> None:
    write_recipe("seed: 7\n", name="yoda")

    text = error_of("recipe=yoda")

    assert text.startswith("recipe=yoda: two recipes of that name: ")
    assert text.endswith(f"rename {tmp_path}/recipes/yoda.yaml")


def test_in_the_repository_the_two_recipe_folders_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)

    assert compose(["recipe=yoda"]).recipe == "yoda"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [1\n", "no valid YAML"),
        ("seed:\t1\n", "no valid YAML"),
        ("- seed\n", "a YAML list\n    allowed: keys and values (a mapping)"),
        ("seed\n", "a YAML str\n    allowed: keys and values (a mapping)"),
    ],
)
def test_a_broken_recipe_file_is_named(
    text: str, message: str, write_recipe: Callable[..., None], tmp_path: Path
) -> None:
    write_recipe(text)

    assert f"{tmp_path}/recipes/mine.yaml: {message}" in error_of("recipe=mine")


BROKEN = {
    "a key twice": "seed: 1\nseed: 2\n",
    "an open interpolation": "output_dir: ${seed\n",
    "null as a key": "null: 1\n",
    "a mapping of defaults": "defaults: {lora: default}\n",
    "empty defaults": "defaults:\nseed: 1\n",
    "an option where keys belong": "lora: default\n",
    "a number where keys belong": "sft: 3\n",
    "a number as a key": "1: 2\n",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_recipe_that_cannot_be_composed_is_named(
    text: str, write_recipe: Callable[..., None]
) -> None:
    write_recipe(text)

    assert "mine.yaml" in error_of("recipe=mine")


def test_a_recipe_that_overrides_what_is_not_there_is_named(
    write_recipe: Callable[..., None],
) -> None:
    write_recipe(
        "defaults:\n  - override /lora: doraa\n  - override /lorra: dora\n"
        "  - override /chat_template: chatml_bos_eos\n"
    )

    text = error_of("recipe=mine")

    assert "lora=doraa (./recipes/mine.yaml): no such option of lora" in text
    assert "override /lorra: dora (./recipes/mine.yaml): no such group 'lorra'" in text
    assert "did you mean override /lora?" in text
    assert "no such group 'chat_template'" in text


@pytest.mark.parametrize("entry", ["/lora: dora", "override lora: dora", "yodaa"])
def test_a_defaults_entry_that_hydra_rejects_names_the_recipe(
    entry: str, write_recipe: Callable[..., None]
) -> None:
    write_recipe(f"defaults:\n  - {entry}\n")

    assert "./recipes/mine.yaml" in error_of("recipe=mine")


def test_recipe_null_means_no_recipe() -> None:
    assert compose(["recipe=null"]).recipe is None


# --- the records of a run -------------------------------------------------------------------------

RECORDED = ["recipe=yoda", "lora.r=8", "+lora.use_dora=true", "lora.bias=none"]


@pytest.mark.parametrize("folder", ["out", "it's a run"])
def test_the_records_of_a_run_are_those_of_hydra_main(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # enter_hydra sets it
    overrides = [*RECORDED, "output_dir=o-${now:%Y}", "hydra.sweeper.max_batch_size=3"]
    settings = [literal("hydra.run.dir", folder), literal("hydra.output_subdir", "2/.hydra")]
    enter_hydra([], overrides, settings, lambda _cfg, _number: None)

    records = compose_run(overrides).records(Path(folder), "2/.hydra")

    written = {file.name: file.read_text() for file in Path(folder, "2/.hydra").iterdir()}
    assert records == written
    assert yaml.safe_load(records["overrides.yaml"])[:2] == ["recipe=yoda", "++lora.r=8"]


def test_the_records_can_be_asked_for_twice() -> None:
    run = compose_run(RECORDED)

    assert run.records(Path("a"), ".hydra") == run.records(Path("a"), ".hydra")
    assert run.config == compose(RECORDED)


CALLBACK = "+hydra.callbacks.mine._target_=my_module.Mine"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        (CALLBACK, "hydra.callbacks"),
        ("+hydra.job.env_set.A=b", "hydra.job.env_set"),
        ("hydra.verbose=true", "hydra.verbose"),
        ("hydra.mode=MULTIRUN", "hydra.mode"),
    ],
)
def test_what_only_hydra_main_acts_on_is_an_error_of_a_single_run(override: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_run(["recipe=yoda", override, "sedd=1"])

    first, second = caught.value.problems
    assert first.where == f"{key} (command line)"
    assert first.commands == (f"sftpipe train -m recipe=yoda {override} sedd=1",)
    assert second.where == "sedd (command line)"


def test_callbacks_of_a_recipe_name_it(write_recipe: Callable[..., None]) -> None:
    write_recipe("hydra: {callbacks: {mine: {_target_: my_module.Mine}}}\n")

    with pytest.raises(ConfigError, match=r"hydra.callbacks \(./recipes/mine.yaml\): "):
        compose_run(["recipe=mine"])


def test_callbacks_do_not_keep_the_jobs_of_a_sweep_from_being_composed() -> None:
    assert compose(["recipe=yoda", CALLBACK]).recipe == "yoda"


# --- sweeps ---------------------------------------------------------------------------------------


def test_several_values_for_one_run_need_m() -> None:
    sweeps = ["lora.r=4,8", "recipe=yoda,yoda_full", "seed=range(1,3)"]

    text = error_of(*sweeps)

    for values in sweeps:
        assert (
            f"{values}: several values for one run\n"
            f"    use -m for a sweep: sftpipe train -m {shlex.join(sweeps)}" in text
        )


def test_a_grid_varies_its_last_key_fastest() -> None:
    jobs = expand_sweep(["recipe=yoda", "lora.r=4,8", "sft.max_steps=2", "seed=range(1,3)"])

    assert jobs == [
        ["recipe=yoda", "lora.r=4", "sft.max_steps=2", "seed=1"],
        ["recipe=yoda", "lora.r=4", "sft.max_steps=2", "seed=2"],
        ["recipe=yoda", "lora.r=8", "sft.max_steps=2", "seed=1"],
        ["recipe=yoda", "lora.r=8", "sft.max_steps=2", "seed=2"],
    ]


def test_a_grid_over_recipes_checks_each_name() -> None:
    with pytest.raises(ConfigError) as caught:
        expand_sweep(["recipe=yoda,yodaa"])

    assert "recipe=yodaa (command line): no such recipe" in str(caught.value)


@pytest.mark.parametrize("values", ["lora=glob(d*)", "seed=interval(1,2)"])
def test_a_sweep_that_cannot_be_listed_is_a_config_error(values: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand_sweep([values])

    assert values.partition("=")[0] in str(caught.value)
