"""What is trained, as text that a person can review: tests/golden/FORMAT_LOSS.txt, the trained parts in brackets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sftpipe.data.encode import Encoder
from sftpipe.data.formats import Row, to_sample
from sftpipe.data.preview import spans
from sftpipe.schema import FormatConfig, LossConfig

ROWS: dict[str, list[Row]] = {
    "instruction": [
        {"instruction": "Say it as Yoda would: You must learn patience.", "output": "Patience, you must learn."},
        {"instruction": "Correct the spelling of this word.", "input": "Ocassion", "output": "The correct spelling is\n'Occasion'."},
    ],
    "messages": [
        {
            "messages": [
                {"role": "user", "content": "안녕하세요?"},
                {"role": "assistant", "content": "안녕하세요! 무엇을 도와드릴까요? \U0001f600"},
            ]
        },
        {
            "messages": [
                {"role": "system", "content": "Answer with a number."},
                {"role": "user", "content": "2 + 2?"},
                {"role": "assistant", "content": "4"},
                {"role": "user", "content": "And doubled?"},
                {"role": "assistant", "content": "8"},
            ]
        },
    ],
    "prompt_completion": [
        {"prompt": "English: The sky is blue.\nYoda:", "completion": " Blue, the sky is."},
        {"prompt": "Q: 12 * 12 =\nA: ", "completion": "144\n"},
    ],
}


@pytest.mark.parametrize("loss", ["completion_only", "full"])
@pytest.mark.parametrize("name", ROWS)
def test_golden_text_of_a_format_and_a_loss(tokenizer: Any, golden_text: Callable[[str, str], None], name: str, loss: str) -> None:
    places = [f"train[{at}]" for at in range(len(ROWS[name]))]
    samples = [to_sample(row, FormatConfig(type=name), place) for row, place in zip(ROWS[name], places, strict=True)]
    rows = Encoder(tokenizer, LossConfig(loss)).encode(samples, places)
    pages = [f"format={name} loss={loss}: ⟦trained⟧ masked"]
    for place, row in zip(places, rows, strict=True):
        parts = spans({"input_ids": row.input_ids, "labels": row.labels}, tokenizer)
        text = "".join(f"⟦{part}⟧" if trained else part for part, trained in parts)
        pages.append(f"--- {place}, {len(row.input_ids)} tokens\n{text}")
    golden_text(f"{name}_{loss}.txt", "\n".join(pages) + "\n")
