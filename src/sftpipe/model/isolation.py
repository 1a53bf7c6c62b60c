"""Whether packed sequences see each other: measured on the model's own class, never looked up in a list.

Three sequences are run apart and packed, by the same collator as in training. T tokens, V
vocabulary.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from sftpipe.config.schema import ModelConfig
from sftpipe.data.packing import Collator, Isolation
from sftpipe.errors import ModelError, Problem, one_line
from sftpipe.model.architecture import model_config
from sftpipe.model.weights import Weights
from sftpipe.storage import cached, digest, write_json

LENGTHS = (6, 9, 7)  # tokens of the three sequences
EXACT = {
    torch.float32: 1e-3,
    torch.bfloat16: 2e-2,
    torch.float16: 1e-2,
}  # differences below are rounding; leaks begin near 0.05
_VOCABULARY, _WIDTH = 512, 256  # of the small model: tokens, and the inner width of its MLP


def small_isolation(cfg: ModelConfig, weights: Weights) -> Isolation:
    """`measure` on a random model of two layers (one of each kind, if there are more) of the same class, config and attention.

    Measured once for each class, config, attention and version of the libraries.

    Raises:
        ModelError: sequences leak whatever is given to the model.
    """
    config = _small(model_config(cfg, weights))
    extra = (
        {}
        if cfg.attn_implementation in ("auto", "flash_attention_2")
        else {"attn_implementation": cfg.attn_implementation}
    )
    key = digest(config.to_json_string(), extra, torch.__version__, transformers.__version__)

    def build(folder: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, **extra).float().eval()
            write_json(folder / "isolation.json", asdict(measure(model)))

    def load(folder: Path) -> Isolation:
        return Isolation(**json.loads((folder / "isolation.json").read_text(encoding="utf-8")))

    return cached("isolation", key, build, load)


def measure(model: PreTrainedModel) -> Isolation:
    """How sequences can be kept apart on this model: by positions alone, or else by a mask.

    Raises:
        ModelError: they leak both ways; names the figures.
    """
    tried: dict[str, str] = {}
    positions = None
    for apart in ("positions", "mask"):
        try:
            figure = leak(model, apart)
        except (
            Exception
        ) as error:  # a class that takes no positions, or no such mask, may fail in any way
            tried[apart] = f"fails ({type(error).__name__}: {one_line(error)[:80]})"
            continue
        if figure <= _rounding(model):
            return Isolation(apart, figure, positions)
        tried[apart] = f"leaks ({figure:.2g} standard deviations of the logits)"
        positions = figure if apart == "positions" else None
    raise ModelError(
        Problem(
            f"packing ({type(model).__name__}, {model.config._attn_implementation})",
            f"packed sequences see each other: positions {tried['positions']}; a block-diagonal "
            f"mask {tried['mask']}",
            allowed="a model that keeps them apart",
            fix="packing=none",
        )
    )


def verify(model: PreTrainedModel, found: Isolation) -> None:
    """Measure the model that is trained as the small one was.

    Raises:
        ModelError: sequences leak on it.
    """
    figure = leak(model, found.apart)
    if figure > _rounding(model):
        raise ModelError(
            Problem(
                f"packing ({type(model).__name__}, {model.config._attn_implementation})",
                f"packed sequences see each other: {figure:.2g} standard deviations of the "
                "logits, and "
                f"{found.figure or 0:.2g} on a small model of the class",
                fix="packing=none, or another model.attn_implementation",
            )
        )


def leak(model: PreTrainedModel, apart: str) -> float:
    """The largest difference that packing makes to a logit, in standard deviations of the logits.

    In float32 packed sequences are compared with separate ones. In any precision the first sequence
    is also replaced by other tokens, which must change nothing behind it; shapes are the same
    there, so that rounding is, too.
    """
    generator = torch.Generator().manual_seed(0)
    size = model.get_input_embeddings().num_embeddings
    first, *rest = [
        torch.randint(size // 4, size - 1, (length,), generator=generator).tolist()
        for length in (LENGTHS[0], *LENGTHS)
    ]
    separate, behind = rest, LENGTHS[0]
    packed = _logits(model, separate, apart)
    changed = _logits(model, [first, *separate[1:]], apart)
    scale = packed.std()
    figure = (changed[behind:] - packed[behind:]).abs().max() / scale
    if model.dtype is torch.float32:
        alone = torch.cat([_logits(model, [ids], apart) for ids in separate])
        figure = torch.maximum(figure, (alone - packed).abs().max() / scale)
    return float(figure)


def _rounding(model: PreTrainedModel) -> float:
    """The largest difference that its precision explains."""
    return EXACT.get(model.dtype, EXACT[torch.float16])


def _logits(model: PreTrainedModel, sequences: list[list[int]], apart: str) -> torch.Tensor:
    """Logits (T, V) in float32 of sequences packed into one row."""
    ids = [token for sequence in sequences for token in sequence]
    row = {
        "input_ids": ids,
        "labels": ids,
        "seq_lengths": [len(sequence) for sequence in sequences],
    }
    batch = Collator(pad_token_id=0, apart=apart)([row])
    batch.pop("labels")
    inputs = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return model(**inputs, use_cache=False).logits[0].float()
    finally:
        model.train(was_training)


def _small(config: Any) -> Any:
    """The config of a model that is built and run in a blink, and masks as the whole one does."""
    config = copy.deepcopy(config)
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    config.num_hidden_layers = max(2, len(kinds))
    if kinds:
        config.layer_types = (kinds * 2)[: config.num_hidden_layers]
    config.vocab_size = min(config.vocab_size, _VOCABULARY)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    for name in ("intermediate_size", "moe_intermediate_size", "ffn_dim"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, min(getattr(config, name), _WIDTH))
    return config
