"""The run folder: its files, and the small ones of them read and written."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sftpipe.config.lora import INITIAL_ADAPTER
from sftpipe.errors import Problem, RunError
from sftpipe.storage import COMPLETE, MANIFEST, write_json, write_text


@dataclass(frozen=True)
class RunFolder:
    """A run folder: these files, beside Hugging Face's (weights, tokenizer, checkpoint-N/)."""

    path: Path

    @property
    def complete(self) -> Path:
        """Written last: the run is whole."""
        return self.path / COMPLETE

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        """Versions, hashes, hardware, command; a folder that has it can be resumed."""
        return self.path / MANIFEST

    @property
    def preflight(self) -> Path:
        """The report on the data."""
        return self.path / "preflight.json"

    @property
    def metrics(self) -> Path:
        """Losses, times, memory."""
        return self.path / "metrics.json"

    @property
    def samples(self) -> Path:
        """Prompts and answers, before, during and after training."""
        return self.path / "samples.jsonl"

    @property
    def prompts(self) -> Path:
        """Prompts of train rows and their ids: what every verb on the run compares its own with."""
        return self.path / "prompts.json"

    @property
    def responses(self) -> Path:
        """The test rows with the run's answers, as `model_response`."""
        return self.path / "responses.json"

    @property
    def base_responses(self) -> Path:
        """The same of the base model."""
        return self.path / "responses_base.json"

    @property
    def answers(self) -> Path:
        """What `sftpipe generate` writes."""
        return self.path / "answers.jsonl"

    @property
    def evaluation(self) -> Path:
        """What `sftpipe evaluate` measured."""
        return self.path / "evaluation.json"

    @property
    def judgement(self) -> Path:
        """What `sftpipe judge` was told."""
        return self.path / "judge.json"

    @property
    def log(self) -> Path:
        """One line each time the trainer logs."""
        return self.path / "log.jsonl"

    @property
    def loss_curve(self) -> Path:
        """The plot of the log."""
        return self.path / "loss.png"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / "README.md"

    @property
    def report(self) -> Path:
        """The page of `sftpipe report`."""
        return self.path / "report.html"

    @property
    def comparison(self) -> Path:
        """The page of `sftpipe report` on this run and others."""
        return self.path / "comparison.html"

    @property
    def lock(self) -> Path:
        """Held by the process that trains the run: who, where and since when."""
        return self.path / ".lock"

    @property
    def planned(self) -> Path:
        """What a worker is to train here; removed when it has."""
        return self.path / ".planned.json"

    @property
    def initial_adapter(self) -> Path:
        """What a PiSSA or OLoRA adapter began as; a resumed run makes its base weights of it."""
        return self.path / INITIAL_ADAPTER

    @property
    def hydra(self) -> Path:
        """Hydra's records of the config."""
        return self.path / ".hydra"

    def attempt(self, number: int) -> RunFolder:
        """Where a start keeps its own manifest and records: later ones in attempts/<n>/."""
        return self if number == 1 else RunFolder(self.path / "attempts" / str(number))

    def attempts(self) -> int:
        """Starts so far, at least 1."""
        later = (self.path / "attempts").glob("*")
        return max((int(path.name) for path in later if path.name.isdigit()), default=1)

    def checkpoints(self) -> dict[int, Path]:
        """{step: checkpoint}, whole or not."""
        found = [(path.name.split("-")[1], path) for path in self.path.glob("checkpoint-*")]
        return {int(step): path for step, path in found if step.isdigit()}

    def runs(self) -> list[Path]:
        """The run folders in this one, as a sweep has them, by name."""
        return sorted(path.parent for path in self.path.glob(f"*/{MANIFEST}"))

    # --- small files ------------------------------------------------------------------------------

    def read_manifest(self) -> dict[str, Any]:
        """The content of manifest.json.

        Raises:
            RunError: there is none.
        """
        try:
            return dict(json.loads(self.manifest.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            found = f"no readable {self.manifest.name}: not a run of sftpipe"
            raise RunError(Problem(str(self.path), found, fix="name a run folder")) from None

    def began(self) -> datetime.date | None:
        """The day that chat templates may have written; None where there is no manifest yet.

        That of the run's first start, or of the run that it repeats.
        """
        if not self.manifest.is_file():
            return None
        manifest = self.read_manifest()
        try:
            recorded = str(manifest.get("day") or manifest.get("created"))
            return datetime.datetime.fromisoformat(recorded).date()
        except (TypeError, ValueError):
            raise damaged(self.manifest) from None

    def read_config(self) -> dict[str, Any]:
        """The mapping in config.yaml.

        Raises:
            RunError: it is missing or damaged.
        """
        try:
            return dict(yaml.safe_load(self.config.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, yaml.YAMLError):
            raise damaged(self.config) from None

    def read_preflight(self) -> dict[str, Any]:
        """The content of preflight.json.

        Raises:
            RunError: it is missing or damaged.
        """
        return _read_object(self.preflight)

    def read_metrics(self) -> dict[str, Any]:
        """The content of metrics.json.

        Raises:
            RunError: it is missing or damaged.
        """
        return _read_object(self.metrics)

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """metrics.json, readable as a whole at any time."""
        write_json(self.metrics, metrics)

    def read_samples(self) -> list[dict[str, Any]]:
        """The rows of samples.jsonl.

        Raises:
            RunError: it is missing or damaged.
        """
        return _read_lines(self.samples)

    def write_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """samples.jsonl: {phase, step, prompt, completion, reference} a line."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_text(self.samples, "".join(lines))

    def read_log(self) -> list[dict[str, Any]]:
        """The entries of log.jsonl.

        Raises:
            RunError: it is missing or damaged.
        """
        return _read_lines(self.log)

    def close(self) -> None:
        """Mark the run as whole; the last thing that is written."""
        write_text(self.complete, f"{datetime.datetime.now().isoformat(timespec='seconds')}\n")


def damaged(file: Path) -> RunError:
    """The error of a file of a run folder that is missing or cannot be read."""
    found = "damaged" if file.is_file() else "missing"
    fix = "put the file back from a copy, or train a new run"
    return RunError(Problem(str(file), found, fix=fix))


def whole_lines(text: str) -> tuple[list[dict[str, Any]], int]:
    """(the rows of JSON lines, how many lines are none); a killed process leaves a torn one."""
    rows, torn = [], 0
    for line in text.split("\n"):  # splitlines takes more characters for line ends
        try:
            rows += [dict(json.loads(line))] if line else []
        except (ValueError, TypeError, RecursionError):
            torn += 1
    return rows, torn


def _read_object(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise damaged(file) from None


def _read_lines(file: Path) -> list[dict[str, Any]]:
    try:
        # not splitlines: texts may hold characters that it takes for line breaks
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        return [dict(json.loads(line)) for line in lines if line]
    except (OSError, ValueError, TypeError):
        raise damaged(file) from None
