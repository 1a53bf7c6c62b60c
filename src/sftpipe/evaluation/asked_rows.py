"""Rows that a user brings to be answered: of the run's format, with or without answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sftpipe.config.patterns import pattern_fields
from sftpipe.config.schema import DatasetConfig, FormatConfig, TrainConfig
from sftpipe.data.cleaning import Cleaner
from sftpipe.data.encode import Encoder
from sftpipe.data.row_chain import SampleReader
from sftpipe.data.row_function import call_row_functions
from sftpipe.data.samples import Row
from sftpipe.data.source import Source, kind_of_file, load_sources
from sftpipe.data.stored import rows_in_memory
from sftpipe.errors import DataError, Problem, RowError
from sftpipe.evaluation.questions import Question, row_questions

_NO_ANSWER = "\ue000no answer\ue001"  # stands where a row has none; private-use characters
_SHOWN = 3  # problems of rows that an error names


def questions_of_rows(
    rows: Sequence[Any], cfg: TrainConfig, encoder: Encoder, where: str = "rows"
) -> list[Question]:
    """What rows of the run's format ask; they need no answer.

    Raises:
        DataError: a row is no mapping, or makes no sample.
    """
    wrong = [at for at, row in enumerate(rows) if not isinstance(row, Mapping)]
    if wrong or not rows:
        found = repr(rows[wrong[0]]) if wrong else "no rows"
        allowed = "a text, a list of {role, content}, or a list of rows"
        raise DataError(Problem(f"{where}[{wrong[0] if wrong else 0}]", found, allowed=allowed))
    stored = replace(rows_in_memory(rows), columns=cfg.dataset.columns)
    return _ask(Source("", {where: stored}, cfg.format, ""), where, cfg, encoder)


def questions_of_files(files: Any, cfg: TrainConfig, encoder: Encoder) -> list[Question]:
    """What files in the run's format ask, such as `rows.jsonl`; their rows need no answer.

    Args:
        files: as of `files_source`.
        cfg: the config of the run.
        encoder: of the run.

    Raises:
        DataError: a file is missing, or a row makes no sample.
    """
    return _ask(files_source(files, cfg, "rows"), "rows", cfg, encoder)


def files_source(files: Any, cfg: TrainConfig, split: str) -> Source:
    """The rows of files as one split.

    Args:
        files: a file or a list of files, as in `dataset.data_files`.
        cfg: the config of the run; columns and markers of its `dataset` are those of the files.
        split: the name that the rows get.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    named = files if isinstance(files, str) else next(iter(files), "")
    kind = kind_of_file(str(named))
    as_the_run = cfg.dataset if kind == cfg.dataset.path else DatasetConfig(kind)
    dataset = replace(
        cfg.dataset,
        path=kind,
        encoding=as_the_run.encoding,
        delimiter=as_the_run.delimiter,
        field=as_the_run.field,
        data_files=files,
        name=None,
        revision=None,
        function=None,
        sources=[],
        split=None,
        validation_size=0.0,
        test_size=0.0,
        shuffle_seed=None,
        limit=None,
    )
    (source,) = load_sources(dataset, cfg.format, cfg.allowed_targets, has_answers=False)
    return replace(source, splits={split: source.splits["train"]})


def _ask(source: Source, split: str, cfg: TrainConfig, encoder: Encoder) -> list[Question]:
    """A question for each row of a split; a row that makes no sample is an error."""
    rows = source.splits[split]
    filled = [rows.own_names(_fill(row, source.format)) for row in rows]
    stored = replace(rows_in_memory(filled), columns=rows.columns)
    (called,) = call_row_functions([replace(source, splits={split: stored})], cfg)
    cleaner = Cleaner(encoder.tokenizer, cfg.dataset, cfg.preflight)
    reader = SampleReader(called.splits[split], source.format, cleaner, split)
    found = list(row_questions([reader], encoder, [rows]))
    problems = [one.problem for one in found if isinstance(one, RowError)]
    if problems:
        raise DataError(*problems[:_SHOWN])
    return [_without_placeholder(one) for one in found if isinstance(one, Question)]


def _fill(row: Row, cfg: FormatConfig) -> Row:
    """The row with something in the place of an answer that it does not have."""
    turns, role = {"messages": ("messages", "role"), "sharegpt": ("conversations", "from")}.get(
        cfg.type, ("", "")
    )
    if turns and isinstance(said := row.get(turns), list) and said:
        last = said[-1]
        if isinstance(last, Mapping) and last.get(role) not in ("assistant", "gpt"):
            text = "content" if role == "role" else "value"
            name = "assistant" if role == "role" else "gpt"
            return {**row, turns: [*said, {role: name, text: _NO_ANSWER}]}
    if cfg.type == "prompt_completion" and row.get("completion") is None:
        is_chat = isinstance(row.get("prompt"), list)
        answer = [{"role": "assistant", "content": _NO_ANSWER}] if is_chat else _NO_ANSWER
        return {**row, "completion": answer}
    missing = [name for name in _answer_columns(cfg) if row.get(name) in (None, "")]
    return {**row, **dict.fromkeys(missing, _NO_ANSWER)}


def _answer_columns(cfg: FormatConfig) -> Sequence[str]:
    """The columns that hold nothing but the answer."""
    if cfg.type == "instruction":
        return ("output",)
    if cfg.type == "template":
        asked = pattern_fields((cfg.prompt or "") + (cfg.prompt_no_input or ""))
        return [name for name in pattern_fields(cfg.completion or "") if name not in asked]
    return ()


def _without_placeholder(question: Question) -> Question:
    has_none = _NO_ANSWER in (question.reference or "")
    return replace(question, reference=None) if has_none else question
