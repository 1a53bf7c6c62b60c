"""`sftpipe train -m`: a sweep, from its words to its ranked table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sftpipe.config.hydra import SWEEP_DIR, enter_hydra
from sftpipe.config.multirun import (
    BASIC,
    OURS,
    SEARCH,
    SLURM,
    Multirun,
    compose_multirun,
    grid,
    run_multirun,
)
from sftpipe.config.schema import TrainConfig
from sftpipe.errors import ConfigError, Problem, RunError, SweepError, in_shell
from sftpipe.runs.lock import held
from sftpipe.runs.plan import stamp
from sftpipe.sweeps.folder import DONE, PRUNED, SweepFolder, SweepRecord
from sftpipe.sweeps.metric import Metric, check_reported, metric_of
from sftpipe.sweeps.page import write_page
from sftpipe.sweeps.place import check_code, place, varying
from sftpipe.sweeps.slurm import Cluster, check_installed, check_keys
from sftpipe.sweeps.sweep import Sweep
from sftpipe.sweeps.table import Table, print_table, read_table, write_table
from sftpipe.terminal import console


@dataclass(frozen=True)
class Asked:
    """A sweep that may begin: everything that can be known is checked.

    configs: of each job of a grid; of a search, those of the ends of its space and its choices.
    total: the jobs; None where the sweeper decides.
    """

    multirun: Multirun
    configs: list[TrainConfig]
    jobs: list[list[str]]
    metric: Metric
    total: int | None


def train_sweep(words: Sequence[str], going_on: str | None, *, as_json: bool) -> int:
    """Train every job of a sweep, and rank them.

    Args:
        words: overrides, values with commas between them.
        going_on: the folder of `--continue`; None where there is none.
        as_json: a line for each finished job on stdout.

    Returns:
        The exit code 0.

    Raises:
        SweepError: some jobs failed.
        SftpipeError: the sweep cannot begin, or was stopped.
    """
    words = _with_recorded(words, going_on) if going_on is not None else list(words)
    asked = check_sweep(words)
    folder, cluster = SweepFolder(_directory(asked, going_on)), None
    if asked.multirun.launcher == SLURM:
        check_installed()
        cluster = Cluster(asked.multirun.launcher_keys, folder)
    with held(folder.path, "this sweep"):
        _open(folder, asked, words)
        constants, configs = asked.multirun.constants, asked.configs
        sweep = Sweep(folder, constants, asked.metric, asked.total, configs, cluster)
        try:
            run_multirun(asked.multirun, folder.path, sweep, sweep.place)
        finally:
            table = _conclude(folder, as_json=as_json)
        _check_jobs(folder, table, asked)
    return 0


def show_jobs(flags: Sequence[str], words: Sequence[str]) -> int:
    """Hydra's `--cfg` and `--info` of each job of a grid, one after the other."""
    asked = check_sweep(words)
    if not asked.jobs:
        found = f"hydra/sweeper={asked.multirun.sweeper}, which proposes its jobs one by one"
        raise ConfigError(Problem(" ".join(flags), found, fix="leave -m out, and give values"))
    for number, job in enumerate(asked.jobs):
        print(f"# job {number}: {' '.join(map(in_shell, job))}", flush=True)
        enter_hydra(flags, [*asked.multirun.settings, *job])
    return 0


def check_sweep(words: Sequence[str]) -> Asked:
    """Compose and check what can be known before the first job starts.

    Args:
        words: as of `train_sweep`.

    Raises:
        ConfigError: every distinct problem of the jobs, together.
    """
    multirun = compose_multirun(words)
    metric = metric_of(multirun.sweeper_keys, multirun.launcher_keys)
    jobs, samples = [], [list(multirun.words)]
    if multirun.sweeper == SEARCH:
        from sftpipe.sweeps.search import check_space

        samples = check_space(multirun)
    elif multirun.sweeper == BASIC:
        jobs = samples = grid(multirun.everything)
    else:  # a plugin reads the words its own way, and each job is checked when it proposes it
        samples = []
    configs = multirun.check(samples)
    _check_settings(multirun, configs)
    return Asked(multirun, configs, jobs, metric, len(jobs) or None)


def _check_settings(multirun: Multirun, configs: Sequence[TrainConfig]) -> None:
    """A sweep makes its folders itself, and goes on by itself."""
    problems = []
    if any(cfg.run for cfg in configs):
        fix = "hydra.sweep.dir=DIR names the folder of the sweep"
        found = "one folder, and a sweep makes one for each job"
        problems.append(Problem("run", found, fix=fix))
    if any(cfg.sft.get("resume_from_checkpoint") for cfg in configs):
        found = "a sweep that is continued goes on with its jobs by itself"
        fix = "leave it out, and name the sweep: sftpipe train -m --continue DIR"
        problems.append(Problem("sft.resume_from_checkpoint", found, fix=fix))
    keys, is_ours = multirun.launcher_keys, multirun.launcher in OURS
    if is_ours and (not isinstance(keys["n_jobs"], int) or keys["n_jobs"] < 1):
        found, fix = str(keys["n_jobs"]), "`hydra.launcher.n_jobs=1`"
        problems.append(Problem("hydra.launcher.n_jobs", found, allowed="at least 1", fix=fix))
    if multirun.launcher == SLURM:
        problems += check_keys(keys)
    if problems:
        raise ConfigError(*problems)


def _with_recorded(words: Sequence[str], going_on: str) -> list[str]:
    """The words of a sweep that goes on; those that are typed now replace those of the same key."""
    recorded = SweepFolder(Path(going_on)).read().words
    typed = {word.lstrip("+~").partition("=")[0] for word in words}
    typed.add(SWEEP_DIR)  # as it was called where the first command was typed
    kept = [word for word in recorded if word.lstrip("+~").partition("=")[0] not in typed]
    return [*kept, *words]


def _directory(asked: Asked, going_on: str | None) -> Path:
    named = asked.multirun.directory
    if going_on is not None:
        if named is not None and named.resolve() != Path(going_on).resolve():
            found = f"{named}, and --continue names {going_on}"
            raise ConfigError(Problem("hydra.sweep.dir", found, fix="leave one of them out"))
        return Path(going_on)
    if named is not None:
        return named
    recipes = {cfg.recipe or "custom" for cfg in asked.configs}
    name = recipes.pop() if len(recipes) == 1 else "sweep"
    output = asked.configs[0].output_dir if asked.configs else "outputs"
    return Path(output) / name / stamp()


def _open(folder: SweepFolder, asked: Asked, words: Sequence[str]) -> None:
    """Begin a sweep, or go on with one of the same code and data."""
    there = {path.name for path in folder.path.iterdir()} - {".lock"}
    if folder.record.is_file():
        check_code(folder, folder.read())
        for job, cfg in zip(asked.jobs, asked.configs, strict=False):
            place(folder, cfg, varying(job, asked.multirun.constants))
    elif there:
        found = "it holds something that is no sweep"
        fix = "name a new folder: hydra.sweep.dir=DIR"
        raise RunError(Problem(str(folder.path), found, fix=fix))
    folder.write(SweepRecord(tuple(words), asked.metric.name, asked.metric.direction))
    jobs = f"{asked.total} job{'s' * (asked.total != 1)}" if asked.total else "a search"
    console.print(f"sweep     {jobs}, in {folder.path}", markup=False)


def _conclude(folder: SweepFolder, *, as_json: bool) -> Table:
    """Rank what there is, also after a stop."""
    table = read_table(folder)
    if table.rows:
        write_table(folder, table)
        write_page(folder, table)
        print_table(folder, table, console)
    for row in table.rows if as_json else ():
        if row.state == DONE:
            run = folder.run(row.job)
            print(json.dumps({"run": str(run.path), "metrics": run.read_metrics()}))
    sys.stdout.flush()
    return table


def _check_jobs(folder: SweepFolder, table: Table, asked: Asked) -> None:
    """Raise a `SweepError` where jobs of this command failed."""
    failed = [row for row in table.rows if row.state not in (DONE, PRUNED)]
    if asked.jobs:
        names = {
            place(folder, cfg, varying(job, asked.multirun.constants))
            for job, cfg in zip(asked.jobs, asked.configs, strict=True)
        }
        failed = [row for row in failed if row.job in names]
    if failed:
        count = asked.total or len(table.rows)
        some = (
            "every job" if len(failed) == count else f"some jobs failed: {len(failed)} of {count}"
        )
        some = "every job failed" if some == "every job" else some
        listed = "; ".join(f"{row.job}: {row.state}, {row.error}" for row in failed)
        fix = f"their logs are in {folder.path / 'jobs'}; {folder.continuing} tries them again"
        raise SweepError(Problem(str(folder.path), f"{some} ({listed})", fix=fix))
    if asked.metric != Metric():
        finished = [folder.run(row.job) for row in table.rows if row.state == DONE]
        check_reported(asked.metric, finished, "hydra.launcher.metric")
