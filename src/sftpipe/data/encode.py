"""A sample to text, and text to ids with the span that is trained.

The prompt and the answer are tokenised apart and joined, so that the ids in front of a trained answer are exactly those that generation
would feed (DESIGN rule L1). T is the number of tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateSyntaxError

from sftpipe.data.formats import Conversation, Prompt, Sample
from sftpipe.data.labels import labels_from_span
from sftpipe.errors import DataError, Problem
from sftpipe.schema import LossConfig

_MARK = "\ue000answer\ue000"  # private-use characters: no text of people holds them


@dataclass(frozen=True)
class Rendered:
    """A sample as text.

    prompt: what generation would be given.
    completion: what follows, to the very end.
    answer_end: characters of `completion` up to the end of the answer itself; the token that ends the turn comes behind it.
    """

    prompt: str
    completion: str
    answer_end: int


@dataclass(frozen=True)
class Encoded:
    """A finished row: `input_ids` and `labels`, both (T,)."""

    input_ids: list[int]
    labels: list[int]


class Encoder:
    """Renders and tokenises samples with one tokenizer and one loss."""

    def __init__(self, tokenizer: Any, loss: LossConfig) -> None:
        self.tokenizer = tokenizer
        self.loss = loss
        self._special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        self._bos = self._added_bos()
        self._tails: dict[tuple[str, ...], str | None] = {}

    def _added_bos(self) -> list[int]:
        """The ids that this tokenizer puts in front of plain text ([] for most chat models)."""
        with_bos = self.tokenizer("a").input_ids
        plain = self.tokenizer("a", add_special_tokens=False).input_ids
        starts = [i for i in range(len(with_bos) - len(plain) + 1) if with_bos[i : i + len(plain)] == plain]
        return list(with_bos[: starts[0]]) if starts else []

    # --- text ---------------------------------------------------------------------------------------------------------------------

    def render(self, sample: Sample, where: str) -> Rendered:
        """Write a sample as text.

        Raises:
            DataError: there is no chat template, it fails, or it writes the history of a conversation anew.
        """
        if not isinstance(sample, Conversation):
            return Rendered(sample.prompt, sample.completion, len(sample.completion))
        prompt = self.render_prompt(sample.messages[:-1], where)
        text = self._template(sample.messages, where, add_generation_prompt=False)
        if not text.startswith(prompt):
            raise DataError(
                Problem(
                    where=where,
                    found="the chat template renders the turns before the answer otherwise than the prompt of generation, "
                    f"so the mask has no place to begin: {_first_difference(prompt, text)}",
                    fix="another tokenizer.chat_template",
                )
            )
        completion = text[len(prompt) :]
        return Rendered(prompt, completion, len(completion) - len(self._tail(sample, completion, where)))

    def _tail(self, sample: Conversation, completion: str, where: str) -> str:
        """What the template writes behind the answer: found by rendering a mark in its place, once for each order of roles."""
        *history, last = sample.messages
        roles, answer = tuple(message["role"] for message in sample.messages), last["content"].strip()

        def fits(tail: str | None) -> bool:
            return tail is not None and completion.endswith(tail) and completion[: len(completion) - len(tail)].rstrip().endswith(answer)

        if not fits(self._tails.get(roles)):
            marked = self._template([*history, {**last, "content": _MARK}], where, add_generation_prompt=False)
            self._tails[roles] = marked.rpartition(_MARK)[2] if _MARK in marked else None
        tail = self._tails[roles]
        if tail is None or not fits(tail):
            problem = Problem(where=where, found="the chat template leaves out the answer", fix="another tokenizer.chat_template")
            raise DataError(problem)
        return tail

    def render_prompt(self, messages: Sequence[Any], where: str) -> str:
        """The text that generation is given for these turns."""
        return self._template(messages, where, add_generation_prompt=True)

    def _template(self, messages: Sequence[Any], where: str, *, add_generation_prompt: bool) -> str:
        if self.tokenizer.chat_template is None:
            raise DataError(
                Problem(
                    where="tokenizer.chat_template",
                    found="the tokenizer has no chat template, and the format makes conversations",
                    fix="tokenizer.chat_template=chatml_bos_eos, or format=prompt_completion",
                )
            )
        try:
            return str(
                self.tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=add_generation_prompt)
            )
        except TemplateSyntaxError as error:
            problem = Problem(where="tokenizer.chat_template", found=f"no valid Jinja: {error} (line {error.lineno})", fix="mend it")
            raise DataError(problem) from None
        except Exception as error:  # a template is a program, and can raise anything
            problem = Problem(where=where, found=f"the chat template refuses the conversation: {error}", fix="mend the row or the template")
            raise DataError(problem) from None

    # --- ids ----------------------------------------------------------------------------------------------------------------------

    def encode(self, samples: Sequence[Sample], places: Sequence[str]) -> list[Encoded]:
        """Finished rows of a batch of samples.

        Args:
            samples: B samples.
            places: B times `split[row]`, for messages.

        Raises:
            DataError: a sample cannot be rendered, or its answer ends in no token that generation could stop at.
        """
        rendered = [self.render(sample, where) for sample, where in zip(samples, places, strict=True)]
        prompts = self.tokenizer([r.prompt for r in rendered], add_special_tokens=False).input_ids
        completions = self.tokenizer([r.completion for r in rendered], add_special_tokens=False, return_offsets_mapping=True)
        rows = []
        for index, sample in enumerate(samples):
            ids = list(completions.input_ids[index])
            if isinstance(sample, Conversation):
                prompt = list(prompts[index])
                ends = [end for _, end in completions.offset_mapping[index]]
                length = self._trained_length(ids, ends, rendered[index].answer_end, places[index])
            else:
                prompt = [*self._bos, *prompts[index]]
                ids.append(self.tokenizer.eos_token_id)
                length = len(ids)
            start = len(prompt) if self.loss.type == "completion_only" else 0
            input_ids = prompt + ids
            rows.append(Encoded(input_ids, labels_from_span(input_ids, start, len(prompt) + length)))
        return rows

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids that generation is fed: of a string with the tokenizer's own BOS, or of turns through the chat template."""
        if isinstance(prompt, str):
            return [*self._bos, *self.tokenizer(prompt, add_special_tokens=False).input_ids]
        return list(self.tokenizer(self.render_prompt(prompt, "prompt"), add_special_tokens=False).input_ids)

    def _trained_length(self, ids: list[int], ends: list[int], answer_end: int, where: str) -> int:
        """Tokens of a chat completion up to and with the special token that ends the turn; white space behind it stays masked."""
        for position, (token, end) in enumerate(zip(ids, ends, strict=True)):
            if end > answer_end and token in self._special:
                return position + 1
        raise DataError(
            Problem(
                where=f"{where}, tokenizer.chat_template",
                found="the template ends the answer with no special token, so the model could not learn to stop",
                fix="a chat template that closes each turn with eos_token or another special token",
            )
        )


def _first_difference(a: str, b: str) -> str:
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"{a[max(0, at - 20) : at + 20]!r} against {b[max(0, at - 20) : at + 20]!r}"
