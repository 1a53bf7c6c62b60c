"""A loss that is no number ends a training; one that explodes is a warning.

Large steps are the usual cause of both. A NaN in the base weights, a float16 that overflows and a
single row end in the same NaN; what is found here tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

import sftpipe.ranks as ranks
from sftpipe.data.packing import RandomWindows
from sftpipe.errors import Problem, TrainingError
from sftpipe.model.load import packed_weights
from sftpipe.terminal import console
from sftpipe.training.sharding import local

if TYPE_CHECKING:
    from sftpipe.training.trainer import SFTPipeTrainer

_SHOWN = 8  # rows of a batch that a message names
_EXPLODED = 2.0  # times the first loss that was logged


def check_loss(trainer: SFTPipeTrainer, loss: float, inputs: Mapping[str, Any]) -> None:
    """End the run at a loss that is no number.

    Args:
        trainer: in training or evaluation.
        loss: of the batch.
        inputs: the batch.

    Raises:
        TrainingError: names step, rows, cause, the last good checkpoint, and what to lower.
    """
    if math.isfinite(loss):
        return
    step = trainer.state.global_step
    where = f"step {step + 1}" if trainer.model.training else f"evaluation at step {step}"
    rows = f" in the batch of {named}" if (named := _rows_of(trainer, inputs)) else ""
    raise _ended(trainer, where, f"the loss is {loss}{rows}")


def check_weights(trainer: SFTPipeTrainer) -> None:
    """No checkpoint is written of weights that are no numbers; every process calls it.

    Raises:
        TrainingError: as of `check_loss`.
    """
    # of a divided model each process sees a part
    broken = next(filter(None, ranks.gathered(_broken(trainer.model, trained=True))), None)
    if broken is not None:
        found = "the step made weights that are no numbers"
        raise _ended(trainer, f"step {trainer.state.global_step}", found, broken)


def _ended(
    trainer: SFTPipeTrainer, where: str, found: str, broken: str | None = None
) -> TrainingError:
    cause, fix = _cause(trainer, broken)
    good = get_last_checkpoint(trainer.args.output_dir)
    kept = f"the last good checkpoint is {good}" if good else "no checkpoint was written before"
    after = f"; {kept}" if trainer.state.global_step else ""
    return TrainingError(Problem(where, f"{found}: {cause}{after}", fix=fix))


def _cause(trainer: SFTPipeTrainer, trained: str | None) -> tuple[str, str]:
    """(why a loss is no number, what to type); `trained` is a weight that is known to be none."""
    frozen = _broken(trainer.model, trained=False)
    trained = trained or _broken(trainer.model, trained=True)
    if trainer.state.global_step == 0 and (frozen or trained):
        return f"{frozen or trained} of the base weights is no number", "get the base weights anew"
    if frozen:
        return f"{frozen} of the base weights is no number", "get the base weights anew"
    if trained:
        return f"{trained} is no number since the last step", _smaller_steps(trainer)
    dtype = trainer.model.dtype
    if dtype == torch.float16:
        return "float16 overflows above 65504", "`model.dtype=bfloat16`, or `model.dtype=float32`"
    if trainer.state.global_step == 0:
        return "the base model computes it so", "look at the rows, or take other base weights"
    return "the weights are numbers, and too large", _smaller_steps(trainer)


def _smaller_steps(trainer: SFTPipeTrainer) -> str:
    args = trainer.args
    fixes = [f"`sft.learning_rate={args.learning_rate / 10:g}`"]
    fixes += ["`sft.max_grad_norm=1.0`"] if not args.max_grad_norm else []
    return ", or ".join(fixes)


def _broken(model: torch.nn.Module, *, trained: bool) -> str | None:
    """The first parameter that holds a value that is no number, of what this process has."""
    packed = packed_weights(model)
    for name, parameter in model.named_parameters():
        of_the_kind = parameter.requires_grad is trained and parameter.is_floating_point()
        if name in packed or not of_the_kind:
            continue
        if not torch.isfinite(local(parameter)).all():
            return str(name).removeprefix("base_model.model.").replace(".base_layer.", ".")
    return None


def _rows_of(trainer: SFTPipeTrainer, inputs: Mapping[str, Any]) -> str:
    """`train[3], train[17]`: where the sequences of a training batch are in the train split."""
    rows = trainer.train_dataset
    if not trainer.model.training or isinstance(rows, RandomWindows):
        return ""
    wanted = set(_sequences(inputs))
    columns = [name for name in ("input_ids", "seq_lengths") if name in rows.column_names]
    found = [
        f"train[{at}]"
        for at, row in enumerate(rows.select_columns(columns))
        if not wanted.isdisjoint(_pieces(**row))
    ]
    more = [f"{len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return ", ".join([*found[:_SHOWN], *more])


def _sequences(inputs: Mapping[str, Any]) -> Iterator[tuple[int, ...]]:
    """The token ids of each sequence of a batch, padded or flattened."""
    ids, positions = inputs["input_ids"].tolist(), inputs.get("position_ids")
    if positions is None:
        lengths = inputs["attention_mask"].sum(-1).tolist()
        yield from (tuple(row[:length]) for row, length in zip(ids, lengths, strict=True))
        return
    starts = (positions[0] == 0).nonzero().flatten().tolist()
    ends = [*starts[1:], len(ids[0])]
    yield from (tuple(ids[0][start:end]) for start, end in zip(starts, ends, strict=True))


def _pieces(
    input_ids: Sequence[int], seq_lengths: Sequence[int] | None = None
) -> Iterator[tuple[int, ...]]:
    """The sequences that a row of the train split holds: one, or those that were packed into it."""
    start = 0
    for length in seq_lengths or [len(input_ids)]:
        yield tuple(input_ids[start : start + length])
        start += length


class Explosion(TrainerCallback):
    """A line, once, when the logged loss is far above the first one."""

    def __init__(self) -> None:
        self._told = False

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        losses = [entry["loss"] for entry in state.log_history if entry.get("loss") is not None]
        if self._told or not logs or "loss" not in logs or losses[-1] < _EXPLODED * losses[0]:
            return
        self._told = True
        console.print(
            f"warning   the loss is {losses[-1]:.3f} at step {state.global_step}, and began with "
            f"{losses[0]:.3f}; if it stays there: sft.learning_rate={args.learning_rate / 10:g}"
        )
