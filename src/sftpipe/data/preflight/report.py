"""What the data of a run looks like, and what must hold before the first step."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sftpipe.config.schema import TrainConfig
from sftpipe.data.cleaning import FORGED
from sftpipe.data.encode import TOO_LONG, Encoded, Encoder
from sftpipe.data.formats import Conversation
from sftpipe.data.packing import PackingReport
from sftpipe.data.preflight.facts import Dropped, Part, RowFacts, equal_before, read_facts
from sftpipe.data.preflight.parity import Comparison, compare, excerpt, first_difference
from sftpipe.errors import DataError, Problem
from sftpipe.tokenizer.load import how_to_add, unknown_tokens

_SHOWN = 3  # rows that a message shows of each reason


@dataclass
class SplitReport:
    """One split of one source, after encoding and before packing. Lengths are tokens.

    split, source: which.
    rows: rows that are used.
    tokens, trained_tokens: over those rows.
    length_p50, length_p95, length_p99, length_max: of those rows.
    over_length_rows: rows that were dropped because they are longer than `sft.max_length`.
    truncated_rows: rows that were cut to fit it.
    lost_answer_tokens: trained tokens of the rows that were dropped for their length, and of
        exchanges that were cut.
    dropped: {reason: rows}; each of them stands in `Preflight.dropped`.
    end_trained_rows: rows whose trained part ends in a special token, which tells generation to
        stop.
    bos_rows: {0, 1 or 2: rows with so many BOS at the front}; "2" is two or more.
    unk_rows, pad_rows: rows with UNK or PAD in them (0 where the token is EOS or BOS, too).
    repeated_rows: rows that equal an earlier one of their split.
    shared_rows: rows that equal one of an earlier split.
    shared_prompts: other rows whose prompt stands in an earlier split.
    forged_rows: rows with special tokens in their texts: escaped, or dropped.
    compared_rows: how many were held against the prompt that generation is given, and against their
        text.
    """

    split: str
    source: str
    rows: int
    tokens: int
    trained_tokens: int
    length_p50: float
    length_p95: float
    length_p99: float
    length_max: int
    over_length_rows: int
    truncated_rows: int
    lost_answer_tokens: int
    dropped: dict[str, int]
    end_trained_rows: int
    bos_rows: dict[str, int]
    unk_rows: int
    pad_rows: int
    repeated_rows: int
    shared_rows: int
    shared_prompts: int
    forged_rows: int
    compared_rows: int

    @property
    def place(self) -> str:
        """As `Part.place`."""
        return f"{self.source} {self.split}".strip()


@dataclass
class Preflight:
    """The report that is written to preflight.json.

    splits: one for each split of each source.
    dropped: the rows that are not trained on, with where they stand and what is wrong.
    warnings: what deserves a look, and stops nothing.
    end_tokens: {special token that ends a trained part: rows}; generation must stop at each of
        them.
    special_tokens: {its name in the tokenizer: [token, id]}.
    padding_share: of all tokens of the training batches; an estimate, as their order is drawn
        later.
    packing: what packing made of the rows; None without it.
    """

    splits: list[SplitReport] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    end_tokens: dict[str, int] = field(default_factory=dict)
    special_tokens: dict[str, Any] = field(default_factory=dict)
    padding_share: float = 0.0
    packing: PackingReport | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def summary(self) -> str:
        """Rows of each split, what was dropped, and each warning, on a line each."""
        rows: Counter[str] = Counter()
        dropped: dict[str, Counter[str]] = {}
        for one in self.splits:
            rows[one.split] += one.rows
            dropped.setdefault(one.split, Counter()).update(one.dropped)
        lines = [", ".join(f"{count:,} {split}" for split, count in rows.items()) + " rows"]
        for split, reasons in dropped.items():
            if reasons:
                counted = ", ".join(
                    f"{count:,} x {reason}" for reason, count in reasons.most_common()
                )
                lines.append(f"dropped   of {split}: {counted}; `sftpipe check` lists them")
        for warning in self.warnings:
            lines.append(
                f"warning   {warning.where}: {warning.found.splitlines()[0]}; `sftpipe check` "
                "says what to do"
            )
        return "\n".join(lines)

    def split(self, name: str) -> SplitReport:
        """The report of a split that has one source."""
        (report,) = (report for report in self.splits if report.split == name)
        return report


def inspect(parts: Mapping[str, Sequence[Part]], encoder: Encoder, cfg: TrainConfig) -> Preflight:
    """Measure finished rows and check them against the limits.

    Args:
        parts: {split: its rows, one part for each source}.
        encoder: what made them; for the tokenizer, and for the prompts of generation.
        cfg: for the limits, and for the loss.

    Raises:
        DataError: holds every problem that was found.
    """
    tokenizer = encoder.tokenizer
    report = Preflight(
        special_tokens={
            name: [getattr(tokenizer, name), getattr(tokenizer, f"{name}_id")]
            for name in ("pad_token", "eos_token", "bos_token", "unk_token")
        }
    )
    flat = [part for group in parts.values() for part in group]
    facts = [read_facts(part, encoder) for part in flat]
    shared = _Shared(flat, facts)
    problems: list[Problem] = []
    ends: Counter[int] = Counter()
    comparisons = [
        compare(part, (fact.cut == 0).nonzero()[0], encoder)
        for part, fact in zip(flat, facts, strict=True)
    ]
    for number, (part, fact, compared) in enumerate(zip(flat, facts, comparisons, strict=True)):
        report.splits.append(_split_report(part, fact, shared, number, compared))
        report.dropped += part.dropped
        ends.update(fact.end[fact.end >= 0].tolist())
        problems += _limits(part, fact, encoder, cfg) + _faults(part, fact, compared, encoder)
        report.warnings += _remarks(part, fact, compared, encoder)
    report.end_tokens = {
        tokenizer.convert_ids_to_tokens(token): count for token, count in ends.most_common()
    }
    repeated = shared.problems(list(parts), encoder)
    if cfg.preflight.duplicates == "error":
        problems += repeated
    else:
        report.warnings += repeated
    report.warnings += _lone_spaces(flat, comparisons, encoder, cfg)
    report.warnings += shared.prompt_remarks(list(parts), encoder)
    report.warnings += _split_turn_tokens(flat, encoder)
    if problems:
        raise DataError(*problems)
    return report


def _split_report(
    part: Part, fact: RowFacts, shared: _Shared, number: int, compared: Comparison
) -> SplitReport:
    import numpy as np

    reasons = Counter(one.reason for one in part.dropped)
    p50, p95, p99 = (
        float(value)
        for value in (np.percentile(fact.length, (50, 95, 99)) if len(fact.length) else (0, 0, 0))
    )
    mine = shared.rows_of(number)
    return SplitReport(
        split=part.split,
        source=part.source,
        rows=len(part.rows),
        tokens=int(fact.length.sum()),
        trained_tokens=int(fact.trained.sum()),
        length_p50=round(p50, 1),
        length_p95=round(p95, 1),
        length_p99=round(p99, 1),
        length_max=int(fact.length.max(initial=0)),
        over_length_rows=reasons[TOO_LONG],
        truncated_rows=int((fact.cut > 0).sum()),
        lost_answer_tokens=int(fact.lost.sum())
        + sum(one.trained_tokens for one in part.dropped if one.reason == TOO_LONG),
        dropped=dict(reasons.most_common()),
        end_trained_rows=int((fact.end >= 0).sum()),
        bos_rows={str(count): int((fact.bos == count).sum()) for count in range(3)},
        unk_rows=int(fact.has_unk.sum()),
        pad_rows=int(fact.has_pad.sum()),
        repeated_rows=int(shared.repeats[mine].sum()),
        shared_rows=int(shared.rows[mine].sum()),
        shared_prompts=int(shared.prompts[mine].sum()),
        forged_rows=int(fact.escaped.sum()) + reasons[FORGED],
        compared_rows=compared.rows,
    )


# --- what stops a run -----------------------------------------------------------------------------


def _limits(part: Part, fact: RowFacts, encoder: Encoder, cfg: TrainConfig) -> list[Problem]:
    """Too many rows dropped, or no prompt masked."""
    empty = [one for one in part.dropped if one.reason != TOO_LONG]
    longer = [one for one in part.dropped if one.reason == TOO_LONG]
    problems = []
    if len(empty) > cfg.preflight.max_empty_rows * part.read or (empty and not len(part.rows)):
        problems += _too_many_empty(part, empty, cfg)
    if len(longer) > cfg.preflight.max_over_length_rows * part.read or (
        longer and not len(part.rows)
    ):
        problems.append(_too_many_long(part, longer, encoder, cfg))
    if not part.dropped and not len(part.rows):
        problems.append(
            Problem(part.place, "no rows", allowed="one or more", fix="mend the data set")
        )
    if len(part.rows) and (fact.trained == fact.length).all() and cfg.loss.type != "full":
        problems.append(
            Problem(
                f"{part.place}, loss={cfg.loss.type}",
                "every token of every row is trained: no prompt is masked",
                allowed="a prompt in front of what is trained",
                fix="loss=full if that is meant; else look at sftpipe preview",
            )
        )
    return problems


def _too_many_empty(part: Part, empty: Sequence[Dropped], cfg: TrainConfig) -> list[Problem]:
    reasons = Counter(one.reason for one in empty)
    counted = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    summary = Problem(
        part.place,
        f"{len(empty)} of {part.read} rows teach nothing: {counted}",
        allowed=f"preflight.max_empty_rows={cfg.preflight.max_empty_rows} of the rows",
        fix="mend the rows below, the format or the loss; preflight.max_empty_rows=1 lets sftpipe "
        "preview show the rest",
    )
    shown: list[Problem] = []
    for reason in reasons:
        shown += [one.problem() for one in empty if one.reason == reason][:_SHOWN]
    return [summary, *shown]


def _too_many_long(
    part: Part, longer: Sequence[Dropped], encoder: Encoder, cfg: TrainConfig
) -> Problem:
    first, longest = longer[0], max(one.tokens for one in longer)
    ways_out = [
        f"sft.max_length={longest}",
        *(["over_length=truncate"] if cfg.over_length == "drop" else []),
    ]
    return Problem(
        first.problem().where,
        f"{len(longer)} of {part.read} rows of {part.place} are dropped because they are longer "
        "than sft.max_length; "
        f"this one has {first.tokens} tokens, the longest "
        f"{longest}{_text_of(part, first, encoder)}",
        allowed=f"preflight.max_over_length_rows={cfg.preflight.max_over_length_rows} of the rows",
        fix=", or ".join(ways_out),
    )


def _text_of(part: Part, dropped: Dropped, encoder: Encoder) -> str:
    """A line that shows a row that was dropped for its length."""
    samples = part.samples(dropped.index)
    for row in encoder.encode(samples, [dropped.where] * len(samples)):
        if isinstance(row, Encoded) and len(row.input_ids) == dropped.tokens:
            return f"\n    {excerpt(vars(row), encoder.tokenizer)}"
    return ""


def _faults(part: Part, fact: RowFacts, compared: Comparison, encoder: Encoder) -> list[Problem]:
    """Rows that are not what generation will see."""
    problems = []
    twice = (fact.bos > 1).nonzero()[0]
    if len(twice):
        bos = encoder.tokenizer.bos_token
        problems.append(
            _problem(
                part,
                int(twice[0]),
                encoder,
                f"{len(twice)} of {len(part.rows)} rows begin with {bos!r} twice",
                "one",
                f"take {bos!r} out of the texts, or out of the chat template",
            )
        )
    if compared.prompts and encoder.cuts_at_answers:
        problems.append(_unlike_generation(part, compared, encoder))
    if compared.texts:
        problems.append(
            _problem(
                part,
                compared.texts[0],
                encoder,
                f"{len(compared.texts)} of {compared.rows} rows that were compared do not read "
                "back "
                "as their text",
                "ids that decode to what was encoded",
                "another tokenizer, or mend the characters that it loses",
            )
        )
    return problems


def _unlike_generation(part: Part, compared: Comparison, encoder: Encoder) -> Problem:
    at = compared.prompts[0]
    row = part.rows[at]
    difference = first_difference(row, part.samples(row["index"])[-1], encoder)
    fix = "another tokenizer.chat_template"
    if encoder.loss.boundary == "joint":
        fix = "loss.boundary=split"
    elif encoder.loss.type == "response_template":
        fix = (
            "a loss.response_template of text that ends where the prompt does, or "
            "loss=completion_only"
        )
    found = (
        f"{len(compared.prompts)} of {compared.rows} rows that were compared do not go on from "
        f"the prompt of generation: {difference}"
    )
    return _problem(
        part, at, encoder, found, "the ids of the prompt, and then what is trained", fix
    )


def _problem(
    part: Part, position: int, encoder: Encoder, found: str, allowed: str, fix: str
) -> Problem:
    """A problem of a finished row, with a line that shows it."""
    return Problem(
        part.where(position),
        f"{found}\n    {excerpt(part.rows[position], encoder.tokenizer)}",
        allowed=allowed,
        fix=fix,
    )


# --- what deserves a look -------------------------------------------------------------------------


def _remarks(part: Part, fact: RowFacts, compared: Comparison, encoder: Encoder) -> list[Problem]:
    tokenizer, rows = encoder.tokenizer, len(part.rows)
    found: list[tuple[Any, str, str, str]] = [
        (
            fact.end < 0,
            "end their trained part in no special token: the model does not learn to stop there",
            "EOS, or the end of a turn",
            "a format or a chat template that writes one; sftpipe preview shows the rows",
        ),
        (
            fact.has_unk,
            f"hold {tokenizer.unk_token!r}, which stands for what the tokenizer does not know",
            "",
            "mend the texts, or another tokenizer",
        ),
        (
            fact.has_pad & ~fact.has_unk,
            f"hold {tokenizer.pad_token!r}, which pads batches",
            "",
            "take it out of the texts, or another tokenizer.pad_token",
        ),
    ]
    remarks = [
        _problem(
            part,
            int(hits.nonzero()[0][0]),
            encoder,
            f"{hits.sum()} of {rows} rows {what}",
            allowed,
            fix,
        )
        for hits, what, allowed, fix in found
        if rows and hits.any()
    ]
    if compared.prompts and not encoder.cuts_at_answers:
        remarks.append(_unlike_generation(part, compared, encoder))
    return remarks


def _lone_spaces(
    parts: Sequence[Part], compared: Sequence[Comparison], encoder: Encoder, cfg: TrainConfig
) -> list[Problem]:
    """Prompts that end in a space; told once for all parts."""
    hits = [(part, one.spaces[0]) for part, one in zip(parts, compared, strict=True) if one.spaces]
    if not hits:
        return []
    count, rows = sum(len(one.spaces) for one in compared), sum(one.rows for one in compared)
    found = (
        f"the prompt ends in a space, as in {count} of {rows} rows that were compared: the model "
        "begins its answer behind a space that "
        "stands by itself, which it never saw in running text"
    )
    return [
        _problem(
            *hits[0], encoder, found, "a completion that begins with the space", _moved_space(cfg)
        )
    ]


def _split_turn_tokens(parts: Sequence[Part], encoder: Encoder) -> list[Problem]:
    """Turn tokens of the chat template that are none of the tokenizer's."""
    first = next(
        (
            sample
            for part in parts
            if len(part.rows)
            for sample in part.samples(part.rows[0]["index"])
        ),
        None,
    )
    unknown = unknown_tokens(encoder.tokenizer)
    if not isinstance(first, Conversation) or not unknown:
        return []
    pieces = encoder.tokenizer.tokenize(unknown[0])
    return [
        Problem(
            "tokenizer.chat_template",
            f"it writes {', '.join(unknown)}, which the tokenizer does not know: {unknown[0]} is "
            f"split into {len(pieces)} tokens",
            allowed="a template whose turn tokens the model was trained with, or new tokens that this "
            "run trains",
            fix=how_to_add(unknown),
        )
    ]


def _moved_space(cfg: TrainConfig) -> str:
    form, response = cfg.format, cfg.loss.response_template
    if cfg.loss.type == "response_template" and isinstance(response, str):
        return f"loss.response_template={response.rstrip(' ')!r}"
    if form.type == "template" and form.prompt and form.completion and form.prompt.endswith(" "):
        return (
            f"format.prompt={form.prompt.rstrip(' ')!r} "
            f"format.completion={' ' + form.completion.lstrip(' ')!r}"
        )
    return "move the space from the end of the prompt to the front of the completion"


# --- rows that are there twice --------------------------------------------------------------------


class _Shared:
    """Which rows, and which prompts, stand in the data more than once. Rows are numbered over all parts, in their order.

    repeats, rows, prompts: (rows,) whether a row equals an earlier one of its split; one of an
        earlier split; or, being no such row, has the prompt of one of an earlier split.
    """

    def __init__(self, parts: Sequence[Part], facts: Sequence[RowFacts]) -> None:
        import numpy as np

        self._parts = parts
        self._starts = np.cumsum([0, *(len(part.rows) for part in parts)])
        names = list(dict.fromkeys(part.split for part in parts))
        self._split = np.repeat([names.index(part.split) for part in parts], np.diff(self._starts))
        self._first, previous = equal_before(np.concatenate([fact.row for fact in facts]))
        prompt = np.concatenate([fact.prompt for fact in facts])
        self._first_prompt, _ = equal_before(prompt)
        self.repeats = (previous >= 0) & (self._split[previous] == self._split)
        self.rows = self._split[self._first] < self._split
        self.prompts = (
            (self._split[self._first_prompt] < self._split) & prompt.any(axis=1) & ~self.rows
        )

    def rows_of(self, number: int) -> slice:
        """The numbers of the rows of a part."""
        return slice(self._starts[number], self._starts[number + 1])

    def problems(self, splits: Sequence[str], encoder: Encoder) -> list[Problem]:
        """One for each split with rows of an earlier one."""
        found = "the same row as {other}: {count} of {split} were seen in another split"
        allowed, fix = (
            "no row in two splits; the loss on it would measure memory",
            "remove the duplicates from the data set",
        )
        return self._told(
            self.rows,
            self._first,
            splits,
            encoder,
            found,
            allowed,
            f"{fix}, or preflight.duplicates=warn",
        )

    def prompt_remarks(self, splits: Sequence[str], encoder: Encoder) -> list[Problem]:
        """One for each split with prompts of an earlier one."""
        found = (
            "the same prompt as {other}, with another answer: {count} of {split} have a prompt of "
            "another split"
        )
        fix = (
            "remove them where the loss on them is to measure what the model does with new prompts"
        )
        return self._told(self.prompts, self._first_prompt, splits, encoder, found, "", fix)

    def _told(
        self,
        hits: Any,
        first: Any,
        splits: Sequence[str],
        encoder: Encoder,
        found: str,
        allowed: str,
        fix: str,
    ) -> list[Problem]:
        told = []
        for number, split in enumerate(splits):
            here = (hits & (self._split == number)).nonzero()[0]
            if len(here):
                part, position = self._place(here[0])
                other, place = self._place(first[here[0]])
                count = f"{len(here)} row{'s' * (len(here) > 1)}"
                text = found.format(other=other.where(place), count=count, split=split)
                told.append(_problem(part, position, encoder, text, allowed, fix))
        return told

    def _place(self, number: int) -> tuple[Part, int]:
        at = bisect_right(self._starts.tolist(), number) - 1
        return self._parts[at], int(number - self._starts[at])
