"""The rates of answers."""

from __future__ import annotations

from sftpipe.bench import generate


def test_rates_are_tokens_a_second_and_how_many_times_faster_the_batches_are() -> None:
    took = {"batched": 2.0, "one by one": 10.0, "transformers": 3.0}
    assert generate._rates(took, 1280) == {
        "batched_tokens_per_s": 640,
        "one by one_tokens_per_s": 128,
        "transformers_tokens_per_s": 426.7,
        "batched / one by one": 5,
        "batched / transformers": 1.5,
    }
