"""Two models that should be the same: how far apart are their next tokens and their answers?

One after the other is in memory; what the first one said waits on the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sftpipe.evaluation.metrics import Answered, answer_metrics
from sftpipe.terminal import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Drift:
    """What became of a model's next tokens.

    kl: mean Kullback-Leibler divergence of a token's distribution from the first model's, in nats.
    top1: share of tokens after which both models hold the same next token for the likeliest.
    tokens: over how many.
    """

    kl: float
    top1: float
    tokens: int


def record_logits(model: PreTrainedModel, rows: Sequence[Sequence[int]], folder: Path) -> None:
    """Write the logits of each next token into files of `folder`.

    Args:
        model: in evaluation mode.
        rows: token ids of each row.
        folder: gets (T, V) float32 for each row.
    """
    with progress("The model as trained", len(rows)) as advance:
        for number, row in enumerate(rows):
            np.save(folder / f"{number}.npy", _logits(model, row).numpy())
            advance(1, "")


def measure_drift(model: PreTrainedModel, rows: Sequence[Sequence[int]], folder: Path) -> Drift:
    """Compare a model with the one that `record_logits` was given.

    Args:
        model: in evaluation mode.
        rows: those of `record_logits`.
        folder: its files.
    """
    divergence, same, tokens = 0.0, 0, 0
    with progress("The model to export", len(rows)) as advance:
        for number, row in enumerate(rows):
            now, before = _logits(model, row), torch.from_numpy(np.load(folder / f"{number}.npy"))
            shared = min(now.shape[-1], before.shape[-1])  # a table may be padded
            for one, other in zip(before[:, :shared], now[:, :shared], strict=True):
                p, q = one.double().log_softmax(-1), other.double().log_softmax(-1)
                divergence += float((p.exp() * (p - q)).sum())
            same += int((now.argmax(-1) == before.argmax(-1)).sum())
            tokens += len(row)
            advance(1, "")
    return Drift(divergence / tokens, same / tokens, tokens)


def _logits(model: PreTrainedModel, row: Sequence[int]) -> torch.Tensor:
    """(T, V), float32, on the CPU."""
    ids = torch.tensor([list(row)], device=model.device)
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits[0].float().cpu()


def answers_chrf(before: Sequence[str], now: Sequence[str]) -> float:
    """chrF (0 to 100) of one model's answers with the other's as references; 100 if all agree."""
    said = Answered(now, before, [True] * len(now), [{}] * len(now))
    chrf = answer_metrics(said)["chrf"]
    # of two answers without a letter chrF knows nothing
    return 100.0 if list(before) == list(now) else chrf.whole()
