"""The encoded rows of one split of one source: made once, then taken from the cache."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftpipe.data.formats import check_columns
from sftpipe.data.layouts import FIRST_ROWS
from sftpipe.data.row_chain import BATCH, RowEncoder
from sftpipe.data.rows import Dropped, Part, Remarked
from sftpipe.data.samples import Remark
from sftpipe.data.version import code_digest
from sftpipe.storage import cached, digest

if TYPE_CHECKING:
    from datasets import Features

COLUMNS = {  # of an encoded row; `Part` says what they are
    "input_ids": "int32 list",
    "labels": "int32 list",
    "length": "int32",
    "index": "int64",
    "cut": "int32",
    "lost": "int32",
    "escaped": "bool",
}


def encode_split(
    rows: RowEncoder, split: str, source: str, *, depends_on: Sequence[Any], num_proc: int | None
) -> Part:
    """The finished rows of a split.

    Args:
        rows: reads and encodes them.
        split: its name, for messages.
        source: its name, for messages.
        depends_on: values of the config that the rows depend on.
        num_proc: processes that encode; None encodes in this one.

    Raises:
        DataError: a column is missing, or the loss does not go with the format.
    """
    import datasets

    raw = rows.reader.rows
    first_rows = partial(raw.by_own_names, FIRST_ROWS)
    form = rows.reader.format
    check_columns(raw.column_names, form, split, first_rows, alone=not source)

    def load(folder: Path) -> Part:
        files = sorted(folder.glob("rows*.arrow"))
        return Part(
            split=split,
            source=source,
            read=len(raw),
            rows=datasets.concatenate_datasets(
                [datasets.Dataset.from_file(str(file)) for file in files]
            ),
            dropped=_read_dropped(folder, rows),
            remarks=_read_remarks(folder),
            samples=rows.samples,
            origin=raw.origin,
            first_rows=first_rows,
            format=form,
        )

    key = _key(rows, depends_on)
    return cached("encoded", key, partial(_build, rows, key, num_proc), load)


def _build(rows: RowEncoder, key: str, num_proc: int | None, folder: Path) -> None:
    table = rows.reader.rows.table
    table.map(
        partial(_encode_batch, rows=rows.for_workers(), folder=folder),
        with_indices=True,
        batched=True,
        batch_size=BATCH,
        num_proc=num_proc,
        remove_columns=table.column_names,
        features=_features(),
        load_from_cache_file=False,
        cache_file_name=str(folder / "rows.arrow"),
        new_fingerprint=key[:32],
        desc=f"Encoding {rows.reader.place}",
    )


def _encode_batch(
    batch: Mapping[str, list[Any]], indices: list[int], *, rows: RowEncoder, folder: Path
) -> dict[str, list[Any]]:
    """Finished rows of a batch; the others, and remarks, go into files of this process."""
    made = rows.encode(batch, indices)
    _append(folder, "dropped", [asdict(one) for one in made.dropped])
    remarks = [
        {**asdict(remark), "rows": len(found), "first": min(found)}
        for remark, found in made.remarks.items()
    ]
    _append(folder, "remarks", remarks)
    return {name: [row[name] for row in made.finished] for name in COLUMNS}


def _append(folder: Path, name: str, values: Sequence[Mapping[str, Any]]) -> None:
    if values:
        with (folder / f"{name}-{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(value) + "\n" for value in values)


def _appended(folder: Path, name: str) -> list[dict[str, Any]]:
    files = folder.glob(f"{name}-*.jsonl")
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines]


def _read_dropped(folder: Path, rows: RowEncoder) -> list[Dropped]:
    """The dropped rows in their order, with the lines that they come from."""
    found = [Dropped(**value) for value in _appended(folder, "dropped")]
    found.sort(key=lambda one: one.index)
    return [replace(one, origin=rows.reader.rows.origin(one.index)) for one in found]


def _read_remarks(folder: Path) -> dict[Remark, Remarked]:
    """What is to be said of rows, by what it is about."""
    found: dict[Remark, Remarked] = {}
    for value in _appended(folder, "remarks"):
        remark = Remark(value["kind"], value["what"])
        here = Remarked(value["rows"], value["first"])
        found[remark] = found[remark].and_then(here) if remark in found else here
    return dict(sorted(found.items(), key=lambda one: (one[0].kind, one[0].what)))


def _features() -> Features:
    import datasets

    def feature(kind: str) -> Any:
        value = datasets.Value(kind.removesuffix(" list"))
        return datasets.List(value) if kind.endswith(" list") else value

    return datasets.Features({name: feature(kind) for name, kind in COLUMNS.items()})


def _key(rows: RowEncoder, depends_on: Sequence[Any]) -> str:
    """Everything that the finished rows depend on."""
    tokenizer = rows.encoder.tokenizer
    return digest(
        code_digest(),
        rows.reader.rows.digest,
        rows.reader.place,
        asdict(rows.reader.format),
        asdict(rows.encoder.loss),
        rows.truncate_to,
        rows.encoder.reads_unknown,
        list(depends_on),
        tokenizer.chat_template,
        rows.encoder.template.day if rows.encoder.template.writes_date else None,
        tokenizer.special_tokens_map,
        tokenizer.backend_tokenizer.to_str(),
    )
