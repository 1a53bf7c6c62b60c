"""The page of one run: report.html, a file that needs no other and loads nothing."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup

from sftpipe.environment import versions
from sftpipe.runs.report import sections
from sftpipe.runs.report.found import Found, State, find
from sftpipe.runs.report.story import commands, sentence
from sftpipe.storage import write_text
from sftpipe.terminal import printable

MOST_BYTES = 1_500_000  # of a page
_CUTS = (1500, 400, 100, 25)  # characters of a text that are shown, until the page is small enough
_HERE = Path(__file__).parent

T = TypeVar("T")

# {name: (the file that it is made of, what makes it)}
SECTIONS: dict[str, tuple[str, Callable[[Found], Any]]] = {
    "figures": ("metrics.json", sections.figures),
    "verdict": ("evaluation.json", sections.evaluation),
    "answers": ("samples.jsonl", sections.answers),
    "training": ("log.jsonl", sections.training),
    "judge": ("judge.json", sections.judge),
    "data": ("preflight.json", sections.data),
    "config": ("config.yaml", sections.config),
    "environment": ("manifest.json", sections.environment),
    "commands": ("the folder", commands),
}


class Guard:
    """Makes parts of a page, and says which cannot be made.

    Files may be of another version, or edited by hand: what they hold is not what is expected.

    missing: a sentence for each part that cannot be made, after those that were known before.
    """

    def __init__(self, missing: Iterable[str]) -> None:
        self.missing = list(missing)

    def __call__(self, source: str, make: Callable[[], T]) -> T | None:
        """What `make` makes of a file; None where it cannot."""
        try:
            return make()
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            self.missing.append(f"{source} holds something else than expected ({what})")
            return None


def write_page(
    folder: Path, state: State | None = None, refresh: int | None = None
) -> dict[str, Any]:
    """Write report.html into a run folder, finished or not.

    Args:
        folder: the run folder.
        state: as of `find`.
        refresh: seconds after which a browser loads the page anew.

    Returns:
        page: the file.
        run, state, sentence: its name, how far it is, and what happened.
        missing: what cannot be read or shown, a sentence each.

    Raises:
        RunError: it is no run folder.
        StorageError: the page cannot be written.
    """
    found = find(folder, state)
    guard = Guard(found.missing)
    shown = {
        name: guard(source, partial(section, found)) for name, (source, section) in SECTIONS.items()
    }
    told = guard("metrics.json", partial(sentence, found)) or f"A run that is {found.state}."
    page = render(
        "run.jinja",
        title=found.name,
        found=found,
        sentence=told,
        sections=shown,
        missing=guard.missing,
        refresh=refresh,
    )
    write_text(found.folder.report, page)
    return {
        "page": str(found.folder.report),
        "run": found.name,
        "state": found.state,
        "sentence": told,
        "missing": guard.missing,
    }


def render(template: str, **values: Any) -> str:
    """A page of this package, its texts cut until it is small enough."""
    values |= {
        "style": (_HERE / "page.css").read_text(encoding="utf-8"),
        "script": (_HERE / "page.js").read_text(encoding="utf-8"),
        "version": versions()["sftpipe"],
        "now": f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
    }
    for most in _CUTS:
        page = _environment(most).get_template(template).render(values)
        if len(page.encode()) <= MOST_BYTES:
            break
    return page


def _environment(most: int) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )

    def cut_to(value: object, limit: int = most) -> str:
        return cut(value, limit)

    def as_value(value: object) -> str:
        return cut(json.dumps(value, ensure_ascii=False), most)

    environment.filters |= {"cut": cut_to, "value": as_value, "json": as_json}
    return environment


def cut(value: object, most: int) -> str:
    """A text for people: of a long one the beginning, and what would steer a page as escapes."""
    text = "" if value is None else value if isinstance(value, str) else as_text(value)
    shown = printable(text[:most])
    left = len(text) - most
    return f"{shown} … {left:,} more characters" if left > 0 else shown


def as_text(value: object) -> str:
    """A number or a path as it is, lists and mappings as JSON."""
    return (
        json.dumps(value, ensure_ascii=False) if isinstance(value, list | Mapping) else str(value)
    )


def as_json(value: Any) -> Markup:
    """JSON inside a script element, which nothing in it may end."""
    text = json.dumps(value, separators=(",", ":"))  # pure ASCII
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
