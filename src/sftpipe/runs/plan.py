"""Which folder a run writes to or goes on in, and what makes two runs the same."""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sftpipe.config.schema import TrainConfig, to_plain
from sftpipe.data.source import fingerprint
from sftpipe.errors import Problem, RunError, override
from sftpipe.runs.folder import RunFolder
from sftpipe.storage import is_whole, sha256_text

# what a run that ended before its manifest leaves in its folder; nothing of it is worth keeping
_FILES = RunFolder(Path())
_WRITTEN_FIRST = (_FILES.config.name, _FILES.preflight.name, _FILES.prompts.name)
_BEFORE_THE_MANIFEST = {
    _FILES.hydra.name,
    *_WRITTEN_FIRST,
    *(f".{name}.partial" for name in (*_WRITTEN_FIRST, _FILES.manifest.name)),
}


@dataclass(frozen=True)
class RunPlan:
    """Where a run writes, and where it begins.

    folder: the run folder.
    attempt: 1 for a new run; later starts keep their own records in attempts/<n>/.
    checkpoint: a whole checkpoint to go on from; None begins at the first step.
    complete: the run is finished, and there is nothing to do.
    """

    folder: Path
    attempt: int = 1
    checkpoint: Path | None = None
    complete: bool = False

    @property
    def day(self) -> datetime.date:
        """When the run began, which chat templates may write into their texts."""
        return RunFolder(self.folder).began() or datetime.date.today()

    @property
    def records(self) -> Path:
        """Folder of this attempt's `.hydra` and manifest."""
        return RunFolder(self.folder).attempt(self.attempt).path


def stamp() -> str:
    """`<date>_<time>_<4 hex>`: sorts by time, and two starts in one second differ."""
    return f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(2)}"


def plan_run(cfg: TrainConfig) -> RunPlan:
    """Choose the run folder and the checkpoint.

    The keys are `run`, `output_dir` and `sft.resume_from_checkpoint`.

    Raises:
        RunError: the folder is finished or not ours, or the checkpoint is missing, damaged or of
            another run.
    """
    resume = cfg.sft.get("resume_from_checkpoint")
    if resume is None:
        return RunPlan(_free_folder(cfg))
    if resume == "auto":
        return _plan_auto(cfg)
    return _plan_from(cfg, Path(str(resume)), "sft.resume_from_checkpoint")


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
        fix = "leave it out to start a new run"
        raise RunError(Problem(where, f"{folder} is finished", fix=fix))
    checkpoint = path if is_checkpoint else newest_checkpoint(folder)
    if checkpoint is None:
        fix = f"`{where}=auto` begins such a run at its first step"
        raise RunError(Problem(where, f"{folder} holds no whole checkpoint", fix=fix))
    if is_checkpoint and not is_whole(checkpoint):
        found = f"{checkpoint} is damaged: its files are not those that were hashed"
        fix = f"{override(where, str(folder))} takes the newest whole one"
        raise RunError(Problem(where, found, fix=fix))
    return RunPlan(folder, _next_attempt(folder), checkpoint)


def _plan_auto(cfg: TrainConfig) -> RunPlan:
    if cfg.run is not None:
        folder = Path(cfg.run)
        if not RunFolder(folder).manifest.exists():
            return RunPlan(_free_folder(cfg))
        _check_same_run(cfg, folder, "run")
        if RunFolder(folder).complete.exists():
            return RunPlan(folder, complete=True)
        return RunPlan(folder, _next_attempt(folder), newest_checkpoint(folder))
    key = run_key(cfg)
    manifests = _runs_of(cfg).glob(f"*/{_FILES.manifest.name}")
    runs = sorted((path.parent for path in manifests), reverse=True)
    for folder in runs:
        files = RunFolder(folder)
        if not files.complete.exists() and files.read_manifest().get("run_key") == key:
            return RunPlan(folder, _next_attempt(folder), newest_checkpoint(folder))
    return RunPlan(_free_folder(cfg))


def _runs_of(cfg: TrainConfig) -> Path:
    return Path(cfg.output_dir) / (cfg.recipe or "custom")


def _free_folder(cfg: TrainConfig) -> Path:
    folder = Path(cfg.run) if cfg.run is not None else _runs_of(cfg) / stamp()
    where = f"run={folder}"
    if RunFolder(folder).complete.exists():
        fix = "leave run out, or name a new folder"
        raise RunError(Problem(where, "a finished run, which is never overwritten", fix=fix))
    if RunFolder(folder).manifest.exists():
        fix = "`sft.resume_from_checkpoint=auto` goes on with it; or name a new folder"
        raise RunError(Problem(where, "an unfinished run", fix=fix))
    if folder.exists() and not _is_free(folder):
        raise RunError(Problem(where, "it holds something that is no run", fix="name a new folder"))
    return folder


def _is_free(folder: Path) -> bool:
    """True for an empty folder, and for one whose run ended before its manifest was written."""
    if not folder.is_dir():
        return False
    return all(path.name in _BEFORE_THE_MANIFEST for path in folder.iterdir())


def _next_attempt(folder: Path) -> int:
    return RunFolder(folder).attempts() + 1


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint with the highest step; damaged ones are left out."""
    found = RunFolder(folder).checkpoints()
    whole = (found[step] for step in sorted(found, reverse=True) if is_whole(found[step]))
    return next(whole, None)


# --- what a run is --------------------------------------------------------------------------------


def run_key(cfg: TrainConfig) -> str:
    """Hash of what decides a run's numbers: the config without paths and tracking, and the data.

    Raises:
        DataError: a data file is missing.
    """
    return key_of(cfg, fingerprint(cfg.dataset, cfg.allowed_targets))


def key_of(cfg: TrainConfig, data_sha256: str) -> str:
    """`run_key`, of data whose digest is known."""
    return sha256_text(
        json.dumps([_same_numbers(_deciding(to_plain(cfg))), data_sha256], sort_keys=True)
    )


def _same_numbers(value: Any) -> Any:
    """1 and 1.0 are one number, in lists and mappings too."""
    if isinstance(value, dict):
        return {name: _same_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_same_numbers(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


# keys of `evaluation` that decide no number of a training
_OF_EVALUATE = ("batch_size", "verdict", "metrics", "lm_eval", "data_files", "base")
# and those that runs of older versions do not have, which are what null is
_NEWER = ("early_stopping", "sample_steps")
_NEWER_OF_DATASET = {"encoding": "utf-8", "delimiter": None, "field": None}  # with their defaults
_NEWER_OF_FORMAT: dict[str, Any] = {"fields": {}, "roles": {}}
_OF_REPORT = ("unread", "default_system")  # keys of `preflight` that decide no row


def _deciding(plain: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        name: value
        for name, value in plain.items()
        if name not in ("output_dir", "tracking", "recipe")
    }
    name = plain["model"]["name_or_path"]
    # of a folder of weights, `open_run` compares the bytes
    if name is not None and Path(name).expanduser().is_dir():
        kept["model"] = {**plain["model"], "name_or_path": "a folder"}
    kept["sft"] = {
        name: value for name, value in plain["sft"].items() if name != "resume_from_checkpoint"
    }
    kept["dataset"] = {
        name: value
        for name, value in _dataset(plain["dataset"]).items()
        if name not in ("data_files", "num_proc")
    }
    kept["format"] = _without(plain["format"], _NEWER_OF_FORMAT)
    kept["preflight"] = {
        name: value for name, value in plain["preflight"].items() if name not in _OF_REPORT
    }
    if plain.get("evaluation") is not None:
        kept["evaluation"] = {
            name: value
            for name, value in plain["evaluation"].items()
            if name not in _OF_EVALUATE and not (name in _NEWER and value is None)
        }
    return kept


def _dataset(dataset: Mapping[str, Any]) -> dict[str, Any]:
    kept = _without(dataset, _NEWER_OF_DATASET)
    sources = dataset.get("sources") or ()
    kept["sources"] = [_dataset(one) if isinstance(one, dict) else one for one in sources]
    if isinstance(kept.get("format"), dict):  # of a source of a mixture
        kept["format"] = _without(kept["format"], _NEWER_OF_FORMAT)
    return kept


def _without(group: Mapping[str, Any], newer: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a group but those of `newer` that have their defaults."""
    return {
        name: value for name, value in group.items() if name not in newer or value != newer[name]
    }


def _check_same_run(cfg: TrainConfig, folder: Path, where: str) -> None:
    files = RunFolder(folder)
    if files.read_manifest().get("run_key") == run_key(cfg):
        return
    try:
        recorded = yaml.safe_load(files.config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        problem = Problem(str(files.config), "missing or damaged", fix="start a new run")
        raise RunError(problem) from None
    before, now = _deciding(recorded), _deciding(to_plain(cfg))
    for one in (before, now):  # so that a default is named as what it is
        one["dataset"] = {**_NEWER_OF_DATASET, **one["dataset"]}
        one["format"] = {**_NEWER_OF_FORMAT, **one["format"]}
    changed = _differences(before, now)
    what = "; ".join(changed) if changed else "the data files changed"
    fix = "give it the same config, or start a new run without sft.resume_from_checkpoint"
    raise RunError(Problem(where, f"{folder} is a run of another config: {what}", fix=fix))


def _differences(before: Any, now: Any, prefix: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            line
            for key in keys
            for line in _differences(before.get(key), now.get(key), f"{prefix}.{key}".lstrip("."))
        ]
    return [] if before == now else [f"{prefix} was {before!r} and is {now!r}"]
