"""A hub on a port of this machine: the endpoints that an upload asks, and what was sent to them.

It keeps small files in the commit and large ones (`*.safetensors`, `tokenizer.json`) by LFS, as
the real one does, and has no Xet. Faults:

    answers["POST /api/repos/create"] = (403, "no rights")   what a path always says
    hang_s                                                   before every answer
    breaks                                                   the sha256 of what is cut midway
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from support.servers import serving

TOKEN = "hf_of_the_tests_alone"
NEW = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


@dataclass
class Repository:
    private: bool = True
    files: dict[str, bytes] = field(default_factory=lambda: dict(NEW))
    ignored: tuple[str, ...] = ()

    @property
    def sha(self) -> str:
        names = json.dumps({name: _git(content) for name, content in sorted(self.files.items())})
        return hashlib.sha1(names.encode()).hexdigest()


@dataclass
class HubServer:
    """sent: (path or hash, bytes) of every content that came, also by a request that was cut.
    asked: (method, path) of every request. made: the bodies of what was to be made.
    """

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    sent: list[tuple[str, bytes]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    made: list[dict[str, Any]] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)  # addresses of a store that got a token
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    breaks: set[str] = field(default_factory=set)
    hang_s: float = 0.0
    owners: tuple[str, ...] = ("me",)

    def writes(self) -> list[tuple[str, str]]:
        """What was asked besides reading."""
        return [one for one in self.asked if one[0] not in ("GET", "HEAD")]


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def by_lfs(path: str) -> bool:
    return path.endswith(".safetensors") or path == "tokenizer.json"


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer in one piece; the second of two would wait for 40 ms

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # the client has stopped waiting
                self.close_connection = True

        def __getattr__(self, name: str) -> Any:
            if name.startswith("do_"):  # every method
                return self.route
            raise AttributeError(name)

        def route(self) -> None:
            path, _, query = self.path.partition("?")
            hub.asked.append((self.command, path))
            if self.command == "PUT":
                self.store(path)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(hub.hang_s)
            if (fault := hub.answers.get(f"{self.command} {path}")) is not None:
                self.say(fault[0], {"error": fault[1]}, {"X-Error-Message": fault[1]})
            elif path not in ("/api/validate-yaml", "/verify") and not self.known():
                said = "Invalid credentials in Authorization header"
                self.say(401, {"error": said}, {"X-Error-Message": said})
            else:
                self.answer(path, query, body)

        def known(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def answer(self, path: str, query: str, body: bytes) -> None:
            if path == "/api/repos/create":
                self.create(json.loads(body))
            elif path == "/api/validate-yaml":
                bad = "sftpipe_bad" in json.loads(body)["content"]
                errors = [{"message": "sftpipe_bad is not allowed"}] if bad else []
                self.say(400 if bad else 200, {"errors": errors, "warnings": []})
            elif path == "/verify":
                wanted = json.loads(body)
                right = len(hub.objects.get(wanted["oid"], b"")) == wanted["size"]
                self.say(200 if right else 422, {})
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(\w+))?", path):
                self.about(match[1], "blobs" in query)
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(\w+)/(.+)", path):
                self.content(match[1], match[3])
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
                self.modes(hub.repositories[match[1]], json.loads(body)["files"])
            elif re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
                self.batch(json.loads(body)["objects"])
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
                self.commit(match[1], [json.loads(line) for line in body.splitlines()])
            else:
                self.say(404, {"error": "no such endpoint"})

        def create(self, body: dict[str, Any]) -> None:
            name = f"{body['organization']}/{body['name']}"
            hub.made.append(body)
            if body["organization"] not in hub.owners:
                said = f"You don't have the rights to create a model under {body['organization']}"
                self.say(403, {"error": said}, {"X-Error-Message": said})
                return
            known = name in hub.repositories
            if not known:
                hub.repositories[name] = Repository(body["visibility"] == "private")
            self.say(409 if known else 200, {"url": f"{hub.url}/{name}"})

        def about(self, name: str, sizes: bool) -> None:
            if name not in hub.repositories:
                self.say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                return
            one = hub.repositories[name]
            files = [
                {"rfilename": path, **({"size": len(content)} if sizes else {})}
                for path, content in sorted(one.files.items())
            ]
            self.say(200, {"id": name, "sha": one.sha, "private": one.private, "siblings": files})

        def content(self, name: str, path: str) -> None:
            content = hub.repositories[name].files[path]
            headers = {"ETag": f'"{_git(content)}"', "X-Repo-Commit": hub.repositories[name].sha}
            self.send(200, content, headers)

        def modes(self, one: Repository, files: list[dict[str, Any]]) -> None:
            answers = []
            for file in files:
                path = file["path"]
                mode, there = ("lfs" if by_lfs(path) else "regular"), one.files.get(path)
                oid = None if there is None else sha256(there) if mode == "lfs" else _git(there)
                ignored = path in one.ignored
                answers.append(
                    {"path": path, "uploadMode": mode, "shouldIgnore": ignored, "oid": oid}
                )
            self.say(200, {"files": answers})

        def batch(self, objects: list[dict[str, Any]]) -> None:
            for one in objects:
                if one["oid"] not in hub.objects:
                    upload = {"href": f"{hub.url}/store/{one['oid']}?signature=secret"}
                    one["actions"] = {"upload": upload, "verify": {"href": f"{hub.url}/verify"}}
            self.say(200, {"transfer": "basic", "objects": objects})

        def store(self, path: str) -> None:
            if "Authorization" in self.headers:
                hub.leaked.append(path)
            name = path.removeprefix("/store/")
            if name in hub.breaks:
                hub.sent.append((name, next(self.pieces(1000))))
                self.close_connection = True  # in the middle, and without an answer
                return
            content = b"".join(self.pieces(10**9))
            hub.sent.append((name, content))
            hub.objects[sha256(content)] = content
            self.send(200, b"", {"ETag": '"x"'})

        def pieces(self, most: int) -> Iterator[bytes]:
            if "Content-Length" in self.headers:
                yield self.rfile.read(min(most, int(self.headers["Content-Length"])))
                return
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
            one = hub.repositories[name]
            head, *changes = [line["value"] for line in lines]
            if head.get("parentCommit", one.sha) != one.sha:
                self.say(412, {"error": "a commit has happened since"})
                return
            for change in changes:
                if "oid" in change:
                    one.files[change["path"]] = hub.objects[change["oid"]]
                else:
                    content = base64.b64decode(change["content"])
                    hub.sent.append((change["path"], content))
                    one.files[change["path"]] = content
            self.say(200, {"commitUrl": f"{hub.url}/{name}/commit/x", "commitOid": one.sha})

        def say(
            self, code: int, body: dict[str, Any], headers: dict[str, str] | None = None
        ) -> None:
            self.send(code, json.dumps(body).encode(), headers or {})

        def send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A server that runs until the block ends."""
    hub = HubServer("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    with serving(server) as hub.url:
        yield hub


@contextmanager
def local_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub without Xet, whose token is in the environment; nobody waits between tries."""
    constants = "huggingface_hub.constants"
    with hub_server() as server:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(f"{constants}.ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
        no_wait = SimpleNamespace(sleep=lambda _: None)
        monkeypatch.setattr("huggingface_hub.utils._http.time", no_wait)
        yield server
        assert server.leaked == []
