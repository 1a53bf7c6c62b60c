"""Numbers and answers of a trainer's model, before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sftpipe.ranks as ranks
from sftpipe.config.schema import EvaluationConfig
from sftpipe.config.validation_sets import log_prefix
from sftpipe.evaluation.answers import Sampling, generate
from sftpipe.evaluation.questions import Question
from sftpipe.training.callbacks import peak_memory_bytes

if TYPE_CHECKING:
    from datasets import Dataset

    from sftpipe.training.trainer import SFTPipeTrainer


def split_loss(trainer: SFTPipeTrainer, rows: Dataset, split: str) -> dict[str, float]:
    """Loss and perplexity per trained token of a split.

    If the last evaluation was of the same weights, its log entry is used instead.
    """
    prefix = log_prefix(split)
    measured = _logged_now(trainer, prefix) or trainer.evaluate(rows, metric_key_prefix=prefix)
    return {"loss": measured[f"{prefix}_loss"], "perplexity": measured[f"{prefix}_perplexity"]}


def _logged_now(trainer: SFTPipeTrainer, prefix: str) -> dict[str, float] | None:
    """The log entry of an evaluation of the present weights (`sft.eval_strategy`), or None."""
    last: dict[str, float] | None = next(
        (entry for entry in reversed(trainer.state.log_history) if f"{prefix}_loss" in entry), None
    )
    if (
        last is None
        or last["step"] != trainer.state.global_step
        or trainer.args.load_best_model_at_end
    ):
        return None
    return last


def sample_answers(
    trainer: SFTPipeTrainer, questions: Sequence[Question], phase: str, cfg: EvaluationConfig
) -> list[dict[str, Any]]:
    """One row of samples.jsonl for each prompt.

    `phase` is `before`, `epoch N`, `step N` or `after`.
    """
    answers = dict(
        generate(
            trainer.model,
            trainer.processing_class,
            [question.input_ids for question in questions],
            Sampling.of(cfg, trainer.args.seed),
            batch_size=cfg.batch_size,
        )
    )
    return [
        {
            "phase": phase,
            "step": trainer.state.global_step,
            "prompt": question.text,
            "completion": answers[number].text,
            "reference": question.reference,
        }
        for number, question in enumerate(questions)
    ]


def train_metrics(trainer: SFTPipeTrainer) -> dict[str, Any]:
    """The `train` part of metrics.json.

    Loss per trained token, seconds of the loop, rates, steps, peak memory of a process in bytes.
    """
    counter = trainer.counter
    seconds = max(counter.seconds, 1e-9)
    return {
        "loss": counter.loss,
        "runtime_s": counter.seconds,
        "rows_per_s": counter.rows / seconds,
        "tokens_per_s": counter.tokens / seconds,
        "trained_tokens_per_s": counter.trained_tokens / seconds,
        "steps": trainer.state.global_step,
        "peak_memory_bytes": max(ranks.gathered(peak_memory_bytes())),
    }
