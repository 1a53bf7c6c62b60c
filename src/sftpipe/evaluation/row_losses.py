"""The loss of each row under a model, not only their mean."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from sftpipe.data.labels import IGNORED
from sftpipe.data.rows import row_lengths

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel


def row_losses(
    model: PreTrainedModel,
    rows: Dataset,
    collate: Callable[[list[Any]], dict[str, torch.Tensor]],
    *,
    batch_size: int = 8,
    done: Collection[int] = (),
) -> Iterator[tuple[int, tuple[float, int]]]:
    """(number of a row, (sum of the losses of its trained tokens, their count)), the longest first.

    Args:
        model: in evaluation mode while a batch runs.
        rows: `input_ids` and `labels`, each (T,).
        collate: rows -> batch of (B, T) tensors, padded on the right.
        batch_size: rows that run together.
        done: numbers of rows that are known already.
    """
    order = [int(at) for at in (-row_lengths(rows)).argsort(kind="stable") if int(at) not in done]
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            batch = collate([rows[number] for number in numbers])
            yield from zip(numbers, _losses(model, batch), strict=True)
    finally:
        model.train(was_training)


def _losses(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> list[tuple[float, int]]:
    moved = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = moved.pop("labels")[:, 1:]  # (B, T - 1): the token after each position
    trained = labels != IGNORED
    sums = torch.zeros(len(labels), dtype=torch.float64)
    with torch.inference_mode():
        logits = model(**moved, use_cache=False).logits[:, :-1]  # (B, T - 1, V)
        for row, mask in enumerate(trained):  # one at a time: a copy of all logits is large
            kept = logits[row, mask].float()  # (trained tokens, V)
            sums[row] = F.cross_entropy(kept, labels[row, mask], reduction="none").double().sum()
    return list(zip(sums.tolist(), trained.sum(dim=1).tolist(), strict=True))
