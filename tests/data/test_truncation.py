"""Rows that are made to fit, at the very edge of what fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sftpipe.config.schema import LossConfig
from sftpipe.data.encode import Encoded, Encoder
from sftpipe.data.labels import IGNORED
from sftpipe.data.samples import Conversation, PromptCompletion, Sample
from sftpipe.data.truncation import truncate
from sftpipe.errors import RowError
from support.samples import talk

ASSISTANT = LossConfig("assistant_only")


def fitted(tokenizer: Any, sample: Sample, limit: int, loss: LossConfig) -> Encoded | RowError:
    """The row of a sample, truncated."""
    encoder = Encoder(tokenizer, loss)
    (row,) = encoder.encode([sample], ["train[0]"])
    assert isinstance(row, Encoded)
    return truncate(sample, row, limit, encoder, "train[0]")


@pytest.mark.parametrize(("name", "bos"), [("tokenizer", 0), ("opt", 1)])
def test_a_last_token_of_the_prompt_stays_and_where_there_is_no_room_the_row_goes(
    name: str, bos: int, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(name)
    pair, loss = PromptCompletion("one two three", " four five"), LossConfig("completion_only")
    answer = 3  # " four", " five", EOS
    row = fitted(tokenizer, pair, bos + 1 + answer, loss)
    assert isinstance(row, Encoded)
    assert [tokenizer.decode([token]) for token in row.input_ids] == [
        *[tokenizer.bos_token] * bos,
        " three",
        " four",
        " five",
        tokenizer.eos_token,
    ]
    assert row.labels == [IGNORED] * (bos + 1) + row.input_ids[-answer:]
    assert row.cut == 2
    for limit in range(1, bos + 1 + answer):
        error = fitted(tokenizer, pair, limit, loss)
        assert isinstance(error, RowError), limit
        assert error.reason == "longer than sft.max_length"


@pytest.mark.parametrize("system", ["", "s"])
def test_what_is_trained_of_the_exchanges_that_stay_is_what_was_trained_of_them(
    tokenizer: Any, system: str
) -> None:
    flags = (*[None] * len(system), None, True, None, False, None, True)
    flagged = Conversation(tuple(talk(f"{system}uauaua")), train=flags)
    completed = replace(flagged, train=(), prompt_length=len(system) + 4)
    for whole, shorter in (
        (flagged, (flags[: len(system)] + flags[-4:], 0)),
        (completed, ((), len(system) + 2)),
    ):
        messages = whole.messages[: len(system)] + whole.messages[-4:]
        train, prompt_length = shorter
        kept = replace(whole, messages=messages, train=train, prompt_length=prompt_length)
        (expected,) = Encoder(tokenizer, ASSISTANT).encode([kept], ["train[0]"])
        assert isinstance(expected, Encoded)
        row = fitted(tokenizer, whole, len(expected.input_ids), ASSISTANT)
        assert isinstance(row, Encoded)
        assert (row.input_ids, row.labels) == (expected.input_ids, expected.labels)
        trained = [label for label in row.labels if label != IGNORED]
        assert tokenizer.decode(trained) == f"a{len(system) + 5}<|im_end|>"
