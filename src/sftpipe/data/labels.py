"""Labels from spans, and spans from templates in a text. Pure Python."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def turns_of(roles: Iterable[str]) -> str:
    """The turns of a conversation that have a template: Q for a user's, A for an assistant's."""
    return "".join({"user": "Q", "assistant": "A"}.get(role, "") for role in roles)


def out_of_turn(
    text: Sequence[object],
    response: Sequence[object],
    instruction: Sequence[object] | None,
    *,
    turns: str | None = None,
    prompt: int | None = None,
) -> str:
    """What is wrong with the order of the templates, in a few words; "" where nothing is.

    A template that stands in the words of a user or in an answer begins or ends an answer where
    none is. It is noticed by the order: a text is QAQA...QA, Q for the instruction template and A
    for the response template; without an instruction template it has one A.

        ### Human: what does ### Assistant: mean?### Assistant: my turn       QAA

    Args:
        text: a text, or ids.
        response: the response template, as text or as ids.
        instruction: the instruction template, if there is one.
        turns: of a conversation, as `turns_of` gives them: where its templates have to be.
        prompt: length of the prompt of a prompt and its completion, which holds no template but
            one that the prompt lacks.
    """
    questions, answers = _places(text, response, instruction)
    order = "".join("QA"[at in answers] for at in sorted((*questions, *answers)))
    if instruction is None:
        turns = "A" if turns is None else turns.replace("Q", "")
    elif turns is None:
        turns = "QA" * max(1, min(len(questions), len(answers)))
    for letter, name in (("A", "response"), ("Q", "instruction")):
        if order.count(letter) != turns.count(letter):
            much = "many" if order.count(letter) > turns.count(letter) else "few"
            return f"too {much} {name} templates"
    if order != turns:
        return "templates in another order than the turns"
    if instruction is not None and "AA" in order:
        return "no instruction template between two answers"
    if prompt is not None:
        first = prompt if answers[0] < prompt else answers[0] + 1
        if max((*questions, *answers)) >= first:
            return "a template in the completion"
    return ""


def _places(
    text: Sequence[object], response: Sequence[object], instruction: Sequence[object] | None
) -> tuple[list[int], list[int]]:
    """Where the instruction template and the response template begin."""
    answers = _occurrences(text, response)
    if instruction is None:
        return [], answers
    found = _occurrences(text, instruction)
    # an instruction template may be the beginning of the response template
    inside = {at for start in answers for at in range(start, start + len(response))}
    return [at for at in found if at not in inside], answers


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
