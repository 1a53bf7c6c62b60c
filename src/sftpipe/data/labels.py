"""Labels from spans. Pure Python."""

from __future__ import annotations

from collections.abc import Sequence

IGNORED = -100  # the label that cross entropy leaves out (torch.nn.CrossEntropyLoss, transformers, TRL)


def labels_from_span(input_ids: Sequence[int], start: int, stop: int) -> list[int]:
    """Labels of one row: its ids from `start` up to `stop`, `IGNORED` elsewhere; not shifted.

        input_ids   5   6   7   8   9
        span            [start=1, stop=4)
        labels   -100   6   7   8 -100

    Args:
        input_ids: (T,) token ids.
        start: first trained position.
        stop: position behind the last trained one.
    """
    return [token if start <= position < stop else IGNORED for position, token in enumerate(input_ids)]
