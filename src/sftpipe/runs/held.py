"""Rows on which a model that leaves its run folder is compared with the one that was trained."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from sftpipe.errors import DataError, RowError
from sftpipe.evaluation.questions import Question, row_questions
from sftpipe.model.architecture import max_positions, model_config
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.prompts import read_prompts

if TYPE_CHECKING:
    from sftpipe.data.row_chain import SampleReader
    from sftpipe.runs.load import Run

QUESTIONS = 50
ANSWERS = 20  # of the questions, those that are answered
_ROWS, _TOKENS = 50, 2048  # at most, of all rows together
_LONGEST = 512  # tokens of a row


@dataclass(frozen=True)
class HeldRows:
    """What both models are given.

    split: where the rows are from, for people.
    rows: token ids of each.
    questions: their prompts.
    """

    split: str
    rows: list[list[int]]
    questions: list[Question]


def held_rows(run: Run) -> HeldRows:
    """Rows of the test split, else of the validation split, else of the train split.

    Where the data are not there any more, the prompts that the run folder keeps.

    Raises:
        DataError: there is not even one of those.
    """
    longest = min(_LONGEST, max_positions(model_config(run.config.model, run.weights)) or _LONGEST)
    try:
        split, readers = _readers(run)
    except DataError:
        kept = read_prompts(RunFolder(run.dir))
        if not kept:
            raise
        rows = [ids[:longest] for _, ids in kept]
        return HeldRows("prompts.json", rows, [Question("", ids) for ids in rows])
    rows = [row[:longest] for row in islice(_encoded(run, readers), _ROWS)]
    asked = (
        one
        for one in row_questions(readers, run.encoder)
        if isinstance(one, Question) and 0 < len(one.input_ids) < longest
    )
    return HeldRows(split, _at_most(rows), list(islice(asked, QUESTIONS)))


def _readers(run: Run) -> tuple[str, list[SampleReader]]:
    sources = run.sources()
    names = {name for source in sources for name in source.splits}
    validation = sorted(name for name in names if name.startswith("validation"))
    split = next(name for name in ("test", *validation, "train") if name in names)
    return split, list(run.readers(split, sources))


def _encoded(run: Run, readers: list[SampleReader]) -> list[list[int]]:
    found = []
    for reader in readers:
        numbers = range(min(len(reader.rows), _ROWS))
        samples = reader.read(reader.rows[: len(numbers)], numbers)
        good = [one for one in samples if not isinstance(one, RowError)]
        rows = run.encoder.encode(good, [f"{reader.place}[{at}]" for at in range(len(good))])
        found += [one.input_ids for one in rows if not isinstance(one, RowError)]
    return found


def _at_most(rows: list[list[int]]) -> list[list[int]]:
    """The first rows that have `_TOKENS` tokens together; at least one."""
    kept: list[list[int]] = []
    tokens = 0
    for row in rows:
        if kept and tokens + len(row) > _TOKENS:
            break
        kept.append(row)
        tokens += len(row)
    return kept
