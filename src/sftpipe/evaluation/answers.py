"""Answers of a model to prompts, in batches."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from sftpipe.config.schema import EvaluationConfig, GenerateConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# fields of GenerationConfig that `evaluation` has too, and fields of `generate` that are no
# business of transformers
_SHARED = ("max_new_tokens", "do_sample", "temperature", "top_k")
_DRAWING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
_OTHERS = ("min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "num_beams")


@dataclass(frozen=True)
class Answer:
    """What a model says.

    text: without special tokens and without white space around it.
    ids: the new tokens, the one that ended the answer included.
    stopped: True if the model ended the answer itself; False at the limit of new tokens.
    """

    text: str
    ids: list[int]
    stopped: bool


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    max_new_tokens: the length at which an answer ends at the latest.
    seed: of the draws.
    fields: further fields of transformers' `GenerationConfig`; without `do_sample` the most likely
        token is taken.
    """

    max_new_tokens: int
    seed: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, evaluation: EvaluationConfig, seed: int, generate: GenerateConfig | None = None
    ) -> Sampling:
        """Of a run's `evaluation`, or of what `generate` sets beside it.

        A field of drawing in `generate` asks for drawing, unless `do_sample` says otherwise.
        """
        chosen = {name: getattr(evaluation, name) for name in _SHARED}
        asked = {
            name: value
            for name in (*_SHARED, *_DRAWING, *_OTHERS, "length_penalty")
            if (value := getattr(generate, name, None)) is not None
        }
        if asked.keys() & set(_DRAWING):
            chosen["do_sample"] = True
        chosen |= asked
        if not chosen["do_sample"]:
            chosen = {name: value for name, value in chosen.items() if name not in _DRAWING}
        if generate is not None and generate.seed is not None:
            seed = generate.seed
        return cls(chosen.pop("max_new_tokens"), seed, chosen)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_size: int = 16,
    done: Collection[int] = (),
) -> Iterator[tuple[int, Answer]]:
    """(number of the prompt, its answer), batch by batch, the longest prompts first.

    The batches follow from the prompts alone, and each is drawn with a seed of its own, so that a
    second start that skips what is `done` gives the same answers. The random state stays as it was.

    Args:
        model: a causal language model; its generation config says where answers end, and nothing
            else of it is used.
        tokenizer: to pad and decode.
        prompts: token ids of each prompt.
        sampling: how answers are drawn.
        batch_size: prompts that run together, padded on the left.
        done: numbers of prompts that have an answer already.
    """
    order = sorted(range(len(prompts)), key=lambda at: (-len(prompts[at]), at))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        missing = [at for at in batch if at not in done]
        if not missing:
            continue
        ids = [prompts[at] for at in batch]
        answers = _answer(model, tokenizer, ids, sampling, sampling.seed + start)
        for at, answer in zip(batch, answers, strict=True):
            if at in missing:
                yield at, answer


def stream_answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt: Sequence[int],
    sampling: Sampling,
) -> Iterator[str]:
    """The text of one answer, piece by piece; closing the iterator ends the generation.

    A piece never ends inside a character; the first one has no white space in front, as
    `Answer.text` has none.
    """
    from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

    closed = threading.Event()

    class Closed(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.full((len(input_ids),), closed.is_set(), device=input_ids.device)

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    failed: list[BaseException] = []

    def work() -> None:
        stopping = StoppingCriteriaList([Closed()])
        try:
            _answer(model, tokenizer, [prompt], sampling, sampling.seed, streamer, stopping)
        except BaseException as error:  # raised again below, in the thread that asks
            failed.append(error)
            streamer.end()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        begun = False
        for piece in streamer:
            if piece := piece if begun else piece.lstrip():
                begun = True
                yield piece
    finally:
        closed.set()
        worker.join()
    if failed:
        raise failed[0]


def _answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seed: int,
    streamer: Any = None,
    stopping: Any = None,
) -> list[Answer]:
    """The answers of one batch."""
    batch = padded_batch(prompts, tokenizer.pad_token_id, model.device)
    cuda = [model.device] if model.device.type == "cuda" else []
    with (
        _configured(model, sampling) as stops,
        torch.inference_mode(),
        torch.random.fork_rng(devices=cuda),
    ):
        torch.manual_seed(seed)
        output = model.generate(**batch, streamer=streamer, stopping_criteria=stopping)
    new = output[:, batch["input_ids"].shape[1] :].tolist()
    return [_read(ids, stops, tokenizer) for ids in new]


@contextmanager
def _configured(model: PreTrainedModel, sampling: Sampling) -> Iterator[set[int]]:
    """Evaluation mode, and a generation config with our fields alone; gives the ids that end.

    What else the base's generation_config.json asks for (penalties, temperatures, forced tokens)
    would change answers in silence.
    """
    from transformers import GenerationConfig

    own, was_training = model.generation_config, model.training
    ends = own.eos_token_id
    model.generation_config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        use_cache=True,
        eos_token_id=ends,
        pad_token_id=own.pad_token_id,
        bos_token_id=own.bos_token_id,
        **sampling.fields,
    )
    model.eval()
    try:
        yield set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
    finally:
        model.generation_config = own
        model.train(was_training)


def _read(ids: Sequence[int], stops: Collection[int], tokenizer: Any) -> Answer:
    """One answer of a batch, without the padding after its end."""
    end = next((at for at, token in enumerate(ids) if token in stops), None)
    kept = list(ids if end is None else ids[: end + 1])
    text = str(tokenizer.decode(kept, skip_special_tokens=True))
    return Answer(text.strip(), kept, end is not None)


def padded_batch(
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of prompts, both (B, T), padded on the left."""
    width = max(map(len, prompts))
    missing = [width - len(ids) for ids in prompts]
    ids = [[pad] * pads + list(ids) for pads, ids in zip(missing, prompts, strict=True)]
    mask = [[0] * pads + [1] * (width - pads) for pads in missing]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
