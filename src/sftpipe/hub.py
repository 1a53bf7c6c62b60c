"""Ask the Hugging Face hub one question, quickly: which commit does a name mean now?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from sftpipe.errors import DataError, ModelError, Problem, one_line

TIMEOUT_S = 10


class HubUnreachable(Exception):
    """The hub gave no answer, or must not be asked; callers know what else can be done."""


def latest_commit(kind: Literal["model", "dataset"], name: str, revision: str | None) -> str:
    """The commit hash of a model or data set.

    Raises:
        HubUnreachable: the hub gave no answer.
        ModelError: it did, and has no such model for us.
        DataError: the same of a data set.
    """
    from huggingface_hub import HfApi, is_offline_mode

    if is_offline_mode():
        raise HubUnreachable("HF_HUB_OFFLINE is set")
    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        return str(ask(name, revision=revision, timeout=TIMEOUT_S).sha)
    except Exception as error:  # the client's errors have no common base
        problem = _problem(error, kind, name, revision)
        if problem is None:
            reason = f"{type(error).__name__}: {one_line(error)[:120]}"
            raise HubUnreachable(reason) from None
        raise (ModelError if kind == "model" else DataError)(problem) from None


def _problem(error: Exception, kind: str, name: str, revision: str | None) -> Problem | None:
    """The mistake that the hub's answer shows; None if there was no answer."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    group, key = ("model", "name_or_path") if kind == "model" else ("dataset", "path")
    where = f"{group}.{key}"
    if isinstance(error, RevisionNotFoundError):
        found = f"{name} has no revision {revision!r}"
        return Problem(f"{group}.revision", found, fix="leave it out for the newest")
    if isinstance(error, GatedRepoError):  # a RepositoryNotFoundError, too
        found = f"{name} wants its licence accepted on the hub"
        return Problem(where, found, fix="accept it there, then `hf auth login`")
    if isinstance(error, RepositoryNotFoundError):
        found = f"the hub has no {kind} {name!r} (or it is private)"
        return Problem(where, found, fix="check the name, or `hf auth login`")
    if isinstance(error, ValueError):  # not of the form user/name
        allowed = "a folder or user/name on the hub"
        return Problem(where, f"{name!r}: {error}", allowed=allowed)
    return None


@contextmanager
def offline() -> Iterator[None]:
    """Keep the libraries from asking the hub, and so from retrying for half a minute."""
    import datasets.config
    import huggingface_hub.constants

    before = (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before
