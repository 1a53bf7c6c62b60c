"""What a training step could take at least: the time of its bare matrix products on this machine.

N real tokens of the batch, n of them trained; I inputs and O outputs of a linear layer, R rank of
its adapter, H hidden size, V vocabulary. A product (a, b, c) is that of matrices (a, b) and (b, c).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Product = tuple[int, int, int]

_REPEATS = 9  # of a product; the best counts


def products(model: Any, run: Callable[[], object], tokens: int, trained: int) -> Counter[Product]:
    """The products that a step of LoRA needs, whoever makes it; padding counts for nobody.

    Forward and input gradients of the frozen layers, of their adapters, and of the head at trained
    positions. A layer whose input takes no gradient, such as the first, needs none for it.

    Args:
        model: with a plain adapter on linear layers.
        run: a forward of it with gradients.
        tokens: N.
        trained: n.
    """
    found: Counter[Product] = Counter()

    def note(layer: Any, inputs: tuple[Any, ...]) -> None:
        has_gradient = inputs[0].requires_grad
        rank = layer.r["default"]
        for size, width, height in (
            (tokens, layer.in_features, layer.out_features),  # x W^T
            (tokens, layer.in_features, rank),  # x A^T
            (tokens, rank, layer.out_features),  # (x A^T) B^T
            (tokens, layer.out_features, rank),  # dy B
            (rank, tokens, layer.in_features),  # dA
            (layer.out_features, tokens, rank),  # dB
        ):
            found[size, width, height] += 1
        if has_gradient:
            found[tokens, layer.out_features, layer.in_features] += 1  # dy W
            found[tokens, rank, layer.in_features] += 1

    hooks = [
        layer.register_forward_pre_hook(note)
        for layer in model.modules()
        if hasattr(layer, "lora_A")
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    vocabulary, hidden = model.get_output_embeddings().weight.shape
    found[trained, hidden, vocabulary] += 1
    found[trained, vocabulary, hidden] += 1
    return found


def frozen(needed: Mapping[Product, int], rank: int) -> Counter[Product]:
    """Those of the frozen layers alone: no adapter, no head."""
    largest = max(max(sizes) for sizes in needed)  # the vocabulary
    return Counter(
        {
            sizes: count
            for sizes, count in needed.items()
            if rank not in sizes and largest not in sizes
        }
    )


def seconds(needed: Mapping[Product, int], dtype: Any) -> float:
    """The sum of all products, each at the best rate that torch or oneDNN reaches for its shape."""
    return sum(count * min(_tries(sizes, dtype)) for sizes, count in needed.items())


def _tries(sizes: Product, dtype: Any) -> Iterator[float]:
    """Seconds of a product, again and again: by torch and by oneDNN, in both layouts."""
    import torch

    def linear(left: Any, right: Any) -> Any:
        return torch.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], "")

    rows, inner, columns = sizes
    left = torch.randn(rows, inner).to(dtype)
    ways = [torch.mm, linear] if torch.backends.mkldnn.is_available() else [torch.mm]
    for right in (torch.randn(inner, columns).to(dtype), torch.randn(columns, inner).to(dtype).t()):
        for way in ways:
            way(left, right)
            for _ in range(_REPEATS):
                start = time.perf_counter()
                way(left, right)
                yield time.perf_counter() - start


def operations(needed: Mapping[Product, int]) -> float:
    """Additions and multiplications."""
    return float(sum(2 * a * b * c * count for (a, b, c), count in needed.items()))
