"""Is a config that of a run that has begun?

The recorded config, completed with today's defaults, is compared with the new one, key by key; the
data are compared by their bytes, the base weights and the adapter of `lora.init_from` by theirs
(write.py). No hash of a config is kept: a release with one more key would have another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftpipe.config.recorded import complete, upstream_value
from sftpipe.config.schema import TrainConfig, to_plain
from sftpipe.config.upstream import UPSTREAM
from sftpipe.data.source import fingerprint
from sftpipe.errors import in_hydra, override
from sftpipe.runs.folder import RunFolder

# keys that a resumed run may have otherwise: where it writes, what it shows, how fast it is, and
# what is measured beside the training; of data and weights the content decides, and not the path
FREE = (
    "recipe",
    "output_dir",
    "tracking",
    "distributed.num_machines",
    "distributed.machine_rank",
    "distributed.rendezvous",
    "distributed.rendezvous_timeout",
    "dataset.data_files",
    "dataset.num_proc",
    "preflight.max_empty_rows",
    "preflight.max_over_length_rows",
    "preflight.duplicates",
    "preflight.unread",
    "preflight.default_system",
    "preflight.show_rows",
    "evaluation.sample_prompts",
    "evaluation.max_new_tokens",
    "evaluation.batch_size",
    "evaluation.metrics",
    "evaluation.verdict",
    "evaluation.lm_eval",
    "evaluation.data_files",
    "evaluation.base",
    "sft.resume_from_checkpoint",
    "sft.save_only_model",
    "sft.save_total_limit",
    "sft.logging_strategy",
    "sft.logging_first_step",
    "sft.log_level",
    "sft.dataloader_num_workers",
    "sft.dataloader_prefetch_factor",
    "sft.dataloader_pin_memory",
)
# free but where evaluations come as often as entries of the log: transformers' default
LOGGING_STEPS = "sft.logging_steps"
# free too where no best checkpoint is kept: it is the best of those that are written
FREE_WITHOUT_BEST = ("sft.save_steps", "sft.save_strategy")
LONGER = ("sft.num_train_epochs", "sft.max_steps")
_DATA = "the data"


@dataclass(frozen=True)
class Difference:
    """A key that decides a run, with its value of then and of now; or the data."""

    key: str
    before: Any = None
    now: Any = None

    def __str__(self) -> str:
        if self.key == _DATA:
            return "the data files changed"
        return f"{self.key} was {self.before!r} and is {self.now!r}"

    @property
    def typed(self) -> str:
        """What to type to have the value of then, in backticks; "" where nothing can be typed."""
        value = in_hydra(self.before)
        return override(self.key, value) if value and self.key != _DATA else ""


def differences(files: RunFolder, cfg: TrainConfig) -> list[Difference]:
    """What a config has otherwise than the run of a folder: keys that decide, and the data.

    Raises:
        RunError: config.yaml or manifest.json is missing or damaged.
        DataError: a data file is missing.
    """
    recorded = files.read_manifest().get("data", {}).get("sha256")
    found = key_differences(files.read_config(), to_plain(cfg))
    # the data set's own keys say what is another about the data
    if not any(one.key.startswith("dataset.") for one in found):
        changed = recorded != fingerprint(cfg.dataset, cfg.allowed_targets)
        found += [Difference(_DATA)] if changed else []
    return found


def key_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """The keys that decide a run and differ in two plain configs, completed with our defaults."""
    trees = complete(before), complete(now)
    free = FREE if any(map(_keeps_best, trees)) else (*FREE, *FREE_WITHOUT_BEST)
    free = free if any(map(_evaluates_when_it_logs, trees)) else (*free, LOGGING_STEPS)
    then, today = (_deciding(tree, free) for tree in trees)
    return list(_differences(then, today, ""))


def all_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Every key that differs in two plain configs, completed with our defaults."""
    return list(_differences(complete(before), complete(now), ""))


def _deciding(kept: dict[str, Any], free: Sequence[str]) -> dict[str, Any]:
    """A completed config without the keys that are free."""
    name = (kept.get("model") or {}).get("name_or_path")
    if isinstance(name, str) and (Path(name).expanduser().is_dir() or name[:1] in "./~"):
        kept["model"]["name_or_path"] = "a folder"
    if (kept.get("lora") or {}).get("init_from"):
        kept["lora"]["init_from"] = "a folder"
    for key in free:
        group, _, rest = key.partition(".")
        if not rest:
            kept.pop(group, None)
        elif isinstance(kept.get(group), dict):
            kept[group].pop(rest, None)
    return kept


def _keeps_best(tree: Mapping[str, Any]) -> bool:
    sft, evaluation = tree.get("sft") or {}, tree.get("evaluation") or {}
    ends_with_best = sft.get("load_best_model_at_end") or evaluation.get("early_stopping")
    return bool(ends_with_best) or sft.get("save_strategy") == "best"


def _evaluates_when_it_logs(tree: Mapping[str, Any]) -> bool:
    sft = tree.get("sft") or {}
    return sft.get("eval_strategy") == "steps" and not sft.get("eval_steps")


def _differences(before: Any, now: Any, prefix: str) -> Iterator[Difference]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            values = (
                (upstream_value(prefix, key, before), upstream_value(prefix, key, now))
                if prefix in UPSTREAM and before and now
                else (before.get(key), now.get(key))
            )
            yield from _differences(*values, f"{prefix}.{key}".lstrip("."))
    elif isinstance(before, bool) != isinstance(now, bool) or before != now:
        yield Difference(prefix, before, now)
