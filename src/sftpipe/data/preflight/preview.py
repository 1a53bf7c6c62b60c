"""Finished rows as a person can check them: their text, and which part of it is trained.

T is the number of tokens of a row. A packed row has `seq_lengths`, the tokens of each sequence in
it (their sum is T). Positions restart with each sequence, and its first token is masked in the
batch, because the token before it is part of another sequence; rows are shown so here. A row
without `seq_lengths` is one sequence.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from sftpipe.data.labels import IGNORED
from sftpipe.data.packing import sequence_lengths
from sftpipe.errors import Problem, RunError
from sftpipe.storage import write_text
from sftpipe.tokenizer.special_tokens import SpecialTokens

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

TRAINED, MASKED, BOUNDARY = "bold green", "dim", "cyan"

# the reasons why a token is trained or masked; the page refers to them by number
REASONS = (
    "trained",
    "prompt: before what is trained",
    "between two answers: the next prompt",
    "after the end of the answer",
    "first token of a packed sequence",
    "nothing is trained in this sequence",
)
_TRAINED, _PROMPT, _BETWEEN, _AFTER, _FIRST, _NOTHING = range(len(REASONS))

# tokens that are decoded together; a character has at most four bytes, but a byte-level token may
# end one character and begin the next
_LOOKAHEAD = 16
_SHOWN = 60  # characters that an excerpt shows at each end
_SIGNS = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥"}
# Unicode categories without a glyph of their own
_UNSEEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}
_JOINERS = "\u200c\u200d"  # unseen too, but inside a token they shape the characters around them


def preview_rows(
    rows: Dataset, tokenizer: PreTrainedTokenizerFast, count: int
) -> Iterator[dict[str, Any]]:
    """The first `count` rows as plain values.

    Yields:
        {index, text, input_ids, labels, position_ids}; the lists are (T,).
    """
    for index, row in enumerate(_first(rows, count)):
        yield {
            "index": index,
            "text": tokenizer.decode(row["input_ids"]),
            "input_ids": row["input_ids"],
            "labels": [label for sequence in sequences(row) for label in sequence["labels"]],
            "position_ids": [at for length in sequence_lengths(row) for at in range(length)],
        }


def _first(rows: Dataset, count: int) -> Dataset:
    return rows.select(range(min(count, len(rows))))


def sequences(row: Mapping[str, Any]) -> list[dict[str, list[int]]]:
    """The sequences of a row, each {input_ids, labels} as in the batch."""
    ends = list(itertools.accumulate(sequence_lengths(row), initial=0))
    found = [
        {name: list(row[name][start:stop]) for name in ("input_ids", "labels")}
        for start, stop in itertools.pairwise(ends)
    ]
    if row.get("seq_lengths"):
        for sequence in found:
            sequence["labels"][:1] = [IGNORED] * len(sequence["labels"][:1])
    return found


def spans(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, bool]]:
    """The text of a row, split where training begins and ends: [(text, trained), ...]."""
    tokens = zip(row["input_ids"], (label != IGNORED for label in row["labels"]), strict=True)
    parts: list[tuple[str, bool]] = []
    for trained, group in itertools.groupby(tokens, key=lambda pair: pair[1]):
        # SentencePiece drops a space at the start of what it decodes; a later part needs it
        front = [tokenizer.eos_token_id] if parts else []
        text = str(tokenizer.decode([*front, *(token for token, _ in group)]))
        parts.append((text.removeprefix(str(tokenizer.decode(front))), trained))
    return parts


def excerpt(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> str:
    """The beginning and the end of a row on one line, trained text in ⟦ ⟧."""
    text = ""
    for piece, trained in spans(row, tokenizer):
        piece = piece.replace("\n", "\\n")
        text += f"⟦{piece}⟧" if trained else piece
    return text if len(text) <= 2 * _SHOWN + 3 else f"{text[:_SHOWN]} … {text[-_SHOWN:]}"


# --- the terminal ---------------------------------------------------------------------------------


def colored(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> Text:
    """A row for the terminal: trained text green and bold, masked text dim.

    Special tokens are shown as they are written. There is a line before each sequence of a packed
    row. Control characters, which a terminal would obey, are written as [U+001B].
    """
    text = Text()
    packed = sequences(row)
    for number, sequence in enumerate(packed, 1):
        if len(packed) > 1:
            line_break = "\n" if text and not text.plain.endswith("\n") else ""
            text.append(
                f"{line_break}┄┄ sequence {number} of {len(packed)}, "
                f"{len(sequence['input_ids'])} tokens ┄┄\n",
                style=BOUNDARY,
            )
        for part, trained in spans(sequence, tokenizer):
            safe = "".join(
                character if character in " \n\t" or character in _JOINERS else _sign(character)
                for character in part
            )
            text.append(safe, style=TRAINED if trained else MASKED)
    return text


def _sign(character: str) -> str:
    """The character, or a sign for it where it cannot be seen."""
    code = f"[U+{ord(character):04X}]" if unicodedata.category(character) in _UNSEEN else character
    return _SIGNS.get(character, code)


# --- the page -------------------------------------------------------------------------------------


def write_page(
    folder: Path,
    splits: Mapping[str, Dataset],
    tokenizer: PreTrainedTokenizerFast,
    count: int,
    title: str,
) -> Path:
    """Write the first `count` rows of each split as `preview.html`.

    It is one file that needs no other and loads nothing.

    Raises:
        RunError: the folder cannot be written.
    """
    special = set(tokenizer.convert_tokens_to_ids(SpecialTokens.of(tokenizer).special))
    named = [
        {
            "name": split,
            "total": len(rows),
            "rows": [
                {"name": f"{split}[{index}]", **page_row(row, tokenizer, special)}
                for index, row in enumerate(_first(rows, count))
            ],
        }
        for split, rows in splits.items()
    ]
    data = json.dumps(
        {"title": title, "reasons": REASONS, "splits": named}, separators=(",", ":")
    )  # pure ASCII, U+2028 too
    for character in "<>&":  # nothing in a row may end the script element that holds it
        data = data.replace(character, f"\\u{ord(character):04x}")
    file = folder / "preview.html"
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, template.replace("__ROWS__", data))
    except OSError as error:
        raise RunError(
            Problem(
                "output_dir",
                f"{file} cannot be written ({error.strerror})",
                fix="output_dir=FOLDER",
            )
        ) from error
    return file


def page_row(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, special: Container[int] = ()
) -> dict[str, Any]:
    """A row as the page shows it.

    Args:
        row: a finished row.
        tokenizer: its tokenizer.
        special: ids of special tokens.

    Returns:
        lengths: tokens of each sequence; all other lists are (T,).
        ids: as in the row.
        tokens: as the vocabulary writes them.
        texts: as they are shown; None for the rest of a character that an earlier token began.
        why: numbers in `REASONS`.
        special: 1 for a special token, else 0.
    """
    ids = list(row["input_ids"])
    tokens = [token if token is not None else "" for token in tokenizer.convert_ids_to_tokens(ids)]
    texts, why = [], []
    for sequence in sequences(row):
        texts += pieces(sequence["input_ids"], tokenizer)
        why += reasons(sequence["labels"], packed=bool(row.get("seq_lengths")))
    return {
        "lengths": sequence_lengths(row),
        "ids": ids,
        "tokens": [visible(token) for token in tokens],
        "texts": [
            None if text is None else visible(text or token)
            for text, token in zip(texts, tokens, strict=True)
        ],
        "why": why,
        "special": [int(number in special) for number in ids],
    }


def reasons(labels: Sequence[int], *, packed: bool) -> list[int]:
    """The reason why each token of one sequence is trained or masked: numbers in `REASONS`, (T,).

        labels      -100    -100    7       -100     9       -100
        reason      prompt  prompt  trained between  trained after

    Packing masks a first token; it is `_FIRST` where the token after it is trained.
    """
    trained = [index for index, label in enumerate(labels) if label != IGNORED]
    if not trained:
        return [_NOTHING] * len(labels)
    first, last = trained[0], trained[-1]
    found = [
        _TRAINED
        if label != IGNORED
        else _PROMPT
        if index < first
        else _AFTER
        if index > last
        else _BETWEEN
        for index, label in enumerate(labels)
    ]
    if packed and first == 1:
        found[0] = _FIRST
    return found


def pieces(ids: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> list[str | None]:
    """The text of each token, (T,).

    A character of several tokens is whole at the first, and None at the others.

        bytes   61    E2    82    AC    62
        text    a     €     None  None  b

    Bytes that make no character are U+FFFD. A token is decoded together with the one before it,
    because SentencePiece drops the space of a first token.
    """

    def decode(start: int, stop: int) -> str:
        return str(tokenizer.decode(ids[start:stop], clean_up_tokenization_spaces=False))

    texts: list[str | None] = []
    before = 0
    while (at := len(texts)) < len(ids):
        known = len(decode(before, at)) if before < at else 0
        tries = (
            (stop, decode(before, stop)[known:])
            for stop in range(at + 1, min(at + _LOOKAHEAD, len(ids)) + 1)
        )
        stop, text = next(
            ((stop, text) for stop, text in tries if "\ufffd" not in text), (at + 1, "\ufffd")
        )
        texts += [text, *[None] * (stop - at - 1)]
        before = at
    return texts


def visible(text: str) -> str:
    """A token with a sign for each character that cannot be seen.

    · for a space, ↵ for a newline, [U+2028], ◌ before a combining character.
    """
    shown = "".join(
        character if character in _JOINERS and len(text) > 1 else _sign(character)
        for character in text
    )
    return f"◌{shown}" if shown and unicodedata.category(shown[0]).startswith("M") else shown
