"""Rows that share a sequence: packing before training, and the batches that keep them separate.

B rows of a batch, T tokens of its longest row. A packed row carries `seq_lengths`, the tokens of
each row that it holds:

    rows                      [5 6 7] [8 9] [4]
    packed to 6 tokens        [5 6 7 8 9 4]      seq_lengths [3 2 1]      position_ids [0 1 2 0 1 0]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftpipe.data.labels import IGNORED
from sftpipe.data.rows import row_lengths
from sftpipe.data.version import code_digest
from sftpipe.errors import Problem
from sftpipe.storage import cached, digest

if TYPE_CHECKING:
    from datasets import Dataset

_AT_ONCE = 2_000_000  # tokens that are packed together: enough to fill, and few enough for memory


def pack(rows: Dataset, strategy: str, max_length: int | None, name: str) -> Dataset:
    """Rows packed to `max_length` tokens by TRL's packer; no token and no label is lost.

    Args:
        rows: with `input_ids` and `labels`.
        strategy: bfd, bfd_split or wrapped; rows of padding_free are joined batch by batch, not
            here.
        max_length: tokens of a packed row.
        name: the split, for the progress bar.
    """
    if strategy == "padding_free" or not len(rows):
        return rows
    assert max_length is not None
    import datasets

    def build(folder: Path) -> None:
        from trl import pack_dataset

        at_once = max(1, len(rows) * _AT_ONCE // max(1, int(row_lengths(rows).sum())))
        options = {
            "batch_size": at_once,
            "cache_file_name": str(folder / "rows.arrow"),
            "desc": f"Packing {name}",
        }
        pack_dataset(rows, max_length, strategy, options)

    key = digest(code_digest(), rows._fingerprint, strategy, max_length)
    return cached(
        "packed", key, build, lambda folder: datasets.Dataset.from_file(str(folder / "rows.arrow"))
    )


def blocks(rows: Dataset, block_size: int) -> Dataset:
    """The rows of a split as one stream of tokens, cut into consecutive windows.

    The windows predict each token once. A window of `block_size` predictions has one token more,
    with which the next one begins; the last may be shorter:

        rows                      [5 6 7] [8 9] [4]
        blocks of 2               [5 6 7] [7 8 9] [9 4]

    Args:
        rows: with `input_ids`; every token is a target (loss=full).
        block_size: predictions of a window.

    Returns:
        A table of `input_ids` and `labels`, which are the same.
    """
    import datasets
    from datasets.arrow_writer import ArrowWriter

    ids = datasets.List(datasets.Value("int32"))

    def build(folder: Path) -> None:
        with ArrowWriter(
            path=str(folder / "rows.arrow"),
            features=datasets.Features({"input_ids": ids, "labels": ids}),
        ) as writer:
            for window in _windows(rows, block_size):
                writer.write({"input_ids": window, "labels": window})
            writer.finalize()

    key = digest(code_digest(), rows._fingerprint, "blocks", block_size)
    return cached(
        "packed", key, build, lambda folder: datasets.Dataset.from_file(str(folder / "rows.arrow"))
    )


def too_few_tokens(tokens: int, block_size: int) -> Problem | None:
    """The problem of a train split with fewer tokens than one window and its last target."""
    if tokens > block_size:
        return None
    fix = "more text"
    if tokens > 1:
        fix = f"`packing.block_size={tokens - 1}` or less, or {fix}"
    return Problem(
        "packing.block_size",
        f"{block_size}, and the train split has {tokens:,} tokens: less than one window "
        "and the token after it",
        fix=fix,
    )


def _windows(rows: Dataset, block_size: int) -> Iterator[list[int]]:
    waiting: list[int] = []
    for batch in rows.select_columns("input_ids").iter(batch_size=1000):
        for row in batch["input_ids"]:
            waiting += row
        # where the first window begins that is not whole yet
        last = (len(waiting) - 1) // block_size * block_size
        for start in range(0, last, block_size):
            yield waiting[start : start + block_size + 1]
        waiting = waiting[max(0, last) :]
    if len(waiting) > 1:
        yield waiting


class RandomWindows:
    """Any window of the stream that `blocks` cut: two neighbours among its rows hold every one.

        rows                      [5 6 7] [7 8 9] [9 4]
        window at token 1         [6 7 8]

    rows: what `blocks` returned.
    block_size: predictions of a window.
    tokens: length of the stream.
    """

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows
        self.block_size = len(rows[0]["input_ids"]) - 1
        self.tokens = (len(rows) - 1) * self.block_size + len(rows[len(rows) - 1]["input_ids"])

    def __len__(self) -> int:
        """Windows of an epoch: as many as fit the stream side by side."""
        return self.tokens // self.block_size

    def __getitem__(self, start: int) -> dict[str, list[int]]:
        """The window that begins at token `start`, at most `tokens - block_size - 1`."""
        number, offset = divmod(start, self.block_size)
        ids = self.rows[number]["input_ids"][offset:]
        if offset:
            ids = ids + self.rows[number + 1]["input_ids"][1 : offset + 1]
        return {"input_ids": ids, "labels": ids}

    def starts(self, seed: int, epoch: int) -> list[int]:
        """Where the windows of an epoch begin.

        The two numbers alone decide it, so that a resumed run sees the same windows.
        """
        import numpy as np

        return [
            int(start)
            for start in np.random.default_rng((seed, epoch)).integers(
                self.tokens - self.block_size, size=len(self)
            )
        ]


def sequence_lengths(row: Mapping[str, Any]) -> list[int]:
    """Tokens of each sequence of a row: `seq_lengths`, or all of an unpacked row; their sum is T.

    Raises:
        ValueError: `seq_lengths` and `input_ids` differ.
    """
    total = len(row["input_ids"])
    lengths = list(row.get("seq_lengths") or [total])
    if sum(lengths) != total:
        raise ValueError(f"seq_lengths add up to {sum(lengths)}, and the row has {total} tokens")
    return lengths


@dataclass(frozen=True)
class Isolation:
    """How the sequences of a row are kept separate, and how well.

    method: "positions" or "mask", see `Collator`.
    leak: largest difference that packing, or other tokens in a neighbour, make to a logit, in
        standard deviations of the logits; None when it was not measured.
    leak_of_positions: the same for positions alone, where they leak and a mask had to be given.
    """

    method: str
    leak: float | None = None
    leak_of_positions: float | None = None


@dataclass(frozen=True)
class PackingReport:
    """What packing made of the rows.

    strategy: as in the config.
    rows: {split: [rows before, rows after]} of the splits that were packed; empty under
        padding_free, which packs each batch.
    fill: {split: tokens, as a share of the room in the packed rows}.
    isolation: how sequences are kept separate, and how well; None where they are joined on purpose
        (wrapped, blocks).
    limit: tokens that fit a packed row; None under padding_free.
    first: {split: the tokens of each sequence of its first packed rows}, for a picture of them.
    """

    strategy: str
    rows: dict[str, list[int]]
    fill: dict[str, float]
    isolation: Isolation | None
    limit: int | None = None
    first: dict[str, list[list[int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Collator:
    """Rows to a batch of tensors.

    pad_token_id: PAD.
    pad_to_multiple_of: T is rounded up to it.
    method: how the sequences of packed rows are kept separate. None: rows are not packed, and
        padded on the right. "positions": all rows of the batch make one, (1, sum of T), whose
        positions restart with each sequence, which the model's own mask follows. "mask": rows stay
        rows, with a block-diagonal mask (B, 1, T, T), for models whose own mask does not follow
        positions.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    method: str | None = None

    def __call__(
        self, rows: Sequence[Mapping[str, Any]], padding_free: bool = False
    ) -> dict[str, Any]:
        """A batch: `input_ids`, `labels`, and what keeps packed sequences separate.

        The first label of each packed sequence is -100.

        Args:
            rows: B rows with `input_ids` and `labels`, and `seq_lengths` where packed.
            padding_free: make one row of them, however this run packs.
        """
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        flat = padding_free or self.method == "positions"
        collate = DataCollatorForLanguageModeling(
            pad_token_id=self.pad_token_id,
            pad_to_multiple_of=self.pad_to_multiple_of,
            padding_free=flat,
            return_position_ids=self.method == "mask",
        )
        batch = dict(collate([dict(row) for row in rows]))
        if self.method == "mask" and not flat:
            batch["labels"][batch["position_ids"] == 0] = IGNORED
            batch["attention_mask"] = _block_diagonal(
                [sequence_lengths(row) for row in rows], batch["input_ids"].shape[1]
            )
        return batch


def _block_diagonal(lengths: Sequence[Sequence[int]], width: int) -> Any:
    """The mask (B, 1, T, T): 0 where attention is allowed, else the lowest float16.

    That is finite in any precision, and its weight rounds to nothing.

    Two sequences of 2 and 1 tokens, and one token of padding:

        0 . . .
        0 0 . .
        . . 0 .
        . . . .
    """
    import torch

    mask = torch.full((len(lengths), 1, width, width), torch.finfo(torch.float16).min)
    for row, parts in enumerate(lengths):
        start = 0
        for length in parts:
            block = torch.ones(length, length, dtype=torch.bool).tril()
            mask[row, 0, start : start + length, start : start + length][block] = 0.0
            start += length
    return mask


def count(batch: Mapping[str, Any]) -> tuple[int, int]:
    """(tokens without padding, sequences) of a batch of `Collator`."""
    if "cu_seq_lens_q" in batch:
        return int(batch["cu_seq_lens_q"][-1]), len(batch["cu_seq_lens_q"]) - 1
    mask = batch["attention_mask"]
    if mask.dim() == 2:
        return int(mask.sum()), mask.shape[0]
    real = mask[:, 0].diagonal(dim1=-2, dim2=-1) == 0
    return int(real.sum()), int((real & (batch["position_ids"] == 0)).sum())
