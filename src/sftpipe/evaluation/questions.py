"""What a model is asked, as ids of the encoder of training: rows of the data, or a user's words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sftpipe.config.schema import FormatConfig, TrainConfig
from sftpipe.data.cleaning import Cleaner
from sftpipe.data.encode import Encoder
from sftpipe.data.formats import to_prompt
from sftpipe.data.messages import read_turns
from sftpipe.data.prepare import PreparedData
from sftpipe.data.prompts import split_answer
from sftpipe.data.row_chain import BATCH, SampleReader
from sftpipe.data.rows import Rows
from sftpipe.data.samples import Conversation, Prompt, Row
from sftpipe.errors import DataError, Problem, RowError
from sftpipe.model.architecture import check_room, max_positions

SAMPLES = 5  # prompts taken from the data when a config names none


@dataclass(frozen=True)
class Question:
    """One prompt.

    text: the last user turn, or the whole string prompt; for people.
    input_ids: what the model is fed.
    reference: the data set's answer; None for a prompt that a person gives.
    row: the row as its file holds it; empty for a prompt that a person gives.
    where: the row in messages.
    """

    text: str
    input_ids: list[int]
    reference: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict)
    where: str = "prompt"


def sample_questions(cfg: TrainConfig, data: PreparedData, model_config: Any) -> list[Question]:
    """The prompts of a run: those of `evaluation.sample_prompts`, or rows of the data set.

    By default the first five of the test, the (first) validation or the train split; none with
    evaluation=none.

    Raises:
        ModelError: the model has no positions for the prompts and their answers.
    """
    evaluation = cfg.evaluation
    if evaluation is None:
        return []
    if evaluation.sample_prompts is not None:
        like = split_answer(next(data.samples("train")), cfg.loss)[0]
        where = "evaluation.sample_prompts"
        questions = [
            question_of(text, cfg, like, data.encoder, where) for text in evaluation.sample_prompts
        ]
    else:
        likeliest = ("test", *data.validation_splits(), "train")
        split = next(name for name in likeliest if name in data.splits())
        readers = data.readers.get(split, ())
        rows = row_questions(readers, data.encoder)
        questions = list(islice((one for one in rows if isinstance(one, Question)), SAMPLES))
    check_room(
        model_config,
        max((len(question.input_ids) for question in questions), default=0)
        + evaluation.max_new_tokens,
        "evaluation.max_new_tokens",
        evaluation.max_new_tokens,
        "prompts and answers",
        "short prompts of your own: evaluation.sample_prompts=[...]",
    )
    return questions


def question_of(
    text: str, cfg: TrainConfig, like: Prompt, encoder: Encoder, where: str = "prompt"
) -> Question:
    """A user's own words, asked as the format of the config asks.

    Args:
        text: the question.
        cfg: the config.
        like: a prompt of the data set, which shows the kind that the format makes.
        encoder: of the run.
        where: the key of the text, for messages.

    Raises:
        DataError: a pattern with several fields; a special token in the text; a character that the
            tokenizer would lose.
    """
    text = Cleaner(encoder.tokenizer, cfg.dataset, cfg.preflight).clean(text, where)
    return _question(to_prompt(text, cfg.format, like, where), encoder, where=where)


def conversation_question(turns: Sequence[Any], cfg: TrainConfig, encoder: Encoder) -> Question:
    """Turns of which the last is the user's, or a tool's.

    Raises:
        DataError: they are no turns, or the last is not one to answer.
    """
    cleaner = Cleaner(encoder.tokenizer, cfg.dataset, cfg.preflight)
    # as people write them, whatever the data set calls its fields
    read = read_turns(list(turns), "messages", cleaner.clean, FormatConfig("messages"))
    if read[-1].role not in ("user", "tool"):
        found = f"the last turn is the {read[-1].role}'s"
        raise DataError(Problem("messages", found, allowed="user or tool: a turn to answer"))
    return _question(Conversation(tuple(turn.message for turn in read)), encoder)


def row_questions(
    readers: Sequence[SampleReader],
    encoder: Encoder,
    originals: Sequence[Rows] | None = None,
) -> Iterator[Question | RowError]:
    """A question, with its reference, for each row of a split, or the error of the row.

    Args:
        readers: the samples, one reader for each source.
        encoder: of the run.
        originals: the rows as the data set holds them, where a function has changed those of the
            readers.
    """
    for number, reader in enumerate(readers):
        kept = originals[number] if originals else reader.rows
        for start in range(0, len(reader.rows), BATCH):
            stop = min(start + BATCH, len(reader.rows))
            samples = reader.read(reader.rows[start:stop], range(start, stop))
            for at, row, sample in zip(range(start, stop), kept[start:stop], samples, strict=True):
                if isinstance(sample, RowError):
                    yield sample
                    continue
                prompt, reference = split_answer(sample, encoder.loss)
                place = f"{reader.place}[{at}]"
                yield _question(prompt, encoder, reference, kept.own_names(row), place)


def _question(
    prompt: Prompt,
    encoder: Encoder,
    reference: str | None = None,
    row: Row | None = None,
    where: str = "prompt",
) -> Question:
    text = prompt if isinstance(prompt, str) else str(prompt.messages[-1].get("content") or "")
    if lost := encoder.characters.first_lost([encoder.prompt_text(prompt)], where):
        raise lost
    return Question(text, encoder.prompt_ids(prompt), reference, row or {}, where)


def check_lengths(questions: Sequence[Question], model_config: Any, max_new_tokens: int) -> None:
    """Every prompt and its answer must fit the context of the model.

    Args:
        questions: what is asked.
        model_config: of the model.
        max_new_tokens: of an answer.

    Raises:
        DataError: names the first three rows that are too long, and by how many tokens.
    """
    positions = max_positions(model_config)
    if positions is None:
        return
    room = positions - max_new_tokens
    longer = [one for one in questions if len(one.input_ids) > room]
    if not longer:
        return
    problems = [
        Problem(
            one.where,
            f"a prompt of {len(one.input_ids)} tokens and {max_new_tokens} new ones are "
            f"{len(one.input_ids) - room} more than the {positions} positions of the model",
        )
        for one in longer[:3]
    ]
    longest = max(len(one.input_ids) for one in longer)
    least = positions - longest
    fix = f"`generate.max_new_tokens={least}` or less" if least > 0 else "shorten the prompts"
    total = Problem("prompts", f"{len(longer)} of {len(questions)} are too long", fix=fix)
    raise DataError(*problems, total)
