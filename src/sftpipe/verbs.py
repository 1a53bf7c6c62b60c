"""What each verb does.

Results go to stdout, remarks to stderr; heavy imports wait until a verb needs them.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sftpipe.errors import ConfigError, Problem, SftpipeError, in_shell, nearest

if TYPE_CHECKING:
    from sftpipe.runs.load import Run


@dataclass
class Arguments:
    """A parsed command line."""

    verb: str
    overrides: list[str] = field(default_factory=list)
    json: bool = False
    help: bool = False
    multirun: bool = False
    repeats: str | None = None  # the run folder of --from
    going_on: str | None = None  # the sweep folder of --continue
    peer_python: str | None = None  # the program of --peer-python
    hydra_flags: list[str] = field(
        default_factory=list
    )  # --cfg, --info, ...: handed to Hydra as they are


@dataclass(frozen=True)
class Verb:
    """One thing that sftpipe does."""

    run: Callable[[Arguments], int]
    summary: str
    usage: str
    details: str


def print_error(error: SftpipeError) -> None:
    """Every problem of an error, on stderr."""
    count = len(error.problems)
    heading = "error" if count == 1 else f"{count} errors"
    # what stands between empty lines is code, to be pasted as it is
    blocks = enumerate(str(error).split("\n\n"))
    shown = [block if at % 2 else textwrap.indent(block, "  ") for at, block in blocks]
    print(f"{heading}\n" + "\n\n".join(shown), file=sys.stderr)


def print_way_out(arguments: Arguments, words: Sequence[str]) -> None:
    """The command once more, with overrides that an error names, on stderr.

    They choose options, which a recorded config does not have.
    """
    if arguments.repeats is not None:
        return
    keys = [word.partition("=")[0] for word in words]
    groups = tuple(f"{key}." for key in keys if key in ("format", "loss"))
    replaced = (*groups, "dataset.columns", *(("dataset.data_files",) if "dataset" in keys else ()))
    kept = [
        word
        for word in arguments.overrides
        if (key := word.lstrip("+~").partition("=")[0]) not in keys and not key.startswith(replaced)
    ]
    typed = " ".join(map(in_shell, (*kept, *words)))
    print(f"\n  sftpipe {arguments.verb} {typed}", file=sys.stderr)


def _train(arguments: Arguments) -> int:
    if arguments.repeats is not None:
        return _train_again(arguments, arguments.repeats)
    mode = "hydra.mode=MULTIRUN"  # what -m sets
    words = [word for word in arguments.overrides if word != mode]
    multirun = arguments.multirun or arguments.going_on is not None or mode in arguments.overrides
    if arguments.hydra_flags:
        return _show_config(arguments.hydra_flags, words, multirun=multirun)
    if multirun:
        from sftpipe.sweep_verb import train_sweep

        return train_sweep(words, arguments.going_on, as_json=arguments.json)
    return _train_one(arguments)


def _show_config(flags: Sequence[str], words: Sequence[str], *, multirun: bool) -> int:
    """Hydra's own `--cfg`, `--info` and `--hydra-help`, for a config that is right."""
    if multirun:
        from sftpipe.sweep_verb import show_jobs

        return show_jobs(flags, words)
    from sftpipe.config.hydra import compose, enter_hydra

    compose(words)
    enter_hydra(flags, words)
    return 0


def _train_one(arguments: Arguments) -> int:
    """A single run: composed and checked once, without hydra.main, whose records it writes."""
    from sftpipe.config.hydra import compose_run
    from sftpipe.runs.folder import RunFolder
    from sftpipe.runs.plan import plan_run
    from sftpipe.runs.recorded import recorded_config

    hydra: dict[str, str] = {}
    if (cfg := recorded_config(arguments.overrides)) is not None:
        plan = plan_run(cfg)
    else:
        run = compose_run(arguments.overrides)
        if run.multirun:  # a recipe says so
            return _train(replace(arguments, multirun=True))
        cfg, plan = run.config, plan_run(run.config)
        subdir = RunFolder(plan.records).hydra.relative_to(plan.folder)
        hydra = run.records(plan.folder, str(subdir))
    from sftpipe.pipeline import train

    _print_run(train(cfg, plan, hydra), as_json=arguments.json)
    return 0


def _train_again(arguments: Arguments, folder: str) -> int:
    """The recorded config of a run once more, in a new folder."""
    from sftpipe.runs.again import plan_again

    sweeps = arguments.multirun or arguments.going_on is not None
    flags = [*(["-m"] if sweeps else []), *arguments.hydra_flags]
    cfg, plan = plan_again(folder, arguments.overrides, flags)
    from sftpipe.pipeline import train

    _print_run(train(cfg, plan), as_json=arguments.json)
    return 0


def _print_run(run: Run, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"run": str(run.dir), "metrics": run.metrics}))
        return
    from sftpipe.tables import print_run

    print_run(run)


def _config(arguments: Arguments) -> int:
    from sftpipe.config.hydra import compose
    from sftpipe.config.schema import to_plain

    plain = to_plain(compose(arguments.overrides))
    if arguments.json:
        print(json.dumps(plain, indent=2, ensure_ascii=False))
    else:
        import yaml

        print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), end="")
    return 0


def _check(arguments: Arguments) -> int:
    from sftpipe.config.hydra import compose
    from sftpipe.data.preflight.preview import colored
    from sftpipe.pipeline import check

    data = check(compose(arguments.overrides))
    if arguments.json:
        print(json.dumps(data.preflight.as_dict(), indent=2))
        return 0
    from rich.console import Console

    from sftpipe.tables import dropped_rows, preflight_facts, preflight_tables

    out = Console(highlight=False, soft_wrap=True, width=100)
    for table in preflight_tables(data.preflight):
        out.print(table, "")
    for line in preflight_facts(data.preflight):
        out.print(line, markup=False)
    for line in dropped_rows(data.preflight):
        out.print(line, markup=False)
    for warning in data.preflight.warnings:
        out.print("\n[yellow]warning[/]")
        out.print(f"  {warning}".replace("\n", "\n  "), markup=False)
    out.print("\nThe first row; what is trained is green:\n")
    out.print(colored(data.train[0], data.tokenizer))
    count = len(data.preflight.warnings)
    found = f"but for the {'warning' if count == 1 else f'{count} warnings'} above" if count else ""
    out.print(f"Everything that is checked holds{', ' * bool(count)}{found}.")
    return 0


def _preview(arguments: Arguments) -> int:
    from sftpipe.config.hydra import compose
    from sftpipe.data.preflight.preview import colored, preview_rows, write_page
    from sftpipe.pipeline import prepare
    from sftpipe.terminal import console

    cfg = compose(arguments.overrides)
    data = prepare(cfg)
    count = cfg.preflight.show_rows
    if not arguments.json:
        from rich.console import Console

        out = Console(highlight=False, soft_wrap=True)
        out.print("[bold green]trained[/]  [dim]masked[/]")
    for row in preview_rows(data.train, data.tokenizer, count):
        if arguments.json:
            print(json.dumps(row, ensure_ascii=False))
        else:
            trained = sum(label != -100 for label in row["labels"])
            out.rule(
                f"train[{row['index']}]  {len(row['input_ids'])} tokens, {trained} trained",
                style="dim",
            )
            out.print(colored(data.train[row["index"]], data.tokenizer))
    if not arguments.json:
        from sftpipe.tables import not_read

        for line in not_read(data.preflight):
            out.print(line, markup=False)
        for warning in data.preflight.warnings:
            out.print(f"warning   {warning}".replace("\n", "\n          "), markup=False)
    page = write_page(
        Path(cfg.output_dir), data.splits(), data.tokenizer, count, cfg.recipe or "custom"
    )
    console.print(f"page      {page}", markup=False)
    return 0


def _list(arguments: Arguments) -> int:
    from sftpipe.config.options import conf_dir, find_recipes, groups, header, run_groups

    files: Mapping[str, Mapping[str, Path]] = {
        group: find_recipes()
        if group == "recipe"
        else {name: conf_dir() / group / f"{name}.yaml" for name in names}
        for group, names in {**groups(), **run_groups()}.items()
    }
    files = {
        **files,
        "chat_template": {
            path.stem: path for path in sorted((conf_dir() / "chat_template").glob("*.jinja"))
        },
    }
    for wanted in arguments.overrides:
        if wanted.startswith("-"):
            raise ConfigError(Problem(wanted, "unknown flag", allowed="--json, --help"))
        if wanted.rstrip("s") not in {name.rstrip("s") for name in files}:
            match = nearest(wanted, files)
            raise ConfigError(
                Problem(
                    wanted,
                    "no such group",
                    allowed=", ".join(files),
                    fix=f"`sftpipe list {match}`" if match else "",
                )
            )
    chosen = {
        g: f
        for g, f in files.items()
        if not arguments.overrides or g.rstrip("s") in {w.rstrip("s") for w in arguments.overrides}
    }
    described = {
        group: {name: header(path) for name, path in options.items()}
        for group, options in chosen.items()
    }
    if arguments.json:
        print(json.dumps(described, indent=2, ensure_ascii=False))
        return 0
    from sftpipe.tables import print_options

    print_options(described)
    return 0


def _env(arguments: Arguments) -> int:
    if arguments.overrides:
        raise ConfigError(
            Problem(" ".join(arguments.overrides), "`env` takes no words", fix="`sftpipe env`")
        )
    from sftpipe.environment import describe

    _print_facts(describe(), arguments)
    return 0


def _bench(arguments: Arguments) -> int:
    from sftpipe.bench import PARTS, WITH_PEER

    part = arguments.overrides[0] if arguments.overrides else ""
    if part not in PARTS or len(arguments.overrides) != 1:
        found = " ".join(arguments.overrides) or "no part"
        raise ConfigError(
            Problem(
                "sftpipe bench",
                found,
                allowed=", ".join(PARTS),
                fix=f"`sftpipe bench {next(iter(PARTS))}`",
            )
        )
    peer = {} if arguments.peer_python is None else {"peer_python": arguments.peer_python}
    if peer and part != WITH_PEER:
        found = f"part {part} is not measured against another program"
        fix = f"`sftpipe bench {part}`"
        raise ConfigError(Problem("--peer-python", found, allowed=f"with {WITH_PEER}", fix=fix))
    _print_facts(PARTS[part](**peer), arguments)
    return 0


def _print_facts(facts: Mapping[str, object], arguments: Arguments) -> None:
    """A line for each, or all as JSON."""
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value if value is not None else '-'}")


def _of_run(verb: str) -> Callable[[Arguments], int]:
    """A verb on a finished run."""

    def run(arguments: Arguments) -> int:
        from sftpipe.run_verbs import RUN_VERBS

        return RUN_VERBS[verb](arguments.overrides, arguments.json)

    return run


_ANY = "[recipe=NAME] [group=OPTION] [key=value]"
_RUN = "run=DIR [group=OPTION] [key=value] [--json]"
VERBS: dict[str, Verb] = {
    "train": Verb(
        _train,
        "train a model and write its run folder",
        f"sftpipe train {_ANY} [--json]\n"
        f"       sftpipe train -m {_ANY} [--continue DIR] [--json]\n"
        "       sftpipe train --from DIR [key=value] [--json]",
        "run=DIR chooses the run folder; sft.resume_from_checkpoint=auto goes on with an "
        "unfinished run of the same config.\n"
        "--from DIR runs the recorded config of a run again, in a new folder, and says first what "
        "differs: keys, data, tokenizer, weights, versions, hardware.\n"
        "-m trains every combination of the values that are separated by commas, a process for "
        "each, and ranks them; hydra.launcher.n_jobs=N: so many at a time.\n"
        "-m --continue DIR goes on with a sweep; values that are typed with it are added.\n"
        "--cfg job, --info and --hydra-help are Hydra's own.",
    ),
    "evaluate": Verb(
        _of_run("evaluate"),
        "measure a run against its base: did the training help?",
        f"sftpipe evaluate {_RUN}",
        "Losses of validation and test, answers to the test rows (responses.json), metrics with "
        "intervals, and a verdict on one of them (evaluation.verdict).\n"
        "evaluation.base=RUN_DIR compares two runs; evaluation.data_files=rows.jsonl brings other "
        "rows.",
    ),
    "judge": Verb(
        _of_run("judge"),
        "let an LLM score the answers that `sftpipe evaluate` wrote",
        f"sftpipe judge {_RUN}",
        "Scores from 0 to 100, with an interval of their mean, in judge.json; judge.mode=pairwise "
        "asks whether the run or its base (judge.against=DIR: another run) answers better, in both "
        "orders.\n"
        "judge=ollama is on this machine (ollama serve); judge=openai and judge=custom are other "
        "OpenAI-compatible endpoints. The same command goes on after a stop.",
    ),
    "generate": Verb(
        _of_run("generate"),
        "answer a prompt, a conversation or a file of rows",
        f"sftpipe generate {_RUN}",
        'generate.prompt="..." or generate.messages=[...] prints the answer; '
        "generate.data_files=rows.jsonl, or nothing for the test split, writes answers.jsonl.\n"
        "run=null with recipe=NAME or model=NAME asks a base model alone.",
    ),
    "export": Verb(
        _of_run("export"),
        "write a run as plain weights, as a GGUF file, or to the hub",
        f"sftpipe export {_RUN}",
        "export=merged writes an adapter merged into its base, export=gguf one file for llama.cpp "
        "and Ollama, export=hub export.repo_id=OWNER/NAME uploads.\n"
        "What leaves is read back and compared with the run; export.output=DIR says where it "
        "goes.",
    ),
    "chat": Verb(
        _of_run("chat"),
        "talk to a run",
        f"sftpipe chat {_RUN.removesuffix(' [--json]')}",
        "/help lists the commands; questions are read line by line from a pipe.\n"
        "generate.base=true lets the base model answer too; run=null with recipe=NAME or "
        "model=NAME is about a base model alone.",
    ),
    "report": Verb(
        _of_run("report"),
        "write a page that people look at: what happened, curves, answers",
        "sftpipe report run=DIR[,DIR ...] [--watch] [--json]",
        "DIR/report.html of a run, finished or not; --watch writes it again every minute while it "
        "trains.\n"
        "run=A,B,C compares runs in A/comparison.html: configs, curves, answers, which is better.\n"
        "run=SWEEP_DIR ranks the jobs of a sweep in SWEEP_DIR/sweep.html.",
    ),
    "config": Verb(
        _config,
        "print the resolved config",
        f"sftpipe config {_ANY} [--json]",
        "Checks every key on the way; trains nothing.",
    ),
    "check": Verb(
        _check,
        "encode the data and check it, without a model",
        f"sftpipe check {_ANY} [--json]",
        "Lengths, trained share, special tokens, prompts, duplicates; an error names the row and "
        "what to do.",
    ),
    "preview": Verb(
        _preview,
        "show rows as the model will see them, the trained part in colour",
        f"sftpipe preview {_ANY} [--json]",
        "preflight.show_rows=N shows more. --json prints lines {index, text, input_ids, labels, "
        "position_ids}.\n"
        "OUTPUT_DIR/preview.html shows every split: each token with its id, its position and why "
        "it is masked.",
    ),
    "list": Verb(
        _list,
        "list recipes and the options of every group",
        "sftpipe list [GROUP ...] [--json]",
        "GROUP is recipe, model, dataset or another group; without it all are listed.",
    ),
    "env": Verb(
        _env,
        "print versions, hardware and folders",
        "sftpipe env [--json]",
        "Paste it into a bug report.",
    ),
    "bench": Verb(
        _bench,
        "measure a part of sftpipe against its baseline",
        "sftpipe bench PART [--json]\n       sftpipe bench train [--peer-python PATH] [--json]",
        "PART is one of\n"
        "  step      one training step against TRL's and against the limit of the machine\n"
        "  train     a whole training loop and its memory against TRL, and against LLaMA-Factory "
        "where PATH is a Python that has it\n"
        "  growth    a step over rows, tokens, width and vocabulary, drawn to growth.svg\n"
        "  start     seconds of short commands against `trl sft --help`\n"
        "  data      rows a second against TRL's preparation, and the cache\n"
        "  memory    the peak of `sftpipe check` on ten times the rows\n"
        "  generate  answers in batches against one by one and against transformers' own\n"
        "  sweep     one more job of a sweep against a command of its own\n"
        "  ddp       two processes of one thread each against one process of two",
    ),
}
