"""A sample of finished rows, compared with the prompts of generation and with their texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sftpipe.data.encode import Encoder
from sftpipe.data.labels import IGNORED
from sftpipe.data.prompts import prompt_of
from sftpipe.data.rows import Part
from sftpipe.data.samples import Sample

if TYPE_CHECKING:
    import numpy as np

COMPARED = 100  # rows of a part, evenly spread


@dataclass
class Comparison:
    """The rows that were compared, and those that differ; the lists hold positions in `Part.rows`.

    rows: how many were compared.
    prompts: rows that do not begin with the prompt of generation and go on with a trained token
        (docs/rules.md, L1).
    texts: rows that do not decode to their text (docs/rules.md, L2).
    spaces: rows whose prompt ends in a space that is a token of its own.
    """

    rows: int = 0
    prompts: list[int] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)
    spaces: list[int] = field(default_factory=list)


def compare(part: Part, whole: np.ndarray, encoder: Encoder) -> Comparison:
    """Compare rows of a part with the prompts of generation, and with their texts.

    Args:
        part: finished rows.
        whole: positions of the rows that were not truncated.
        encoder: made the rows.
    """
    import numpy as np

    found = Comparison()
    # tokens of ordinary text: a tokenizer that always writes a space as a token of its own is fine
    running = set(encoder.tokenizer("a a", add_special_tokens=False).input_ids)
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
        prompt = prompt_of(samples[-1], encoder.loss)
        if (
            isinstance(prompt, str)
            and prompt.endswith(" ")
            and encoder.prompt_ids(prompt)[-1] not in running
        ):
            found.spaces.append(position)
    return found


def _begins_with_prompt(row: Mapping[str, Any], sample: Sample, encoder: Encoder) -> bool:
    prompt = prompt_of(sample, encoder.loss)
    if prompt is None:
        return True
    ids = encoder.prompt_ids(prompt)
    return bool(
        row["input_ids"][: len(ids)] == ids and row["labels"][len(ids) : len(ids) + 1] != [IGNORED]
    )


def _reads_back(ids: Sequence[int], sample: Sample, encoder: Encoder) -> bool:
    """True if the ids decode to the text, except for a BOS before it and an EOS after it.

    White space is compared, too, but for what cannot be read back: some added tokens take in the
    white space around them, and SentencePiece puts a space behind them.
    """
    if encoder.characters.reads_unk(ids):
        return True  # a warning counts such rows
    tokenizer = encoder.tokenizer
    texts = [tokenizer.decode(ids, clean_up_tokenization_spaces=False), encoder.text(sample)]
    texts = [encoder.segments.without_loose_space(text) for text in texts]
    front, eos = (
        tokenizer.decode(encoder.added_bos),
        tokenizer.eos_token or "",
    )  # OPT's stays </s> whatever bos_token is
    decoded, text = (
        unicodedata.normalize("NFKC", text.removeprefix(front).removesuffix(eos)) for text in texts
    )
    return decoded == text


def first_difference(row: Mapping[str, Any], sample: Sample, encoder: Encoder) -> str:
    """The first token in which a row and the prompt of generation differ, as a sentence."""
    ids = encoder.prompt_ids(prompt_of(sample, encoder.loss) or "")
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
            f"the token after it, {decode(row['input_ids'][len(ids) : len(ids) + 1])!r}, is not "
            "trained"
        )
    return (
        f"token {at} is {decode(row['input_ids'][at : at + 1])!r} in the row and "
        f"{decode(ids[at : at + 1])!r} in generation"
    )
