"""Mixtures: exact numbers, no row twice, a format and a report for each source."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sftpipe import DataError, PreparedData, prepare
from support.byte_model import write_byte_model
from support.configs import compose
from support.errors import places, refused
from support.sources import write_rows

Mix = Callable[..., PreparedData]
SIZES = {"a": 30, "b": 20, "c": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a file for each of SIZES whose rows tell the file and their place."""
    folder = tmp_path_factory.mktemp("mixture")
    write_byte_model(folder / "model")
    for name, size in SIZES.items():
        rows = [{"prompt": f"{name} ", "completion": f"{name}{at}"} for at in range(size)]
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture
def mix(folder: Path) -> Mix:
    def run(
        sources: list[dict[str, Any]], *overrides: str, form: str = "prompt_completion"
    ) -> PreparedData:
        listed = [
            {"path": "json", **source, "data_files": str(folder / source["data_files"])}
            for source in sources
        ]
        text = json.dumps(listed).replace('"', "'")
        model = f"model.name_or_path={folder / 'model'}"
        return prepare(
            compose(
                [
                    model,
                    "evaluation=none",
                    "dataset=mixture",
                    f"format={form}",
                    f"dataset.sources={_hydra(text)}",
                    *overrides,
                ]
            )
        )

    return run


def _hydra(text: str) -> str:
    """JSON as Hydra reads it: keys without quotes."""
    import re

    return re.sub(r"'(\w+)':", r"\1:", text)


def answers(data: PreparedData, split: str = "train") -> list[str]:
    rows = data.splits()[split]
    return [
        data.tokenizer.decode(
            [label for label in row["labels"] if label != -100], skip_special_tokens=True
        )
        for row in rows
    ]


def source(name: str, /, **more: Any) -> dict[str, Any]:
    return {"data_files": f"{name}.jsonl", **more}


@pytest.mark.parametrize(
    ("shares", "numbers"),
    [
        pytest.param({}, {"a": 30, "b": 20, "c": 7}, id="everything"),
        pytest.param({"a": {"weight": 0.5}, "b": {"weight": 0.5}}, {"a": 20, "b": 20}, id="halves"),
        pytest.param(
            {"a": {"weight": 3}, "b": {"weight": 1}},
            {"a": 30, "b": 10},
            id="weights need not add up to one",
        ),
        pytest.param(
            {"a": {"weight": 0.6}, "b": {"weight": 0.3}, "c": {"weight": 0.1}},
            {"a": 30, "b": 15, "c": 5},
            id="three",
        ),
        pytest.param(
            {"a": {"weight": 0.7}, "b": {"weight": 0.3}}, {"a": 30, "b": 12}, id="rounded down"
        ),
        pytest.param(
            {"a": {"count": 4}, "b": {"count": 20}, "c": {"count": 1}},
            {"a": 4, "b": 20, "c": 1},
            id="counts",
        ),
        pytest.param(
            {"a": {"count": 4}, "c": {}}, {"a": 4, "c": 7}, id="a count, and a whole source"
        ),
        pytest.param(
            {"a": {"limit": 10, "weight": 0.5}, "b": {"weight": 0.5}},
            {"a": 10, "b": 10},
            id="limit first",
        ),
    ],
)
def test_shares_are_exact_and_no_row_comes_twice(
    mix: Mix, shares: dict[str, dict[str, Any]], numbers: dict[str, int]
) -> None:
    data = mix(
        [source(name, **share) for name, share in (shares or {name: {} for name in SIZES}).items()]
    )
    told = answers(data)
    assert Counter(text[0] for text in told) == numbers
    assert sorted(told) == sorted(
        f"{name}{at}" for name, number in numbers.items() for at in range(number)
    )  # the first rows, each once
    assert {report.source.split()[0]: report.rows for report in data.preflight.splits} == {
        f"sources[{at}]": number for at, number in enumerate(numbers.values())
    }


def test_the_order_is_the_same_every_time_and_spreads_each_source_evenly(mix: Mix) -> None:
    sources = [source("a", weight=0.75), source("b", weight=0.25)]
    first = answers(mix(sources))
    assert first == answers(mix(sources))
    for start in range(0, 40, 4):
        assert Counter(text[0] for text in first[start : start + 4]) == {"a": 3, "b": 1}
    for name in "ab":
        places = [int(text[1:]) for text in first if text[0] == name]
        assert places == sorted(places)


def test_a_count_beyond_the_source_is_an_error(mix: Mix) -> None:
    error = refused(DataError, lambda: mix([source("a", count=5), source("c", count=8)]))
    assert places(error) == ["dataset.sources[1].count"]
    assert re.findall(r"\d+", error.problems[0].found) == ["8", "7"]


def test_each_source_has_its_format_and_the_others_have_the_run_s(mix: Mix, folder: Path) -> None:
    chats = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"m{at}"}]}
        for at in range(3)
    ]
    write_rows(folder / "chats.jsonl", chats)
    data = mix([source("c"), source("chats", format={"type": "messages", "system": "S"})])
    texts = [data.tokenizer.decode(row["input_ids"]) for row in data.train]
    assert (
        texts.count(
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
            "<|im_start|>assistant\nm0<|im_end|>\n"
        )
        == 1
    )
    assert texts.count("c c0<|im_end|>") == 1
    assert len(texts) == 10


def test_each_source_is_reported_by_name_with_what_it_lost(mix: Mix, folder: Path) -> None:
    rows = [{"prompt": "x", "completion": None if at == 2 else "y" * at + "!"} for at in range(4)]
    write_rows(folder / "holes.jsonl", rows)
    data = mix([source("c"), source("holes", name="holes")], "preflight.max_empty_rows=0.5")
    assert [(one.split, one.source, one.rows, one.dropped) for one in data.preflight.splits] == [
        ("train", "sources[0] json", 7, {}),
        ("train", "sources[1] holes", 3, {"null or missing": 1}),
    ]
    (lost,) = data.preflight.dropped
    assert str(lost.problem()).startswith(
        "sources[1] holes train[2].completion (holes.jsonl, line 3): null or missing\n"
    )


def test_the_limit_on_bad_rows_holds_for_each_source_alone(mix: Mix, folder: Path) -> None:
    (folder / "bad.jsonl").write_text(
        '{"prompt": "x", "completion": "y"}\n{"prompt": "x"}\n', encoding="utf-8"
    )
    sources = [source("a"), source("bad")]
    error = refused(DataError, lambda: mix(sources, "preflight.max_empty_rows=0.1"))
    assert places(error)[0] == "sources[1] json train"
    assert error.problems[0].found.endswith(": 1 x null or missing")
    assert re.findall(r"\d+", error.problems[0].found) == ["1", "2", "1"]


def test_shares_are_of_train_and_the_other_splits_stay_whole(mix: Mix) -> None:
    data = mix(
        [source("a", weight=0.5, validation_size=4), source("b", weight=0.5, validation_size=0.25)]
    )
    assert Counter(text[0] for text in answers(data)) == {"a": 15, "b": 15}
    assert Counter(text[0] for text in answers(data, "validation")) == {"a": 4, "b": 5}
    assert not set(answers(data)) & set(answers(data, "validation"))


def test_a_row_in_train_of_one_source_and_validation_of_another_is_found(mix: Mix) -> None:
    error = refused(DataError, lambda: mix([source("a"), source("a", validation_size=2)]))
    first, other = (
        "sources[1] json validation[0] (a.jsonl, line 29)",
        "sources[0] json train[28] (a.jsonl, line 29)",
    )
    assert places(error)[0] == first
    assert f"{other}: 2 rows of validation" in error.problems[0].found


def test_rows_that_were_dropped_leave_the_share_to_others(mix: Mix, folder: Path) -> None:
    rows = [{"prompt": "h", "completion": None if at == 0 else f"h{at}"} for at in range(10)]
    write_rows(folder / "late.jsonl", rows)
    data = mix(
        [source("a", weight=0.5), source("late", weight=0.5)], "preflight.max_empty_rows=0.2"
    )
    assert Counter(text[0] for text in answers(data)) == {"a": 9, "h": 9}
