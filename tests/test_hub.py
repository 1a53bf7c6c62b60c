"""What the answers of the hub mean, from a server that gives them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import datasets.config
import huggingface_hub.constants
import pytest

from sftpipe.errors import DataError, ModelError, SftpipeError
from sftpipe.hub import HubUnreachable, latest_commit, offline

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """It knows `a/b` with the branch `main` and the branch `old`."""

    def do_GET(self) -> None:
        answers = {
            "/api/models/a/b": (200, ""),
            "/api/models/a/b/revision/old": (200, ""),
            "/api/datasets/a/b": (200, ""),
            "/api/models/a/b/revision/older": (404, "RevisionNotFound"),
            "/api/models/a/gated": (403, "GatedRepo"),
            "/api/datasets/a/broken": (500, ""),
        }
        path = self.path.partition("?")[0]
        status, code = answers.get(path, (404, "RepoNotFound"))
        body = {"id": "a/b", "sha": COMMIT[:-1] + str(len(path) % 10)} if status == 200 else {}
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("hub")
def test_a_name_means_its_newest_commit() -> None:
    commits = [
        latest_commit("model", "a/b", None),
        latest_commit("model", "a/b", "old"),
        latest_commit("dataset", "a/b", None),
    ]
    lengths = [15, 28, 17]  # of the paths that were asked for
    assert commits == [COMMIT[:-1] + str(length % 10) for length in lengths]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("kind", "name", "revision", "error", "text"),
    [
        (
            "model",
            "a/b",
            "older",
            ModelError,
            "model.revision: a/b has no revision 'older'\n    leave it out for the newest",
        ),
        (
            "model",
            "a/gated",
            None,
            ModelError,
            "model.name_or_path: a/gated wants its licence accepted on the hub\n"
            "    accept it there, then hf auth login",
        ),
        (
            "dataset",
            "a/c",
            None,
            DataError,
            "dataset.path: the hub has no dataset 'a/c' (or it is private)\n"
            "    check the name, or hf auth login",
        ),
    ],
)
def test_a_no_of_the_hub_is_a_mistake_of_the_config(
    kind: str, name: str, revision: str | None, error: type[SftpipeError], text: str
) -> None:
    with pytest.raises(error) as caught:
        latest_commit(kind, name, revision)  # type: ignore[arg-type]
    assert type(caught.value) is error
    assert str(caught.value) == text


@pytest.mark.usefixtures("hub")
def test_a_name_that_no_hub_could_have_is_a_mistake() -> None:
    with pytest.raises(ModelError, match=r"(?s)^model.name_or_path: 'a/b/c': .*user/name on the"):
        latest_commit("model", "a/b/c", None)


@pytest.mark.usefixtures("hub")
def test_no_answer_is_no_mistake() -> None:
    with pytest.raises(HubUnreachable, match=r"^HfHubHTTPError: .*500"):
        latest_commit("dataset", "a/broken", None)


@pytest.mark.usefixtures("hub")
def test_offline_nothing_is_asked_and_the_settings_come_back() -> None:
    before = datasets.config.HF_HUB_OFFLINE
    with offline():
        assert datasets.config.HF_HUB_OFFLINE is True
        with pytest.raises(HubUnreachable, match=r"^HF_HUB_OFFLINE is set$"):
            latest_commit("model", "a/b", None)
    assert datasets.config.HF_HUB_OFFLINE is before
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False
