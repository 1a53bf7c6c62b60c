"""Rows on which a model that leaves its run folder is compared with the one that was trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from sftpipe.data.prompts import split_answer
from sftpipe.data.samples import Prompt, Sample
from sftpipe.errors import ConfigError, DataError, Problem, RowError, SftpipeError
from sftpipe.model.architecture import max_positions, model_config
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.prompts import read_prompts

if TYPE_CHECKING:
    from sftpipe.data.row_chain import SampleReader
    from sftpipe.runs.load import Run

ROWS = 50
ANSWERS = 20  # of the prompts, those that are answered
_TOKENS = 2048  # at most, of all rows together
_LONGEST = 512  # tokens of a row


@dataclass(frozen=True)
class HeldRows:
    """What both models are given.

    split: where the rows are from, for people.
    rows: token ids of each.
    prompts: of those of them that have one, and its ids.
    """

    split: str
    rows: list[list[int]]
    prompts: list[tuple[Prompt, list[int]]]


def held_rows(run: Run) -> HeldRows:
    """Rows of the test split, else of the validation split, else of the train split.

    Where the data are not there any more, or no row of them is good, the prompts that the run
    folder keeps.

    Raises:
        DataError: there is not even one of those.
    """
    longest = min(_LONGEST, max_positions(model_config(run.config.model, run.weights)) or _LONGEST)
    try:
        split, readers = _readers(run)
    except (DataError, ConfigError) as error:
        return _kept(run, longest, error)
    samples = list(islice(_samples(readers), ROWS))
    encoder = run.encoder
    encoded = encoder.encode(samples, [f"{split}[{at}]" for at in range(len(samples))])
    rows = [one.input_ids[:longest] for one in encoded if not isinstance(one, RowError)]
    if not rows:
        found = "no row of it makes a sample, and the run folder keeps no prompts"
        return _kept(run, longest, DataError(Problem(split, found)))
    prompts = [split_answer(sample, encoder.loss)[0] for sample in samples]
    asked = [(prompt, encoder.prompt_ids(prompt)) for prompt in prompts]
    kept = [(prompt, ids) for prompt, ids in asked if 0 < len(ids) < longest]
    return HeldRows(split, _at_most(rows), kept)


def _kept(run: Run, longest: int, error: SftpipeError) -> HeldRows:
    """The prompts of prompts.json; where there are none, `error` is raised."""
    kept = read_prompts(RunFolder(run.dir))
    if not kept:
        raise error
    rows = [ids[:longest] for _, ids in kept]
    return HeldRows("prompts.json", rows, [one for one in kept if len(one[1]) < longest])


def _readers(run: Run) -> tuple[str, list[SampleReader]]:
    sources = run.sources()
    names = {name for source in sources for name in source.splits}
    validation = sorted(name for name in names if name.startswith("validation"))
    split = next(name for name in ("test", *validation, "train") if name in names)
    return split, list(run.readers(split, sources))


def _samples(readers: list[SampleReader]) -> Iterator[Sample]:
    for reader in readers:
        for start in range(0, len(reader.rows), ROWS):
            stop = min(start + ROWS, len(reader.rows))
            found = reader.read(reader.rows[start:stop], range(start, stop))
            yield from (one for one in found if not isinstance(one, RowError))


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
