"""The figures of a run that matter, and its answers before and after, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from sftpipe.errors import one_line

BOILERPLATE = 4  # words; a longer beginning that all prompts share comes from their format
SHOWN = 200  # characters of a prompt or an answer in a table


def metric_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures that matter, as (name, text)."""
    train, rows = metrics["train"], []
    for name, part in validation_parts(metrics.get("validation", {})).items():
        if "before" in part and "after" in part:
            before, after = part["before"], part["after"]
            rows.append((f"{name} loss", f"{before['loss']:.3f} -> {after['loss']:.3f}"))
            perplexity = f"{before['perplexity']:.2f} -> {after['perplexity']:.2f}"
            rows.append((f"{name} perplexity", perplexity))
    if "test" in metrics:
        rows.append(("test loss", f"{metrics['test']['loss']:.3f}"))
    rows.append(("training loss", f"{train['loss']:.3f} over {train['steps']} steps"))
    rows.append(
        ("training time", f"{train['runtime_s']:.0f} s, {train['tokens_per_s']:.0f} tokens/s")
    )
    rows.append(("peak memory", f"{train['peak_memory_bytes'] / 2**30:.1f} GiB"))
    return rows


def validation_parts(validation: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """{`validation`, or `validation NAME`: {phase: numbers}} of the part of metrics.json."""
    if any("loss" in part for part in validation.values()):  # the phases of the only set
        return {"validation": validation}
    return {f"validation {name}": part for name, part in validation.items()}


def answers_side_by_side(samples: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(prompt as people see it, answer before, answer after) of the rows of samples.jsonl.

    A resumed run may ask other prompts than it began with; what was not asked is a dash.
    """
    before, after = (
        [(row["prompt"], row["completion"]) for row in samples if row["phase"] == phase]
        for phase in ("before", "after")
    )
    if [prompt for prompt, _ in before] != [prompt for prompt, _ in after]:
        asked = dict.fromkeys(prompt for prompt, _ in (*before, *after))
        before, after = (
            [(prompt, dict(rows).get(prompt, "-")) for prompt in asked] for rows in (before, after)
        )
    prompts = short_prompts([prompt for prompt, _ in before])
    return [(prompt, b, a) for prompt, (_, b), (_, a) in zip(prompts, before, after, strict=True)]


def short_prompts(prompts: Sequence[str]) -> list[str]:
    """Prompts on one line each, for people.

    Without the words that all of them begin with; of long ones the end.
    """
    lines = [text.split() for text in prompts]
    shared = _shared_words(lines)
    if shared <= BOILERPLATE or any(len(line) == shared for line in lines):
        return [_end(" ".join(line)) for line in lines]
    return [_end("... " + " ".join(line[shared:])) for line in lines]


def _shared_words(lines: Sequence[Sequence[str]]) -> int:
    """Number of words that all lines begin with; 0 for a single line."""
    if len(lines) < 2:
        return 0
    columns = zip(*lines, strict=False)
    return len(list(takewhile(lambda words: len(set(words)) == 1, columns)))


def answer_lines(phase: str, samples: Sequence[Mapping[str, Any]]) -> str:
    """The first of the answers after an epoch or a step (`epoch 3`), below its prompt."""
    asked = short_prompts([row["prompt"] for row in samples])[0]
    return f"{phase}   {asked}\n     ->   {one_line(samples[0]['completion'])}"


def _end(line: str) -> str:
    """The end of a line of more than `SHOWN` characters: an answer follows it."""
    if len(line) <= SHOWN:
        return line
    end = line[-SHOWN + 4 :]
    return "... " + end[end.find(" ") + 1 :]
