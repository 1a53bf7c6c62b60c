"""Steps 3 to 5 of the pipeline: load, format, encode, measure."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sftpipe.config.schema import FormatConfig, TrainConfig
from sftpipe.data.chat_template import unrolled
from sftpipe.data.cleaning import Guard
from sftpipe.data.encode import TOO_LONG, Encoded, Encoder
from sftpipe.data.formats import (
    Conversation,
    PromptCompletion,
    Row,
    RowFunction,
    Sample,
    check_columns,
    guarded_columns,
    to_samples,
)
from sftpipe.data.labels import IGNORED
from sftpipe.data.packing import SPLITTING, Collator, Isolation, PackingReport, blocks, pack
from sftpipe.data.preflight.facts import Dropped, Part, padding_share, row_lengths
from sftpipe.data.preflight.report import Preflight, inspect
from sftpipe.data.readers import load_function
from sftpipe.data.source import SPLITS, Rows, Source, load_sources
from sftpipe.data.version import code_digest
from sftpipe.errors import DataError, Problem, RowError
from sftpipe.storage import cached, digest

_BATCH = 1000  # rows that are formatted and tokenised together


@dataclass(frozen=True)
class PreparedData:
    """Finished rows, and what made them.

    train, validation, test: `datasets.Dataset` with `input_ids` and `labels`, each (T,); None for a
        split that is absent. Under packing=blocks the trainer draws its windows from all of train;
        the rows are the windows side by side.
    tokenizer: the fast tokenizer with PAD and chat template settled.
    preflight: the report on the rows.
    collate: (rows, padding_free=False) -> batch of (B, T) tensors, padded on the right;
        padding-free as one row (1, sum of T) whose positions restart with each sequence and whose
        first labels are masked.
    isolation: how packed sequences are kept apart; None where none are.
    new_tokens: ids of the tokens that the config added to the vocabulary.
    encoder: renders and tokenises further samples in the same way.
    reader: reads samples of the data set.
    """

    train: Any
    validation: Any
    test: Any
    tokenizer: Any
    preflight: Preflight
    collate: Collator
    isolation: Isolation | None
    encoder: Encoder
    reader: Reader
    new_tokens: Sequence[int] = ()

    def trained_tokens(self) -> list[int]:
        """The new tokens that rows may train: all but PAD."""
        return [token for token in self.new_tokens if token != self.tokenizer.pad_token_id]

    def end_ids(self) -> list[int]:
        """The tokens that trained answers end in."""
        return [
            int(self.tokenizer.convert_tokens_to_ids(token)) for token in self.preflight.end_tokens
        ]

    def splits(self) -> dict[str, Any]:
        """{name: rows} of the splits that are there."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: rows for name, rows in named.items() if rows is not None}

    def samples(self, split: str) -> Iterator[Sample]:
        """The samples of a split before encoding, in the order of the data set, without rows that make none."""
        for source in self.reader.sources:
            if split in source.splits:
                for index, row in enumerate(source.splits[split]):
                    (sample,) = self.reader.samples([row], source.format, [f"{split}[{index}]"])
                    if not isinstance(sample, RowError):
                        yield sample


@dataclass(frozen=True)
class Reader:
    """Rows to samples, guarded; what a worker process needs besides the encoder.

    functions: {dotted path: function} of format=function.
    """

    sources: Sequence[Source]
    guard: Guard
    functions: Mapping[str, RowFunction]

    def samples(
        self, rows: Sequence[Row], cfg: FormatConfig, places: Sequence[str]
    ) -> list[Sample | RowError]:
        """A sample, or its error, for each row."""
        guarded: list[Row | RowError] = []
        columns = guarded_columns(cfg)
        for row, where in zip(rows, places, strict=True):
            try:
                stripped = self.guard.strip(row)
                guarded.append(self.guard.row(stripped, columns, where))
            except RowError as error:
                guarded.append(error)
        good = [
            (row, where)
            for row, where in zip(guarded, places, strict=True)
            if not isinstance(row, RowError)
        ]
        made = iter(
            to_samples(
                [row for row, _ in good],
                cfg,
                [where for _, where in good],
                self.functions.get(cfg.function or ""),
            )
        )
        samples = [row if isinstance(row, RowError) else next(made) for row in guarded]
        return [
            self._guarded(sample, cfg, where) for sample, where in zip(samples, places, strict=True)
        ]

    def _guarded(
        self, sample: Sample | RowError, cfg: FormatConfig, where: str
    ) -> Sample | RowError:
        try:
            if isinstance(sample, PromptCompletion) and cfg.type == "template":
                return self.guard.filled(sample, cfg, where)
            return (
                self.guard.conversation(sample, where)
                if isinstance(sample, Conversation)
                else sample
            )
        except RowError as error:
            return error


def prepare_data(
    cfg: TrainConfig,
    tokenizer: Any,
    collate: Collator,
    isolation: Isolation | None = None,
    sources: Sequence[Source] | None = None,
) -> PreparedData:
    """Load, format, encode and pack every split, and check the result.

    Args:
        cfg: the config.
        tokenizer: with its special tokens settled.
        collate: makes batches of the rows.
        isolation: how packed sequences are kept apart; None where none are.
        sources: what `load_sources` gave; None loads them.

    Raises:
        DataError: the data set, a row or the preflight; see the modules of each step.
    """
    if sources is None:
        sources = load_sources(cfg.dataset, cfg.format, cfg.allowed_targets)
    reader = _reader(cfg, sources, tokenizer)
    encoder = _encoder(cfg, tokenizer)
    parts: dict[str, list[Part]] = {}
    for split in SPLITS:
        here = [source for source in sources if split in source.splits]
        encoded = [
            _limit_length(_encode(source, split, cfg, encoder, reader), cfg) for source in here
        ]
        if here:
            parts[split] = (
                _shares(here, encoded) if split == "train" and len(sources) > 1 else encoded
            )
    report = inspect(parts, encoder, cfg)
    finished = {
        split: _joined(group).select_columns(["input_ids", "labels"])
        for split, group in parts.items()
    }
    if cfg.packing:
        finished, report.packing = _packed(finished, cfg, isolation)
    report.padding_share = _padding(finished["train"], cfg, isolation)
    return PreparedData(
        train=finished["train"],
        validation=finished.get("validation"),
        test=finished.get("test"),
        tokenizer=tokenizer,
        preflight=report,
        collate=collate,
        isolation=isolation,
        encoder=encoder,
        reader=reader,
    )


def texts(cfg: TrainConfig, sources: Sequence[Source], blank: Any) -> Iterator[str]:
    """What a tokenizer is trained on: the texts as they will be tokenised, without the special tokens that stand in them.

    Of tokenizer=char those of all splits, so that no character of the data set is unknown; of bpe
    those of train. Rows that make no sample are left to `prepare_data`, which names them.

    Args:
        cfg: the config.
        sources: what `load_sources` gave.
        blank: a tokenizer with the special tokens and the chat template, to write the texts with.

    Raises:
        DataError: a column is missing, or the loss does not go with the format.
    """
    reader, encoder = _reader(cfg, sources, blank), _encoder(cfg, blank)
    special = re.compile(
        "|".join(re.escape(str(token)) for token in blank.added_tokens_decoder.values())
    )
    for source in sources:
        for split in SPLITS if cfg.tokenizer.type == "char" else ("train",):
            if split not in source.splits:
                continue
            rows = source.splits[split]
            check_columns(rows.column_names, source.format, split)
            for start in range(0, len(rows), _BATCH):
                batch = rows[start : start + _BATCH]
                for sample in reader.samples(
                    batch, source.format, [f"{split}[{start + at}]" for at in range(len(batch))]
                ):
                    with contextlib.suppress(RowError):
                        yield from (
                            ()
                            if isinstance(sample, RowError)
                            else special.split(encoder.text(sample))
                        )


def _reader(cfg: TrainConfig, sources: Sequence[Source], tokenizer: Any) -> Reader:
    paths = {source.format.function for source in sources if source.format.function}
    functions = {
        path: load_function(path, "format.function", cfg.allowed_targets) for path in paths
    }
    return Reader(sources, Guard(tokenizer, cfg.dataset, cfg.preflight), functions)


def _encoder(cfg: TrainConfig, tokenizer: Any) -> Encoder:
    return Encoder(tokenizer, cfg.loss, reads_unknown=cfg.tokenizer.unk_token != "keep")


# --- one split of one source ----------------------------------------------------------------------


def _encode(source: Source, split: str, cfg: TrainConfig, encoder: Encoder, reader: Reader) -> Part:
    """The finished rows of a split, from the cache where the same ones were made before."""
    import datasets

    rows = source.splits[split]
    check_columns(rows.column_names, source.format, split)
    place = f"{source.name} {split}".strip()

    def build(folder: Path) -> None:
        rows.table.map(
            _encode_batch,
            fn_kwargs={
                "encoder": encoder,
                "reader": replace(
                    reader, sources=()
                ),  # the tables stay behind; a worker is handed its batches
                "rows": replace(rows, table=None),
                "format_cfg": source.format,
                "cfg": cfg,
                "place": place,
                "dropped": folder,
            },
            with_indices=True,
            batched=True,
            batch_size=_BATCH,
            num_proc=cfg.dataset.num_proc,
            remove_columns=rows.table.column_names,
            features=datasets.Features(
                {
                    "input_ids": datasets.List(datasets.Value("int32")),
                    "labels": datasets.List(datasets.Value("int32")),
                    "index": datasets.Value("int64"),
                    "cut": datasets.Value("int32"),
                    "lost": datasets.Value("int32"),
                    "escaped": datasets.Value("bool"),
                }
            ),
            load_from_cache_file=False,
            cache_file_name=str(folder / "rows.arrow"),
            new_fingerprint=key[:32],
            desc=f"Encoding {place}",
        )

    def load(folder: Path) -> Part:
        tables = [
            datasets.Dataset.from_file(str(file)) for file in sorted(folder.glob("rows*.arrow"))
        ]
        lines = (
            line
            for file in folder.glob("dropped-*.jsonl")
            for line in file.read_text(encoding="utf-8").splitlines()
        )
        dropped = sorted((Dropped(**json.loads(line)) for line in lines), key=lambda one: one.index)
        samples = partial(_samples_of, rows, source.format, reader, cfg)
        return Part(
            split,
            source.name,
            len(rows),
            datasets.concatenate_datasets(tables),
            dropped,
            samples,
            rows.origin,
        )

    key = _key(rows, source, place, cfg, encoder, reader)
    part = cached("encoded", key, build, load)
    return replace(
        part, dropped=[replace(one, origin=rows.origin(one.index)) for one in part.dropped]
    )


def _samples_of(
    rows: Rows, form: FormatConfig, reader: Reader, cfg: TrainConfig, index: int
) -> list[Sample]:
    """What the format makes of one row."""
    (whole,) = reader.samples(rows[index : index + 1], form, [f"[{index}]"])
    return [sample for sample in _rows_of(whole, cfg) if not isinstance(sample, RowError)]


def _key(
    rows: Rows, source: Source, place: str, cfg: TrainConfig, encoder: Encoder, reader: Reader
) -> str:
    """Everything that the finished rows depend on."""
    tokenizer = encoder.tokenizer
    return digest(
        code_digest(),
        rows.digest,
        place,
        asdict(source.format),
        _samples_digest(rows, source.format, reader) if source.format.type == "function" else None,
        asdict(cfg.loss),
        cfg.over_length == "truncate" and cfg.sft.get("max_length"),
        cfg.preflight.forged_turns,
        [cfg.dataset.markers, cfg.dataset.marker_tokens],
        encoder.reads_unknown,
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        tokenizer.backend_tokenizer.to_str(),
    )


def _samples_digest(rows: Rows, cfg: FormatConfig, reader: Reader) -> str:
    """What a user's function makes of the rows: nobody can tell what its code depends on, so it is always asked."""
    seen = hashlib.sha256()
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        for sample in reader.samples(batch, cfg, [f"[{start + at}]" for at in range(len(batch))]):
            seen.update(repr(sample).encode("utf-8", "surrogatepass"))
    return seen.hexdigest()


def _encode_batch(
    batch: Mapping[str, list[Any]],
    indices: list[int],
    *,
    encoder: Encoder,
    reader: Reader,
    rows: Rows,
    format_cfg: FormatConfig,
    cfg: TrainConfig,
    place: str,
    dropped: Path,
) -> dict[str, list[Any]]:
    """Finished rows of a batch; the others go into a file of this process, with the reason."""
    places = [f"{place}[{index}]" for index in indices]
    samples: list[Sample | RowError] = reader.samples(rows.decode(batch), format_cfg, places)
    work = [
        (index, where, sample)
        for index, where, whole in zip(indices, places, samples, strict=True)
        for sample in _rows_of(whole, cfg)
    ]
    good = [(where, sample) for _, where, sample in work if not isinstance(sample, RowError)]
    encoded = iter(encoder.encode([sample for _, sample in good], [where for where, _ in good]))
    finished: dict[str, list[Any]] = {
        name: [] for name in ("input_ids", "labels", "index", "cut", "lost", "escaped")
    }
    lost = []
    for index, where, sample in work:
        row = whole = sample if isinstance(sample, RowError) else next(encoded)
        if (
            cfg.over_length == "truncate"
            and isinstance(row, Encoded)
            and not isinstance(sample, RowError)
        ):
            row = encoder.fit(sample, row, cfg.sft["max_length"], where)
        if isinstance(row, RowError):
            tokens = len(whole.input_ids) if isinstance(whole, Encoded) else 0
            told = Dropped(index, row.reason, **asdict(row.problem))
            lost.append(replace(told, tokens=tokens, trained_tokens=_trained(whole)))
            continue
        finished["input_ids"].append(row.input_ids)
        finished["labels"].append(row.labels)
        finished["index"].append(index)
        finished["cut"].append(row.cut)
        finished["lost"].append(_trained(whole) - _trained(row))
        finished["escaped"].append(
            not isinstance(sample, RowError) and reader.guard.has_escaped(sample)
        )
    if lost:
        with (dropped / f"dropped-{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(one)) + "\n" for one in lost)
    return finished


def _trained(row: Encoded | RowError) -> int:
    return len(row.labels) - row.labels.count(IGNORED) if isinstance(row, Encoded) else 0


def _rows_of(sample: Sample | RowError, cfg: TrainConfig) -> Sequence[Sample | RowError]:
    """The sample, or one for each of its trained turns (`loss.unroll`)."""
    if cfg.loss.unroll and isinstance(sample, Conversation):
        return unrolled(sample, cfg.loss.type) or [sample]
    return [sample]


def _limit_length(part: Part, cfg: TrainConfig) -> Part:
    """Rows of at most `sft.max_length` tokens; longer ones are an error or dropped (`over_length`)."""
    limit = cfg.sft.get("max_length")
    if cfg.packing and cfg.packing.strategy in SPLITTING:
        return part
    lengths = part.lengths()
    if limit is None or not len(lengths) or lengths.max() <= limit:
        return part
    longer = (lengths > limit).nonzero()[0]
    first = f"{part.place}[{part.rows[int(longer[0])]['index']}]"
    others = (
        ", or over_length=drop to leave such rows out and count them"
        if len(longer) < len(lengths)
        else ""
    )
    if cfg.over_length == "error" or len(longer) == len(lengths):
        raise DataError(
            Problem(
                first,
                f"{len(longer)} of {len(lengths)} rows of {part.split} are longer than "
                f"sft.max_length={limit} tokens; "
                f"this one has {lengths[longer[0]]}, the longest {lengths.max()}",
                fix=f"sft.max_length={lengths.max()}" + others,
            )
        )
    dropped = [
        Dropped(
            index=row["index"],
            reason=TOO_LONG,
            where=f"{part.place}[{row['index']}]",
            found=f"{len(row['labels'])} tokens, more than sft.max_length={limit}",
            allowed="",
            fix=f"sft.max_length={len(row['labels'])}, or over_length=truncate",
            origin=part.origin(row["index"]),
            tokens=len(row["labels"]),
            trained_tokens=len(row["labels"]) - row["labels"].count(IGNORED),
        )
        for row in part.rows.select(longer)
    ]
    kept = part.rows.select((lengths <= limit).nonzero()[0])
    return replace(
        part, rows=kept, dropped=sorted([*part.dropped, *dropped], key=lambda one: one.index)
    )


def _packed(
    finished: Mapping[str, Any], cfg: TrainConfig, isolation: Isolation | None
) -> tuple[dict[str, Any], PackingReport]:
    """The splits packed as the config says, validation and test only when asked (or cut into blocks); and what became of them."""
    assert cfg.packing
    strategy, limit = cfg.packing.strategy, cfg.sft.get("max_length")
    if strategy == "blocks":
        assert cfg.packing.block_size is not None  # clashes.py
        limit = cfg.packing.block_size + 1
        packed = {
            split: blocks(rows, cfg.packing.block_size, split) for split, rows in finished.items()
        }
    else:
        packed = {
            split: pack(rows, strategy, limit, split)
            if split == "train" or cfg.packing.pack_eval
            else rows
            for split, rows in finished.items()
        }
    changed = [split for split, rows in packed.items() if rows is not finished[split]]
    counts = {split: [len(finished[split]), len(packed[split])] for split in changed}
    fill = {
        split: round(float(row_lengths(packed[split]).sum()) / (len(packed[split]) * limit), 4)
        for split in changed
        if limit
    }
    return packed, PackingReport(strategy, counts, fill, isolation)


def _padding(rows: Any, cfg: TrainConfig, isolation: Isolation | None) -> float:
    if isolation and isolation.apart == "positions":
        return 0.0  # the rows of a batch make one
    strategy, multiple = (
        cfg.sft.get("train_sampling_strategy", "random"),
        cfg.sft.get("pad_to_multiple_of") or 1,
    )
    return padding_share(
        row_lengths(rows), cfg.sft.get("per_device_train_batch_size", 8), strategy, multiple
    )


# --- mixtures -------------------------------------------------------------------------------------


def _shares(sources: Sequence[Source], parts: Sequence[Part]) -> list[Part]:
    """The first rows of each source, as many as its `count` or `weight` gives it.

    Weights make the largest mixture in which no row comes twice: with N_i rows and weights w_i, the
        total is min(N_i / w_i).
    """
    weights = {at: source.weight for at, source in enumerate(sources) if source.weight is not None}
    counts = {at: source.count for at, source in enumerate(sources) if source.count is not None}
    total = min(
        (len(parts[at].rows) / weight for at, weight in weights.items() if weight), default=0.0
    )
    shares = []
    for at, part in enumerate(parts):
        count = counts.get(at, int(weights[at] * total + 1e-6) if at in weights else len(part.rows))
        if count > len(part.rows):
            raise DataError(
                Problem(
                    f"dataset.sources[{at}].count",
                    f"{count} rows are asked for, and the source has {len(part.rows)}",
                    allowed="no row is repeated",
                    fix=f"dataset.sources[{at}].count={len(part.rows)}, or sft.num_train_epochs for "
                    "more passes over all",
                )
            )
        shares.append(replace(part, rows=part.rows.select(range(count))))
    return shares


def _joined(parts: Sequence[Part]) -> Any:
    """The rows of all parts, each part spread evenly over the whole."""
    import datasets
    import numpy as np

    if len(parts) == 1:
        return parts[0].rows
    positions = np.concatenate(
        [(np.arange(len(part.rows)) + 0.5) / max(1, len(part.rows)) for part in parts]
    )
    return datasets.concatenate_datasets([part.rows for part in parts]).select(
        np.argsort(positions, kind="stable")
    )
