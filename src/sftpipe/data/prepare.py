"""Steps 3 to 5 of the pipeline: load, format, encode, measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sftpipe.data.encode import Encoder
from sftpipe.data.formats import check_columns, columns_of, to_sample
from sftpipe.data.preflight import Preflight, inspect
from sftpipe.data.source import load_splits
from sftpipe.errors import DataError, Problem
from sftpipe.schema import FormatConfig, TrainConfig

Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]


@dataclass(frozen=True)
class PreparedData:
    """Finished rows, and what made them.

    train, validation, test: `datasets.Dataset` with `input_ids` and `labels`, each (T,); None for a split that is absent.
    tokenizer: the fast tokenizer with PAD and chat template settled.
    preflight: the report on the rows.
    collate: rows -> batch of (B, T) tensors, padded on the right.
    source: {split: the rows before formatting, with our column names}.
    encoder: renders and tokenises further samples in the same way.
    """

    train: Any
    validation: Any
    test: Any
    tokenizer: Any
    preflight: Preflight
    collate: Collate
    source: Mapping[str, Any]
    encoder: Encoder

    def end_ids(self) -> list[int]:
        """The tokens that trained answers end in."""
        return [int(self.tokenizer.convert_tokens_to_ids(token)) for token in self.preflight.end_tokens]

    def splits(self) -> dict[str, Any]:
        """{name: rows} of the splits that are there."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: rows for name, rows in named.items() if rows is not None}


def prepare_data(cfg: TrainConfig, tokenizer: Any, collate: Collate) -> PreparedData:
    """Load, format and encode every split, and check the result.

    Raises:
        DataError: the data set, a row or the preflight; see the modules of each step.
    """
    source = load_splits(cfg.dataset)
    encoder = Encoder(tokenizer, cfg.loss)
    finished, dropped = {}, {}
    for split, rows in source.items():
        encoded = _encode(rows, split, cfg, encoder)
        finished[split] = _limit_length(encoded, split, cfg)
        dropped[split] = len(encoded) - len(finished[split])
    report = inspect(finished, dropped, tokenizer, cfg.preflight)
    finished = {split: rows.remove_columns("index") for split, rows in finished.items()}
    return PreparedData(
        train=finished["train"],
        validation=finished.get("validation"),
        test=finished.get("test"),
        tokenizer=tokenizer,
        preflight=report,
        collate=collate,
        source=source,
        encoder=encoder,
    )


def _encode(rows: Any, split: str, cfg: TrainConfig, encoder: Encoder) -> Any:
    check_columns(rows.column_names, cfg.format, split)
    needed = [name for name in columns_of(cfg.format) if name in rows.column_names]
    return rows.map(
        _encode_batch,
        fn_kwargs={"encoder": encoder, "format_cfg": cfg.format, "columns": needed, "split": split},
        with_indices=True,
        batched=True,
        num_proc=cfg.dataset.num_proc,
        remove_columns=rows.column_names,
        load_from_cache_file=False,  # its fingerprint does not see changes in this package
        desc=f"Encoding {split}",
    )


def _encode_batch(
    batch: Mapping[str, list[Any]],
    indices: list[int],
    encoder: Encoder,
    format_cfg: FormatConfig,
    columns: list[str],
    split: str,
) -> dict[str, list[Any]]:
    places = [f"{split}[{index}]" for index in indices]
    samples = [to_sample({name: batch[name][i] for name in columns}, format_cfg, where) for i, where in enumerate(places)]
    encoded = encoder.encode(samples, places)
    return {
        "input_ids": [row.input_ids for row in encoded],
        "labels": [row.labels for row in encoded],
        "index": indices,
    }


def _limit_length(rows: Any, split: str, cfg: TrainConfig) -> Any:
    """Rows of at most `sft.max_length` tokens; longer ones are an error or dropped (`over_length`)."""
    limit = cfg.sft.get("max_length")
    if limit is None:
        return rows
    lengths = [len(ids) for ids in rows["input_ids"]]
    longer = [index for index, length in enumerate(lengths) if length > limit]
    if not longer:
        return rows
    if cfg.over_length == "error" or len(longer) == len(lengths):
        raise DataError(
            Problem(
                where=f"{split}[{longer[0]}]",
                found=f"{len(longer)} of {len(lengths)} rows of {split} are longer than sft.max_length={limit} tokens; "
                f"this one has {lengths[longer[0]]}, the longest {max(lengths)}",
                fix=f"sft.max_length={max(lengths)}, or over_length=drop to leave such rows out and count them",
            )
        )
    return rows.select([index for index, length in enumerate(lengths) if length <= limit])
