"""The fast step on a CPU: the same loss and gradients, from fewer and larger operations.

- The rows of a batch are joined into one, without padding; attention runs sequence by sequence,
  under the model's own masks.
- A frozen linear layer and its LoRA are one autograd function, with the matrix products of oneDNN.
- Of a layer in 4 bits the dequantized weights are kept, where memory allows.

B rows of a batch, T tokens of its longest row, N tokens of all rows without padding; I inputs and O
outputs of a linear layer, R rank of its adapter; H heads of D numbers.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface
from transformers.pytorch_utils import Conv1D

from sftpipe.config.schema import ModelConfig
from sftpipe.data.labels import IGNORED
from sftpipe.model.isolation import (
    EXACT,
    largest_leak,
    packed_logits,
    rounding,
    small_key,
    small_model,
)
from sftpipe.model.weights import Weights
from sftpipe.storage import cached, write_json

_ATTENTION = "sftpipe_sequences"  # as transformers knows it
_KEPT = 0.5  # share of the free memory that dequantized weights may take


def speed_up(model: PreTrainedModel | PeftModel, cfg: ModelConfig, weights: Weights) -> bool:
    """Make the steps of a model on a CPU fast, as far as it computes the same then.

    Args:
        model: with its adapter.
        cfg: the `model` group.
        weights: of the base, whose config describes the class of the model.

    Returns:
        True where the rows of its batches are to be joined.
    """
    keep = cfg.nf4_cache == "auto" and _has_room(model)
    for layer in model.modules():
        if _is_covered(layer):
            base = layer.base_layer
            weight = _weight(base) if keep or not isinstance(base, Linear4bit) else None
            layer.forward = functools.partial(_forward, layer, layer.forward, weight)
    return _join_rows(model, cfg, weights)


# --- linear layers --------------------------------------------------------------------------------


class _Adapted(Function):
    """A frozen linear layer and its LoRA: y = x W^T + bias + s (d A^T) B^T.

    d is x after dropout, which takes the random numbers that PEFT's own would take.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
        dropout: float,
    ) -> torch.Tensor:
        """x (N, I), weight (O, I), bias (O,), a (R, I), b (O, R); returns (N, O)."""
        ctx.trained = a.dtype
        a, b = a.to(x.dtype), b.to(x.dtype)
        noise = _noise(x, dropout) if dropout else None
        entered = x if noise is None else x * noise
        inner = entered @ a.t()  # (N, R)
        y = _product(x, weight)
        if bias is not None:
            y += bias
        y.addmm_(inner, b.t(), alpha=scaling)
        ctx.save_for_backward(entered, noise, inner, weight, a, b)
        ctx.scaling = scaling
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        entered, noise, inner, weight, a, b = ctx.saved_tensors
        d_inner = (dy @ b).mul_(ctx.scaling)  # (N, R)
        d_a = (d_inner.t() @ entered).to(ctx.trained)
        d_b = (dy.t() @ inner).mul_(ctx.scaling).to(ctx.trained)
        d_x = _product(dy, weight.t()) if ctx.needs_input_grad[0] else None
        if d_x is not None and noise is None:
            d_x.addmm_(d_inner, a)
        elif d_x is not None:
            d_x.addcmul_(d_inner @ a, noise)
        return d_x, None, None, d_a, d_b, None, None


def _noise(x: torch.Tensor, dropout: float) -> torch.Tensor:
    """What `torch.dropout` would multiply x by, from the same random numbers: 0 or 1 / (1 - p)."""
    kept = 1 - dropout
    if _reads_words():
        noise = _kept(x.shape, kept).to(x.dtype)
    else:
        noise = torch.empty_like(x).bernoulli_(kept)
    return noise.div_(kept) if kept else noise


def _kept(shape: torch.Size, share: float, generator: Any = None) -> torch.Tensor:
    """What `bernoulli_(share)` draws, as booleans: torch compares 53 of 64 bits, less quickly."""
    words = torch.empty(shape, dtype=torch.int64).random_(generator=generator)
    return words.bitwise_and_(2**53 - 1) < math.ceil(share * 2**53)


@functools.cache
def _reads_words() -> bool:
    """True where torch draws as `_kept` does, not by the MKL of Intel."""
    ours, theirs = (torch.Generator().manual_seed(0) for _ in range(2))
    expected = torch.empty(4096).bernoulli_(0.9, generator=theirs) == 1
    found = _kept(expected.shape, 0.9, ours)
    same = torch.equal(ours.get_state(), theirs.get_state())
    return bool(same and torch.equal(found, expected))


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x W^T. In float32 by oneDNN, which torch itself asks for bfloat16 alone."""
    if x.dtype is torch.float32 and torch.backends.mkldnn.is_available():
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return found
    return x @ weight.t()


def _is_covered(layer: torch.nn.Module) -> bool:
    """True of a frozen linear layer on a CPU with one plain adapter: no DoRA, no bias of LoRA."""
    if type(layer) not in (LoraLinear, LoraLinear4bit):
        return False
    base, names = layer.base_layer, list(layer.lora_A)
    return (
        type(base) in (torch.nn.Linear, Conv1D, Linear4bit)
        and base.weight.device.type == "cpu"
        and not any(one.requires_grad for one in base.parameters())
        and len(names) == 1
        and not layer.lora_variant
        and layer.lora_B[names[0]].bias is None
    )


def _weight(base: torch.nn.Module) -> torch.Tensor:
    """The weight (O, I) of a linear layer; a view, or a dequantized copy."""
    if isinstance(base, Linear4bit):
        whole = dequantize_4bit(base.weight.data, base.weight.quant_state)
        return whole.to(base.compute_dtype or whole.dtype)
    return base.weight.t() if isinstance(base, Conv1D) else base.weight


def _forward(
    layer: Any,
    plain: Callable[..., torch.Tensor],
    weight: torch.Tensor | None,
    x: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """The forward of a covered layer; PEFT's own where its adapter is off, merged or another."""
    name = next(iter(layer.lora_A))
    base = layer.base_layer
    if args or kwargs or layer.disable_adapters or layer.merged or layer.active_adapters != [name]:
        return plain(x, *args, **kwargs)
    weight = _weight(base) if weight is None else weight
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if weight.dtype is not dtype:
        return plain(x)
    x = x.to(dtype)
    dropout = layer.lora_dropout[name]
    y = _Adapted.apply(
        x.reshape(-1, x.shape[-1]),
        weight,
        base.bias,
        layer.lora_A[name].weight,
        layer.lora_B[name].weight,
        layer.scaling[name],
        dropout.p if dropout.training and isinstance(dropout, torch.nn.Dropout) else 0.0,
    )
    return y.view(*x.shape[:-1], -1)


def _has_room(model: torch.nn.Module) -> bool:
    """True where memory has room for the dequantized weights of all layers in 4 bits."""
    needed = 0
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            size = (layer.compute_dtype or torch.float32).itemsize
            needed += size * layer.weight.quant_state.shape.numel()
    return needed <= _KEPT * float(psutil.virtual_memory().available)


# --- rows -----------------------------------------------------------------------------------------


def joined(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], list[int]] | None:
    """A batch as one row of N tokens, and the tokens of each of its sequences.

    Args:
        inputs: rows (B, T) that are padded on the right, with `labels` and `attention_mask`, or one
            row of packed sequences with `cu_seq_lens_q`.

    Returns:
        None for rows of packed sequences under a mask of their own.
    """
    if "cu_seq_lens_q" in inputs:
        return dict(inputs), inputs["cu_seq_lens_q"].diff().tolist()
    mask = inputs.get("attention_mask")
    if mask is None or mask.dim() != 2:
        return None
    real = mask.bool()
    lengths = real.sum(1).tolist()
    labels = inputs["labels"].clone()
    labels[:, 0] = IGNORED  # no token of the row before predicts it
    positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    row = {"input_ids": inputs["input_ids"], "labels": labels, "position_ids": positions}
    return {name: value[real].unsqueeze(0) for name, value in row.items()}, lengths


_lengths: ContextVar[Sequence[int] | None] = ContextVar("lengths", default=None)


@contextlib.contextmanager
def sequences(lengths: Sequence[int] | None) -> Iterator[None]:
    """Within it, the one row of a model's forward holds sequences of so many tokens; None: rows."""
    token = _lengths.set(lengths)
    try:
        yield
    finally:
        _lengths.reset(token)


@dataclass(frozen=True)
class _Blocks:
    """What stands for the mask (1, 1, N, N) of joined sequences: one block for each of them.

    It goes through the model in the place of the mask, also when checkpointing runs a layer again.

    lengths: tokens of each.
    masks: their blocks (1, 1, T, T) for T of their tokens; None of a sequence that is causal and
        nothing else.
    """

    lengths: list[int]
    masks: list[torch.Tensor | None]


def _mask(*args: Any, **kwargs: Any) -> Any:
    """The mask function of our attention: transformers' own, or the blocks of joined sequences.

    Raises:
        ValueError: the mask cannot be read position by position.
    """
    lengths = _lengths.get()
    if lengths is None:
        return sdpa_mask(*args, **kwargs)
    if args or kwargs.get("use_vmap") or kwargs["q_length"] != sum(lengths):
        raise ValueError("a mask that is no function of positions")
    masks: list[torch.Tensor | None] = []
    start = 0
    for length in lengths:
        index = torch.arange(start, start + length)
        zero = torch.zeros(1, 1, 1, 1, dtype=torch.long)
        block = kwargs["mask_function"](
            zero, zero, index.view(1, 1, -1, 1), index.view(1, 1, 1, -1)
        )
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        masks.append(None if bool((block == causal).all()) else block)
        start += length
    return _Blocks(list(lengths), masks)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa attention, sequence by sequence where they are joined.

    query (1, H, N, D), key and value with as many or fewer heads; returns (1, N, H, D). It computes
    in float32, because torch's kernel for CPUs is several times slower in bfloat16.
    """
    if not isinstance(attention_mask, _Blocks):
        plain: tuple[torch.Tensor, None]
        plain = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return plain
    parts = [one.float().split(attention_mask.lengths, 2) for one in (query, key, value)]
    with torch.autocast("cpu", enabled=False):
        found = [
            sdpa_attention_forward(module, *one, mask, **kwargs)[0]
            for *one, mask in zip(*parts, attention_mask.masks, strict=True)
        ]
    return torch.cat(found, 1).to(query.dtype), None


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, _mask)


def _join_rows(model: PreTrainedModel | PeftModel, cfg: ModelConfig, weights: Weights) -> bool:
    """Let a model take joined rows, where it computes the same from them; False where not."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    is_sdpa = base.config._attn_implementation == "sdpa"
    if not is_sdpa or not _small_leak(cfg, weights) <= EXACT[torch.float32]:
        return False
    base.set_attn_implementation(_ATTENTION)
    if _leak(base) <= rounding(base):
        return True
    base.set_attn_implementation("sdpa")
    return False


def _small_leak(cfg: ModelConfig, weights: Weights) -> float:
    """`_leak` of the small model of the class, measured once; infinity where it cannot run."""

    def build(folder: Path) -> None:
        model = small_model(cfg, weights)
        model.set_attn_implementation(_ATTENTION)
        try:
            found = _leak(model)
        except Exception:  # a class without positions or with another mask may fail in any way
            found = math.inf
        write_json(folder / "leak.json", found)

    def load(folder: Path) -> float:
        return float(json.loads((folder / "leak.json").read_text(encoding="utf-8")))

    return cached("isolation", small_key(cfg, weights, Path(__file__)), build, load)


def _leak(model: PreTrainedModel) -> float:
    """The largest difference that joining makes to a logit, see `largest_leak`."""
    alone = functools.partial(packed_logits, method=None)
    return largest_leak(model, _joined_logits, alone)


def _joined_logits(model: PreTrainedModel, rows: list[list[int]]) -> torch.Tensor:
    with sequences([len(row) for row in rows]):
        return packed_logits(model, rows, "positions")
