"""What leaves for the hub, file by file, by a server that records every byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sftpipe.errors import ExportError
from sftpipe.export.upload import Uploaded, files_to_send, run_of, upload
from sftpipe.terminal import quiet
from support.errors import Pin, places, refused, told
from support.hub_server import NEW, TOKEN, HubServer, Repository, hub_server, local_hub, sha256

RUN = "0123abcd"
BROKEN = bytes(8_000_000)  # more than waits in the buffers of a connection
CARD = f"---\nlibrary_name: peft\nsftpipe_run: {RUN}\n---\n\n# A run\n"
PRIVATE = "secret of the data"  # in every file that must stay
STAYS = (
    "manifest.json",
    "config.yaml",
    "preflight.json",
    "prompts.json",
    "samples.jsonl",
    "log.jsonl",
    "metrics.json",
    "COMPLETE",
    "README.md",
    "trainer_state.json",
    "answers.jsonl",
    "loss.png",
    "my.json",
    "notes.safetensors",
    "checkpoint-2/adapter_model.safetensors",
    "checkpoint-2/tokenizer.json",
    "export/merged/model.safetensors",
    "additional_chat_templates/notes.txt",
)
LEAVES = {
    "adapter_config.json": b'{"base_model_name_or_path": "a/b"}',
    "adapter_model.safetensors": b"adapter" * 1000,
    "tokenizer.json": b"{}" + b" " * 5000,
    "tokenizer_config.json": b'{"eos_token": "</s>"}',
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/rag.jinja": b"{{ documents }}",
}
WEIGHTS = {
    "config.json": b"{}",
    "generation_config.json": b'{"eos_token_id": [1, 2]}',
    "model-00001-of-00002.safetensors": b"first" * 900,
    "model-00002-of-00002.safetensors": b"second" * 900,
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "tokenizer.json": LEAVES["tokenizer.json"],
    "tokenizer_config.json": LEAVES["tokenizer_config.json"],
}


def laid(folder: Path, files: dict[str, bytes]) -> Path:
    """A folder with files that leave, and with every kind that stays."""
    stay = dict.fromkeys(STAYS, PRIVATE.encode())
    for name, content in {**stay, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return laid(tmp_path / "run", LEAVES)


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    return laid(tmp_path / "merged", WEIGHTS)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with local_hub(monkeypatch) as server:
        yield server


def send(folder: Path, repo_id: str = "me/model", **changes: Any) -> Uploaded:
    with quiet():  # as the verb does
        return upload(folder, repo_id, **{"private": True, "run_id": RUN, "card": CARD, **changes})


def refusal(folder: Path, repo_id: str = "me/model", **changes: Any) -> ExportError:
    """The error of an upload, which never holds the token."""
    error = refused(ExportError, lambda: send(folder, repo_id, **changes))
    assert TOKEN not in str(error)
    return error


# --- what is sent ---------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [LEAVES, WEIGHTS], ids=["adapter", "weights"])
def test_the_files_of_the_list_and_the_card_are_sent_and_nothing_else(
    tmp_path: Path, hub: HubServer, files: dict[str, bytes]
) -> None:
    folder = laid(tmp_path / "run", files)
    done = send(folder)

    expected = {**files, "README.md": CARD.encode()}
    assert hub.repositories["me/model"].files == {**NEW, **expected}
    assert sorted(content for _, content in hub.sent) == sorted(expected.values())
    assert PRIVATE.encode() not in b"".join(content for _, content in hub.sent)
    sizes = sorted((name, len(content)) for name, content in expected.items())
    assert done == Uploaded(f"{hub.url}/me/model", sizes, hub.repositories["me/model"].sha)


def test_the_list_before_sending_is_what_is_sent_besides_the_card(run_folder: Path) -> None:
    names = [file.relative_to(run_folder).as_posix() for file in files_to_send(run_folder)]
    assert names == sorted(LEAVES)


@pytest.mark.parametrize("private", [True, False])
def test_a_new_repository_is_as_visible_as_was_asked(
    run_folder: Path, hub: HubServer, private: bool
) -> None:
    send(run_folder, private=private)
    assert [(one["name"], one["visibility"]) for one in hub.made] == [
        ("model", "private" if private else "public")
    ]
    assert hub.repositories["me/model"].private is private


def test_an_upload_by_a_process_of_its_own_says_nothing_of_its_own(
    merged: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from sftpipe.export.upload import upload\n"
        "from sftpipe.terminal import quiet, quiet_libraries\n"
        "with quiet(), quiet_libraries():\n"
        "    done = upload(Path(sys.argv[1]), 'me/model', private=True, "
        f"run_id={RUN!r}, card={CARD!r})\n"
        "print(len(done.files))"
    )
    with hub_server() as hub:
        settings = {
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "NO_PROXY": "127.0.0.1",
        }
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "token").write_text(TOKEN)  # as `hf auth login` leaves it
        environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
        done = subprocess.run(
            [sys.executable, "-c", code, str(merged)],
            env={**environment, **settings},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr
    assert done.stderr == "Uploading 8/8  README.md\n"
    assert hub.repositories["me/model"].files == {**NEW, **WEIGHTS, "README.md": CARD.encode()}
    assert sorted(os.listdir(tmp_path / "home")) == ["token"]


# --- a second start -------------------------------------------------------------------------------


def test_an_upload_that_breaks_off_says_where_and_a_second_start_sends_what_is_missing(
    merged: Path, hub: HubServer
) -> None:
    second = merged / "model-00002-of-00002.safetensors"
    second.write_bytes(BROKEN)
    hub.breaks.add(sha256(BROKEN))
    error = refusal(merged)
    assert places(error) == ["export.repo_id"]
    said = f"sending {second.name}: http://127.0.0.1"  # then, in the words of the system, the cut
    assert said in str(error)
    assert str(error).endswith("what has arrived is not sent twice")
    assert {len(content) < len(BROKEN) for _, content in hub.sent} == {True}
    assert hub.repositories["me/model"].files == NEW  # nothing in part

    hub.breaks.clear()
    hub.sent.clear()
    send(merged)
    arrived = {WEIGHTS["model-00001-of-00002.safetensors"]}
    left = [*(WEIGHTS | {second.name: BROKEN}).values(), CARD.encode()]
    assert sorted(content for _, content in hub.sent) == sorted(set(left) - arrived)
    assert set(hub.repositories["me/model"].files) == {*NEW, *WEIGHTS, "README.md"}


def test_a_third_start_sends_nothing_and_makes_no_commit(run_folder: Path, hub: HubServer) -> None:
    first = send(run_folder)
    hub.sent.clear()
    assert send(run_folder) == first
    assert hub.sent == []


def test_a_connection_that_breaks_once_is_taken_up_again(merged: Path, hub: HubServer) -> None:
    class Once(set[str]):
        def __contains__(self, one: object) -> bool:
            known = super().__contains__(one)
            self.discard(one)  # type: ignore[arg-type]
            return known

    hub.breaks = Once({sha256(WEIGHTS["model-00002-of-00002.safetensors"])})
    send(merged)
    assert set(hub.repositories["me/model"].files) == {*NEW, *WEIGHTS, "README.md"}


# --- whose repository -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "card",
    [
        CARD.replace(RUN, "another"),
        "# no front matter\n",
        "---\n: [\n---\n",
        f"# the key in the text\n\n---\nsftpipe_run: {RUN}\n---\n",
        None,
    ],
    ids=["another run", "no run", "broken", "text", "no card"],
)
def test_a_repository_that_is_not_ours_is_refused_before_anything_is_sent(
    run_folder: Path, hub: HubServer, golden_error: Pin, card: str | None
) -> None:
    there = {**NEW, "model.bin": b"1", **({"README.md": card.encode()} if card else {})}
    hub.repositories["me/model"] = Repository(files=dict(there))
    error = refusal(run_folder)
    assert told(error) == {"export.repo_id": ("export.repo_id=me/OTHER",)}
    assert (hub.writes(), hub.repositories["me/model"].files) == ([], there)
    golden_error(error)


def test_a_repository_whose_card_has_our_run_and_an_empty_one_are_ours(
    run_folder: Path, hub: HubServer
) -> None:
    edited = CARD.replace("# A run", "# Words of mine").replace("\n", "\r\n").encode()
    hub.repositories["me/ours"] = Repository(files={**NEW, "README.md": edited, "mine.txt": b"1"})
    hub.repositories["me/empty"] = Repository()
    send(run_folder, "me/ours")
    send(run_folder, "me/empty")
    assert hub.repositories["me/ours"].files["mine.txt"] == b"1"
    assert hub.made == []


@pytest.mark.parametrize("is_private", [True, False])
def test_a_repository_that_is_seen_by_others_than_asked_is_refused(
    run_folder: Path, hub: HubServer, golden_error: Pin, is_private: bool
) -> None:
    hub.repositories["me/model"] = Repository(private=is_private)
    error = refusal(run_folder, private=not is_private)
    value, change = ("true", "--public") if is_private else ("false", "--private")
    typed = (f"export.private={value}", f"hf repos settings me/model {change}")
    assert told(error) == {"export.repo_id": typed}
    assert hub.writes() == []
    golden_error(error)


def test_files_of_another_upload_are_not_mixed_with_these(
    run_folder: Path, merged: Path, hub: HubServer, golden_error: Pin
) -> None:
    send(run_folder)
    hub.asked.clear()
    error = refusal(merged)
    assert "adapter_config.json, adapter_model.safetensors" in str(error)
    assert told(error) == {"export.repo_id": ("export.repo_id=me/OTHER",)}
    assert hub.writes() == []
    golden_error(error)


def test_a_repository_that_leaves_a_file_out_is_named(
    run_folder: Path, hub: HubServer, golden_error: Pin
) -> None:
    hub.repositories["me/model"] = Repository(ignored=("tokenizer.json",))
    golden_error(refusal(run_folder))


def test_a_commit_names_the_state_that_was_found_to_be_ours(
    run_folder: Path, hub: HubServer, golden_error: Pin
) -> None:
    """Somebody commits between the look and the commit."""
    hub.repositories["me/model"] = Repository()

    class Meanwhile(dict[str, tuple[int, str]]):
        def get(self, line: str, default: Any = None) -> Any:
            if line == COMMIT:
                hub.repositories["me/model"].files["theirs.txt"] = b"1"
            return super().get(line, default)

    hub.answers = Meanwhile()
    golden_error(refusal(run_folder))
    assert set(hub.repositories["me/model"].files) == {*NEW, "theirs.txt"}


# --- what the hub, the token or the folder does not allow -----------------------------------------


def test_without_a_token_nothing_is_asked(
    run_folder: Path,
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    golden_error: Pin,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    error = refusal(run_folder)
    assert told(error) == {"export=hub": ("hf auth login",)}
    assert hub.asked == []
    golden_error(error)


def test_offline_nothing_is_asked(
    run_folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, golden_error: Pin
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    golden_error(refusal(run_folder))
    assert hub.asked == []


ABOUT, CREATE = "GET /api/models/me/model", "POST /api/repos/create"
COMMIT = "POST /api/models/me/model/commit/main"
OURS = Repository(files={**NEW, "README.md": CARD.encode()})
CARD_AT = f"HEAD /me/model/resolve/{OURS.sha}/README.md"


@pytest.mark.parametrize(
    ("request_line", "status", "said"),
    [
        (ABOUT, 401, f"no user has {TOKEN}"),
        (CREATE, 403, "this token only reads"),
        (CREATE, 404, "no such organization"),
        (COMMIT, 403, "storage is full"),
        (COMMIT, 400, "a file name is not allowed"),
        (ABOUT, 503, "down for repairs"),
        (CARD_AT, 503, "down for repairs"),
    ],
    ids=["unknown token", "read token", "no owner", "full", "bad request", "down", "no card"],
)
def test_a_no_of_the_hub_says_why_and_what_to_do(
    run_folder: Path,
    hub: HubServer,
    golden_error: Pin,
    request_line: str,
    status: int,
    said: str,
) -> None:
    hub.answers[request_line] = (status, said)
    if request_line == CARD_AT:
        hub.repositories["me/model"] = OURS
    error = refusal(run_folder)
    assert said.replace(TOKEN, "***") in str(error)
    golden_error(error)


def test_an_owner_for_whom_the_token_may_not_write_is_named(
    run_folder: Path, hub: HubServer, golden_error: Pin
) -> None:
    golden_error(refusal(run_folder, "acme/model"))
    assert hub.repositories == {}


def test_metadata_that_the_hub_does_not_take_are_refused_before_the_weights(
    run_folder: Path, hub: HubServer, golden_error: Pin
) -> None:
    error = refusal(run_folder, card=CARD.replace("library_name", "sftpipe_bad"))
    assert places(error) == ["README.md"]
    assert hub.sent == []
    golden_error(error)


def test_a_hub_that_does_not_answer_is_given_up(
    run_folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, golden_error: Pin
) -> None:
    monkeypatch.setattr("sftpipe.export.upload.ANSWER_S", 0.05)
    hub.hang_s = 0.3
    golden_error(refusal(run_folder))


def test_a_hub_that_is_not_there_is_named(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer, golden_error: Pin
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    golden_error(refusal(run_folder))


@pytest.mark.parametrize("name", ["model", "a/b/c", "me/mo del", ""])
def test_a_name_that_no_repository_can_have_is_refused(
    run_folder: Path, hub: HubServer, golden_error: Pin, name: str
) -> None:
    error = refusal(run_folder, name)
    assert (places(error), hub.asked) == (["export.repo_id"], [])
    golden_error(error)


def test_a_folder_without_weights_is_refused(
    tmp_path: Path, hub: HubServer, golden_error: Pin
) -> None:
    weightless = {name: LEAVES[name] for name in LEAVES if "safetensors" not in name}
    error = refusal(laid(tmp_path / "run", weightless))
    assert hub.asked == []
    golden_error(error)


@pytest.mark.parametrize("path", ["/data/models/base", "~/base", "../base", "C:\\models\\base"])
def test_a_base_on_this_machine_does_not_leave_in_the_config_of_the_adapter(
    run_folder: Path, hub: HubServer, golden_error: Pin, path: str
) -> None:
    config = run_folder / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": path, "r": 8}))
    error = refusal(run_folder)
    assert told(error) == {str(config): ("export.what=merged",)}
    assert hub.asked == []
    golden_error(error)


def test_a_folder_beside_the_command_is_no_name_of_the_hub(
    run_folder: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert places(refusal(run_folder)) == [str(run_folder / "adapter_config.json")]


def test_a_path_anywhere_in_a_config_does_not_leave(
    merged: Path, hub: HubServer, golden_error: Pin
) -> None:
    nested = {"text_config": [{"_name_or_path": "/home/me/base"}], "model_type": "/no/path/key"}
    (merged / "config.json").write_text(json.dumps(nested))
    golden_error(refusal(merged))
    assert hub.asked == []


def test_a_config_that_cannot_be_read_does_not_leave(
    merged: Path, hub: HubServer, golden_error: Pin
) -> None:
    (merged / "config.json").write_bytes(b"\xff{")
    golden_error(refusal(merged))
    assert hub.asked == []


def test_a_card_of_another_run_is_a_bug_of_the_caller(run_folder: Path, hub: HubServer) -> None:
    with pytest.raises(ValueError, match="does not name the run"):
        send(run_folder, run_id="other")
    assert hub.asked == []


@pytest.mark.parametrize("run", ["0123", "1e5", "ab12", "0x10"])
def test_a_run_is_read_back_from_a_card_as_it_was_written(run: str) -> None:
    from sftpipe.export.card import front_matter

    assert run_of(front_matter({"id": run, "trained_on": "a/b@c"}, "peft") + "# text") == run
