"""A sample to text, and text to ids and labels.

A text is split where a trained answer begins, and the segments are tokenised separately and joined,
so that the ids before an answer are exactly those that generation would feed (docs/rules.md, L1).
T is the number of tokens of a row.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from transformers import PreTrainedTokenizerFast

from sftpipe.config.schema import LossConfig
from sftpipe.data.answer_spans import AnswerSpans, JoinedRow
from sftpipe.data.characters import KnownCharacters
from sftpipe.data.chat_template import Answer, ChatTemplate, said_of_text, trained_turns
from sftpipe.data.labels import (
    IGNORED,
    OUT_OF_TURN,
    Span,
    labels_from_spans,
    out_of_turn,
    response_spans,
    turns_of,
)
from sftpipe.data.samples import Conversation, Prompt, PromptCompletion, Remark, Sample
from sftpipe.data.segments import SegmentTokenizer, Tokens
from sftpipe.errors import DataError, Problem, RowError
from sftpipe.tokenizer.special_tokens import SpecialTokens

_TOGETHER = 128  # samples that are tokenised by one call


@dataclass(frozen=True)
class Encoded:
    """A finished row.

    input_ids, labels: both (T,).
    cut: tokens of its prompt that were left out to fit `sft.max_length`.
    remarks: what encoding has to say of the row.
    """

    input_ids: list[int]
    labels: list[int]
    cut: int = 0
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class _Plan:
    """What is to be tokenised, and which characters are trained.

    segments: of the text; tokenisation starts anew at each.
    answers: trained stretches of the joined segments.
    chat: True if a template wrote the text; else BOS goes before it and EOS after it.
    turns: of a conversation, as `out_of_turn` takes them.
    remarks: what is to be said of the row.
    """

    segments: list[str]
    answers: list[Answer]
    chat: bool
    turns: str | None = None
    remarks: tuple[Remark, ...] = ()


class Encoder:
    """Renders and tokenises samples with one tokenizer and one loss."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        loss: LossConfig,
        *,
        reads_unknown: bool = False,
        day: datetime.date | None = None,
    ) -> None:
        """Ready to encode.

        Args:
            tokenizer: with its special tokens and chat template.
            loss: which tokens are trained.
            reads_unknown: a character outside the vocabulary is read as UNK, and no error.
            day: as of `ChatTemplate`.
        """
        self.tokenizer = tokenizer
        self.loss = loss
        self.reads_unknown = reads_unknown
        self.template = ChatTemplate(tokenizer, day)
        self.special = SpecialTokens.of(tokenizer)
        self.characters = KnownCharacters(tokenizer, self.special, reads_unknown=reads_unknown)
        self.segments = SegmentTokenizer(tokenizer)
        self.added_bos = self._find_added_bos()
        self._spans = AnswerSpans(tokenizer, self.special, self._plain_ends)
        self._known_ends: set[int] | None = None

    def _find_added_bos(self) -> list[int]:
        """The ids that this tokenizer puts before plain text ([] for most chat models)."""
        with_bos = self.tokenizer("a").input_ids
        plain = self.tokenizer("a", add_special_tokens=False).input_ids
        for start in range(len(with_bos) - len(plain) + 1):
            if with_bos[start : start + len(plain)] == plain:
                return list(with_bos[:start])
        return []

    def encode(
        self, samples: Sequence[Sample], locations: Sequence[str]
    ) -> list[Encoded | RowError]:
        """Finished rows of a batch of samples; a sample that makes none becomes its error.

        Args:
            samples: B samples.
            locations: B times `split[row]`, for messages.

        Raises:
            DataError: the fault is not one row's: no chat template, or a loss that does not go
                with the format.
        """
        rows: list[Encoded | RowError] = []
        # the Rust tokenizer holds no interpreter lock: the next texts are rendered meanwhile
        with ThreadPoolExecutor(1) as beside:
            before: tuple[list[_Plan | RowError], Future[list[list[Tokens]]]] | None = None
            for start in range(0, len(samples), _TOGETHER):
                stop = start + _TOGETHER
                plans = self._plans(samples[start:stop], locations[start:stop])
                texts = [plan.segments for plan in plans if isinstance(plan, _Plan)]
                tokens = beside.submit(self.segments.tokenize, texts)
                if before:
                    rows += self._rows(*before, locations[len(rows) :])
                before = plans, tokens
            if before:
                rows += self._rows(*before, locations[len(rows) :])
        return rows

    def _plans(self, samples: Sequence[Sample], locations: Sequence[str]) -> list[_Plan | RowError]:
        plans: list[_Plan | RowError] = []
        for sample, where in zip(samples, locations, strict=True):
            try:
                plans.append(self._plan(sample, where))
            except RowError as error:
                plans.append(error)
        good = [plan for plan in plans if isinstance(plan, _Plan)]
        if self.characters.hold([segment for plan in good for segment in plan.segments]):
            return plans
        return [
            plan
            if isinstance(plan, RowError)
            else self.characters.first_lost(plan.segments, where) or plan
            for plan, where in zip(plans, locations, strict=True)
        ]

    def _rows(
        self,
        plans: Sequence[_Plan | RowError],
        tokens: Future[list[list[Tokens]]],
        locations: Sequence[str],
    ) -> list[Encoded | RowError]:
        """The finished rows of plans, once their segments are tokenised."""
        tokenized = iter(tokens.result())
        rows: list[Encoded | RowError] = []
        for plan, where in zip(plans, locations, strict=False):
            if isinstance(plan, RowError):
                rows.append(plan)
                continue
            try:
                rows.append(self._finish(plan, next(tokenized), where))
            except RowError as error:
                rows.append(error)
        return rows

    # --- what the checks and generation ask -------------------------------------------------------

    def text(self, sample: Sample) -> str:
        """What is tokenised of a sample; BOS and EOS of plain strings are put around it later."""
        return "".join(self._plan(sample, "the row").segments)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids that generation is fed.

        Of a string with the tokenizer's own BOS, of turns through the chat template.
        """
        if isinstance(prompt, str):
            ids = self._ids([prompt])
            return ids if self.added_bos_of(ids) else [*self.added_bos, *ids]
        rendered = self.template.prompt(self.template.settle(prompt, "prompt")[0], "prompt")
        return self._ids(_split(rendered.text, rendered.cuts))

    def _ids(self, segments: Sequence[str]) -> list[int]:
        (tokens,) = self.segments.tokenize([segments])
        return [token for segment in tokens for token in segment.ids]

    def prompt_text(self, prompt: Prompt) -> str:
        """What is tokenised of a prompt."""
        if isinstance(prompt, str):
            return prompt
        return self.template.text(self.template.settle(prompt, "prompt")[0], "prompt", prompt=True)

    def added_bos_of(self, ids: Sequence[int]) -> list[int]:
        """The tokenizer's own BOS if the ids begin with it, else []."""
        return self.added_bos if list(ids[: len(self.added_bos)]) == self.added_bos else []

    @property
    def splits_at_answers(self) -> bool:
        """True if tokenisation starts anew at each answer, as in generation.

        It does not with boundary=joint or a response template of ids.
        """
        return self.loss.boundary == "split" and not isinstance(self.loss.response_template, list)

    # --- text -------------------------------------------------------------------------------------

    def _plan(self, sample: Sample, where: str) -> _Plan:
        loss = self.loss.type
        if loss == "response_template":
            return self._plan_response(sample, where)
        if isinstance(sample, Conversation):
            return self._plan_chat(sample, where)
        pair = isinstance(sample, PromptCompletion)
        if loss == "assistant_only" or (loss == "completion_only" and not pair):
            kind = "a prompt and its completion" if pair else "a finished text"
            ways_out = (
                "`loss=completion_only`" if pair else "`loss=full`, or loss=response_template"
            )
            found = f"the format makes {kind}, which has no turns to tell apart"
            raise DataError(Problem(f"loss={loss} ({where})", found, fix=ways_out))
        if not isinstance(sample, PromptCompletion):
            answer = Answer(0, len(sample.text), closed=True)
            return _Plan([sample.text], [answer], chat=False, remarks=sample.remarks)
        text = sample.prompt + sample.completion
        start = len(sample.prompt) if loss == "completion_only" else 0
        joint = self.loss.boundary == "joint"
        segments = [text] if joint else [sample.prompt, sample.completion]
        answer = Answer(start, len(text), closed=True)
        return _Plan(segments, [answer], chat=False, remarks=sample.remarks)

    def _plan_chat(self, chat: Conversation, where: str) -> _Plan:
        full = self.loss.type == "full"
        if full and False in chat.train:
            found = "loss=full trains every token, and a turn is marked train: false"
            problem = Problem(where, found, fix="`loss=assistant_only`")
            raise RowError("train flag against loss=full", problem)
        given = chat
        chat, remarks = self.template.settle(chat, where)
        turns = trained_turns(chat, self.loss.type)
        last = len(chat.messages) - 1
        rendered = self.template.render(chat, (last,) if full else turns, where)
        answers = list(rendered.answers)
        shift = len(given.messages) - len(chat.messages)  # of an empty system turn
        trained = given.messages if full else [given.messages[turn + shift] for turn in turns]
        remarks += said_of_text(trained, () if full else rendered.answers, rendered.text)
        if full:
            answers = [replace(answers[-1], start=0)]
        cuts = () if self.loss.boundary == "joint" else rendered.cuts
        segments = _split(rendered.text, cuts)
        return _Plan(segments, answers, chat=True, remarks=remarks)

    def _plan_response(self, sample: Sample, where: str) -> _Plan:
        """The whole text, split after each response template.

        A template of ids is looked for once there are ids.
        """
        response, instruction = self.loss.response_template, self.loss.instruction_template
        turns = prompt = None
        remarks = sample.remarks
        if isinstance(sample, Conversation):
            sample, remarks = self.template.settle(sample, where)
            text = self.template.text(sample, where, prompt=False)
            turns = turns_of(str(message["role"]) for message in sample.messages)
        elif isinstance(sample, PromptCompletion):
            text, prompt = sample.prompt + sample.completion, len(sample.prompt)
        else:
            text = sample.text
        chat = isinstance(sample, Conversation)
        if not isinstance(response, str):
            return _Plan([text], [], chat, turns, remarks)
        spans = response_spans(text, response, instruction)
        if not spans:
            raise self._no_response(text, where)
        spans = [(self._after_swallowed(text, start), stop) for start, stop in spans]
        cuts = () if self.loss.boundary == "joint" else tuple(start for start, _ in spans)
        answers = [Answer(start, stop, closed=True) for start, stop in spans]
        found = out_of_turn(text, response, instruction, turns=turns, prompt=prompt)
        remarks += _remarks(found)
        return _Plan(_split(text, cuts), answers, chat, turns, remarks)

    def _after_swallowed(self, text: str, start: int) -> int:
        """The position after white space that belongs to a special token before it.

        Phi-3 reads <|assistant|> and a line break as one token.
        """
        if not text.endswith(self.segments.swallowing, 0, start):
            return start
        return len(text) - len(text[start:].lstrip())

    def _no_response(self, text: str, where: str) -> RowError:
        problem = Problem(
            where,
            f"loss.response_template {self.loss.response_template!r} is not in {text[:80]!r}",
            allowed="the text that is written before each answer",
            fix="copy it from the first rows that sftpipe preview loss=full shows",
        )
        return RowError("response template not found", problem)

    # --- ids --------------------------------------------------------------------------------------

    def _finish(self, plan: _Plan, tokens: Sequence[Tokens], where: str) -> Encoded:
        """Join the segments, and label the trained tokens."""
        row = self._join(plan, tokens)
        spans = self._trained_spans(plan, row, where)
        if row.end < len(row.ids):
            spans = [(start, min(stop, row.end)) for start, stop in spans]
        labels = labels_from_spans(row.ids, spans)
        if labels.count(IGNORED) == len(labels):
            fix = "look at it with sftpipe preview loss=full"
            raise RowError("no trained token", Problem(where, "no token of it is trained", fix=fix))
        remarks = plan.remarks
        if isinstance(self.loss.response_template, list):
            ids = (self.loss.response_template, self.loss.instruction_template)
            remarks += _remarks(out_of_turn(row.ids, *ids, turns=plan.turns))
        return Encoded(row.ids, labels, remarks=remarks)

    def _join(self, plan: _Plan, tokens: Sequence[Tokens]) -> JoinedRow:
        """The tokens of all segments, strings with one BOS and one EOS (docs/rules.md, L3, L4)."""
        row = JoinedRow()
        if not plan.chat and not self.added_bos_of(tokens[0].ids):
            row.ids += self.added_bos
            row.offsets.add(len(row.ids), 0, None)
        for segment, one in zip(plan.segments, tokens, strict=True):
            row.firsts[row.length] = len(row.ids) if row.length or plan.chat else 0
            row.ids += one.ids
            row.offsets.add(len(row.ids), row.length, one)
            row.length += len(segment)
        row.end = len(row.ids) if plan.chat else self._end_string(plan, row)
        return row

    def _end_string(self, plan: _Plan, row: JoinedRow) -> int:
        """Give a string its EOS unless it brings an end; the token after the end of the row."""
        last = plan.segments[-1]
        behind = len(last) - len(last.rstrip())  # characters of white space
        at = len(row.ids) - 1
        while behind and at > 0 and row.ids[at] not in self.special:
            if row.offsets[at][0] < row.length - behind:
                break
            at -= 1
        answer = plan.answers[-1].start if plan.answers else 0
        if row.ids[at] in self._string_ends and row.offsets[at][1] > answer:
            return at + 1
        row.ids.append(int(self.tokenizer.eos_token_id))
        row.offsets.add(len(row.ids), row.length, None)
        return len(row.ids)

    @cached_property
    def _string_ends(self) -> set[int]:
        """The tokens that end a string: EOS, and what ends an answer of the chat template."""
        ends = self.turn_ends() if self.tokenizer.chat_template is not None else set()
        return {self.tokenizer.eos_token_id, *ends}

    def _trained_spans(self, plan: _Plan, row: JoinedRow, where: str) -> list[Span]:
        loss = self.loss
        if loss.type == "response_template" and not isinstance(loss.response_template, str):
            spans = response_spans(row.ids, loss.response_template, loss.instruction_template)
            if not spans:
                raise self._no_response("".join(plan.segments), where)
            return spans
        if not plan.answers:
            fix = "remove the row, or its train: false"
            problem = Problem(where, "no turn of it is to be trained", fix=fix)
            raise RowError("nothing to train", problem)
        if loss.boundary == "joint" and loss.type == "completion_only":
            answer = plan.answers[0]
            first = self._joint_start(plan, answer)
            spans = [self._spans.find_joint(answer, first, row, where)]
        else:
            spans = [self._spans.find(answer, row, where) for answer in plan.answers]
        if plan.chat and loss.type != "response_template" and plan.answers[-1].closed:
            self._spans.check_block(row.ids[slice(*spans[-1])], where)
        return spans

    def _joint_start(self, plan: _Plan, answer: Answer) -> int:
        """Alpaca's length mask: as many tokens as the prompt has by itself."""
        prompt = "".join(plan.segments)[: answer.start]
        alone = self.tokenizer(prompt, add_special_tokens=False).input_ids
        adds_bos = not plan.chat and not self.added_bos_of(alone)
        return len(alone) + (len(self.added_bos) if adds_bos else 0)

    def turn_ends(self) -> set[int]:
        """The tokens that end an answer of the chat template; empty where it writes none."""
        try:
            return self._plain_ends("tokenizer.chat_template")
        except DataError:
            return set()

    def _plain_ends(self, where: str) -> set[int]:
        """The token that ends an answer without tool calls.

        Raises:
            DataError: there is none.
        """
        if self._known_ends is None:
            turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
            rendered = self.template.render(Conversation(turns), (1,), where)
            (((ids, encoding, *_),),) = self.segments.tokenize([[rendered.text]])
            answer = rendered.answers[-1]
            stop = answer.stop if not answer.closed else rendered.text.rindex("b") + 1
            after = [
                token
                for token, (_, end) in zip(ids, encoding.offsets, strict=True)
                if end > stop and token in self.special
            ]
            self._known_ends = set(after[:1])
        if not self._known_ends:
            raise self._spans.no_end(where)
        return self._known_ends


def _remarks(found: str) -> tuple[Remark, ...]:
    return (Remark(OUT_OF_TURN, found),) if found else ()


def _split(text: str, cuts: Sequence[int]) -> list[str]:
    """The text split at the given characters."""
    edges = [0, *(cut for cut in cuts if 0 < cut < len(text)), len(text)]
    return [text[start:stop] for start, stop in pairwise(edges)]
