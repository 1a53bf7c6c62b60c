"""Data files that URLs name, from a server in this process."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sftpipe.config.schema import DatasetConfig
from sftpipe.data.fetch import fetched
from sftpipe.errors import DataError
from sftpipe.storage import HASHES, is_whole
from support.sources import load_splits

ROWS = b'[{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]'


class Web:
    """A server with one file; `asked` holds the paths of all requests.

    What is slow waits for `may_send`, and then takes two seconds.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.may_send = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append(self.path)
                if not self.path.startswith("/data/"):
                    return self.send_error(404)
                self.send_response(200)
                self.send_header(
                    "Content-Length", str(len(ROWS) + (10 if "cut" in self.path else 0))
                )
                self.end_headers()
                if "slow" in self.path:
                    web.may_send.wait(timeout=60)
                    for at in range(len(ROWS)):
                        self.wfile.write(ROWS[at : at + 1])
                        self.wfile.flush()
                        time.sleep(2 / len(ROWS))
                else:
                    self.wfile.write(ROWS)
                return None

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    made = Web()
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
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


def test_a_damaged_copy_is_fetched_again(web: Web) -> None:
    url = f"{web.url}/data/rows.json"
    Path(fetched(url)).write_bytes(ROWS[:-1])
    assert Path(fetched(url)).read_bytes() == ROWS
    assert len(web.asked) == 2


FETCH = """
import sys
from sftpipe.data.fetch import fetched
print("ready", flush=True)
print(fetched(sys.argv[1]))
"""


def test_two_processes_that_want_one_url_fetch_it_once_and_whole(web: Web) -> None:
    both = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH, f"{web.url}/data/slow.json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.stdout.readline() for process in both if process.stdout] == ["ready\n"] * 2
    web.may_send.set()
    printed = [process.communicate(timeout=60) for process in both]

    assert [process.returncode for process in both] == [0, 0]
    (file,) = {Path(out.strip()) for out, _ in printed}
    assert file.read_bytes() == ROWS
    assert web.asked == ["/data/slow.json"]
    assert is_whole(file.parent)
    assert sorted(path.name for path in file.parent.iterdir()) == [HASHES, "slow.json"]
    errors = [error for _, error in printed]
    assert not any("Traceback" in error for error in errors)
    assert sum("Waiting for another process" in error for error in errors) == 1


def test_an_answer_that_is_no_http_is_an_error_of_the_url(web: Web) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"hello\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DataError, match=r"cannot be fetched \(hello"):
            fetched(f"http://127.0.0.1:{server.getsockname()[1]}/rows.json")
        thread.join(timeout=60)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("gone.json", "Not Found"), ("data/cut.json", "broke off after 74 of 84 bytes")],
)
def test_what_cannot_be_fetched_says_how_to_do_without(web: Web, path: str, reason: str) -> None:
    url, name = f"{web.url}/{path}", Path(path).name
    with pytest.raises(DataError) as caught:
        fetched(url)
    text = str(caught.value)
    assert text.startswith(f"dataset.data_files: {url} cannot be fetched (")
    assert reason in text
    assert text.endswith(
        f"go online; or put {name} into the working folder; or dataset.data_files=FILE"
    )
    with pytest.raises(DataError):  # nothing half-fetched is kept
        fetched(url)


def test_no_network_is_reported_in_the_same_way(web: Web) -> None:
    web.server.shutdown()
    web.server.server_close()
    with pytest.raises(DataError, match=r"cannot be fetched \(.*refused.*\)\n +go online"):
        fetched(f"{web.url}/data/rows.json")


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://127.0.0.1/data/", "http://127.0.0.1", "http://127.0.0.1/a/.."],
)
def test_a_url_without_a_file_is_an_error(url: str) -> None:
    with pytest.raises(DataError, match="names no file"):
        fetched(url)


def test_a_name_that_is_no_url_stays(web: Web) -> None:
    assert fetched("rows/*.json") == "rows/*.json"
