"""Data files that stand on the web, from a server in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sftpipe.config.schema import DatasetConfig
from sftpipe.data.fetch import fetched
from sftpipe.data.source import load_splits
from sftpipe.errors import DataError

ROWS = b'[{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]'


class Web:
    """A server with one file; `asked` holds the paths of all requests."""

    def __init__(self) -> None:
        self.asked: list[str] = []
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


def test_no_network_is_told_the_same_way(web: Web) -> None:
    web.server.shutdown()
    web.server.server_close()
    with pytest.raises(DataError, match=r"cannot be fetched \(.*refused.*\)\n +go online"):
        fetched(f"{web.url}/data/rows.json")


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://127.0.0.1/data/", "http://127.0.0.1", "http://127.0.0.1/a/.."],
)
def test_a_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(DataError, match="names no file"):
        fetched(url)


def test_a_name_that_is_no_url_stays(web: Web) -> None:
    assert fetched("rows/*.json") == "rows/*.json"
