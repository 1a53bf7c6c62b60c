"""What the recipe `char_gpt_ko` is good for: its validation loss against a bigram model's on the
same split.

usage: python tests/e2e/char_gpt_quality.py RUN_FOLDER

The bigram model counts pairs of characters in the train split. Its smoothing is chosen on the
validation split, in its favour: add-k, and Dirichlet priors of the character frequencies, each with
several strengths. Exits with 1 when the model is not better.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import sftpipe

ADDED = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # to each count
PRIOR = (
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
    15.0,
    20.0,
    50.0,
)  # characters that the frequencies count for, behind each character


def main(folder: str) -> int:
    run = sftpipe.load_run(folder)
    data = sftpipe.prepare(run.config)
    size = len(run.tokenizer)
    loss = run.metrics["validation"]["after"]["loss"]
    bigram, smoothing = best_bigram(_stream(data.train), _stream(data.validation), size)
    print(f"ln(V) with V = {size} tokens: {math.log(size):.3f}")
    print(f"bigram, {smoothing}: {bigram:.3f} nats a character")
    print(f"model: {loss:.3f} nats a character")
    return 0 if loss < bigram else 1


def best_bigram(train: list[int], validation: list[int], size: int) -> tuple[float, str]:
    """The lowest cross entropy of a bigram model on `validation`, and its smoothing; ids below
    `size`.
    """
    pairs, firsts, singles = Counter(pairwise(train)), Counter(train[:-1]), Counter(train)

    def entropy(probability: Callable[[int, int], float]) -> float:
        steps = list(pairwise(validation))
        return -sum(math.log(probability(first, second)) for first, second in steps) / len(steps)

    def frequency(token: int) -> float:
        return (singles[token] + 0.3) / (len(train) + 0.3 * size)

    found = [
        (
            entropy(lambda a, b, k=k: (pairs[a, b] + k) / (firsts[a] + k * size)),
            f"{k} added to each count",
        )
        for k in ADDED
    ]
    found += [
        (
            entropy(lambda a, b, k=k: (pairs[a, b] + k * frequency(b)) / (firsts[a] + k)),
            f"a prior of {k} characters",
        )
        for k in PRIOR
    ]
    return min(found)


def _stream(rows: list[dict[str, list[int]]]) -> list[int]:
    """The tokens of a split: each window begins with the last token of the one before."""
    return [token for number, row in enumerate(rows) for token in row["input_ids"][number > 0 :]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
