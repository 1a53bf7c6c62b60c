"""Keys and values of a config: what a mistake says, and where it says that it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sftpipe.config.hydra import from_recorded
from sftpipe.config.options import conf_dir, groups
from sftpipe.config.schema import to_plain
from sftpipe.config.synonyms import SYNONYMS
from sftpipe.config.upstream import ADDED, MOVED, OURS, UPSTREAM, upstream_fields
from sftpipe.errors import ConfigError
from support.configs import compose, config_error
from support.errors import Pin, places, refused

REPOSITORY = Path(__file__).parents[2]


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
    """{location of an unknown key: the key that the error names}."""
    found = re.findall(
        r"^(.+): unknown key.*\n    (?:did you mean |write )([\w.]+?)(?:\?|=\.\.\.)$",
        str(config_error(*overrides)),
        re.MULTILINE,
    )
    return dict(found)


def test_a_misspelt_key_on_the_command_line_names_the_location_and_the_right_key() -> None:
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
    located = {}
    for typo, right in TYPOS.items():
        group, _, key = typo.partition(".")
        if (shipped / "conf" / group).is_dir():
            file = shipped / "conf" / group / f"{chosen.get(group, groups()[group][0])}.yaml"
            file.write_text(f"{file.read_text()}{key}: 1\n")
            located[f"{typo} (conf/{group}/{file.name})"] = right

    assert len(located) >= 8
    assert suggestions("recipe=mine") == located


def test_choosing_a_group_file_does_not_put_its_typo_on_the_command_line(shipped: Path) -> None:
    (shipped / "conf" / "lora" / "default.yaml").write_text("lora_alph: 1\n")

    assert suggestions("lora=default") == {
        "lora.lora_alph (conf/lora/default.yaml)": "lora.lora_alpha"
    }


def test_a_misspelt_key_in_a_shipped_recipe_names_recipes(shipped: Path) -> None:
    (shipped / "recipes" / "x.yaml").write_text("lora: {lora_alph: 1}\n")

    assert suggestions("recipe=x") == {"lora.lora_alph (recipes/x.yaml)": "lora.lora_alpha"}


def test_a_key_under_a_key_that_does_not_exist_is_named_in_full(
    write_recipe: Callable[..., None], golden_error: Pin
) -> None:
    write_recipe("lorra: {r: 8}\n")

    assert suggestions("recipe=mine") == {"lorra.r (./recipes/mine.yaml)": "lora.r"}
    golden_error(config_error("recipe=mine"))


def test_a_key_that_resembles_nothing_gets_the_list(golden_error: Pin) -> None:
    error = config_error("model.zzz=1")

    assert places(error) == ["model.zzz (command line)"]
    assert error.problems[0].allowed.startswith("name_or_path, revision, source, dtype")
    golden_error(error)


def test_a_deep_unknown_key_on_the_command_line_is_located_there() -> None:
    assert places(config_error("a.b.c=1")) == ["a.b.c (command line)"]


def test_a_misspelt_short_key_is_not_sent_to_another_group() -> None:
    assert "run" not in suggestions("lora.rnk=8").values()


# --- several problems at once ---------------------------------------------------------------------


def test_all_problems_are_reported_together(
    write_recipe: Callable[..., None], golden_error: Pin
) -> None:
    write_recipe(
        "defaults:\n  - override /loss: fulll\nlora: {lora_alph: 1}\nsft: {learning_rate: fast}\n"
    )

    error = config_error("recipe=mine", "sedd=1", "dataset=jsn", "seed=x", "--fast", "seed=[1")

    assert {
        "loss=fulll (./recipes/mine.yaml)",
        "sedd (command line)",
        "dataset=jsn (command line)",
        "seed (command line)",
        "--fast",
        "seed",
    } <= set(places(error))
    golden_error(error)


def test_problems_of_all_checked_groups_are_reported_together(
    write_recipe: Callable[..., None],
) -> None:
    write_recipe(
        "sft: {learning_rat: 1}\nlora: {lora_alph: 1}\nquantization: {bnb_4bit_quant_typ: nf4}\n"
        "model: {dtyp: auto}\n"
    )

    assert places(config_error("recipe=mine", "preflight.show_rows=many")) == [
        "quantization.bnb_4bit_quant_typ (./recipes/mine.yaml)",
        "lora.lora_alph (./recipes/mine.yaml)",
        "model.dtyp (./recipes/mine.yaml)",
        "preflight.show_rows (command line)",
        "sft.learning_rat (./recipes/mine.yaml)",
    ]


def test_a_missing_value_does_not_hide_other_problems(golden_error: Pin) -> None:
    error = config_error("dataset=hub", "sedd=1", "sft.learning_rat=1")

    assert sorted(places(error)) == [
        "dataset.path",
        "sedd (command line)",
        "sft.learning_rat (command line)",
    ]
    golden_error(error)


def test_a_bad_interpolation_does_not_hide_other_problems() -> None:
    error = config_error("output_dir=${nowhere}", "dataset=jsn")

    assert "dataset=jsn (command line)" in places(error)
    assert "nowhere" in str(error)


# --- fields that another key owns, and names of other tools ---------------------------------------


@pytest.mark.parametrize("group", MOVED)
def test_each_moved_field_names_its_owner(group: str) -> None:
    error = config_error("lora=default", *(f"{group}.{field}=1" for field in MOVED[group]))

    fixes = {problem.where: problem.fix for problem in error.problems}
    for field, owner in MOVED[group].items():
        fix = fixes[f"{group}.{field} (command line)"]
        assert re.match(rf"write {re.escape(owner)}=", fix), fix


@pytest.mark.parametrize("group", OURS)
def test_each_field_that_only_sftpipe_sets_says_why(group: str) -> None:
    error = config_error("lora=default", *(f"{group}.{field}=1" for field in OURS[group]))

    found = {problem.where: problem.found for problem in error.problems}
    assert {where: found[where].partition(": ")[2] for where in found} == {
        f"{group}.{field} (command line)": why for field, why in OURS[group].items()
    }


@pytest.mark.parametrize("tool", SYNONYMS)
def test_each_name_of_another_tool_names_our_key(tool: str) -> None:
    error = config_error(*(f"{name}=1" for name in SYNONYMS[tool]))

    said = {re.split(r"[ =]", problem.where)[0]: str(problem) for problem in error.problems}
    assert {
        name: SYNONYMS[tool][name] in said.get(name, "") for name in SYNONYMS[tool]
    } == dict.fromkeys(SYNONYMS[tool], True)


def test_what_other_tools_and_other_groups_own_says_what_to_write(
    golden_error: Pin,
) -> None:
    owned = [
        f"{group}.{sorted(table)[0]}=1"
        for kind in (MOVED, OURS)
        for group, table in kind.items()
        if table
    ]
    error = config_error(
        "lora=default",
        "sft.max_seq_length=128",
        "lora.lora_r=8",
        "load_in_4bit=true",
        "sample_packing=true",
        *owned,
    )

    assert {place.partition(" (")[0] for place in places(error)} >= {
        "sft.max_seq_length",
        "lora.lora_r",
        "load_in_4bit",
        "sample_packing",
        *(key.partition("=")[0] for key in owned),
    }
    golden_error(error)


def _our_keys() -> set[str]:
    plain = to_plain(compose(["tracking=wandb", "distributed=ddp"]))
    ours = {
        f"{group}.{key}"
        for group, inner in plain.items()
        if isinstance(inner, dict)
        for key in inner
    }
    for group, name in UPSTREAM.items():
        ours |= {
            f"{group}.{field}"
            for field in upstream_fields(name)
            if field not in {*MOVED.get(group, {}), *OURS.get(group, {})}
        }
        ours |= {f"{group}.{field}" for field in ADDED.get(group, ())}
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


def test_a_yaml_boolean_in_disguise_is_explained(
    write_recipe: Callable[..., None], golden_error: Pin
) -> None:
    write_recipe(
        "over_length: no\nsft: {eval_strategy: no}\ntracking: {mode: off}\nformat: {system: yes}\n"
    )

    error = config_error("recipe=mine")

    assert {problem.where: problem.found.split()[0] for problem in error.problems} == {
        f"{key} (./recipes/mine.yaml)": value
        for key, value in {
            "over_length": "false",
            "sft.eval_strategy": "false",
            "tracking.mode": "false",
            "format.system": "true",
        }.items()
    }
    golden_error(error)


def test_quoted_no_is_a_word(write_recipe: Callable[..., None]) -> None:
    write_recipe('sft: {eval_strategy: "no"}\n')

    assert compose(["recipe=mine"]).sft["eval_strategy"] == "no"
    assert compose(["sft.eval_strategy=no"]).sft["eval_strategy"] == "no"


def test_a_value_of_the_wrong_kind_says_what_is_allowed(
    golden_error: Pin,
) -> None:
    wrong = [
        "seed=1.5",
        "over_length=false",
        "output_dir=3",
        "dataset.limit=few",
        "dataset.columns=output",
        "model.dtype=bf16",
        "loss.type=none",
        "sft.learning_rate=fast",
        "lora.r=1.5",
    ]

    error = config_error("recipe=yoda", *wrong)

    keys = [one.partition("=")[0] for one in wrong]
    assert sorted(places(error)) == sorted(f"{key} (command line)" for key in keys)
    assert [command for problem in error.problems for command in problem.commands] == [
        "model.dtype=bfloat16"
    ]
    golden_error(error)


# {key: (values that fit it, values that do not)}, a key for each type of the schema
KINDS: dict[str, tuple[list[Any], list[Any]]] = {
    "seed": ([0, 7], [True, False, None, 1.5, 1.0, "1", -1, [1], {}]),
    "dataset.limit": ([None, 1], [True, 0, 1.5, "1", [1]]),
    "preflight.show_rows": ([0], [False, None, -1, 0.5]),
    "tokenizer.vocab_size": ([None], [True, 257, "258", 300.0]),
    "preflight.max_empty_rows": ([0, 1, 0.5], [True, None, "0.5", [0.5]]),
    "dataset.validation_size": ([0, 0.25, 3], [True, -1, float("nan"), "3"]),
    "dataset.streaming": ([True, False], [0, 1, "true", None, 1.0]),
    "output_dir": (["", "a"], [True, 1, None, ["a"]]),
    "run": ([None, "a"], [False, 1, ["a"], {}]),
    "allowed_targets": ([[], ["a"]], [None, "a", True, {"a": 1}, 1]),
    "dataset.columns": ([{}, {"a": "b"}], [None, "a", ["a"], True, 1]),
    "over_length": (["error", "drop"], ["erro", None, True, 1]),
    "model.config": ([{}], [None, "a", [], 1]),
    "sft.max_steps": ([-1, 5], [True, 1.5, "5"]),
    "sft.learning_rate": ([1, 0.5], [True, "fast", [1]]),
    "sft.use_cpu": ([True, False], [1, 0, "true"]),
}


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The values of a config without a recipe."""
    return to_plain(compose())


@pytest.mark.parametrize("key", KINDS)
def test_a_value_fits_the_type_of_its_key_or_is_refused_there(
    key: str, plain: dict[str, Any]
) -> None:
    group, _, name = key.rpartition(".")

    def with_value(value: Any) -> dict[str, Any]:
        return {**plain, group: {**plain[group], name: value}} if group else {**plain, name: value}

    fitting, wrong = KINDS[key]
    for value in fitting:
        built = from_recorded(with_value(value), "old")
        block = getattr(built, group) if group else built
        found = block[name] if isinstance(block, dict) else getattr(block, name)
        assert found == value
    for value in wrong:
        error = refused(ConfigError, lambda value=value: from_recorded(with_value(value), "old"))
        assert places(error) == [f"{key} (old)"], value


def test_a_whole_number_where_a_number_is_meant_is_recorded_as_one(plain: dict[str, Any]) -> None:
    built = from_recorded(
        {**plain, "preflight": {**plain["preflight"], "max_empty_rows": 1}}, "old"
    )
    assert repr(built.preflight.max_empty_rows) == "1.0"


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
