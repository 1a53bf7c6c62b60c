"""How packed sequences are isolated on a model: measured, never looked up in a list.

Three sequences are run separately and packed, by the same collator as in training, on the model's
own class. T tokens, V vocabulary.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from sftpipe.config.schema import PACKING, ModelConfig, TrainConfig
from sftpipe.data.packing import Collator, Isolation
from sftpipe.errors import ModelError, Problem, one_line
from sftpipe.model.architecture import model_config, small_config
from sftpipe.model.weights import Weights
from sftpipe.storage import cached, digest, sha256_cached, write_json

LENGTHS = (6, 9, 7)  # tokens of the three sequences
# differences below are rounding; leaks begin near 0.05
EXACT = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 1e-2}

# a model, and sequences that share a row of it, to logits (T, V)
Logits = Callable[[PreTrainedModel, list[list[int]]], torch.Tensor]


def find_isolation(cfg: TrainConfig, weights: Weights) -> Isolation | None:
    """How this run isolates packed sequences; None where none share a row, or join on purpose.

    Raises:
        ModelError: see `measure`.
    """
    if cfg.packing is None or not PACKING[cfg.packing.strategy].isolated:
        return None
    if cfg.packing.isolation == "trust":
        return Isolation("positions")
    return small_isolation(cfg.model, weights)


def small_isolation(cfg: ModelConfig, weights: Weights) -> Isolation:
    """`measure` on a small random model of the same class, config and attention.

    It has two layers, or one of each kind of layer if there are more. It is measured once for each
    class, config, attention and version of the code.

    Raises:
        ModelError: sequences leak whatever is given to the model.
    """

    def build(folder: Path) -> None:
        write_json(folder / "isolation.json", asdict(measure(small_model(cfg, weights))))

    def load(folder: Path) -> Isolation:
        return Isolation(**json.loads((folder / "isolation.json").read_text(encoding="utf-8")))

    return cached("isolation", small_key(cfg, weights, Path(__file__)), build, load)


def small_model(cfg: ModelConfig, weights: Weights) -> PreTrainedModel:
    """A small random model in float32, of the same class, config and attention."""
    config = small_config(model_config(cfg, weights))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, **_attention(cfg))
        return model.float().eval()


def small_key(cfg: ModelConfig, weights: Weights, code: Path) -> str:
    """What a measurement on `small_model` depends on, by this file and another one of ours."""
    config = small_config(model_config(cfg, weights)).to_json_string()
    libraries = torch.__version__, transformers.__version__
    ours = sha256_cached(Path(__file__)), sha256_cached(code)
    return digest(config, _attention(cfg), *libraries, *ours)


def _attention(cfg: ModelConfig) -> dict[str, str]:
    # FlashAttention cannot run here: the class's own choice stands for it
    if cfg.attn_implementation in ("auto", "flash_attention_2"):
        return {}
    return {"attn_implementation": cfg.attn_implementation}


def measure(model: PreTrainedModel) -> Isolation:
    """How sequences can be isolated on this model: by positions alone, or else by a mask.

    Raises:
        ModelError: they leak both ways; names the leaks.
    """
    tried: dict[str, str] = {}
    leak_of_positions = None
    for method in ("positions", "mask"):
        try:
            leak = measure_leak(model, method)
        except Exception as error:  # a class without positions or such a mask may fail in any way
            tried[method] = f"fails ({type(error).__name__}: {one_line(error)[:80]})"
            continue
        if leak <= rounding(model):
            return Isolation(method, leak, leak_of_positions)
        tried[method] = f"leaks ({leak:.2g} standard deviations of the logits)"
        leak_of_positions = leak if method == "positions" else None
    raise ModelError(
        Problem(
            _where(model),
            f"packed sequences see each other: positions {tried['positions']}; a block-diagonal "
            f"mask {tried['mask']}",
            allowed="a model that isolates them",
            fix="`packing=none`",
        )
    )


def verify(model: PreTrainedModel, found: Isolation | None) -> None:
    """Measure the model that is trained as the small one was, unless the config trusts it.

    Raises:
        ModelError: sequences leak on it.
    """
    if found is None or found.leak is None:
        return
    leak = measure_leak(model, found.method)
    if leak > rounding(model):
        raise ModelError(
            Problem(
                _where(model),
                f"packed sequences see each other: {leak:.2g} standard deviations of the "
                f"logits, and {found.leak:.2g} on a small model of the class",
                fix="`packing=none`, or another model.attn_implementation",
            )
        )


def measure_leak(model: PreTrainedModel, method: str) -> float:
    """`largest_leak` of packed sequences that a method of `Collator` isolates."""
    packed = functools.partial(packed_logits, method=method)
    return largest_leak(model, packed, packed)


def largest_leak(model: PreTrainedModel, together: Logits, alone: Logits) -> float:
    """The largest difference that sharing a row makes to a logit.

    In float32 sequences that share a row are compared with separate ones. In any precision the
    first sequence is also replaced by other tokens, which must change nothing after it; shapes are
    the same there, so that rounding is, too.

    Args:
        model: any.
        together: logits of sequences in one row.
        alone: of a single one.

    Returns:
        In standard deviations of the logits.
    """
    generator = torch.Generator().manual_seed(0)
    size = model.config.vocab_size
    other, *separate = [
        torch.randint(size // 4, size - 1, (length,), generator=generator).tolist()
        for length in (LENGTHS[0], *LENGTHS)
    ]
    after = LENGTHS[0]
    packed = together(model, separate)
    changed = together(model, [other, *separate[1:]])
    scale = packed.std()
    leak = (changed[after:] - packed[after:]).abs().max() / scale
    if model.dtype is torch.float32:
        single = torch.cat([alone(model, [ids]) for ids in separate])
        leak = torch.maximum(leak, (single - packed).abs().max() / scale)
    return float(leak)


def _where(model: PreTrainedModel) -> str:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = type(base).__name__.removeprefix("FSDP")  # fully_shard's
    return f"packing ({name}, {model.config._attn_implementation})"


def rounding(model: PreTrainedModel) -> float:
    """The largest difference that its precision explains."""
    return EXACT.get(model.dtype, EXACT[torch.float16])


def packed_logits(
    model: PreTrainedModel, sequences: list[list[int]], method: str | None
) -> torch.Tensor:
    """Logits (T, V) in float32 of sequences packed into one row.

    Args:
        model: any.
        sequences: ids; a single one where method is None.
        method: of `Collator`.
    """
    ids = [token for sequence in sequences for token in sequence]
    row = {
        "input_ids": ids,
        "labels": ids,
        "seq_lengths": [len(sequence) for sequence in sequences],
    }
    batch = Collator(0, None, method)([row])
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
