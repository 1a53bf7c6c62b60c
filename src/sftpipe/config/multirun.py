"""Hydra's multirun: what a sweep is made of, its jobs, and the composing of each.

Values are forced in (`++`, see `hydra_overrides`) so that a key that conf/ does not hold reaches
our own check. Sweepers, launchers and callbacks see the names as a user types them: `SweepLoader`
forces when it composes, and strips what it shows.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sftpipe.config.hydra import (
    BAD_YAML,
    SWEEP_DIR,
    ComposedRun,
    from_composed,
    hydra_of_conf,
    hydra_overrides,
    leaves_of,
    literal,
    not_composed,
    origin_of,
    parse_overrides,
)
from sftpipe.config.options import conf_dir, groups
from sftpipe.config.schema import TrainConfig
from sftpipe.errors import ConfigError, Problem, nearest, one_line, override

BASIC, SEARCH, PROCESS, SLURM = "basic", "optuna", "process", "slurm"
OURS = (PROCESS, SLURM)  # launchers that prune and go on
# keys that submitit has, and a sweep cannot have
_SEVERAL_TASKS = ("hydra.launcher.nodes", "hydra.launcher.tasks_per_node")


@dataclass(frozen=True)
class Swept:
    """A key that a sweep varies.

    values: its choices, in Hydra's syntax; the two ends of an interval.
    tags: what `tag(...)` says, such as `log`.
    """

    key: str
    values: tuple[str, ...]
    is_interval: bool = False
    is_whole: bool = False
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Multirun:
    """A sweep, as words and recipe ask for it.

    words: of the command line, less those of Hydra itself; a glob as the options that it means.
    settings: those of Hydra itself.
    params: {key: values} of `hydra.sweeper.params`, less the keys that are in `words`.
    sweeper, launcher: the chosen options of Hydra's groups; None for a plugin without a name.
    sweeper_keys, launcher_keys: their keys.
    directory: the folder of the sweep; None where nobody names it.
    """

    words: tuple[str, ...]
    settings: tuple[str, ...]
    params: dict[str, str]
    sweeper: str | None
    launcher: str | None
    sweeper_keys: dict[str, Any] = field(repr=False)
    launcher_keys: dict[str, Any] = field(repr=False)
    directory: Path | None
    loader: SweepLoader = field(repr=False, compare=False)

    def check(self, jobs: Sequence[Sequence[str]]) -> list[TrainConfig]:
        """The config of each job, or one error with every distinct problem.

        Raises:
            ConfigError: problems of any job.
        """
        configs, problems = [], dict[Problem, None]()
        with hydra_of_conf():
            for words in jobs:
                try:
                    configs.append(self.loader.check(self.settings, words).config)
                except ConfigError as error:
                    problems |= dict.fromkeys(error.problems)
        if problems:
            raise ConfigError(*problems)
        return configs

    @property
    def everything(self) -> list[str]:
        """The parameters and the words, as a sweeper reads them."""
        return [*(f"{key}={values}" for key, values in self.params.items()), *self.words]

    @property
    def constants(self) -> set[str]:
        """The words that are the same for all jobs."""
        return set(read_swept(self.everything)[0])

    @property
    def swept(self) -> list[Swept]:
        """What varies, in order."""
        return read_swept(self.everything)[1]


def compose_multirun(words: Sequence[str]) -> Multirun:
    """What Hydra composes for the sweep as a whole.

    Args:
        words: the overrides of the command line.

    Raises:
        ConfigError: a word cannot be read or chooses what does not exist, or Hydra cannot compose
            its own settings.
    """
    parsed, problems = parse_overrides(words, sweeping=True)
    with hydra_of_conf():
        loader = SweepLoader()
        problems += _no_plugins(parsed, loader)
        try:
            composed = loader.load_configuration(
                "config", hydra_overrides(parsed), run_mode=RunMode.MULTIRUN
            )
            directory = OmegaConf.select(composed, SWEEP_DIR)
            params = leaves_of(OmegaConf.select(composed, "hydra.sweeper.params"))
        except BAD_YAML as error:
            found = problems or _wrong_keys(parsed, loader) or [not_composed(error, parsed)]
            raise ConfigError(*found) from None
    given = {str(one.key_or_group) for one in parsed}
    if problems:
        raise ConfigError(*problems)
    choices, lines = composed.hydra.runtime.choices, [str(one.input_line) for one in parsed]
    own = [line for line, one in zip(lines, parsed, strict=True) if one.is_hydra_override()]
    return Multirun(
        words=tuple(_shown(line) for line in lines if line not in own),
        settings=tuple(own),
        params={key: str(values) for key, values in params if key not in given},
        sweeper=choices.get("hydra/sweeper"),
        launcher=choices.get("hydra/launcher"),
        sweeper_keys=_plain(composed.hydra.sweeper),
        launcher_keys=_plain(composed.hydra.launcher),
        directory=None if directory == "auto" else Path(str(directory)),
        loader=loader,
    )


def _no_plugins(parsed: Sequence[Override], loader: ConfigLoader) -> list[Problem]:
    """The sweepers and launchers of the command line that are not installed."""
    problems = []
    for one in parsed:
        group = str(one.key_or_group)
        if group not in ("hydra/sweeper", "hydra/launcher"):
            continue
        known = sorted(loader.get_group_options(group))
        if one.value() not in known:
            name, what = str(one.value()), group.rpartition("/")[2]
            fix = override(group, nearest(name, known) or known[-1])
            where = f"{group}={name} (command line)"
            found = f"no such {what} is installed"
            problems.append(Problem(where, found, allowed=", ".join(known), fix=fix))
    return problems


def _wrong_keys(parsed: Sequence[Override], loader: ConfigLoader) -> list[Problem]:
    """The keys of a sweeper or a launcher that it does not have, or whose values it does not take.

    Hydra names neither what is allowed nor what is wrong with a value.
    """
    groups_of_keys = ("hydra.launcher.", "hydra.sweeper.")
    own = [one for one in parsed if str(one.key_or_group).startswith(groups_of_keys)]
    others = [one for one in parsed if one not in own]
    try:
        composed = loader.load_configuration("config", hydra_overrides(others), RunMode.MULTIRUN)
    except BAD_YAML:
        return []  # they are not to blame
    problems = []
    for one in own:
        key = str(one.key_or_group)
        parent, _, name = key.rpartition(".")
        known = sorted(map(str, OmegaConf.select(composed, parent, default=None) or ()))
        known = [name for name in known if name != "_target_"]
        where = f"{key} (command line)"
        if known and name not in known and not one.is_add():
            problems.append(_no_key(where, key, known, str(one.get_value_element_as_str())))
            continue
        try:
            OmegaConf.update(composed, key, one.value(), force_add=True)
        except OmegaConfBaseException as error:
            problems.append(Problem(where, one_line(str(error).partition("\n")[0])))
    return problems


def _no_key(where: str, key: str, known: Sequence[str], value: str) -> Problem:
    if key in _SEVERAL_TASKS:
        found = "no such key: a job of a sweep is one task on one machine"
        return Problem(where, found, fix="docs/cluster.md has a job of several machines")
    parent, _, name = key.rpartition(".")
    match = nearest(name, known)
    fix = override(f"{parent}.{match}", value) if match else ""
    return Problem(where, "no such key", allowed=", ".join(known), fix=fix)


def _plain(node: Any) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(node, resolve=False, throw_on_missing=False)
    return dict(found or {})


def _shown(word: str) -> str:
    """A word as a user types it: without the marks of forcing."""
    return word.lstrip("+")


def _given(one: Override) -> str:
    """A word that gives one value, written as sweepers write it."""
    if one.is_delete():
        return str(one.input_line)
    return _shown(f"{one.get_key_element()}={one.get_value_element_as_str()}")


def _parse(words: Sequence[str]) -> list[Override]:
    """Overrides; raises a `ConfigError` for what cannot be read."""
    parsed, problems = parse_overrides(words)
    if problems:
        raise ConfigError(*problems)
    return parsed


def read_swept(words: Sequence[str]) -> tuple[list[str], list[Swept]]:
    """(the words that give one value, what varies) of words as a sweeper gets them."""
    parsed = _parse(words)
    constants = [_given(one) for one in parsed if not one.is_sweep_override()]
    return constants, [_swept(one) for one in parsed if one.is_sweep_override()]


def _swept(one: Override) -> Swept:
    value: Any = one._value
    key, tags = str(one.key_or_group), frozenset(getattr(value, "tags", ()))
    if isinstance(value, IntervalSweep):
        ends = (str(value.start), str(value.end))
        whole = all(isinstance(end, int) for end in (value.start, value.end))
        return Swept(key, ends, is_interval=True, is_whole=whole, tags=tags)
    return Swept(key, tuple(one.sweep_string_iterator()), tags=tags)


def grid(words: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a grid.

    They come in Hydra's order: the last swept key varies fastest.

    Raises:
        ConfigError: an override cannot be parsed, chooses an unknown option, or is no list of
            values.
    """
    parsed, problems = parse_overrides(words)
    lists: list[list[str]] = []
    for one in parsed:
        if isinstance(one._value, IntervalSweep):
            problems.append(_no_grid(one))
        elif one.is_sweep_override():
            values = one.sweep_string_iterator()
            lists.append([_shown(f"{one.get_key_element()}={value}") for value in values])
        else:
            lists.append([_given(one)])
    if problems:
        raise ConfigError(*problems)
    return [list(job) for job in itertools.product(*lists)]


def _no_grid(one: Override) -> Problem:
    allowed = "values with commas between them, range(start,stop), choice(a,b) or glob(pattern)"
    fix = "`hydra/sweeper=optuna` searches an interval"
    return Problem(str(one.input_line), "no list of values", allowed=allowed, fix=fix)


Place = Callable[[ComposedRun, Sequence[str]], str]


class SweepLoader(ConfigLoaderImpl):
    """Composes the jobs of a sweep, whatever the sweeper and the launcher.

    What it has composed it remembers: a job is composed to check it before the sweep begins, by a
    sweeper, and by a launcher.
    """

    def __init__(self) -> None:
        super().__init__(create_config_search_path(str(conf_dir())))
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._place: Place | None = None

    def use(self, place: Place) -> None:
        """From now on, a job's folder has the name that `place` gives it."""
        self._place = place

    def check(self, settings: Sequence[str], words: Sequence[str]) -> ComposedRun:
        """Compose and check a job before the sweep has a folder.

        Args:
            settings: overrides of Hydra itself.
            words: overrides of the job.

        Raises:
            ConfigError: holds every problem of the job's config.
        """
        parsed, problems = parse_overrides(words)
        try:
            overrides = [*settings, *(str(one.input_line) for one in parsed)]
            composed = self.load_configuration("config", overrides, RunMode.RUN)
        except BAD_YAML as error:
            raise ConfigError(*problems, not_composed(error, parsed)) from None
        run = job_of(composed, problems)
        self._composed[tuple(words)] = composed
        return run

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose with forced values, and record them as they were typed."""
        forced = hydra_overrides(OverridesParser.create(self).parse_overrides(list(overrides)))
        composed = super().load_configuration(
            config_name, forced, run_mode, from_shell, validate_sweep_overrides
        )
        task = composed.hydra.overrides.task
        composed.hydra.overrides.task = [_shown(str(word)) for word in task]
        return composed

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """The config of a job, with the folder that it trains in.

        Raises:
            ConfigError: holds every problem of the job's config.
        """
        key, settings = tuple(sweep_overrides), master_config.hydra
        if key not in self._composed:
            composed = super().load_sweep_config(master_config, list(sweep_overrides))
            self._composed[key] = composed
        found = copy.deepcopy(self._composed[key])
        with open_dict(found.hydra):
            found.hydra.sweep.dir = settings.sweep.dir
            found.hydra.overrides.hydra = copy.deepcopy(settings.overrides.hydra)
            assert self._place is not None
            found.hydra.sweep.subdir = self._place(job_of(found), words_of(found))
        OmegaConf.copy_cache(from_config=master_config, to_config=found)
        return found


def words_of(composed: DictConfig) -> list[str]:
    """The overrides of a job, as a user types them."""
    return [str(word) for word in composed.hydra.overrides.task]


def folder_of(composed: DictConfig) -> Path:
    """The run folder of a job."""
    return Path(str(composed.hydra.sweep.dir), str(composed.hydra.sweep.subdir))


def environment_of(composed: DictConfig) -> dict[str, str]:
    """`hydra.job.env_set` of a job."""
    found: Any = OmegaConf.to_container(composed.hydra.job.env_set, resolve=True)
    return {str(name): str(value) for name, value in found.items()}


def job_of(composed: DictConfig, problems: Sequence[Problem] = ()) -> ComposedRun:
    """A job that Hydra composed, checked.

    Args:
        composed: from `SweepLoader`.
        problems: what was found before.

    Raises:
        ConfigError: holds every problem of its config.
    """
    parsed, _ = parse_overrides(words_of(composed))
    origin = origin_of(composed.hydra.runtime.choices, parsed, groups())
    return ComposedRun(from_composed(composed, origin, parsed, problems), composed)


def job_here(task: DictConfig) -> DictConfig:
    """What Hydra composed for the job whose task function runs now, with Hydra's own part."""
    composed = copy.deepcopy(task)
    OmegaConf.set_struct(composed, False)
    with open_dict(composed):
        composed.hydra = copy.deepcopy(HydraConfig.get())
    OmegaConf.set_readonly(composed.hydra, False)
    return composed


def run_multirun(
    multirun: Multirun,
    directory: Path,
    task: Callable[[DictConfig], Any],
    place: Place,
) -> None:
    """Let Hydra's sweeper make the jobs, and its launcher run them.

    Args:
        multirun: of `compose_multirun`.
        directory: the folder of the sweep.
        task: called by launchers with the config of a job; ours know it.
        place: as of `SweepLoader.use`.

    Raises:
        SftpipeError: what `task` or `place` raise.
        ConfigError: Hydra, its sweeper or its launcher refuse the sweep.
    """
    words = [*multirun.settings, *multirun.words]
    words = [word for word in words if not _shown(word).startswith(f"{SWEEP_DIR}=")]
    with hydra_of_conf():
        GlobalHydra.instance().clear()
        multirun.loader.use(place)
        hydra = Hydra(JobRuntime.instance().get("name"), multirun.loader)
        GlobalHydra.instance().initialize(hydra)
        try:
            hydra.multirun("config", task, [*words, literal(SWEEP_DIR, directory)])
        except (HydraException, OmegaConfBaseException) as error:
            found = f"Hydra, its sweeper or its launcher refuses it: {one_line(error)}"
            raise ConfigError(Problem("the sweep", found, fix="another value or plugin")) from None
