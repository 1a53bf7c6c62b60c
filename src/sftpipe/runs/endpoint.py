"""The judge behind an OpenAI-compatible endpoint: one question, one reply.

The client's own retries would sleep on for up to two minutes after another thread has found that
the work must stop, so they are off, and the tries are made here.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import importlib.util
import json
import os
import shlex
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sftpipe.config.schema import JudgeConfig
from sftpipe.errors import ConfigError, ModelError, Problem, SftpipeError, one_line

BACKOFF_S = 0.5  # before the second try; doubled before each further one
LONGEST_WAIT_S = 120.0  # whatever a server asks for
_SHOWN = 200  # characters of what a server said
_OLLAMA_PORT = 11434

Message = Mapping[str, str]  # {role, content}


@dataclass(frozen=True)
class NoReply:
    """What came in place of a reply.

    problem: for the user.
    again: another try may help.
    fatal: it will be the same for every other question, now or after the last try.
    wait_s: seconds that the server asks to wait; None: it says nothing.
    """

    problem: Problem
    again: bool = False
    fatal: bool = False
    wait_s: float | None = None

    @property
    def reason(self) -> str:
        """On one line, for the record."""
        return self.problem.found


class Stopped(Exception):
    """Raised in threads that wait, after `Endpoint.stop`; it never reaches a user."""


class Endpoint:
    """A server and a model on it. Closed by a `with` block; threads may share it."""

    def __init__(self, cfg: JudgeConfig) -> None:
        """Make the client; nothing is sent yet.

        Raises:
            ConfigError: openai is not installed, the address is none, or the key is missing.
        """
        _check_address(cfg.base_url)
        self._key = _read_key(cfg)
        if importlib.util.find_spec("openai") is None:
            fix = "`pip install 'sftpipe[judge]'`"
            raise ConfigError(Problem("judge", "the package openai is not installed", fix=fix))
        from openai import OpenAI

        self._cfg = cfg
        self._client = OpenAI(
            base_url=cfg.base_url,
            api_key=self._key or "none",  # the client insists on one
            timeout=cfg.timeout_s,
            max_retries=0,
        )
        self._stopped = threading.Event()
        self._reached = False

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def stop(self) -> None:
        """Let threads that wait for their next try give up."""
        self._stopped.set()

    def ask(self, messages: Sequence[Message], seed: int | None) -> str | NoReply:
        """The reply to a conversation, or what came in its place after all tries.

        Args:
            messages: {role, content} each.
            seed: None: not sent.

        Raises:
            ConfigError: the server refuses the key.
            ModelError: it cannot be reached, does not have the model, or refuses any more work.
            Stopped: after `stop`.
        """
        for attempt in range(self._cfg.retries + 1):
            found = self._try(messages, seed)
            if isinstance(found, str):
                return found
            last = attempt == self._cfg.retries
            if found.fatal and (last or not found.again):
                raise _error(found.problem)
            if last or not found.again:
                return found
            wait_s = BACKOFF_S * 2**attempt if found.wait_s is None else found.wait_s
            if self._stopped.wait(min(wait_s, LONGEST_WAIT_S)):
                raise Stopped
        raise AssertionError("the last try returns or raises")

    def _try(self, messages: Sequence[Message], seed: int | None) -> str | NoReply:
        import openai

        cfg = self._cfg
        fields = {"temperature": cfg.temperature, "seed": seed, "max_tokens": cfg.max_tokens}
        body: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
        create = self._client.chat.completions.with_raw_response.create
        try:
            raw = create(model=cfg.model, messages=list(messages), **body)
            self._reached = True
            return self._reply(raw.content)
        except openai.APITimeoutError:
            return self._too_late()
        except openai.APIConnectionError as error:
            return self._not_connected(error)
        except openai.APIStatusError as error:
            self._reached = True
            return self._refused(error)

    def _reply(self, content: bytes) -> str | NoReply:
        """The text of a reply; bytes that are no UTF-8 are replaced."""
        try:
            text = json.loads(content.decode("utf-8", errors="replace"))
            text = text["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            text = content
        if text is None:  # some servers say so of an empty reply
            return ""
        if not isinstance(text, str):
            found = f"{self._cfg.base_url} sent no chat completion: {self._said(content)!r}"
            allowed = "an OpenAI-compatible address, which mostly ends with /v1"
            return NoReply(Problem("judge.base_url", found, allowed=allowed))
        # halves of surrogate pairs are valid in JSON and cannot be written to a file
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    # --- what came in place of a reply ------------------------------------------------------------

    def _too_late(self) -> NoReply:
        found = f"no reply of {self._cfg.base_url} within {self._cfg.timeout_s:g} s"
        fix = f"`judge.timeout_s={2 * self._cfg.timeout_s:g}`, or `judge.concurrency=1`"
        return NoReply(Problem("judge.timeout_s", found, fix=fix), again=True)

    def _not_connected(self, error: Exception) -> NoReply:
        cause, url = error.__cause__, self._cfg.base_url
        reason = self._said(str(cause or error).encode())
        # by name: which httpx raised it depends on the version of openai
        if type(cause).__name__ != "ConnectError":
            found = f"{url} closed the connection without a reply ({reason})"
            fix = "look into the log of the server"
            return NoReply(Problem("judge.base_url", found, fix=fix), again=True)
        found = f"{url} cannot be reached ({reason})"
        fix = "start the server, or judge.base_url=http://HOST:PORT/v1 of one that runs"
        if _is_ollama(url):
            fix = "`ollama serve` starts it"
        problem = Problem("judge.base_url", found, fix=fix)
        return NoReply(problem, again=self._reached, fatal=True)  # it may start anew, not start

    def _refused(self, error: Any) -> NoReply:
        status, cfg = int(error.status_code), self._cfg
        said = self._said(error.response.content)
        found = f"{cfg.base_url} says {status}: {said}" if said else f"{cfg.base_url} says {status}"
        if status in (401, 403):
            return NoReply(self._key_refused(found), fatal=True)
        if status == 404:
            return NoReply(self._not_found(found, said), fatal=True)
        if status == 429:
            fix = "`judge.concurrency=1`, or wait; the same command goes on where it stopped"
            problem = Problem("judge.concurrency", found, fix=fix)
            return NoReply(problem, True, True, _retry_after(error.response.headers))
        if status >= 500 or status in (408, 409):
            problem = Problem("judge.base_url", found, fix="look into the log of the server")
            return NoReply(problem, True, False, _retry_after(error.response.headers))
        fix = "where it does not know a field: `judge.temperature=null`, `judge.seed=null`"
        return NoReply(Problem("judge", found, fix=fix))

    def _key_refused(self, found: str) -> Problem:
        name = self._cfg.api_key_env
        if name is None:
            fix = "judge.api_key_env=NAME, the environment variable that holds the key"
        else:
            fix = f"export {name}=... with a key that may use {self._cfg.model}"
        return Problem("judge.api_key_env", found, fix=fix)

    def _not_found(self, found: str, said: str) -> Problem:
        model, url = self._cfg.model, self._cfg.base_url
        if model not in said and "model" not in said.lower():
            allowed = "an OpenAI-compatible address, which mostly ends with /v1"
            return Problem("judge.base_url", found, allowed=allowed)
        fix = f"`curl {shlex.quote(url.rstrip('/') + '/models')}` lists those that it has"
        if _is_ollama(url):
            fix = f"`ollama pull {shlex.quote(model)}`"
        return Problem("judge.model", found, fix=fix)

    def _said(self, content: bytes) -> str:
        """The words of a server, on one short line and without the key that it may repeat."""
        text = content.decode("utf-8", errors="replace")
        with contextlib.suppress(ValueError, LookupError, TypeError):
            text = str(json.loads(text)["error"]["message"])
        hidden = text.replace(self._key, "***") if self._key else text
        return "".join(
            one if one.isprintable() else "\N{REPLACEMENT CHARACTER}"
            for one in (one_line(hidden)[:_SHOWN])
        )


def _error(problem: Problem) -> SftpipeError:
    return (ConfigError if problem.where == "judge.api_key_env" else ModelError)(problem)


def _is_ollama(url: str) -> bool:
    return urlsplit(url).port == _OLLAMA_PORT


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        secret = parts.password is not None
    except ValueError:
        good, secret = False, False
    if secret:  # it is written to judge.json
        found = "it holds a password"
        fix = "leave it out; judge.api_key_env names an environment variable for a key"
        raise ConfigError(Problem("judge.base_url", found, fix=fix))
    if not good:
        allowed = "an address such as http://localhost:11434/v1"
        raise ConfigError(Problem("judge.base_url", repr(url), allowed=allowed))


def _read_key(cfg: JudgeConfig) -> str | None:
    """The key; None where the endpoint needs none."""
    name = cfg.api_key_env
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        found = f"the environment variable {name} " + ("is not set" if not key else "holds no key")
        raise ConfigError(Problem("judge.api_key_env", found, fix=f"export {name}=..."))
    return key


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, at least 0, of a `Retry-After` in seconds or as a date; None where it is neither."""
    value = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        date = email.utils.parsedate_to_datetime(value)
        return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())
    return None
