"""What is trained, as text that a person can review: tests/golden/FORMAT-TEMPLATE-LOSS.txt, the
trained parts in ⟦brackets⟧.

The embedded tokenizer reads them all; a template whose tokens it lacks gets them as special tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sftpipe.config.options import conf_dir
from sftpipe.config.schema import FormatConfig, LossConfig
from sftpipe.data.encode import Encoded, Encoder
from sftpipe.data.preflight.preview import spans
from sftpipe.data.samples import Row
from sftpipe.errors import RowError
from support.configs import compose
from support.samples import to_samples

INSTRUCTIONS: list[Row] = [
    {
        "instruction": "Say it as Yoda would: You must learn patience.",
        "output": "Patience, you must learn.",
    },
    {
        "instruction": "Correct the spelling of this word.",
        "input": "Ocassion",
        "output": "The correct spelling is\n'Occasion'.",
    },
    {
        "instruction": "다음 단어의 반의어는 무엇인가요?",
        "input": "복잡한",
        "output": "'복잡한'의 반의어는 '단순한'입니다.",
    },
]
GREETING = [
    {"role": "user", "content": "안녕하세요?"},
    {"role": "assistant", "content": "안녕하세요! 무엇을 도와드릴까요? \U0001f600"},
]
SUMS = [
    {"role": "system", "content": "Answer with a number."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And doubled?"},
    {"role": "assistant", "content": "8"},
]
FLAGGED = [*SUMS[1:2], {**SUMS[2], "train": True}, *SUMS[3:4], {**SUMS[4], "train": False}]
NAMES = {"system": "system", "user": "human", "assistant": "gpt"}

ROWS: dict[str, list[Row]] = {
    "instruction": INSTRUCTIONS,
    "messages": [{"messages": GREETING}, {"messages": SUMS}, {"messages": FLAGGED}],
    "sharegpt": [
        {
            "conversations": [
                {"from": NAMES[turn["role"]], "value": turn["content"]} for turn in talk
            ]
        }
        for talk in (GREETING, SUMS)
    ],
    "prompt_completion_messages": [
        {"prompt": SUMS[:4], "completion": SUMS[4:]},
        {"prompt": SUMS[:2], "completion": SUMS[2:]},
    ],
    "prompt_completion": [
        {"prompt": "English: The sky is blue.\nYoda:", "completion": " Blue, the sky is."},
        {"prompt": "Q: 12 * 12 =\nA: ", "completion": "144\n"},
    ],
    "alpaca": INSTRUCTIONS,
    "alpaca_ko": INSTRUCTIONS,
    "template": [{"prompt": "The sky is blue.", "completion": "Blue, the sky is."}],
    "text": [
        {"text": "### Question: Is the sky blue?\n### Answer: Blue, it is."},
        {"text": "### Question: One?\n### Answer: 1\n### Question: Two?\n### Answer: 2<|im_end|>"},
    ],
    "function": [{"question": "Is the sky blue?", "answer": "Blue, it is."}],
}
CHATS = ("instruction", "messages", "sharegpt", "prompt_completion_messages")
TEMPLATES = {  # template -> the tokens that it writes, and that stand behind a question
    "own": ([], "<|im_start|>assistant\n"),
    "chatml": ([], "<|im_start|>assistant\n"),
    "chatml_bos_eos": ([], "<|im_start|>assistant\n"),
    "phi3": (["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"], "<|assistant|>\n"),
    "zephyr": ([], "<|assistant|>\n"),
    "llama3": (
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "assistant<|end_header_id|>\n\n",
    ),
}


def combinations() -> Iterator[tuple[str, str, str]]:
    """(format, template, loss) of every file."""
    for name in ROWS:
        for template in TEMPLATES if name in CHATS else ("none",):
            yield name, template, "full"
            if name in CHATS:
                yield name, template, "assistant_only"
            if name not in ("text", "function"):
                yield name, template, "completion_only"
            if name in CHATS or name in ("text", "function"):
                yield name, template, "response_template"


def loss_of(kind: str, template: str) -> LossConfig:
    if kind != "response_template":
        return LossConfig(kind)
    return LossConfig(
        kind,
        response_template=TEMPLATES[template][1] if template in TEMPLATES else "### Answer:",
        instruction_template=None if template in TEMPLATES else "### Question:",
    )


def format_of(name: str) -> FormatConfig:
    if name == "template":
        return FormatConfig("template", prompt="{prompt} ##[YODA]##>", completion=" {completion}")
    if name == "prompt_completion_messages":
        return FormatConfig("prompt_completion")
    return (
        FormatConfig("function", function="a.b")
        if name == "function"
        else compose([f"format={name}", "loss=full"]).format
    )


def question_and_answer(row: Row) -> str:
    """A user's own format."""
    return f"### Question: {row['question']}\n### Answer: {row['answer']}"


@pytest.fixture(scope="module")
def tokenizers(tokenizer: Any) -> dict[str, Any]:
    """The embedded tokenizer with each template."""
    made = {"none": copy.copy(tokenizer), "own": tokenizer}
    made["none"].chat_template = None
    for name in TEMPLATES.keys() - {"own"}:
        tokens = TEMPLATES[name][0]
        # a shallow copy has the same vocabulary
        made[name] = copy.deepcopy(tokenizer) if tokens else copy.copy(tokenizer)
        made[name].chat_template = (conf_dir() / "chat_template" / f"{name}.jinja").read_text(
            encoding="utf-8"
        )
        made[name].add_tokens(tokens, special_tokens=True)
    return made


@pytest.mark.parametrize(("name", "template", "loss"), list(combinations()))
def test_golden_text_of_a_format_a_template_and_a_loss(
    tokenizers: dict[str, Any],
    golden_text: Callable[[str, str], None],
    name: str,
    template: str,
    loss: str,
) -> None:
    tokenizer = tokenizers[template]
    places = [f"train[{at}]" for at in range(len(ROWS[name]))]
    samples = to_samples(ROWS[name], format_of(name), places, question_and_answer)
    good = [sample for sample in samples if not isinstance(sample, RowError)]
    assert len(good) == len(samples)
    pages = [f"format={name} tokenizer.chat_template={template} loss={loss}: ⟦trained⟧ masked"]
    for place, row in zip(
        places, Encoder(tokenizer, loss_of(loss, template)).encode(good, places), strict=True
    ):
        if isinstance(row, Encoded):
            parts = spans({"input_ids": row.input_ids, "labels": row.labels}, tokenizer)
            text = "".join(f"⟦{part}⟧" if trained else part for part, trained in parts)
            pages.append(f"--- {place}, {len(row.input_ids)} tokens\n{text}")
        else:
            pages.append(f"--- {place}, dropped: {row.reason}\n{row}")
    golden_text(f"{name}-{template}-{loss}.txt", "\n".join(pages) + "\n")
