"""Finished rows with a tokenizer that a test brings."""

from __future__ import annotations

from typing import Any

from sftpipe.config.schema import TrainConfig
from sftpipe.data.packing import Collator, Isolation
from sftpipe.data.preflight.report import Preflight, SplitReport, check_data
from sftpipe.data.prepare import (
    PreparedData,
    encode_sources,
    make_encoder,
    named_validation,
    pack_splits,
    sample_readers,
)
from sftpipe.data.row_function import call_row_functions
from sftpipe.data.source import load_sources, sources_sha256


def prepare_data(
    cfg: TrainConfig, tokenizer: Any, isolation: Isolation | None = None
) -> PreparedData:
    """The steps of `sftpipe.prepare` that follow the tokenizer."""
    sources = load_sources(cfg.dataset, cfg.format, cfg.allowed_targets)
    sources = call_row_functions(sources, cfg)
    encoder = make_encoder(tokenizer, cfg)
    readers = sample_readers(sources, tokenizer, cfg)
    parts = encode_sources(sources, readers, encoder, cfg)
    rows, packing = pack_splits(parts, cfg, isolation)
    preflight = check_data(parts, rows, encoder, cfg, packing)
    return PreparedData(
        train=rows["train"],
        validation=rows.get("validation"),
        test=rows.get("test"),
        tokenizer=tokenizer,
        preflight=preflight,
        collate=Collator(int(tokenizer.pad_token_id)),
        isolation=isolation,
        encoder=encoder,
        readers=readers,
        new_tokens=(),
        sha256=sources_sha256(sources, cfg.dataset),
        named_validation=named_validation(rows),
    )


def split_of(preflight: Preflight, name: str) -> SplitReport:
    """The report of a split that has one source."""
    (report,) = (report for report in preflight.splits if report.split == name)
    return report
