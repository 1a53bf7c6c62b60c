"""Which folder a run writes to or goes on in, and from which checkpoint."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from sftpipe.config.schema import TrainConfig
from sftpipe.errors import Problem, RunError, in_shell, override
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.lock import holder
from sftpipe.runs.resumable import check_checkpoint, newest_checkpoint
from sftpipe.runs.same_run import LONGER, Difference, differences
from sftpipe.storage import is_whole

# what a run that ended before its manifest leaves in its folder; nothing of it is worth keeping
_FILES = RunFolder(Path())
_WRITTEN_FIRST = (
    _FILES.planned.name,
    _FILES.config.name,
    _FILES.preflight.name,
    _FILES.prompts.name,
)
_BEFORE_THE_MANIFEST = {
    _FILES.lock.name,
    _FILES.hydra.name,
    *_WRITTEN_FIRST,
    *(f".{name}.partial" for name in (*_WRITTEN_FIRST, _FILES.manifest.name)),
}
_RESUME = "sft.resume_from_checkpoint"
_AUTO = f"{_RESUME}=auto"
_NEAR = 3  # keys in which a run may differ, and still be named as the one that was perhaps meant


@dataclass(frozen=True)
class RunPlan:
    """Where a run writes, and where it begins.

    folder: the run folder.
    attempt: 1 for a new run; later starts keep their own records in attempts/<n>/.
    checkpoint: a whole checkpoint to go on from; None begins at the first step.
    complete: the run is finished, and there is nothing to do.
    said: what was found and is done, in lines for people; "" where nothing was looked for.
    repeats: the run whose config this one takes, to compute as that one did; None for most.
    """

    folder: Path
    attempt: int = 1
    checkpoint: Path | None = None
    complete: bool = False
    said: str = field(default="", compare=False)
    repeats: Path | None = None

    @property
    def like(self) -> RunFolder:
        """The run that this start computes like: that which it repeats, or its own first start."""
        return RunFolder(self.repeats or self.folder)

    @property
    def day(self) -> datetime.date:
        """When the run began, which chat templates may write into their texts."""
        return self.like.began() or datetime.date.today()

    @property
    def records(self) -> Path:
        """Folder of this attempt's `.hydra` and manifest."""
        return RunFolder(self.folder).attempt(self.attempt).path


def check_still_true(plan: RunPlan) -> None:
    """A plan is made before the lock is held; another start may have come first.

    Raises:
        RunError: the folder holds what it did not hold then.
    """
    files = RunFolder(plan.folder)
    begun = files.manifest.is_file() and files.attempts() >= plan.attempt
    if files.complete.is_file() or begun:
        found = "another process has trained here since this one looked"
        raise RunError(Problem(str(plan.folder), found, fix="the same command again looks anew"))


def stamp() -> str:
    """`<date>_<time>_<4 hex>`: sorts by time, and two starts in one second differ."""
    return f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(2)}"


def plan_run(cfg: TrainConfig) -> RunPlan:
    """Choose the run folder and the checkpoint.

    The keys are `run`, `output_dir` and `sft.resume_from_checkpoint`.

    Raises:
        RunError: the folder is finished, in use or not ours, or the checkpoint is missing, damaged
            or of another run.
    """
    resume = cfg.sft.get("resume_from_checkpoint")
    if resume is None:
        return RunPlan(_free_folder(cfg))
    if resume != "auto":
        return _plan_from(cfg, Path(str(resume)), _RESUME)
    return _plan_auto(cfg) if cfg.run is None else _plan_auto_in(cfg, Path(cfg.run))


def _plan_from(cfg: TrainConfig, path: Path, where: str) -> RunPlan:
    """Go on from a run folder, or from one checkpoint of it."""
    is_checkpoint = path.name.startswith("checkpoint-")
    folder = path.parent if is_checkpoint else path
    if not path.is_dir():
        allowed = "auto, a run folder, or a checkpoint-N in one"
        raise RunError(Problem(where, f"no folder {path}", allowed=allowed))
    if cfg.run is not None and Path(cfg.run).resolve() != folder.resolve():
        raise RunError(Problem(where, f"{path} is not in run={cfg.run}", fix="leave run out"))
    _check_same_run(cfg, folder, where)
    if RunFolder(folder).complete.exists():
        fix = f"leave it out to start a new run{_train_further(cfg, folder)}"
        raise RunError(Problem(where, f"{folder} is finished", fix=fix))
    if is_checkpoint and not is_whole(path):
        found = f"{path} is damaged: its files are not those that were hashed"
        fix = f"{override(where, str(folder))} takes the newest whole one"
        raise RunError(Problem(where, found, fix=fix))
    if not is_checkpoint and newest_checkpoint(folder) is None:
        words = f"{override('run', str(folder)).strip('`')} {_AUTO}"
        fix = f"`{words}` begins it at its first step"
        raise RunError(Problem(where, f"{folder} holds no whole checkpoint", fix=fix))
    return _go_on(cfg, folder, path if is_checkpoint else None)


def _plan_auto_in(cfg: TrainConfig, folder: Path) -> RunPlan:
    """Go on in a named folder, or begin there."""
    files = RunFolder(folder)
    if not files.manifest.exists():
        _check_no_sweep(folder)
        return RunPlan(_free_folder(cfg), said=f"{folder} holds no run; a new one begins there")
    _check_same_run(cfg, folder, "run")
    if files.complete.exists():
        return RunPlan(folder, complete=True, said=f"{folder} is complete; there is nothing to do")
    return _go_on(cfg, folder)


def _plan_auto(cfg: TrainConfig) -> RunPlan:
    """Go on with the newest unfinished run of the config, or begin a new one."""
    passed_over: list[str] = []
    near: list[tuple[Path, list[Difference]]] = []
    finished = 0
    for folder in _runs_of(cfg):
        try:
            differ = differences(RunFolder(folder), cfg)
        except RunError as error:
            passed_over.append(f"passed over: {error.problems[0].where}: {error.problems[0].found}")
            continue
        if RunFolder(folder).complete.exists():
            finished += not differ
        elif differ:
            near += [(folder, differ)] if len(differ) <= _NEAR else []
        elif busy := holder(folder):
            passed_over.append(f"passed over: {busy.where}: {busy.found}")
        else:
            plan = _go_on(cfg, folder)
            return replace(plan, said="\n".join([*passed_over, plan.said]))
    there = f"of this config in {_runs_folder(cfg)}"
    found = f"no unfinished run {there}" if not finished else f"every run {there} is complete"
    lines = [*passed_over, f"{found}; a new one begins", *_nearly(near)]
    return RunPlan(_free_folder(cfg), said="\n".join(lines))


def _nearly(near: list[tuple[Path, list[Difference]]]) -> Iterator[str]:
    """The one unfinished run that differs in few keys, and how to go on with it."""
    if len(near) == 1:
        folder, differ = near[0]
        command = f"sftpipe train {in_shell(f'run={folder}')} {_AUTO}"
        yield f"unfinished, and of another config: {folder}: {'; '.join(map(str, differ))}"
        yield f"to go on with that one: {command}"


def _go_on(cfg: TrainConfig, folder: Path, checkpoint: Path | None = None) -> RunPlan:
    """The plan of an unfinished run of this config."""
    if busy := holder(folder):
        raise RunError(busy)
    checkpoint = checkpoint or newest_checkpoint(folder)
    if checkpoint is None:
        begins = "from its first step: it has no whole checkpoint"
    else:
        check_checkpoint(cfg, checkpoint)
        begins = f"from step {checkpoint.name.split('-')[1]}"
    attempt = RunFolder(folder).attempts() + 1
    return RunPlan(folder, attempt, checkpoint, said=f"{folder} goes on {begins}")


def _runs_folder(cfg: TrainConfig) -> Path:
    return Path(cfg.output_dir) / (cfg.recipe or "custom")


def _runs_of(cfg: TrainConfig) -> list[Path]:
    """The runs of a recipe, the newest first; a job of a sweep goes on where `run` names it."""
    return RunFolder(_runs_folder(cfg)).runs()[::-1]


def _free_folder(cfg: TrainConfig) -> Path:
    folder = Path(cfg.run) if cfg.run is not None else _runs_folder(cfg) / stamp()
    where = f"run={folder}"
    if RunFolder(folder).complete.exists():
        fix = "leave run out, or name a new folder"
        raise RunError(Problem(where, "a finished run, which is never overwritten", fix=fix))
    if busy := holder(folder):
        raise RunError(busy)
    if RunFolder(folder).manifest.exists():
        fix = f"`{_AUTO}` goes on with it; or name a new folder"
        raise RunError(Problem(where, "an unfinished run", fix=fix))
    if folder.exists() and not _is_free(folder):
        raise RunError(Problem(where, "it holds something that is no run", fix="name a new folder"))
    return folder


def _is_free(folder: Path) -> bool:
    """True for an empty folder, and for one whose run ended before its manifest was written."""
    if not folder.is_dir():
        return False
    return all(path.name in _BEFORE_THE_MANIFEST for path in folder.iterdir())


def _check_no_sweep(folder: Path) -> None:
    """A sweep has a run folder for each job."""
    jobs = RunFolder(folder).runs()
    if not jobs:
        return
    unfinished = [job for job in jobs if not RunFolder(job).complete.exists()]
    named = unfinished[0] if unfinished else jobs[0]
    found = f"a sweep, with the runs {', '.join(job.name for job in jobs)}"
    done = "" if unfinished else "; all of them are complete"
    raise RunError(Problem(f"run={folder}", f"{found}{done}", fix=override("run", str(named))))


def _check_same_run(cfg: TrainConfig, folder: Path, where: str) -> None:
    changed = differences(RunFolder(folder), cfg)
    if not changed:
        return
    found = f"{folder} is a run of another config: {'; '.join(map(str, changed))}"
    typed = " ".join(one.typed.strip("`") for one in changed if one.typed)
    as_before = f"`{typed}` as it was" if typed else "the same config"
    fix = f"{as_before}; or start a new run, without {_RESUME}"
    if any(one.key in LONGER for one in changed):
        fix += _train_further(cfg, folder)
    raise RunError(Problem(where, found, fix=fix))


def _train_further(cfg: TrainConfig, folder: Path) -> str:
    """How what is trained is trained on, as a run of its own."""
    if cfg.lora:
        return (
            f"; {override('lora.init_from', str(folder))} trains its adapter further, in a new run"
        )
    further = override("model.name_or_path", str(folder))
    return f"; {further} trains its model further, in a new run"
