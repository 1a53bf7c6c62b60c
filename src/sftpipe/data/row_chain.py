"""The straight way of a row: parsed, stripped of markers, formatted, cleaned, encoded, truncated.

raw row -> SampleReader -> Conversation | PromptCompletion | Text
        -> RowEncoder -> Encoded, or a RowError at any step
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sftpipe.config.schema import FormatConfig
from sftpipe.data.chat_template import unrolled
from sftpipe.data.cleaning import Cleaner
from sftpipe.data.encode import Encoded, Encoder
from sftpipe.data.formats import patterns_of, read_columns, to_samples, unread_columns
from sftpipe.data.labels import IGNORED
from sftpipe.data.messages import UNREAD_COLUMN
from sftpipe.data.rows import FILLED, Dropped, Rows
from sftpipe.data.samples import Conversation, PromptCompletion, Remark, Row, Sample
from sftpipe.data.truncation import truncate
from sftpipe.errors import RowError

BATCH = 1000  # rows that are formatted and tokenised together


@dataclass(frozen=True)
class SampleReader:
    """The samples of one split of one source.

    rows: as they are read from disk.
    format: how a row becomes a sample.
    cleaner: what the texts of a row pass.
    place: the name of the split in messages; `[index]` follows.
    """

    rows: Rows
    format: FormatConfig
    cleaner: Cleaner
    place: str

    def read(self, rows: Sequence[Row], indices: Sequence[int]) -> list[Sample | RowError]:
        """A sample, or its error, for each raw row."""
        locations = [f"{self.place}[{index}]" for index in indices]
        if self.format.type != "function":  # row_function.py strips what it hands to the function
            rows = [self.cleaner.strip(row) for row in rows]
        samples = to_samples(rows, self.format, locations, self.cleaner.clean)
        if self.format.type != "template":
            return samples
        return [self._checked(*one) for one in zip(samples, rows, locations, strict=True)]

    def _checked(self, sample: Sample | RowError, row: Row, where: str) -> Sample | RowError:
        try:
            if isinstance(sample, PromptCompletion):
                pattern = "".join(patterns_of(row, self.format, where))
                self.cleaner.check_filled(sample, pattern, where)
        except RowError as error:
            return error
        return sample

    def __iter__(self) -> Iterator[Sample]:
        """The samples in the order of the data set, without rows that make none."""
        for start in range(0, len(self.rows), BATCH):
            rows = self.rows[start : start + BATCH]
            for sample in self.read(rows, range(start, start + len(rows))):
                if not isinstance(sample, RowError):
                    yield sample

    def sample(self, index: int) -> Sample | RowError:
        """The sample of one row, read again."""
        (found,) = self.read(self.rows[index : index + 1], [index])
        return found


@dataclass(frozen=True)
class EncodedBatch:
    """What became of a batch of raw rows.

    finished: rows with the columns of an encoded table.
    dropped: the rows of which nothing is trained.
    remarks: {what is to be said of rows that are used: their numbers}.
    """

    finished: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    remarks: dict[Remark, set[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class RowEncoder:
    """Raw rows to finished ones: the one object that a worker process is given.

    reader: makes the samples; the table of its rows stays with the main process.
    encoder: makes ids and labels of them.
    truncate_to: tokens that longer rows are truncated to (over_length=truncate); None leaves them.
    """

    reader: SampleReader
    encoder: Encoder
    truncate_to: int | None = None

    def for_workers(self) -> RowEncoder:
        """The same without the table; a worker is handed its batches."""
        rows = replace(self.reader.rows, table=None)
        return replace(self, reader=replace(self.reader, rows=rows))

    def samples(self, index: int) -> list[Sample]:
        """What the format makes of one row: several samples if `loss.unroll` makes several."""
        found = self._unroll(self.reader.sample(index))
        return [sample for sample in found if not isinstance(sample, RowError)]

    def encode(self, batch: Mapping[str, Sequence[Any]], indices: Sequence[int]) -> EncodedBatch:
        """The finished rows of a batch of the table, and those of which nothing is trained."""
        raw = self.reader.rows.decode(batch)
        work = [
            (index, f"{self.reader.place}[{index}]", sample)
            for index, read in zip(indices, self.reader.read(raw, indices), strict=True)
            for sample in self._unroll(read)
        ]
        good = [(sample, where) for _, where, sample in work if not isinstance(sample, RowError)]
        encoded = iter(self.encoder.encode([one for one, _ in good], [where for _, where in good]))
        made = EncodedBatch(remarks=self._unread(raw, indices))
        filled = {
            index
            for index, nulls in zip(indices, self.reader.rows.filled(batch), strict=True)
            if nulls
        }
        if filled:
            made.remarks[Remark(FILLED)] = filled
        for index, where, sample in work:
            if isinstance(sample, RowError):
                made.dropped.append(_dropped(index, sample, None))
                continue
            whole = next(encoded)
            row = self._truncate(sample, whole, where)
            if isinstance(row, RowError):
                made.dropped.append(_dropped(index, row, whole))
                continue
            made.finished.append({**self._facts(sample, row, whole), "index": index})
            for remark in row.remarks:
                made.remarks.setdefault(remark, set()).add(index)
        return made

    def _unread(self, raw: Sequence[Row], indices: Sequence[int]) -> dict[Remark, set[int]]:
        """The columns that nothing reads, with the rows that have something in them."""
        read = read_columns(self.reader.format)
        found: dict[Remark, set[int]] = {}
        if read is None:  # of a function, which is given the whole row
            return found
        for index, row in zip(indices, raw, strict=True):
            for name in () if row.keys() <= read else unread_columns(row, read):
                found.setdefault(Remark(UNREAD_COLUMN, name), set()).add(index)
        return found

    def _unroll(self, sample: Sample | RowError) -> Sequence[Sample | RowError]:
        """The sample, or one for each of its trained turns (`loss.unroll`)."""
        if self.encoder.loss.unroll and isinstance(sample, Conversation):
            return unrolled(sample, self.encoder.loss.type) or [sample]
        return [sample]

    def _truncate(self, sample: Sample, row: Encoded | RowError, where: str) -> Encoded | RowError:
        if self.truncate_to is None or isinstance(row, RowError):
            return row
        return truncate(sample, row, self.truncate_to, self.encoder, where)

    def _facts(self, sample: Sample, row: Encoded, whole: Encoded | RowError) -> dict[str, Any]:
        return {
            "input_ids": row.input_ids,
            "labels": row.labels,
            "length": len(row.input_ids),
            "cut": row.cut,
            "lost": _trained(whole) - _trained(row),
            "escaped": self.reader.cleaner.has_escaped(sample),
        }


def _dropped(index: int, error: RowError, whole: Encoded | RowError | None) -> Dropped:
    tokens = len(whole.input_ids) if isinstance(whole, Encoded) else 0
    return Dropped(
        index=index,
        reason=error.reason,
        **asdict(error.problem),
        tokens=tokens,
        trained_tokens=_trained(whole),
    )


def _trained(row: Encoded | RowError | None) -> int:
    """Trained tokens of a row."""
    return len(row.labels) - row.labels.count(IGNORED) if isinstance(row, Encoded) else 0
