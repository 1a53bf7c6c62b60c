"""Part generate: answers in batches against one by one and against transformers' own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sftpipe.bench.timing import ROUNDS, median_seconds
from sftpipe.terminal import console, quiet_libraries


def generation(tokens: int = 32) -> dict[str, Any]:
    """New tokens a second of answers to the 40 test rows of Yoda, by the base model in float32.

    Batched, one by one, and by transformers' own `generate` on the same batches; every answer has
    the same number of tokens. The three run alternately.
    """
    # longer than most: one measurement, from top to bottom
    import torch

    from sftpipe.config.hydra import compose
    from sftpipe.evaluation.answers import Sampling, generate, padded_batch
    from sftpipe.evaluation.questions import Question, row_questions
    from sftpipe.runs.load import BaseModel

    subject = BaseModel(compose(["recipe=yoda", "quantization=none"]))
    with quiet_libraries():
        readers = subject.readers("test", subject.sources())
        found = row_questions(readers, subject.encoder)
        prompts = [one.input_ids for one in found if isinstance(one, Question)]
        model, tokenizer = subject.model, subject.tokenizer
    sampling = Sampling(tokens, fields={"min_new_tokens": tokens})
    size = subject.evaluation.batch_size
    order = sorted(prompts, key=len, reverse=True)
    batches = [order[start : start + size] for start in range(0, len(order), size)]

    def plain() -> None:
        for batch in batches:
            with torch.inference_mode():
                model.generate(
                    **padded_batch(batch, int(tokenizer.pad_token_id), model.device),
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    do_sample=False,
                )

    ways: dict[str, Callable[[], object]] = {
        "batched": lambda: list(generate(model, tokenizer, prompts, sampling, batch_size=size)),
        "one by one": lambda: list(generate(model, tokenizer, prompts, sampling, batch_size=1)),
        "transformers": plain,
    }
    with quiet_libraries(), console.status(f"{ROUNDS} rounds ..."):
        took = median_seconds(ways)
    return {
        "model": subject.identity(),
        "device": str(model.device),
        "prompts": f"{len(prompts)} rows in batches of {size}, {tokens} new tokens each",
        **_rates(took, len(prompts) * tokens),
    }


def _rates(took: Mapping[str, float], tokens: int) -> dict[str, float]:
    """Tokens a second of each way, and how many times faster the batches are.

    Args:
        took: seconds of the ways.
        tokens: that each of them made.
    """
    return {
        **{f"{name}_tokens_per_s": round(tokens / time_s, 1) for name, time_s in took.items()},
        "batched / one by one": round(took["one by one"] / took["batched"], 2),
        "batched / transformers": round(took["transformers"] / took["batched"], 2),
    }
