"""Names of validation sets: in `dataset.data_files`, as splits, and in what the trainer logs.

dataset.data_files         split              logged           metrics.json
{validation: v.jsonl}      validation         eval_loss        validation
{validation: {news: ...}}  validation.news    eval_news_loss   validation, news
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sftpipe.config.schema import DatasetConfig

VALIDATION = "validation"
_NAME = re.compile(r"[A-Za-z0-9_]+")
_LOSS = re.compile(r"eval_(?:(\w+)_)?loss")


def split_files(data_files: Any) -> dict[str, Any]:
    """{split: its files} of `dataset.data_files`; files without a split are those of train."""
    named = data_files if isinstance(data_files, Mapping) else {"train": data_files}
    flat: dict[str, Any] = {}
    for split, files in named.items():
        if split == VALIDATION and isinstance(files, Mapping):
            flat |= {f"{VALIDATION}.{name}": inner for name, inner in files.items()}
        else:
            flat[str(split)] = files
    return flat


def is_named_set(split: str) -> bool:
    """True for `validation.NAME`."""
    parent, _, name = split.partition(".")
    return parent == VALIDATION and _NAME.fullmatch(name) is not None


def is_validation(split: str) -> bool:
    """True for `validation` and for `validation.NAME`."""
    return split == VALIDATION or is_named_set(split)


def named_sets(dataset: DatasetConfig) -> list[str]:
    """The names of the validation sets of a config, in its order; [] where they have none."""
    sources = dataset.sources or [dataset]
    splits = [
        split for one in sources if one.split is None for split in split_files(one.data_files)
    ]
    names = [split.partition(".")[2] for split in splits if is_named_set(split)]
    return list(dict.fromkeys(names))


def log_prefix(split: str) -> str:
    """What the trainer puts before the metrics of a split: `eval`, `eval_news`, `test`."""
    if not is_validation(split):
        return split
    return "eval" if split == VALIDATION else f"eval_{split.partition('.')[2]}"


def validation_losses(logs: Mapping[str, Any]) -> dict[str, float]:
    """{`validation`, or `validation NAME`: loss} of an entry of the log."""
    found = {name: match for name in logs if (match := _LOSS.fullmatch(name))}
    return {
        f"{VALIDATION} {match[1]}" if match[1] else VALIDATION: logs[name]
        for name, match in found.items()
    }


def in_order(splits: Iterable[str]) -> list[str]:
    """Splits as reports list them: train, validation, test; named sets as they are given."""
    order = ("train", VALIDATION, "test")
    return sorted(splits, key=lambda split: order.index(split.partition(".")[0]))
