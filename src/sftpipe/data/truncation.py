"""Rows that are too long, made to fit (over_length=truncate; docs/rules.md, L6)."""

from __future__ import annotations

from dataclasses import replace

from sftpipe.data.encode import Encoded, Encoder
from sftpipe.data.labels import IGNORED
from sftpipe.data.rows import TOO_LONG
from sftpipe.data.samples import Conversation, Sample
from sftpipe.errors import Problem, RowError


def truncate(
    sample: Sample, row: Encoded, limit: int, encoder: Encoder, where: str
) -> Encoded | RowError:
    """A row of at most `limit` tokens: its prompt loses tokens from the left, its answer none.

    Of a conversation the oldest exchanges go, the system turn stays; of strings the first tokens
    go, BOS and a last one stay.
    """
    if len(row.input_ids) <= limit:
        return row
    if isinstance(sample, Conversation):
        shorter = _without_oldest(sample, limit, encoder, where)
    else:
        shorter = _without_first(row, limit, len(encoder.added_bos_of(row.input_ids)))
    if shorter is not None:
        return replace(shorter, cut=len(row.input_ids) - len(shorter.input_ids))
    tokens = len(row.input_ids)
    found = f"{tokens} tokens, and no prompt that could be cut to fit sft.max_length={limit}"
    return RowError(TOO_LONG, Problem(where, found, fix=f"`sft.max_length={tokens}`"))


def _without_oldest(chat: Conversation, limit: int, encoder: Encoder, where: str) -> Encoded | None:
    """The row of the newest exchanges that fit; None if not even the last one does."""
    # a completion of several turns is never truncated
    end = chat.prompt_length or len(chat.messages)
    users = [at for at, message in enumerate(chat.messages[:end]) if message["role"] == "user"]
    low, high, best = 1, len(users), None
    while low < high:  # fewer exchanges never make a longer row
        middle = (low + high) // 2
        (row,) = encoder.encode([_from_turn(chat, users[middle])], [where])
        if isinstance(row, Encoded) and len(row.input_ids) <= limit:
            best, high = row, middle
        else:
            low = middle + 1
    return best


def _from_turn(chat: Conversation, start: int) -> Conversation:
    """The conversation from a turn on, with its system turn."""
    head = [at for at, one in enumerate(chat.messages) if one["role"] in ("system", "developer")]
    system = chat.messages[: len(head)]
    return replace(
        chat,
        messages=(*system, *chat.messages[start:]),
        train=(*chat.train[: len(system)], *chat.train[start:]),
        prompt_length=chat.prompt_length and chat.prompt_length - start + len(system),
    )


def _without_first(row: Encoded, limit: int, bos: int) -> Encoded | None:
    """The row without the first tokens after its BOS; None if that would take a trained one."""
    start = len(row.input_ids) - limit + bos
    if any(label != IGNORED for label in row.labels[: start + 1]):
        return None
    return replace(
        row,
        input_ids=row.input_ids[:bos] + row.input_ids[start:],
        labels=row.labels[:bos] + row.labels[start:],
    )
