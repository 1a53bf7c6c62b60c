"""Composing a config: which value wins, and what a mistake is told."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from sftpipe.config.check import MOVED, OURS
from sftpipe.config.hydra import compose, expand_sweep, from_recorded
from sftpipe.config.options import conf_dir, find_recipes, groups
from sftpipe.config.schema import FormatConfig, MixtureSource, to_plain
from sftpipe.config.synonyms import SYNONYMS
from sftpipe.config.upstream import upstream_fields
from sftpipe.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]


def error_of(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return str(caught.value)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., None]:
    """Write ./recipes/NAME.yaml of the working folder."""

    def write(text: str, name: str = "mine") -> None:
        (tmp_path / "recipes").mkdir(exist_ok=True)
        (tmp_path / "recipes" / f"{name}.yaml").write_text(text, encoding="utf-8")

    return write


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with copies of conf/ and recipes/ that a test may change."""
    folder = tmp_path / "shipped"
    for name in ("conf", "recipes"):
        shutil.copytree(REPOSITORY / name, folder / name)
    monkeypatch.setattr("sftpipe.config.options._shipped", lambda name: folder / name)
    return folder


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


# --- unknown keys ---------------------------------------------------------------------------------

TYPOS = {
    "sedd": "seed",
    "modle.dtype": "model.dtype",
    "model.dtyp": "model.dtype",
    "tokenizer.pad_tokn": "tokenizer.pad_token",
    "dataset.column": "dataset.columns",
    "preflight.show_row": "preflight.show_rows",
    "evaluation.max_new_token": "evaluation.max_new_tokens",
    "sft.learning_rat": "sft.learning_rate",
    "lora.lora_alph": "lora.lora_alpha",
    "quantization.bnb_4bit_quant_typ": "quantization.bnb_4bit_quant_type",
}


def suggestions(*overrides: str) -> dict[str, str]:
    """{place of an unknown key: the key that the error names}."""
    found = re.findall(
        r"^(.+): unknown key.*\n    (?:did you mean |write )([\w.]+?)(?:\?|=\.\.\.)$",
        error_of(*overrides),
        re.MULTILINE,
    )
    return dict(found)


def test_a_misspelt_key_on_the_command_line_names_the_place_and_the_right_key() -> None:
    assert suggestions("recipe=yoda", *(f"{typo}=1" for typo in TYPOS)) == {
        f"{typo} (command line)": key for typo, key in TYPOS.items()
    }


def test_a_misspelt_key_in_a_recipe_names_the_file_and_the_right_key(
    write_recipe: Callable[..., None],
) -> None:
    tree: dict[str, Any] = {}
    for typo in TYPOS:
        group, _, key = typo.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[key] = 1
    write_recipe(yaml.safe_dump(tree))

    assert suggestions("recipe=mine") == {
        f"{typo} (./recipes/mine.yaml)": key for typo, key in TYPOS.items()
    }


def test_a_misspelt_key_in_a_group_file_names_the_file_and_the_right_key(
    shipped: Path, write_recipe: Callable[..., None]
) -> None:
    chosen = {"lora": "default", "quantization": "nf4"}
    write_recipe("defaults:\n  - override /lora: default\n  - override /quantization: nf4\n")
    places = {}
    for typo, right in TYPOS.items():
        group, _, key = typo.partition(".")
        if (shipped / "conf" / group).is_dir():
            file = shipped / "conf" / group / f"{chosen.get(group, groups()[group][0])}.yaml"
            file.write_text(f"{file.read_text()}{key}: 1\n")
            places[f"{typo} (conf/{group}/{file.name})"] = right

    assert len(places) == 8
    assert suggestions("recipe=mine") == places


def test_choosing_a_group_file_does_not_put_its_typo_on_the_command_line(shipped: Path) -> None:
    (shipped / "conf" / "lora" / "default.yaml").write_text("lora_alph: 1\n")

    assert suggestions("lora=default") == {
        "lora.lora_alph (conf/lora/default.yaml)": "lora.lora_alpha"
    }


def test_a_misspelt_key_in_a_shipped_recipe_names_recipes(shipped: Path) -> None:
    (shipped / "recipes" / "x.yaml").write_text("lora: {lora_alph: 1}\n")

    assert suggestions("recipe=x") == {"lora.lora_alph (recipes/x.yaml)": "lora.lora_alpha"}


def test_a_key_under_a_key_that_does_not_exist_is_named_in_full(
    write_recipe: Callable[..., None],
) -> None:
    write_recipe("lorra: {r: 8}\n")

    assert (
        error_of("recipe=mine")
        == "lorra.r (./recipes/mine.yaml): unknown key\n    did you mean lora.r?"
    )


def test_a_key_that_resembles_nothing_gets_the_list() -> None:
    assert "allowed: name_or_path, revision, source, dtype" in error_of("model.zzz=1")


def test_a_deep_unknown_key_on_the_command_line_is_placed_there() -> None:
    assert "(command line): unknown key" in error_of("a.b.c=1")


def test_a_misspelt_short_key_is_not_sent_to_another_group() -> None:
    assert "did you mean run?" not in error_of("lora.rnk=8")


# --- several problems at once ---------------------------------------------------------------------


def test_all_problems_are_reported_together(write_recipe: Callable[..., None]) -> None:
    write_recipe(
        "defaults:\n  - override /loss: fulll\nlora: {lora_alph: 1}\nsft: {learning_rate: fast}\n"
    )

    text = error_of("recipe=mine", "sedd=1", "dataset=jsn", "seed=x", "--fast", "seed=[1")

    for expected in (
        "loss=fulll (./recipes/mine.yaml): no such option of loss",
        "sedd (command line): unknown key",
        "dataset=jsn (command line): no such option of dataset",
        "seed (command line): 'x' (str)",
        "--fast: unknown flag",
        "seed: Hydra cannot read the value '[1'",
    ):
        assert expected in text


def test_problems_of_all_checked_groups_are_reported_together(
    write_recipe: Callable[..., None],
) -> None:
    write_recipe(
        "sft: {learning_rat: 1}\nlora: {lora_alph: 1}\nquantization: {bnb_4bit_quant_typ: nf4}\n"
        "model: {dtyp: auto}\n"
    )

    with pytest.raises(ConfigError) as caught:
        compose(["recipe=mine", "preflight.show_rows=many"])

    assert [problem.where for problem in caught.value.problems] == [
        "quantization.bnb_4bit_quant_typ (./recipes/mine.yaml)",
        "lora.lora_alph (./recipes/mine.yaml)",
        "model.dtyp (./recipes/mine.yaml)",
        "preflight.show_rows (command line)",
        "sft.learning_rat (./recipes/mine.yaml)",
    ]


def test_a_missing_value_does_not_hide_other_problems() -> None:
    text = error_of("dataset=hub", "sedd=1", "sft.learning_rat=1")

    assert "dataset.path: not set, and it has no default\n    dataset.path=..." in text
    assert "did you mean seed?" in text
    assert "did you mean sft.learning_rate?" in text


def test_a_bad_interpolation_does_not_hide_other_problems() -> None:
    text = error_of("output_dir=${nowhere}", "dataset=jsn")

    assert "nowhere" in text
    assert "dataset=jsn" in text


# --- fields that another key owns, and names of other tools ---------------------------------------


@pytest.mark.parametrize("group", MOVED)
def test_each_moved_field_names_its_owner(group: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["lora=default", *(f"{group}.{field}=1" for field in MOVED[group])])

    said = {problem.where: problem for problem in caught.value.problems}
    for field, owner in MOVED[group].items():
        problem = said[f"{group}.{field} (command line)"]
        assert problem.found == "another key owns this"
        assert re.match(rf"write {re.escape(owner)}=", problem.fix), problem


@pytest.mark.parametrize("group", OURS)
def test_each_field_that_only_sftpipe_sets_says_why(group: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["lora=default", *(f"{group}.{field}=1" for field in OURS[group])])

    said = {problem.where: problem.found for problem in caught.value.problems}
    assert said == {
        f"{group}.{field} (command line)": f"not for a config: {why}"
        for field, why in OURS[group].items()
    }


@pytest.mark.parametrize("tool", SYNONYMS)
def test_each_name_of_another_tool_names_our_key(tool: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([f"{name}=1" for name in SYNONYMS[tool]])

    said = {re.split(r"[ =]", problem.where)[0]: str(problem) for problem in caught.value.problems}
    assert {
        name: SYNONYMS[tool][name] in said.get(name, "") for name in SYNONYMS[tool]
    } == dict.fromkeys(SYNONYMS[tool], True)


def test_a_synonym_says_what_to_write() -> None:
    text = error_of(
        "sft.max_seq_length=128", "lora.lora_r=8", "load_in_4bit=true", "sample_packing=true"
    )

    assert (
        "sft.max_seq_length (command line): unknown key; this is TRL CLI's name\n"
        "    write sft.max_length=..." in text
    )
    assert (
        "lora.lora_r (command line): unknown key; this is axolotl's name\n    write lora.r=..."
        in text
    )
    assert "write quantization=nf4" in text
    assert "write packing=OPTION, one of none" in text


def _our_keys() -> set[str]:
    plain = to_plain(compose(["tracking=wandb"]))
    ours = {
        f"{group}.{key}"
        for group, inner in plain.items()
        if isinstance(inner, dict)
        for key in inner
    }
    for group, name in {
        "sft": "SFTConfig",
        "lora": "LoraConfig",
        "quantization": "BitsAndBytesConfig",
    }.items():
        ours |= {
            f"{group}.{field}"
            for field in upstream_fields(name)
            if field not in {*MOVED.get(group, {}), *OURS.get(group, {})}
        }
    return ours | {key for key in plain if key not in groups()}


def test_every_target_of_a_synonym_or_moved_field_exists() -> None:
    targets = {
        target for table in (*SYNONYMS.values(), *MOVED.values()) for target in table.values()
    }
    options = {f"{group}={option}" for group, names in groups().items() for option in names}

    assert targets - options - set(groups()) - _our_keys() == set()


def test_a_name_that_two_tools_share_has_one_target() -> None:
    targets: dict[str, set[str]] = {}
    for table in SYNONYMS.values():
        for name, target in table.items():
            targets.setdefault(name, set()).add(target)

    assert {name: found for name, found in targets.items() if len(found) > 1} == {}


def test_the_migration_guide_holds_the_same_table_in_the_same_order() -> None:
    published: dict[str, list[tuple[str, str]]] = {}
    for line in (REPOSITORY / "docs" / "migrating.md").read_text(encoding="utf-8").splitlines():
        if head := re.fullmatch(r"\| (.+) \| sftpipe \|", line):
            published[head[1]] = rows = []
        elif row := re.fullmatch(r"\| `(.+)` \| `(.+)` \|", line):
            rows.append((row[1], row[2]))

    assert list(published.items()) == [
        (tool, list(table.items())) for tool, table in SYNONYMS.items()
    ]


# --- wrong values ---------------------------------------------------------------------------------


def test_a_yaml_boolean_in_disguise_is_explained(write_recipe: Callable[..., None]) -> None:
    write_recipe(
        "over_length: no\nsft: {eval_strategy: no}\ntracking: {mode: off}\nformat: {system: yes}\n"
    )

    text = error_of("recipe=mine")

    for key, value in {
        "over_length": "false",
        "sft.eval_strategy": "false",
        "tracking.mode": "false",
        "format.system": "true",
    }.items():
        assert (
            f"{key} (./recipes/mine.yaml): {value} (YAML reads yes, no, on and off without "
            "quotes as true or false)" in text
        )


def test_quoted_no_is_a_word(write_recipe: Callable[..., None]) -> None:
    write_recipe('sft: {eval_strategy: "no"}\n')

    assert compose(["recipe=mine"]).sft["eval_strategy"] == "no"
    assert compose(["sft.eval_strategy=no"]).sft["eval_strategy"] == "no"


def test_a_value_of_the_wrong_kind_says_what_is_allowed() -> None:
    wrong = {
        "seed=1.5": "1.5 (float)\n    allowed: a whole number",
        "over_length=false": "false (YAML reads yes, no, on and off without quotes as true or false)\n"
        "    allowed: error, drop",
        "output_dir=3": "3 (int)\n    allowed: a string",
        "dataset.limit=few": "'few' (str)\n    allowed: a whole number or null",
        "dataset.columns=output": "'output' (str)\n    allowed: a mapping, such as {a: b}",
        "model.dtype=bf16": "'bf16'\n    allowed: auto, float32, bfloat16, float16\n    model.dtype=bfloat16",
        "loss.type=none": "'none'\n    allowed: completion_only, assistant_only, full, response_template",
        "sft.learning_rate=fast": "'fast' (str)\n    allowed: float",
        "lora.r=1.5": "1.5 (float)\n    allowed: int",
    }

    text = error_of("recipe=yoda", *wrong)

    for override, message in wrong.items():
        assert f"{override.partition('=')[0]} (command line): {message}" in text


# --- options and recipes --------------------------------------------------------------------------


def test_a_wrong_word_on_the_command_line_lists_the_right_ones() -> None:
    wrong = {
        "lora=doraa": "lora=doraa (command line): no such option of lora\n"
        "    allowed: none, default, dora, rslora\n    lora=dora",
        "recipe=yodaa": f"recipe=yodaa (command line): no such recipe\n    allowed: {', '.join(find_recipes())}\n"
        "    recipe=yoda",
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
def test_a_defaults_entry_that_hydra_refuses_names_the_recipe(
    entry: str, write_recipe: Callable[..., None]
) -> None:
    write_recipe(f"defaults:\n  - {entry}\n")

    assert "./recipes/mine.yaml" in error_of("recipe=mine")


def test_recipe_null_means_no_recipe() -> None:
    assert compose(["recipe=null"]).recipe is None


# --- sweeps ---------------------------------------------------------------------------------------


def test_several_values_for_one_run_need_m() -> None:
    sweeps = ["lora.r=4,8", "recipe=yoda,yoda_full", "seed=range(1,3)"]

    text = error_of(*sweeps)

    for values in sweeps:
        assert (
            f"{values}: several values for one run\n"
            f"    use -m for a sweep: sftpipe train -m {' '.join(sweeps)}" in text
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


# --- choices that clash ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["recipe=yoda", "quantization.load_in_8bit=true"],
            "quantization: load_in_4bit and load_in_8bit are both true",
        ),
        (
            ["recipe=yoda", "quantization.bnb_4bit_quant_type=nf5"],
            "quantization.bnb_4bit_quant_type: 'nf5'\n    allowed: nf4, fp4",
        ),
        (
            ["recipe=yoda", "quantization.bnb_4bit_compute_dtype=half"],
            "allowed: auto, float32, bfloat16, float16",
        ),
        (
            ["dataset=json"],
            "dataset.data_files: not set, and dataset=json reads files\n"
            "    dataset.data_files=my_rows.jsonl",
        ),
        (["dataset=csv"], "dataset.data_files=my_rows.csv"),
        (
            ["evaluation.temperature=0.7"],
            "evaluation.temperature: 0.7, and nothing reads it with evaluation.do_sample=false\n"
            "    evaluation.do_sample=true, or leave it out",
        ),
        (
            ["evaluation.top_k=5"],
            "evaluation.top_k: 5, and nothing reads it with evaluation.do_sample=false",
        ),
        (
            ["evaluation.do_sample=true", "evaluation.temperature=0"],
            "evaluation.temperature: 0.0\n    allowed: above 0\n"
            "    evaluation.do_sample=false takes the most likely token",
        ),
        (["evaluation.sample_strategy=epochs"], "evaluation.sample_strategy=epoch"),
        (["evaluation.top_k=-1"], "allowed: 0 or more"),
    ],
)
def test_choices_that_clash_are_refused(overrides: list[str], message: str) -> None:
    assert message in error_of(*overrides)


JSON_ROWS = ["dataset=json", "dataset.data_files=rows.jsonl"]
YODA = "path: embedded, name: yoda"


def mixture(*sources: str) -> list[str]:
    return [
        "dataset=mixture",
        f"dataset.sources=[{', '.join(f'{{{source}}}' for source in sources)}]",
    ]


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["dataset=text"],
            "dataset.data_files: not set, and dataset=text reads files\n"
            "    dataset.data_files=my_text.txt",
        ),
        (
            ["dataset=arrow"],
            "dataset.data_files: not set, and dataset=arrow reads files\n"
            "    dataset.data_files=my_folder",
        ),
        (
            ["dataset=function"],
            "dataset.function: not set, and dataset=function needs it\n"
            "    dataset.function=my_module.my_function",
        ),
        (
            ["dataset=mixture"],
            "dataset.sources: not set, and dataset=mixture needs it\n"
            "    dataset.sources=[{path: json, data_files: a.jsonl}]",
        ),
        (
            [*JSON_ROWS, "dataset.function=a.b"],
            "dataset.function: nothing reads it with path: json\n"
            "    dataset=function, or leave it out",
        ),
        (
            [*JSON_ROWS, f"dataset.sources=[{{{YODA}}}]"],
            "dataset.sources: nothing reads it with path: json\n"
            "    dataset=mixture, or leave it out",
        ),
        *(
            (
                [*JSON_ROWS, f"dataset.split={split}"],
                f"dataset.split: {found}\n"
                "    allowed: the name of a split of the source, or {train: its name, "
                "validation: ..., test: ...}",
            )
            for split, found in (
                ("3", "3 (int)"),
                ("{dev: x}", "{'dev': 'x'} (dict)"),
                ("{train: 3}", "{'train': 3} (dict)"),
            )
        ),
        *(
            (
                [*JSON_ROWS, f"dataset.markers={markers}"],
                f"dataset.markers: '{markers}', and there are no dataset.marker_tokens\n"
                "    dataset.marker_tokens=['|SOUND|>']",
            )
            for markers in ("special", "strip")
        ),
    ],
)
def test_keys_of_the_data_set_that_clash_are_refused(overrides: list[str], text: str) -> None:
    assert error_of(*overrides) == text


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            [*mixture(YODA), "dataset.columns={a: b}"],
            "dataset.columns: a mixture reads it from its sources\n"
            "    dataset.sources=[{..., columns: ...}, ...]",
        ),
        (
            mixture("path: mixture, sources: [{path: json}]"),
            "dataset.sources[0].path: a mixture in a mixture\n    allowed: a data set",
        ),
        (
            mixture(f"{YODA}, weight: 1, count: 2"),
            "dataset.sources[0]: both weight and count\n    allowed: one of them\n"
            "    leave one out",
        ),
        (
            mixture(f"{YODA}, weight: 0"),
            "dataset.sources[0].weight: 0\n    allowed: more than 0\n    leave the source out",
        ),
        (
            mixture(f"{YODA}, weight: 1", YODA),
            "dataset.sources: some have a weight, and sources[1] has none\n"
            "    a weight for each, or counts",
        ),
        (
            mixture(YODA, f"{YODA}, num_proc: 2"),
            "dataset.sources[1].num_proc: one policy serves the whole mixture\n"
            "    dataset.num_proc=...",
        ),
        (
            ["dataset=mixture", "dataset.sources=[yoda]"],
            "dataset.sources[0] (command line): 'yoda' (str)\n"
            "    allowed: a mapping, such as {path: json, data_files: a.jsonl, weight: 0.5}",
        ),
        (
            mixture("path: embedded, nam: yoda"),
            "dataset.sources[0].nam (command line): unknown key\n"
            "    did you mean dataset.sources[0].name?",
        ),
        (
            mixture(YODA, "path: json"),
            "dataset.sources[1].data_files: not set, and dataset=json reads files\n"
            "    dataset.sources[1].data_files=my_rows.jsonl",
        ),
        (
            mixture(f"{YODA}, format: {{type: function}}"),
            "dataset.sources[0].format.function: not set, and format=function needs it\n"
            "    dataset.sources[0].format.function=my_module.my_function",
        ),
    ],
)
def test_sources_of_a_mixture_are_checked_one_by_one(overrides: list[str], text: str) -> None:
    assert error_of(*overrides) == text


def test_a_typo_in_a_source_of_a_recipe_names_the_file(write_recipe: Callable[..., None]) -> None:
    write_recipe(
        "defaults:\n  - override /dataset: mixture\n"
        "dataset: {sources: [{path: embedded, nam: yoda}]}\n"
    )

    assert error_of("recipe=mine").startswith(
        "dataset.sources[0].nam (./recipes/mine.yaml): unknown key"
    )


def test_a_source_of_a_mixture_has_the_keys_of_a_data_set_and_its_share() -> None:
    source = (
        "path: embedded, name: yoda, weight: 3, columns: {question: prompt}, format: {type: "
        "text, text_field: question}"
    )

    (built,) = compose([*mixture(source), "loss=full", "format=text"]).dataset.sources

    columns, form = {"question": "prompt"}, FormatConfig(type="text", text_field="question")
    assert built == MixtureSource(
        path="embedded", name="yoda", columns=columns, weight=3.0, format=form
    )


TEMPLATE = ["format=template", "format.prompt='{question}'", "format.completion='{answer}'"]
PATTERN = (
    "    allowed: text with {column} fields; a brace of the text itself is written twice: {{ }}"
)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["format=template"],
            "format.prompt: not set, and format=template needs it\n"
            "    format.prompt='{prompt} ##>'\n"
            "format.completion: not set, and format=template needs it\n"
            "    format.completion=' {completion}'",
        ),
        (
            ["format=function"],
            "format.function: not set, and format=function needs it\n"
            "    format.function=my_module.my_function",
        ),
        (
            ["format.text_field=a"],
            "format.text_field: nothing reads it with type: instruction\n"
            "    allowed: text, function\n    leave it out",
        ),
        (
            [*TEMPLATE, "format.system=Hi"],
            "format.system: nothing reads it with type: template\n"
            "    allowed: instruction, messages, sharegpt, prompt_completion, function\n"
            "    put it into the texts, or leave it out",
        ),
        (
            ["format.prompt='{a}'"],
            "format.prompt: nothing reads it with type: instruction\n    allowed: template\n"
            "    leave it out",
        ),
        (
            ["format.batched=true"],
            "format.batched: nothing reads it with type: instruction\n    allowed: function\n"
            "    leave it out",
        ),
        (
            ["format=template", "format.prompt='{a'", "format.completion='{b.c}'"],
            f"format.prompt: '{{a': expected '}}' before end of string\n{PATTERN}\n"
            f"format.completion: '{{b.c}}': the field {{b.c}} is no plain column name\n{PATTERN}",
        ),
        (
            [*TEMPLATE, "format.prompt=question"],
            f"format.prompt: 'question' has no field\n{PATTERN}",
        ),
    ],
)
def test_keys_of_the_format_that_clash_are_refused(overrides: list[str], text: str) -> None:
    assert error_of(*overrides) == text


RESPONSE = (
    "    allowed: the text in front of each answer, or its token ids\n"
    "    loss.response_template='### Answer:'"
)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["loss=response_template"], f"loss.response_template: not set\n{RESPONSE}"),
        (
            ["loss=response_template", "loss.response_template=''"],
            f"loss.response_template: '' (str)\n{RESPONSE}",
        ),
        (
            ["loss=response_template", "loss.response_template=[]"],
            f"loss.response_template: [] (list)\n{RESPONSE}",
        ),
        (
            ["loss=response_template", "loss.response_template=[true]"],
            f"loss.response_template: [True] (list)\n{RESPONSE}",
        ),
        (
            ["loss=response_template", "loss.response_template=A", "loss.instruction_template=''"],
            "loss.instruction_template: '' (str)\n"
            "    allowed: the text in front of each question, or its token ids\n"
            "    loss.instruction_template='### Question:'",
        ),
        (
            [
                "loss=response_template",
                "loss.response_template=[1,2]",
                "loss.instruction_template=Q",
            ],
            "loss: one template is text and the other ids\n    allowed: both text, or both ids",
        ),
        (
            ["loss.response_template=A"],
            "loss.response_template: nothing reads it with type: completion_only\n"
            "    loss=response_template",
        ),
        (
            ["loss=assistant_only", "loss.boundary=joint"],
            "loss.boundary: 'joint', and assistant_only has no single prompt whose length could "
            "be masked\n    allowed: split\n"
            "    loss.boundary=split, or loss=completion_only",
        ),
        (
            ["loss.unroll=true"],
            "loss.unroll: true, and loss=completion_only has no turns to make rows of\n"
            "    allowed: with loss=assistant_only\n"
            "    loss=assistant_only, or loss.unroll=false",
        ),
        *(
            (
                ["format=text", f"loss={loss}"],
                f"loss={loss}: format=text makes a finished text, which has no turns to tell "
                "apart\n"
                "    loss=full, or loss=response_template",
            )
            for loss in ("completion_only", "assistant_only")
        ),
        (
            [*TEMPLATE, "loss=assistant_only"],
            "loss=assistant_only: format=template makes a prompt and its completion, which has "
            "no turns to tell apart\n"
            "    loss=completion_only",
        ),
        (
            ["over_length=truncate", "sft.max_length=null"],
            "over_length: 'truncate', and sft.max_length sets no length\n    sft.max_length=1024",
        ),
    ],
)
def test_keys_of_the_loss_that_clash_are_refused(overrides: list[str], text: str) -> None:
    assert error_of(*overrides) == text


@pytest.mark.parametrize("template", ["'### Answer:'", "[1,2]"])
def test_a_response_template_is_text_or_ids(template: str) -> None:
    wanted = "### Answer:" if template.startswith("'") else [1, 2]
    assert (
        compose(
            ["loss=response_template", f"loss.response_template={template}"]
        ).loss.response_template
        == wanted
    )


def test_a_number_out_of_range_is_refused() -> None:
    text = error_of(
        "dataset.test_size=nan", "dataset.num_proc=0", "evaluation.max_new_tokens=0", "seed=-1"
    )

    for key in ("dataset.test_size", "dataset.num_proc", "evaluation.max_new_tokens", "seed"):
        assert f"{key} (command line): " in text


def test_clashes_are_reported_together() -> None:
    text = error_of(
        "quantization=nf4",
        "dataset=parquet",
        "dataset.test_size=1.5",
        "preflight.max_empty_rows=2",
        "preflight.max_over_length_rows=-1",
    )

    assert text.splitlines() == [
        "quantization + lora: quantized weights cannot be trained, and lora=none adds nothing "
        "that can",
        "    lora=default, or quantization=none",
        "dataset.data_files: not set, and dataset=parquet reads files",
        "    dataset.data_files=my_rows.parquet",
        "dataset.test_size: 1.5",
        "    allowed: below 1 a share of the rows, else a number of rows",
        "preflight.max_empty_rows: 2.0",
        "    allowed: 0 to 1",
        "preflight.max_over_length_rows: -1.0",
        "    allowed: 0 to 1",
    ]


@pytest.mark.parametrize(("validation", "test"), [("0.1", "40"), ("0", "1")])
def test_sizes_are_shares_or_rows(validation: str, test: str) -> None:
    dataset = compose(
        [f"dataset.validation_size={validation}", f"dataset.test_size={test}"]
    ).dataset

    assert (dataset.validation_size, dataset.test_size) == (float(validation), float(test))


@pytest.mark.parametrize("file", sorted(conf_dir().glob("**/*.yaml")), ids=lambda path: path.stem)
def test_no_value_in_conf_is_a_boolean_in_disguise(file: Path) -> None:
    def scalars(node: Any) -> list[yaml.ScalarNode]:
        children = (
            [child for pair in node.value for child in pair]
            if isinstance(node, yaml.MappingNode)
            else node.value
        )
        return (
            [node]
            if isinstance(node, yaml.ScalarNode)
            else [scalar for child in children for scalar in scalars(child)]
        )

    tree = yaml.compose(file.read_text(encoding="utf-8"))
    words = [node.value for node in scalars(tree) if node.tag.endswith(":bool")] if tree else []
    assert set(words) <= {"true", "false"}
