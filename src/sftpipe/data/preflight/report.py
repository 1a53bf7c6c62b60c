"""The report on the data of a run, which becomes preflight.json.

The rows are measured (facts.py, parity.py, duplicates.py), then checked together with the config
(checks.py; to add a check, see there).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sftpipe.config.schema import TrainConfig
from sftpipe.data.cleaning import FORGED
from sftpipe.data.encode import Encoder
from sftpipe.data.packing import PackingReport
from sftpipe.data.preflight.checks import (
    PART_ERRORS,
    PART_WARNINGS,
    RUN_ERRORS,
    RUN_WARNINGS,
    Findings,
    PartFindings,
    less_than_one_batch,
)
from sftpipe.data.preflight.duplicates import Duplicates, find_duplicates
from sftpipe.data.preflight.facts import padding_of, read_facts
from sftpipe.data.preflight.parity import compare
from sftpipe.data.preflight.remarks import Said, said_of
from sftpipe.data.rows import TOO_LONG, Dropped, Part
from sftpipe.errors import DataError, Problem

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class SplitReport:
    """One split of one source, after encoding and before packing. Lengths are tokens.

    split, source: as in `Part`.
    rows: rows that are used.
    tokens, trained_tokens: over those rows.
    length_p50, length_p95, length_p99, length_max: of those rows.
    length_bins: [[shortest, longest, rows], ...], a histogram of those lengths.
    over_length_rows: rows that were dropped because they are longer than `sft.max_length`.
    truncated_rows: rows that were truncated to fit it.
    lost_answer_tokens: trained tokens of the rows that were dropped for their length, and of
        exchanges that were truncated.
    dropped: {reason: rows}; each of them is in `Preflight.dropped`.
    end_trained_rows: rows whose trained part ends in a special token, which tells generation to
        stop.
    bos_rows: {"0", "1" or "2": rows with that many BOS at the front}; "2" is two or more.
    unk_rows, pad_rows: rows with UNK or PAD in them (0 where the token is EOS or BOS, too).
    repeated_rows: rows that equal an earlier one of their split.
    shared_rows: rows that equal one of an earlier split.
    shared_prompts: other rows whose prompt is in an earlier split.
    forged_rows: rows with special tokens in their texts: escaped, or dropped.
    compared_rows: how many were compared with the prompt of generation, and with their text.
    """

    split: str
    source: str
    rows: int
    tokens: int
    trained_tokens: int
    length_p50: float
    length_p95: float
    length_p99: float
    length_max: int
    length_bins: list[list[int]]
    over_length_rows: int
    truncated_rows: int
    lost_answer_tokens: int
    dropped: dict[str, int]
    end_trained_rows: int
    bos_rows: dict[str, int]
    unk_rows: int
    pad_rows: int
    repeated_rows: int
    shared_rows: int
    shared_prompts: int
    forged_rows: int
    compared_rows: int

    @property
    def place(self) -> str:
        """As `Part.place`."""
        return f"{self.source} {self.split}".strip()


@dataclass(frozen=True)
class Preflight:
    """The report that is written to preflight.json.

    splits: one for each split of each source.
    dropped: the rows that are not trained on, each with its place and its problem.
    remarks: what is to be said of rows that are, such as columns that nothing reads.
    warnings: problems that deserve a look, and stop nothing.
    end_tokens: {special token that ends a trained part: rows}; generation must stop at each.
    special_tokens: {its name in the tokenizer: [token, id]}.
    padding_share: padding as a share of all tokens of the training batches; an estimate, for their
        order is drawn later.
    packing: the report of packing; None without it.
    """

    splits: list[SplitReport]
    dropped: list[Dropped]
    remarks: list[Said]
    warnings: list[Problem]
    end_tokens: dict[str, int]
    special_tokens: dict[str, list[Any]]
    padding_share: float
    packing: PackingReport | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def check_data(
    parts: Mapping[str, Sequence[Part]],
    rows: Mapping[str, Dataset],
    encoder: Encoder,
    cfg: TrainConfig,
    packing: PackingReport | None,
) -> Preflight:
    """Measure the rows, and check them and the config against each other.

    Args:
        parts: {split: its encoded rows, one part for each source}.
        rows: {split: its finished rows, joined and packed}.
        encoder: made the rows; it has the tokenizer, and renders the prompts of generation.
        cfg: the config that the rows must fit.
        packing: the report of packing, if there was any.

    Raises:
        DataError: holds every problem that was found.
    """
    found = [_find(part, encoder, cfg) for group in parts.values() for part in group]
    duplicates = find_duplicates([one.part for one in found], [one.facts for one in found])
    run = Findings(parts, found, duplicates, encoder, cfg)
    problems = [problem for one in found for check in PART_ERRORS for problem in check(one)]
    problems += [problem for check in RUN_ERRORS for problem in check(run)]
    problems += less_than_one_batch(len(rows["train"]), cfg)
    if problems:
        raise DataError(*problems)
    return Preflight(
        splits=[_split_report(one, number, duplicates) for number, one in enumerate(found)],
        dropped=[dropped for one in found for dropped in one.part.dropped],
        remarks=[said for one in found for said in said_of(one.part)],
        warnings=[
            *(problem for one in found for check in PART_WARNINGS for problem in check(one)),
            *(problem for check in RUN_WARNINGS for problem in check(run)),
        ],
        end_tokens=_end_tokens(found, encoder.tokenizer),
        special_tokens={
            name: [getattr(encoder.tokenizer, name), getattr(encoder.tokenizer, f"{name}_id")]
            for name in ("pad_token", "eos_token", "bos_token", "unk_token")
        },
        padding_share=padding_of(rows["train"], cfg, packing.isolation if packing else None),
        packing=packing,
    )


def _end_tokens(
    found: Sequence[PartFindings], tokenizer: PreTrainedTokenizerFast
) -> dict[str, int]:
    ends = Counter[int]()
    for one in found:
        ends.update(one.facts.end[one.facts.end >= 0].tolist())
    return {tokenizer.convert_ids_to_tokens(end): count for end, count in ends.most_common()}


def _find(part: Part, encoder: Encoder, cfg: TrainConfig) -> PartFindings:
    facts = read_facts(part, encoder)
    compared = compare(part, (facts.cut == 0).nonzero()[0], encoder)
    return PartFindings(part, facts, compared, encoder, cfg)


def _split_report(find: PartFindings, number: int, duplicates: Duplicates) -> SplitReport:
    part, facts = find.part, find.facts
    reasons = Counter(one.reason for one in part.dropped)
    too_long = [one for one in part.dropped if one.reason == TOO_LONG]
    here = duplicates.of_part(number)
    return SplitReport(
        split=part.split,
        source=part.source,
        rows=len(part.rows),
        tokens=int(facts.length.sum()),
        trained_tokens=int(facts.trained.sum()),
        **_lengths(facts.length),
        over_length_rows=len(too_long),
        truncated_rows=int((facts.cut > 0).sum()),
        lost_answer_tokens=int(facts.lost.sum()) + sum(one.trained_tokens for one in too_long),
        dropped=dict(reasons.most_common()),
        end_trained_rows=int((facts.end >= 0).sum()),
        bos_rows={str(count): int((facts.bos == count).sum()) for count in range(3)},
        unk_rows=int(facts.has_unk.sum()),
        pad_rows=int(facts.has_pad.sum()),
        repeated_rows=int(duplicates.repeated[here].sum()),
        shared_rows=int(duplicates.rows[here].sum()),
        shared_prompts=int(duplicates.prompts[here].sum()),
        forged_rows=int(facts.escaped.sum()) + reasons[FORGED],
        compared_rows=find.compared.rows,
    )


def _lengths(length: np.ndarray) -> dict[str, Any]:
    import numpy as np

    percentiles = np.percentile(length, (50, 95, 99)) if len(length) else (0, 0, 0)
    p50, p95, p99 = (round(float(value), 1) for value in percentiles)
    longest = int(length.max(initial=0))
    return {
        "length_p50": p50,
        "length_p95": p95,
        "length_p99": p99,
        "length_max": longest,
        "length_bins": length_bins(length),
    }


def length_bins(length: np.ndarray) -> list[list[int]]:
    """A histogram of whole numbers: [[smallest, largest, how many], ...], bins of one width."""
    import numpy as np

    if not len(length):
        return []
    first, last = int(length.min()), int(length.max())
    width = -(-(last - first + 1) // _BINS)
    counts = np.bincount((length - first) // width)
    return [
        [first + width * at, first + width * (at + 1) - 1, int(count)]
        for at, count in enumerate(counts)
    ]


_BINS = 24  # at most
