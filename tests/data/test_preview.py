"""What people are shown of a finished row."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from sftpipe.data.encode import Encoder
from sftpipe.data.formats import Conversation
from sftpipe.data.labels import IGNORED
from sftpipe.data.preview import MASKED, TRAINED, colored, preview_rows, spans
from sftpipe.schema import LossConfig

PROMPT = "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n안녕?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def row(tokenizer: Any) -> dict[str, list[int]]:
    """One finished row."""
    turns = (("system", "Be short."), ("user", "안녕?"), ("assistant", "Hi [bold] \U0001f600!"))
    sample = Conversation(tuple({"role": role, "content": content} for role, content in turns))
    (encoded,) = Encoder(tokenizer, LossConfig()).encode([sample], ["train[0]"])
    return {"input_ids": encoded.input_ids, "labels": encoded.labels}


def test_spans_cut_the_text_where_training_begins_and_ends(row: dict[str, list[int]], tokenizer: Any) -> None:
    assert spans(row, tokenizer) == [(PROMPT, False), ("Hi [bold] \U0001f600!<|im_end|>", True), ("\n", False)]


@pytest.mark.parametrize(("trained", "expected"), [(True, True), (False, False)])
def test_a_row_of_one_kind_is_one_span(row: dict[str, list[int]], tokenizer: Any, trained: bool, expected: bool) -> None:
    ids = row["input_ids"]
    labels = ids if trained else [IGNORED] * len(ids)
    assert spans({"input_ids": ids, "labels": labels}, tokenizer) == [(tokenizer.decode(ids), expected)]


def test_each_trained_part_is_a_span_of_its_own(tokenizer: Any) -> None:
    ids = tokenizer("one two three", add_special_tokens=False).input_ids
    parts = spans({"input_ids": ids, "labels": [ids[0], IGNORED, ids[2]]}, tokenizer)
    assert parts == [("one", True), (" two", False), (" three", True)]


def test_ids_and_labels_of_different_lengths_are_refused(row: dict[str, list[int]], tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="shorter"):
        spans({"input_ids": row["input_ids"], "labels": row["labels"][:-1]}, tokenizer)


def test_a_colored_row_reads_as_its_text_with_the_trained_part_marked(row: dict[str, list[int]], tokenizer: Any) -> None:
    text = colored(row, tokenizer)
    assert text.plain == tokenizer.decode(row["input_ids"])
    marked = [(text.plain[span.start : span.end], span.style) for span in text.spans]
    assert marked == [(PROMPT, MASKED), ("Hi [bold] \U0001f600!<|im_end|>", TRAINED), ("\n", MASKED)]


@pytest.mark.parametrize(("count", "shown"), [(0, 0), (2, 2), (3, 3), (99, 3)])
def test_at_most_the_rows_that_there_are_are_previewed(row: dict[str, list[int]], tokenizer: Any, count: int, shown: int) -> None:
    assert [line["index"] for line in preview_rows(Dataset.from_list([row] * 3), tokenizer, count)] == list(range(shown))


def test_a_previewed_row_has_text_ids_labels_and_positions(row: dict[str, list[int]], tokenizer: Any) -> None:
    (line,) = preview_rows(Dataset.from_list([row]), tokenizer, 1)
    length = len(row["input_ids"])
    assert line == {"index": 0, "text": tokenizer.decode(row["input_ids"]), **row, "position_ids": list(range(length))}
