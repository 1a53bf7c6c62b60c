"""What a run does that somebody could see: the way to tell a key that works from one that is dead.

What only repeats the config (config.yaml, the manifest, the card, PEFT's copy of its own fields)
is no effect and is left out, and so are times.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import PeftModel
from transformers import PreTrainedModel, set_seed
from transformers import trainer as hf_trainer

from sftpipe import pipeline, terminal
from sftpipe.config.schema import TrainConfig, to_plain
from sftpipe.data.prepare import PreparedData
from sftpipe.errors import SftpipeError
from sftpipe.terminal import quiet, quiet_libraries
from sftpipe.training.callbacks import watch
from support.trainers import trainer_of

Seen = dict[str, object]

# of the trainer's state: copies of arguments
_COPIED = ("logging_steps", "eval_steps", "save_steps", "train_batch_size", "num_train_epochs")
_TIMED = re.compile(r"runtime|_per_s|seconds|preparation_time|peak_memory|total_flos")
_REPEATS = ("config.yaml", "manifest.json", "README.md", "adapter_config.json", "checkpoint.json")


def differences(first: Seen, second: Seen) -> list[str]:
    """The names of what differs."""
    return sorted(name for name in {*first, *second} if first.get(name) != second.get(name))


def seen_in_data(cfg: TrainConfig) -> Seen:
    """The rows as ids and labels, the report on them and the tokenizer; or what is refused."""
    try:
        data = pipeline.prepare(cfg)
    except SftpipeError as error:
        return {"refused": str(error)}
    seen: Seen = {
        f"rows of {name}": [(row["input_ids"], row["labels"]) for row in rows]
        for name, rows in data.splits().items()
    }
    batch = data.collate([data.train[row] for row in range(min(2, len(data.train)))])
    return {
        **seen,
        "batch": {name: str(value) for name, value in batch.items()},
        "report": json.dumps(data.preflight.as_dict(), sort_keys=True),
        "isolation": str(data.isolation),
        "vocabulary": len(data.tokenizer),
        "special tokens": str(data.tokenizer.special_tokens_map),
        "template": data.tokenizer.chat_template,
    }


def seen_in_run(cfg: TrainConfig, folder: Path) -> Seen:
    """A whole run: what is printed, and what is in its folder; or what is refused.

    Args:
        cfg: of a run of a few steps.
        folder: where `cfg.output_dir` and `cfg.run` are.
    """
    text, calls = io.StringIO(), dict[str, Any]()
    try:
        with _console(text), _noted(calls):
            pipeline.train(cfg)
    except SftpipeError as error:
        return {"refused": str(error)}
    return {"printed": _without_times(text, folder), **seen_in_folder(folder)}


def seen_in_training(cfg: TrainConfig, folder: Path) -> Seen:
    """The trainer alone: no measuring before and after, no answers; or what is refused.

    Calls that set speed and memory, and change no number, are seen as well.

    Args:
        cfg: of a run of a few steps.
        folder: the run folder, which does not exist yet.
    """
    text, calls = io.StringIO(), dict[str, Any]()
    try:
        data = _prepared(cfg)
        with _console(text), _noted(calls), quiet(), quiet_libraries():
            trainer = trainer_of(cfg, data, folder)
            with watch(trainer, folder, lambda _: None, lambda _: None):
                trainer.train()
            trainer.save_final()
    except SftpipeError as error:
        return {"refused": str(error)}
    return {
        "printed": _without_times(text, folder),
        **calls,
        "trained": [name for name, one in trainer.model.named_parameters() if one.requires_grad],
        **seen_in_folder(folder),
    }


_PREPARED: dict[str, PreparedData] = {}


def _prepared(cfg: TrainConfig) -> PreparedData:
    """The rows of a config, kept for others with the same data."""
    tree = to_plain(cfg)
    of_data = ("max_length", "pad_to_multiple_of", "per_device_train_batch_size")
    tree["sft"] = {name: cfg.sft.get(name) for name in (*of_data, "train_sampling_strategy")}
    tree["lora"] = bool(tree["lora"])
    key = json.dumps(tree, sort_keys=True)
    if key not in _PREPARED:
        _PREPARED[key] = pipeline.prepare(cfg)
    return _PREPARED[key]


def seen_in_folder(folder: Path) -> Seen:
    """The names of all files, and the content of those that hold results."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [str(path.relative_to(folder)) for path in files]
    seen: Seen = {"files": names}
    for name, path in zip(names, files, strict=True):
        if path.name == "log.jsonl":
            seen[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".json" and path.name not in _REPEATS and "checkpoint-" not in name:
            seen[name] = _timeless(json.loads(path.read_text()))
        elif path.suffix in (".safetensors", ".jsonl"):
            seen[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return seen


def _timeless(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_timeless(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    return {
        key: _timeless(value)
        for key, value in tree.items()
        if key not in _COPIED and not _TIMED.search(str(key))
    }


def _without_times(text: io.StringIO, folder: Path) -> str:
    return re.sub(r"\d[\d,.]* tokens/s", "", text.getvalue().replace(str(folder), "<run>"))


@contextmanager
def _console(text: io.StringIO) -> Iterator[None]:
    """What is printed for people goes into `text`."""
    console = terminal.console
    file, console.file = console._file, text  # `file` itself is the stderr of this moment
    try:
        yield
    finally:
        console._file = file


@contextmanager
def _noted(calls: dict[str, Any]) -> Iterator[None]:
    """Note the calls by which a trainer sets what changes speed or memory and no number.

    What costs seconds or stays behind in the process is noted and left out.
    """
    with ExitStack() as stack:

        def spy(owner: Any, name: str, instead: Callable[..., Any] | None = None) -> None:
            real = getattr(owner, name)

            def noted(*args: Any, **kwargs: Any) -> Any:
                told = {key: re.sub(r"0x\w+", "", str(value)) for key, value in kwargs.items()}
                told |= {str(at): value for at, value in enumerate(args) if isinstance(value, int)}
                told = {key: value for key, value in told.items() if "object at" not in str(value)}
                told.pop("sampler", None)
                calls.setdefault(name, []).append(told)
                return (instead or real)(*args, **kwargs)

            stack.enter_context(patch.object(owner, name, noted))

        spy(torch.utils.data.DataLoader, "__init__")
        spy(hf_trainer, "Accelerator")
        spy(hf_trainer, "DebugUnderflowOverflow")
        spy(hf_trainer.logging, "set_verbosity")
        spy(PreTrainedModel, "activation_checkpointing_enable")
        spy(torch, "compile", lambda model=None, **kwargs: model)
        spy(hf_trainer, "enable_full_determinism", set_seed)
        # of no interest, and slow: a look through all objects, and PEFT's own card
        stack.enter_context(patch.object(gc, "collect", lambda *_: 0))
        stack.enter_context(patch.object(PeftModel, "create_or_update_model_card", lambda *_: None))
        yield
