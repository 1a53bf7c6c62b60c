"""Whole or absent: the files that a reader sees after a full disk or a killed process."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest

from sftpipe import storage
from sftpipe.errors import Problem, StorageError
from sftpipe.storage import (
    HASHES,
    cache_dir,
    cached,
    cannot_write,
    digest,
    is_whole,
    publish_files,
    publish_folder,
    sha256_cached,
    sha256_file,
    sha256_text,
    write_json,
    write_text,
    writing,
)
from support.disks import remount, small_disk
from support.errors import places, refused, told


def fill(folder: Path, text: str = "one") -> None:
    (folder / "a.txt").write_text(text)
    (folder / "inner").mkdir()
    (folder / "inner" / "b.bin").write_bytes(b"\0\1\2")


def fill_and_fail(folder: Path, error: BaseException) -> None:
    fill(folder, "two")
    raise error


@pytest.fixture
def published(tmp_path: Path) -> Path:
    final = tmp_path / "final"
    with publish_folder(final) as partial:
        fill(partial)
    return final


# --- one file -------------------------------------------------------------------------------------


def test_write_text_writes_and_replaces(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one\n")
    write_text(tmp_path / "a.txt", "zwei: ä\n")

    assert (tmp_path / "a.txt").read_bytes() == "zwei: ä\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_write_json_is_readable_by_people(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "ä", "list": [1]})

    assert (tmp_path / "a.json").read_text(
        encoding="utf-8"
    ) == '{\n  "name": "ä",\n  "list": [\n    1\n  ]\n}\n'


@pytest.mark.parametrize("before", ["old", None])
def test_a_text_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, before: str | None
) -> None:
    file = tmp_path / "a.txt"
    if before is not None:
        file.write_text(before)

    with pytest.raises(UnicodeEncodeError):
        write_text(file, "x" * 100_000 + "\ud800")

    assert (file.read_text() if file.exists() else None) == before


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="no /dev/full, which serves as a full disk"
)
def test_a_full_disk_leaves_the_old_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / ".a.txt.partial").symlink_to("/dev/full")

    error = refused(StorageError, lambda: write_text(tmp_path / "a.txt", "new"))
    assert places(error) == [str(tmp_path / "a.txt")]
    assert error.problems[0].found.startswith("No space left on device: more than 0.0 MB are")

    assert (tmp_path / "a.txt").read_text() == "old"


def test_hashes_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")

    # FIPS 180-2, example B.1
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "a.txt") == sha256_text("abc") == abc


def test_a_digest_follows_values_and_types_and_not_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [None]}, "ä") == digest({"b": [None], "a": 1}, "ä")
    values = ["1", 1, 1.0, True, None, [1], ["1"], {"1": 1}, {}, [], ""]
    assert len({digest(value) for value in values}) == len(values)
    assert digest("a", "b") != digest("ab") != digest("b", "a")
    assert digest("abc") == sha256_text('["abc"]')


def test_a_file_that_changed_is_hashed_anew(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    hashes = []
    for at, text in enumerate(("abc", "abd", "abc")):
        file.write_text(text)
        os.utime(file, ns=(at, at))
        hashes += [sha256_cached(file), sha256_cached(file)]

    assert hashes == [sha256_text(text) for text in ("abc", "abc", "abd", "abd", "abc", "abc")]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were hashed, in order."""
    names: list[str] = []

    def counted(path: Path) -> str:
        names.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(storage, "sha256_file", counted)
    return names


def test_a_file_is_hashed_once_in_a_process(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("abc")
    for recent_s in (60, 0):
        monkeypatch.setattr(storage, "RECENT_S", recent_s)
        assert {sha256_cached(tmp_path / "a.txt") for _ in range(3)} == {sha256_text("abc")}

    assert len(hashed) == 3 + 1  # a file that was just written may be written to again


def test_new_bytes_of_the_same_size_and_time_are_hashed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "RECENT_S", 0)
    file, hashes = tmp_path / "a.txt", []
    for text in ("abc", "abd"):
        file.write_text(text)
        os.utime(file, ns=(1, 1))  # as `cp -p`, `rsync -t` and `tar` leave it
        hashes.append(sha256_cached(file))
        time.sleep(0.05)  # longer than a tick of the clock of a file system

    assert hashes == [sha256_text("abc"), sha256_text("abd")]


# --- a folder -------------------------------------------------------------------------------------


def test_a_published_folder_is_whole_and_leaves_nothing_beside_it(published: Path) -> None:
    assert is_whole(published)
    assert (published / "a.txt").read_text() == "one"
    assert [path.name for path in published.parent.iterdir()] == ["final"]


def test_the_hashes_cover_every_file_and_the_inner_ones(published: Path) -> None:
    hashes = json.loads((published / HASHES).read_text())

    assert hashes == {
        "a.txt": sha256_text("one"),
        "inner/b.bin": sha256_file(published / "inner" / "b.bin"),
    }


def test_nothing_is_under_the_final_name_while_it_is_filled(tmp_path: Path) -> None:
    with publish_folder(tmp_path / "final") as partial:
        fill(partial)
        assert not (tmp_path / "final").exists()


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt()])
def test_an_exception_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), publish_folder(tmp_path / "final") as partial:
        fill_and_fail(partial, error)

    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_leaves_the_good_folder(published: Path) -> None:
    with pytest.raises(ZeroDivisionError), publish_folder(published) as partial:
        fill_and_fail(partial, ZeroDivisionError())

    assert is_whole(published)
    assert (published / "a.txt").read_text() == "one"


def test_a_replacement_takes_the_place_of_the_old_folder(published: Path) -> None:
    with publish_folder(published) as partial:
        (partial / "c.txt").write_text("two")

    assert is_whole(published)
    assert {path.name for path in published.iterdir()} == {"c.txt", HASHES}


KILLED = """
import os, signal, sys
from pathlib import Path
from sftpipe.storage import publish_folder
with publish_folder(Path(sys.argv[1])) as partial:
    (partial / "half.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_nothing_that_looks_whole_and_the_next_one_succeeds(
    tmp_path: Path,
) -> None:
    final = tmp_path / "final"

    assert (
        subprocess.run([sys.executable, "-c", KILLED, final], check=False).returncode
        == -signal.SIGKILL
    )
    assert not final.exists()

    with publish_folder(final) as partial:
        fill(partial)
    assert is_whole(final)
    assert not (final / "half.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def _flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "inner" / "b.bin").read_bytes())
    data[1] ^= 1
    (folder / "inner" / "b.bin").write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": _flip_a_bit,
    "a truncated file": lambda folder: (folder / "a.txt").write_text("on"),
    "an empty file": lambda folder: (folder / "a.txt").write_text(""),
    "a missing file": lambda folder: (folder / "inner" / "b.bin").unlink(),
    "a folder in place of a file": lambda folder: (
        (folder / "a.txt").unlink(),
        (folder / "a.txt").mkdir(),
    ),
    "no hashes": lambda folder: (folder / HASHES).unlink(),
    "empty hashes": lambda folder: (folder / HASHES).write_text("{}"),
    "half of the hashes": lambda folder: (folder / HASHES).write_text(
        (folder / HASHES).read_text()[:40]
    ),
    "hashes of another shape": lambda folder: (folder / HASHES).write_text("[1]"),
    "hashes that are no text": lambda folder: (folder / HASHES).write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_detected(published: Path, damage: Callable[[Path], object]) -> None:
    damage(published)

    assert not is_whole(published)


def test_a_folder_that_is_not_there_is_not_whole(tmp_path: Path) -> None:
    assert not is_whole(tmp_path / "nowhere")


# --- files into a folder --------------------------------------------------------------------------


def test_published_files_join_the_folder_and_replace_their_namesakes(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    (tmp_path / "a.txt").write_text("old")

    with publish_files(tmp_path) as partial:
        (partial / "a.txt").write_text("new")
        (partial / "b.txt").write_text("b")
        assert (tmp_path / "a.txt").read_text() == "old"

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "kept.txt": "kept",
        "a.txt": "new",
        "b.txt": "b",
    }


def test_an_exception_publishes_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")

    with pytest.raises(ZeroDivisionError), publish_files(tmp_path) as partial:
        fill_and_fail(partial, ZeroDivisionError())

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "old"}


# --- where the cache is ---------------------------------------------------------------------------


def test_the_cache_follows_sftpipe_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTPIPE_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path

    monkeypatch.setenv("SFTPIPE_CACHE", "~/there")
    assert cache_dir() == Path.home() / "there"


@pytest.mark.parametrize("unset", ["", None])
def test_without_sftpipe_cache_it_is_the_users_cache(
    unset: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SFTPIPE_CACHE", raising=False)
    if unset is not None:
        monkeypatch.setenv("SFTPIPE_CACHE", unset)

    assert cache_dir() == platformdirs.user_cache_path("sftpipe")


def test_a_damaged_entry_is_said_and_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut short, with another byte, without a file, without its hashes."""
    monkeypatch.setenv("SFTPIPE_CACHE", str(tmp_path))
    entry = tmp_path / "rows" / "key"

    def read() -> str:
        def build(folder: Path) -> None:
            (folder / "a.txt").write_text("whole")

        return cached("rows", "key", build, lambda folder: (folder / "a.txt").read_text())

    assert read() == "whole"
    assert read() == "whole"
    assert capsys.readouterr().err == ""
    for damage in (
        lambda: (entry / "a.txt").write_text("who"),
        lambda: (entry / "a.txt").write_text("whale"),
        (entry / "a.txt").unlink,
        (entry / HASHES).unlink,
    ):
        damage()
        assert read() == "whole"
        assert is_whole(entry)
        said = capsys.readouterr().err
        assert said == f"cache     an entry of rows was damaged, and is made again: {entry}\n"


# --- what cannot be written -----------------------------------------------------------------------


def write_torch(folder: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(2_000_000)}, folder / "a.pt")


def write_safetensors(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2_000_000)}, folder / "a.safetensors")


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    words = {f"a word {number}": number for number in range(100_000)}
    Tokenizer(models.WordLevel(words, "a word 0")).save(str(folder / "tokenizer.json"))


def write_plain(folder: Path) -> None:
    (folder / "a.txt").write_bytes(bytes(8_000_000))


WRITERS = (write_torch, write_safetensors, write_tokenizer, write_plain)


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_says_what_is_needed_and_what_is_free_whoever_writes(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 2) as disk:

        def publish() -> None:
            with publish_folder(disk / "final", needs=8_000_000) as partial:
                write(partial)

        error = refused(StorageError, publish)
        assert places(error) == [str(disk / "final")]
        assert error.problems[0].found == (
            "No space left on device: about 8.0 MB are needed, and 2.1 MB are free"
        )
        assert told(error) == {str(disk / "final"): ("sft.resume_from_checkpoint=auto",)}
        assert list(disk.iterdir()) == []


@pytest.mark.parametrize("write", WRITERS)
def test_a_disk_that_became_read_only_is_said_whoever_writes(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 20) as disk:
        remount(disk, "ro")
        assert cannot_write(raised(lambda: write(disk)), disk / "final") == Problem(
            str(disk / "final"), "Read-only file system", fix=storage._MAKE_ROOM
        )


def raised(run: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run()
    return caught.value


def test_a_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    """A run whose folder was deleted would go on into one without its config."""
    gone = tmp_path / "run"
    for write in (
        lambda: write_text(gone / "a.txt", "a"),
        lambda: publish_folder(gone / "checkpoint-2").__enter__(),
        lambda: publish_files(gone).__enter__(),
    ):
        error = refused(StorageError, write)
        assert [problem.found for problem in error.problems] == ["the folder is gone"]
        assert places(error) == [str(gone)]
    assert not gone.exists()


def test_a_bug_in_a_block_that_writes_stays_what_it_is(tmp_path: Path) -> None:
    for bug in (FileNotFoundError(errno.ENOENT, "no such file"), ZeroDivisionError()):
        with pytest.raises(type(bug)), publish_folder(tmp_path / "final"):
            raise bug
        with pytest.raises(type(bug)), writing(tmp_path / "a.txt"):
            raise bug
