"""Every recipe and every option of every group: found by folder, composed, validated, counted."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from sftpipe.config.options import conf_dir, find_recipes, groups, header, run_groups
from sftpipe.config.schema import RunConfig, TrainConfig
from sftpipe.config.upstream import MOVED, OURS, UPSTREAM, upstream_fields
from support.configs import compose

REPOSITORY = Path(__file__).parents[1]
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
OPTIONS = sorted(
    path for path in (REPOSITORY / "conf").glob("*/**/*") if path.suffix in (".yaml", ".jinja")
)

# files that are there at least: a pattern that finds too few is noticed, a new file needs no edit
AT_LEAST = {"recipes": 11, "conf": 60}

# what an option needs beside itself
NEEDS: dict[tuple[str, str], list[str]] = {
    ("model", "custom"): ["model.name_or_path=some/model"],
    **{("model", kind): ["tokenizer=char"] for kind in ("tiny_random", "char_gpt")},
    **{("tokenizer", kind): ["model=char_gpt"] for kind in ("char", "bpe")},
    ("packing", "blocks"): ["loss=full"],
    ("dataset", "hub"): ["dataset.path=some/rows"],
    **{
        ("dataset", kind): [f"dataset.data_files=rows.{kind}"]
        for kind in ("json", "csv", "parquet", "text", "arrow")
    },
    ("dataset", "function"): ["dataset.function=my_module.rows"],
    ("dataset", "mixture"): ["dataset.sources=[{path: embedded, name: yoda}]"],
    ("format", "text"): ["loss=full"],
    ("format", "template"): ["format.prompt='{prompt}'", "format.completion='{completion}'"],
    ("format", "function"): ["format.function=my_module.to_text"],
    ("loss", "response_template"): ["loss.response_template='### Answer:'"],
    **{("quantization", kind): ["lora=default"] for kind in ("nf4", "fp4", "int8")},
}


def named(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def test_the_files_are_found() -> None:
    assert len(RECIPES) >= AT_LEAST["recipes"]
    assert len(OPTIONS) >= AT_LEAST["conf"]
    groups_with_files = {path.parent for path in OPTIONS}
    assert groups_with_files == {path for path in (REPOSITORY / "conf").iterdir() if path.is_dir()}


def test_groups_lists_every_file_and_the_defaults_first() -> None:
    every = {**groups(), **run_groups()}
    listed = {(group, option) for group, options in every.items() for option in options}
    files = {(path.parent.name, path.stem) for path in OPTIONS if path.suffix == ".yaml"} | {
        ("recipe", path.stem) for path in RECIPES
    }
    defaults = [
        entry
        for primary in ("config", "run")
        for entry in _keys_of(REPOSITORY / "conf" / f"{primary}.yaml")["defaults"]
        if isinstance(entry, dict)
    ]

    assert listed == files
    for entry in defaults:
        for group, default in entry.items():
            assert group not in every or default is None or every[group][0] == default


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_each_recipe_composes(path: Path) -> None:
    assert compose([f"recipe={path.stem}"]).recipe == path.stem


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [path for path in OPTIONS if path.suffix == ".yaml" and path.parent.name not in run_groups()],
    ids=named,
)
def test_each_option_composes_with_the_values_of_its_file(path: Path) -> None:
    group, option = path.parent.name, path.stem

    cfg = compose([f"{group}={option}", *NEEDS.get((group, option), [])])

    block = getattr(cfg, group)
    composed = (
        dataclasses.asdict(block)
        if dataclasses.is_dataclass(block) and not isinstance(block, type)
        else block or {}
    )
    expected = {
        key: value for key, value in _keys_of(path).items() if key != "defaults" and value != "???"
    }
    assert {key: composed.get(key) for key in expected} == {
        key: _number(value) for key, value in expected.items()
    }
    assert bool(block) == (option != "none")  # none is off


@pytest.mark.parametrize("path", [path for path in OPTIONS if path.stem == "none"], ids=named)
def test_an_option_none_is_empty(path: Path) -> None:
    assert _keys_of(path) == {}


@pytest.mark.parametrize("path", [*OPTIONS, *RECIPES], ids=named)
def test_each_file_says_in_one_line_what_it_is(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    first = lines[1] if lines[0] == "# @package _global_" else lines[0]

    assert 15 < len(header(path)) <= 140
    assert header(path) in first  # it is the first line


@pytest.mark.parametrize("path", [path for path in OPTIONS if path.suffix == ".yaml"], ids=named)
def test_each_key_in_conf_is_known(path: Path) -> None:
    group = path.parent.name

    assert set(_keys_of(path)) - {"defaults"} - _known(group) == set()


def test_each_key_of_the_primary_config_is_known() -> None:
    keys = _keys_of(REPOSITORY / "conf" / "config.yaml")

    assert set(keys) - {"defaults", "hydra"} <= {
        field.name for field in dataclasses.fields(TrainConfig)
    }


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_each_recipe_writes_to_the_top_level_and_only_selects_groups_that_exist(path: Path) -> None:
    selected = [
        key for entry in _keys_of(path)["defaults"] if isinstance(entry, dict) for key in entry
    ]  # a string is a recipe to start from

    assert path.read_text(encoding="utf-8").startswith("# @package _global_\n")
    assert [key for key in selected if key.removeprefix("override /") not in groups()] == []


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_the_header_of_each_recipe_holds_its_command(path: Path) -> None:
    comment = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))

    assert comment is not None
    assert re.search(
        rf"sftpipe train recipe={path.stem}\b|make train RECIPE={path.stem}\b", comment[0]
    )


def test_the_package_reads_these_files() -> None:
    assert conf_dir() == REPOSITORY / "conf"
    assert sorted(find_recipes().values()) == RECIPES


def _keys_of(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _number(value: Any) -> Any:
    """PyYAML takes 1e-4 for a string; omegaconf does not."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d+e-?\d+", value) else value


def _known(group: str) -> set[str]:
    if group in UPSTREAM:
        return (
            set(upstream_fields(UPSTREAM[group]))
            - set(MOVED.get(group, {}))
            - set(OURS.get(group, {}))
        )
    hints = {**typing.get_type_hints(TrainConfig), **typing.get_type_hints(RunConfig)}
    hint = hints[group]
    block = next(
        (part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)), None
    )
    return {field.name for field in dataclasses.fields(block)} if block else set()
