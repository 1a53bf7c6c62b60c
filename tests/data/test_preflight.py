"""The report on finished rows, and the limits that they must keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sftpipe import compose
from sftpipe.data.labels import IGNORED
from sftpipe.data.preflight import Preflight, SplitReport, inspect
from sftpipe.data.prepare import PreparedData, prepare_data
from sftpipe.errors import DataError
from sftpipe.schema import PreflightConfig

Write = Callable[..., str]
Rows = list[dict[str, list[int]]]


# `datasets` forks its processes, which Python 3.12 and later warn of where a thread is running (a native one of torch, say)
FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def row(*ids: int, trained: int = 1) -> dict[str, list[int]]:
    """A row whose last `trained` tokens are trained."""
    masked = len(ids) - trained
    return {"input_ids": list(ids), "labels": [IGNORED] * masked + list(ids[masked:])}


def check(splits: dict[str, Rows], tokenizer: Any, *, max_empty_rows: float = 0.01, dropped: dict[str, int] | None = None) -> Preflight:
    placed = {split: [{**row, "index": place} for place, row in enumerate(rows)] for split, rows in splits.items()}
    return inspect(placed, dropped or {}, tokenizer, PreflightConfig(max_empty_rows=max_empty_rows, show_rows=3))


# --- inspect --------------------------------------------------------------------------------------------------------------------------


def test_a_split_is_counted(tokenizer: Any) -> None:
    rows = [row(1, 2, 3, 4, trained=3), row(5, 6), row(7, 8, 9, trained=0)]
    report = check({"train": rows}, tokenizer, max_empty_rows=0.5, dropped={"train": 4})
    assert report.splits == {
        "train": SplitReport(rows=3, tokens=9, trained_tokens=4, length_median=3, length_max=4, empty_rows=1, over_length_rows=4)
    }


def test_each_split_has_a_report_and_the_special_tokens_are_named(tokenizer: Any) -> None:
    report = check({"train": [row(1, 2)], "test": [row(3, 4, 5)]}, tokenizer).as_dict()
    assert {split: values["tokens"] for split, values in report["splits"].items()} == {"train": 2, "test": 3}
    assert report["special_tokens"] == {
        "pad_token": ["<|endoftext|>", 0],
        "eos_token": ["<|im_end|>", 2],
        "bos_token": ["<|im_start|>", 1],
        "unk_token": ["<|endoftext|>", 0],
    }


def with_empty(empty: int, rows: int = 100) -> Rows:
    """So many rows, the last `empty` of them without a trained token."""
    return [row(at, 7, trained=int(at < rows - empty)) for at in range(rows)]


def test_as_many_empty_rows_as_the_limit_pass(tokenizer: Any) -> None:
    assert check({"train": with_empty(2)}, tokenizer, max_empty_rows=0.02).splits["train"].empty_rows == 2


def test_more_empty_rows_than_the_limit_fail_and_name_the_first(tokenizer: Any) -> None:
    with pytest.raises(DataError) as error:
        check({"validation": with_empty(3)}, tokenizer, max_empty_rows=0.02)
    assert str(error.value) == (
        "validation[97]: 3 of 100 rows have no trained token\n"
        "    allowed: preflight.max_empty_rows=0.02\n"
        "    sftpipe preview shows what is trained; check format and loss"
    )


def test_no_empty_row_passes_when_none_is_allowed(tokenizer: Any) -> None:
    assert check({"train": with_empty(0)}, tokenizer, max_empty_rows=0).splits["train"].empty_rows == 0
    with pytest.raises(DataError, match="1 of 100 rows have no trained token"):
        check({"train": with_empty(1)}, tokenizer, max_empty_rows=0)


def test_a_row_in_two_splits_fails_and_names_both_places(tokenizer: Any) -> None:
    splits = {"train": [row(1, 2), row(3, 4)], "validation": [row(5, 6)], "test": [row(7, 8), row(3, 4), row(1, 2)]}
    with pytest.raises(DataError) as error:
        check(splits, tokenizer)
    assert str(error.value) == (
        "test[1]: the same row as train[1]: 2 rows of test were seen in another split\n"
        "    allowed: no row in two splits; the loss on it would measure memory\n"
        "    remove the duplicates from the data set"
    )


def test_a_row_twice_in_one_split_passes(tokenizer: Any) -> None:
    report = check({"train": [row(1, 2), row(1, 2)], "test": [row(1, 3)]}, tokenizer)
    assert report.duplicates_across_splits == 0


def test_all_problems_of_all_splits_are_reported_together(tokenizer: Any) -> None:
    splits = {"train": [row(1, 2, trained=0)], "validation": [row(1, 2), row(3, 4, trained=0)]}
    with pytest.raises(DataError) as error:
        check(splits, tokenizer)
    assert [problem.where for problem in error.value.problems] == ["train[0]", "validation[1]", "validation[0]"]


# --- through prepare_data -------------------------------------------------------------------------------------------------------------

PAIRS = [{"prompt": f"Row {at}", "completion": "long " * 20 if at in (2, 5) else f"short {at}"} for at in range(10)]


def prepare(file: str, tokenizer: Any, *overrides: str) -> PreparedData:
    cfg = compose(["dataset=json", f"dataset.data_files={file}", "format=prompt_completion", *overrides])
    return prepare_data(cfg, tokenizer, dict)


def test_finished_rows_are_ids_and_labels_and_nothing_else(rows_file: Write, tokenizer: Any) -> None:
    data = prepare(rows_file(PAIRS), tokenizer, "dataset.validation_size=2")
    assert list(data.splits()) == ["train", "validation"]
    assert data.test is None
    assert data.train.column_names == data.validation.column_names == ["input_ids", "labels"]
    assert tokenizer.decode(data.validation[1]["input_ids"]) == "Row 9short 9<|im_end|>"


def test_the_rows_before_formatting_stay_at_hand(rows_file: Write, tokenizer: Any) -> None:
    data = prepare(rows_file(PAIRS), tokenizer)
    assert data.source["train"].to_list() == PAIRS


@FORKS
def test_rows_are_the_same_whatever_the_number_of_processes(rows_file: Write, tokenizer: Any) -> None:
    one = prepare(rows_file(PAIRS), tokenizer)
    two = prepare(rows_file(PAIRS), tokenizer, "dataset.num_proc=2")
    assert one.train.to_list() == two.train.to_list()


def test_a_row_longer_than_max_length_is_an_error_with_the_length_that_would_do(rows_file: Write, tokenizer: Any) -> None:
    with pytest.raises(DataError) as error:
        prepare(rows_file(PAIRS), tokenizer, "sft.max_length=16")
    assert str(error.value) == (
        "train[2]: 2 of 10 rows of train are longer than sft.max_length=16 tokens; this one has 25, the longest 25\n"
        "    sft.max_length=25, or over_length=drop to leave such rows out and count them"
    )


def test_the_length_that_the_message_names_does(rows_file: Write, tokenizer: Any) -> None:
    data = prepare(rows_file(PAIRS), tokenizer, "sft.max_length=25")
    assert data.preflight.splits["train"].over_length_rows == 0
    assert data.preflight.splits["train"].length_max == 25


def test_dropped_rows_are_counted_and_the_others_keep_their_order(rows_file: Write, tokenizer: Any) -> None:
    data = prepare(rows_file(PAIRS), tokenizer, "sft.max_length=16", "over_length=drop")
    assert data.preflight.splits["train"].over_length_rows == 2
    texts = [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in data.train]
    assert texts == [pair["prompt"] + pair["completion"] for at, pair in enumerate(PAIRS) if at not in (2, 5)]


def test_dropping_every_row_is_an_error(rows_file: Write, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"10 of 10 rows of train are longer than sft\.max_length=2 tokens"):
        prepare(rows_file(PAIRS), tokenizer, "sft.max_length=2", "over_length=drop")


def test_no_max_length_keeps_every_row(rows_file: Write, tokenizer: Any) -> None:
    assert len(prepare(rows_file(PAIRS), tokenizer, "sft.max_length=null").train) == 10


def test_a_bad_row_stops_the_preparation_and_is_named(rows_file: Write, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"^train\[10\]\.completion: an empty string"):
        prepare(rows_file([*PAIRS, {"prompt": "a", "completion": " "}]), tokenizer)


@FORKS
def test_a_bad_row_is_named_alike_by_a_process_of_its_own(rows_file: Write, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"^train\[10\]\.completion: an empty string"):
        prepare(rows_file([*PAIRS, {"prompt": "a", "completion": " "}]), tokenizer, "dataset.num_proc=2")


def test_a_column_that_the_format_needs_is_missed_before_encoding(rows_file: Write, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"^format=instruction \(train\): no column 'instruction'; the data set has prompt, completion"):
        prepare(rows_file(PAIRS), tokenizer, "format=instruction")


def test_the_same_row_in_two_files_is_found(rows_file: Write, tokenizer: Any) -> None:
    files = [rows_file(PAIRS[:2], "a.jsonl"), rows_file(PAIRS[1:2], "b.jsonl")]
    with pytest.raises(DataError, match=r"^validation\[0\]: the same row as train\[1\]: 1 rows? of validation"):
        prepare(f"{{train: '{files[0]}', validation: '{files[1]}'}}", tokenizer)


def test_a_place_is_a_row_of_the_data_set_after_rows_were_dropped(rows_file: Write, tokenizer: Any) -> None:
    files = [rows_file(PAIRS, "a.jsonl"), rows_file(PAIRS[9:], "b.jsonl")]
    with pytest.raises(DataError, match=r"the same row as train\[9\]"):
        prepare(f"{{train: '{files[0]}', validation: '{files[1]}'}}", tokenizer, "sft.max_length=16", "over_length=drop")
