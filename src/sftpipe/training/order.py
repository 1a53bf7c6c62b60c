"""In which order rows are trained, and what each of several processes gets of them.

An order depends on seed and epoch alone, so that a resumed run goes on with it.

A batch of B rows in each of W processes is the batch of B * W rows that one process would take, in
the same order. Where the last one is not full, rows without labels fill it: accelerate would take
rows from the beginning once more, and train or count them twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

import sftpipe.ranks as ranks
from sftpipe.data.labels import IGNORED
from sftpipe.data.packing import RandomWindows


class WindowSampler(torch.utils.data.Sampler[int]):
    """Starts of the random windows of each epoch, by seed and epoch alone (packing=blocks)."""

    def __init__(self, windows: RandomWindows, seed: int) -> None:
        self._windows, self._seed = windows, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader at the start of each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._windows)

    def __iter__(self) -> Iterator[int]:
        return iter(self._windows.starts(self._seed, self._epoch))


class EpochLengthSampler(LengthGroupedSampler):
    """transformers' length grouping, shuffled by seed and epoch alone.

    transformers draws this order from the global random state, which dropout and every evaluation
    change: a resumed run would see other batches than the run that it continues.
    """

    def __init__(self, seed: int, sampler: LengthGroupedSampler) -> None:
        # of all processes: a batch of theirs is one of a single process
        super().__init__(sampler.batch_size * ranks.world_size(), lengths=sampler.lengths)
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader at the start of each epoch."""
        self.generator = torch.Generator().manual_seed(self._seed + epoch)


# --- several processes ----------------------------------------------------------------------------


class Filled(torch.utils.data.Dataset[Mapping[str, Any]]):
    """Rows, and after them one without labels."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows) + 1

    def __getitem__(self, at: int) -> Mapping[str, Any]:
        if at != len(self._rows):
            return dict(self._rows[at])
        first = self._rows[0]
        return {**first, "labels": [IGNORED] * len(first["labels"])}


class FilledSampler(torch.utils.data.Sampler[int]):
    """An order of rows, and then the row that fills, up to a multiple."""

    def __init__(self, order: Any, rows: int, multiple: int) -> None:
        """Fill an order.

        Args:
            order: a sampler.
            rows: of the data, which is the number of the row that fills.
            multiple: rows of a batch of all processes; 1 fills nothing.
        """
        self._order, self._rows, self._multiple = order, rows, multiple

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader at the start of each epoch."""
        if hasattr(self._order, "set_epoch"):
            self._order.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self._order) // self._multiple) * self._multiple

    def __iter__(self) -> Iterator[int]:
        yield from self._order
        yield from [self._rows] * (len(self) - len(self._order))


def without_fill(collate: Callable[..., Any]) -> Callable[..., Any]:
    """A collator that leaves out the rows that fill; one stays where there is no other."""

    def collated(rows: Sequence[Mapping[str, Any]], *arguments: Any, **keywords: Any) -> Any:
        real = [row for row in rows if any(label != IGNORED for label in row["labels"])]
        return collate(real or rows[:1], *arguments, **keywords)

    return collated
