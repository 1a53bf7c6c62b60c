"""`sftpipe generate`: answers to a prompt, a conversation, or a file of rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftpipe.config.schema import GenerateConfig
from sftpipe.errors import ConfigError, DataError, Problem, RowError
from sftpipe.evaluation.answers import Answer
from sftpipe.evaluation.asked_rows import questions_of_files
from sftpipe.evaluation.questions import Question, check_lengths, row_questions
from sftpipe.runs.answer import answer_all
from sftpipe.runs.answering import Answering
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.load import Run
from sftpipe.runs.unfinished import Unfinished
from sftpipe.storage import write_text
from sftpipe.terminal import quiet, quiet_libraries


@dataclass(frozen=True)
class Spoken:
    """An answer, and the base model's where it was asked for.

    answer: of the run.
    stopped: True if the model ended it itself.
    base: of its base model.
    """

    answer: str
    stopped: bool
    base: str | None = None


def ask(subject: Answering, cfg: GenerateConfig) -> list[Spoken]:
    """Answers to `generate.prompt` or `generate.messages`.

    Raises:
        DataError: it cannot be asked, or is too long.
        ConfigError: `generate.base=true` of a base model.
    """
    with quiet(), quiet_libraries():
        asked = cfg.prompt if cfg.prompt is not None else cfg.messages
        assert asked is not None  # the verb asks rows then
        questions = subject.questions(asked)
        answers = subject.answer(questions, cfg)
        before = _base_of(subject).answer(questions, cfg) if cfg.base else [None] * len(answers)
    return [
        Spoken(one.text, one.stopped, base.text if base else None)
        for one, base in zip(answers, before, strict=True)
    ]


def answer_rows(subject: Answering, cfg: GenerateConfig) -> tuple[Path, int]:
    """Answer `generate.data_files`, or the test split, into a JSON Lines file.

    A line is the row with `model_response`, `stopped`, and `base_response` with `generate.base`.

    Returns:
        The file, and the number of its rows.

    Raises:
        DataError: there are no such rows, or they cannot be asked.
    """
    output = _output(subject, cfg)
    works: list[Unfinished] = []
    columns: dict[str, Sequence[Answer]] = {}
    with quiet(), quiet_libraries():
        questions = _questions(subject, cfg)
        subjects = {"model_response": subject}
        if cfg.base:
            subjects["base_response"] = _base_of(subject)
        for column, one in subjects.items():
            sampling = one.sampling(cfg)
            check_lengths(questions, one.model.config, sampling.max_new_tokens)
            columns[column], work = answer_all(
                one,
                one.model,
                questions,
                sampling,
                batch_size=cfg.batch_size or one.evaluation.batch_size,
                folder=output.parent,
                name=f"{output.name}_{column}",
            )
            works.append(work)
    rows = [_row(question, columns, number) for number, question in enumerate(questions)]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_text(output, "".join(lines))
    for work in works:
        work.remove()
    return output, len(rows)


def _questions(subject: Answering, cfg: GenerateConfig) -> list[Question]:
    """What `generate.data_files` asks, or the test rows that make a sample."""
    if cfg.data_files is not None:
        return questions_of_files(cfg.data_files, subject.config, subject.encoder)
    sources = subject.sources()
    originals = [one.splits["test"] for one in sources if "test" in one.splits]
    if not originals:
        fix = 'generate.prompt="...", or generate.data_files=rows.jsonl'
        raise DataError(Problem("test", "the data set has no test split", fix=fix))
    found = row_questions(subject.readers("test", sources), subject.encoder, originals)
    return [one for one in found if not isinstance(one, RowError)]


def _row(
    question: Question, columns: Mapping[str, Sequence[Answer]], number: int
) -> dict[str, Any]:
    said = {column: answers[number].text for column, answers in columns.items()}
    return {**question.row, **said, "stopped": columns["model_response"][number].stopped}


def _output(subject: Answering, cfg: GenerateConfig) -> Path:
    if cfg.output is not None:
        return Path(cfg.output)
    if isinstance(subject, Run):
        return RunFolder(subject.dir).answers
    found = "not set, and a base model alone has no folder"
    raise ConfigError(Problem("generate.output", found, fix="`generate.output=answers.jsonl`"))


def _base_of(subject: Answering) -> Answering:
    if isinstance(subject, Run):
        return subject.base
    found = "true, and with run=null the base model is all there is"
    raise ConfigError(Problem("generate.base", found, fix="leave it out"))
