"""The report on finished rows, and the limits that they must keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset, Features, List, Value

from sftpipe import compose
from sftpipe.data.formats import PromptCompletion
from sftpipe.data.labels import IGNORED
from sftpipe.data.preflight import Dropped, Part, Preflight, SplitReport, inspect
from sftpipe.data.prepare import PreparedData, prepare_data
from sftpipe.errors import DataError, RowError

Write = Callable[..., str]
Row = dict[str, list[int]]


# `datasets` forks its processes, which Python 3.12 and later warn of where a thread is running (a native one of torch, say)
FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def row(*ids: int, trained: int = 1) -> Row:
    """A row whose last `trained` tokens are trained."""
    masked = len(ids) - trained
    return {"input_ids": list(ids), "labels": [IGNORED] * masked + list(ids[masked:])}


def lost(index: int, reason: str = "empty text", origin: str = "") -> Dropped:
    return Dropped(index, reason, f"train[{index}].text", "an empty string", "text", "mend it", origin)


COLUMNS = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32")), "index": Value("int64"), "cut": Value("int32")})


def part(split: str, *rows: Row, source: str = "", dropped: list[Dropped] | None = None, over_length: int = 0) -> Part:
    """Finished rows, the first at place 0."""
    missing = dropped or []
    placed = {name: [row[name] for row in rows] for name in ("input_ids", "labels")} | {
        "index": list(range(len(rows))),
        "cut": [row.get("cut", 0) for row in rows],
    }
    table = Dataset.from_dict(placed, features=COLUMNS)
    return Part(split, source, len(rows) + len(missing) + over_length, table, missing, over_length)


def check(*parts: Part, tokenizer: Any, max_empty_rows: float = 0.01, loss: str = "completion_only") -> Preflight:
    cfg = compose([f"preflight.max_empty_rows={max_empty_rows}", f"loss={loss}"])
    grouped: dict[str, list[Part]] = {}
    for one in parts:
        grouped.setdefault(one.split, []).append(one)
    return inspect(grouped, tokenizer, cfg)


# --- inspect --------------------------------------------------------------------------------------------------------------------------


def test_a_split_is_counted(tokenizer: Any) -> None:
    rows = [row(1, 2, 3, 4, trained=3), {**row(5, 6), "cut": 2}, row(7, 8, 9)]
    dropped = [lost(3), lost(4, "wrong type"), lost(5)]
    report = check(part("train", *rows, dropped=dropped, over_length=4), tokenizer=tokenizer, max_empty_rows=0.5)
    assert report.splits == [
        SplitReport(split="train", source="", rows=3, tokens=9, trained_tokens=5, length_median=3, length_max=4, over_length_rows=4,
                    truncated_rows=1, dropped={"empty text": 2, "wrong type": 1})
    ]  # fmt: skip
    assert report.split("train") is report.splits[0]
    assert report.dropped == dropped


def test_each_split_of_each_source_has_a_report_and_the_special_tokens_are_named(tokenizer: Any) -> None:
    parts = [part("train", row(1, 2), source="a"), part("train", row(6, 7, 8, 9), source="b"), part("test", row(3, 4, 5), source="a")]
    report = check(*parts, tokenizer=tokenizer).as_dict()
    assert [(one["split"], one["source"], one["tokens"]) for one in report["splits"]] == [
        ("train", "a", 2),
        ("train", "b", 4),
        ("test", "a", 3),
    ]
    assert report["special_tokens"] == {
        "pad_token": ["<|endoftext|>", 0],
        "eos_token": ["<|im_end|>", 2],
        "bos_token": ["<|im_start|>", 1],
        "unk_token": ["<|endoftext|>", 0],
    }


def test_the_last_trained_tokens_are_counted(tokenizer: Any) -> None:
    report = check(part("train", row(5, 2), row(6, 2), row(7, 1)), tokenizer=tokenizer)
    assert report.end_tokens == {"<|im_end|>": 2, "<|im_start|>": 1}


def test_white_space_behind_an_end_token_and_plain_words_are_no_place_to_stop(tokenizer: Any) -> None:
    (line,) = tokenizer("\n").input_ids
    (word,) = tokenizer("word").input_ids
    report = check(part("train", row(5, 7, 2, line, trained=3), row(6, word, trained=1)), tokenizer=tokenizer)
    assert report.end_tokens == {"<|im_end|>": 1}


def test_a_summary_counts_the_rows_and_what_was_dropped(tokenizer: Any) -> None:
    parts = [part("train", *(row(at, 7) for at in range(1200)), dropped=[lost(at) for at in range(2)], over_length=3),
             part("test", row(3, 4, 5))]  # fmt: skip
    assert check(*parts, tokenizer=tokenizer).summary() == (
        "1,200 train, 1 test rows\ndropped   of train: 3 x too long, 2 x empty text; `sftpipe check` lists them"
    )


def with_dropped(dropped: int, rows: int = 100, split: str = "train") -> Part:
    """So many rows, of which the last ones teach nothing."""
    return part(split, *(row(at, 7) for at in range(rows - dropped)), dropped=[lost(at) for at in range(rows - dropped, rows)])


def test_as_many_dropped_rows_as_the_limit_pass(tokenizer: Any) -> None:
    report = check(with_dropped(2), tokenizer=tokenizer, max_empty_rows=0.02)
    assert (report.split("train").rows, report.split("train").dropped) == (98, {"empty text": 2})


def test_more_dropped_rows_than_the_limit_fail_with_a_summary_and_the_first_three_of_each_reason(tokenizer: Any) -> None:
    dropped = [lost(at, "empty text" if at % 2 else "wrong type", f"rows.jsonl, line {at + 1}") for at in range(90, 99)]
    with pytest.raises(DataError) as error:
        check(part("train", *(row(at, 7) for at in range(90)), dropped=dropped), tokenizer=tokenizer, max_empty_rows=0.02)
    summary, *rows = error.value.problems
    assert str(summary) == (
        "train: 9 of 99 rows teach nothing: 5 x wrong type, 4 x empty text\n"
        "    allowed: preflight.max_empty_rows=0.02 of the rows\n"
        "    mend the rows below, the format or the loss; preflight.max_empty_rows=1 lets sftpipe preview show the rest"
    )
    assert [problem.where for problem in rows] == [f"train[{at}].text (rows.jsonl, line {at + 1})" for at in (90, 92, 94, 91, 93, 95)]
    assert {(problem.found, problem.allowed, problem.fix) for problem in rows} == {("an empty string", "text", "mend it")}


def test_no_dropped_row_passes_when_none_is_allowed(tokenizer: Any) -> None:
    assert check(with_dropped(0), tokenizer=tokenizer, max_empty_rows=0).split("train").dropped == {}
    with pytest.raises(DataError, match="1 of 100 rows teach nothing: 1 x empty text"):
        check(with_dropped(1), tokenizer=tokenizer, max_empty_rows=0)


def test_a_split_without_a_row_left_fails_whatever_is_allowed(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="2 of 2 rows teach nothing"):
        check(with_dropped(2, rows=2), tokenizer=tokenizer, max_empty_rows=1)


def test_a_loss_that_masks_nothing_fails_unless_it_is_full(tokenizer: Any) -> None:
    whole = part("train", row(1, 2, trained=2), row(3, 4, trained=2))
    with pytest.raises(DataError) as error:
        check(whole, tokenizer=tokenizer)
    assert str(error.value) == (
        "train, loss=completion_only: every token of every row is trained: no prompt is masked\n"
        "    allowed: a prompt in front of what is trained\n"
        "    loss=full if that is meant; else look at sftpipe preview"
    )
    assert check(whole, tokenizer=tokenizer, loss="full").split("train").trained_tokens == 4
    assert check(part("train", row(1, 2, trained=2), row(3, 4)), tokenizer=tokenizer).split("train").trained_tokens == 3


def test_a_row_in_two_splits_fails_and_names_both_places(tokenizer: Any) -> None:
    parts = [part("train", row(1, 2), row(3, 4)), part("validation", row(5, 6)), part("test", row(7, 8), row(3, 4), row(1, 2))]
    with pytest.raises(DataError) as error:
        check(*parts, tokenizer=tokenizer)
    assert str(error.value) == (
        "test[1]: the same row as train[1]: 2 rows of test were seen in another split\n"
        "    allowed: no row in two splits; the loss on it would measure memory\n"
        "    remove the duplicates from the data set"
    )


def test_a_row_in_two_splits_is_found_across_sources(tokenizer: Any) -> None:
    parts = [part("train", row(1, 2), source="a"), part("train", row(3, 4), source="b"), part("test", row(3, 4), source="a")]
    with pytest.raises(DataError, match=r"^a test\[0\]: the same row as b train\[0\]: 1 rows of test"):
        check(*parts, tokenizer=tokenizer)


def test_a_row_twice_in_one_split_passes(tokenizer: Any) -> None:
    report = check(part("train", row(1, 2), row(1, 2)), part("test", row(1, 3)), tokenizer=tokenizer)
    assert report.duplicates_across_splits == 0


def test_all_problems_of_all_splits_are_reported_together(tokenizer: Any) -> None:
    parts = [part("train", row(1, 2), dropped=[lost(1)]), part("validation", row(1, 2), dropped=[lost(1)])]
    with pytest.raises(DataError) as error:
        check(*parts, tokenizer=tokenizer)
    assert [problem.where for problem in error.value.problems] == ["train", "train[1].text", "validation", "train[1].text", "validation[0]"]


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


def test_the_samples_before_encoding_stay_at_hand_without_bad_rows(rows_file: Write, tokenizer: Any) -> None:
    rows = [*PAIRS[:3], {"prompt": "a", "completion": None}, *PAIRS[3:]]
    data = prepare(rows_file(rows), tokenizer, "preflight.max_empty_rows=0.1")
    assert list(data.samples("train")) == [PromptCompletion(**pair) for pair in PAIRS]
    assert list(data.samples("test")) == []


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
    assert data.preflight.split("train").over_length_rows == 0
    assert data.preflight.split("train").length_max == 25


def test_dropped_rows_are_counted_and_the_others_keep_their_order(rows_file: Write, tokenizer: Any) -> None:
    data = prepare(rows_file(PAIRS), tokenizer, "sft.max_length=16", "over_length=drop")
    assert data.preflight.split("train").over_length_rows == 2
    texts = [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in data.train]
    assert texts == [pair["prompt"] + pair["completion"] for at, pair in enumerate(PAIRS) if at not in (2, 5)]


def test_dropping_every_row_is_an_error(rows_file: Write, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"10 of 10 rows of train are longer than sft\.max_length=2 tokens"):
        prepare(rows_file(PAIRS), tokenizer, "sft.max_length=2", "over_length=drop")


def test_no_max_length_keeps_every_row(rows_file: Write, tokenizer: Any) -> None:
    assert len(prepare(rows_file(PAIRS), tokenizer, "sft.max_length=null").train) == 10


BAD = [*PAIRS, {"prompt": "a", "completion": " "}]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=FORKS)])
def test_more_bad_rows_than_the_limit_stop_the_preparation_and_are_named(rows_file: Write, tokenizer: Any, processes: int) -> None:
    with pytest.raises(DataError) as error:
        prepare(rows_file(BAD), tokenizer, f"dataset.num_proc={processes}")
    assert not isinstance(error.value, RowError)
    assert str(error.value) == (
        "train: 1 of 11 rows teach nothing: 1 x empty text\n"
        "    allowed: preflight.max_empty_rows=0.01 of the rows\n"
        "    mend the rows below, the format or the loss; preflight.max_empty_rows=1 lets sftpipe preview show the rest\n"
        "train[10].completion (rows.jsonl, line 11): an empty string\n    allowed: text\n    mend or remove the row"
    )


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=FORKS)])
def test_bad_rows_up_to_the_limit_are_dropped_counted_and_named(rows_file: Write, tokenizer: Any, processes: int) -> None:
    data = prepare(rows_file(BAD), tokenizer, f"dataset.num_proc={processes}", "preflight.max_empty_rows=0.1")
    assert data.preflight.split("train").dropped == {"empty text": 1}
    assert data.preflight.dropped == [
        Dropped(10, "empty text", "train[10].completion", "an empty string", "text", "mend or remove the row", "rows.jsonl, line 11")
    ]
    assert data.train.to_list() == prepare(rows_file(PAIRS, "good.jsonl"), tokenizer).train.to_list()


def test_a_prompt_that_is_too_long_is_cut_and_a_row_that_cannot_be_is_dropped(rows_file: Write, tokenizer: Any) -> None:
    rows = [{"prompt": "long " * 39 + "long", "completion": " yes"}, {"prompt": "a", "completion": "long " * 40}, *PAIRS]
    data = prepare(rows_file(rows), tokenizer, "sft.max_length=30", "over_length=truncate", "preflight.max_empty_rows=0.1")
    assert data.preflight.split("train").dropped == {"longer than sft.max_length": 1}
    assert data.preflight.dropped[0].index == 1
    assert data.preflight.split("train").length_max == len(data.train[0]["input_ids"]) == 30
    assert tokenizer.decode(data.train[0]["input_ids"]).endswith(" long yes<|im_end|>")


# --- special tokens in the texts ------------------------------------------------------------------------------------------------------

FORGED = [{"messages": [{"role": "user", "content": "What ends a turn?"}, {"role": "assistant", "content": "It is <|im_end|>, look."}]}]


def test_a_text_that_would_end_its_turn_is_refused(rows_file: Write, tokenizer: Any) -> None:
    with pytest.raises(DataError) as error:
        prepare(rows_file(FORGED), tokenizer, "format=messages")
    assert str(error.value.problems[1]) == (
        "train[0].messages[1].content (rows.jsonl, line 1): the special token '<|im_end|>' in 'It is <|im_end|>, look.'\n"
        "    allowed: text that neither opens nor ends a turn\n"
        "    mend or remove the row, or preflight.forged_turns=escape to have such tokens read as plain text"
    )


def test_an_escaped_token_is_plain_text_that_looks_the_same(rows_file: Write, tokenizer: Any) -> None:
    data = prepare(rows_file(FORGED), tokenizer, "format=messages", "preflight.forged_turns=escape")
    trained = [label for label in data.train[0]["labels"] if label != IGNORED]
    assert tokenizer.decode(trained).replace("\u200b", "") == "It is <|im_end|>, look.<|im_end|>"
    assert trained.count(tokenizer.eos_token_id) == 1


def test_markers_are_stripped_from_every_text(rows_file: Write, tokenizer: Any) -> None:
    file = rows_file([{"prompt": "a|X|>", "completion": "|X|>b|Y|>"}])
    kept = prepare(file, tokenizer)
    stripped = prepare(file, tokenizer, "dataset.markers=strip", "dataset.marker_tokens=['|X|>','|Y|>']")
    assert tokenizer.decode(kept.train[0]["input_ids"]) == "a|X|>|X|>b|Y|><|im_end|>"
    assert tokenizer.decode(stripped.train[0]["input_ids"]) == "ab<|im_end|>"


# --- mixtures -------------------------------------------------------------------------------------------------------------------------


def mixture(*sources: str) -> list[str]:
    return ["dataset=mixture", f"dataset.sources=[{', '.join(f'{{{source}}}' for source in sources)}]", "format=prompt_completion"]


def texts(data: PreparedData) -> list[str]:
    return [data.tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in data.train]


def numbered(name: str, count: int) -> list[dict[str, str]]:
    return [{"prompt": name, "completion": str(at)} for at in range(count)]


def test_weights_make_the_largest_mixture_without_a_row_twice_spread_evenly(rows_file: Write, tokenizer: Any) -> None:
    a, b = rows_file(numbered("a", 8), "a.jsonl"), rows_file(numbered("b", 3), "b.jsonl")
    overrides = mixture(f"path: json, data_files: '{a}', weight: 2", f"path: json, data_files: '{b}', weight: 1")
    data = prepare_data(compose(overrides), tokenizer, dict)
    assert texts(data) == ["a0", "b0", "a1", "a2", "b1", "a3", "a4", "b2", "a5"]
    assert [(one.source, one.rows) for one in data.preflight.splits] == [("sources[0] json", 6), ("sources[1] json", 3)]


def test_counts_take_the_first_rows_and_more_than_there_are_is_an_error(rows_file: Write, tokenizer: Any) -> None:
    a, b = rows_file(numbered("a", 4), "a.jsonl"), rows_file(numbered("b", 4), "b.jsonl")
    source = f"path: json, data_files: '{b}'"
    data = prepare_data(compose(mixture(f"path: json, data_files: '{a}', count: 2", source)), tokenizer, dict)
    assert sorted(texts(data)) == ["a0", "a1", "b0", "b1", "b2", "b3"]
    with pytest.raises(DataError) as error:
        prepare_data(compose(mixture(source, f"path: json, data_files: '{a}', count: 5")), tokenizer, dict)
    assert str(error.value) == (
        "dataset.sources[1].count: 5 rows are asked for, and the source has 4\n    allowed: no row is repeated\n"
        "    dataset.sources[1].count=4, or sft.num_train_epochs for more passes over all"
    )


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
