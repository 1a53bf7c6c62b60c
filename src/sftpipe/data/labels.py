"""Labels from spans, and spans from templates in a text. Pure Python."""

from __future__ import annotations

from collections.abc import Sequence

IGNORED = (
    -100
)  # the label that cross entropy leaves out (torch.nn.CrossEntropyLoss, transformers, TRL)

OUT_OF_TURN = "templates out of turn"  # remark on a row

Span = tuple[int, int]  # [start, stop)


def labels_from_spans(input_ids: Sequence[int], spans: Sequence[Span]) -> list[int]:
    """Labels of one row: its ids inside the spans, `IGNORED` elsewhere; not shifted.

        input_ids   5   6   7   8   9
        spans       [1, 3)  [4, 5)
        labels   -100   6   7 -100   9

    Args:
        input_ids: (T,) token ids.
        spans: positions that are trained.
    """
    labels = [IGNORED] * len(input_ids)
    for start, stop in spans:
        labels[start:stop] = input_ids[start:stop]
    return labels


def response_spans(
    text: Sequence[object], response: Sequence[object], instruction: Sequence[object] | None
) -> list[Span]:
    """What follows the response template, in a text or in a list of ids.

    Without an instruction template only the last response, to the end of the text; with one, every
    response, each up to the next instruction template, white space included (TRL's
    DataCollatorForCompletionOnlyLM).

    response <|assistant|>, instruction <|user|>:

        <|user|>a<|assistant|>b<|user|>c<|assistant|>d
                              b                      d      both templates
                                                     d      the response template alone
    """
    begins = [at + len(response) for at in _occurrences(text, response)]
    if instruction is None:
        return [(begins[-1], len(text))] if begins else []
    ends = _occurrences(text, instruction)
    spans: list[Span] = []
    for start in begins:
        if not spans or start >= spans[-1][1]:
            spans.append((start, next((end for end in ends if end >= start), len(text))))
    return spans


def _occurrences(text: Sequence[object], part: Sequence[object]) -> list[int]:
    """Where `part` begins in `text`, without overlaps."""
    found, at = [], 0
    if isinstance(text, str) and isinstance(part, str):
        while (at := text.find(part, at)) >= 0:
            found.append(at)
            at += len(part)
        return found
    part = list(part)
    while at + len(part) <= len(text):
        if list(text[at : at + len(part)]) == part:
            found.append(at)
            at += len(part)
        else:
            at += 1
    return found
