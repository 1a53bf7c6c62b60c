"""The training that part train measures, the same for each implementation.

The first rows of Yoda, in their order, one epoch: LoRA on all linear layers of SmolLM2-135M in
float32, on a CPU.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sftpipe.data.labels import IGNORED

SEED = 42
BATCH = 8
LEARNING_RATE = 1e-3
RANK, ALPHA = 16, 32
MAX_LENGTH = 256
_THREADS = 2

# LLaMA-Factory's template `chatml`, which trains the line break after <|im_end|> too: what the
# generation block holds is trained
_CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|im_end|>\\n' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def overrides(rows: int, folder: Path) -> list[str]:
    """The task as words of `sftpipe train`; the chat template is written into the folder."""
    template = folder / "chatml.jinja"
    template.write_text(_CHATML, encoding="utf-8")
    return [
        "model=smollm2_135m",
        "model.dtype=float32",
        "quantization=none",
        f"tokenizer.chat_template={template}",
        "dataset=yoda",
        f"dataset.limit={rows}",
        "format=instruction",
        "loss=completion_only",
        "packing=none",
        "lora=default",
        f"lora.r={RANK}",
        f"lora.lora_alpha={ALPHA}",
        "lora.lora_dropout=0.0",
        f"seed={SEED}",
        f"sft.per_device_train_batch_size={BATCH}",
        "sft.num_train_epochs=1",
        f"sft.learning_rate={LEARNING_RATE}",
        "sft.lr_scheduler_type=linear",
        "sft.warmup_steps=0",
        "sft.optim=adamw_torch",
        f"sft.max_length={MAX_LENGTH}",
        "sft.train_sampling_strategy=sequential",
        "sft.logging_steps=1",
        "sft.save_strategy=no",
        "sft.use_cpu=true",
        "evaluation=none",
    ]


def environment() -> dict[str, str]:
    """The environment of a process that trains: as many threads for each, and no GPU."""
    return {**os.environ, "OMP_NUM_THREADS": str(_THREADS), "CUDA_VISIBLE_DEVICES": ""}


def facts(
    history: Iterable[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """What an implementation did, in the same words for each.

    Args:
        history: the entries that transformers' trainer logged, as in trainer_state.json.
        rows: `input_ids` and `labels` of what it trained on, in their order.

    Returns:
        Seconds of the loop, the loss of each step, tokens, trained tokens, and the digest of ids
        and labels.
    """
    entries = list(history)
    pairs = [(list(row["input_ids"]), list(row["labels"])) for row in rows]
    return {
        "seconds": next(one["train_runtime"] for one in entries if "train_runtime" in one),
        "losses": [one["loss"] for one in entries if "loss" in one],
        "tokens": sum(len(ids) for ids, _ in pairs),
        # the first token of a row has nothing that predicts it
        "trained_tokens": sum(label != IGNORED for _, labels in pairs for label in labels[1:]),
        "sha256": hashlib.sha256(json.dumps(pairs).encode()).hexdigest(),
    }
