"""What each verb on a finished run does; each is given its words and whether to print JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftpipe.config.on_run import RunCommand, parse_run_command
from sftpipe.errors import ConfigError, Problem

if TYPE_CHECKING:
    from sftpipe.runs.answering import Answering
    from sftpipe.runs.load import Run
    from sftpipe.sweeps.folder import SweepFolder


def _open(command: RunCommand) -> Answering:
    """The run, or with `run=null` the base model of a config."""
    from sftpipe.runs.load import BaseModel, load_run

    if command.folder is not None:
        return load_run(command.folder, command.rest)
    from sftpipe.config.hydra import compose

    return BaseModel(compose(command.rest))


def _open_run(verb: str, command: RunCommand) -> Run:
    """The run, for verbs that a base model alone has nothing for."""
    from sftpipe.runs.load import load_run

    if command.folder is None:
        fix = f"sftpipe {verb} run=DIR"
        raise ConfigError(Problem("run", f"null, and {verb} is about a finished run", fix=fix))
    return load_run(command.folder, command.rest)


def _generate(words: Sequence[str], as_json: bool) -> int:
    from sftpipe.runs.generate import answer_rows, ask

    command = parse_run_command("generate", words)
    asked, subject = command.requests.generate, _open(command)
    if asked.prompt is not None or asked.messages is not None:
        answers = ask(subject, asked)
        if as_json:
            print(json.dumps([asdict(one) for one in answers], ensure_ascii=False))
        else:
            from sftpipe.tables import print_answers

            print_answers(answers)
        return 0
    file, count = answer_rows(subject, asked)
    print(
        json.dumps({"answers": str(file), "rows": count})
        if as_json
        else f"{count} answers in {file}"
    )
    return 0


def _chat(words: Sequence[str], as_json: bool) -> int:
    from sftpipe.runs.chat import chat

    command = parse_run_command("chat", words)
    if as_json:
        fix = "leave --json out; `sftpipe generate` prints answers as JSON"
        raise ConfigError(Problem("--json", "a conversation is no JSON", fix=fix))
    chat(_open(command), command.requests.generate)
    return 0


def _evaluate(words: Sequence[str], as_json: bool) -> int:
    from sftpipe.runs.evaluate import evaluate
    from sftpipe.tables import print_evaluation

    run = _open_run("evaluate", parse_run_command("evaluate", words))
    result: dict[str, Any] = evaluate(run)
    return _say(result, as_json, lambda: print_evaluation(result, Path(run.dir)))


def _judge(words: Sequence[str], as_json: bool) -> int:
    from sftpipe.runs.judge import judge
    from sftpipe.tables import print_judgement

    command = parse_run_command("judge", words)
    run = _open_run("judge", command)
    result: dict[str, Any] = judge(run, command.requests.judge)
    return _say(result, as_json, lambda: print_judgement(result, Path(run.dir)))


def _export(words: Sequence[str], as_json: bool) -> int:
    from sftpipe.runs.export import export
    from sftpipe.tables import print_export

    command = parse_run_command("export", words)
    run = _open_run("export", command)
    result: dict[str, Any] = export(run, command.requests.export)
    return _say(result, as_json, lambda: print_export(result))


def _report(words: Sequence[str], as_json: bool) -> int:
    from sftpipe.runs.report.compare import write_comparison
    from sftpipe.runs.report.page import write_page
    from sftpipe.runs.report.watch import watch
    from sftpipe.sweeps.folder import SweepFolder

    folders, watched = _report_words(words)
    if len(folders) == 1 and (sweep := SweepFolder(folders[0])).record.is_file():
        return _report_sweep(sweep, watched, as_json)
    if len(folders) > 1:
        compared: dict[str, Any] = write_comparison(folders)
        return _say(compared, as_json, lambda: print(f"{compared['sentence']}\n{compared['page']}"))
    result = watch(folders[0]) if watched else write_page(folders[0])
    return _say(result, as_json, lambda: print(f"{result['sentence']}\n{result['page']}"))


def _report_sweep(sweep: SweepFolder, watched: bool, as_json: bool) -> int:
    """The ranked table of a sweep as it is now, on the terminal and written into its folder."""
    from rich.console import Console

    from sftpipe.sweeps.page import write_page
    from sftpipe.sweeps.table import as_plain, print_table, read_table, write_table

    if watched:
        found = "a sweep, which shows its jobs itself while it runs"
        raise ConfigError(Problem(_WATCH, found, fix="leave it out"))
    table = read_table(sweep)
    write_table(sweep, table)
    page = str(write_page(sweep, table))

    def show() -> None:
        print_table(sweep, table, Console(highlight=False, soft_wrap=True))
        print(page)

    return _say({**as_plain(table), "page": page}, as_json, show)


def _report_words(words: Sequence[str]) -> tuple[list[Path], bool]:
    """(the run folders that are named, whether `--watch` was among the words)."""
    named = [word.partition("=")[2] for word in words if word.startswith("run=")]
    example = "sftpipe report run=DIR, or run=A,B,C for several beside each other"
    if not named:
        raise ConfigError(Problem("run", "not set: which run?", fix=example))
    if others := [word for word in words if not word.startswith("run=") and word != _WATCH]:
        allowed = f"run=DIR, {_WATCH}, --json"
        found = "report takes no such word"
        raise ConfigError(Problem(others[0], found, allowed=allowed, fix=example))
    text = named[-1].strip("'\"").removeprefix("[").removesuffix("]")
    whole = [text] if Path(text).exists() else text.split(",")  # a name may hold a comma
    folders = [Path(one.strip()) for one in whole if one.strip()]
    if not folders:
        raise ConfigError(Problem("run", "empty: which run?", fix=example))
    if _WATCH in words and len(folders) > 1:
        raise ConfigError(Problem(_WATCH, "several runs", allowed="one", fix="leave it out"))
    return folders, _WATCH in words


_WATCH = "--watch"


def _say(result: dict[str, Any], as_json: bool, show: Callable[[], None]) -> int:
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        show()
    return 0


RUN_VERBS: dict[str, Callable[[Sequence[str], bool], int]] = {
    "chat": _chat,
    "evaluate": _evaluate,
    "export": _export,
    "generate": _generate,
    "judge": _judge,
    "report": _report,
}
