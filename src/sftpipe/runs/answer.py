"""Answers of a run to many questions, kept as they are finished."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftpipe.evaluation.answers import Answer, Sampling, generate
from sftpipe.evaluation.questions import Question
from sftpipe.runs.answering import Answering
from sftpipe.runs.unfinished import Unfinished
from sftpipe.storage import digest
from sftpipe.terminal import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def answer_all(
    subject: Answering,
    model: PreTrainedModel,
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    batch_size: int,
    folder: Path,
    name: str,
) -> tuple[list[Answer], Unfinished]:
    """An answer to each question; a second start after a kill goes on.

    Args:
        subject: who is asked.
        model: its model.
        questions: what is asked.
        sampling: how answers are drawn.
        batch_size: prompts that run together.
        folder: where the caller writes the whole work.
        name: of the work: "answers", "base_answers".

    Returns:
        The answers, and what keeps them; the caller removes it once they are written.
    """
    prompts = [question.input_ids for question in questions]
    key = digest(subject.identity(), name, prompts, asdict(sampling), batch_size)
    kept = Unfinished(folder, name, key)
    started, tokens = time.monotonic(), 0
    with progress("Answering", len(prompts), len(kept.done)) as advance:
        found = generate(
            model, subject.tokenizer, prompts, sampling, batch_size=batch_size, done=set(kept.done)
        )
        for number, answer in found:
            kept.add(number, asdict(answer))
            tokens += len(answer.ids)
            advance(1, f"{tokens / max(1e-9, time.monotonic() - started):.0f} tokens/s")
    return [Answer(**value) for value in kept.in_order()], kept


def response_rows(
    questions: Sequence[Question], answers: Sequence[Answer], column: str = "model_response"
) -> list[dict[str, Any]]:
    """The rows that were asked, each with its answer: the layout of "LLMs from scratch", 7.7."""
    return [
        {**dict(question.row), column: answer.text}
        for question, answer in zip(questions, answers, strict=True)
    ]
