"""Loading and splitting. The embedded set is tested as data, too."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import importlib
import json
import lzma
import math
import os
import re
import shlex
import shutil
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from sftpipe import storage
from sftpipe.config.schema import DatasetConfig, FormatConfig, MixtureSource
from sftpipe.data import readers
from sftpipe.data.rows import Rows
from sftpipe.data.source import SPLITS, fingerprint, load_sources, sources_sha256
from sftpipe.data.stored import RowToStore
from sftpipe.data.text_files import TextFile
from sftpipe.errors import DataError
from support.configs import compose
from support.errors import Pin, named, places, refused, told
from support.sources import load_splits

Write = Callable[..., str]
YODA = DatasetConfig(path="embedded", name="yoda")


ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(20)]
QUESTIONS = [row["prompt"] for row in ROWS]


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[a-z0-9']+", text.lower()))


def error_of(cfg: DatasetConfig, allowed: Sequence[str] = ()) -> DataError:
    return refused(DataError, lambda: load_splits(cfg, allowed))


def prompts(rows: Rows) -> list[str]:
    return [row["prompt"] for row in rows]


def column_of(rows: Rows, name: str) -> list[str]:
    return [row[name] for row in rows]


@pytest.fixture(scope="module")
def yoda() -> dict[str, Any]:
    return load_splits(YODA)


@pytest.fixture
def file(rows_file: Write) -> str:
    """Twenty rows as JSON Lines."""
    return rows_file(ROWS)


# --- the embedded set -----------------------------------------------------------------------------


def test_yoda_has_460_40_and_40_rows(yoda: dict[str, Any]) -> None:
    assert {split: len(rows) for split, rows in yoda.items()} == {
        "train": 460,
        "validation": 40,
        "test": 40,
    }


@pytest.mark.parametrize("split", SPLITS)
def test_yoda_rows_are_a_prompt_and_a_completion_and_nothing_else(split: str) -> None:
    import sftpipe.data.source

    lines = (
        (Path(sftpipe.data.source.__file__).parent / "assets" / "yoda" / f"{split}.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    assert {tuple(json.loads(line)) for line in lines} == {("prompt", "completion")}


@pytest.mark.parametrize("column", ["prompt", "completion"])
def test_yoda_repeats_no_text_within_or_across_splits(yoda: dict[str, Any], column: str) -> None:
    texts = Counter(
        " ".join(text.lower().split()) for rows in yoda.values() for text in column_of(rows, column)
    )
    assert [text for text, count in texts.items() if count > 1] == []


def test_yoda_prompts_of_validation_and_test_are_no_variants_of_training_prompts(
    yoda: dict[str, Any],
) -> None:
    seen = [(text, set(words(text))) for text in prompts(yoda["train"])]
    held_out = [
        (text, set(words(text)))
        for split in ("validation", "test")
        for text in prompts(yoda[split])
    ]
    close = [(a, b) for a, x in held_out for b, y in seen if len(x & y) > 0.6 * len(x | y)]
    assert close == []


@pytest.mark.parametrize("split", SPLITS)
def test_yoda_texts_are_single_clean_sentences_of_moderate_length(
    yoda: dict[str, Any], split: str
) -> None:
    for text in (
        text for column in ("prompt", "completion") for text in column_of(yoda[split], column)
    ):
        assert re.fullmatch(r"[A-Z][^\n]*[.!?]", text), text
        assert text == " ".join(text.split()), text
        assert 3 <= len(text.split()) <= 25, text


@pytest.mark.parametrize("split", SPLITS)
def test_yoda_answers_hold_the_words_of_their_prompt_in_another_order(
    yoda: dict[str, Any], split: str
) -> None:
    for row in yoda[split]:
        answer = re.sub(r" (Yes|Yes, hrrrm|Hrrrm)\.$", "", row["completion"])
        assert words(answer) == words(row["prompt"]), row
        assert answer != row["prompt"], row


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("instruct", (133, 9, 15)), ("instruct_ko", (126, 9, 14)), ("ko_marked", (35, 4, 5))],
)
def test_the_embedded_sets_without_splits_are_cut_as_their_option_says(
    name: str, sizes: tuple[int, int, int]
) -> None:
    splits = load_splits(compose([f"dataset={name}", "format=text", "loss=full"]).dataset)
    assert tuple(len(splits[split]) for split in SPLITS) == sizes
    texts = [json.dumps(row, sort_keys=True) for rows in splits.values() for row in rows]
    assert len(set(texts)) == sum(sizes)


@pytest.mark.parametrize("name", ["instruct", "instruct_ko"])
def test_embedded_instructions_are_whole_and_their_answers_differ_from_their_inputs(
    name: str,
) -> None:
    for rows in load_splits(compose([f"dataset={name}"]).dataset).values():
        for row in rows:
            assert set(row) == {"instruction", "input", "output"}
            assert row["instruction"] == row["instruction"].strip() != ""
            assert row["output"] == row["output"].strip() != ""
            assert row["input"] != row["output"]


def test_each_marked_tale_begins_with_a_title_and_ends_with_the_end_marker() -> None:
    dataset = compose(["dataset=ko_marked", "format=text", "loss=full"]).dataset
    title, *_, end = dataset.marker_tokens
    for rows in load_splits(dataset).values():
        for row in rows:
            assert row["text"].startswith(title)
            assert row["text"].endswith(end)
            assert row["text"].count(title) == row["text"].count(end) == 1


# --- files ----------------------------------------------------------------------------------------


def write_rows(path: Path) -> None:
    """ROWS in the format that the suffix says."""
    if path.suffix == ".parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, ["prompt", "completion"])
            writer.writeheader()
            writer.writerows(ROWS)
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    else:
        path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.parquet"])
def test_a_file_is_read_as_one_train_split(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name)
    path = name.rpartition(".")[2].removesuffix("l")
    splits = load_splits(DatasetConfig(path=path, data_files=str(tmp_path / name)))
    assert {split: list(rows) for split, rows in splits.items()} == {"train": ROWS}


def test_several_files_of_a_split_are_joined_in_order(rows_file: Write) -> None:
    files = [rows_file(ROWS[:3], "a.jsonl"), rows_file(ROWS[3:5], "b.jsonl")]
    assert load_splits(DatasetConfig(path="json", data_files=files))["train"][:] == ROWS[:5]


def test_files_may_be_named_by_split(rows_file: Write) -> None:
    files = {
        split: rows_file(ROWS[at : at + 2], f"{split}.jsonl") for at, split in enumerate(SPLITS)
    }
    splits = load_splits(DatasetConfig(path="json", data_files=files))
    assert {split: prompts(rows)[0] for split, rows in splits.items()} == {
        s: f"question {i}" for i, s in enumerate(SPLITS)
    }


def test_text_survives_loading_to_the_letter(rows_file: Write) -> None:
    row = {"prompt": "한국어 \U0001f600\n\ttab ", "completion": '"quoted", é — null'}
    assert load_splits(DatasetConfig(path="json", data_files=rows_file([row])))["train"][:] == [row]


def test_rows_of_any_types_are_read_and_met_later(rows_file: Write) -> None:
    rows = [
        {"prompt": "a"},
        {"prompt": 3, "other": [1, "x", None]},
        {"prompt": None},
        {"prompt": {"deep": 1.5}},
        {},
    ]
    assert load_splits(DatasetConfig(path="json", data_files=rows_file(rows)))["train"][:] == rows


@pytest.mark.parametrize(
    ("kind", "content", "origins"),
    [
        ("json", '{"text": "a"}\n\n{"text": "b"}\n', ["line 1", "line 3"]),
        ("json", '[{"text": "a"},\n {"text": "b"}]', ["row 0", "row 1"]),
        ("csv", 'text\n"a\na"\nb\n', ["line 2", "line 4"]),
        ("text", "a\n\nb\n", ["line 1", "line 3"]),
    ],
)
def test_a_row_knows_the_line_that_it_comes_from(
    tmp_path: Path, kind: str, content: str, origins: list[str]
) -> None:
    (tmp_path / f"rows.{kind}").write_text(content)
    rows = load_splits(DatasetConfig(path=kind, data_files=str(tmp_path / f"rows.{kind}")))["train"]
    assert [rows.origin(index) for index in range(len(rows))] == [
        f"rows.{kind}, {origin}" for origin in origins
    ]


def test_a_text_file_is_lines_paragraphs_or_one_document(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_bytes(b"one\r\n  two\n \nthree\n")
    for sample_by, texts in (
        ("line", ["one", "  two", "three"]),
        ("paragraph", ["one\n  two", "three"]),
        ("document", ["one\n  two\n \nthree\n"]),
    ):
        cfg = DatasetConfig("text", data_files=str(tmp_path / "book.txt"), sample_by=sample_by)
        assert list(load_splits(cfg)["train"]) == [{"text": text} for text in texts]


def test_a_tsv_file_is_a_csv_file_with_tabs(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("prompt\tcompletion\na, b\tc\n")
    rows = load_splits(DatasetConfig(path="csv", data_files=str(tmp_path / "rows.tsv")))["train"]
    assert list(rows) == [{"prompt": "a, b", "completion": "c"}]


@pytest.mark.parametrize("path", ["json", "csv", "text"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path, path: str) -> None:
    text = {"json": '{"text": "a"}', "csv": "text\na", "text": "a"}[path]
    (tmp_path / "rows").write_text(text, encoding="utf-8-sig")
    assert load_splits(DatasetConfig(path=path, data_files=str(tmp_path / "rows")))["train"][:] == [
        {"text": "a"}
    ]


def test_a_saved_data_set_is_read_from_its_folder(tmp_path: Path) -> None:
    saved = Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "one")
    DatasetDict({"train": saved, "test": saved.select(range(2))}).save_to_disk(tmp_path / "two")
    assert (
        list(load_splits(DatasetConfig(path="arrow", data_files=str(tmp_path / "one")))["train"])
        == ROWS
    )
    splits = load_splits(DatasetConfig(path="arrow", data_files=str(tmp_path / "two")))
    assert {split: list(rows) for split, rows in splits.items()} == {
        "train": ROWS,
        "test": ROWS[:2],
    }


def test_a_folder_that_holds_no_saved_data_set_is_named(tmp_path: Path, golden_error: Pin) -> None:
    (tmp_path / "empty").mkdir()
    error = error_of(DatasetConfig(path="arrow", data_files=str(tmp_path / "empty")))
    assert places(error) == ["dataset.data_files"]
    assert error.problems[0].found.startswith(f"{tmp_path / 'empty'} ")
    golden_error(error)


# --- functions ------------------------------------------------------------------------------------


@pytest.fixture
def module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[[str], str]:
    """Write a module into the working folder; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(code: str) -> str:
        name = f"mine_{abs(hash(request.node.name))}"
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        importlib.invalidate_caches()
        return name

    return write


def call(module: str, function: str = "rows") -> dict[str, Rows]:
    return load_splits(DatasetConfig(path="function", function=f"{module}.{function}"), [module])


def test_a_function_returns_rows_or_splits(module: Callable[[str], str]) -> None:
    name = module(
        "def rows():\n    yield {'text': 'a', 'n': 1}\n\ndef splits():\n"
        "    return {'train': rows(), 'test': [{'text': 'b'}]}\n"
    )
    assert {split: list(rows) for split, rows in call(name).items()} == {
        "train": [{"text": "a", "n": 1}]
    }
    assert {split: list(rows) for split, rows in call(name, "splits").items()} == {
        "train": [{"text": "a", "n": 1}],
        "test": [{"text": "b"}],
    }


def test_a_function_needs_a_permission(module: Callable[[str], str]) -> None:
    name = module("raise SystemError('it ran')")
    for allowed in ([], [name[:-1]]):  # the beginning of an allowed name is none
        error = error_of(DatasetConfig(path="function", function=f"{name}.rows"), allowed)
        assert places(error) == ["dataset.function"]
        assert error.problems[0].allowed == ", ".join(["sftpipe", *allowed])
        assert error.problems[0].commands == (f"allowed_targets=[{','.join([*allowed, name])}]",)


@pytest.mark.parametrize(
    ("code", "function", "reason"),
    named(
        [
            ["no such function", "def rows(): ...", "row", "'row'"],
            ["a number", "def rows(): return 3", "rows", "int '3'"],
            ["a row that is a number", "def rows(): return [3]", "rows", "row 0 of"],
            ["raises", "def rows(): return [][0]", "rows", "IndexError: list index out of range"],
        ]
    ),
)
def test_a_function_that_gives_no_rows_says_why(
    module: Callable[[str], str], code: str, function: str, reason: str
) -> None:
    name = module(code)
    error = refused(DataError, lambda: call(name, function))
    assert told(error) == {
        "dataset.function": (f"dataset.function={name}.rows",) if function == "row" else ()
    }
    assert reason in error.problems[0].found


def test_a_generator_that_raises_on_its_way_is_an_error_of_the_function(
    module: Callable[[str], str],
) -> None:
    name = module("def rows():\n    yield {'text': 'a'}\n    raise OSError('gone')\n")
    error = refused(DataError, lambda: call(name))
    assert places(error) == ["dataset.function"]
    assert re.search("OSError .*1: gone", error.problems[0].found)


# --- mixtures -------------------------------------------------------------------------------------


def test_each_source_of_a_mixture_has_rows_columns_and_a_format_of_its_own(
    rows_file: Write,
) -> None:
    own = FormatConfig(type="prompt_completion")
    sources = [
        MixtureSource(path="json", data_files=rows_file(ROWS[:3]), weight=2.0, format=own),
        MixtureSource(
            path="embedded", name="yoda", columns={"instruction": "prompt"}, count=5, limit=2
        ),
    ]
    first, second = load_sources(
        DatasetConfig(path="mixture", sources=sources, limit=4), FormatConfig()
    )
    assert (first.name, first.format, first.weight, first.count) == (
        "sources[0] json",
        own,
        2.0,
        None,
    )
    assert {split: list(rows) for split, rows in first.splits.items()} == {"train": ROWS[:3]}
    assert (second.name, second.format, second.weight, second.count) == (
        "sources[1] yoda",
        FormatConfig(),
        None,
        5,
    )
    assert {split: len(rows) for split, rows in second.splits.items()} == {
        "train": 2,
        "validation": 2,
        "test": 2,
    }
    assert second.splits["train"].column_names == ["completion", "instruction"]


def test_one_data_set_is_one_source_without_a_name(file: str) -> None:
    (source,) = load_sources(DatasetConfig(path="json", data_files=file), FormatConfig())
    assert (source.name, list(source.splits), source.weight, source.count) == (
        "",
        ["train"],
        None,
        None,
    )


# --- columns --------------------------------------------------------------------------------------


def test_columns_are_renamed_to_ours(file: str) -> None:
    rows = load_splits(
        DatasetConfig(
            path="json", data_files=file, columns={"instruction": "prompt", "output": "completion"}
        )
    )["train"]
    assert rows[:1] == [{"instruction": "question 0", "output": "answer 0"}]
    assert rows.column_names == ["instruction", "output"]


def test_a_column_mapped_to_its_own_name_stays(file: str) -> None:
    rows = load_splits(DatasetConfig(path="json", data_files=file, columns={"prompt": "prompt"}))[
        "train"
    ]
    assert list(rows) == ROWS


def test_a_renamed_column_replaces_one_that_already_has_its_name(rows_file: Write) -> None:
    file = rows_file([{"output": "old", "better": "new"}])
    assert load_splits(DatasetConfig(path="json", data_files=file, columns={"output": "better"}))[
        "train"
    ][:] == [{"output": "new"}]


def test_a_wrong_column_names_the_key_the_columns_and_the_nearest(
    file: str, golden_error: Pin
) -> None:
    columns = {"output": "completoin"}
    error = error_of(DatasetConfig(path="json", data_files=file, columns=columns))
    command = "dataset.columns.output=completion"
    assert told(error) == {"dataset.columns.output (train)": (command,)}
    golden_error(error)


def test_a_column_that_two_names_take_is_told_with_what_removes_one(
    file: str, golden_error: Pin
) -> None:
    columns = {"instruction": "prompt", "text": "prompt", "output": "completion"}
    error = error_of(DatasetConfig(path="json", data_files=file, columns=columns))
    assert told(error) == {"dataset.columns (train)": ("~dataset.columns.instruction",)}
    golden_error(error)


# --- splits and sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("validation", "test", "counts"),
    [
        (0.25, 0.1, (13, 5, 2)),
        (0.33, 0.12, (11, 6, 3)),  # of the last one, 2.4 and the rest
        (4, 3, (13, 4, 3)),
        (0.5, 1, (9, 10, 1)),
    ],
)
def test_sizes_below_one_are_shares_and_others_are_rows(
    file: str, validation: float, test: float, counts: tuple[int, ...]
) -> None:
    splits = load_splits(
        DatasetConfig(path="json", data_files=file, validation_size=validation, test_size=test)
    )
    assert {split: len(rows) for split, rows in splits.items()} == dict(
        zip(SPLITS, counts, strict=True)
    )


def test_validation_and_test_are_cut_off_the_end_and_no_row_is_lost(file: str) -> None:
    splits = load_splits(
        DatasetConfig(path="json", data_files=file, validation_size=4, test_size=3)
    )
    assert [row for split in SPLITS for row in splits[split]] == ROWS


def test_the_order_of_the_splits_says_where_each_lies_and_the_last_takes_the_rest(
    tmp_path: Path,
) -> None:
    (tmp_path / "rows.csv").write_text("\n".join(["n", *map(str, range(1100))]))
    cfg = DatasetConfig(
        path="csv", data_files=str(tmp_path / "rows.csv"), test_size=0.1, validation_size=0.05
    )
    splits = load_splits(replace(cfg, split_order=["train", "test", "validation"]))
    places = {split: (int(rows[:1][0]["n"]), len(rows)) for split, rows in splits.items()}
    assert places == {"train": (0, 935), "validation": (1045, 55), "test": (935, 110)}


@pytest.mark.parametrize(
    ("rows", "size", "cut"), [(100, 0.07, 7), (100, 0.29, 29), (55, 0.1, 5), (10, 0.3, 3)]
)
def test_a_share_is_rounded_down_and_not_by_the_error_of_floats(
    tmp_path: Path, rows: int, size: float, cut: int
) -> None:
    (tmp_path / "rows.csv").write_text("\n".join(["n", *map(str, range(rows))]))
    cfg = DatasetConfig(
        path="csv",
        data_files=str(tmp_path / "rows.csv"),
        test_size=size,
        split_order=["test", "train"],
    )
    splits = load_splits(cfg)
    assert [int(row["n"]) for split in ("test", "train") for row in splits[split]] == list(
        range(rows)
    )
    assert len(splits["test"]) == cut


@pytest.mark.parametrize(
    "order", [["train"], ["train", "test", "test"], ["train", "tset"], ["test", "train", "dev"]]
)
def test_an_order_that_does_not_name_each_split_once_is_an_error(
    file: str, order: list[str]
) -> None:
    error = error_of(DatasetConfig(path="json", data_files=file, test_size=2, split_order=order))
    assert told(error) == {"dataset.split_order": ("dataset.split_order=[train,test]",)}
    assert error.problems[0].found == str(order)


def test_splits_of_the_source_may_get_our_names(rows_file: Write) -> None:
    files = {
        name: rows_file(ROWS[at : at + 1], f"{name}.jsonl")
        for at, name in enumerate(("a", "b", "c"))
    }
    splits = load_splits(
        DatasetConfig(path="json", data_files=files, split={"train": "b", "test": "a"})
    )
    assert {split: list(rows) for split, rows in splits.items()} == {
        "train": ROWS[1:2],
        "test": ROWS[:1],
    }


def test_a_split_of_the_source_that_is_not_there_is_named_with_ours(rows_file: Write) -> None:
    files = {name: rows_file(ROWS, f"{name}.jsonl") for name in ("first", "second")}
    wrong = {"train": "first", "test": "secnd"}
    error = error_of(DatasetConfig(path="json", data_files=files, split=wrong))
    assert told(error) == {"dataset.split.test": ("dataset.split.test=second",)}
    assert error.problems[0].allowed == "first, second"


@pytest.mark.parametrize("kind", ["json", "csv", "text"])
def test_streaming_reads_no_further_than_the_limit(tmp_path: Path, kind: str) -> None:
    good = {"json": '{"text": "a"}', "csv": "text\na", "text": "a"}[kind]
    file = tmp_path / "rows"
    file.write_bytes(good.encode() + b"\n\xe9\n")
    cfg = DatasetConfig(path=kind, data_files=str(file), limit=1)
    assert load_splits(replace(cfg, streaming=True))["train"][:] == [{"text": "a"}]
    assert places(error_of(cfg)) == [f"dataset.data_files: {file}, line {good.count(chr(10)) + 2}"]


def test_streaming_reads_further_where_the_limit_does(file: str) -> None:
    for limit in (1, 3):  # what the first one stored is no answer to the second
        cfg = DatasetConfig(path="json", data_files=file, streaming=True, limit=limit)
        assert load_splits(cfg)["train"][:] == ROWS[:limit]


def test_a_split_that_nobody_asked_for_is_absent(file: str) -> None:
    assert list(load_splits(DatasetConfig(path="json", data_files=file, test_size=2))) == [
        "train",
        "test",
    ]


def test_the_order_of_the_file_is_kept_without_a_shuffle_seed(file: str) -> None:
    assert prompts(load_splits(DatasetConfig(path="json", data_files=file))["train"]) == QUESTIONS


def test_a_shuffle_seed_gives_the_same_order_every_time(file: str) -> None:
    first, second, other = (
        prompts(
            load_splits(DatasetConfig(path="json", data_files=file, shuffle_seed=seed))["train"]
        )
        for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other != QUESTIONS != first


def test_a_shuffle_seed_mixes_before_the_splits_are_cut(file: str) -> None:
    splits = load_splits(
        DatasetConfig(path="json", data_files=file, shuffle_seed=1, validation_size=5)
    )
    assert sorted(prompts(splits["train"]) + prompts(splits["validation"])) == sorted(QUESTIONS)
    assert prompts(splits["validation"]) != QUESTIONS[-5:]


def test_limit_keeps_the_first_rows_of_each_split() -> None:
    splits = load_splits(DatasetConfig(path="embedded", name="yoda", limit=50))
    assert {split: len(rows) for split, rows in splits.items()} == {
        "train": 50,
        "validation": 40,
        "test": 40,
    }
    assert list(splits["train"]) == load_splits(YODA)["train"][:50]


def test_split_takes_one_split_and_makes_the_others_from_it() -> None:
    splits = load_splits(
        DatasetConfig(path="embedded", name="yoda", split="test", validation_size=10)
    )
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 30, "validation": 10}


def test_an_unknown_split_names_the_nearest(rows_file: Write) -> None:
    files = {"train": rows_file(ROWS, "a.jsonl"), "extra": rows_file(ROWS, "b.jsonl")}
    error = error_of(DatasetConfig(path="json", data_files=files, split="xtra"))
    assert told(error) == {"dataset.split": ("dataset.split=extra",)}
    assert error.problems[0].allowed == "train, extra"


def test_several_splits_without_a_train_split_ask_which_one_to_take(rows_file: Write) -> None:
    files = {"first": rows_file(ROWS, "a.jsonl"), "second": rows_file(ROWS, "b.jsonl")}
    error = error_of(DatasetConfig(path="json", data_files=files))
    assert places(error) == ["dataset.split"]
    assert "'train'" in error.problems[0].found
    assert error.problems[0].allowed == "first, second"


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_size_for_a_split_that_the_source_already_has_is_an_error(
    name: str, golden_error: Pin
) -> None:
    error = error_of(DatasetConfig(path="embedded", name="yoda", **{f"{name}_size": 0.1}))
    ways_out = (f"dataset.{name}_size=0", "dataset.split=train")
    assert told(error) == {f"dataset.{name}_size": ways_out}
    assert re.findall(r"\d+", error.problems[0].found) == ["40"]
    golden_error(error)


@pytest.mark.parametrize(("validation", "test"), [(10, 10), (0.5, 0.5), (30, 0)])
def test_sizes_that_leave_nothing_to_train_on_are_an_error(
    file: str, validation: float, test: float, golden_error: Pin
) -> None:
    sizes = {"validation_size": validation, "test_size": test}
    error = error_of(DatasetConfig(path="json", data_files=file, **sizes))
    assert places(error) == ["dataset.validation_size + dataset.test_size"]
    golden_error(error)


def test_a_limit_of_nothing_is_an_empty_split(file: str) -> None:
    error = error_of(DatasetConfig(path="json", data_files=file, limit=0))
    assert places(error) == ["dataset (train)"]
    assert "empty" in error.problems[0].found


# --- what cannot be read --------------------------------------------------------------------------


def test_a_missing_file_names_the_folder_and_the_nearest_file(file: str, golden_error: Pin) -> None:
    wrong = file.replace("rows.jsonl", "row.jsonl")
    error = error_of(DatasetConfig(path="json", data_files=wrong))
    assert told(error) == {"dataset.data_files": (f"dataset.data_files={file}",)}
    assert str(Path(file).parent.resolve()) in error.problems[0].found
    golden_error(error)


def test_a_missing_file_in_a_missing_folder_says_where_it_was_sought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden_error: Pin
) -> None:
    monkeypatch.chdir(tmp_path)
    error = error_of(DatasetConfig(path="csv", data_files="nowhere/rows.csv"))
    assert told(error) == {"dataset.data_files": ()}
    assert str(tmp_path.resolve() / "nowhere") in error.problems[0].found
    golden_error(error)


def test_an_unknown_embedded_set_names_the_ones_there_are() -> None:
    error = error_of(DatasetConfig(path="embedded", name="yodda"))
    assert told(error) == {"dataset.name": ("dataset.name=yoda",)}
    assert {"instruct", "instruct_ko", "ko_corpus", "ko_marked", "yoda"} <= set(
        error.problems[0].allowed.split(", ")
    )


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    file.write_bytes(b"not parquet")
    error = error_of(DatasetConfig(path="parquet", data_files=str(file)))
    assert places(error) == ["dataset.data_files"]
    assert error.problems[0].found.startswith(f"{file} cannot be read as parquet: ")


@pytest.mark.parametrize(
    ("compress", "suffix"), [(gzip.compress, "gz"), (bz2.compress, "bz2"), (lzma.compress, "xz")]
)
def test_a_compressed_file_is_read_and_a_cut_one_is_named(
    tmp_path: Path, compress: Any, suffix: str
) -> None:
    file, content = (
        tmp_path / f"rows.jsonl.{suffix}",
        compress("\n".join(map(json.dumps, ROWS)).encode()),
    )
    file.write_bytes(content)
    assert load_splits(DatasetConfig(path="json", data_files=str(file)))["train"][:] == ROWS
    file.write_bytes(content[:-20])
    error = error_of(DatasetConfig(path="json", data_files=str(file)))
    assert places(error) == [f"dataset.data_files: {file}"]
    assert "damaged or cut off" in error.problems[0].found


@pytest.mark.parametrize(
    ("path", "name", "content"),
    [
        pytest.param("csv", "rows.csv", "prompt,completion\n", id="csv-header-only"),
        pytest.param("json", "rows.json", "[]", id="json-empty-list"),
        pytest.param("json", "rows.jsonl", "", id="json-no-bytes"),
    ],
)
def test_a_file_without_rows_is_an_error_that_says_so(
    tmp_path: Path, path: str, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    error = error_of(DatasetConfig(path=path, data_files=str(tmp_path / name)))
    assert places(error) == ["dataset.data_files"]
    assert error.problems[0].found == f"{tmp_path / name}: no rows"


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "completion", "completion": "prompt"},
        {"completion": "prompt", "other": "completion"},
    ],
)
def test_columns_may_swap_names(file: str, columns: dict[str, str]) -> None:
    (row,) = load_splits(DatasetConfig(path="json", data_files=file, columns=columns))["train"][:1]
    assert row == {ours: ROWS[0][theirs] for ours, theirs in columns.items()}


def test_a_share_that_rounds_to_no_row_is_an_error_that_names_the_least(
    file: str, golden_error: Pin
) -> None:
    error = error_of(DatasetConfig(path="json", data_files=file, validation_size=0.049))
    assert told(error) == {"dataset.validation_size": ("dataset.validation_size=0.05",)}
    assert re.findall(r"[\d.]+", error.problems[0].found) == ["0.049", "20"]
    golden_error(error)
    splits = load_splits(DatasetConfig(path="json", data_files=file, validation_size=0.05))
    assert len(splits["validation"]) == 1


@pytest.mark.parametrize(("split", "nearest"), [("my-split", "train"), ("valid", "validation")])
def test_a_split_that_nothing_would_read_is_an_error(
    file: str, split: str, nearest: str, golden_error: Pin
) -> None:
    error = error_of(DatasetConfig(path="json", data_files={"train": file, split: file}))
    assert told(error) == {f"dataset.data_files.{split}": (f"dataset.split={split}",)}
    assert error.problems[0].fix.startswith(f"dataset.data_files.{nearest}=... or ")
    golden_error(error)


def test_a_validation_file_alone_is_not_trained_on(file: str) -> None:
    error = error_of(DatasetConfig(path="json", data_files={"validation": file}))
    assert told(error) == {"dataset.split": ("dataset.split=validation",)}
    assert error.problems[0].allowed == "validation"


def test_csv_words_that_pandas_takes_for_null_stay_words(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(
        "prompt,completion\nWhat is nothing?,None\nWhat is missing?,N/A\n"
    )
    rows = load_splits(DatasetConfig(path="csv", data_files=str(tmp_path / "rows.csv")))["train"]
    assert column_of(rows, "completion") == ["None", "N/A"]


def test_csv_numbers_stay_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,completion\n007,1.50\n")
    rows = load_splits(DatasetConfig(path="csv", data_files=str(tmp_path / "rows.csv")))["train"]
    assert list(rows) == [{"prompt": "007", "completion": "1.50"}]


@pytest.mark.parametrize(
    ("path", "text"),
    [("csv", "prompt,completion\na,b\né,b\n"), ("json", '{"prompt": "a"}\n{"prompt": "é"}\n')],
)
def test_text_that_is_no_utf8_is_named_with_its_line(path: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / f"rows.{path}"
    file.write_bytes(text.encode("latin-1"))
    line = 1 + text[: text.index("é")].count("\n")
    error = error_of(DatasetConfig(path=path, data_files=str(file)))
    assert places(error) == [f"dataset.data_files: {file}, line {line}"]
    assert "0xe9 is no UTF-8" in error.problems[0].found


def test_a_pattern_names_several_files(rows_file: Write, tmp_path: Path) -> None:
    rows_file(ROWS[:3], "a.jsonl")
    rows_file(ROWS[3:5], "b.jsonl")
    rows = load_splits(DatasetConfig(path="json", data_files=str(tmp_path / "*.jsonl")))["train"]
    assert prompts(rows) == QUESTIONS[:5]


def test_a_folder_is_not_a_file(tmp_path: Path, golden_error: Pin) -> None:
    error = error_of(DatasetConfig(path="json", data_files=str(tmp_path)))
    assert places(error) == ["dataset.data_files"]
    assert f"{tmp_path}/*.jsonl" in error.problems[0].fix
    golden_error(error)


def test_a_file_as_path_is_shown_its_place(rows_file: Write, golden_error: Pin) -> None:
    file = rows_file(ROWS)
    error = error_of(DatasetConfig(path=file))
    assert error.problems[0].commands == ("dataset=json", f"dataset.data_files={file}")
    golden_error(error)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("rows.jsonl.gz", "json"),
        ("json rows.tsv", "csv"),
        ("a.txt", "text"),
        ("a.PARQUET", "parquet"),
        ("a", "json"),
    ],
)
def test_the_ending_of_a_file_as_path_tells_what_reads_it(
    tmp_path: Path, name: str, kind: str
) -> None:
    (tmp_path / name).touch()
    option, files = error_of(DatasetConfig(path=str(tmp_path / name))).problems[0].commands
    assert option == f"dataset={kind}"
    (typed,) = shlex.split(files)
    assert typed.removeprefix("dataset.data_files=").strip("'") == str(tmp_path / name)


# --- the hub --------------------------------------------------------------------------------------


def test_a_hub_set_without_a_network_is_not_asked_for_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, golden_error: Pin
) -> None:
    def connect(*_: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(socket.socket, "connect", connect)
    error = error_of(DatasetConfig(path="someone/some_set"))
    assert places(error) == ["dataset.path"]
    assert "HF_HUB_OFFLINE" in error.problems[0].found
    golden_error(error)


# --- fingerprint ----------------------------------------------------------------------------------


def test_the_fingerprint_follows_the_bytes_and_not_the_path(rows_file: Write) -> None:
    one, copied, other = (
        fingerprint(DatasetConfig(path="json", data_files=rows_file(rows, name)))
        for rows, name in ((ROWS, "a.jsonl"), (ROWS, "b.jsonl"), (ROWS[1:], "c.jsonl"))
    )
    assert one == copied != other


def test_the_fingerprint_tells_which_file_is_which_split(rows_file: Write) -> None:
    a, b = rows_file(ROWS[:10], "a.jsonl"), rows_file(ROWS[10:], "b.jsonl")
    one, swapped = (
        fingerprint(DatasetConfig(path="json", data_files={"train": x, "test": y}))
        for x, y in ((a, b), (b, a))
    )
    assert one != swapped


def sha256_of(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def test_the_fingerprint_is_written_into_run_folders_and_keeps_its_formula(
    rows_file: Write, tmp_path: Path
) -> None:
    file = rows_file(ROWS)
    content = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    cfg = DatasetConfig(path="json", data_files={"train": [file, file], "test": file})
    assert fingerprint(cfg) == sha256_of([["train", [content] * 2], ["test", [content]]])

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    names = ("data-00000-of-00001.arrow", "dataset_info.json", "state.json")
    files = [(tmp_path / "saved" / name).read_bytes() for name in names]
    hashes = [hashlib.sha256(file).hexdigest() for file in files]
    cfg = DatasetConfig(path="arrow", data_files=str(tmp_path / "saved"))
    assert fingerprint(cfg) == sha256_of([["train", [hashes]]])


def test_the_digest_travels_with_the_sources(
    rows_file: Write, module: Callable[[str], str]
) -> None:
    name = module("def rows():\n    yield {'text': 'a'}\n")
    file = DatasetConfig(path="json", data_files=rows_file(ROWS))
    function = DatasetConfig(path="function", function=f"{name}.rows")
    mixed = [
        MixtureSource(path="json", data_files=file.data_files, limit=3),
        MixtureSource(path="embedded", name="yoda"),
        MixtureSource(path="function", function=function.function),
    ]
    found = []
    for sources in (mixed, mixed[:1]):
        mixture = DatasetConfig(path="mixture", sources=sources, limit=5)
        for cfg in (file, YODA, function, mixture):
            loaded = load_sources(cfg, FormatConfig(), [name])
            found.append(sources_sha256(loaded, cfg))
            assert found[-1] == fingerprint(cfg, [name])
    assert len(set(found)) == 5  # a mixture of one file is not that file


def test_a_process_hashes_a_file_once(rows_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = DatasetConfig(path="json", data_files=rows_file(ROWS))
    hashed = []
    monkeypatch.setattr(storage, "RECENT_S", -math.inf)  # whatever clock its file system has
    monkeypatch.setattr(
        storage, "sha256_file", lambda path: hashed.append(path) or f"hash {len(hashed)}"
    )
    before = fingerprint(cfg)
    (source,) = load_sources(cfg, FormatConfig())
    assert source.sha256 == before == fingerprint(cfg)
    assert [file for file in hashed if file.name == "rows.jsonl"] == [Path(cfg.data_files)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.txt", "rows.parquet", "saved"])
def test_a_file_that_changes_after_it_was_hashed_is_an_error_and_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file = tmp_path / name
    if name == "saved":
        Dataset.from_list(ROWS).save_to_disk(file)
    else:
        write_rows(file)
    kind = {"jsonl": "json", "txt": "text", "saved": "arrow"}.get(name.rpartition(".")[2], "")
    cfg = DatasetConfig(path=kind or name.rpartition(".")[2], data_files=str(file))
    changed = file / "state.json" if name == "saved" else file

    def hash_and_write(path: Path) -> str:
        hashed = storage.sha256_file(path)
        if path == changed:
            with path.open("ab") as out:  # as a program that is still writing leaves it
                out.write(b'{"half": ')
        return hashed

    with monkeypatch.context() as patch:
        patch.setenv("SFTPIPE_CACHE", str(tmp_path / "cache"))
        patch.setattr(readers, "sha256_cached", hash_and_write)
        error = error_of(cfg)
    assert places(error) == [f"dataset.data_files: {changed}"]
    assert "changed" in error.problems[0].found
    assert not [path for path in tmp_path.glob("cache/rows/*") if path.is_dir()]


def test_a_file_that_is_replaced_while_it_is_read_is_an_error(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden_error: Pin
) -> None:
    lines = readers.json_rows

    def replaced(text: TextFile, *more: Any) -> Iterator[RowToStore]:
        for at, row in enumerate(lines(text, *more)):
            if at == 10:
                other = tmp_path / "other"
                other.write_bytes(text.path.read_bytes())
                shutil.copystat(text.path, other)
                other.replace(text.path)
            yield row

    monkeypatch.setattr(readers, "json_rows", replaced)
    error = error_of(DatasetConfig(path="json", data_files=file, sample_by="paragraph"))
    assert places(error) == [f"dataset.data_files: {file}"]
    golden_error(error)


def test_a_function_that_is_not_allowed_does_not_run_for_its_fingerprint(
    module: Callable[[str], str],
) -> None:
    name = module("raise SystemError('it ran')")
    cfg = DatasetConfig(path="function", function=f"{name}.rows")
    error = refused(DataError, lambda: fingerprint(cfg))
    assert error.problems[0].commands == (f"allowed_targets=[{name}]",)


def test_a_shuffled_data_set_leaves_its_folder_as_it_is(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    cfg = DatasetConfig(path="arrow", data_files=str(tmp_path / "saved"), shuffle_seed=1)
    before = fingerprint(cfg)
    assert prompts(load_splits(cfg)["train"]) != QUESTIONS
    assert fingerprint(cfg) == before


@pytest.mark.parametrize(
    "change", [{"path": "user/other"}, {"name": "config"}, {"revision": "abc"}]
)
def test_the_fingerprint_of_a_hub_set_is_its_path_name_and_revision(change: dict[str, str]) -> None:
    base = {"path": "user/set", "name": "default", "revision": "v1"}
    assert (
        fingerprint(DatasetConfig(**base))
        == fingerprint(DatasetConfig(**base))
        != fingerprint(DatasetConfig(**base | change))
    )


def test_a_file_with_new_bytes_and_an_old_time_is_read_anew(rows_file: Write) -> None:
    for rows in (ROWS[:1], ROWS[1:2]):  # as `cp -p`, `rsync -t` and `tar` leave it
        file = rows_file(rows)
        os.utime(file, (1e9, 1e9))
        assert load_splits(DatasetConfig(path="json", data_files=file))["train"][:] == rows
