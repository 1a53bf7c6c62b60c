"""Packed rows and their batches: nothing is lost, and sequences are isolated."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

import sftpipe
from sftpipe import PreparedData
from sftpipe.data.labels import IGNORED
from sftpipe.data.packing import Collator, RandomWindows, blocks, count, pack, sequence_lengths
from sftpipe.errors import DataError
from sftpipe.tables import isolation_of, packing_rows
from support.configs import compose, config_error
from support.errors import Pin, named, refused, told

Row = dict[str, list[int]]
TRAINED = st.lists(st.tuples(st.integers(3, 90), st.booleans()), min_size=1, max_size=12)


def rows_of(drawn: Sequence[Sequence[tuple[int, bool]]]) -> list[Row]:
    return [
        {
            "input_ids": [i for i, _ in row],
            "labels": [i if trained else IGNORED for i, trained in row],
        }
        for row in drawn
    ]


def packed(rows: list[Row], strategy: str, length: int = 12) -> list[dict[str, Any]]:
    return list(pack(Dataset.from_list(rows), strategy, length, "train"))


def sequences(row: dict[str, Any]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(ids, labels) of each sequence of a packed row."""
    cut, start = [], 0
    for length in sequence_lengths(row):
        cut.append(
            (
                tuple(row["input_ids"][start : start + length]),
                tuple(row["labels"][start : start + length]),
            )
        )
        start += length
    assert start == len(row["input_ids"]) == len(row["labels"])
    return cut


# --- pack -----------------------------------------------------------------------------------------


@given(drawn=st.lists(TRAINED, min_size=1, max_size=30))
def test_bfd_keeps_every_row_whole_and_loses_none(drawn: list[list[tuple[int, bool]]]) -> None:
    rows = rows_of(drawn)
    result = packed(rows, "bfd")
    assert all(len(row["input_ids"]) <= 12 for row in result)
    found = Counter(sequence for row in result for sequence in sequences(row))
    assert found == Counter((tuple(row["input_ids"]), tuple(row["labels"])) for row in rows)


@given(
    drawn=st.lists(TRAINED, min_size=1, max_size=30),
    strategy=st.sampled_from(["bfd", "bfd_split", "wrapped"]),
)
def test_no_token_and_no_label_is_lost(drawn: list[list[tuple[int, bool]]], strategy: str) -> None:
    rows = rows_of(drawn)
    result = packed(rows, strategy, 12 if strategy == "bfd" else 5)
    pairs = Counter(
        pair for row in result for pair in zip(row["input_ids"], row["labels"], strict=True)
    )
    assert pairs == Counter(
        pair for row in rows for pair in zip(row["input_ids"], row["labels"], strict=True)
    )


@given(drawn=st.lists(TRAINED, min_size=1, max_size=30))
def test_wrapped_rows_are_one_stream_in_order(drawn: list[list[tuple[int, bool]]]) -> None:
    rows = rows_of(drawn)
    result = packed(rows, "wrapped", 7)
    for name in ("input_ids", "labels"):
        assert [token for row in result for token in row[name]] == [
            token for row in rows for token in row[name]
        ]
    assert all(len(row["input_ids"]) == 7 for row in result[:-1])


def test_padding_free_rows_stay_rows() -> None:
    rows = Dataset.from_list(rows_of([[(5, True)], [(6, True), (7, False)]]))
    assert pack(rows, "padding_free", None, "train") is rows


def test_the_same_rows_packed_otherwise_are_other_rows() -> None:
    lengths = (4, 3, 8, 5)
    tokens = iter(range(100))
    rows = [[next(tokens) for _ in range(length)] for length in lengths]
    table = Dataset.from_list([{"input_ids": row, "labels": row} for row in rows])
    a, b, c, d = rows

    def ids(strategy: str, length: int) -> list[list[int]]:
        return sorted(row["input_ids"] for row in pack(table, strategy, length, "train"))

    assert ids("bfd", 12) == [c + a, d + b]
    assert ids("bfd", 20) == [c + d + a + b]
    assert ids("wrapped", 12) == [list(range(12)), list(range(12, 20))]
    assert [row["input_ids"] for row in blocks(table, 12)] == [
        list(range(13)),
        list(range(12, 20)),
    ]
    assert [row["input_ids"] for row in blocks(table, 10)] == [list(range(11)), list(range(10, 20))]


# --- blocks ---------------------------------------------------------------------------------------


def stream_of(rows: Sequence[Row]) -> list[int]:
    return [token for row in rows for token in row["input_ids"]]


@given(drawn=st.lists(TRAINED, min_size=2, max_size=30), size=st.integers(1, 12))
def test_blocks_predict_each_token_of_the_stream_once(
    drawn: list[list[tuple[int, bool]]], size: int
) -> None:
    rows = rows_of(drawn)
    stream = stream_of(rows)
    made = list(blocks(Dataset.from_list(rows), size))
    assert [token for row in made for token in row["input_ids"][1:]] == stream[1:]
    assert [row["input_ids"] for row in made] == [
        stream[at : at + size + 1] for at in range(0, len(stream) - 1, size)
    ]
    assert all(row["labels"] == row["input_ids"] for row in made)


@given(
    drawn=st.lists(TRAINED, min_size=4, max_size=30),
    size=st.integers(1, 3),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
)
def test_random_windows_are_windows_of_the_stream(
    drawn: list[list[tuple[int, bool]]], size: int, seed: int, epoch: int
) -> None:
    stream = stream_of(rows_of(drawn))
    windows = RandomWindows(blocks(Dataset.from_list(rows_of(drawn)), size))
    assert (windows.block_size, windows.tokens, len(windows)) == (
        size,
        len(stream),
        len(stream) // size,
    )
    for start in range(len(stream) - size):
        assert windows[start] == {
            "input_ids": stream[start : start + size + 1],
            "labels": stream[start : start + size + 1],
        }
    starts = windows.starts(seed, epoch)
    assert len(starts) == len(windows)
    assert all(0 <= start < len(stream) - size for start in starts)
    assert starts == windows.starts(seed, epoch)


def test_each_seed_and_each_epoch_draws_other_windows_over_the_whole_stream() -> None:
    windows = RandomWindows(
        blocks(
            Dataset.from_list([{"input_ids": list(range(2000)), "labels": list(range(2000))}]), 2
        )
    )
    drawn = [tuple(windows.starts(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)]
    assert len(set(drawn)) == 4
    assert len({start for epoch in range(20) for start in windows.starts(0, epoch)}) == 1998


BLOCKS = ["recipe=char_gpt_ko", "dataset.limit=5"]


def test_a_runs_blocks_have_eos_between_documents_in_the_order_of_the_split() -> None:
    data = sftpipe.prepare(compose([*BLOCKS, "packing.block_size=64"]))
    tokenizer = data.tokenizer
    texts = [sample.text for sample in data.samples("train")]
    ids = [
        *data.train[0]["input_ids"],
        *(token for row in list(data.train)[1:] for token in row["input_ids"][1:]),
    ]
    assert tokenizer.decode(ids) == "".join(f"{text}{tokenizer.eos_token}" for text in texts)
    assert data.train.column_names == ["input_ids", "labels"]
    assert {len(row["input_ids"]) for row in list(data.train)[:-1]} == {65}
    for overrides in (["seed=7", "sft.max_length=10"], ["sft.max_length=null"]):
        again = sftpipe.prepare(
            compose([*BLOCKS, "packing.block_size=64", *overrides])
        )  # no row of a stream is too long
        for split, rows in data.splits().items():
            assert list(again.splits()[split]) == list(rows)
    tokens = sum(len(text) + 1 for text in texts)
    report = data.preflight.packing
    assert report is not None
    assert report.rows == {
        "train": [5, -(-(tokens - 1) // 64)],
        "validation": [5, len(data.validation)],
    }
    assert report.fill["train"] == pytest.approx(
        (tokens + len(data.train) - 1) / (len(data.train) * 65), abs=1e-4
    )
    assert isolation_of(report.isolation) == "none: rows are joined, and see each other, by design"
    assert data.isolation is None
    assert data.preflight.padding_share < 0.1


def test_a_window_is_what_follows_its_start_in_the_stream() -> None:
    data = sftpipe.prepare(compose([*BLOCKS, "packing.block_size=8"]))
    windows = RandomWindows(data.train)
    starts = windows.starts(0, 0)[:4]
    batch = data.collate([windows[start] for start in starts])
    stream = [*data.train[0]["input_ids"]]
    stream += [token for row in list(data.train)[1:] for token in row["input_ids"][1:]]
    assert batch["input_ids"].tolist() == [stream[start : start + 9] for start in starts]
    assert torch.equal(batch["labels"], batch["input_ids"])


def test_a_corpus_shorter_than_a_window_is_an_error_that_names_both_sizes(
    tmp_path: Path, golden_error: Pin
) -> None:
    (tmp_path / "short.txt").write_text("abc")
    words = [
        "model=tiny_random",
        "tokenizer=char",
        "dataset=text",
        f"dataset.data_files={tmp_path / 'short.txt'}",
        "format=text",
        "loss=full",
    ]
    cfg = compose([*words, "packing=blocks", "packing.block_size=4"])
    error = refused(DataError, lambda: sftpipe.prepare(cfg))
    assert told(error) == {"packing.block_size": ("packing.block_size=3",)}
    golden_error(error)
    data = sftpipe.prepare(compose([*words, "packing=blocks", "packing.block_size=3"]))
    assert [row["input_ids"] for row in data.train] == [[0, 1, 2, 3]]


# --- batches --------------------------------------------------------------------------------------

PAIR: list[dict[str, Any]] = [
    {"input_ids": [5, 6, 7, 8], "labels": [5, IGNORED, 7, 8], "seq_lengths": [2, 2]},
    {"input_ids": [9, 10, 11], "labels": [9, 10, 11], "seq_lengths": [3]},
]


def test_positions_restart_and_the_first_label_of_each_sequence_is_masked() -> None:
    batch = Collator(0, method="positions")(PAIR)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10, 11]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 0, 1, 2]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, IGNORED, 8, IGNORED, 10, 11]]
    assert "attention_mask" not in batch
    assert count(batch) == (7, 3)


def test_a_mask_lets_each_token_see_its_own_sequence_up_to_itself() -> None:
    batch = Collator(0, method="mask")(PAIR)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 11, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1], [0, 1, 2, 0]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, IGNORED, 8], [IGNORED, 10, 11, IGNORED]]
    assert (batch["attention_mask"][:, 0] == 0).int().tolist() == [
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]],
        [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]],
    ]
    assert count(batch) == (7, 3)


def test_rows_that_are_not_packed_are_padded() -> None:
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in PAIR]
    batch = Collator(0)(rows)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [[5, IGNORED, 7, 8], [9, 10, 11, IGNORED]]
    assert count(batch) == (7, 2)


@pytest.mark.parametrize("method", [None, "positions", "mask"])
def test_widths_are_rounded_up_with_padding_that_is_not_trained(method: str | None) -> None:
    exact, batch = Collator(0, None, method)(PAIR), Collator(0, 8, method)(PAIR)
    width = exact["input_ids"].shape[1]
    assert width in (4, 7)
    for name, padding in (("input_ids", 0), ("labels", IGNORED)):
        assert batch[name].shape == (len(exact[name]), 8)
        assert batch[name].dtype == torch.int64
        assert batch[name][:, :width].tolist() == exact[name].tolist()
        assert batch[name][:, width:].unique().tolist() == [padding]


# --- a run's data ---------------------------------------------------------------------------------


YODA = ["recipe=yoda", "dataset.limit=20", "sft.max_length=256"]


@pytest.fixture(scope="module")
def bfd() -> PreparedData:
    """Twenty rows of each split, those of train packed whole."""
    return sftpipe.prepare(compose([*YODA, "packing=bfd"]))


def test_validation_is_packed_only_when_asked(bfd: PreparedData) -> None:
    asked = sftpipe.prepare(compose([*YODA, "packing=bfd", "packing.pack_eval=true"]))
    assert bfd.validation.column_names == ["input_ids", "labels"]
    assert Counter(sequence for row in asked.validation for sequence in sequences(row)) == Counter(
        (tuple(row["input_ids"]), tuple(row["labels"])) for row in bfd.validation
    )
    assert len(bfd.validation) == 20
    assert len(asked.validation) == len(asked.train) < 20


def test_the_report_tells_how_full_packed_rows_are_and_how_they_are_kept_apart(
    bfd: PreparedData,
) -> None:
    data = bfd
    assert data.preflight.packing is not None
    assert data.preflight.packing.strategy == "bfd"
    tokens = sum(len(row["input_ids"]) for row in data.train)
    assert data.preflight.packing.rows == {"train": [20, len(data.train)]}
    assert data.preflight.packing.fill == {
        "train": pytest.approx(tokens / (len(data.train) * 256), abs=1e-4)
    }
    assert data.preflight.packing.isolation == data.isolation
    assert data.preflight.padding_share == 0
    packing = data.preflight.packing
    first, second = packing_rows(packing), isolation_of(packing.isolation)
    assert (
        first
        == f"bfd: 20 train rows in {len(data.train)}, {tokens / (len(data.train) * 256):.1%} full"
    )
    assert re.fullmatch(
        r"positions that restart; packing moves a logit by [0-9.e-]+ standard deviations", second
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (
            ["packing=padding_free", "packing.isolation=trust"],
            [
                "padding_free: each batch is one row",
                "positions that restart; trusted, not measured",
            ],
        ),
        (
            ["packing=wrapped"],
            ["wrapped: 20 train rows in ", "none: rows are joined, and see each other, by design"],
        ),
    ],
)
def test_the_report_says_what_was_not_measured(words: list[str], lines: list[str]) -> None:
    data = sftpipe.prepare(compose([*YODA, *words]))
    assert data.preflight.packing is not None
    packing = data.preflight.packing
    said = [packing_rows(packing), isolation_of(packing.isolation)]
    assert all(line.startswith(start) for line, start in zip(said, lines, strict=True)), said


def test_long_rows_are_split_where_the_strategy_splits(bfd: PreparedData) -> None:
    words = ["recipe=yoda", "dataset.limit=20", "sft.max_length=60", "packing=bfd_split"]
    rows = [sequence for row in bfd.train for sequence in sequences(row)]
    split = sftpipe.prepare(compose(words)).train
    assert max(len(row["input_ids"]) for row in split) == 60
    assert Counter(stream_of(list(split))) == Counter(token for ids, _ in rows for token in ids)


@pytest.mark.slow
def test_length_limits_act_before_packing(bfd: PreparedData) -> None:
    words = ["recipe=yoda", "dataset.limit=20", "sft.max_length=60"]
    rows = [sequence for row in bfd.train for sequence in sequences(row)]
    long = compose([*words, "packing=bfd"])
    assert (
        "sft.max_length=60" in refused(DataError, lambda: sftpipe.prepare(long)).problems[0].found
    )
    drop = ["over_length=drop", "preflight.max_over_length_rows=1"]
    kept = sftpipe.prepare(compose([*words, "packing=bfd", *drop])).train
    short = [sequence for sequence in rows if len(sequence[0]) <= 60]
    assert 0 < len(short) < len(rows) == 20
    assert Counter(sequence for row in kept for sequence in sequences(row)) == Counter(short)


WINDOWS = ["packing=blocks", "loss=full"]
GROUPED = {"sft.train_sampling_strategy": ()}  # what the recipe sets
SPLIT = {"over_length": ("over_length=error", "packing=bfd")}


@pytest.mark.parametrize(
    ("words", "expected"),
    named(
        [
            [
                "no length to fill",
                ["packing=bfd", "sft.max_length=null"],
                {"sft.max_length": ("sft.max_length=1024",)},
            ],
            ["wrapped and cut", ["packing=wrapped", "over_length=truncate"], SPLIT],
            ["windows and cut", [*WINDOWS, "over_length=truncate"], {**GROUPED, **SPLIT}],
            [
                "windows of answers",
                ["packing=blocks"],
                {**GROUPED, "loss=completion_only": ("loss=full", "packing=bfd")},
            ],
            [
                "windows of no length",
                [*WINDOWS, "packing.block_size=null"],
                {**GROUPED, "packing.block_size": ("packing.block_size=256",)},
            ],
            [
                "length without windows",
                ["packing=bfd", "packing.block_size=8"],
                {"packing.block_size": ("packing=blocks",)},
            ],
            [
                "pack_eval of windows",
                [*WINDOWS, "packing.pack_eval=true"],
                {**GROUPED, "packing.pack_eval": ()},
            ],
            [
                "isolation of windows",
                [*WINDOWS, "packing.isolation=trust"],
                {**GROUPED, "packing.isolation": ()},
            ],
            ["grouped", [*WINDOWS, "sft.train_sampling_strategy=group_by_length"], GROUPED],
        ]
    ),
)
def test_choices_that_do_not_go_together(
    words: list[str], expected: dict[str, tuple[str, ...]], golden_error: Pin
) -> None:
    error = config_error("recipe=yoda", *words)
    assert told(error) == expected
    golden_error(error)
