"""A sample of finished rows, compared with the prompts of generation and with their texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from sftpipe.data.encode import Encoder
from sftpipe.data.labels import IGNORED
from sftpipe.data.rows import Part
from sftpipe.data.samples import Sample

COMPARED = 100  # rows of a part, evenly spread
_SHOWN = 60  # characters that an excerpt shows at each end


@dataclass
class Comparison:
    """What was found; the lists hold positions of finished rows.

    rows: how many were compared.
    prompts: rows that do not begin with the prompt of generation and go on with a trained token
        (L1).
    texts: rows that do not read back as their text (L2).
    spaces: rows whose prompt ends in a space that stands by itself.
    """

    rows: int = 0
    prompts: list[int] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)
    spaces: list[int] = field(default_factory=list)


def compare(part: Part, whole: Any, encoder: Encoder) -> Comparison:
    """Compare rows of a part that nothing was cut off.

    Args:
        part: finished rows.
        whole: positions of the rows that were not truncated.
        encoder: what made them.
    """
    import numpy as np

    found = Comparison()
    running = set(
        encoder.tokenizer("a a", add_special_tokens=False).input_ids
    )  # tokens that running text may hold
    chosen = (
        whole[np.unique(np.linspace(0, len(whole) - 1, min(COMPARED, len(whole))).astype(int))]
        if len(whole)
        else []
    )
    for position, row in zip(map(int, chosen), part.rows.select(chosen), strict=True):
        samples = part.samples(row["index"])
        if not samples:
            continue
        found.rows += 1
        if not any(_begins_with_prompt(row, sample, encoder) for sample in samples):
            found.prompts.append(position)
        if not any(_reads_back(row["input_ids"], sample, encoder) for sample in samples):
            found.texts.append(position)
        prompt = encoder.trained_prompt(samples[-1])
        if (
            isinstance(prompt, str)
            and prompt.endswith(" ")
            and encoder.prompt_ids(prompt)[-1] not in running
        ):
            found.spaces.append(position)
    return found


def _begins_with_prompt(row: Any, sample: Sample, encoder: Encoder) -> bool:
    prompt = encoder.trained_prompt(sample)
    if prompt is None:
        return True
    ids = encoder.prompt_ids(prompt)
    return bool(
        row["input_ids"][: len(ids)] == ids and row["labels"][len(ids) : len(ids) + 1] != [IGNORED]
    )


def _reads_back(ids: Sequence[int], sample: Sample, encoder: Encoder) -> bool:
    """Whether the ids decode to the text, BOS in front and EOS behind apart.

    A tokenizer that puts a space in front of words (SentencePiece), or whose tokens take in the
    white space around them, writes back other white space than it read.
    """
    if encoder.holds_unknown(ids):
        return True  # a warning counts such rows
    tokenizer = encoder.tokenizer
    texts = [tokenizer.decode(ids, clean_up_tokenization_spaces=False), encoder.text(sample)]
    if not encoder.keeps_space:
        texts = ["".join(text.split()) for text in texts]
    front, eos = (
        tokenizer.decode(encoder.added_bos),
        tokenizer.eos_token or "",
    )  # OPT's stays </s> whatever bos_token is
    decoded, text = (
        unicodedata.normalize("NFKC", text.removeprefix(front).removesuffix(eos)) for text in texts
    )
    return decoded == text


def first_difference(row: Any, sample: Sample, encoder: Encoder) -> str:
    """Where a row leaves the prompt of generation."""
    ids = encoder.prompt_ids(encoder.trained_prompt(sample) or "")
    at = next(
        (
            at
            for at, (ours, given) in enumerate(zip(row["input_ids"], ids, strict=False))
            if ours != given
        ),
        None,
    )
    decode = encoder.tokenizer.decode
    if at is None:
        return (
            f"the token behind it, {decode(row['input_ids'][len(ids) : len(ids) + 1])!r}, is not "
            "trained"
        )
    return (
        f"token {at} is {decode(row['input_ids'][at : at + 1])!r} in the row and "
        f"{decode(ids[at : at + 1])!r} in generation"
    )


def excerpt(row: Any, tokenizer: Any) -> str:
    """The beginning and the end of a row on one line, trained parts in ⟦ ⟧."""
    text = ""
    pairs = zip(row["input_ids"], (label != IGNORED for label in row["labels"]), strict=True)
    for is_trained, group in groupby(pairs, key=lambda pair: pair[1]):
        piece = tokenizer.decode([token for token, _ in group]).replace("\n", "\\n")
        text += f"⟦{piece}⟧" if is_trained else piece
    return text if len(text) <= 2 * _SHOWN + 3 else f"{text[:_SHOWN]} … {text[-_SHOWN:]}"
