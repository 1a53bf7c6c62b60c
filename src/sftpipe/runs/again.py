"""`sftpipe train --from DIR`: the recorded config of a run once more, in a folder of its own."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftpipe.config.hydra import from_recorded, values_of
from sftpipe.config.options import groups
from sftpipe.config.schema import TrainConfig
from sftpipe.errors import ConfigError, Problem, RunError, in_shell
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.plan import RunPlan, plan_run

FLAG = "--from"
_RESUME = "sft.resume_from_checkpoint"
_MULTIRUN = ("-m", "--multirun")


def plan_again(
    folder: str, words: Sequence[str], flags: Sequence[str] = ()
) -> tuple[TrainConfig, RunPlan]:
    """The config and the plan of a run that repeats another.

    Args:
        folder: a run, finished or not.
        words: overrides of its keys; `run` names the new folder.
        flags: others of the command line, which do not go together with this one.

    Raises:
        ConfigError: a flag or a word has no meaning here, the recorded config holds what this
            version does not know, or a value is not allowed.
        RunError: the folder is no run or damaged, or the new folder cannot be written to.
    """
    path = Path(folder).expanduser()
    _check_run(path)
    if problems := [*_wrong_flags(path, flags), *_wrong_words(path, words)]:
        raise ConfigError(*problems)
    files, values = RunFolder(path), values_of(words)
    cfg = from_recorded(as_begun(files.read_config()), str(files.config), values)
    _check_new_folder(path, cfg.run)
    return cfg, replace(plan_run(cfg), repeats=path)


def as_begun(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded config without where it wrote and from where it went on."""
    sft = tree.get("sft")
    sft = {**sft, "resume_from_checkpoint": None} if isinstance(sft, Mapping) else sft
    return {**tree, "run": None, "sft": sft}


def _check_run(path: Path) -> None:
    """The folder is a run, or the error says which one was meant."""
    files = RunFolder(path)
    if files.manifest.is_file():
        files.read_manifest()
        return
    if not path.exists():
        raise RunError(Problem(FLAG, f"no folder {path}", allowed="a run folder"))
    jobs = files.runs()
    above = path.absolute().parent  # of a checkpoint, or of a file of the run
    if path.is_dir() and jobs:
        found = f"{path} is a sweep, with the runs {', '.join(job.name for job in jobs)}"
        raise RunError(Problem(FLAG, found, fix=f"`{_command(jobs[0])}`"))
    found = f"{path} holds no readable {files.manifest.name}: not a run of sftpipe"
    is_inside = RunFolder(above).manifest.is_file()
    fix = f"`{_command(path.parent)}`" if is_inside else "name a run folder"
    raise RunError(Problem(FLAG, found, fix=fix))


def _wrong_flags(path: Path, flags: Sequence[str]) -> Iterator[Problem]:
    if not flags:
        return
    if flags[0] in _MULTIRUN:
        found = f"a sweep composes a config for each job, and {FLAG} takes a recorded one"
        fix = f"leave it out: `{_command(path)}`, a command for each value of a key"
    else:
        found = f"it shows what Hydra composes, and {FLAG} takes a recorded config"
        fix = f"leave it out; the config is in {RunFolder(path).config}"
    yield Problem(flags[0], found, fix=fix)


def _wrong_words(path: Path, words: Sequence[str]) -> Iterator[Problem]:
    """Words that mean something where Hydra composes a config, and nothing to a recorded one."""
    options = groups()
    for word in words:
        key, equals, value = word.partition("=")
        name, where = key.lstrip("+~"), f"{word} (command line)"
        if name.partition("@")[0] in options:
            found = f"a choice of options, and {FLAG} takes a recorded config, which has keys"
            is_known = equals and value in options.get(name, ())
            shown = f"`sftpipe config {name}={value}` shows those of the option" * bool(is_known)
            fix = f"change keys, such as {name}.KEY=VALUE; {shown}".rstrip("; ")
            if name == "recipe":
                fix = f"change keys; {shown}".rstrip("; ")
            yield Problem(where, found, fix=fix)
        elif key.startswith("~"):
            found = f"{FLAG} takes a recorded config, in which each key has a value"
            yield Problem(where, found, fix=f"give it another one: {name}=VALUE")
        elif name == _RESUME and value != "null":
            found = f"{FLAG} begins a run at its first step"
            named = next((one for one in words if one.startswith("run=")), f"run={path}")
            fix = f"leave it out; without {FLAG}, `{_goes_on(named)}` goes on with that run"
            yield Problem(where, found, fix=fix)


def _check_new_folder(path: Path, named: str | None) -> None:
    """A repeated run is a new one: in no folder of another, and not in that which it repeats."""
    if named is None:
        return
    where, files = f"run={named}", RunFolder(Path(named))
    if files.path.resolve() == path.resolve():
        found = f"the run that {FLAG} repeats, which stays as it is"
        raise RunError(Problem(where, found, fix="leave run out, or name a new folder"))
    if files.manifest.is_file() and not files.complete.is_file():
        fix = f"`{_goes_on(where)}` goes on with it; or name a new folder"
        raise RunError(Problem(where, "an unfinished run", fix=fix))


def _command(path: Path) -> str:
    return f"sftpipe train {FLAG} {shlex.quote(str(path))}"


def _goes_on(named: str) -> str:
    """The command that goes on with the run of a word `run=DIR`, by its own config."""
    return f"sftpipe train {in_shell(named)} {_RESUME}=auto"
