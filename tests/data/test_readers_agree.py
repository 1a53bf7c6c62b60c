"""The same conversations through every reader have the same ids and labels."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.test_bad_input import Prepare, model, prepared
from data.test_templates import FOLDER

__all__ = ["model", "prepared"]

TEMPLATE = (f"tokenizer.chat_template={FOLDER / 'qwen3_training.jinja'}", "evaluation=none")
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r<"), min_size=1).filter(
    str.strip
)
WORD = st.from_regex(r"[a-z]{1,6}", fullmatch=True)
# what a turn may have beside its text: nothing, or a value that Arrow has one type for
EXTRA: dict[str, st.SearchStrategy[Any]] = {
    "id": st.one_of(st.none(), WORD),
    "weight": st.sampled_from([None, 0, 1]),
    "name": st.sampled_from([None, "", "ann"]),
    "reasoning_content": st.one_of(st.none(), st.just(""), TEXT),
}


@st.composite
def calls(draw: st.DrawFn) -> list[dict[str, Any]]:
    arguments = draw(st.dictionaries(WORD, st.one_of(st.integers(-9, 9), TEXT), max_size=2))
    # one file has arguments of many shapes, which Arrow holds as text alone
    return [
        {"type": "function", "function": {"name": draw(WORD), "arguments": json.dumps(arguments)}}
    ]


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, Any]:
    turns: list[dict[str, Any]] = []
    if draw(st.booleans()):
        turns.append({"role": "system", "content": draw(TEXT)})
    for _ in range(draw(st.integers(1, 3))):
        turns.append({"role": "user", "content": draw(TEXT)})
        if draw(st.booleans()):
            turns.append(
                {"role": "assistant", "content": draw(st.none()), "tool_calls": draw(calls())}
            )
            turns.append({"role": "tool", "content": draw(TEXT)})
        turns.append({"role": "assistant", "content": draw(TEXT)})
    for turn in turns:
        for name, values in EXTRA.items():
            if draw(st.booleans()):
                turn[name] = draw(values)
    turns[-1]["weight"] = 1  # so that each row trains something
    row: dict[str, Any] = {"messages": turns, "source": draw(WORD)}
    if turns[0]["role"] != "system" and draw(st.booleans()):
        row["system"] = draw(st.one_of(st.none(), st.just(""), TEXT))
    return row


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """A module of a user, with a function of rows."""
    made = ModuleType("rows_of_a_user")
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


def nested_as_json(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: json.dumps(one) if isinstance(one, (list, dict)) else one for name, one in row.items()
    }


def readers(folder: Path, rows: list[dict[str, Any]], module: ModuleType) -> dict[str, list[str]]:
    """{name: the overrides that read the rows} of each way in which they are written."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
    for name in ("json", "list", "strings", "hub"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "json" / "rows.jsonl").write_text(lines, encoding="utf-8")
    (folder / "list" / "rows.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    texts = [nested_as_json(row) for row in rows]
    (folder / "strings" / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8"
    )
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: "" if row.get(name) is None else text for name, text in one.items()}
            for row, one in zip(rows, texts, strict=True)
        )
    pq.write_table(table, folder / "rows.parquet")
    pq.write_table(table, folder / "hub" / "train.parquet")
    datasets.Dataset(table).save_to_disk(folder / "arrow")
    module.rows = lambda: iter(rows)  # type: ignore[attr-defined]
    module.dataset = lambda: datasets.Dataset(table)  # type: ignore[attr-defined]
    function = ["dataset=function", "allowed_targets=[rows_of_a_user]"]
    return {
        "json": ["dataset=json", f"dataset.data_files={folder / 'json' / 'rows.jsonl'}"],
        "list": ["dataset=json", f"dataset.data_files={folder / 'list' / 'rows.json'}"],
        "strings": ["dataset=json", f"dataset.data_files={folder / 'strings' / 'rows.jsonl'}"],
        "csv": ["dataset=csv", f"dataset.data_files={folder / 'rows.csv'}"],
        "parquet": ["dataset=parquet", f"dataset.data_files={folder / 'rows.parquet'}"],
        "arrow": ["dataset=arrow", f"dataset.data_files={folder / 'arrow'}"],
        "hub": ["dataset=hub", f"dataset.path={folder / 'hub'}"],
        "function": [*function, "dataset.function=rows_of_a_user.rows"],
        "function of a Dataset": [*function, "dataset.function=rows_of_a_user.dataset"],
    }


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(conversations(), min_size=1, max_size=3))
def test_every_reader_gives_the_same_ids_and_labels(
    prepared: Prepare,
    tmp_path_factory: pytest.TempPathFactory,
    module: ModuleType,
    rows: list[dict[str, Any]],
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    words = (*TEMPLATE, "format=messages", "loss=assistant_only", "preflight.duplicates=warn")
    made = {}
    for name, reader in readers(folder, rows, module).items():
        data = prepared(*reader, *words, "preflight.max_empty_rows=1")
        made[name] = (
            [(row["input_ids"], row["labels"]) for row in data.train],
            [(one.index, one.reason) for one in data.preflight.dropped],
        )
    for name, one in made.items():
        assert one == made["json"], name
