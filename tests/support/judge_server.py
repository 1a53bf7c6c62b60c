"""A judge that misbehaves as it is told: /v1/chat/completions on a port of this machine.

A row is known by the words `row-N` in its prompt. What the server does at the first, second, ...
request about a row stands in `script[N]`; its last entry is for all further ones. Entries are

    text      the content of a chat completion; None: one without content
    bytes     the body of an answer with status 200
    Status    an error with this status, message and headers
    CLOSED    the connection is closed without an answer
    Late      the text, after so many seconds
    function  of the request's body, to one of these
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.servers import serving

CLOSED = object()


@dataclass(frozen=True)
class Status:
    code: int
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Late:
    seconds: float
    text: str


@dataclass(frozen=True)
class Asked:
    """A request: its row, body, headers and time (of the monotonic clock, in seconds)."""

    row: int
    body: dict[str, Any]
    headers: dict[str, str]
    at: float


class JudgeServer:
    """script: as above. usual: what rows without a script get."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.script: dict[int, Sequence[Any]] = {}
        self.usual: Any = lambda body: str(50 + row_of(body))
        self.asked: list[Asked] = []
        self.lock = threading.Lock()

    def count(self, row: int) -> int:
        """Requests about a row so far."""
        return sum(one.row == row for one in self.asked)

    def bodies(self, row: int) -> list[dict[str, Any]]:
        """The bodies of the requests about a row."""
        return [one.body for one in self.asked if one.row == row]

    def action(self, body: dict[str, Any], headers: dict[str, str]) -> Any:
        row = row_of(body)
        with self.lock:
            number = self.count(row)
            self.asked.append(Asked(row, body, headers, time.monotonic()))
        actions = self.script.get(row, [self.usual])
        action = actions[min(number, len(actions) - 1)]
        return action(body) if callable(action) else action


def row_of(body: Mapping[str, Any]) -> int:
    """The row that a request is about; -1 without `row-N`."""
    match = re.search(r"row-(\d+)", body["messages"][0]["content"])
    return int(match[1]) if match else -1


def completion(text: str | None) -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
    return json.dumps({**answer, "choices": [choice]}).encode()


@contextmanager
def judge_server() -> Iterator[JudgeServer]:
    """A server that runs until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                self.send(404, b"<h1>Not Found</h1>", {})
                return
            action = judge.action(body, {k.lower(): v for k, v in self.headers.items()})
            if action is CLOSED:
                self.close_connection = True
                return
            if isinstance(action, Late):
                time.sleep(action.seconds)
                action = action.text
            if isinstance(action, Status):
                said = json.dumps({"error": {"message": action.message}}).encode()
                self.send(action.code, said, action.headers)
                return
            self.send(200, action if isinstance(action, bytes) else completion(action), {})

        def send(self, code: int, body: bytes, headers: Mapping[str, str]) -> None:
            try:
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except OSError:  # the client has stopped waiting, or was killed
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that was killed is no error here."""

    server = Server(("127.0.0.1", 0), Handler)
    judge = JudgeServer(f"http://127.0.0.1:{server.server_port}/v1")
    with serving(server):
        yield judge
