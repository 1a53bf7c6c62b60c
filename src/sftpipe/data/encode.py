"""A sample to text, and text to ids and labels.

A text is cut where a trained answer begins, and the parts are tokenised apart and joined, so that
the ids in front of an answer are exactly those that generation would feed (DESIGN rule L1). T is
the number of tokens of a row.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

from sftpipe.config.schema import LossConfig
from sftpipe.data.chat_template import Answer, ChatTemplate, rewritten, trained_turns
from sftpipe.data.labels import IGNORED, Span, labels_from_spans, response_spans
from sftpipe.data.rows import TOO_LONG
from sftpipe.data.samples import Conversation, Prompt, PromptCompletion, Sample, Text, split_prompt
from sftpipe.errors import DataError, Problem, RowError
from sftpipe.tokenizer.special_tokens import SpecialTokens, how_to_add, unknown_tokens

_TOGETHER = 128  # samples that are tokenised by one call


Tokens = tuple[
    list[int], Any, int
]  # ids of a part, its `tokenizers.Encoding`, characters that were moved off its front


@dataclass(frozen=True)
class Encoded:
    """A finished row: `input_ids` and `labels`, both (T,); `cut` tokens of its prompt were left out to fit `sft.max_length`."""

    input_ids: list[int]
    labels: list[int]
    cut: int = 0


@dataclass(frozen=True)
class _Plan:
    """What is to be tokenised, and which characters are trained.

    parts: pieces of the text; tokenisation starts anew at each.
    answers: trained stretches of the joined parts.
    chat: whether a template wrote the text; else BOS goes in front and EOS behind.
    """

    parts: list[str]
    answers: list[Answer]
    chat: bool


class Encoder:
    """Renders and tokenises samples with one tokenizer and one loss."""

    def __init__(self, tokenizer: Any, loss: LossConfig, *, reads_unknown: bool = False) -> None:
        self.tokenizer = tokenizer
        self.loss = loss
        # whether a character outside the vocabulary may be read as UNK, or is an error
        self.reads_unknown = reads_unknown
        self.template = ChatTemplate(tokenizer)
        self.special = SpecialTokens.of(tokenizer)
        self._eos = tokenizer.eos_token_id
        self.added_bos = self._find_added_bos()
        letter = tokenizer("a", add_special_tokens=False).input_ids
        self._adds_space = tokenizer.convert_ids_to_tokens(letter)[:1] == ["\u2581a"]
        self._around = (
            "a" if tokenizer.decode(letter).strip() == "a" else ""
        )  # keeps white space from the edges of a text
        self._swallowing = tuple(
            str(token) for token in tokenizer.added_tokens_decoder.values() if token.rstrip
        )
        self._known_characters: set[str] = set()
        self._turn_ends: set[int] | None = None

    def _find_added_bos(self) -> list[int]:
        """The ids that this tokenizer puts in front of plain text ([] for most chat models)."""
        with_bos = self.tokenizer("a").input_ids
        plain = self.tokenizer("a", add_special_tokens=False).input_ids
        starts = [
            i
            for i in range(len(with_bos) - len(plain) + 1)
            if with_bos[i : i + len(plain)] == plain
        ]
        return list(with_bos[: starts[0]]) if starts else []

    def encode(self, samples: Sequence[Sample], places: Sequence[str]) -> list[Encoded | RowError]:
        """Finished rows of a batch of samples; a sample that makes none becomes its error.

        Args:
            samples: B samples.
            places: B times `split[row]`, for messages.

        Raises: DataError: the fault is not one row's: no chat template, or a loss that does not go
            with the format.
        """
        rows: list[Encoded | RowError] = []
        with (
            ThreadPoolExecutor(1) as beside
        ):  # the Rust tokenizer holds no interpreter lock: the next texts are rendered meanwhile
            before: tuple[list[_Plan | RowError], Future[list[Tokens]]] | None = None
            for start in range(0, len(samples), _TOGETHER):
                plans = self._plans(
                    samples[start : start + _TOGETHER], places[start : start + _TOGETHER]
                )
                parts = [part for plan in plans if isinstance(plan, _Plan) for part in plan.parts]
                tokens = beside.submit(self._tokenize, parts)
                if before:
                    rows += self._rows(*before, places[len(rows) :])
                before = plans, tokens
            if before:
                rows += self._rows(*before, places[len(rows) :])
        return rows

    def _plans(self, samples: Sequence[Sample], places: Sequence[str]) -> list[_Plan | RowError]:
        plans: list[_Plan | RowError] = []
        for sample, where in zip(samples, places, strict=True):
            try:
                plans.append(self._plan(sample, where))
            except RowError as error:
                plans.append(error)
        characters = set().union(
            *(part for plan in plans if isinstance(plan, _Plan) for part in plan.parts)
        )
        if characters <= self._known_characters:
            return plans
        return [
            plan if isinstance(plan, RowError) else self.lost_character(plan.parts, where) or plan
            for plan, where in zip(plans, places, strict=True)
        ]

    def _rows(
        self, plans: Sequence[_Plan | RowError], tokens: Future[list[Tokens]], places: Sequence[str]
    ) -> list[Encoded | RowError]:
        """The finished rows of plans, once their parts are tokenised."""
        parts = iter(tokens.result())
        rows: list[Encoded | RowError] = []
        for plan, where in zip(plans, places, strict=False):
            if isinstance(plan, RowError):
                rows.append(plan)
                continue
            mine = [next(parts) for _ in plan.parts]
            try:
                rows.append(self._finish(plan, mine, where))
            except RowError as error:
                rows.append(error)
        return rows

    def fit(self, sample: Sample, row: Encoded, limit: int, where: str) -> Encoded | RowError:
        """A row of at most `limit` tokens: cut off its prompt from the left, never into the last answer (`over_length=truncate`).

        Of a conversation the oldest exchanges go, the system turn stays; of strings the first
        tokens go, BOS and a last one stay.
        """
        if len(row.input_ids) <= limit:
            return row
        if isinstance(sample, Conversation):
            system = sample.messages[:1] if sample.messages[0]["role"] == "system" else ()
            end = sample.prompt_length or len(
                sample.messages
            )  # a completion of several turns is never cut
            starts = [
                index
                for index, message in enumerate(sample.messages[:end])
                if message["role"] == "user"
            ][1:]
            low, high, best = 0, len(starts), None
            while low < high:  # fewer exchanges never make a longer row
                middle = (low + high) // 2
                cut = starts[middle]
                shortened = replace(
                    sample,
                    messages=(*system, *sample.messages[cut:]),
                    train=(*sample.train[: len(system)], *sample.train[cut:]),
                    prompt_length=sample.prompt_length and sample.prompt_length - cut + len(system),
                )
                (shorter,) = self.encode([shortened], [where])
                if isinstance(shorter, Encoded) and len(shorter.input_ids) <= limit:
                    best, high = shorter, middle
                else:
                    low = middle + 1
            if best is not None:
                return replace(best, cut=len(row.input_ids) - len(best.input_ids))
        else:
            bos = (
                len(self.added_bos) if row.input_ids[: len(self.added_bos)] == self.added_bos else 0
            )
            cut = len(row.input_ids) - limit + bos
            if all(label == IGNORED for label in row.labels[: cut + 1]):
                return Encoded(
                    row.input_ids[:bos] + row.input_ids[cut:],
                    row.labels[:bos] + row.labels[cut:],
                    cut - bos,
                )
        problem = Problem(
            where,
            f"{len(row.input_ids)} tokens, and no prompt that could be cut to fit "
            f"sft.max_length={limit}",
            fix=f"sft.max_length={len(row.input_ids)}",
        )
        return RowError(TOO_LONG, problem)

    def answer_apart(self, sample: Sample) -> tuple[Prompt, str]:
        """What generation is given for a sample, and the answer that the data set holds."""
        response = self.loss.response_template
        if (
            self.loss.type == "response_template"
            and isinstance(response, str)
            and not isinstance(sample, Conversation)
        ):
            text = sample.text if isinstance(sample, Text) else sample.prompt + sample.completion
            prompt, found, answer = text.rpartition(response)
            return prompt + found, answer
        return split_prompt(sample)

    def trained_prompt(self, sample: Sample) -> Prompt | None:
        """What generation is given in place of the last trained answer; None of a text that has no prompt."""
        if isinstance(sample, Conversation):
            by_turn = self.loss.type in ("completion_only", "assistant_only")
            last = (
                trained_turns(sample, self.loss.type)[-1] if by_turn else len(sample.messages) - 1
            )
            return replace(sample, messages=sample.messages[:last], train=())
        if isinstance(sample, Text) and not isinstance(self.loss.response_template, str):
            return None
        return self.answer_apart(sample)[0]

    def text(self, sample: Sample) -> str:
        """What is tokenised of a sample: BOS and EOS of plain strings are put around it later."""
        return "".join(self._plan(sample, "the row").parts)

    @property
    def cuts_at_answers(self) -> bool:
        """Whether tokenisation starts anew at each answer, as in generation; not with boundary=joint or a template of ids."""
        return self.loss.boundary == "split" and not isinstance(self.loss.response_template, list)

    @property
    def keeps_space(self) -> bool:
        """Whether white space is read back as it was written."""
        return not self._adds_space and not self._swallowing

    def holds_unknown(self, ids: Sequence[int]) -> bool:
        """Whether UNK stands among the ids, and may."""
        return self.reads_unknown and self.tokenizer.unk_token_id in ids

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids that generation is fed: of a string with the tokenizer's own BOS, or of turns through the chat template."""
        if isinstance(prompt, str):
            ids = [token for part, _, _ in self._tokenize([prompt]) for token in part]
            return ids if ids[: len(self.added_bos)] == self.added_bos else [*self.added_bos, *ids]
        rendered = self.template.prompt(prompt, "prompt")
        return [
            token
            for ids, _, _ in self._tokenize(_split(rendered.text, rendered.cuts))
            for token in ids
        ]

    # --- text -------------------------------------------------------------------------------------

    def _plan(self, sample: Sample, where: str) -> _Plan:
        loss = self.loss.type
        if loss == "response_template":
            return self._plan_response(sample, where)
        if isinstance(sample, Conversation):
            return self._plan_chat(sample, where)
        if loss == "assistant_only" or (
            loss == "completion_only" and not isinstance(sample, PromptCompletion)
        ):
            kind = (
                "a prompt and its completion"
                if isinstance(sample, PromptCompletion)
                else "a finished text"
            )
            ways_out = (
                "loss=completion_only"
                if isinstance(sample, PromptCompletion)
                else "loss=full, or loss=response_template"
            )
            raise DataError(
                Problem(
                    f"loss={loss} ({where})",
                    f"the format makes {kind}, which has no turns to tell apart",
                    fix=ways_out,
                )
            )
        if not isinstance(sample, PromptCompletion):
            return _Plan([sample.text], [Answer(0, len(sample.text), closed=True)], chat=False)
        text, start = (
            sample.prompt + sample.completion,
            len(sample.prompt) if loss == "completion_only" else 0,
        )
        parts = [text] if self.loss.boundary == "joint" else [sample.prompt, sample.completion]
        return _Plan(parts, [Answer(start, len(text), closed=True)], chat=False)

    def _plan_chat(self, chat: Conversation, where: str) -> _Plan:
        turns = trained_turns(chat, self.loss.type)
        full = self.loss.type == "full"
        if full and False in chat.train:
            problem = Problem(
                where,
                "loss=full trains every token, and a turn is marked train: false",
                fix="loss=assistant_only",
            )
            raise RowError("train flag against loss=full", problem)
        last = len(chat.messages) - 1
        rendered = self.template.render(chat, (last,) if full else turns, where)
        answers = list(rendered.answers)
        if full:
            answers = [replace(answers[-1], start=0)]
        cuts = () if self.loss.boundary == "joint" else rendered.cuts
        return _Plan(_split(rendered.text, cuts), answers, chat=True)

    def _plan_response(self, sample: Sample, where: str) -> _Plan:
        """The text as a whole, cut behind each response template; ids in place of a text are looked for once there are ids."""
        chat = isinstance(sample, Conversation)
        if isinstance(sample, Conversation):
            text = self.template.text(sample, where, prompt=False)
        else:
            text = (
                sample.prompt + sample.completion
                if isinstance(sample, PromptCompletion)
                else sample.text
            )
        if not isinstance(self.loss.response_template, str):
            return _Plan([text], [], chat)
        spans = response_spans(text, self.loss.response_template, self.loss.instruction_template)
        if not spans:
            raise self._no_response(text, where)
        spans = [(self._behind_swallowed(text, start), stop) for start, stop in spans]
        cuts = () if self.loss.boundary == "joint" else tuple(start for start, _ in spans)
        return _Plan(
            _split(text, cuts), [Answer(start, stop, closed=True) for start, stop in spans], chat
        )

    def _behind_swallowed(self, text: str, start: int) -> int:
        """Past the white space that belongs to a special token in front of it: Phi-3 reads <|assistant|> and a line break as one token."""
        if not text.endswith(self._swallowing, 0, start):
            return start
        return len(text) - len(text[start:].lstrip())

    def _no_response(self, text: str, where: str) -> RowError:
        return RowError(
            "response template not found",
            Problem(
                where,
                f"loss.response_template {self.loss.response_template!r} does not stand in "
                f"{text[:80]!r}",
                allowed="the text that is written in front of each answer",
                fix="copy it from the first rows that sftpipe preview loss=full shows",
            ),
        )

    def lost_character(self, parts: Sequence[str], where: str) -> RowError | None:
        """The error of a text that the tokenizer would lose: what it does not know is dropped, or written as UNK, without a word."""
        characters = (
            set().union(*(piece for part in parts for piece in self.special.pattern.split(part)))
            - self._known_characters
        )
        for character in sorted(characters):
            if "\ud800" <= character <= "\udfff":
                found = f"a lone surrogate, U+{ord(character):04X}: half of a character"
                return RowError("broken text", Problem(where, found, fix="mend the row"))
            text = f"{self._around}{character}{self._around}"
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            decoded = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            if _normal(decoded) != _normal(text) and not self.holds_unknown(ids):
                found = (
                    f"{character!r} (U+{ord(character):04X}) is not in the tokenizer's vocabulary; "
                    f"it would be read as {decoded!r}"
                )
                problem = Problem(
                    where, found, fix="remove the character from the row, or use another tokenizer"
                )
                return RowError("character outside the vocabulary", problem)
            self._known_characters.add(character)
        return None

    # --- ids --------------------------------------------------------------------------------------

    def _tokenize(self, parts: Sequence[str]) -> list[Tokens]:
        """The tokens of each part, from one call of the Rust tokenizer, whose results are asked for no more than is needed.

        SentencePiece puts a space in front of whatever it is given; a part that brings its own must
        not get two.
        """
        moved = [
            part[1:] if self._adds_space and len(part) > 1 and part[0] == " " else part
            for part in parts
        ]
        backend = self.tokenizer.backend_tokenizer
        if (
            backend.padding is not None or backend.truncation is not None
        ):  # what an earlier call asked for
            backend.no_padding()
            backend.no_truncation()
        encoded = backend.encode_batch(moved, add_special_tokens=False) if parts else ()
        return [
            (encoding.ids, encoding, len(part) - len(cut))
            for part, cut, encoding in zip(parts, moved, encoded, strict=True)
        ]

    def _finish(self, plan: _Plan, tokens: Sequence[Tokens], where: str) -> Encoded:
        """Join the parts and find the trained tokens."""
        ids: list[int] = []
        offsets = _Offsets()
        firsts: dict[int, int] = {}  # where a part begins: character -> token
        at = 0
        if not plan.chat and tokens[0][0][: len(self.added_bos)] != self.added_bos:
            ids += self.added_bos
            offsets.add(len(ids), 0, None)
        for part, (part_ids, encoding, moved) in zip(plan.parts, tokens, strict=True):
            firsts[at] = len(ids) if at or plan.chat else 0
            ids += part_ids
            offsets.add(len(ids), at + moved, encoding)
            at += len(part)
        if not plan.chat and ids[-1] != self._eos:
            ids.append(self._eos)
            offsets.add(len(ids), at, None)
        by_ids = self.loss.type == "response_template" and not isinstance(
            self.loss.response_template, str
        )
        if not plan.answers and not by_ids:
            problem = Problem(
                where, "no turn of it is to be trained", fix="remove the row, or its train: false"
            )
            raise RowError("nothing to train", problem)
        if by_ids:
            spans = response_spans(ids, self.loss.response_template, self.loss.instruction_template)
            if not spans:
                raise self._no_response("".join(plan.parts), where)
        elif self.loss.boundary == "joint" and self.loss.type == "completion_only":
            spans = [self._joint_span(plan, ids, offsets, where)]
        else:
            spans = [self._span(answer, ids, offsets, firsts, at, where) for answer in plan.answers]
        if (
            plan.chat
            and spans
            and self.loss.type != "response_template"
            and plan.answers[-1].closed
        ):
            self._check_block(ids[slice(*spans[-1])], where)
        labels = labels_from_spans(ids, spans)
        if labels.count(IGNORED) == len(labels):
            problem = Problem(
                where, "no token of it is trained", fix="look at it with sftpipe preview loss=full"
            )
            raise RowError("no trained token", problem)
        return Encoded(ids, labels)

    def _span(
        self,
        answer: Answer,
        ids: list[int],
        offsets: _Offsets,
        firsts: dict[int, int],
        length: int,
        where: str,
    ) -> Span:
        """Tokens of an answer: from the first that reaches into it to the last that does, or to the token that ends the turn."""
        first = firsts.get(answer.start)
        if first is None:
            first = next(
                (at for at, (_, end) in enumerate(offsets) if end > answer.start), len(ids)
            )
        if answer.stop == length and answer.closed:
            return first, len(ids)
        if answer.closed:
            return first, next(
                (at for at in range(first, len(ids)) if offsets[at][0] >= answer.stop), len(ids)
            )
        return first, self._turn_end(answer, first, ids, offsets, where)

    def _turn_end(
        self, answer: Answer, first: int, ids: list[int], offsets: _Offsets, where: str
    ) -> int:
        """Behind the special token that ends the turn; white space after it stays masked.

        Added tokens may stand inside a tool call, so its end is one of the tokens that end plain
        answers, or else the last special token of the turn. Where EOS follows the first special
        token at once, it ends the turn.
        """
        start = offsets.token_at(answer.stop)
        behind = []
        for at in range(first if start is None else max(first, start), len(ids)):
            if offsets[at][1] > answer.limit:
                break
            if ids[at] in self.special and offsets[at][1] > answer.stop:
                behind.append(at)
        if answer.called:
            ends = self._plain_ends(where)
            behind = [at for at in behind if ids[at] in ends][:1] or behind[-1:]
        if behind:
            end = behind[0]
            while (
                ids[end] != self._eos
                and end + 1 in behind
                and self._is_bare(ids[end], offsets[end])
            ):
                end += 1
            return (end if ids[end] == self._eos else behind[0]) + 1
        stop = next(
            (at for at in range(first, len(ids)) if offsets[at][1] > answer.limit), len(ids)
        )
        if stop < len(ids) and self._plain_ends(where):
            text = self.tokenizer.decode(ids[first:stop][-20:])
            raise rewritten(where, f"no special token ends {text!r} there")
        raise self._no_end(where)

    def _check_block(self, trained: Sequence[int], where: str) -> None:
        """Refuse a generation block that ends in front of the token that ends the turn."""
        last = next(
            (token for token in reversed(trained) if self.tokenizer.decode([token]).strip()), None
        )
        if last not in self.special:
            raise DataError(
                Problem(
                    f"{where}, tokenizer.chat_template",
                    "the generation block ends in front of the token that ends the turn, so the "
                    "model could not learn to stop",
                    fix="a chat template with that token inside of {% generation %}",
                )
            )

    def _is_bare(self, token: int, span: Span) -> bool:
        """Whether an added token took in no white space around it, as some (Phi-3's) do."""
        return span[1] - span[0] == len(self.tokenizer.convert_ids_to_tokens(token))

    def _no_end(self, where: str) -> DataError:
        found = (
            "the template ends the answer with no special "
            "token, so the model could not learn to stop"
        )
        fix = "a chat template that closes each turn with eos_token or another special token"
        unknown = unknown_tokens(self.tokenizer)
        if unknown:
            found += f"; the tokenizer does not know {', '.join(unknown)}"
            fix += f", or {how_to_add(unknown)}"
        return DataError(Problem(f"{where}, tokenizer.chat_template", found, fix=fix))

    def _plain_ends(self, where: str) -> set[int]:
        """The tokens that end an answer without tool calls."""
        if self._turn_ends is None:
            chat = Conversation(
                ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
            )
            rendered = self.template.render(chat, (1,), where)
            ((ids, encoding, _),) = self._tokenize([rendered.text])
            answer = rendered.answers[-1]
            stop = answer.stop if not answer.closed else rendered.text.rindex("b") + 1
            ends = (
                token
                for token, (_, end) in zip(ids, encoding.offsets, strict=True)
                if end > stop and token in self.special
            )
            self._turn_ends = set(islice(ends, 1))
        if not self._turn_ends:
            raise self._no_end(where)
        return self._turn_ends

    def _joint_span(self, plan: _Plan, ids: list[int], offsets: _Offsets, where: str) -> Span:
        """Alpaca's length mask: as many tokens as the prompt has by itself, whatever the answer's first token took from it."""
        answer = plan.answers[0]
        prompt = "".join(plan.parts)[: answer.start]
        alone = self.tokenizer(prompt, add_special_tokens=False).input_ids
        bos = (
            len(self.added_bos)
            if not plan.chat and alone[: len(self.added_bos)] != self.added_bos
            else 0
        )
        first = len(alone) + bos
        return first, len(ids) if answer.closed else self._turn_end(
            answer, first, ids, offsets, where
        )


class _Offsets(Sequence[Span]):
    """(start, end) of each token, in characters of the whole text; asked of the Rust tokenizer one by one, because few are needed."""

    def __init__(self) -> None:
        self._stops: list[int] = []  # behind the last token of each part
        self._parts: list[
            tuple[int, int, Any]
        ] = []  # first token, first character, encoding (None: a token that no text gave)

    def add(self, stop: int, character: int, encoding: Any) -> None:
        """A part that ends in front of token `stop`."""
        self._parts.append((len(self), character, encoding))
        self._stops.append(stop)

    def token_at(self, character: int) -> int | None:
        """The first token that a character of the text is in; None where it is in none."""
        for first, start, encoding in reversed(self._parts):
            if encoding is not None and start <= character:
                token = encoding.char_to_token(character - start)
                return None if token is None else first + token
        return None

    def __len__(self) -> int:
        return self._stops[-1] if self._stops else 0

    def __getitem__(self, token: Any) -> Any:
        if not 0 <= token < len(self):
            raise IndexError(token)
        first, character, encoding = self._parts[bisect_right(self._stops, token)]
        if encoding is None:
            return character, character
        start, end = encoding.token_to_chars(token - first)
        return start + character, end + character


def _split(text: str, cuts: Sequence[int]) -> list[str]:
    """The text cut at the given characters."""
    edges = [0, *(cut for cut in cuts if 0 < cut < len(text)), len(text)]
    return [text[start:stop] for start, stop in pairwise(edges)]


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text)
