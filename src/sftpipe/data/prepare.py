"""From the rows of each source to the finished, packed rows of each split."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from sftpipe.config.schema import PACKING, TrainConfig
from sftpipe.config.validation_sets import VALIDATION, in_order, is_named_set
from sftpipe.data.cleaning import Cleaner
from sftpipe.data.encode import Encoder
from sftpipe.data.encode_split import encode_split
from sftpipe.data.formats import check_columns
from sftpipe.data.labels import IGNORED
from sftpipe.data.layouts import FIRST_ROWS
from sftpipe.data.packing import (
    Collator,
    Isolation,
    PackingReport,
    blocks,
    pack,
    sequence_lengths,
)
from sftpipe.data.preflight.checks import over_length_problem
from sftpipe.data.preflight.report import Preflight
from sftpipe.data.row_chain import RowEncoder, SampleReader
from sftpipe.data.rows import TOO_LONG, Dropped, Part, row_lengths
from sftpipe.data.samples import Sample
from sftpipe.data.source import Source
from sftpipe.data.version import code_digest
from sftpipe.errors import RowError
from sftpipe.storage import digest

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

Parts = Mapping[str, Sequence[Part]]  # {split: the encoded rows of each of its sources}


@dataclass(frozen=True)
class PreparedData:
    """Finished rows, and what made them.

    train, validation, test: `datasets.Dataset` with `input_ids` and `labels`, each (T,); None for a
        split that is absent. With packing=blocks the trainer draws its windows from all of train;
        the rows are the windows side by side.
    tokenizer: the fast tokenizer with its special tokens and chat template.
    preflight: the report on the rows.
    collate: (rows, padding_free=False) -> batch of (B, T) tensors, padded on the right;
        padding-free as one row (1, sum of T) whose positions restart with each sequence and whose
        first labels are masked.
    isolation: how packed sequences are kept separate; None where none are.
    encoder: renders and tokenises further samples in the same way.
    readers: {split: the samples of each of its sources}.
    new_tokens: ids of the tokens that the config added to the vocabulary.
    sha256: of what the rows were read from; see `source.fingerprint`.
    named_validation: {name: rows} of several validation sets; `validation` is then None.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    tokenizer: PreTrainedTokenizerFast
    preflight: Preflight
    collate: Collator
    isolation: Isolation | None
    encoder: Encoder
    readers: Mapping[str, Sequence[SampleReader]]
    new_tokens: Sequence[int]
    sha256: str
    named_validation: Mapping[str, Dataset] = field(default_factory=dict)

    def trained_tokens(self) -> list[int]:
        """The new tokens that rows may train: all but PAD."""
        return [token for token in self.new_tokens if token != self.tokenizer.pad_token_id]

    def end_ids(self) -> list[int]:
        """The tokens that trained answers end in."""
        ends = self.preflight.end_tokens
        return [int(self.tokenizer.convert_tokens_to_ids(token)) for token in ends]

    def splits(self) -> dict[str, Dataset]:
        """{name: rows} of the splits that are there."""
        named = {"train": self.train, **self.validation_splits(), "test": self.test}
        return {name: rows for name, rows in named.items() if rows is not None}

    def validation_splits(self) -> dict[str, Dataset]:
        """{`validation`: rows}, {`validation.NAME`: rows, ...}, or {} where there is none."""
        if self.validation is not None:
            return {VALIDATION: self.validation}
        return {f"{VALIDATION}.{name}": rows for name, rows in self.named_validation.items()}

    def samples(self, split: str) -> Iterator[Sample]:
        """The samples of a split before encoding, in the order of the data set.

        Rows that make none are left out.
        """
        for reader in self.readers.get(split, ()):
            yield from reader


def named_validation(rows: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """{name: rows} of the splits that are called `validation.NAME`."""
    return {split.partition(".")[2]: one for split, one in rows.items() if is_named_set(split)}


# --- the steps ------------------------------------------------------------------------------------


def sample_readers(
    sources: Sequence[Source], tokenizer: PreTrainedTokenizerFast, cfg: TrainConfig
) -> dict[str, list[SampleReader]]:
    """{split: a reader for each source that has the split}."""
    cleaner = Cleaner(tokenizer, cfg.dataset, cfg.preflight)
    return {
        split: [
            SampleReader(
                source.splits[split], source.format, cleaner, f"{source.name} {split}".strip()
            )
            for source in sources
            if split in source.splits
        ]
        for split in in_order({split: None for source in sources for split in source.splits})
    }


def make_encoder(
    tokenizer: PreTrainedTokenizerFast, cfg: TrainConfig, day: datetime.date | None = None
) -> Encoder:
    """The encoder of a run, which began on `day`; by default today."""
    return Encoder(tokenizer, cfg.loss, reads_unknown=cfg.tokenizer.unk_token != "keep", day=day)


def encode_sources(
    sources: Sequence[Source],
    readers: Mapping[str, Sequence[SampleReader]],
    encoder: Encoder,
    cfg: TrainConfig,
) -> dict[str, list[Part]]:
    """The encoded rows of every split of every source, of the lengths that the config allows.

    Args:
        sources: for their names and their shares of a mixture.
        readers: `sample_readers` of the sources.
        encoder: makes ids and labels.
        cfg: the config.

    Raises:
        DataError: a column is missing, or the loss does not go with the format.
    """
    truncate_to = cfg.sft.get("max_length") if cfg.over_length == "truncate" else None
    depends_on = [cfg.preflight.forged_turns, cfg.dataset.markers, cfg.dataset.marker_tokens]
    parts: dict[str, list[Part]] = {}
    for split, group in readers.items():
        here = [source for source in sources if split in source.splits]
        parts[split] = [
            _limit_length(
                encode_split(
                    RowEncoder(reader, encoder, truncate_to),
                    split,
                    source.name,
                    depends_on=depends_on,
                    num_proc=cfg.dataset.num_proc,
                ),
                cfg,
            )
            for source, reader in zip(here, group, strict=True)
        ]
    if len(sources) > 1 and "train" in parts:
        parts["train"] = _shares(sources, parts["train"])
    return parts


def pack_splits(
    parts: Parts, cfg: TrainConfig, isolation: Isolation | None
) -> tuple[dict[str, Dataset], PackingReport | None]:
    """The rows of each split, joined over its sources and packed; and what packing did.

    Validation and test are packed only if `packing.pack_eval` says so, or if windows are cut.
    """
    joined = {
        split: _joined(group).select_columns(["input_ids", "labels"])
        for split, group in parts.items()
    }
    if cfg.packing is None:
        return joined, None
    strategy, limit = cfg.packing.strategy, cfg.sft.get("max_length")
    if strategy == "blocks":
        assert cfg.packing.block_size is not None  # config/conflicts.py
        limit = cfg.packing.block_size + 1
        packed = {split: blocks(rows, cfg.packing.block_size) for split, rows in joined.items()}
    else:
        packed = {
            split: pack(rows, strategy, limit, split)
            if split == "train" or cfg.packing.pack_eval
            else rows
            for split, rows in joined.items()
        }
    changed = [split for split, rows in packed.items() if rows is not joined[split]]
    counts = {split: [len(joined[split]), len(packed[split])] for split in changed}
    fill = {
        split: round(float(row_lengths(packed[split]).sum()) / (len(packed[split]) * limit), 4)
        for split in changed
        if limit and len(packed[split])
    }
    first = {
        split: [sequence_lengths(row) for row in packed[split].select(range(shown))]
        for split in changed
        if (shown := min(_PICTURED, len(packed[split])))
    }
    return packed, PackingReport(strategy, counts, fill, isolation, limit, first)


_PICTURED = 12  # packed rows of a split that the report draws


# --- the texts of a tokenizer that the run trains -------------------------------------------------


def tokenizer_corpus(
    sources: Sequence[Source], blank: PreTrainedTokenizerFast, cfg: TrainConfig
) -> Iterator[str]:
    """The texts that a tokenizer is trained on: as they are tokenised, less their special tokens.

    For tokenizer=char those of all splits, so that no character of the data set is unknown; for bpe
    those of train. Rows that make no sample are left out; the preflight names them.

    Args:
        sources: the data set.
        blank: a tokenizer with the special tokens and the chat template, to write the texts with.
        cfg: the config.

    Raises:
        DataError: a column is missing, or the loss does not go with the format.
    """
    encoder = make_encoder(blank, cfg)
    special = encoder.special.pattern
    for split, readers in sample_readers(sources, blank, cfg).items():
        if split != "train" and cfg.tokenizer.type != "char":
            continue
        for reader in readers:
            rows, alone = reader.rows, len(readers) == 1
            first_rows = partial(rows.by_own_names, FIRST_ROWS)
            check_columns(rows.column_names, reader.format, split, first_rows, alone=alone)
            for sample in reader:
                with contextlib.suppress(RowError):
                    yield from special.split(encoder.text(sample))


def corpus_key(sources: Sequence[Source], cfg: TrainConfig) -> str:
    """Digest of all that `tokenizer_corpus` depends on, beside the tokenizer's own config."""
    return digest(
        code_digest(),
        [[source.name, asdict(source.format)] for source in sources],
        [[split, rows.digest] for source in sources for split, rows in source.splits.items()],
        asdict(cfg.loss),
        cfg.preflight.forged_turns,
        [cfg.dataset.markers, cfg.dataset.marker_tokens],
    )


# --- lengths, mixtures ----------------------------------------------------------------------------


def _limit_length(part: Part, cfg: TrainConfig) -> Part:
    """Rows of at most `sft.max_length` tokens, the longer ones dropped (`over_length`).

    Where longer rows are an error all are kept, for the preflight to name the error.
    """
    limit = cfg.sft.get("max_length")
    splits_rows = cfg.packing is not None and PACKING[cfg.packing.strategy].splits
    if limit is None or splits_rows or over_length_problem(part, cfg):
        return part
    lengths = part.lengths()
    longer = (lengths > limit).nonzero()[0]
    if not len(longer):
        return part
    dropped = [
        Dropped(
            index=row["index"],
            reason=TOO_LONG,
            where=f"{part.place}[{row['index']}]",
            found=f"{row['length']} tokens, more than sft.max_length={limit}",
            allowed="",
            fix=f"`sft.max_length={row['length']}`, or `over_length=truncate`",
            origin=part.origin(row["index"]),
            tokens=row["length"],
            trained_tokens=sum(label != IGNORED for label in row["labels"]),
        )
        for row in part.rows.select(longer)
    ]
    kept = part.rows.select((lengths <= limit).nonzero()[0])
    all_dropped = sorted([*part.dropped, *dropped], key=lambda one: one.index)
    return replace(part, rows=kept, dropped=all_dropped)


def _shares(sources: Sequence[Source], parts: Sequence[Part]) -> list[Part]:
    """The first rows of each source, as many as its `count` or `weight` gives it.

    Weights make the largest mixture in which no row comes twice: with N_i rows and weights w_i, the
    total is min(N_i / w_i). A `count` of more rows than there are is an error of the preflight.
    """
    weights = {at: one.weight for at, one in enumerate(sources) if one.weight is not None}
    counts = {at: one.count for at, one in enumerate(sources) if one.count is not None}
    total = min(
        (len(parts[at].rows) / weight for at, weight in weights.items() if weight), default=0.0
    )
    shares = []
    for at, part in enumerate(parts):
        all_rows = len(part.rows)
        share = int(weights[at] * total + 1e-6) if at in weights else all_rows
        share = min(counts.get(at, share), all_rows)
        shares.append(replace(part, rows=part.rows.select(range(share))))
    return shares


def _joined(parts: Sequence[Part]) -> Dataset:
    """The rows of all parts, each part spread evenly over the whole."""
    import datasets
    import numpy as np

    if len(parts) == 1:
        return parts[0].rows
    positions = np.concatenate(
        [(np.arange(len(part.rows)) + 0.5) / max(1, len(part.rows)) for part in parts]
    )
    together = datasets.concatenate_datasets([part.rows for part in parts])
    return together.select(np.argsort(positions, kind="stable"))
