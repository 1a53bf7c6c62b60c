"""What the recipe `yoda` is good for: chrF of the 40 test rows, base model against the trained one.

usage: python tests/e2e/yoda_quality.py RUN_FOLDER

Exits with 1 when the validation loss fell by less than 40 % or chrF rose by less than 15 points.
"""

from __future__ import annotations

import sys

from sacrebleu.metrics import CHRF

import sftpipe
from sftpipe.evaluation.answers import generate, split_prompts


def main(folder: str) -> int:
    run = sftpipe.load_run(folder)
    data = sftpipe.prepare(run.config)
    prompts = split_prompts(data, "test")
    references = [[prompt.reference or "" for prompt in prompts]]
    model = run.load_model()

    def chrf() -> float:
        answers = generate(
            model, data.tokenizer, [p.input_ids for p in prompts], max_new_tokens=48, batch_size=40
        )
        return float(CHRF().corpus_score(answers, references).score)

    after = chrf()
    with model.disable_adapter():
        before = chrf()
    loss = run.metrics["validation"]
    fall = 1 - loss["after"]["loss"] / loss["before"]["loss"]
    print(
        f"validation loss {loss['before']['loss']:.3f} -> {loss['after']['loss']:.3f} "
        f"({fall:.0%} less)"
    )
    print(f"chrF over {len(prompts)} test rows {before:.1f} -> {after:.1f} (+{after - before:.1f})")
    return 0 if fall >= 0.4 and after - before >= 15 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
