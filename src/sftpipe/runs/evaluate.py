"""Did the training help? A run against its base, or against another run, on rows it never saw."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sftpipe.config.schema import PACKING, EvaluationConfig
from sftpipe.data.packing import Collator
from sftpipe.data.prepare import encode_sources, pack_splits, sample_readers
from sftpipe.data.row_function import call_row_functions
from sftpipe.data.source import Source
from sftpipe.data.user_code import load_function
from sftpipe.errors import ConfigError, DataError, Problem, RowError, nearest, one_line
from sftpipe.evaluation.answers import Answer, Sampling
from sftpipe.evaluation.asked_rows import files_source
from sftpipe.evaluation.compare import DRAWS, LEVEL, Outcome, compare, judge_difference, order_rows
from sftpipe.evaluation.harness import Scores, as_table, check_tasks, task_scores
from sftpipe.evaluation.metrics import (
    DECIDING,
    UNDECIDED,
    Answered,
    Metric,
    answer_metrics,
    loss_metric,
    mean_metric,
)
from sftpipe.evaluation.questions import Question, check_lengths, row_questions
from sftpipe.evaluation.row_losses import row_losses
from sftpipe.runs.answer import answer_all, response_rows
from sftpipe.runs.answering import Answering
from sftpipe.runs.card import write_evaluation
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.report.page import write_page
from sftpipe.runs.unfinished import Unfinished
from sftpipe.storage import digest, write_json
from sftpipe.terminal import progress, quiet, quiet_libraries

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from sftpipe.runs.load import Run

LOSS = "loss"  # of the test rows, per trained token
_NAMED = 10  # rows that evaluation.json names, the worst first

RowMetric = Callable[[str, str, Mapping[str, Any]], float]  # (answer, reference, row) -> number


@dataclass(frozen=True)
class Held:
    """The rows that a run was not trained on, as a model is given them.

    splits: {split: `input_ids` and `labels`, each (T,)}, for losses.
    questions: of the test rows, for answers.
    left_out: what is wrong with the test rows that make no question.
    """

    splits: Mapping[str, Dataset]
    questions: Sequence[Question]
    left_out: Sequence[str] = ()


@dataclass(frozen=True)
class Measured:
    """What one model does with these rows.

    losses: {split: (sum of losses, trained tokens) of each row}.
    answers: to the questions.
    tasks: {task of `evaluation.lm_eval`: its scores}.
    """

    losses: Mapping[str, Sequence[tuple[float, int]]]
    answers: Sequence[Answer]
    tasks: Mapping[str, Scores]


def evaluate(run: Run, other: Run | None = None) -> dict[str, Any]:
    """Measure a run and its base, or another run in place of it, and compare them.

    Writes responses.json, responses_base.json and evaluation.json into the run folder. A second
    start after a kill goes on.

    Args:
        run: whose folder is written into.
        other: what `evaluation.base` names.

    Returns:
        The content of evaluation.json.

    Raises:
        DataError: there are no rows to evaluate on, or they do not fit the model.
        ConfigError: `evaluation.verdict` or `evaluation.metrics` name what does not exist.
        RunError: the base of a run has changed.
    """
    cfg, files = run.evaluation, RunFolder(run.dir)
    check_tasks(cfg.lm_eval)
    with quiet(), quiet_libraries():
        own = _own_metrics(run)
        sources = held_sources(run)
        held = hold(run, sources)
        _check_verdict(cfg.verdict, (*sorted(map(_loss_name, held.splits)), *DECIDING, *own))
        base_held = hold(other, sources) if other else held
        works: list[Unfinished] = []
        base, after = _measure_both(run, other, held, base_held, works)
        before, now = _metrics(base, base_held, own), _metrics(after, held, own)
        _check_verdict(cfg.verdict, now)
        result = {
            **_made(run, other),
            "left_out": list(held.left_out),
            "lm_eval": {name: as_table(base.tasks[name], one) for name, one in after.tasks.items()},
            **_compared(before, now, cfg.verdict, run.config.seed),
        }
    write_json(files.base_responses, response_rows(base_held.questions, base.answers))
    write_json(files.responses, response_rows(held.questions, after.answers))
    write_json(files.evaluation, result)
    write_evaluation(files, run.config, result)
    for work in works:
        work.remove()
    write_page(run.dir)
    return result


def _made(run: Run, other: Run | None) -> dict[str, Any]:
    """What was compared, when and how."""
    return {
        "run": run.dir.name,
        "base": other.dir.name if other else run.base_name(),
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": run.config.seed,
        "draws": DRAWS,
        "max_new_tokens": run.evaluation.max_new_tokens,
    }


def _measure_both(
    run: Run, other: Run | None, held: Held, base_held: Held, works: list[Unfinished]
) -> tuple[Measured, Measured]:
    """(the base or the other run, the run); an adapter is put on the base that was measured."""
    files, cfg = RunFolder(run.dir), run.evaluation
    if other is None:
        model = run.load_base()
        base = measure(run, model, base_held, files, "base", works, cfg)
        trained = run.add_adapter(model) if run.config.lora else run.load_model()
    else:
        base = measure(other, other.load_model(), base_held, files, "other", works, cfg)
        trained = run.load_model()
    return base, measure(run, trained, held, files, "run", works, cfg)


# --- the rows -------------------------------------------------------------------------------------


def held_sources(run: Run) -> list[Source]:
    """The validation and test rows of the run's data set, or `evaluation.data_files` as test.

    Raises:
        DataError: there is neither, or a file cannot be read.
    """
    if run.evaluation.data_files is not None:
        return [files_source(run.evaluation.data_files, run.config, "test")]
    kept = [
        replace(one, splits={name: rows for name, rows in one.splits.items() if name != "train"})
        for one in run.sources()
    ]
    if not any("test" in one.splits for one in kept):
        found = "the run's data set has no test split, and training has seen all other rows"
        fix = "evaluation.data_files=rows.jsonl, or train with `dataset.test_size=0.1`"
        raise DataError(Problem("test", found, fix=fix))
    return [one for one in kept if one.splits]


def hold(subject: Answering, sources: Sequence[Source]) -> Held:
    """The rows as this subject encodes and asks them.

    Raises:
        DataError: a test row makes no sample, or is too long to be answered.
    """
    cfg = subject.config
    windows = cfg.packing is not None and PACKING[cfg.packing.strategy].windows
    cfg = cfg if windows else replace(cfg, packing=None)
    mine = [replace(one, format=cfg.format) if len(sources) == 1 else one for one in sources]
    called = call_row_functions(mine, cfg)
    readers = sample_readers(called, subject.tokenizer, cfg)
    parts = encode_sources(called, readers, subject.encoder, cfg)
    splits, _ = pack_splits(parts, cfg, None)
    originals = [one.splits["test"] for one in mine if "test" in one.splits]
    asked = list(row_questions(readers["test"], subject.encoder, originals))
    return Held(
        splits,
        [one for one in asked if not isinstance(one, RowError)],
        [one_line(str(one)) for one in asked if isinstance(one, RowError)],
    )


# --- measuring ------------------------------------------------------------------------------------


def measure(
    subject: Answering,
    model: PreTrainedModel,
    held: Held,
    files: RunFolder,
    name: str,
    works: list[Unfinished],
    cfg: EvaluationConfig,
) -> Measured:
    """Losses, answers and tasks of one model; what is kept of them is added to `works`."""
    sampling = Sampling(subject.evaluation.max_new_tokens)  # greedy: a draw would add its own noise
    check_lengths(held.questions, model.config, sampling.max_new_tokens)
    losses = {}
    for split, rows in held.splits.items():
        losses[split], work = _losses(subject, model, rows, files, f"{name}_{split}_losses")
        works.append(work)
    answers, work = answer_all(
        subject,
        model,
        held.questions,
        sampling,
        batch_size=subject.evaluation.batch_size,
        folder=files.path,
        name=f"{name}_answers",
    )
    works.append(work)
    tasks, work = _tasks(subject, model, cfg, files, f"{name}_tasks")
    works.append(work)
    return Measured(losses, answers, tasks)


def _tasks(
    subject: Answering, model: PreTrainedModel, cfg: EvaluationConfig, files: RunFolder, name: str
) -> tuple[dict[str, Scores], Unfinished]:
    """{task of `evaluation.lm_eval`: scores}; a task is done again from its start after a kill."""
    seed = subject.config.seed
    work = Unfinished(files.path, name, digest(subject.identity(), cfg.lm_eval, seed))
    for number, task in enumerate(cfg.lm_eval):
        if number not in work.done:
            scores = task_scores(
                model, subject.tokenizer, task, batch_size=cfg.batch_size, seed=seed
            )
            work.add(number, scores)
    return dict(zip(cfg.lm_eval, work.in_order(), strict=True)), work


def _losses(
    subject: Answering, model: PreTrainedModel, rows: Dataset, files: RunFolder, name: str
) -> tuple[list[tuple[float, int]], Unfinished]:
    key = digest(subject.identity(), name, rows._fingerprint, len(rows))
    work = Unfinished(files.path, name, key)
    collate = Collator(int(subject.tokenizer.pad_token_id))
    size = int(subject.config.sft.get("per_device_eval_batch_size") or 8)
    with progress("Losses", len(rows), len(work.done)) as advance:
        found = row_losses(model, rows, collate, batch_size=size, done=set(work.done))
        for number, loss in found:
            work.add(number, loss)
            advance(1, "")
    return [(loss, tokens) for loss, tokens in work.in_order()], work


def _loss_name(split: str) -> str:
    return LOSS if split == "test" else f"{split}_{LOSS}"


def _own_metrics(run: Run) -> dict[str, RowMetric]:
    """{name: function} of `evaluation.metrics`."""
    return {
        path.rpartition(".")[2]: load_function(
            path, "evaluation.metrics", run.config.allowed_targets
        )
        for path in run.evaluation.metrics
    }


def _metrics(found: Measured, held: Held, own: Mapping[str, RowMetric]) -> dict[str, Metric]:
    """{name: metric} of the test rows; the losses of further splits as `<split>_loss`."""
    metrics = {
        _loss_name(split): loss_metric(losses) for split, losses in sorted(found.losses.items())
    }
    asked = [
        (question, answer)
        for question, answer in zip(held.questions, found.answers, strict=True)
        if question.reference is not None
    ]
    if not asked:
        return metrics
    said = Answered(
        [answer.text for _, answer in asked],
        [str(question.reference).strip() for question, _ in asked],
        [answer.stopped for _, answer in asked],
        [question.row for question, _ in asked],
    )
    metrics |= answer_metrics(said)
    for name, function in own.items():
        rows = zip(said.answers, said.references, said.rows, strict=True)
        numbers = [_number_of(name, function, at, row) for at, row in enumerate(rows)]
        metrics[name] = mean_metric(numbers)
    return metrics


def _number_of(name: str, function: RowMetric, at: int, row: tuple[str, str, Any]) -> float:
    """What a user's metric says of one row.

    Raises:
        DataError: it fails, or gives no number.
    """
    try:
        value = function(*row)
        if math.isfinite(number := float(value)):
            return number
        found = f"{value!r}"
    except Exception as error:  # a user's code may raise anything
        found = one_line(error)
    problem = Problem("evaluation.metrics", f"{name} of row {at}: {found}", allowed="a number")
    raise DataError(problem) from None


# --- the comparison -------------------------------------------------------------------------------


def _check_verdict(name: str, able: Collection[str]) -> None:
    """Raise a `ConfigError` unless the metric of the verdict is among these."""
    if name in able and name not in UNDECIDED:
        return
    able = [one for one in able if one not in UNDECIDED]
    fix = f"`evaluation.verdict={nearest(name, able) or able[0]}`"
    found = f"no metric {name!r} that is better or worse"
    raise ConfigError(Problem("evaluation.verdict", found, allowed=", ".join(able), fix=fix))


def _compared(
    before: Mapping[str, Metric], after: Mapping[str, Metric], verdict: str, seed: int
) -> dict[str, Any]:
    figures = {}
    for name, metric in after.items():
        found = compare(before[name], metric, seed)
        figures[name] = {
            "base": found.before,
            "run": found.after,
            "difference": found.difference,
            "interval": [found.low, found.high],
            "rows": len(metric.rows),
            **({"signature": metric.signature} if metric.signature else {}),
        }
        if name == verdict:
            better = bool(metric.higher_is_better)
            outcome = judge_difference(found, len(metric.rows), higher_is_better=better)
            won, lost, tied, order = order_rows(before[name], metric, higher_is_better=better)
    return {
        "rows": len(after[verdict].rows),
        "metric": verdict,
        "verdict": outcome,
        "sentence": sentence(verdict, outcome, figures[verdict]),
        "metrics": figures,
        "wins": won,
        "losses": lost,
        "ties": tied,
        "higher_is_better": better,
        "values": {
            "base": [round(float(value), 6) for value in before[verdict].rows],
            "run": [round(float(value), 6) for value in after[verdict].rows],
        },
        "worst": [
            {
                "row": row,
                "base": float(before[verdict].rows[row]),
                "run": float(after[verdict].rows[row]),
            }
            for row in order[:_NAMED]
        ],
    }


def sentence(metric: str, outcome: Outcome, figures: Mapping[str, Any]) -> str:
    """The verdict for people."""
    low, high = figures["interval"]
    numbers = (
        f"{metric} {figures['base']:.3f} -> {figures['run']:.3f}, "
        f"difference {figures['difference']:+.3f} with {LEVEL:.0%} interval "
        f"[{low:+.3f}, {high:+.3f}] on {figures['rows']} rows"
    )
    how = "not distinguishable from" if outcome == "not distinguishable" else f"{outcome} than"
    return f"{how} the base: {numbers}"
