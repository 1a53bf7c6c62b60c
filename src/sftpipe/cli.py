"""`sftpipe VERB [key=value ...]`: verbs, flags, exit codes, and how errors are printed.

Exit codes: 0 done; 2 a mistake that the user can mend, printed without a traceback; 130 or 143 stopped by a signal; 1 a bug, with its
traceback. Results go to stdout, everything else to stderr. Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftpipe.errors import ConfigError, Interrupted, Problem, SftpipeError, nearest

if TYPE_CHECKING:
    from sftpipe.run import Run


@dataclass
class Arguments:
    """A parsed command line."""

    verb: str
    overrides: list[str] = field(default_factory=list)
    json: bool = False
    help: bool = False
    multirun: bool = False
    hydra_flags: list[str] = field(default_factory=list)  # --cfg, --info, ...: handed to Hydra as they are


@dataclass(frozen=True)
class Verb:
    """One thing that sftpipe does."""

    run: Callable[[Arguments], int]
    summary: str
    usage: str
    details: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        from sftpipe import __version__

        print(__version__)
        return 0
    from sftpipe.terminal import quiet

    try:
        arguments = _parse(words)
        if arguments.help:
            print(_verb_help(arguments.verb))
            return 0
        with quiet():
            return VERBS[arguments.verb].run(arguments)
    except SftpipeError as error:
        _print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `sftpipe list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        fix = "make room there, or write elsewhere: output_dir=DIR (runs), SFTPIPE_CACHE (models)"
        _print_error(SftpipeError(Problem(where=str(error.filename or "disk"), found=str(error.strerror), fix=fix)))
        return 2


def _parse(words: list[str]) -> Arguments:
    verb, *rest = words
    if verb not in VERBS:
        match = nearest(verb, VERBS)
        example = f"sftpipe {match}" if match else "sftpipe --help"
        if "=" in verb:
            example = f"sftpipe train {' '.join(words)}"
        raise ConfigError(Problem(where=verb, found="no such verb", allowed=", ".join(VERBS), fix=example))
    arguments = Arguments(verb)
    while rest:
        word = rest.pop(0)
        if word == "--json":
            arguments.json = True
        elif word in ("-h", "--help"):
            arguments.help = True
        elif word in ("-m", "--multirun") and verb == "train":
            arguments.multirun = True
        elif word.split("=")[0] in ("--cfg", "-c", "--info", "-i", "--hydra-help", "--resolve", "--package", "-p") and verb == "train":
            arguments.hydra_flags.append(word)
            if word in ("--cfg", "-c", "--info", "-i", "--package", "-p") and rest and "=" not in rest[0]:
                arguments.hydra_flags.append(rest.pop(0))
        else:
            arguments.overrides.append(word)
    return arguments


def _print_error(error: SftpipeError) -> None:
    count = len(error.problems)
    heading = "error" if count == 1 else f"{count} errors"
    print(f"{heading}\n  " + str(error).replace("\n", "\n  "), file=sys.stderr)


# --- help -----------------------------------------------------------------------------------------------------------------------------


def _help() -> str:
    verbs = "\n".join(f"  {name:<9} {verb.summary}" for name, verb in VERBS.items())
    return (
        "sftpipe: declarative supervised fine-tuning\n\n"
        "usage: sftpipe VERB [recipe=NAME] [group=OPTION] [key=value] [--json]\n\n"
        f"{verbs}\n\n"
        "  sftpipe train recipe=yoda                    the example that needs nothing but this machine\n"
        "  sftpipe train recipe=yoda lora.r=8           with an override\n"
        "  sftpipe train -m recipe=yoda lora.r=8,16     a sweep\n"
        "  sftpipe VERB --help                          more about a verb"
    )


def _verb_help(name: str) -> str:
    verb = VERBS[name]
    text = f"sftpipe {name}: {verb.summary}\n\nusage: {verb.usage}\n\n{verb.details}"
    if "key=value" in verb.usage:
        from sftpipe.config import groups

        options = "\n".join(f"  {group:<13} {', '.join(names)}" for group, names in groups().items())
        text += f"\n\ngroups and their options, the default first (`sftpipe list` says what each is):\n{options}"
    return text


# --- verbs ----------------------------------------------------------------------------------------------------------------------------


def _train(arguments: Arguments) -> int:
    from sftpipe.config import compose, expand_sweep

    if arguments.hydra_flags:
        _enter_hydra(arguments.hydra_flags, arguments.overrides, [], lambda _: None)
        return 0
    jobs = expand_sweep(arguments.overrides) if arguments.multirun else [arguments.overrides]
    configs = _all_or_error([lambda job=job: compose(job) for job in jobs])  # type: ignore[misc]

    from sftpipe.artifacts import RunPlan, plan_run, stamp

    if arguments.multirun:
        recipes = {cfg.recipe for cfg in configs}
        name = recipes.pop() if len(recipes) == 1 else "sweep"
        sweep = Path(configs[0].output_dir) / (name or "custom") / stamp()
        flags, settings = ["--multirun"], [_literal("hydra.sweep.dir", sweep), "hydra.sweep.subdir=${hydra.job.num}"]
        plans = {str(num): RunPlan(sweep / str(num)) for num in range(len(jobs))}
    else:
        plan = plan_run(configs[0])
        records = plan.records.relative_to(plan.folder) / ".hydra"
        flags, settings = [], [_literal("hydra.run.dir", plan.folder), _literal("hydra.output_subdir", records)]
        plans = {"0": plan}
    failed: list[SftpipeError] = []

    def task(composed: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        from sftpipe.config import from_composed
        from sftpipe.pipeline import train

        if failed and isinstance(failed[-1], Interrupted):
            return  # the user stopped the sweep
        hydra_cfg = HydraConfig.get()
        number = str(hydra_cfg.job.num) if arguments.multirun else "0"
        try:
            run = train(from_composed(composed, hydra_cfg.runtime.choices), plans[number])
            _print_run(run, as_json=arguments.json)
        except SftpipeError as error:
            _print_error(error)
            failed.append(error)

    _enter_hydra(flags, arguments.overrides, settings, task)
    return failed[-1].exit_code if failed else 0


def _all_or_error(builders: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of all builders, or one error with every distinct problem."""
    results, problems = [], dict[Problem, None]()
    for build in builders:
        try:
            results.append(build())
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(*problems)
    return results


def _enter_hydra(flags: Sequence[str], overrides: Sequence[str], settings: Sequence[str], task: Callable[[Any], None]) -> None:
    """Run `task` under hydra.main, which writes `.hydra` and runs sweeps; `settings` are overrides of ours."""
    import hydra

    from sftpipe.config import conf_dir, hydra_overrides, parse_overrides, register_recipes

    register_recipes()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # a bug keeps its traceback
    before = sys.argv
    sys.argv = [before[0], *flags, *hydra_overrides(parse_overrides(overrides)[0]), *settings]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    finally:
        sys.argv = before


def _literal(key: str, path: Path) -> str:
    """A Hydra override whose value is this path and nothing else."""
    quoted = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{quoted}'"


def _print_run(run: Run, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"run": str(run.dir), "metrics": run.metrics}))
        return
    from rich.console import Console
    from rich.table import Table

    from sftpipe.report import metric_rows
    from sftpipe.run import read_samples

    out = Console(highlight=False, soft_wrap=True)
    numbers = Table.grid(padding=(0, 2))
    for name, text in metric_rows(run.metrics):
        numbers.add_row(name, text)
    out.print(numbers)
    samples = read_samples(run.dir)
    for before, after in zip(*[[row for row in samples if row["phase"] == phase] for phase in ("before", "after")], strict=True):
        out.print(f"\n[dim]prompt[/]  {_one_line(before['prompt'])}", f"[dim]before[/]  {_one_line(before['completion'])}",
                  f"[green]after[/]   {_one_line(after['completion'])}", sep="\n")  # fmt: skip
    out.print(f"\n{run.dir}/README.md shows how to load the model; {run.dir}/loss.png is its loss curve.")


def _one_line(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split()))


def _config(arguments: Arguments) -> int:
    from sftpipe.config import compose
    from sftpipe.schema import to_plain

    plain = to_plain(compose(arguments.overrides))
    if arguments.json:
        print(json.dumps(plain, indent=2, ensure_ascii=False))
    else:
        import yaml

        print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), end="")
    return 0


def _check(arguments: Arguments) -> int:
    from sftpipe.config import compose
    from sftpipe.data.preview import colored
    from sftpipe.pipeline import prepare

    cfg = compose(arguments.overrides)
    data = prepare(cfg)
    if arguments.json:
        print(json.dumps(data.preflight.as_dict(), indent=2))
        return 0
    from rich.console import Console

    out = Console(highlight=False, soft_wrap=True)
    out.print(_preflight_table(data.preflight))
    for name, (token, number) in data.preflight.special_tokens.items():
        out.print(f"{name:<10} {_one_line(str(token))} {number if number is not None else ''}")
    out.print(f"{'answers end':<10} in {_one_line(', '.join(data.preflight.end_tokens))}")
    out.print("\nThe first row; what is trained is green:\n")
    out.print(colored(data.train[0], data.tokenizer))
    out.print("Everything that is checked holds.")
    return 0


def _preflight_table(preflight: Any) -> Any:
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("split", "rows", "tokens", "trained", "median length", "longest", "too long", "nothing trained"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, report in preflight.splits.items():
        share = f"{report.trained_tokens / report.tokens:.1%}"
        values = (report.rows, report.tokens, share, report.length_median, report.length_max, report.over_length_rows, report.empty_rows)
        table.add_row(split, *(f"{value:,}" if isinstance(value, int) else str(value) for value in values))
    return table


def _preview(arguments: Arguments) -> int:
    from sftpipe.config import compose
    from sftpipe.data.preview import colored, preview_rows
    from sftpipe.pipeline import prepare

    cfg = compose(arguments.overrides)
    data = prepare(cfg)
    if not arguments.json:
        from rich.console import Console

        out = Console(highlight=False, soft_wrap=True)
        out.print("[bold green]trained[/]  [dim]masked[/]")
    for row in preview_rows(data.train, data.tokenizer, cfg.preflight.show_rows):
        if arguments.json:
            print(json.dumps(row, ensure_ascii=False))
        else:
            trained = sum(label != -100 for label in row["labels"])
            out.rule(f"train[{row['index']}]  {len(row['input_ids'])} tokens, {trained} trained", style="dim")
            out.print(colored(row, data.tokenizer))
    return 0


def _list(arguments: Arguments) -> int:
    from sftpipe.config import conf_dir, find_recipes, groups, header

    files: Mapping[str, Mapping[str, Path]] = {
        group: find_recipes() if group == "recipe" else {name: conf_dir() / group / f"{name}.yaml" for name in names}
        for group, names in groups().items()
    }
    files = {**files, "chat_template": {path.stem: path for path in sorted((conf_dir() / "chat_template").glob("*.jinja"))}}
    for wanted in arguments.overrides:
        if wanted.rstrip("s") not in {name.rstrip("s") for name in files}:
            match = nearest(wanted, files)
            raise ConfigError(
                Problem(where=wanted, found="no such group", allowed=", ".join(files), fix=f"sftpipe list {match}" if match else "")
            )
    chosen = {g: f for g, f in files.items() if not arguments.overrides or g.rstrip("s") in {w.rstrip("s") for w in arguments.overrides}}
    described = {group: {name: header(path) for name, path in options.items()} for group, options in chosen.items()}
    if arguments.json:
        print(json.dumps(described, indent=2, ensure_ascii=False))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for group, options in described.items():
        table.add_row(f"[bold]{group}[/]", "")
        for name, text in options.items():
            table.add_row(f"  {name}", _one_line(text))
    Console(highlight=False).print(table)
    return 0


def _env(arguments: Arguments) -> int:
    from sftpipe.environment import describe

    facts = describe()
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"{name:<{width}}  {value if value is not None else '-'}")
    return 0


def _bench(arguments: Arguments) -> int:
    from sftpipe.bench import PARTS

    part = arguments.overrides[0] if arguments.overrides else ""
    if part not in PARTS or len(arguments.overrides) != 1:
        found = " ".join(arguments.overrides) or "no part"
        raise ConfigError(Problem("sftpipe bench", found, ", ".join(PARTS), f"sftpipe bench {next(iter(PARTS))}"))
    measured = PARTS[part]()
    print(json.dumps(measured, indent=2) if arguments.json else "\n".join(f"{name:<40} {value}" for name, value in measured.items()))
    return 0


_ANY = "[recipe=NAME] [group=OPTION] [key=value]"
VERBS: dict[str, Verb] = {
    "train": Verb(
        _train,
        "train a model and write its run folder",
        f"sftpipe train {_ANY} [-m] [--json]",
        "run=DIR chooses the run folder; sft.resume_from_checkpoint=auto goes on with an unfinished run of the same config.\n"
        "-m runs a grid: every combination of the values that are separated by commas, each in a folder of its own.\n"
        "--cfg job, --info and --hydra-help are Hydra's own.",
    ),
    "config": Verb(_config, "print the resolved config", f"sftpipe config {_ANY} [--json]", "Checks every key on the way; trains nothing."),
    "check": Verb(
        _check,
        "encode the data and check it, without a model",
        f"sftpipe check {_ANY} [--json]",
        "Rows, lengths, trained share, special tokens; an error names the row and what to do.",
    ),
    "preview": Verb(
        _preview,
        "show rows as the model will see them, the trained part in colour",
        f"sftpipe preview {_ANY} [--json]",
        "preflight.show_rows=N shows more. --json prints lines {index, text, input_ids, labels, position_ids}.",
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
        "sftpipe bench PART [--json]",
        "PART is step: the loss and gradients of one batch, against TRL's own.",
    ),
}


if __name__ == "__main__":
    sys.exit(main())
