"""Data files that URLs name, from a server in this process."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sftpipe.config.schema import DatasetConfig
from sftpipe.data.fetch import fetched
from sftpipe.errors import DataError
from sftpipe.storage import HASHES, is_whole
from support.errors import Pin, places, refused
from support.sources import load_splits

ROWS = b'[{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]'


class Web:
    """A server with one file; `asked` holds the paths of all requests.

    Of what is slow the second half waits for `may_send`.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.was_asked, self.may_send = threading.Event(), threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append(self.path)
                web.was_asked.set()
                if not self.path.startswith("/data/"):
                    return self.send_error(404)
                self.send_response(200)
                self.send_header(
                    "Content-Length", str(len(ROWS) + (10 if "cut" in self.path else 0))
                )
                self.end_headers()
                self.wfile.write(ROWS[:40])
                if "slow" in self.path:
                    web.may_send.wait(timeout=60)
                self.wfile.write(ROWS[40:])
                return None

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    made = Web()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.daemon = True
    thread.start()
    monkeypatch.setenv("SFTPIPE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_url_is_fetched_once_and_read_like_any_file(web: Web) -> None:
    cfg = DatasetConfig(path="json", data_files=f"{web.url}/data/rows.json?raw=1")
    assert [row["output"] for row in load_splits(cfg)["train"]] == ["b", "d"]
    assert [row["output"] for row in load_splits(cfg)["train"]] == ["b", "d"]
    assert web.asked == ["/data/rows.json?raw=1"]


def test_a_file_of_that_name_in_the_working_folder_is_taken_instead(web: Web) -> None:
    Path("rows.json").write_bytes(ROWS)
    assert fetched(f"{web.url}/data/rows.json") == "rows.json"
    assert web.asked == []


def test_two_urls_with_one_name_of_a_file_are_two_files(web: Web) -> None:
    first, second = (fetched(f"{web.url}/data/{folder}/rows.json") for folder in "ab")
    assert web.asked == ["/data/a/rows.json", "/data/b/rows.json"]
    assert Path(first).name == Path(second).name == "rows.json"
    assert first != second


def test_a_damaged_copy_is_fetched_again(web: Web) -> None:
    url = f"{web.url}/data/rows.json"
    Path(fetched(url)).write_bytes(ROWS[:-1])
    assert Path(fetched(url)).read_bytes() == ROWS
    assert len(web.asked) == 2


FETCH = """
import sys
from sftpipe.data.fetch import fetched
print(fetched(sys.argv[1]))
"""


def test_two_processes_that_want_one_url_fetch_it_once_and_whole(web: Web) -> None:
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", FETCH, f"{web.url}/data/slow.json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    first = start()
    assert web.was_asked.wait(timeout=60)
    second = start()
    assert second.stderr
    assert "Waiting for another process" in second.stderr.readline()
    web.may_send.set()
    printed = [process.communicate(timeout=60) for process in (first, second)]

    assert [process.returncode for process in (first, second)] == [0, 0]
    (file,) = {Path(out.strip()) for out, _ in printed}
    assert file.read_bytes() == ROWS
    assert web.asked == ["/data/slow.json"]
    assert is_whole(file.parent)
    assert sorted(path.name for path in file.parent.iterdir()) == [HASHES, "slow.json"]
    assert not any("Traceback" in error for _, error in printed)


def test_an_answer_that_is_no_http_is_an_error_of_the_url(web: Web) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"hello\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/rows.json"
        error = refused(DataError, lambda: fetched(url))
        assert places(error) == ["dataset.data_files"]
        assert error.problems[0].found.startswith(f"{url} ")
        assert "(hello" in error.problems[0].found
        thread.join(timeout=60)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("gone.json", "Not Found"), ("data/cut.json", "broke off after 74 of 84 bytes")],
)
def test_what_cannot_be_fetched_says_how_to_do_without(
    web: Web, path: str, reason: str, golden_error: Pin
) -> None:
    url, name = f"{web.url}/{path}", Path(path).name
    error = refused(DataError, lambda: fetched(url))
    (problem,) = error.problems
    assert problem.where == "dataset.data_files"
    assert problem.found.startswith(f"{url} ")
    assert reason in problem.found
    assert name in problem.fix
    golden_error(error)
    refused(DataError, lambda: fetched(url))  # nothing half-fetched is kept


def test_no_network_is_reported_in_the_same_way(web: Web) -> None:
    web.server.shutdown()
    web.server.server_close()
    error = refused(DataError, lambda: fetched(f"{web.url}/data/rows.json"))
    assert places(error) == ["dataset.data_files"]
    assert "refused" in error.problems[0].found
    assert error.problems[0].fix.startswith("go online; ")


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://127.0.0.1/data/", "http://127.0.0.1", "http://127.0.0.1/a/.."],
)
def test_a_url_without_a_file_is_an_error(url: str, golden_error: Pin) -> None:
    error = refused(DataError, lambda: fetched(url))
    assert places(error) == ["dataset.data_files"]
    assert url in error.problems[0].found
    golden_error(error)


def test_a_name_that_is_no_url_stays(web: Web) -> None:
    assert fetched("rows/*.json") == "rows/*.json"
