"""Around the training loop: counting, the progress bar, the log file, stopping on a signal."""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

import sftpipe.ranks as ranks
from sftpipe.config.schema import EarlyStoppingConfig
from sftpipe.config.validation_sets import validation_losses
from sftpipe.data.packing import count
from sftpipe.errors import Interrupted, Problem
from sftpipe.storage import write_text, writing
from sftpipe.terminal import console

if TYPE_CHECKING:
    from sftpipe.training.trainer import SFTPipeTrainer


class Counter(TrainerCallback, ExportableState):
    """Sums over what was trained so far, in all attempts; each checkpoint saves and restores them.

    tokens: real tokens, without padding.
    trained_tokens: those of them that have a label.
    rows: sequences; a packed row holds several.
    loss_sum: the loss of each trained token, added up.
    seconds: time inside the training loop.
    right: tokens that were predicted, of those that are trained.
    logged: trained tokens and right ones up to the last log entry.
    """

    def __init__(
        self,
        tokens: int = 0,
        trained_tokens: int = 0,
        rows: int = 0,
        loss_sum: float = 0.0,
        seconds: float = 0.0,
        right: int = 0,
        logged: Sequence[int] | None = None,
    ) -> None:
        self.tokens, self.trained_tokens, self.rows = tokens, trained_tokens, rows
        self.loss_sum, self.right = loss_sum, right
        self.logged = [trained_tokens, right] if logged is None else list(logged)
        self._step = [0.0] * 5  # of this process, since its last optimizer step
        self._earlier_seconds = seconds
        self._started: float | None = None
        self._logged: tuple[int, float] | None = None  # tokens and seconds of the last entry

    @property
    def loss(self) -> float:
        """The loss per trained token."""
        return self.loss_sum / max(1, self.trained_tokens)

    @property
    def seconds(self) -> float:
        """Seconds in the training loop, with those of earlier attempts."""
        now = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._earlier_seconds + now

    def add(self, inputs: Mapping[str, Any], trained: int, loss_sum: float, right: int) -> None:
        """Count one micro-batch of this process; it is in the sums when its step ends."""
        tokens, rows = count(inputs)
        batch = (tokens, trained, rows, loss_sum, right)
        self._step = [one + other for one, other in zip(self._step, batch, strict=True)]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        tokens, trained, rows, loss_sum, right = ranks.total(*self._step)
        self.tokens += int(tokens)
        self.trained_tokens += int(trained)
        self.rows += int(rows)
        self.loss_sum += loss_sum
        self.right += int(right)
        self._step = [0.0] * 5

    def accuracy(self) -> float:
        """The share of trained tokens that were predicted, since this was last asked."""
        trained, right = self.logged
        self.logged = [self.trained_tokens, self.right]
        return (self.right - right) / max(1, self.trained_tokens - trained)

    def rate(self) -> float:
        """Tokens a second since this was last asked, or since this attempt began.

        Evaluations and checkpoints in between count.
        """
        tokens, seconds = self._logged or (self.tokens, self.seconds)
        self._logged = self.tokens, self.seconds
        return (self.tokens - tokens) / max(1e-9, self.seconds - seconds)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()
        self._logged = self.tokens, self.seconds

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._earlier_seconds, self._started = self.seconds, None

    def state(self) -> dict[str, Any]:
        """The arguments of `Counter` that a checkpoint keeps (transformers' `ExportableState`)."""
        names = ("tokens", "trained_tokens", "rows", "loss_sum", "seconds", "right", "logged")
        return {"args": {name: getattr(self, name) for name in names}, "attributes": {}}


def peak_memory_bytes() -> int:
    """Peak CUDA allocation, or the peak resident size of this process on a CPU."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS gives bytes, Linux KiB


class Unlogged(TrainerCallback, ExportableState):
    """What a trainer has summed up since it last logged; each checkpoint saves and restores it.

    A run that goes on from a checkpoint between two log entries then logs the means of all steps
    between them, and not of its own alone.

    loss: the losses of the steps, added up; of several processes, those of each.
    step: the last one that was logged.
    accuracies: of a version that kept them here; not read.
    """

    def __init__(
        self,
        loss: float | Sequence[float] = 0.0,
        step: int | None = None,
        accuracies: Sequence[float] = (),
    ) -> None:
        self._losses, self._step = list(loss) if isinstance(loss, Sequence) else [loss], step

    def take(self, trainer: SFTPipeTrainer) -> None:
        """Read the sums of a trainer that is about to write a checkpoint."""
        self._losses = ranks.gathered(trainer._tr_loss.item())
        self._step = trainer._globalstep_last_logged

    def give_back(self, trainer: SFTPipeTrainer) -> None:
        """Begin with the sums of the checkpoint; those of older versions have none."""
        if self._step is None:
            return
        trainer._tr_loss += self._losses[ranks.rank()]
        trainer._globalstep_last_logged = self._step

    def state(self) -> dict[str, Any]:
        """The arguments of `Unlogged` (transformers' `ExportableState`)."""
        loss = self._losses[0] if len(self._losses) == 1 else self._losses
        return {"args": {"loss": loss, "step": self._step}, "attributes": {}}


class ProgressBar(TrainerCallback):
    """One bar on a terminal; elsewhere one line each time the trainer logs.

    counter: looked up each time, because resuming replaces it.
    """

    def __init__(self, counter: Callable[[], Counter]) -> None:
        self._counter = counter
        self._bar: Progress | None = None
        self._task: Any = None
        self._start = (0, 0.0)  # tokens and seconds when this attempt began

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = (self._counter().tokens, self._counter().seconds)
        if not console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("Training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            "", total=state.max_steps, completed=state.global_step, note=""
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            note = f"loss {logs['loss']:.3f}  {self._tokens_per_s():.0f} tokens/s"
        elif losses := validation_losses(logs):
            note = ", ".join(f"{name} loss {loss:.3f}" for name, loss in losses.items())
        else:
            return
        if self._bar is not None:
            self._bar.update(self._task, note=note)
        else:
            console.print(f"step {state.global_step}/{state.max_steps}  {note}")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Remove the bar from the terminal, however the block ends."""
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.stop()

    def _tokens_per_s(self) -> float:
        tokens, seconds = self._start
        return (self._counter().tokens - tokens) / max(1e-9, self._counter().seconds - seconds)


class LogFile(TrainerCallback):
    """log.jsonl: one JSON object each time the trainer logs.

    A resumed run goes on after the checkpoint's last entry.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        whole = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        found = [_entry(line) for line in whole.splitlines()]
        if None in found:
            made_anew = "a line was cut off; it is written anew from the checkpoint"
            console.print(f"resume    {self._file.name}: {made_anew}", markup=False)
        # what was logged before training is in no checkpoint
        logged = state.log_history
        before = [entry for entry in found if entry and entry["step"] == 0 and entry not in logged]
        write_text(self._file, "".join(f"{json.dumps(entry)}\n" for entry in [*before, *logged]))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with writing(self._file), self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(state.log_history[-1]) + "\n")


def _entry(line: str) -> dict[str, Any] | None:
    """An entry of the log; None of a line that is none."""
    try:
        entry = dict(json.loads(line))
    except (ValueError, TypeError):
        return None
    return entry if "step" in entry else None


# far less than a step adds to `state.epoch`, and far more than rounding does
_TOLERANCE = 1e-9


def ended_epoch(state: Any) -> int | None:
    """The number of the epoch that ended with this step; None within an epoch.

    transformers counts the epochs done: `state.epoch` is 0.5 halfway through the first one.
    """
    number = round(state.epoch)
    return number if abs(state.epoch - number) < _TOLERANCE else None


class EpochEnd(TrainerCallback):
    """What is due after an epoch is done with its last step, before the checkpoint of that step.

    transformers logs, evaluates and saves for the strategy `epoch` after that checkpoint. A run
    that goes on from it would never do so, and one that a signal ends within an epoch would do it
    once too often.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if ended_epoch(state) is not None or state.global_step >= state.max_steps:
            control.should_log |= args.logging_strategy == "epoch"
            control.should_evaluate |= (
                args.eval_strategy == "epoch" and args.eval_delay <= state.epoch
            )
            control.should_save |= args.save_strategy == "epoch"
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_log &= args.logging_strategy != "epoch"
        control.should_evaluate &= args.eval_strategy != "epoch"
        control.should_save &= args.save_strategy != "epoch"
        return control


class EpochSamples(TrainerCallback):
    """Calls `take` with the number of each epoch that ends, before the checkpoint of its last step.

    A checkpoint then never lacks the samples of a step that it holds.
    """

    def __init__(self, take: Callable[[int], None]) -> None:
        self._take = take

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        number = ended_epoch(state)
        if number is not None:
            self._take(number)


class StepSamples(TrainerCallback):
    """Calls `take` with the number of each optimizer step that ends, before its checkpoint."""

    def __init__(self, take: Callable[[int], None]) -> None:
        self._take = take

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._take(state.global_step)


class EarlyStopping(EarlyStoppingCallback):
    """transformers' early stopping; a checkpoint of the step that ended a run ends it again.

    transformers restores the count of the evaluations without an improvement, and then trains
    until the next evaluation before it looks at it.
    """

    @property
    def has_ended(self) -> bool:
        """True when the patience is used up."""
        return bool(self.early_stopping_patience_counter >= self.early_stopping_patience)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        super().on_train_begin(args, state, control, **kwargs)
        control.should_training_stop = self.has_ended
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.has_ended and state.global_step < state.max_steps:
            console.print(
                f"stopped early at step {state.global_step}; the best was {state.best_global_step}"
            )


_STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(TrainerCallback):
    """SIGINT and SIGTERM end the run after the current step, with a checkpoint.

    A second signal ends it at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._at: float | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the two signals while the block runs."""
        in_main = threading.current_thread() is threading.main_thread()  # only it may set handlers
        numbers = _STOPPING if in_main else ()
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self._at is not None:
            if ranks.notes() is None or now - self._at > ranks.ONCE_S:
                raise KeyboardInterrupt
            return  # a launcher hands on what a terminal or Slurm has sent to all
        self.received, self._at = number, now

    def agreed(self) -> int | None:
        """The signal that any process has received, the same in all of them; None: none."""
        told = ranks.total(*(float(self.received == number) for number in _STOPPING))
        agreed = next((one for one, count in zip(_STOPPING, told, strict=True) if count), None)
        self.received = self.received if agreed is None else agreed
        return agreed

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.agreed() is not None:
            control.should_save = control.should_training_stop = True
        return control


@contextmanager
def watch(
    trainer: SFTPipeTrainer,
    folder: Path,
    epoch_ended: Callable[[int], None],
    step_ended: Callable[[int], None],
    early_stopping: EarlyStoppingConfig | None = None,
) -> Iterator[None]:
    """Show and log the training that the block does, and end it on a signal.

    Args:
        trainer: the trainer of the run.
        folder: the run folder, for messages.
        epoch_ended: called with the number of each epoch, before its last checkpoint.
        step_ended: called with the number of each optimizer step, before its checkpoint.
        early_stopping: when the training ends before its last step; None: never.

    Raises:
        Interrupted: a signal came; the checkpoint is written.
    """
    bar, stop = ProgressBar(lambda: trainer.counter), StopOnSignal()
    for callback in (EpochSamples(epoch_ended), StepSamples(step_ended), bar, stop):
        trainer.add_callback(callback)
    if early_stopping is not None:
        trainer.add_callback(EarlyStopping(early_stopping.patience, early_stopping.threshold))
    with stop.listening(), bar.shown():
        yield
        received = stop.agreed()
    if received is not None:
        found = f"stopped by {signal.Signals(received).name}; a checkpoint was written"
        fix = "the same command with `sft.resume_from_checkpoint=auto` goes on from there"
        raise Interrupted(received, Problem(str(folder), found, fix=fix))
