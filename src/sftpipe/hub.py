"""Ask the Hugging Face hub one question, quickly: which commit does a name stand for now?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from sftpipe.errors import Problem, one_line

TIMEOUT_S = 10


class HubUnreachable(Exception):
    """No network, or told to stay offline. Caught by `weights.py` and `data/source.py`, which know what else can be done."""


class NotOnHub(Exception):
    """The hub answered, and the name, revision or permission is wrong; holds the `Problem`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


def latest_commit(kind: Literal["model", "dataset"], name: str, revision: str | None) -> str:
    """The commit hash of a model or data set.

    Raises:
        HubUnreachable: the hub gave no answer.
        NotOnHub: it did, and has no such thing for us.
    """
    from huggingface_hub import HfApi, is_offline_mode
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if is_offline_mode():
        raise HubUnreachable("HF_HUB_OFFLINE is set")
    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    key = "model.name_or_path" if kind == "model" else "dataset.path"
    try:
        return str(ask(name, revision=revision, timeout=TIMEOUT_S).sha)
    except RevisionNotFoundError:
        where = "model.revision" if kind == "model" else "dataset.revision"
        raise NotOnHub(
            Problem(
                where, f"{name} has no revision {revision!r}", fix="leave it out for the newest"
            )
        ) from None
    except GatedRepoError:
        raise NotOnHub(
            Problem(
                key,
                f"{name} wants its licence accepted on the hub",
                fix="accept it there, then `hf auth login`",
            )
        ) from None
    except RepositoryNotFoundError:
        raise NotOnHub(
            Problem(
                key,
                f"the hub has no {kind} {name!r} (or it is private)",
                fix="check the name, or `hf auth login`",
            )
        ) from None
    except ValueError as error:  # not of the form user/name
        raise NotOnHub(
            Problem(key, f"{name!r}: {error}", allowed="a folder or user/name on the hub")
        ) from None
    except (
        Exception
    ) as error:  # every way in which a network can fail; the client has no common base for them
        raise HubUnreachable(f"{type(error).__name__}: {one_line(error)[:120]}") from None


@contextmanager
def offline() -> Iterator[None]:
    """Keep the libraries from retrying for half a minute when it is known that the hub does not answer."""
    import datasets.config
    import huggingface_hub.constants

    before = (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before
