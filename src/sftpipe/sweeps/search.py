"""A search with Optuna: trials are asked for, checked, run, pruned and told.

The study is a journal in the folder of the sweep. A parent that was killed leaves its trials as
running; the next one goes on with them. The sampler of a trial is seeded with (seed, number of the
trial): with one job at a time the same search proposes the same points, also where it was
interrupted, and a reopened study does not propose its first points again.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sftpipe.config.multirun import OURS, Multirun, Swept, read_swept
from sftpipe.errors import ConfigError, Problem, RunError, wrong_choice
from sftpipe.runs.folder import RunFolder
from sftpipe.storage import digest, writing
from sftpipe.sweeps.folder import DONE, FAILED, PRUNED, SweepFolder
from sftpipe.sweeps.metric import DIRECTIONS, check_reported, losses
from sftpipe.sweeps.processes import Pool, Running, Slot, Work, last_step
from sftpipe.sweeps.sweep import Job, Sweep

_STUDY = "sftpipe"
_SPACE, _SAME_AS, _METRIC = "space", "same_as", "metric"
_DUPLICATES = 200  # proposals of known points in a row that end a search
_STUCK = 3  # such proposals in a row, after which chance proposes
SAMPLERS = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "gp": "GPSampler",
    "cmaes": "CmaEsSampler",
    "qmc": "QMCSampler",
}
PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "hyperband": "HyperbandPruner",
    "successive_halving": "SuccessiveHalvingPruner",
}
# those that wait for some trials before they model anything, and for how many
_STARTING = ("tpe", "median", "percentile")


# --- before the first trial -----------------------------------------------------------------------


def check_space(multirun: Multirun) -> list[list[str]]:
    """Check a search as far as it can be known.

    Returns:
        The words of a job at each end and each choice of the space, for composing.

    Raises:
        ConfigError: Optuna is missing, or the space, a name or a number is not right.
    """
    keys = multirun.sweeper_keys
    problems = [*_missing(), *_check_keys(keys, multirun.launcher)]
    swept = multirun.swept
    if not swept:
        found = "hydra/sweeper=optuna, and nothing to search"
        allowed = "lora.r=choice(4,8) or sft.learning_rate=tag(log,interval(1e-5,1e-3))"
        problems.append(Problem("the search", found, allowed=allowed))
    for one in swept:
        if one.is_interval and not float(one.values[0]) < float(one.values[1]):
            problems.append(Problem(one.key, "an interval without inside", allowed="low, high"))
        elif one.is_interval and "log" in one.tags and float(one.values[0]) <= 0:
            problems.append(Problem(one.key, "a logarithmic interval that begins at 0 or below"))
    if problems:
        raise ConfigError(*problems)
    constants = [word for word in multirun.everything if word in multirun.constants]
    first = {one.key: one.values[0] for one in swept}
    points = [first, *({**first, one.key: value} for one in swept for value in one.values[1:])]
    return [[*constants, *(f"{key}={value}" for key, value in one.items())] for one in points]


def _missing() -> list[Problem]:
    try:
        import optuna  # noqa: F401
    except ImportError:
        fix = "`pip install 'sftpipe[optuna]'`"
        return [Problem("hydra/sweeper=optuna", "the package optuna is not installed", fix=fix)]
    return []


def _check_keys(keys: Mapping[str, Any], launcher: str | None) -> list[Problem]:
    problems = []
    for name, known in (("sampler", SAMPLERS), ("pruner", PRUNERS), ("direction", DIRECTIONS)):
        if keys[name] not in known:
            key = f"hydra.sweeper.{name}"
            problems.append(wrong_choice(key, keys[name], list(known), key))
    if keys["n_trials"] < 1:
        found, fix = str(keys["n_trials"]), "`hydra.sweeper.n_trials=20`"
        where = "hydra.sweeper.n_trials"
        problems.append(Problem(where, found, allowed="at least 1", fix=fix))
    if launcher not in OURS:
        found = f"{launcher}, which can neither prune nor resume a trial"
        problems.append(Problem("hydra/launcher", found, fix="`hydra/launcher=process`"))
    if keys["pruner"] != "none" and (keys["metric"] or keys["direction"] != DIRECTIONS[0]):
        found = f"{keys['pruner']}, which compares validation losses, and the metric is another"
        fix = "`hydra.sweeper.pruner=none`"
        problems.append(Problem("hydra.sweeper.pruner", found, fix=fix))
    return problems


# --- the search -----------------------------------------------------------------------------------


@dataclass
class Trial:
    """A trial whose process runs.

    number: Optuna's.
    reported: the steps whose loss it knows.
    """

    number: int
    handle: Any
    job: Job
    reported: set[int] = field(default_factory=set)


def search(sweep: Sweep, launcher: Any, words: Sequence[str], keys: Mapping[str, Any]) -> None:
    """Run trials until there are as many as asked for, or no further points.

    Args:
        sweep: whose lock the caller holds.
        launcher: `hydra/launcher=process` or `slurm`, which composes the trials.
        words: overrides, with those that are searched.
        keys: of `hydra.sweeper`.

    Raises:
        RunError: the folder holds a search of another space.
        Interrupted: a signal came; what ran has written a checkpoint.
    """
    with _quiet():
        _Search(sweep, launcher, words, keys).run()


class _Search:
    def __init__(
        self, sweep: Sweep, launcher: Any, words: Sequence[str], keys: Mapping[str, Any]
    ) -> None:
        self._sweep, self._launcher, self._keys = sweep, launcher, keys
        self._constants, self._swept = read_swept(words)
        self._study = _open_study(sweep.folder, keys, self._swept)
        self._space = {one.key: _distribution(one) for one in self._swept}
        self._trials: dict[str, Trial] = {}
        self._left = [trial for trial in self._study.trials if not trial.state.is_finished()]

    def run(self) -> None:
        """Run trials, several at a time."""
        pool = self._sweep.pool(self._launcher.n_jobs, self._keys["n_trials"])

        def ended(process: Running) -> None:
            trial = self._trials.pop(process.work.name)
            self._sweep.end(trial.job, process, stopped=pool.stopped is not None)
            self._tell(trial)

        def look(running: Sequence[Running]) -> None:
            self._sweep.look(running)
            for process in running:
                self._report(pool, process)

        with self._sweep.shown():
            pool.run(self._following, ended, look)
        self._sweep.raise_if_stopped(pool)

    def _following(self, slot: Slot) -> Work | None:
        """The next trial that has something to train."""
        while (proposed := self._left.pop(0) if self._left else self._propose()) is not None:
            try:
                composed = self._launcher.compose(self._words(proposed.params), proposed.number)
                job = self._sweep.job(composed, proposed.number)
            except ConfigError as error:
                self._sweep.refuse(self._words(proposed.params), error, proposed.number)
                self._finish(proposed.number, None, FAILED)
                continue
            handle = _handle(self._study, proposed)
            trial = Trial(proposed.number, handle, job, set(proposed.intermediate_values))
            work = self._sweep.begin(job, slot)
            if work is not None:
                self._trials[work.name] = trial
                return work
            self._tell(trial)
        return None

    def _words(self, params: Mapping[str, Any]) -> list[str]:
        return [*self._constants, *(f"{key}={value}" for key, value in params.items())]

    def _propose(self) -> Any:
        """A new point; None where there are enough, or no others."""
        for _ in range(_DUPLICATES):
            known = {_point(one.params): one for one in self._counted()}
            if len(known) >= min(self._keys["n_trials"], _points(self._swept)):
                return None
            number = len(self._study.trials)
            name = "random" if self._stuck() else self._keys["sampler"]
            self._study.sampler = _sampler(self._keys, name, number, self._launcher.n_jobs)
            trial = self._study.ask(self._space)
            same = known.get(_point(trial.params))
            if same is None:
                return self._study.trials[trial.number]
            trial.set_user_attr(_SAME_AS, same.number)  # it would tell what is known
            self._finish(trial.number, None, FAILED)
        return None

    def _stuck(self) -> bool:
        """True where the sampler has proposed known points several times in a row."""
        last = self._study.trials[-_STUCK:]
        return len(last) == _STUCK and all(_SAME_AS in one.user_attrs for one in last)

    def _counted(self) -> list[Any]:
        return [one for one in self._study.trials if _SAME_AS not in one.user_attrs]

    def _report(self, pool: Pool, process: Running) -> None:
        """Tell Optuna the new losses of a trial, and stop it where they are not worth going on."""
        trial = self._trials[process.work.name]
        if process.asked_to_stop or self._keys["pruner"] == "none":
            return
        for step, loss in losses(RunFolder(process.work.folder)):
            if step in trial.reported or not math.isfinite(loss):
                continue
            trial.reported.add(step)
            trial.handle.report(loss, step)
            at = last_step(process)
            is_last = at is not None and at[1] <= step
            if not is_last and trial.handle.should_prune():
                pool.stop(process)
                return

    def _tell(self, trial: Trial) -> None:
        outcome = self._sweep.outcome(trial.job)
        if outcome.state == DONE and math.isnan(outcome.value):  # no other trial will have it
            finished = [RunFolder(trial.job.folder)]
            check_reported(self._sweep.metric, finished, "hydra.sweeper.metric")
        self._finish(trial.number, outcome.value, outcome.state)

    def _finish(self, number: int, value: float | None, state: str) -> None:
        """What became of a trial; one that was stopped or killed stays, and is gone on with."""
        from optuna.trial import TrialState

        if state == DONE and value is not None and math.isfinite(value):
            self._study.tell(number, value)
        elif state == PRUNED:
            self._study.tell(number, state=TrialState.PRUNED)
        elif state in (DONE, FAILED):
            self._study.tell(number, state=TrialState.FAIL)


def _open_study(folder: SweepFolder, keys: Mapping[str, Any], swept: Sequence[Swept]) -> Any:
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    _mend(folder.journal)
    study = optuna.create_study(
        study_name=_STUDY,
        storage=JournalStorage(JournalFileBackend(str(folder.journal))),
        direction=keys["direction"],
        pruner=_pruner(keys),
        load_if_exists=True,
    )
    space: dict[str, Any] = {one.key: [*one.values, *sorted(one.tags)] for one in swept}
    space |= {f"hydra.sweeper.{name}": keys[name] for name in ("direction", _METRIC)}
    before: dict[str, Any] = study.user_attrs.get(_SPACE, space)
    measured = any(one.value is not None for one in study.trials if one.state.is_finished())
    changed = [
        f"{key} was {before.get(key)} and is {space.get(key)}"
        for key in {**before, **space}
        if before.get(key) != space.get(key) and (measured or not key.endswith(_METRIC))
    ]
    study.set_user_attr(_SPACE, before if changed else space)
    if changed:
        found = f"a search of another space: {'; '.join(changed)}"
        fix = "the space as it was, or another folder: hydra.sweep.dir=DIR"
        raise RunError(Problem(str(folder.path), found, fix=fix))
    return study


def _mend(journal: Path) -> None:
    """Remove what a killed parent has left: its lock, and half a line (ours is held)."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.is_file() and not (content := journal.read_bytes()).endswith(b"\n"):
        with writing(journal):
            os.truncate(journal, content.rfind(b"\n") + 1)


def importances(folder: SweepFolder) -> dict[str, float]:
    """{key: share of the metric's variance that it explains}; {} with too few trials.

    By fANOVA (Hutter et al. 2014), which tells more of few trials than Optuna's default does.

    Raises:
        ImportError: Optuna or scikit-learn is not installed.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    if not folder.journal.is_file():
        return {}
    with _quiet():
        storage = JournalStorage(JournalFileBackend(str(folder.journal)))
        study = optuna.load_study(study_name=_STUDY, storage=storage)
        try:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (ValueError, RuntimeError):
            return {}
    return {key: float(value) for key, value in found.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna without its log, and without its remarks on what is experimental."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _arguments(keys: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The user's arguments of a sampler or pruner, and how many trials it waits for."""
    waits = keys[what] in _STARTING
    few = {"n_startup_trials": min(10, max(2, keys["n_trials"] // 4))} if waits else {}
    percentile = {"percentile": 50.0} if keys[what] == "percentile" else {}
    return {**few, **percentile, **keys[f"{what}_args"]}


def _made(module: Any, name: str, where: str, arguments: Mapping[str, Any]) -> Any:
    try:
        return getattr(module, name)(**arguments)
    except (TypeError, ValueError, ImportError) as error:
        found = f"Optuna refuses {dict(arguments)}: {error}"
        fix = f"see optuna's {name}"
        raise ConfigError(Problem(f"hydra.sweeper.{where}_args", found, fix=fix)) from None


def _sampler(keys: Mapping[str, Any], name: str, number: int, jobs: int) -> Any:
    import optuna

    seed = int(digest(keys["seed"], number)[:8], 16)
    liar = {"constant_liar": True} if name == "tpe" and jobs > 1 else {}
    own = _arguments(keys, "sampler") if name == keys["sampler"] else {}
    arguments = {"seed": seed, **liar, **own}
    return _made(optuna.samplers, SAMPLERS[name], "sampler", arguments)


def _pruner(keys: Mapping[str, Any]) -> Any:
    import optuna

    return _made(optuna.pruners, PRUNERS[keys["pruner"]], "pruner", _arguments(keys, "pruner"))


def _distribution(one: Swept) -> Any:
    from optuna import distributions

    if not one.is_interval:
        return distributions.CategoricalDistribution(list(one.values))
    low, high = one.values
    is_log = "log" in one.tags
    if one.is_whole:
        return distributions.IntDistribution(int(low), int(high), log=is_log)
    return distributions.FloatDistribution(float(low), float(high), log=is_log)


def _handle(study: Any, frozen: Any) -> Any:
    """Optuna's handle of a trial, of this process or of one before."""
    import optuna

    return optuna.trial.Trial(study, frozen._trial_id)


def _point(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


def _points(swept: Sequence[Swept]) -> float:
    """How many points a space has."""
    return math.prod(math.inf if one.is_interval else len(set(one.values)) for one in swept)
