"""The batches of several processes are those of one, in its order, and nothing is trained twice."""

from __future__ import annotations

from typing import Any

from accelerate.data_loader import prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, SequentialSampler

from sftpipe.data.labels import IGNORED
from sftpipe.training.order import Filled, FilledSampler, without_fill


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"input_ids": [at, at], "labels": [IGNORED, at]} for at in range(count)]


def seen(batch: list[dict[str, Any]]) -> list[int]:
    """The rows of a batch that have labels."""
    return [row["input_ids"][0] for row in batch if row["labels"][1] != IGNORED]


@given(
    count=st.integers(1, 40),
    size=st.integers(1, 5),
    processes=st.integers(1, 4),
    drops=st.booleans(),
)
def test_the_parts_of_a_batch_are_the_batch(
    count: int, size: int, processes: int, *, drops: bool
) -> None:
    rows = rows_of(count)
    multiple = 1 if drops else size * processes
    order = FilledSampler(SequentialSampler(rows), count, multiple)
    whole = DataLoader(rows, batch_size=size * processes, collate_fn=list, drop_last=drops)
    expected = [seen(batch) for batch in whole]

    parts = []
    for process in range(processes):
        loader = DataLoader(
            Filled(rows),
            batch_size=size,
            sampler=order,
            collate_fn=without_fill(list),
            drop_last=drops,
        )
        part = prepare_data_loader(
            loader, num_processes=processes, process_index=process, put_on_device=False
        )
        parts.append(list(part))

    assert {len(part) for part in parts} == {len(expected)}  # none waits for another for ever
    rounds = zip(*parts, strict=True)
    together = [[row for part in one for row in seen(part)] for one in rounds]
    assert together == expected
    assert all(len(batch) == len(seen(batch)) or len(batch) == 1 for one in parts for batch in one)


def test_a_row_that_fills_has_no_label_and_all_columns() -> None:
    filled = Filled([{"input_ids": [5, 6], "labels": [IGNORED, 6], "seq_lengths": [2]}])
    assert len(filled) == 2
    assert filled[0]["labels"] == [IGNORED, 6]
    assert filled[1] == {"input_ids": [5, 6], "labels": [IGNORED] * 2, "seq_lengths": [2]}


def test_the_order_of_an_epoch_is_told_which_epoch_it_is() -> None:
    class Order:
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Any:
            return iter([self.epoch] * 3)

    order = FilledSampler(Order(), 3, 2)
    order.set_epoch(7)
    assert list(order) == [7, 7, 7, 3]
    assert len(order) == 4
