"""The numbers and answers of a run, before, during and after its training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sftpipe.ranks as ranks
from sftpipe.config.schema import EvaluationConfig
from sftpipe.data.prepare import PreparedData
from sftpipe.evaluation.losses import sample_answers, split_loss, train_metrics
from sftpipe.evaluation.questions import Question
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.summary import answer_lines
from sftpipe.terminal import console

if TYPE_CHECKING:
    from sftpipe.training.trainer import SFTPipeTrainer


class Record:
    """Measures a trainer's model, and owns metrics.json and samples.jsonl.

    metrics: the content of metrics.json so far.
    samples: the rows of samples.jsonl so far.
    """

    def __init__(
        self,
        folder: RunFolder,
        trainer: SFTPipeTrainer,
        data: PreparedData,
        cfg: EvaluationConfig | None,
        questions: Sequence[Question],
        checkpoint: Path | None,
    ) -> None:
        """A run that goes on from a checkpoint finds what was measured before it in the folder."""
        self._folder, self._trainer, self._data = folder, trainer, data
        self._cfg, self._questions, self._resumed = cfg, questions, checkpoint is not None
        self.metrics: dict[str, Any] = folder.read_metrics() if checkpoint else {}
        self.samples: list[dict[str, Any]] = samples_until(checkpoint) if checkpoint else []
        # what an attempt has logged that was killed before its first one
        if checkpoint is None and ranks.is_first():
            folder.log.unlink(missing_ok=True)

    def before(self) -> None:
        """The base model: its validation loss and its answers; done once in a run."""
        if not self._resumed:
            self._measure("before")

    def epoch(self, number: int) -> None:
        """The answers after an epoch (`evaluation.sample_strategy=epoch`); one of them is shown."""
        if self._cfg is not None and self._cfg.sample_strategy == "epoch":
            self._answer_during(f"epoch {number}")

    def step(self, number: int) -> None:
        """The answers after each `evaluation.sample_steps` steps, where those are asked for."""
        every = self._cfg.sample_steps if self._cfg is not None else None
        if every is not None and number % every == 0:
            self._answer_during(f"step {number}")

    def after(self) -> None:
        """The trained model: training numbers, validation and test loss, answers."""
        self.metrics = {"train": train_metrics(self._trainer), **self.metrics}
        self._measure("after")

    def _measure(self, phase: str) -> None:
        with console.status(f"Measuring {phase} training ..."):
            for split, rows in self._data.validation_splits().items() if self._cfg else ():
                part = self.metrics
                for name in split.split("."):
                    part = part.setdefault(name, {})
                part[phase] = split_loss(self._trainer, rows, split)
            if self._cfg is not None and self._data.test is not None and phase == "after":
                self.metrics["test"] = split_loss(self._trainer, self._data.test, "test")
            if ranks.is_first():
                self._folder.write_metrics(self.metrics)
            self._answer(phase)

    def _answer_during(self, phase: str) -> None:
        if self._questions:
            self._answer(phase)
        if self._questions and ranks.is_first():
            answers = self.samples[-len(self._questions) :]
            console.print(answer_lines(phase, answers), markup=False)

    def _answer(self, phase: str) -> None:
        if not ranks.is_first() and not self._trainer.divided:
            return  # the others wait where they next meet it
        if self._cfg is not None:
            self.samples += sample_answers(self._trainer, self._questions, phase, self._cfg)
        if ranks.is_first():
            self._folder.write_samples(self.samples)


def samples_until(checkpoint: Path) -> list[dict[str, Any]]:
    """The rows of samples.jsonl up to the step of a checkpoint.

    A run that goes on from it makes the later ones again.
    """
    step = int(checkpoint.name.split("-")[1])
    rows = RunFolder(checkpoint.parent).read_samples()
    return [row for row in rows if row["phase"] != "after" and row["step"] <= step]
