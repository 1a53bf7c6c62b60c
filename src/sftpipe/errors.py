"""Everything that sftpipe raises on purpose.

    SftpipeError                a mistake that the user can fix; no traceback, exit code 2
    ├── ConfigError             a key, a value or a combination of keys; all problems together
    ├── DataError               a data set, a column or a row
    │   └── RowError            one row that teaches nothing; dropped and counted up to a limit
    ├── ModelError              base weights, a tokenizer or a chat template
    ├── RunError                a run folder or a checkpoint
    ├── ExportError             a form that is not known, or a proof that failed
    ├── TrainingError           a loss that is no number
    ├── SweepError              jobs of a sweep failed, the others are done; exit code 1
    ├── RankError               one of several processes of a run ended, and the others with it
    ├── StorageError            a file that cannot be written: no room, no permission
    └── Interrupted             SIGINT or SIGTERM, after a checkpoint; exit code 130 or 143

Anything else that escapes is a bug and keeps its traceback (exit code 1).
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One mistake, in the four parts that a user needs to fix it.

    where: a config key, `split[row]`, a file or a folder.
    found: what is there.
    allowed: what may be there ("" where nothing needs saying).
    fix: what to do next ("" where `allowed` says it). What can be typed as it is, an override or a
        command, is in backticks: "`lora=default`, or `quantization=none`". People see it without
        the backticks; programs ask `commands`.
    """

    where: str
    found: str
    _: KW_ONLY
    allowed: str = ""
    fix: str = ""

    @property
    def commands(self) -> tuple[str, ...]:
        """The overrides and commands of `fix`, each of which can be typed as it is."""
        return tuple(_TYPED.findall(self.fix))

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.found}"]
        if self.allowed:
            lines.append(f"    allowed: {self.allowed}")
        if self.fix:
            lines.append(f"    {_TYPED.sub(_bare, self.fix)}")
        return "\n".join(lines)


_TYPED = re.compile(r"`([^`]+)`")


def _bare(match: re.Match[str]) -> str:
    return match[1]


class SftpipeError(Exception):
    """Root of the tree. Holds one or more `Problem`s; `str()` prints them all.

    words: overrides with which the same command would go on, where they are known.
    """

    exit_code = 2
    words: tuple[str, ...] = ()

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class ConfigError(SftpipeError):
    """A key is unknown or misplaced, a value is not allowed, or two choices do not go together."""


class DataError(SftpipeError):
    """A data set cannot be read, lacks a column, or holds a row that cannot be trained on."""


class RowError(DataError):
    """One row cannot be trained on; rows are counted by `reason`, a short phrase."""

    def __init__(self, reason: str, problem: Problem) -> None:
        super().__init__(problem)
        self.reason = reason
        self.problem = problem

    def __reduce__(self) -> tuple[type[RowError], tuple[str, Problem]]:
        return RowError, (self.reason, self.problem)


class ModelError(SftpipeError):
    """Weights, tokenizer or chat template are not available or do not fit the run."""


class RunError(SftpipeError):
    """A run folder or checkpoint is finished, damaged, missing or of another run."""


class TrainingError(SftpipeError):
    """A training cannot go on: its loss or its weights are no numbers."""


class SweepError(SftpipeError):
    """Some jobs of a sweep failed; the others are done, and ranked."""

    exit_code = 1


class RankError(SftpipeError):
    """A process of several that train one run has ended, and the others with it.

    exit_code: as that process gave it; 1 of one that was killed, or has a bug.
    """

    def __init__(self, exit_code: int, *problems: Problem) -> None:
        super().__init__(*problems)
        self.exit_code = exit_code


class StorageError(SftpipeError):
    """A file or folder cannot be written: the disk is full or read-only, or the folder is gone."""


class ExportError(SftpipeError):
    """A run cannot leave as it was asked to: its form is not known, or a proof failed."""


class Interrupted(SftpipeError):
    """The run was stopped and has written a checkpoint; `exit_code` is 128 + the signal."""

    def __init__(self, signum: int, problem: Problem) -> None:
        super().__init__(problem)
        self.exit_code = 128 + signum


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option that `name` most likely was meant to be, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return matches[0] if matches else None


def one_line(text: object) -> str:
    """A text, or what another library's exception says, without line breaks."""
    return " ".join(str(text).split())


def show_value(value: Any) -> str:
    """A value of YAML with its type."""
    if isinstance(value, bool):
        return (
            f"{str(value).lower()} (YAML reads yes, no, on and off without quotes as true or false)"
        )
    return f"{value!r} ({type(value).__name__})"


def override(key: str, value: str) -> str:
    """What to type to give a key a value, for `Problem.fix`.

    Args:
        key: a key of the config; `dataset.sources[0].name` is part of a list, which no override
            reaches.
        value: in Hydra's syntax: `1024`, `[a, b]`, `'two words'`.
    """
    word = f"{key}={value}"
    if "[" in key:
        parent, _, name = key.rpartition(".")
        return f"write {name}: {value} into {parent}"
    if "`" in word:
        return word
    if re.fullmatch(r"[\w.,:/=@%+-]*", word):
        return f"`{word}`"
    return f"`{shlex.quote(word)}`" if set(word) & set('"$\\!') else f'`"{word}"`'


def override_text(key: str, text: str) -> str:
    """As `override`, for a text of the user's, such as a file or a column, in quotes if need be."""
    if _PLAIN_TEXT.fullmatch(text):
        return f"`{key}={text}`"
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    typed = f"{key}='{escaped}'"
    return typed if "`" in typed else f"`{shlex.quote(typed)}`"


_PLAIN_TEXT = re.compile(
    r"[A-Za-z_./][\w./@:+-]*", re.ASCII
)  # neither Hydra nor a shell needs quotes


def in_hydra(value: Any) -> str:
    """A plain value or a list of them in Hydra's syntax, for `override`; "" for a mapping."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    if isinstance(value, str):
        return f"'{value}'"
    return str(value) if isinstance(value, int | float) else ""


def in_shell(word: str) -> str:
    """An override as a shell takes it: in quotes where it needs them."""
    key, equals, value = word.partition("=")
    if not equals or "`" in word or "[" in key:
        return shlex.quote(word)
    return override(key, value).strip("`")


def wrong_choice(key: str, value: Any, choices: Sequence[str], where: str) -> Problem:
    """The problem of a value of `key` that is none of the choices."""
    match = nearest(str(value), choices)
    found = show_value(value) if isinstance(value, bool) else repr(value)
    fix = override(key, match) if match else ""
    return Problem(where, found, allowed=", ".join(choices), fix=fix)
