"""Finished rows as people are shown them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from sftpipe.config.schema import LossConfig
from sftpipe.data.encode import Encoder
from sftpipe.data.labels import IGNORED
from sftpipe.data.packing import Collator
from sftpipe.data.preflight.preview import (
    BOUNDARY,
    MASKED,
    REASONS,
    TRAINED,
    colored,
    page_row,
    pieces,
    preview_rows,
    reasons,
    spans,
    visible,
    write_page,
)
from sftpipe.data.samples import Conversation
from sftpipe.errors import RunError
from support.errors import Pin, places, refused

PROMPT = (
    "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n안녕?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def row(tokenizer: Any) -> dict[str, list[int]]:
    """One finished row."""
    turns = (("system", "Be short."), ("user", "안녕?"), ("assistant", "Hi [bold] \U0001f600!"))
    sample = Conversation(tuple({"role": role, "content": content} for role, content in turns))
    (encoded,) = Encoder(tokenizer, LossConfig()).encode([sample], ["train[0]"])
    return {"input_ids": encoded.input_ids, "labels": encoded.labels}


def test_spans_split_the_text_where_training_begins_and_ends(
    row: dict[str, list[int]], tokenizer: Any
) -> None:
    assert spans(row, tokenizer) == [
        (PROMPT, False),
        ("Hi [bold] \U0001f600!<|im_end|>", True),
        ("\n", False),
    ]


@pytest.mark.parametrize(("trained", "expected"), [(True, True), (False, False)])
def test_a_row_of_one_kind_is_one_span(
    row: dict[str, list[int]], tokenizer: Any, trained: bool, expected: bool
) -> None:
    ids = row["input_ids"]
    labels = ids if trained else [IGNORED] * len(ids)
    assert spans({"input_ids": ids, "labels": labels}, tokenizer) == [
        (tokenizer.decode(ids), expected)
    ]


def test_each_trained_part_is_a_span_of_its_own(tokenizer: Any) -> None:
    ids = tokenizer("one two three", add_special_tokens=False).input_ids
    parts = spans({"input_ids": ids, "labels": [ids[0], IGNORED, ids[2]]}, tokenizer)
    assert parts == [("one", True), (" two", False), (" three", True)]


def test_ids_and_labels_of_different_lengths_are_refused(
    row: dict[str, list[int]], tokenizer: Any
) -> None:
    with pytest.raises(ValueError, match="shorter"):
        spans({"input_ids": row["input_ids"], "labels": row["labels"][:-1]}, tokenizer)


def test_a_colored_row_reads_as_its_text_with_the_trained_part_marked(
    row: dict[str, list[int]], tokenizer: Any
) -> None:
    text = colored(row, tokenizer)
    assert text.plain == tokenizer.decode(row["input_ids"])
    marked = [(text.plain[span.start : span.end], span.style) for span in text.spans]
    assert marked == [
        (PROMPT, MASKED),
        ("Hi [bold] \U0001f600!<|im_end|>", TRAINED),
        ("\n", MASKED),
    ]


@pytest.mark.parametrize(("count", "shown"), [(0, 0), (2, 2), (3, 3), (99, 3)])
def test_at_most_the_rows_that_there_are_are_previewed(
    row: dict[str, list[int]], tokenizer: Any, count: int, shown: int
) -> None:
    assert [
        line["index"] for line in preview_rows(Dataset.from_list([row] * 3), tokenizer, count)
    ] == list(range(shown))


def test_a_previewed_row_has_text_ids_labels_and_positions(
    row: dict[str, list[int]], tokenizer: Any
) -> None:
    (line,) = preview_rows(Dataset.from_list([row]), tokenizer, 1)
    length = len(row["input_ids"])
    assert line == {
        "index": 0,
        "text": tokenizer.decode(row["input_ids"]),
        **row,
        "position_ids": list(range(length)),
    }


# --- packed rows ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(row: dict[str, list[int]]) -> dict[str, list[int]]:
    """The row twice, packed."""
    return {
        "input_ids": row["input_ids"] * 2,
        "labels": row["labels"] * 2,
        "seq_lengths": [len(row["input_ids"])] * 2,
    }


def test_positions_of_a_packed_row_begin_anew_with_each_sequence(
    packed: dict[str, list[int]], tokenizer: Any
) -> None:
    (line,) = preview_rows(Dataset.from_list([packed]), tokenizer, 1)
    assert line["position_ids"] == [
        *range(packed["seq_lengths"][0]),
        *range(packed["seq_lengths"][1]),
    ]
    assert list(line) == ["index", "text", "input_ids", "labels", "position_ids"]


def test_the_first_token_of_each_packed_sequence_is_shown_masked_as_it_is_in_the_batch(
    tokenizer: Any,
) -> None:
    ids = tokenizer("one two three four", add_special_tokens=False).input_ids
    row = {"input_ids": ids, "labels": ids, "seq_lengths": [2, 2]}
    (line,) = preview_rows(Dataset.from_list([row]), tokenizer, 1)
    assert line["labels"] == [IGNORED, ids[1], IGNORED, ids[3]]
    assert [REASONS[why].split()[0] for why in page_row(row, tokenizer)["why"]] == [
        "first",
        "trained",
    ] * 2
    text = colored(row, tokenizer)
    assert [text.plain[span.start : span.end] for span in text.spans if span.style == TRAINED] == [
        " two",
        " four",
    ]
    assert Collator(0, method="positions")([row])["labels"].tolist() == [line["labels"]]


def test_a_line_is_before_each_sequence_of_a_packed_row(
    packed: dict[str, list[int]], tokenizer: Any
) -> None:
    text, length = colored(packed, tokenizer), packed["seq_lengths"][0]
    lines = [
        text.plain[span.start : span.end].strip() for span in text.spans if span.style == BOUNDARY
    ]
    assert lines == [f"┄┄ sequence {number} of 2, {length} tokens ┄┄" for number in (1, 2)]
    assert text.plain.count(PROMPT) == 2


@pytest.mark.parametrize("off", [-1, 1])
def test_lengths_that_do_not_add_up_are_refused(
    packed: dict[str, list[int]], tokenizer: Any, off: int
) -> None:
    total = len(packed["input_ids"])
    with pytest.raises(
        ValueError, match=f"seq_lengths add up to {total + off}, and the row has {total} tokens"
    ):
        colored({**packed, "seq_lengths": [total + off]}, tokenizer)


def test_a_terminal_is_shown_control_characters_and_not_given_them(tokenizer: Any) -> None:
    ids = tokenizer("a\x1b[31m\u202eb\tc\n", add_special_tokens=False).input_ids
    assert (
        colored({"input_ids": ids, "labels": ids}, tokenizer).plain == "a[U+001B][31m[U+202E]b\tc\n"
    )


# --- why a token is masked ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "packed", "expected"),
    [
        ("..tt.t..", False, "prompt prompt trained trained between trained after after"),
        (".ttt", False, "prompt trained trained trained"),
        (".ttt", True, "first trained trained trained"),
        ("..tt", True, "prompt prompt trained trained"),
        ("tt", True, "trained trained"),
        ("..", True, "nothing nothing"),
        ("", False, ""),
    ],
)
def test_each_token_says_why_it_is_trained_or_masked(
    pattern: str, packed: bool, expected: str
) -> None:
    labels = [7 if letter == "t" else IGNORED for letter in pattern]
    assert [
        re.split("[: ]", REASONS[why])[0] for why in reasons(labels, packed=packed)
    ] == expected.split()


def test_reasons_are_found_for_each_sequence_separately(
    packed: dict[str, list[int]], tokenizer: Any
) -> None:
    shown, length = page_row(packed, tokenizer), packed["seq_lengths"][0]
    assert shown["why"][:length] == shown["why"][length:]
    assert {REASONS[why] for why in shown["why"]} == {
        "trained",
        "prompt: before what is trained",
        "after the end of the answer",
    }


# --- the text of a token --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokenizer", "phi3", "opt"])
@pytest.mark.parametrize(
    "text", ["Hi  there\n", "안녕, 세계", "😀👍🏽 €", "שלום e\u0301", "\u2028<script>"]
)
def test_pieces_join_to_the_text_and_a_split_character_is_at_its_first_token(
    name: str, text: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(name)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    found = pieces(ids, tokenizer)
    assert len(found) == len(ids)
    assert found[0] is not None
    assert "".join(piece or "" for piece in found) == tokenizer.decode(ids)


def test_bytes_that_make_no_character_are_marked_and_the_text_goes_on(phi3: Any) -> None:
    ids = phi3.convert_tokens_to_ids(["▁a", "<0xE2>", "<0x82>", "<0xAC>", "<0xE2>", "b"])
    assert pieces(ids, phi3) == ["a", "€", None, None, "\ufffd", "b"]


def test_a_replacement_character_in_the_data_is_shown_as_it_is(tokenizer: Any) -> None:
    ids = tokenizer("a\ufffdb", add_special_tokens=False).input_ids
    texts = pieces(ids, tokenizer)
    assert (texts[0], texts[-1]) == ("a", "b")
    assert "\ufffd" in texts


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a", "·a"),
        ("\r\n\t", "␍↵⇥"),
        ("\u2028", "[U+2028]"),
        ("\xa0", "[U+00A0]"),
        ("\u0301", "◌\u0301"),
        ("e\u0301", "e\u0301"),
        ("\u200d", "[U+200D]"),
        ("\U0001f9d1\u200d\U0001f680", "\U0001f9d1\u200d\U0001f680"),
        ("\u202e", "[U+202E]"),
        ("", ""),
    ],
)
def test_everything_in_a_token_can_be_seen(text: str, shown: str) -> None:
    assert visible(text) == shown


# --- the page -------------------------------------------------------------------------------------


def page_data(file: Path) -> Any:
    found = re.search(
        r'<script type="application/json" id="data">([^<>&]*)</script>',  # nothing that HTML reads
        file.read_text(encoding="utf-8"),
    )
    assert found
    return json.loads(found[1])


def test_the_page_holds_the_first_rows_of_each_split(
    row: dict[str, list[int]], tokenizer: Any, tmp_path: Path
) -> None:
    rows = Dataset.from_list([row] * 3)
    file = write_page(
        tmp_path / "new" / "folder", {"train": rows, "test": rows.select([0])}, tokenizer, 2, "yoda"
    )
    data = page_data(file)
    assert file == tmp_path / "new" / "folder" / "preview.html"
    assert data["title"] == "yoda"
    assert [
        (split["name"], split["total"], [one["name"] for one in split["rows"]])
        for split in data["splits"]
    ] == [("train", 3, ["train[0]", "train[1]"]), ("test", 1, ["test[0]"])]
    first = data["splits"][0]["rows"][0]
    assert (first["ids"], first["lengths"]) == (row["input_ids"], [len(row["input_ids"])])
    assert first["special"][:3] == [1, 0, 0]


def test_nothing_in_a_row_can_end_the_script_that_holds_it(tokenizer: Any, tmp_path: Path) -> None:
    ids = tokenizer("</script><!--<script>&\u2028__ROWS__", add_special_tokens=False).input_ids
    file = write_page(
        tmp_path,
        {"train": Dataset.from_list([{"input_ids": ids, "labels": ids}])},
        tokenizer,
        1,
        "</script>__ROWS__",
    )
    data = page_data(file)
    assert data["title"] == "</script>__ROWS__"
    assert (
        "".join(text or "" for text in data["splits"][0]["rows"][0]["texts"])
        == "</script><!--<script>&[U+2028]__ROWS__"
    )


def test_the_page_refers_to_nothing_outside_itself(
    row: dict[str, list[int]], tokenizer: Any, tmp_path: Path
) -> None:
    text = write_page(
        tmp_path, {"train": Dataset.from_list([row])}, tokenizer, 1, "yoda"
    ).read_text(encoding="utf-8")
    assert not re.search(r"https?:|//cdn|@import|src=|url\(", text)


def test_an_output_folder_that_is_a_file_is_an_error_that_says_so(
    row: dict[str, list[int]], tokenizer: Any, tmp_path: Path, golden_error: Pin
) -> None:
    (tmp_path / "taken").touch()
    splits = {"train": Dataset.from_list([row])}
    error = refused(RunError, lambda: write_page(tmp_path / "taken", splits, tokenizer, 1, "yoda"))
    assert places(error) == ["output_dir"]
    assert str(tmp_path / "taken" / "preview.html") in error.problems[0].found
    golden_error(error)
