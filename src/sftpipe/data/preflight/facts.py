"""Finished rows in numbers: one pass over the columns, a few thousand rows at a time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from sftpipe.config.schema import TrainConfig
from sftpipe.data.encode import Encoder
from sftpipe.data.labels import IGNORED
from sftpipe.data.packing import Isolation
from sftpipe.data.rows import Part, batches, row_lengths

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset


@dataclass(frozen=True)
class RowFacts:
    """The facts about each row of a part that the checks ask for.

    Every array is (rows,), the digests are (rows, 2).

    length, trained: its tokens, and those that are trained.
    cut, lost: tokens, and trained tokens, that truncation took.
    escaped: true if special tokens in its text were made plain text.
    end: the special token that its trained part ends in (white space after it does not count); -1
        without one.
    bos: BOS tokens at its front, two at the most.
    has_unk, has_pad: true if the token is in it.
    row, prompt: digests of its ids, and of those before the last answer; 0, 0 where there are none.
    """

    length: np.ndarray
    trained: np.ndarray
    cut: np.ndarray
    lost: np.ndarray
    escaped: np.ndarray
    end: np.ndarray
    bos: np.ndarray
    has_unk: np.ndarray
    has_pad: np.ndarray
    row: np.ndarray
    prompt: np.ndarray


def read_facts(part: Part, encoder: Encoder) -> RowFacts:
    """The facts about the rows of a part, read in one pass."""
    import numpy as np

    made = [_facts(table, encoder) for table in batches(part.rows)]
    shapes = {"row": (0, 2), "prompt": (0, 2)}
    joined = {
        field.name: np.concatenate([getattr(batch, field.name) for batch in made])
        if made
        else np.zeros(shapes.get(field.name, (0,)), dtype=np.int64)
        for field in fields(RowFacts)
    }
    return RowFacts(**joined)


def _facts(table: pa.Table, encoder: Encoder) -> RowFacts:
    """The facts of a batch; positions count through all of its rows, joined.

    ids         1  9  8  7  2 | 1  9  6  2        two rows
    is_trained  0  0  0  1  1 | 0  0  1  1
    starts      0               5
    answer               3            7           after the last masked token
    last                    4            8        the last trained token
    """
    import numpy as np
    import pyarrow.compute as pc

    tokenizer = encoder.tokenizer
    length = table["length"].to_numpy().astype(np.int64)
    ids = pc.list_flatten(table["input_ids"]).to_numpy().astype(np.int32)
    is_trained = pc.list_flatten(table["labels"]).to_numpy() != IGNORED
    stops = np.cumsum(length)
    starts = stops - length
    at = np.arange(len(ids))
    last = np.maximum.accumulate(np.where(is_trained, at, 0))[stops - 1]
    answer = np.maximum(np.maximum.accumulate(np.where(is_trained, -1, at))[last] + 1, starts)

    bos_id = tokenizer.bos_token_id
    is_bos = ids == (-1 if bos_id is None else bos_id)
    second = np.minimum(starts + 1, len(ids) - 1)
    bos = is_bos[starts].astype(np.int64) * (1 + (is_bos[second] & (length > 1)))
    # a token that is EOS or BOS, too, is no sign of something unknown or of padding
    ends = {tokenizer.eos_token_id, bos_id}
    return RowFacts(
        length=length,
        trained=np.add.reduceat(is_trained, starts, dtype=np.int64),
        cut=table["cut"].to_numpy(),
        lost=table["lost"].to_numpy(),
        escaped=table["escaped"].to_numpy(),
        end=_ends(ids, last, answer, encoder),
        bos=bos,
        has_unk=_holds(ids, starts, tokenizer.unk_token_id, ends),
        has_pad=_holds(ids, starts, tokenizer.pad_token_id, ends),
        row=_digests(ids, starts, stops),
        prompt=_digests(ids, starts, answer),
    )


def _holds(
    ids: np.ndarray, starts: np.ndarray, token: int | None, ends: set[int | None]
) -> np.ndarray:
    """True for each row with the token in it; false for all where the token is one of `ends`."""
    import numpy as np

    counts = token is not None and token not in ends
    found = ids == token if counts else np.zeros(len(ids), dtype=bool)
    return np.logical_or.reduceat(found, starts)


def _ends(ids: np.ndarray, last: np.ndarray, answer: np.ndarray, encoder: Encoder) -> np.ndarray:
    """The special token at the end of each answer; white space after it is passed over."""
    import numpy as np

    special = np.fromiter(encoder.special.ids, dtype=np.int64)
    end = np.where(np.isin(ids[last], special), ids[last], -1).astype(np.int64)
    for row in np.flatnonzero(end == -1):
        at = last[row]
        while (
            at > answer[row]
            and not encoder.tokenizer.decode([ids[at]]).strip()
            and ids[at] not in encoder.special
        ):
            at -= 1
        end[row] = ids[at] if ids[at] in encoder.special else -1
    return end


def _digests(ids: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """16 bytes for each stretch of ids, as two numbers; 0, 0 for an empty one."""
    import numpy as np

    content = memoryview(np.ascontiguousarray(ids).view(np.uint8).data)
    width = ids.itemsize
    made = (
        hashlib.blake2b(content[start * width : stop * width], digest_size=16).digest()
        if stop > start
        else bytes(16)
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
    )
    return np.frombuffer(b"".join(made), dtype=np.int64).reshape(-1, 2)


def equal_before(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row the first row that equals it, and the last one before it; both (rows,).

    The first is mostly the row itself; the other is -1 where there is none.

    digests   a  b  a  a  b
    first     0  1  0  0  1
    previous -1 -1  0  2  1
    """
    import numpy as np

    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal rows stay in their order
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (digests[order][1:] != digests[order][:-1]).any(axis=1)
    first, previous = np.empty_like(order), np.full_like(order, -1)
    first[order] = order[np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))]
    previous[order[1:]] = np.where(is_new[1:], -1, order[:-1])
    return first, previous


def padding_of(rows: Dataset, cfg: TrainConfig, isolation: Isolation | None) -> float:
    """`padding_share` of finished, packed rows in batches as the config asks for them."""
    if isolation and isolation.method == "positions":
        return 0.0  # the rows of a batch are joined to one
    return padding_share(
        row_lengths(rows),
        cfg.sft.get("per_device_train_batch_size", 8),
        cfg.sft.get("train_sampling_strategy", "random"),
        cfg.sft.get("pad_to_multiple_of") or 1,
    )


def padding_share(lengths: np.ndarray, batch_size: int, strategy: str, multiple: int) -> float:
    """The share of padding in all tokens of an epoch's batches.

    An estimate: the order of the real batches is drawn later.

    Args:
        lengths: tokens of each row, (rows,).
        batch_size: rows of a batch.
        strategy: `sft.train_sampling_strategy`. group_by_length is what transformers makes of it:
            rows in random order, sorted by length within stretches of up to 50 batches.
        multiple: batches are as wide as a multiple of it.
    """
    import numpy as np

    if not len(lengths):
        return 0.0
    drawn = lengths if strategy == "sequential" else np.random.default_rng(0).permutation(lengths)
    if strategy in ("group_by_length", "batch_rebalance"):
        stretch = batch_size * max(1, min(len(drawn) // (batch_size * 4), 50))
        drawn = np.concatenate(
            [
                np.sort(drawn[start : start + stretch])[::-1]
                for start in range(0, len(drawn), stretch)
            ]
        )
    starts = np.arange(0, len(drawn), batch_size)
    widths = -(-np.maximum.reduceat(drawn, starts) // multiple) * multiple
    total = int((widths * np.diff([*starts, len(drawn)])).sum())
    return 1 - int(drawn.sum()) / total
