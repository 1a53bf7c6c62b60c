"""One kind of stored row: the same rows in Parquet, Arrow, JSON, a hub folder or a function are the
same, whatever Arrow made of them, and columns are those of all rows.
"""

from __future__ import annotations

import datetime
import decimal
import itertools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from sftpipe.config.schema import DatasetConfig, FormatConfig
from sftpipe.data.rows import Rows
from sftpipe.data.source import load_sources
from sftpipe.errors import DataError
from support.configs import compose
from support.errors import Pin, places, refused, told
from support.sources import load_splits, write_rows

Row = dict[str, Any]


def read(path: str, files: Any = None, **keys: Any) -> Rows:
    return load_splits(DatasetConfig(path, data_files=files and str(files), **keys))["train"]


def filled(rows: Rows) -> list[int]:
    return rows.filled(rows.table[:])


def origins(rows: Rows) -> list[str]:
    return [rows.origin(index) for index in range(len(rows))]


def error_of(path: str, files: Any = None, **keys: Any) -> DataError:
    return refused(DataError, lambda: read(path, files, **keys))


def call(name: str, arguments: Any) -> Row:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


# no null at any depth but in lists: what Arrow fills must not be confused with what was there
NESTED: list[Row] = [
    {
        "messages": [
            {"role": "user", "content": "Add 2 and 3."},
            {"role": "assistant", "tool_calls": [call("add", {"a": 2, "b": 3})]},
            {"role": "tool", "content": "5", "name": "add"},
        ],
        "tools": [
            {"name": "add", "parameters": {"required": ["a", None], "deep": {"x": {"y": 1}}}}
        ],
        "kwargs": {"thinking": False},
    },
    {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "tool_calls": [call("weather", {"city": "서울"})]},
        ],
        "tools": [],
        "kwargs": {"date": "1 Jan 2025", "numbers": [1.5, None]},
    },
]
# Arrow fills the first row with: content, tool_calls (twice) and name (twice) of turns; city;
# date and numbers. The second: tool_calls, content, name (twice); a and b; thinking
FILLED = [8, 7]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module with the function `rows` into the working folder; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(code: str) -> str:
        name = f"given_{abs(hash((tmp_path, code)))}"
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


def called(module: str, **keys: Any) -> Mapping[str, Rows]:
    cfg = DatasetConfig("function", function=f"{module}.rows", **keys)
    return load_splits(cfg, [module])


# --- the same rows, however they are stored -------------------------------------------------------


def test_the_same_rows_are_read_of_every_kind_of_source(
    tmp_path: Path, module: Callable[[str], str]
) -> None:
    data = Dataset.from_list(NESTED)
    write_rows(tmp_path / "rows.jsonl", NESTED)
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(tmp_path / "saved")
    (tmp_path / "hub").mkdir()
    data.to_parquet(tmp_path / "hub" / "train.parquet")
    given = "import datasets\ndef rows():\n    return datasets.load_from_disk('saved')"
    splits = given.replace("return", "return {'train':") + "}"
    streamed = f"{given}.to_iterable_dataset()"
    sources = {
        "json": read("json", tmp_path / "rows.jsonl"),
        "parquet": read("parquet", tmp_path / "rows.parquet"),
        "arrow": read("arrow", tmp_path / "saved"),
        "hub": read(str(tmp_path / "hub")),
        "stream of the hub": read(str(tmp_path / "hub"), streaming=True),
        "function": called(module(given))["train"],
        "function, splits": called(module(splits))["train"],
        "function, stream": called(module(streamed))["train"],
    }
    assert {name: list(rows) for name, rows in sources.items()} == dict.fromkeys(sources, NESTED)
    counts = {name: filled(rows) for name, rows in sources.items()}
    assert counts == {name: [0, 0] if name == "json" else FILLED for name in sources}
    assert {tuple(rows.column_names) for rows in sources.values()} == {tuple(NESTED[0])}


def test_a_row_says_where_it_comes_from(tmp_path: Path, module: Callable[[str], str]) -> None:
    data = Dataset.from_list([{"text": "a"}, {"text": "b"}])
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(tmp_path / "saved")
    DatasetDict(train=data, test=data).save_to_disk(tmp_path / "both")
    (tmp_path / "hub").mkdir()
    data.to_json(tmp_path / "hub" / "rows.jsonl")
    name = module("import datasets\ndef rows():\n    return datasets.load_from_disk('saved')")
    hub = str(tmp_path / "hub")
    expected = {
        "rows.parquet": read("parquet", tmp_path / "rows.parquet"),
        "saved": read("arrow", tmp_path / "saved"),
        "both/train": read("arrow", tmp_path / "both"),
        f"{hub} train": read(hub),
        f"{name}.rows": called(name)["train"],
    }
    for place, rows in expected.items():
        assert origins(rows) == [f"{place}, row 0", f"{place}, row 1"]
    assert origins(read(hub, streaming=True)) == [f"{hub} train, row 0", f"{hub} train, row 1"]


def test_nulls_of_json_strings_of_json_and_python_rows_are_data(
    tmp_path: Path, module: Callable[[str], str]
) -> None:
    rows = [{"a": {"default": None, "x": [None, {"y": None}]}, "text": '{"default": null}'}]
    assert list(read("json", write_rows(tmp_path / "rows.jsonl", rows))) == rows
    found = called(module(f"def rows():\n    return {rows!r}"))["train"]
    assert list(found) == rows
    assert filled(found) == [0]
    pq.write_table(pa.table({"a": [rows[0]["text"]]}), tmp_path / "rows.parquet")
    assert list(read("parquet", tmp_path / "rows.parquet")) == [{"a": '{"default": null}'}]


def test_a_whole_column_and_a_list_keep_their_nulls(tmp_path: Path) -> None:
    rows = [{"a": None, "b": [None, 1], "c": None}, {"a": {"x": None}, "b": None, "c": [None]}]
    kinds = {"a": pa.struct({"x": pa.int64()}), "b": pa.list_(pa.int64()), "c": pa.list_(pa.null())}
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(kinds)), tmp_path / "rows.parquet")
    found = read("parquet", tmp_path / "rows.parquet")
    assert list(found) == [rows[0], {"a": {}, "b": None, "c": [None]}]
    assert filled(found) == [0, 1]


def test_mixed_types_that_datasets_stores_as_json_are_read_as_they_were(
    tmp_path: Path, module: Callable[[str], str]
) -> None:
    rows = [{"a": [{"b": 0, "c": None}, "x"]}, {"a": [{"b": "y"}]}]
    data = Dataset.from_dict({"a": [row["a"] for row in rows]}, on_mixed_types="use_json")
    assert "Json" in str(data.features)
    data.save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "rows.parquet")
    name = module("import datasets\ndef rows():\n    return datasets.load_from_disk('saved')")
    for found in (
        read("arrow", tmp_path / "saved"),
        read("parquet", tmp_path / "rows.parquet"),
        called(name)["train"],
    ):
        assert list(found) == rows  # the null was there


def test_rows_of_a_function_of_datasets_are_those_that_its_own_loop_gives(
    module: Callable[[str], str],
) -> None:
    """A transform, a mapped stream and a generator have no table that could be read instead."""
    head = (
        "import datasets\ndef rows():\n    data = datasets.Dataset.from_list([{'n': 1, 'd': 2}])\n"
    )
    ways = {
        "    return data.with_transform(lambda batch: {'n': [7], 'd': [{'x': None, 'y': 1}]})": {
            "n": 7,
            "d": {"y": 1},
        },
        "    return data.to_iterable_dataset().map(lambda row: {'n': 8, 'd': {'z': None}})": {
            "n": 8,
            "d": {},
        },
        "    return datasets.IterableDataset.from_generator(lambda: iter([{'n': 9}]))": {"n": 9},
        "    return data.with_format('torch')": {"n": 1, "d": 2},
        "    return data.select([0]).rename_column('d', 'e')": {"n": 1, "e": 2},
    }
    for code, row in ways.items():
        assert list(called(module(head + code))["train"]) == [row]


def test_a_stream_of_tables_of_several_schemas_is_read(module: Callable[[str], str]) -> None:
    name = module(
        "import datasets\nimport pyarrow as pa\nfrom datasets.iterable_dataset import "
        "ArrowExamplesIterable, IterableDataset\n"
        "def tables():\n    yield 0, pa.table({'a': [{'x': 1, 'y': None}]})\n"
        "    yield 1, pa.table({'a': ['text'], 'b': [2]})\n"
        "def rows():\n    return IterableDataset(ArrowExamplesIterable(tables, {}))\n"
    )
    found = called(name)["train"]
    assert list(found) == [{"a": {"x": 1}}, {"a": "text", "b": 2}]
    assert filled(found) == [1, 0]


def test_a_stream_is_read_to_its_limit_and_no_further(module: Callable[[str], str]) -> None:
    name = module(
        "import datasets\n"
        "def each():\n    yield {'text': 'a'}\n    yield {'text': 'b'}\n    raise OSError('gone')\n"
        "def rows():\n    return datasets.IterableDataset.from_generator(each)\n"
    )
    found = called(name, streaming=True, limit=2)["train"]
    assert list(found) == [{"text": "a"}, {"text": "b"}]
    error = refused(DataError, lambda: called(name))
    assert places(error) == ["dataset.function"]
    assert "gone" in error.problems[0].found


# --- values and columns of any type ---------------------------------------------------------------

BYTES = {"no value of JSON": "bytes"}
DAY = datetime.datetime(2024, 1, 5, 13, 30)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([DAY], pa.timestamp("s"), "2024-01-05T13:30:00"),
        ([DAY], pa.timestamp("us", "UTC"), "2024-01-05T13:30:00+00:00"),
        ([1_700_000_000_123_456_789], pa.timestamp("ns"), "2023-11-14T22:13:20.123456789"),
        ([DAY.date()], pa.date32(), "2024-01-05"),
        ([DAY.time()], pa.time64("us"), "13:30:00"),
        ([decimal.Decimal("1.50")], pa.decimal128(5, 2), "1.50"),
        ([[("k", "v"), ("n", None)]], pa.map_(pa.string(), pa.string()), {"k": "v", "n": None}),
        ([[(1, {"a": 1})]], pa.map_(pa.int8(), pa.struct({"a": pa.int8()})), {"1": {"a": 1}}),
        ([b"\x00\xff"], pa.binary(), BYTES),
        ([b"\x00\xff"], pa.large_binary(), BYTES),
        ([b"ab"], pa.binary(2), BYTES),
        ([{"bytes": b"x", "path": "a"}], None, {"bytes": BYTES, "path": "a"}),
        ([[b"x", None]], pa.list_(pa.binary()), [BYTES, None]),
        (["a"], pa.dictionary(pa.int8(), pa.string()), "a"),
        (["a"], pa.string_view(), "a"),
        ([1e300], pa.float64(), 1e300),
        (['{"a": null}'], pa.json_(), {"a": None}),
        ([datetime.timedelta(seconds=1)], pa.duration("s"), {"no value of JSON": "timedelta"}),
        ([10**14], pa.timestamp("s"), {"no value of JSON": "timestamp[ms]"}),
    ],
)
def test_a_value_of_any_type_is_json_or_leaves_its_type(
    tmp_path: Path, values: list[Any], kind: Any, expected: Any
) -> None:
    table = pa.table({"text": ["a"], "odd": pa.array(values, kind)})
    pq.write_table(table, tmp_path / "rows.parquet")
    (row,) = read("parquet", tmp_path / "rows.parquet")
    assert row == {"text": "a", "odd": expected}


def test_bytes_that_are_null_stay_null_where_they_are_read(module: Callable[[str], str]) -> None:
    code = (
        "import datasets\ndef rows():\n    return datasets.Dataset.from_dict({'b': [b'x', None]})"
    )
    assert list(called(module(code))["train"]) == [{"b": BYTES}, {"b": None}]


def test_text_that_is_no_utf8_is_a_fault_of_its_row(tmp_path: Path) -> None:
    broken = pa.array([b"fine", b"\xff"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": broken}), tmp_path / "rows.parquet")
    assert list(read("parquet", tmp_path / "rows.parquet")) == [
        {"text": "fine"},
        {"text": {"no value of JSON": "string"}},
    ]


def test_bytes_of_a_file_are_not_copied(tmp_path: Path, cache_folder: Path) -> None:
    big = {"image": [os.urandom(10**6)] * 3, "photo": [{"bytes": os.urandom(10**6)}] * 3}
    pq.write_table(pa.table({"text": ["a", "b", "c"], **big}), tmp_path / "rows.parquet")
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.table({"text": ["a", "b", "c"], **big}), tmp_path / "hub" / "rows.parquet")
    for rows in (
        read("parquet", tmp_path / "rows.parquet"),
        read(str(tmp_path / "hub"), streaming=True),
    ):
        assert [row["text"] for row in rows] == ["a", "b", "c"]
        assert rows[:1][0]["image"] == {"no value of JSON": "bytes"}
    files = [path for path in (cache_folder / "rows").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10**5


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("SFTPIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- several files --------------------------------------------------------------------------------


def test_every_order_of_parquet_files_gives_the_same_rows(tmp_path: Path) -> None:
    parts: dict[str, list[Row]] = {
        "a": [{"prompt": "one", "input": "x", "completion": "1"}],
        "b": [{"completion": "2", "prompt": "two"}],
        "c": [{"prompt": "three", "completion": 3}],
        "d": [{"prompt": "four", "completion": {"text": "4"}, "input": None}],
    }
    for name, rows in parts.items():
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    for order in itertools.permutations(parts):
        files = [str(tmp_path / f"{name}.parquet") for name in order]
        rows = load_splits(DatasetConfig("parquet", data_files=files))["train"]
        assert list(rows) == [parts[name][0] for name in order]
        assert dict(rows.columns_seen) == {"prompt": 4, "input": 1, "completion": 4}


def test_a_parquet_file_without_rows_is_told_alone_and_fine_beside_others(
    tmp_path: Path, golden_error: Pin
) -> None:
    empty, other = tmp_path / "empty.parquet", tmp_path / "other.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), empty)
    pq.write_table(pa.table({"text": ["a"]}), other)
    error = error_of("parquet", empty)
    assert places(error) == ["dataset.data_files"]
    assert error.problems[0].found == f"{empty}: no rows"
    golden_error(error)
    both = load_splits(DatasetConfig("parquet", data_files=[str(empty), str(other)]))["train"]
    assert list(both) == [{"text": "a"}]


def test_a_saved_data_set_without_rows_is_told_alone_and_fine_beside_others(tmp_path: Path) -> None:
    empty, full = Dataset.from_dict({"text": []}), Dataset.from_dict({"text": ["a"]})
    empty.save_to_disk(tmp_path / "empty")
    DatasetDict(train=full, other=empty).save_to_disk(tmp_path / "both")
    error = error_of("arrow", tmp_path / "empty")
    assert error.problems[0].found == f"{tmp_path / 'empty'}: no rows"
    assert list(read("arrow", tmp_path / "both")) == [{"text": "a"}]


@pytest.mark.parametrize("damage", ["end", "middle", "magic"])
def test_a_damaged_parquet_file_is_named(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": [os.urandom(20).hex() for _ in range(5000)]}), file)
    content = file.read_bytes()
    half = len(content) // 2
    file.write_bytes(
        {
            "end": content[:-100],
            "middle": content[: half - 5000] + b"\0" * 10_000 + content[half + 5000 :],
            "magic": b"text" + content[4:-4] + b"text",
        }[damage]
    )
    error = error_of("parquet", file)
    assert places(error) == ["dataset.data_files"]
    assert error.problems[0].found.startswith(f"{file} cannot be read as parquet: ")


def test_a_damaged_saved_data_set_is_named(tmp_path: Path) -> None:
    Dataset.from_list([{"text": "a"}] * 9).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    error = error_of("arrow", tmp_path / "saved")
    assert places(error) == ["dataset.data_files"]
    assert error.problems[0].found.startswith(f"{tmp_path / 'saved'} ")


# --- columns --------------------------------------------------------------------------------------

LATE = [{"instruction": f"q {at}", "output": "a"} for at in range(1500)] + [
    {"instruction": "q", "output": "a", "context": "late"}
]


def test_columns_are_those_of_all_rows_whatever_the_limit(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", LATE)
    names = {"input": "context"}
    for keys in ({}, {"limit": 10}, {"validation_size": 3}):
        rows = read("json", file, columns=names, **keys)
        assert rows.column_names == ["instruction", "output", "input"]
        assert rows.columns_seen == {"instruction": 1501, "output": 1501, "context": 1}
    assert read("json", file, columns=names)[1500:] == [
        {"instruction": "q", "output": "a", "input": "late"}
    ]


def test_a_column_that_a_stream_did_not_reach_says_how_many_rows_were_read(
    tmp_path: Path, golden_error: Pin
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", LATE)
    error = error_of("json", file, columns={"input": "context"}, streaming=True, limit=100)
    assert places(error) == ["dataset.columns.input (train)"]
    assert "100 rows that were read (dataset.limit)" in error.problems[0].found
    golden_error(error)


def test_a_column_counts_the_rows_in_which_it_is_not_null(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": None}, {"a": None, "b": None}, {"c": ""}]
    found = read("json", write_rows(tmp_path / "rows.jsonl", rows))
    assert found.columns_seen == {"a": 1, "b": 0, "c": 1}
    assert found.column_names == ["a", "b", "c"]


DEEP: list[Row] = [
    {"data": {"turns": [{"role": "user"}], "id": 1}, "system": "s"},
    {"data": '{"turns": "{\\"x\\": 2}"}', "system": None},
    {"data": "no JSON", "data.turns": "its own"},
    {"data": None},
]


def test_a_column_may_lie_in_another_one(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", DEEP)
    rows = read("json", file, columns={"messages": "data.turns"})
    assert [row.get("messages") for row in rows] == [
        [{"role": "user"}],
        '{"x": 2}',
        "its own",
        None,
    ]
    assert "messages" not in rows[3:][0]
    assert "messages" in rows.column_names
    (first,) = rows[:1]
    assert first["data"] == DEEP[0]["data"]
    assert rows.own_names(first)["data.turns"] == [{"role": "user"}]
    assert rows.decode({"json": [json.dumps(rows.own_names(first))]}) == [first]
    deeper = read("json", file, columns={"x": "data.turns.x"})
    assert [row.get("x") for row in deeper] == [None, 2, None, None]


@pytest.mark.parametrize("path", ["data.turn", "data.turns.y", "dat.turns", "data.turns."])
def test_a_path_that_no_row_has_is_no_column(tmp_path: Path, path: str) -> None:
    file = write_rows(tmp_path / "rows.jsonl", DEEP)
    error = error_of("json", file, columns={"messages": path})
    assert places(error) == ["dataset.columns.messages (train)"]
    assert f"no column {path!r}" in error.problems[0].found


def test_null_hides_a_column_and_its_rows_go_on_without_it(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", DEEP)
    rows = read("json", file, columns={"system": None, "absent": None})
    assert all("system" not in row and "absent" not in row for row in rows)
    assert "system" not in rows.column_names
    assert rows.own_names({"system": "x", "data": 1}) == {"system": "x", "data": 1}
    cfg = compose(["dataset=json", f"dataset.data_files={file}", "dataset.columns.system=null"])
    assert cfg.dataset.columns == {"system": None}


def test_other_columns_are_other_rows_in_the_cache(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", DEEP)
    ways: Sequence[Row] = ({}, {"system": None}, {"x": "data.turns"}, {"x": "data"})
    assert len({read("json", file, columns=columns).digest for columns in ways}) == len(ways)


# --- folders of the hub ---------------------------------------------------------------------------

MIXED = {
    "a.jsonl": [{"instruction": "q", "output": "a", "meta": None, "n": 1}],
    "b.jsonl": [{"instruction": "r", "output": "b", "meta": "text", "n": "x"}],
    "c.jsonl": [{"instruction": "s", "output": "c", "meta": {"k": 1}, "n": [1]}],
}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder whose parts have other types in the same columns."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for name, rows in MIXED.items():
        write_rows(folder / name, rows)
    (folder / "d.jsonl").touch()
    return folder


def typed(error: DataError) -> Mapping[str, Rows]:
    """The splits that the fix of an error gives when it is typed."""
    words = [word.strip('"') for word in error.problems[0].commands]
    (source,) = load_sources(compose(words).dataset, FormatConfig())
    return source.splits


@pytest.mark.parametrize("streaming", [False, True])
def test_parts_of_a_folder_that_do_not_go_together_are_told_with_what_reads_them(
    mixed: Path, streaming: bool, golden_error: Pin
) -> None:
    error = error_of(str(mixed), streaming=streaming)
    assert places(error) == ["dataset.path"]
    assert str(mixed) in error.problems[0].found
    golden_error(error)
    assert list(typed(error)["train"]) == [row for rows in MIXED.values() for row in rows]


def test_the_splits_of_a_folder_are_kept_by_what_is_to_be_typed(mixed: Path) -> None:
    for name in MIXED:
        (mixed / name).rename(mixed / f"train-{name}")
    write_rows(mixed / "test.jsonl", MIXED["a.jsonl"])
    splits = typed(error_of(str(mixed)))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 3, "test": 1}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.parquet", b"PAR1 no parquet PAR1"),
        ("rows.jsonl", b'{"text": "a"}\n{"text": \n'),
        ("rows.csv", b"a,b\n1,2,3,4\n5\n\xff\xfe"),
        ("rows.xyz", b"?"),
        ("", b""),
    ],
)
def test_a_folder_that_upstream_cannot_read_is_an_error_without_its_traceback(
    tmp_path: Path, name: str, content: bytes, streaming: bool
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if name:
        (folder / name).write_bytes(content)
    error = error_of(str(folder), streaming=streaming)
    assert places(error) == ["dataset.path"]
    assert error.problems[0].found.startswith(f"{folder}: ")
    assert "\n" not in error.problems[0].found


def test_a_type_that_upstream_does_not_know_is_told_with_what_reads_it(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    odd = {"tags": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())), "raw": [b"x"]}
    pq.write_table(pa.table({"text": ["a"], **odd}), tmp_path / "hub" / "rows.parquet")
    for streaming in (False, True):
        error = error_of(str(tmp_path / "hub"), streaming=streaming)  # upstream has no such type
        assert list(typed(error)["train"]) == [
            {"text": "a", "tags": {"k": 1}, "raw": {"no value of JSON": "bytes"}}
        ]


def test_a_folder_that_changes_is_read_anew(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    for text in ("a", "b"):
        write_rows(tmp_path / "hub" / "rows.jsonl", [{"text": text}])
        assert list(read(str(tmp_path / "hub"))) == [{"text": text}]


def test_told_is_what_can_be_typed(mixed: Path) -> None:
    (commands,) = told(error_of(str(mixed))).values()
    assert commands == ("dataset=json", f"\"dataset.data_files='{mixed}/*.jsonl'\"")


def test_features_with_json_of_a_generator_are_read(module: Callable[[str], str]) -> None:
    name = module(
        "import datasets\ndef each():\n    yield {'a': {'x': 1}}\n    yield {'a': [1, None]}\n"
        "def rows():\n    kinds = datasets.Features({'a': datasets.Json()})\n"
        "    return datasets.IterableDataset.from_generator(each, features=kinds)\n"
    )
    assert list(called(name)["train"]) == [{"a": {"x": 1}}, {"a": [1, None]}]
