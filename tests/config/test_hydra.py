"""Composing a config: which value wins, recipes, sweeps, and the records of a run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from sftpipe.config.hydra import (
    compose,
    compose_run,
    enter_hydra,
    from_recorded,
    literal,
)
from sftpipe.config.options import find_recipes
from sftpipe.config.schema import TrainConfig, to_plain
from sftpipe.errors import ConfigError
from support import configs
from support.configs import config_error
from support.errors import Pin, named, places, refused, told

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


def test_a_recipe_that_was_edited_is_read_anew(write_recipe: Callable[..., None]) -> None:
    write_recipe("defaults:\n  - override /lora: doraa\nseed: 7\n")
    assert "doraa" in str(config_error("recipe=mine"))

    for option, seed in (("dora", 8), ("rslora", 9)):
        write_recipe(f"defaults:\n  - override /lora: {option}\nseed: {seed}\n")
        cfg = compose(["recipe=mine"])
        assert (f"use_{option}" in cfg.lora, cfg.seed) == (True, seed)


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
        [
            "lora=default",
            "lora.use_dora=true",
            "+lora.use_rslora=true",
            "++lora.r=4",
        ]
    ).lora

    assert (lora["use_dora"], lora["use_rslora"], lora["r"]) == (True, True, 4)


def test_a_recorded_config_reads_back_equal() -> None:
    cfg = compose(["recipe=yoda", "tracking=wandb", "sft.learning_rate=1e-5", "dataset.limit=7"])
    recorded = yaml.safe_load(yaml.safe_dump(to_plain(cfg)))

    assert from_recorded(recorded, "config.yaml") == cfg


def test_a_recorded_config_with_an_unknown_key_names_its_file() -> None:
    recorded = {**to_plain(compose()), "sedd": 1}

    error = refused(ConfigError, lambda: from_recorded(recorded, "old/config.yaml"))

    assert places(error) == ["sedd (old/config.yaml)"]


def test_a_key_of_a_group_that_was_off_is_read_with_the_defaults_of_the_others() -> None:
    recorded = to_plain(compose(["recipe=yoda"]))

    cfg = from_recorded(recorded, "config.yaml", [("packing.strategy", "bfd")])

    assert cfg.packing == compose(["recipe=yoda", "packing=bfd"]).packing


@pytest.mark.parametrize(
    "key", ["hydra.verbose", "generate.prompt", "sedd.x", "dataset.sources.0.path"]
)
def test_a_key_that_a_recorded_config_does_not_have_is_named_alone(key: str) -> None:
    recorded = to_plain(compose(["recipe=yoda"]))

    error = refused(ConfigError, lambda: from_recorded(recorded, "config.yaml", [(key, "a")]))

    assert places(error) == [f"{key} (command line)"]


def test_an_application_keeps_its_own_hydra(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "theirs.yaml").write_text("answer: 42\n")

    with initialize_config_dir(config_dir=str(tmp_path / "app"), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        compose()
        config_error("sedd=1")
        assert GlobalHydra.instance().hydra is before
        assert hydra_compose("theirs").answer == 42


# --- options and recipes --------------------------------------------------------------------------


def test_a_wrong_word_on_the_command_line_lists_the_right_ones(
    golden_error: Pin,
) -> None:
    error = config_error(
        "lora=doraa", "recipe=yodaa", "yoda", "--fast", "seed=[1", "chat_template=x"
    )

    assert told(error) == {
        "lora=doraa (command line)": ("lora=dora",),
        "recipe=yodaa (command line)": ("recipe=yoda",),
        "yoda": ("recipe=yoda",),
        "--fast": ("sftpipe --help",),
        "seed": ("'seed=\"[1\"'",),
        "chat_template (command line)": (),
    }
    recipes = ", ".join(find_recipes())
    assert error.problems[1].allowed == recipes
    golden_error(str(error).replace(recipes, "<recipes>"))


def test_a_recipe_of_the_working_folder_joins_the_shipped_ones(
    write_recipe: Callable[..., None],
) -> None:
    write_recipe("seed: 7\n")

    assert {"mine", "yoda"} <= set(find_recipes())
    assert compose(["recipe=mine"]).seed == 7
    assert re.search(r"allowed: .*\bmine, .*\byoda\b", str(config_error("recipe=zzz")))


def test_a_recipe_name_in_both_folders_is_an_error(
    write_recipe: Callable[..., None], golden_error: Pin
) -> None:
    write_recipe("seed: 7\n", name="yoda")

    error = config_error("recipe=yoda")

    assert places(error) == ["recipe=yoda"]
    golden_error(error)


def test_in_the_repository_the_two_recipe_folders_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)

    assert compose(["recipe=yoda"]).recipe == "yoda"


FILE, KEYS = "<tmp>/recipes/mine.yaml", "./recipes/mine.yaml"
BROKEN = [
    ["an open list", "seed: [1\n", FILE],
    ["a tab", "seed:\t1\n", FILE],
    ["a list", "- seed\n", FILE],
    ["a word", "seed\n", FILE],
    ["a key twice", "seed: 1\nseed: 2\n", KEYS],
    ["an open interpolation", "output_dir: ${seed\n", KEYS],
    ["null as a key", "null: 1\n", KEYS],
    ["a mapping of defaults", "defaults: {lora: default}\n", f"defaults ({KEYS})"],
    ["empty defaults", "defaults:\nseed: 1\n", f"defaults ({KEYS})"],
    ["an option where keys belong", "lora: default\n", f"lora ({KEYS})"],
    ["a number where keys belong", "sft: 3\n", f"sft ({KEYS})"],
    ["a number as a key", "1: 2\n", f"1 ({KEYS})"],
    ["a group that is chosen already", "defaults:\n  - /lora: dora\n", f"/lora: dora ({KEYS})"],
    [
        "a group without its slash",
        "defaults:\n  - override lora: dora\n",
        f"override lora: dora ({KEYS})",
    ],
    ["no recipe to start from", "defaults:\n  - yodaa\n", f"defaults: yodaa ({KEYS})"],
]


@pytest.mark.parametrize(("text", "place"), named(BROKEN))
def test_a_recipe_that_cannot_be_composed_is_named(
    text: str,
    place: str,
    write_recipe: Callable[..., None],
    tmp_path: Path,
    golden_error: Pin,
) -> None:
    write_recipe(text)

    error = config_error("recipe=mine")

    assert places(error) == [place.replace("<tmp>", str(tmp_path))]
    golden_error(error)


def test_a_recipe_that_overrides_what_is_not_there_is_named(
    write_recipe: Callable[..., None], golden_error: Pin
) -> None:
    write_recipe(
        "defaults:\n  - override /lora: doraa\n  - override /lorra: dora\n"
        "  - override /chat_template: chatml_bos_eos\n"
    )

    error = config_error("recipe=mine")

    assert places(error) == [
        f"{entry} ({KEYS})"
        for entry in (
            "lora=doraa",
            "override /lorra: dora",
            "override /chat_template: chatml_bos_eos",
        )
    ]
    golden_error(error)


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
    enter_hydra([], overrides, settings)

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
    ],
)
def test_what_only_hydra_main_acts_on_is_an_error_of_a_single_run(override: str, key: str) -> None:
    error = refused(ConfigError, lambda: compose_run(["recipe=yoda", override, "sedd=1"]))

    assert told(error) == {
        f"{key} (command line)": (f"sftpipe train -m recipe=yoda {override} sedd=1",),
        "sedd (command line)": (),
    }


def test_callbacks_of_a_recipe_name_it(
    write_recipe: Callable[..., None], golden_error: Pin
) -> None:
    write_recipe("hydra: {callbacks: {mine: {_target_: my_module.Mine}}}\n")

    error = refused(ConfigError, lambda: compose_run(["recipe=mine"]))

    assert places(error) == [f"hydra.callbacks ({KEYS})"]
    golden_error(error)


def test_callbacks_do_not_keep_the_jobs_of_a_sweep_from_being_composed() -> None:
    assert compose(["recipe=yoda", CALLBACK]).recipe == "yoda"


# --- sweeps ---------------------------------------------------------------------------------------


def test_several_values_for_one_run_need_m(golden_error: Pin) -> None:
    sweeps = ["lora.r=4,8", "recipe=yoda,yoda_full", "seed=range(1,3)"]

    error = config_error(*sweeps)

    command = f"sftpipe train -m {shlex.join(sweeps)}"
    assert told(error) == dict.fromkeys(sweeps, (command,))
    golden_error(error)


# --- the shortcut of the other tests --------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["recipe=yoda"],
        ["recipe=char_gpt_ko", "sft.learning_rate=1e-4", "model.config.n_layer=2"],
        ["recipe=instruct", "quantization=nf4", "+sft.weight_decay=0.1", "++lora.r=4", "lora=none"],
        ["dataset=json", "dataset.data_files=[a.jsonl,b.jsonl]", "recipe=null", "~format.system"],
        ["lora=default", "lora.target_modules=[q_proj]", "sft.optim_args={a: 1}"],
        ["recipe=yoda", "sft.lerning_rate=1", "lora.r=x"],
        ["lora=deflaut", "sft=1", "dataset.data_files={train: a}"],
    ],
)
def test_configs_of_tests_are_those_of_hydra(overrides: list[str]) -> None:
    assert outcome(lambda: configs.compose(overrides)) == outcome(lambda: compose(overrides))


def outcome(make: Callable[[], TrainConfig]) -> Any:
    """The config, or the text of the error."""
    try:
        return to_plain(make())
    except ConfigError as error:
        return str(error)


# --- sweeps and search paths that are written where they cannot work ------------------------------

SWEEPS = {
    "mode": "hydra:\n  mode: MULTIRUN\n",
    "params": "hydra:\n  sweeper:\n    params:\n      lora.r: 8,16\n",
    "path": "hydra:\n  searchpath: [file:///tmp]\n",
}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("params", "hydra.sweeper.params"),
        ("path", "hydra.searchpath"),
    ],
)
def test_a_single_run_takes_no_swept_values_and_no_search_path(
    name: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "sweeping.yaml").write_text(f"# A sweep.\n{SWEEPS[name]}")
    for run in (compose, compose_run):
        error = refused(ConfigError, lambda run=run: run(["recipe=sweeping", "lora=default"]))
        assert list(told(error)) == [f"{key} (./recipes/sweeping.yaml)"]
    if name == "params":
        assert "sftpipe train -m recipe=sweeping lora=default;" in str(error)
        assert compose(["recipe=sweeping", "lora=default", "lora.r=4"]).lora["r"] == 4


def test_a_recipe_may_say_that_it_is_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "sweeping.yaml").write_text(f"# A sweep.\n{SWEEPS['mode']}")
    assert compose_run(["recipe=sweeping"]).multirun
    assert not compose_run(["recipe=yoda"]).multirun


@pytest.mark.parametrize(
    "word",
    [
        "hydra.mode=MULTIRUN",
        "hydra.sweeper.params.lora.r=8,16",
        "hydra.sweeper.params.lora.r=8",
        "++hydra.sweeper.params={lora.r: '8,16'}",
        "hydra.searchpath=[file:///tmp]",
    ],
)
def test_a_command_line_makes_a_sweep_with_m_alone(word: str) -> None:
    error = refused(ConfigError, lambda: compose(["recipe=yoda", word]))
    (problem,) = error.problems
    assert problem.where.startswith("hydra.")
    assert "sftpipe train -m" in problem.fix or "leave it out" in problem.fix
