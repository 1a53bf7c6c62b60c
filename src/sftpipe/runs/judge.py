"""`sftpipe judge`: an LLM scores the answers of a run, or compares them with those of another."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftpipe.config.schema import FormatConfig, JudgeConfig, MixtureSource, TrainConfig
from sftpipe.data.formats import to_samples
from sftpipe.data.samples import Prompt, Row, Sample, split_prompt
from sftpipe.errors import ModelError, Problem, RowError, RunError
from sftpipe.evaluation.judge import (
    REMINDERS,
    fill,
    outcome,
    pair_summary,
    read_score,
    read_verdict,
    score_summary,
    shown_input,
    template_of,
    winners,
    without_thinking,
)
from sftpipe.runs.endpoint import Endpoint, NoReply
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.load import Run, load_run
from sftpipe.runs.report.page import write_page
from sftpipe.runs.unfinished import Unfinished
from sftpipe.storage import digest, sha256_text, write_json
from sftpipe.terminal import progress

ANSWER = "model_response"  # the column of responses.json that holds the answer
_REPEATED = 500  # characters of a bad reply that the judge is shown again


@dataclass(frozen=True)
class Judged:
    """What is judged, and how.

    cfg: the `judge` group.
    template: the prompt with its fields.
    prompts: of each of N rows: one, or with pairwise one for each order.
    lengths: with pairwise (characters of the run's answer, of the other's) of each row.
    against: with pairwise: the other's name.
    """

    cfg: JudgeConfig
    template: str
    prompts: Sequence[Sequence[str]]
    lengths: Sequence[tuple[int, int]] = ()
    against: str | None = None


def judge(run: Run, cfg: JudgeConfig) -> dict[str, Any]:
    """Let an LLM judge the answers in responses.json; writes judge.json into the run folder.

    A second start after a kill or an error asks only what is missing.

    Returns:
        The content of judge.json.

    Raises:
        RunError: there are no answers yet, or the two runs answered different rows.
        ConfigError: `judge.prompt` lacks a field; the key is missing or refused.
        ModelError: the server cannot be reached, does not have the model, or never replies.
    """
    judged = _prepare(run, cfg)
    files = RunFolder(run.dir)
    with Endpoint(cfg) as endpoint:
        sent = [cfg.model, cfg.base_url, cfg.temperature, cfg.seed, cfg.max_tokens]
        key = digest(cfg.mode, sent, sha256_text(judged.template), judged.prompts)
        work = Unfinished(files.path, f"judge_{cfg.mode}", key)
        _ask_all(judged, endpoint, work)
    result = {
        "run": run.dir.name,
        "mode": cfg.mode,
        **({"against": judged.against} if judged.against else {}),
        "model": cfg.model,
        "base_url": cfg.base_url,
        "language": cfg.language,
        "prompt_sha256": sha256_text(judged.template),
        "temperature": cfg.temperature,
        "seed": cfg.seed,
        "max_tokens": cfg.max_tokens,
        **_counted(judged, work.in_order(), run.config.seed),
    }
    write_json(files.judgement, result)
    work.remove()
    write_page(run.dir)
    return result


# --- what is judged -------------------------------------------------------------------------------


def _prepare(run: Run, cfg: JudgeConfig) -> Judged:
    template, file = template_of(cfg), RunFolder(run.dir).responses
    rows = _read_answers(file, run.dir)
    shown = [_shown(row, run.config, f"{file.name}[{at}]") for at, row in enumerate(rows)]
    if cfg.mode == "score":
        prompts = [
            [fill(template, {**texts, "answer": row[ANSWER]})]
            for row, texts in zip(rows, shown, strict=True)
        ]
        return Judged(cfg, template, prompts)
    name, others = _others(run, cfg)
    _check_same(file, rows, *others)
    pairs = [(row[ANSWER], other[ANSWER]) for row, other in zip(rows, others[1], strict=True)]
    prompts = [
        [
            fill(template, {**texts, "answer_a": own, "answer_b": other}),
            fill(template, {**texts, "answer_a": other, "answer_b": own}),
        ]
        for (own, other), texts in zip(pairs, shown, strict=True)
    ]
    lengths = [(len(own), len(other)) for own, other in pairs]
    return Judged(cfg, template, prompts, lengths, name)


def _read_answers(file: Path, run: Path) -> list[dict[str, Any]]:
    """The rows of a file that `sftpipe evaluate` wrote."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        good = bool(rows) and all(isinstance(row[ANSWER], str) for row in rows)
    except FileNotFoundError:
        found = "there are no answers to judge yet"
    except (ValueError, LookupError, TypeError):
        found = f"no list of rows with {ANSWER}"
    else:
        if good:
            return list(rows)
        found = f"no rows with {ANSWER}"
    word = shlex.quote(f"run={run}")
    raise RunError(Problem(str(file), found, fix=f"`sftpipe evaluate {word}`"))


def _others(run: Run, cfg: JudgeConfig) -> tuple[str, tuple[Path, list[dict[str, Any]]]]:
    """Whose answers the run's are compared with: (name, (file, rows))."""
    if cfg.against is not None:
        other = load_run(cfg.against)
        file = RunFolder(other.dir).responses
        return other.dir.name, (file, _read_answers(file, other.dir))
    files = RunFolder(run.dir)
    rows = _read_answers(files.base_responses, run.dir)
    try:  # `evaluation.base` may have been another run
        name = str(json.loads(files.evaluation.read_text(encoding="utf-8"))["base"])
    except (OSError, ValueError, LookupError, TypeError):
        name = run.base_name()
    return name, (files.base_responses, rows)


def _check_same(file: Path, rows: Sequence[Row], other_file: Path, others: Sequence[Row]) -> None:
    """Both must have answered the same rows.

    Raises:
        RunError: names the first row that differs.
    """
    bare = [[{**row, ANSWER: None} for row in part] for part in (rows, others)]
    least = min(len(rows), len(others))
    first = next((at for at in range(least) if bare[0][at] != bare[1][at]), least)
    if first == len(rows) == len(others):
        return
    found = f"not the row of {other_file}"
    if first == least:
        longer = file if len(rows) > least else other_file
        found = f"only {longer} has this row"
    fix = "evaluate both on the same rows: evaluation.data_files=rows.jsonl"
    raise RunError(Problem(f"{file}[{first}]", found, fix=fix))


def _shown(row: Row, cfg: TrainConfig, where: str) -> dict[str, str]:
    """What the judge is shown of a row, beside the answers."""
    prompt, reference = _split(_sample(row, cfg, where), cfg)
    return {"input": shown_input(prompt), "reference": reference.strip()}


def _sample(row: Row, cfg: TrainConfig, where: str) -> Sample:
    """What the format makes of a row; of a mixture, the first of its formats that can.

    Raises:
        RowError: none of them can.
    """
    sources = [one for one in cfg.dataset.sources if isinstance(one, MixtureSource)]
    forms = [one.format for one in sources if one.format is not None]
    bare = {name: value for name, value in row.items() if name != ANSWER}
    found = [_formatted(bare, form, cfg, where) for form in (cfg.format, *forms)]
    for one in found:
        if not isinstance(one, RowError):
            return one
    assert isinstance(found[0], RowError)
    raise found[0]


def _formatted(row: Row, form: FormatConfig, cfg: TrainConfig, where: str) -> Sample | RowError:
    if form.type == "function":
        from sftpipe.data.row_function import as_json, call_function
        from sftpipe.data.user_code import load_function

        function = load_function(str(form.function), "format.function", cfg.allowed_targets)
        (value,) = call_function(function, [row], form, [where])
        row = json.loads(as_json(value, form, where))
    (sample,) = to_samples([row], form, [where])
    return sample


def _split(sample: Sample, cfg: TrainConfig) -> tuple[Prompt, str]:
    """Prompt and reference, as `sftpipe evaluate` splits them."""
    if cfg.loss.type != "response_template":
        return split_prompt(sample)  # the same, without importing transformers
    from sftpipe.data.prompts import split_answer

    return split_answer(sample, cfg.loss)


# --- asking ---------------------------------------------------------------------------------------


def _ask_all(judged: Judged, endpoint: Endpoint, work: Unfinished) -> None:
    """Ask for every row that is not done.

    The first row goes alone: what is wrong with the server costs one request then, and a server
    that cannot answer it is not asked for the others.
    """
    total = len(judged.prompts)
    missing = [number for number in range(total) if number not in work.done]
    with progress("Judging", total, len(work.done)) as advance:

        def keep(number: int, value: Mapping[str, Any]) -> None:
            work.add(number, value)
            advance(1, "")

        for number in missing[:1]:
            value, failure = _ask_row(judged, endpoint, number)
            if failure is not None:
                raise ModelError(failure.problem)
            keep(number, value)
        with ThreadPoolExecutor(judged.cfg.concurrency) as pool:
            futures = {pool.submit(_ask_row, judged, endpoint, one): one for one in missing[1:]}
            try:
                for future in as_completed(futures):
                    keep(futures[future], future.result()[0])
            except BaseException:
                endpoint.stop()
                pool.shutdown(cancel_futures=True)
                _keep_finished(futures, work.done, keep)
                raise


def _keep_finished(
    futures: Mapping[Future[Any], int],
    done: Mapping[int, Any],
    keep: Callable[[int, Mapping[str, Any]], None],
) -> None:
    """Keep the rows that were finished while another one failed; their replies may have cost."""
    for future, number in futures.items():
        if number not in done and not future.cancelled() and future.exception() is None:
            keep(number, future.result()[0])


def _ask_row(
    judged: Judged, endpoint: Endpoint, number: int
) -> tuple[dict[str, Any], NoReply | None]:
    """{found, replies, failure} of one row, the first two with a value for each of its prompts.

    Returns:
        The value, and what came in place of a reply where that happened.
    """
    read: Callable[[str], int | str | None]
    read = read_score if judged.cfg.mode == "score" else read_verdict
    found: list[int | str | None] = []
    replies: list[list[str]] = []
    failure: NoReply | None = None
    for prompt in judged.prompts[number]:
        replies.append([])
        found.append(None)
        for reply in _replies(judged.cfg, endpoint, prompt):
            if isinstance(reply, NoReply):
                failure = reply
                break
            replies[-1].append(reply)
            found[-1] = read(reply)
            if found[-1] is not None:
                break
    value: dict[str, Any] = {"found": found, "replies": replies}
    return value | ({"failure": failure.reason} if failure else {}), failure


def _replies(cfg: JudgeConfig, endpoint: Endpoint, prompt: str) -> Iterator[str | NoReply]:
    """The reply to a prompt, then further ones with another seed and a reminder."""
    asked = {"role": "user", "content": prompt}
    messages = [asked]
    for attempt in range(cfg.retries + 1):
        reply = endpoint.ask(messages, None if cfg.seed is None else cfg.seed + attempt)
        yield reply
        if isinstance(reply, NoReply):
            return
        # many chat templates insist on turns that alternate, so the bad reply stands between
        bad = without_thinking(reply)[:_REPEATED] or "..."
        reminder = {"role": "user", "content": REMINDERS[cfg.mode, cfg.language]}
        messages = [asked, {"role": "assistant", "content": bad}, reminder]


# --- counting -------------------------------------------------------------------------------------


def _counted(judged: Judged, values: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """The figures of all rows, and `rows`."""
    if judged.cfg.mode == "score":
        scores = [value["found"][0] for value in values]
        rows = [{"score": value["found"][0], "replies": value["replies"][0]} for value in values]
        summary = score_summary(scores, seed)
    else:
        both = [winners(value["found"]) for value in values]
        rows = [
            {"winner": outcome(one), "verdicts": list(one), "replies": value["replies"]}
            for one, value in zip(both, values, strict=True)
        ]
        summary = pair_summary(both, judged.lengths, seed)
    for row, value in zip(rows, values, strict=True):
        if "failure" in value:
            row["failure"] = value["failure"]
    return {**summary, "rows": rows}
