"""A model as plain files: what transformers, vLLM and everything that reads safetensors loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from sftpipe.errors import ExportError, Problem, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SHARD = "2GB"  # the most that one file holds
_OF_TRAINING = ("quantization_config", "_pre_quantization_dtype")


def write_plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights in shards of at most 2 GB, configs and tokenizer.

    Args:
        model: of plain weights, as they are to be saved.
        tokenizer: with its chat template.
        folder: exists and is empty.
    """
    for name in _OF_TRAINING:
        if hasattr(model.config, name):
            delattr(model.config, name)
    model.config.use_cache = True  # training switched it off
    model.config.dtype = model.dtype
    model.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)


def read_plain(folder: Path, device: str) -> Any:
    """The model of such a folder, by transformers alone.

    Args:
        folder: what `write_plain` wrote.
        device: `cuda` or `cpu`.

    Raises:
        ExportError: transformers does not read it, or leaves weights out.
    """
    try:
        model, said = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", device_map={"": device}, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        found = f"transformers cannot read what was written: {one_line(error)[:300]}"
        raise ExportError(Problem(str(folder), found)) from None
    wrong = {name: sorted(map(str, said[name])) for name in _COMPLAINTS if said.get(name)}
    if wrong:
        found = ", ".join(f"{name}: {', '.join(ones[:3])}" for name, ones in wrong.items())
        raise ExportError(Problem(str(folder), f"transformers reads it in part: {found}"))
    return model.eval()


_COMPLAINTS = ("missing_keys", "unexpected_keys", "mismatched_keys")
