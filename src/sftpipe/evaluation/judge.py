"""An LLM as judge: what it is asked, what its replies say, and what they come to.

Pure: no network, no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from sftpipe.config.schema import JudgeConfig
from sftpipe.data.samples import Prompt
from sftpipe.errors import ConfigError, Problem
from sftpipe.evaluation.compare import mean_interval

Verdict = Literal["A", "B", "TIE"]  # of the judge: which of two answers is better
Winner = Literal["run", "other", "tie"]  # the same, whichever answer was shown first

FIELDS = {
    "score": ("input", "reference", "answer"),
    "pairwise": ("input", "reference", "answer_a", "answer_b"),
}

PROMPTS = {
    ("score", "en"): """\
Rate a model's response to an input. Compare it with the correct output: 100 means that it is \
just as right and as helpful, 0 that it is wrong or does not do what the input asks for.

### Input
{input}

### Correct output
{reference}

### Model response
{answer}

Reply with one whole number from 0 to 100 and with nothing else.""",
    ("score", "ko"): """\
입력에 대한 모델의 응답을 평가하세요. 정답과 비교하여, 정답만큼 정확하고 도움이 되면 100점, \
틀렸거나 입력이 요구한 일을 하지 않았으면 0점입니다.

### 입력
{input}

### 정답
{reference}

### 모델 응답
{answer}

0부터 100까지의 정수 하나만 답하고 다른 말은 쓰지 마세요.""",
    ("pairwise", "en"): """\
Two models, A and B, responded to the same input. Compare both responses with the correct output \
and decide which one is more right and more helpful. Neither their order nor their length counts.

### Input
{input}

### Correct output
{reference}

### Response A
{answer_a}

### Response B
{answer_b}

Reply with A, with B, or with TIE if neither is better, and with nothing else.""",
    ("pairwise", "ko"): """\
두 모델 A와 B가 같은 입력에 응답했습니다. 두 응답을 정답과 비교하여 어느 쪽이 더 정확하고 도움이 \
되는지 판단하세요. 순서와 길이는 고려하지 마세요.

### 입력
{input}

### 정답
{reference}

### 응답 A
{answer_a}

### 응답 B
{answer_b}

A 또는 B, 우열이 없으면 TIE만 답하고 다른 말은 쓰지 마세요.""",
}
REMINDERS = {
    ("score", "en"): "Reply with one whole number from 0 to 100 only, such as: 85",
    ("score", "ko"): "0부터 100까지의 정수 하나만 답하세요. 예: 85",
    ("pairwise", "en"): "Reply with one word only: A, B or TIE",
    ("pairwise", "ko"): "A, B, TIE 중 하나만 답하세요.",
}


# --- what is asked --------------------------------------------------------------------------------


def template_of(cfg: JudgeConfig) -> str:
    """The prompt with its fields: `judge.prompt`, or ours for the mode and language.

    Raises:
        ConfigError: `judge.prompt` lacks a field of the mode.
    """
    if cfg.prompt is None:
        return PROMPTS[cfg.mode, cfg.language]
    needed = [f"{{{name}}}" for name in FIELDS[cfg.mode]]
    if missing := [field for field in needed if field not in cfg.prompt]:
        found = f"it lacks {', '.join(missing)}: the judge would not see that"
        allowed = f"a text with {', '.join(needed)} (judge.mode={cfg.mode})"
        fix = "add what is missing, or `judge.prompt=null` for the prompt of sftpipe"
        raise ConfigError(Problem("judge.prompt", found, allowed=allowed, fix=fix))
    return cfg.prompt


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with its fields filled; braces in the values, and other braces, stay."""
    names = "|".join(values)
    return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], template)


def shown_input(prompt: Prompt) -> str:
    """A prompt as the judge reads it: the user's words, or all turns where there are more."""
    if isinstance(prompt, str):
        return prompt
    turns = [(str(turn["role"]), str(turn.get("content") or "")) for turn in prompt.messages]
    if [role for role, _ in turns] == ["user"]:
        return turns[0][1]
    return "\n\n".join(f"{role}: {content}" for role, content in turns)


# --- what a reply says ----------------------------------------------------------------------------

_LONGEST = 4000  # characters of a reply; who was asked for one word and writes more gave none
_NUMBER = r"[-+−]?\.?\d+(?:[.,]\d+)*"
_WHOLE = r"\s*(?:/|out\s+of)\s*100(?![.,]?\d)"
_DECORATION = r"[\s*_`\"'()\[\].]*"
_SCORE_LABEL = r"(?:score|rating|점수)(?:\s+is|\s+of|는)?[\s:=*_]*"
_MARKED_SCORE = re.compile(
    rf"^{_DECORATION}({_NUMBER})(?:{_WHOLE}|\s*점)?{_DECORATION}$"  # a line of its own
    rf"|{_SCORE_LABEL}({_NUMBER})"
    rf"|({_NUMBER}){_WHOLE}",
    re.IGNORECASE | re.MULTILINE,
)
_VERDICT_LABEL = r"(?:verdict|answer|response|winner|판정|응답|답)(?:\s+is|은|는)?[\s:=]*"
_MARKED_VERDICT = re.compile(
    rf"(?:^|{_VERDICT_LABEL}){_DECORATION}(A|B|TIE){_DECORATION}$", re.IGNORECASE | re.MULTILINE
)


def without_thinking(reply: str) -> str:
    """A reply without its `<think>` parts, those without a beginning or an end included."""
    text = re.sub(r"<think>.*?</think>", "", reply, flags=re.DOTALL)
    text = text.rpartition("</think>")[2]  # a chat template may have written the beginning
    return text.partition("<think>")[0].strip()


def _judgement(reply: str) -> str:
    """What is read of a reply; nothing of one that rambles on."""
    text = without_thinking(reply)
    return text if len(text) <= _LONGEST else ""


def read_score(reply: str) -> int | None:
    """The score of a reply, 0 to 100; None where it gives none, or not clearly one.

    It stands on a line of its own, after a label such as `Score:`, or before `/100`, and no other
    number is in the reply.
    """
    text = _judgement(reply)
    marked = [next(filter(None, match.groups())) for match in _MARKED_SCORE.finditer(text)]
    numbers = set(re.findall(_NUMBER, re.sub(rf"(?<=\d){_WHOLE}", "", text)))
    if not marked or len(numbers) != 1:
        return None
    (number,) = numbers
    good = number.isdecimal() and len(number) <= 3 and int(number) <= 100
    return int(number) if good else None


def read_verdict(reply: str) -> Verdict | None:
    """The verdict of a reply; None where it gives none, or several.

    It stands on a line of its own, or at the end of one after a label such as `Verdict:`.
    """
    found = {match[1].upper() for match in _MARKED_VERDICT.finditer(_judgement(reply))}
    verdicts: list[Verdict] = [one for one in ("A", "B", "TIE") if one in found]
    return verdicts[0] if len(verdicts) == 1 else None


# --- what the rows come to ------------------------------------------------------------------------


def score_summary(scores: Sequence[int | None], seed: int) -> dict[str, Any]:
    """Mean, median and 95 % interval of the mean, all 0 to 100, of the rows that have a score.

    Args:
        scores: of N rows; None: unscored, which counts as nothing, not as zero.
        seed: of the bootstrap.
    """
    given = [score for score in scores if score is not None]
    return {
        "mean": float(np.mean(given)) if given else None,
        "median": float(np.median(given)) if given else None,
        "interval": mean_interval(given, seed),
        "scored": len(given),
        "unscored": len(scores) - len(given),
    }


def winners(verdicts: Sequence[Verdict | None]) -> tuple[Winner | None, Winner | None]:
    """Who won in each order: the run is A in the first one and B in the second."""
    orders: tuple[dict[Verdict, Winner], ...] = (
        {"A": "run", "B": "other", "TIE": "tie"},
        {"A": "other", "B": "run", "TIE": "tie"},
    )
    first, second = verdicts
    return first and orders[0][first], second and orders[1][second]


def outcome(both: tuple[Winner | None, Winner | None]) -> Winner | None:
    """Who won a row; a tie where the orders disagree, None where one of them has no verdict."""
    first, second = both
    if first is None or second is None:
        return None
    return first if first == second else "tie"


def pair_summary(
    rows: Sequence[tuple[Winner | None, Winner | None]],
    lengths: Sequence[tuple[int, int]],
    seed: int,
) -> dict[str, Any]:
    """Counts and shares of the rows that have a verdict in both orders.

    Args:
        rows: who won each of N rows, in both orders.
        lengths: (characters of the run's answer, of the other's) of each row.
        seed: of the bootstrap.

    Returns:
        wins, ties, losses, scored, unscored: numbers of rows.
        win_rate: 0 to 1, ties count half; `interval`: its 95 % interval among rows.
        flip_rate: share of the rows whose two orders disagree.
        length_bias: of the decided rows with unequal lengths the share that the longer answer won.
    """
    results = [outcome(both) for both in rows]
    points = {"run": 1.0, "tie": 0.5, "other": 0.0}
    scored = [points[one] for one in results if one is not None]
    flips = [both[0] != both[1] for both in rows if outcome(both) is not None]
    longer_won = [
        (one == "run") == (own > other)
        for one, (own, other) in zip(results, lengths, strict=True)
        if one in ("run", "other") and own != other
    ]
    return {
        "wins": results.count("run"),
        "ties": results.count("tie"),
        "losses": results.count("other"),
        "win_rate": float(np.mean(scored)) if scored else None,
        "interval": mean_interval(scored, seed),
        "flip_rate": float(np.mean(flips)) if flips else None,
        "length_bias": float(np.mean(longer_won)) if longer_won else None,
        "scored": len(scored),
        "unscored": len(rows) - len(scored),
    }
