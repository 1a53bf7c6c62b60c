"""The checks of data against config: errors before the first step, and warnings.

To add a check, write one function from `PartFindings` (one split of one source) or `Findings` (the
whole run) to a list of `Problem`s, and add its name to one of the four tuples at the end of this
file. All errors are reported together; warnings stop nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sftpipe.config.schema import PACKING, TrainConfig
from sftpipe.config.validation_sets import is_validation
from sftpipe.data.encode import Encoded, Encoder
from sftpipe.data.formats import layout_for
from sftpipe.data.packing import too_few_tokens
from sftpipe.data.preflight.duplicates import Duplicates
from sftpipe.data.preflight.facts import RowFacts
from sftpipe.data.preflight.parity import Comparison, first_difference
from sftpipe.data.preflight.preview import excerpt
from sftpipe.data.preflight.remarks import (
    default_system_texts,
    doubled_blocks,
    templates_out_of_turn,
    unread_values,
)
from sftpipe.data.rows import TOO_LONG, Dropped, Part
from sftpipe.data.samples import Conversation
from sftpipe.errors import Problem, override
from sftpipe.tokenizer.special_tokens import how_to_add, unknown_tokens

if TYPE_CHECKING:
    import numpy as np

_SHOWN = 3  # rows that a message shows of each reason
# reasons of rows that may be those of another format
_OF_SHAPE = ("null or missing", "wrong type", "unknown role", "roles out of order")


@dataclass(frozen=True)
class PartFindings:
    """All that a check of one split of one source may look at."""

    part: Part
    facts: RowFacts
    compared: Comparison
    encoder: Encoder
    cfg: TrainConfig


@dataclass(frozen=True)
class Findings:
    """All that a check of the whole run may look at.

    parts: {split: its encoded rows, one part for each source}.
    found: the findings of every part, in the same order.
    duplicates: rows and prompts that are in the data more than once.
    """

    parts: Mapping[str, Sequence[Part]]
    found: Sequence[PartFindings]
    duplicates: Duplicates
    encoder: Encoder
    cfg: TrainConfig


# --- errors of one split of one source ------------------------------------------------------------


def too_many_dropped(find: PartFindings) -> list[Problem]:
    """More rows teach nothing than `preflight.max_empty_rows` allows."""
    part, limit = find.part, find.cfg.preflight.max_empty_rows
    empty = [one for one in part.dropped if one.reason != TOO_LONG]
    if len(empty) <= limit * part.read and not (empty and not len(part.rows)):
        return []
    reasons = Counter(one.reason for one in empty)
    counted = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    fix = (
        "fix the rows below, the format or the loss; `preflight.max_empty_rows=1` lets sftpipe "
        "preview show the rest"
    )
    summary = Problem(
        part.place,
        f"{len(empty)} of {part.read} rows teach nothing: {counted}",
        allowed=f"preflight.max_empty_rows={limit} of the rows",
        fix=_read_otherwise(find, reasons) or fix,
    )
    shown = [[one.problem() for one in empty if one.reason == reason] for reason in reasons]
    return [summary, *(problem for group in shown for problem in group[:_SHOWN])]


def too_many_too_long(find: PartFindings) -> list[Problem]:
    """More rows are dropped for their length than `preflight.max_over_length_rows` allows."""
    part, cfg = find.part, find.cfg
    longer = [one for one in part.dropped if one.reason == TOO_LONG]
    limit = cfg.preflight.max_over_length_rows
    if len(longer) <= limit * part.read and not (longer and not len(part.rows)):
        return []
    first, longest = longer[0], max(one.tokens for one in longer)
    ways_out = [f"`sft.max_length={longest}`"]
    if cfg.over_length == "drop":
        ways_out.append("`over_length=truncate`")
    problem = Problem(
        first.problem().where,
        f"{len(longer)} of {part.read} rows of {part.place} are dropped because they are longer "
        f"than sft.max_length; this one has {first.tokens} tokens, the longest "
        f"{longest}{_text_of(part, first, find.encoder)}",
        allowed=f"preflight.max_over_length_rows={limit} of the rows",
        fix=", or ".join(ways_out),
    )
    return [problem]


def no_rows(find: PartFindings) -> list[Problem]:
    """A split without a row, and without one that was dropped."""
    part = find.part
    if part.dropped or len(part.rows):
        return []
    return [Problem(part.place, "no rows", allowed="one or more", fix="fix the data set")]


def rows_over_length(find: PartFindings) -> list[Problem]:
    """Rows longer than `sft.max_length` where `over_length` does not take care of them."""
    problem = over_length_problem(find.part, find.cfg)
    return [problem] if problem else []


def nothing_masked(find: PartFindings) -> list[Problem]:
    """A loss that masks prompts, and masks none."""
    part, facts, loss = find.part, find.facts, find.cfg.loss.type
    if not len(part.rows) or loss == "full" or not (facts.trained == facts.length).all():
        return []
    problem = Problem(
        f"{part.place}, loss={loss}",
        "every token of every row is trained: no prompt is masked",
        allowed="a prompt before what is trained",
        fix="`loss=full` if that is meant; else look at sftpipe preview",
    )
    return [problem]


def two_bos(find: PartFindings) -> list[Problem]:
    """Rows that begin with BOS twice (docs/rules.md, L4)."""
    twice = (find.facts.bos > 1).nonzero()[0]
    if not len(twice):
        return []
    bos = find.encoder.tokenizer.bos_token
    found = f"{len(twice)} of {len(find.part.rows)} rows begin with {bos!r} twice"
    fix = f"take {bos!r} out of the texts, or out of the chat template"
    return [_of_row(find.part, int(twice[0]), find.encoder, found, "one", fix)]


def unlike_generation(find: PartFindings) -> list[Problem]:
    """Rows that do not begin with the prompt of generation (docs/rules.md, L1)."""
    return _unlike_generation(find) if find.encoder.splits_at_answers else []


def not_read_back(find: PartFindings) -> list[Problem]:
    """Rows that do not decode to their text (docs/rules.md, L2)."""
    compared = find.compared
    if not compared.texts:
        return []
    found = (
        f"{len(compared.texts)} of {compared.rows} rows that were compared do not read back "
        "as their text"
    )
    allowed = "ids that decode to what was encoded"
    fix = "another tokenizer, or fix the characters that it loses"
    return [_of_row(find.part, compared.texts[0], find.encoder, found, allowed, fix)]


# --- errors of the run ----------------------------------------------------------------------------


def rows_in_two_splits(find: Findings) -> list[Problem]:
    """The same row in two splits (docs/rules.md, L11), where that is an error."""
    return _rows_in_two_splits(find) if find.cfg.preflight.duplicates == "error" else []


def lost_characters_of_prompts(find: Findings) -> list[Problem]:
    """Sample prompts with characters that the tokenizer would lose without a word."""
    prompts = (find.cfg.evaluation and find.cfg.evaluation.sample_prompts) or ()
    problems = []
    for index, prompt in enumerate(prompts):
        error = find.encoder.characters.first_lost([prompt], f"evaluation.sample_prompts[{index}]")
        if error:
            fix = "another prompt"
            if find.cfg.tokenizer.type == "char":
                typed = override("tokenizer.unk_token", "'[UNK]'")
                fix += f", or {typed} to read it as that"
            problems.append(replace(error.problem, fix=fix))
    return problems


def no_validation(find: Findings) -> list[Problem]:
    """`sft.eval_strategy` measures a validation split that is not there."""
    strategy = find.cfg.sft.get("eval_strategy", "no")
    if strategy == "no" or any(map(is_validation, find.parts)):
        return []
    where, found, off = "sft.eval_strategy", repr(strategy), "sft.eval_strategy=no"
    evaluation = find.cfg.evaluation
    if evaluation is not None and evaluation.early_stopping is not None:
        where, off = "evaluation.early_stopping", "evaluation.early_stopping=null"
        found = "it goes by the validation loss"
    found += ", but the data set has no validation split"
    return [Problem(where, found, fix=f"`dataset.validation_size=0.1`, or `{off}`")]


def less_than_one_window(find: Findings) -> list[Problem]:
    """packing=blocks on fewer tokens than one window has."""
    packing = find.cfg.packing
    if packing is None or packing.strategy != "blocks" or packing.block_size is None:
        return []
    tokens = sum(int(one.facts.length.sum()) for one in find.found if one.part.split == "train")
    problem = too_few_tokens(tokens, packing.block_size)
    return [problem] if problem else []


def less_than_one_batch(rows: int, cfg: TrainConfig) -> list[Problem]:
    """`sft.dataloader_drop_last` on so few rows that no step would be made.

    Args:
        rows: of the training split, after packing.
        cfg: the config of the run.
    """
    size = cfg.sft.get("per_device_train_batch_size", 8)
    is_random = cfg.packing is not None and cfg.packing.strategy == "blocks"  # windows, not rows
    if rows >= size or is_random or not cfg.sft.get("dataloader_drop_last"):
        return []
    where = "sft.dataloader_drop_last + sft.per_device_train_batch_size"
    found = f"the one batch that there is has {rows} of {size} rows and is dropped: no step is left"
    fix = f"`sft.dataloader_drop_last=false`, or `sft.per_device_train_batch_size={rows}`"
    return [Problem(where, found, fix=fix)]


def counts_beyond_sources(find: Findings) -> list[Problem]:
    """A mixture asks a source for more rows than it has; no row is repeated."""
    problems = []
    train = find.parts["train"] if find.cfg.dataset.path == "mixture" else ()
    for at, (source, part) in enumerate(zip(find.cfg.dataset.sources, train, strict=False)):
        if source.count is not None and source.count > len(part.rows):
            problems.append(
                Problem(
                    f"dataset.sources[{at}].count",
                    f"{source.count} rows are asked for, and the source has {len(part.rows)}",
                    allowed="no row is repeated",
                    fix=f"dataset.sources[{at}].count={len(part.rows)}, or sft.num_train_epochs "
                    "for more passes over all",
                )
            )
    return problems


# --- warnings -------------------------------------------------------------------------------------


def rows_without_end(find: PartFindings) -> list[Problem]:
    """Answers that do not teach the model to stop (docs/rules.md, L3)."""
    what = "end their trained part in no special token: the model does not learn to stop there"
    fix = "a format or a chat template that writes one; sftpipe preview shows the rows"
    return _hits(find, find.facts.end < 0, what, "EOS, or the end of a turn", fix)


def rows_with_unk(find: PartFindings) -> list[Problem]:
    """Rows that hold UNK."""
    what = (
        f"hold {find.encoder.tokenizer.unk_token!r}, which stands for what the tokenizer does not "
        "know"
    )
    return _hits(find, find.facts.has_unk, what, "", "fix the texts, or another tokenizer")


def rows_with_pad(find: PartFindings) -> list[Problem]:
    """Rows that hold PAD as a token of their own."""
    what = f"hold {find.encoder.tokenizer.pad_token!r}, which pads batches"
    fix = "take it out of the texts, or another tokenizer.pad_token"
    return _hits(find, find.facts.has_pad & ~find.facts.has_unk, what, "", fix)


def unlike_generation_by_choice(find: PartFindings) -> list[Problem]:
    """As `unlike_generation`, for a boundary that the config asks for."""
    return [] if find.encoder.splits_at_answers else _unlike_generation(find)


def unread_values_are_errors(find: PartFindings) -> list[Problem]:
    """As `unread_values`, with `preflight.unread=error`."""
    return unread_values(find) if find.cfg.preflight.unread == "error" else []


def unread_values_are_warnings(find: PartFindings) -> list[Problem]:
    """As `unread_values`, with `preflight.unread=warn`."""
    return unread_values(find) if find.cfg.preflight.unread == "warn" else []


def rows_in_two_splits_by_choice(find: Findings) -> list[Problem]:
    """As `rows_in_two_splits`, with `preflight.duplicates=warn`."""
    return [] if find.cfg.preflight.duplicates == "error" else _rows_in_two_splits(find)


def lone_spaces(find: Findings) -> list[Problem]:
    """Prompts that end in a space that is a token of its own; reported once for all parts."""
    hits = [(one.part, one.compared.spaces[0]) for one in find.found if one.compared.spaces]
    if not hits:
        return []
    count = sum(len(one.compared.spaces) for one in find.found)
    rows = sum(one.compared.rows for one in find.found)
    found = (
        f"the prompt ends in a space, as in {count} of {rows} rows that were compared: the model "
        "begins its answer after a lone space, which it never saw in running text"
    )
    allowed = "a completion that begins with the space"
    return [_of_row(*hits[0], find.encoder, found, allowed, _moved_space(find.cfg))]


def prompts_in_two_splits(find: Findings) -> list[Problem]:
    """The same prompt in two splits (docs/rules.md, L11)."""
    found = (
        "the same prompt as {other}, with another answer: {count} of {split} have a prompt of "
        "another split"
    )
    fix = "remove them where the loss on them is to measure what the model does with new prompts"
    duplicates = find.duplicates
    return _shared(find, duplicates.prompts, duplicates.first_prompt, found, "", fix)


def split_turn_tokens(find: Findings) -> list[Problem]:
    """Turn tokens of the chat template that the tokenizer splits into pieces."""
    parts = [part for group in find.parts.values() for part in group if len(part.rows)]
    samples = (sample for part in parts for sample in part.samples(part.rows[0]["index"]))
    unknown = unknown_tokens(find.encoder.tokenizer)
    if not unknown or not isinstance(next(samples, None), Conversation):
        return []
    pieces = find.encoder.tokenizer.tokenize(unknown[0])
    problem = Problem(
        "tokenizer.chat_template",
        f"it writes {', '.join(unknown)}, which the tokenizer does not know: {unknown[0]} is "
        f"split into {len(pieces)} tokens",
        allowed="a template whose turn tokens the model was trained with, or new tokens that this "
        "run trains",
        fix=how_to_add(unknown),
    )
    return [problem]


# --- shared by the checks -------------------------------------------------------------------------


def over_length_problem(part: Part, cfg: TrainConfig) -> Problem | None:
    """The problem of rows longer than `sft.max_length`, where they are an error.

    They are with over_length=error, and whenever all rows of a part are longer.
    """
    limit = cfg.sft.get("max_length")
    if limit is None or (cfg.packing and PACKING[cfg.packing.strategy].splits):
        return None
    lengths = part.lengths()
    longer = (lengths > limit).nonzero()[0]
    if not len(longer) or (cfg.over_length != "error" and len(longer) < len(lengths)):
        return None
    others = ""
    if len(longer) < len(lengths):
        others = ", or `over_length=drop` to leave such rows out and count them"
    return Problem(
        f"{part.place}[{part.rows[int(longer[0])]['index']}]",
        f"{len(longer)} of {len(lengths)} rows of {part.split} are longer than "
        f"sft.max_length={limit} tokens; this one has {lengths[longer[0]]}, the longest "
        f"{lengths.max()}",
        fix=f"`sft.max_length={lengths.max()}`{others}",
    )


def _read_otherwise(find: PartFindings, reasons: Mapping[str, int]) -> str:
    """How most rows would be read if they only look like those of another format, else ""."""
    part, form = find.part, find.part.format or find.cfg.format
    shapeless = sum(reasons.get(one, 0) for one in _OF_SHAPE)
    if 2 * shapeless < part.read or form.type == "function":
        return ""
    layout = layout_for(form, part.first_rows())
    if layout is None or (layout.settings and layout.is_in_use(find.cfg)):
        return ""
    if part.source and layout.settings.get("format") == form.type:  # its columns are not at hand
        return ""
    return layout.fix(alone=not part.source)


def _text_of(part: Part, dropped: Dropped, encoder: Encoder) -> str:
    """A line that shows a row that was dropped for its length."""
    samples = part.samples(dropped.index)
    for row in encoder.encode(samples, [dropped.where] * len(samples)):
        if isinstance(row, Encoded) and len(row.input_ids) == dropped.tokens:
            return f"\n    {excerpt(vars(row), encoder.tokenizer)}"
    return ""


def _unlike_generation(find: PartFindings) -> list[Problem]:
    part, compared, encoder = find.part, find.compared, find.encoder
    if not compared.prompts:
        return []
    at = compared.prompts[0]
    row = part.rows[at]
    difference = first_difference(row, part.samples(row["index"])[-1], encoder)
    fix = "another tokenizer.chat_template"
    if encoder.loss.boundary == "joint":
        fix = "`loss.boundary=split`"
    elif encoder.loss.type == "response_template":
        fix = (
            "a loss.response_template of text that ends where the prompt does, or "
            "`loss=completion_only`"
        )
    found = (
        f"{len(compared.prompts)} of {compared.rows} rows that were compared do not go on from "
        f"the prompt of generation: {difference}"
    )
    return [
        _of_row(part, at, encoder, found, "the ids of the prompt, and then what is trained", fix)
    ]


def _rows_in_two_splits(find: Findings) -> list[Problem]:
    found = "the same row as {other}: {count} of {split} were seen in another split"
    allowed = "no row in two splits; the loss on it would measure memory"
    fix = "remove the duplicates from the data set, or `preflight.duplicates=warn`"
    duplicates = find.duplicates
    return _shared(find, duplicates.rows, duplicates.first_row, found, allowed, fix)


def _shared(
    find: Findings, hits: np.ndarray, first: np.ndarray, found: str, allowed: str, fix: str
) -> list[Problem]:
    """A problem for each split with hits; `first` is the earlier row of each."""
    duplicates, problems = find.duplicates, []
    for number, split in enumerate(find.parts):
        here = (hits & (duplicates.split == number)).nonzero()[0]
        if len(here):
            part, position = duplicates.place(here[0])
            other, earlier = duplicates.place(first[here[0]])
            count = f"{len(here)} row{'s' * (len(here) > 1)}"
            text = found.format(other=other.where(earlier), count=count, split=split)
            problems.append(_of_row(part, position, find.encoder, text, allowed, fix))
    return problems


def _hits(find: PartFindings, hits: np.ndarray, what: str, allowed: str, fix: str) -> list[Problem]:
    """The problem of the rows that `hits` marks, shown by the first of them."""
    if not len(find.part.rows) or not hits.any():
        return []
    found = f"{hits.sum()} of {len(find.part.rows)} rows {what}"
    return [_of_row(find.part, int(hits.nonzero()[0][0]), find.encoder, found, allowed, fix)]


def _of_row(
    part: Part, position: int, encoder: Encoder, found: str, allowed: str, fix: str
) -> Problem:
    """A problem of a finished row, with a line that shows it."""
    shown = excerpt(part.rows[position], encoder.tokenizer)
    return Problem(part.where(position), f"{found}\n    {shown}", allowed=allowed, fix=fix)


def _moved_space(cfg: TrainConfig) -> str:
    """The patterns without the space at the end of the prompt, to type."""
    form, response = cfg.format, cfg.loss.response_template
    if cfg.loss.type == "response_template" and isinstance(response, str):
        return pattern_override("loss.response_template", response.rstrip(" "))
    if form.type == "template" and form.prompt and form.completion and form.prompt.endswith(" "):
        prompt = pattern_override("format.prompt", form.prompt.rstrip(" "))
        return (
            f"{prompt} {pattern_override('format.completion', ' ' + form.completion.lstrip(' '))}"
        )
    return "move the space from the end of the prompt to the front of the completion"


def pattern_override(key: str, text: str) -> str:
    """The override that gives a key this text, in backticks where it can be typed as it is."""
    if "\\" in text or not text.isprintable():
        return f"{key}={text!r}"
    quoted = text.replace("'", r"\'")
    return override(key, f"'{quoted}'")


# --- the checks -----------------------------------------------------------------------------------

PartCheck = Callable[[PartFindings], list[Problem]]
RunCheck = Callable[[Findings], list[Problem]]

PART_ERRORS: tuple[PartCheck, ...] = (
    rows_over_length,
    too_many_dropped,
    too_many_too_long,
    no_rows,
    nothing_masked,
    two_bos,
    unlike_generation,
    not_read_back,
    unread_values_are_errors,
)
RUN_ERRORS: tuple[RunCheck, ...] = (
    rows_in_two_splits,
    lost_characters_of_prompts,
    no_validation,
    less_than_one_window,
    counts_beyond_sources,
)
PART_WARNINGS: tuple[PartCheck, ...] = (
    rows_without_end,
    rows_with_unk,
    rows_with_pad,
    unlike_generation_by_choice,
    unread_values_are_warnings,
    default_system_texts,
    doubled_blocks,
    templates_out_of_turn,
)
RUN_WARNINGS: tuple[RunCheck, ...] = (
    rows_in_two_splits_by_choice,
    lone_spaces,
    prompts_in_two_splits,
    split_turn_tokens,
)
