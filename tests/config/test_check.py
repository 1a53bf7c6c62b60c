"""Keys and values of a config: what a mistake says, and where it says that it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sftpipe.config.hydra import compose
from sftpipe.config.options import conf_dir, groups
from sftpipe.config.schema import to_plain
from sftpipe.config.synonyms import SYNONYMS
from sftpipe.config.upstream import MOVED, OURS, UPSTREAM, upstream_fields
from sftpipe.errors import ConfigError
from support.configs import error_of

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
        error_of(*overrides),
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

    assert len(located) == 8
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
    write_recipe: Callable[..., None],
) -> None:
    write_recipe("lorra: {r: 8}\n")

    assert (
        error_of("recipe=mine")
        == "lorra.r (./recipes/mine.yaml): unknown key\n    did you mean lora.r?"
    )


def test_a_key_that_resembles_nothing_gets_the_list() -> None:
    assert "allowed: name_or_path, revision, source, dtype" in error_of("model.zzz=1")


def test_a_deep_unknown_key_on_the_command_line_is_located_there() -> None:
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
    for group, name in UPSTREAM.items():
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
        "over_length=false": "false (YAML reads yes, no, on and off without quotes as true or "
        "false)\n    allowed: error, drop",
        "output_dir=3": "3 (int)\n    allowed: a string",
        "dataset.limit=few": "'few' (str)\n    allowed: a whole number or null",
        "dataset.columns=output": "'output' (str)\n    allowed: a mapping, such as {a: b}",
        "model.dtype=bf16": "'bf16'\n    allowed: auto, float32, bfloat16, float16\n"
        "    model.dtype=bfloat16",
        "loss.type=none": "'none'\n"
        "    allowed: completion_only, assistant_only, full, response_template",
        "sft.learning_rate=fast": "'fast' (str)\n    allowed: float",
        "lora.r=1.5": "1.5 (float)\n    allowed: int",
    }

    text = error_of("recipe=yoda", *wrong)

    for override, message in wrong.items():
        assert f"{override.partition('=')[0]} (command line): {message}" in text


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
