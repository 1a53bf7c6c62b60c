"""Numbers and answers of a run, as its folder holds them."""

from __future__ import annotations

TRAIN = {
    "loss": 2.875,
    "steps": 40,
    "runtime_s": 12.6,
    "tokens_per_s": 1234.4,
    "peak_memory_bytes": 3 * 2**29,
}
METRICS = {
    "train": TRAIN,
    "validation": {
        "before": {"loss": 3.25, "perplexity": 25.79},
        "after": {"loss": 2.5, "perplexity": 12.18},
    },
    "test": {"loss": 2.625, "perplexity": 13.8},
}


def sample(phase: str, prompt: str, completion: str) -> dict[str, str]:
    return {"phase": phase, "prompt": prompt, "completion": completion}


SAMPLES = [
    sample("before", "Sort\n3 1.", "a | b"),
    sample("before", "Who?", "Nobody."),
    sample("epoch 1", "Sort\n3 1.", "3"),
    sample("epoch 1", "Who?", "You."),
    sample("after", "Sort\n3 1.", "1\n3"),
    sample("after", "Who?", "x" * 300),
]
