"""Answers of a model to prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch

from sftpipe.config.schema import EvaluationConfig, FormatConfig
from sftpipe.data.encode import Encoder
from sftpipe.data.formats import to_prompt
from sftpipe.data.prepare import PreparedData
from sftpipe.data.prompts import split_answer
from sftpipe.data.samples import Prompt
from sftpipe.model.architecture import check_room

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

SAMPLES = 5  # prompts taken from the data when a config names none


@dataclass(frozen=True)
class SamplePrompt:
    """A fixed prompt of a run.

    text: the last user turn, or the whole string prompt; for people.
    input_ids: what the model is fed.
    reference: the data set's answer; None for a prompt that the config gives.
    """

    text: str
    input_ids: list[int]
    reference: str | None


def sample_prompts(
    cfg: EvaluationConfig | None,
    format_cfg: FormatConfig,
    data: PreparedData,
    model_config: PreTrainedConfig,
) -> list[SamplePrompt]:
    """The prompts of a run: those of `evaluation.sample_prompts`, or rows of the data set.

    By default the first five of the test, the validation or the train split; none with
    evaluation=none.

    Raises:
        ModelError: the model has no positions for the prompts and their answers.
    """
    if cfg is None:
        return []
    if cfg.sample_prompts is not None:
        like = next(data.samples("train"))
        asked = [to_prompt(text, format_cfg, like) for text in cfg.sample_prompts]
        prompts = [_sample(prompt, None, data.encoder) for prompt in asked]
    else:
        split = next(name for name in ("test", "validation", "train") if name in data.splits())
        prompts = split_prompts(data, split, SAMPLES)
    check_room(
        model_config,
        max((len(prompt.input_ids) for prompt in prompts), default=0) + cfg.max_new_tokens,
        "evaluation.max_new_tokens",
        cfg.max_new_tokens,
        "prompts and answers",
        "short prompts of your own: evaluation.sample_prompts=[...]",
    )
    return prompts


def split_prompts(data: PreparedData, split: str, count: int | None = None) -> list[SamplePrompt]:
    """A prompt, with its reference, for the first `count` rows of a split, or for all."""
    return [
        _sample(*split_answer(sample, data.encoder.loss), data.encoder)
        for sample in islice(data.samples(split), count)
    ]


def _sample(prompt: Prompt, reference: str | None, encoder: Encoder) -> SamplePrompt:
    text = prompt if isinstance(prompt, str) else prompt.messages[-1]["content"]
    return SamplePrompt(text, encoder.prompt_ids(prompt), reference)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 50,
    seed: int = 0,
    batch_size: int = 16,
) -> list[str]:
    """An answer to each prompt, without special tokens; the random state stays as it was.

    Args:
        model: a causal language model; its generation config says where answers end.
        tokenizer: to pad and decode.
        prompts: token ids of each prompt.
        max_new_tokens: the length at which an answer ends at the latest.
        do_sample: draw each token; by default the most likely one is taken.
        temperature: of the draws, as in transformers' `GenerationConfig`.
        top_k: of the draws, as in transformers' `GenerationConfig`.
        seed: of the draws.
        batch_size: prompts that run together, padded on the left.
    """
    device, was_training = model.device, model.training
    draws = {"temperature": temperature, "top_k": top_k} if do_sample else {}
    options = {"max_new_tokens": max_new_tokens, "do_sample": do_sample, **draws}
    cuda = [device] if device.type == "cuda" else []
    answers = []
    model.eval()
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=cuda):
            if do_sample:
                torch.manual_seed(seed)
            for start in range(0, len(prompts), batch_size):
                batch = _padded(prompts[start : start + batch_size], tokenizer.pad_token_id, device)
                output = model.generate(**batch, use_cache=True, **options)
                new = output[:, batch["input_ids"].shape[1] :]
                answers += tokenizer.batch_decode(new, skip_special_tokens=True)
    finally:
        model.train(was_training)
    return [answer.strip() for answer in answers]


def _padded(
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, both (B, T), padded on the left."""
    width = max(map(len, prompts))
    missing = [width - len(ids) for ids in prompts]
    ids = [[pad] * pads + list(ids) for pads, ids in zip(missing, prompts, strict=True)]
    mask = [[0] * pads + [1] * (width - pads) for pads in missing]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
