"""What the data of a run looks like, and what must hold before the first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from sftpipe.data.labels import IGNORED
from sftpipe.errors import DataError, Problem
from sftpipe.schema import TrainConfig

_SHOWN = 3  # rows that a message shows of each reason


@dataclass(frozen=True)
class Dropped:
    """A row that teaches nothing.

    index: its place in its split.
    reason: a short phrase; rows are counted by it.
    where, found, allowed, fix: the parts of its `Problem`.
    origin: file and line, where they are known.
    """

    index: int
    reason: str
    where: str
    found: str
    allowed: str
    fix: str
    origin: str = ""

    def problem(self) -> Problem:
        """As a person reads it."""
        return Problem(f"{self.where} ({self.origin})" if self.origin else self.where, self.found, self.allowed, self.fix)


@dataclass(frozen=True)
class Part:
    """The finished rows of one split of one source.

    split, source: "train", and the name of the source ("" for the only one).
    read: rows of the source.
    rows: `datasets.Dataset` with `input_ids`, `labels`, `index`, the place of each in the source, and `cut`, the tokens that were cut off.
    dropped: rows that made none.
    over_length: rows that were dropped for their length.
    """

    split: str
    source: str
    read: int
    rows: Any
    dropped: Sequence[Dropped]
    over_length: int = 0

    @property
    def place(self) -> str:
        """The name of the part in messages; `[index]` follows."""
        return f"{self.source} {self.split}".strip()

    def lengths(self) -> Any:
        """Tokens of each row, as a numpy array (rows,)."""
        import numpy as np
        import pyarrow.compute as pc

        if not len(self.rows):
            return np.zeros(0, dtype=np.int64)
        column = self.rows.with_format("arrow")[:]["input_ids"]
        return pc.list_value_length(column).to_numpy()


@dataclass
class SplitReport:
    """One split of one source, after encoding. Lengths are tokens.

    split, source: which.
    rows: rows that are used.
    tokens, trained_tokens: over those rows.
    length_median, length_max: of those rows.
    over_length_rows: rows longer than `sft.max_length`; dropped.
    truncated_rows: rows whose prompt was cut to fit it.
    dropped: {reason: rows that teach nothing}; the first of them stand in `Preflight.dropped`.
    """

    split: str
    source: str
    rows: int
    tokens: int
    trained_tokens: int
    length_median: float
    length_max: int
    over_length_rows: int
    truncated_rows: int
    dropped: dict[str, int]

    @property
    def place(self) -> str:
        """As `Part.place`."""
        return f"{self.source} {self.split}".strip()


@dataclass
class Preflight:
    """The report that is written to preflight.json.

    splits: one for each split of each source.
    dropped: the rows that teach nothing, with where they stand and what is wrong.
    end_tokens: {last trained token: rows that end in it}; generation must stop at each of them.
    """

    splits: list[SplitReport] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    duplicates_across_splits: int = 0
    end_tokens: dict[str, int] = field(default_factory=dict)
    special_tokens: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def summary(self) -> str:
        """Rows of each split, and what was dropped, on one line for each."""
        rows: Counter[str] = Counter()
        dropped: dict[str, Counter[str]] = {}
        for one in self.splits:
            rows[one.split] += one.rows
            dropped.setdefault(one.split, Counter()).update(one.dropped)
            dropped[one.split]["too long"] += one.over_length_rows
        lines = [", ".join(f"{count:,} {split}" for split, count in rows.items()) + " rows"]
        for split, reasons in dropped.items():
            if reasons.total():
                counted = ", ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common() if count)
                lines.append(f"dropped   of {split}: {counted}; `sftpipe check` lists them")
        return "\n".join(lines)

    def split(self, name: str) -> SplitReport:
        """The report of a split that has one source."""
        (report,) = (report for report in self.splits if report.split == name)
        return report


def inspect(parts: Mapping[str, Sequence[Part]], tokenizer: Any, cfg: TrainConfig) -> Preflight:
    """Measure finished rows and check them against the limits.

    Args:
        parts: {split: its rows, one part for each source}.
        tokenizer: for the ids of the special tokens.
        cfg: for the limits, and for the loss.

    Raises:
        DataError: too many rows teach nothing, every token is trained though the loss says otherwise, or a rendered row stands in two
            splits.
    """
    report = Preflight(special_tokens={name: [getattr(tokenizer, name), getattr(tokenizer, f"{name}_id")]
                                       for name in ("pad_token", "eos_token", "bos_token", "unk_token")})  # fmt: skip
    problems: list[Problem] = []
    seen: dict[bytes, str] = {}  # digests of the rows of earlier splits, and their places
    ends: Counter[int] = Counter()
    for split, group in parts.items():
        here: dict[bytes, str] = {}
        repeated: list[tuple[str, str]] = []
        for part in group:
            trained = _read_rows(part, tokenizer, ends, seen, here, repeated)
            lengths = part.lengths()
            reasons = Counter(one.reason for one in part.dropped)
            report.dropped += part.dropped
            report.splits.append(
                SplitReport(
                    split=split,
                    source=part.source,
                    rows=len(part.rows),
                    tokens=int(lengths.sum()),
                    trained_tokens=trained,
                    length_median=float(_median(lengths)),
                    length_max=int(lengths.max(initial=0)),
                    over_length_rows=part.over_length,
                    truncated_rows=sum(cut > 0 for cut in part.rows["cut"]),
                    dropped=dict(reasons.most_common()),
                )
            )
            if len(part.dropped) > cfg.preflight.max_empty_rows * part.read or not len(part.rows):
                problems += _too_many_dropped(part, reasons, cfg)
            elif trained == lengths.sum() and cfg.loss.type != "full":
                problems.append(_all_trained(part, cfg))
        seen |= here
        report.duplicates_across_splits += len(repeated)
        if repeated:
            problems.append(_in_two_splits(split, repeated))
    report.end_tokens = {tokenizer.convert_ids_to_tokens(token): count for token, count in ends.items()}
    if problems:
        raise DataError(*problems)
    return report


def _read_rows(
    part: Part, tokenizer: Any, ends: Counter[int], seen: Mapping[bytes, str], here: dict[bytes, str], repeated: list[tuple[str, str]]
) -> int:
    """Go once through the rows of a part: count the special tokens that answers end in, find rows of earlier splits.

    White space behind an end token, which a response template trains too, is no place to stop at.

    Returns:
        The number of trained tokens.
    """
    import hashlib

    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)

    @cache
    def is_blank(token: int) -> bool:
        return not tokenizer.decode([token]).strip()

    trained = 0
    for row in part.rows.with_format("numpy").iter(batch_size=1000) if len(part.rows) else ():
        for index, ids, labels in zip(row["index"], row["input_ids"], row["labels"], strict=True):
            answer = labels[labels != IGNORED]
            trained += len(answer)
            last = next((int(token) for token in answer[::-1] if not is_blank(int(token))), None)
            if last is not None and last in special:
                ends[last] += 1
            key, place = hashlib.blake2b(ids.tobytes(), digest_size=16).digest(), f"{part.place}[{index}]"
            if key in seen:
                repeated.append((place, seen[key]))
            else:
                here.setdefault(key, place)
    return trained


def _median(lengths: Any) -> Any:
    import numpy as np

    return np.median(lengths) if len(lengths) else 0


def _too_many_dropped(part: Part, reasons: Counter[str], cfg: TrainConfig) -> list[Problem]:
    counted = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    summary = Problem(
        where=part.place,
        found=f"{len(part.dropped)} of {part.read} rows teach nothing: {counted}",
        allowed=f"preflight.max_empty_rows={cfg.preflight.max_empty_rows} of the rows",
        fix="mend the rows below, the format or the loss; preflight.max_empty_rows=1 lets sftpipe preview show the rest",
    )
    shown: list[Problem] = []
    for reason in reasons:
        shown += [one.problem() for one in part.dropped if one.reason == reason][:_SHOWN]
    return [summary, *shown]


def _all_trained(part: Part, cfg: TrainConfig) -> Problem:
    return Problem(
        where=f"{part.place}, loss={cfg.loss.type}",
        found="every token of every row is trained: no prompt is masked",
        allowed="a prompt in front of what is trained",
        fix="loss=full if that is meant; else look at sftpipe preview",
    )


def _in_two_splits(split: str, repeated: Sequence[tuple[str, str]]) -> Problem:
    place, other = repeated[0]
    return Problem(
        where=place,
        found=f"the same row as {other}: {len(repeated)} rows of {split} were seen in another split",
        allowed="no row in two splits; the loss on it would measure memory",
        fix="remove the duplicates from the data set",
    )
