"""Encoded rows are cached by content: made once, made again for anything that they depend on, and
evicted oldest first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sftpipe
from sftpipe import DataError, PreparedData, compose, prepare, storage
from sftpipe.data.encode import Encoder
from sftpipe.data.version import code_digest
from sftpipe.runs.plan import key_of, run_key
from sftpipe.storage import HASHES, cached
from support.byte_model import write_byte_model

Prepare = Callable[..., PreparedData]
ROWS = [{"prompt": f"q{at} ", "completion": f"a{at}"} for at in range(20)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "plain": write_byte_model(folder / "plain"),
        "merges": write_byte_model(folder / "merges", merges=5),
        "specials": write_byte_model(folder / "specials", pad="<|unused|>"),
    }


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SFTPIPE_CACHE", str(folder))
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def prepared(models: dict[str, Path], file: Path, store: Path) -> Prepare:
    def run(*overrides: str) -> PreparedData:
        plain = [
            f"model.name_or_path={models['plain']}",
            "evaluation=none",
            "dataset=json",
            f"dataset.data_files={file}",
        ]
        return prepare(compose([*plain, "format=prompt_completion", *overrides]))

    return run


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def entries(store: Path, kind: str = "encoded") -> dict[str, int]:
    """{entry: when its hashes, the last file of a build, were written}."""
    return {
        entry.name: (entry / HASHES).stat().st_mtime_ns
        for entry in (store / kind).glob("*")
        if entry.is_dir() and entry.name[0] != "."
    }


def rows_of(data: PreparedData) -> list[Any]:
    return [data.train[at] for at in range(len(data.train))]


# --- keys -----------------------------------------------------------------------------------------


def test_a_second_preparation_encodes_nothing(
    prepared: Prepare, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, made = prepared(), entries(store)

    def fail(*_: Any) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(Encoder, "encode", fail)
    again = prepared()
    assert rows_of(again) == rows_of(first)
    assert again.preflight == first.preflight
    assert entries(store) == made
    assert len(made) == 1


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=7"],
        ["sft.learning_rate=1"],
        ["sft.max_length=900"],
        ["over_length=drop"],
        ["dataset.num_proc=1"],
        ["preflight.max_empty_rows=0.5"],
        ["lora=default"],
    ],
    ids="+".join,
)
def test_what_rows_do_not_depend_on_makes_no_new_entry(
    prepared: Prepare, store: Path, overrides: list[str]
) -> None:
    prepared()
    made = entries(store)
    prepared(*overrides)
    assert entries(store) == made


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(
            [],
            ["format=template", "format.prompt='{prompt}'", "format.completion='{completion}'"],
            id="format",
        ),
        pytest.param(
            ["format=template", "format.prompt='{prompt}'", "format.completion='{completion}'"],
            ["format=template", "format.prompt='{prompt}:'", "format.completion='{completion}'"],
            id="pattern",
        ),
        pytest.param([], ["loss=full"], id="loss"),
        pytest.param([], ["loss.boundary=joint"], id="boundary"),
        pytest.param(
            [], ["dataset.columns={completion: prompt, prompt: completion}"], id="columns"
        ),
        pytest.param([], ["dataset.limit=19"], id="limit"),
        pytest.param([], ["dataset.shuffle_seed=1"], id="order"),
        pytest.param([], ["dataset.markers=strip", "dataset.marker_tokens=[q]"], id="markers"),
        pytest.param([], ["preflight.forged_turns=escape"], id="forged turns"),
        pytest.param([], ["over_length=truncate"], id="truncation"),
        pytest.param(
            ["over_length=truncate", "sft.max_length=9"],
            ["over_length=truncate", "sft.max_length=8"],
            id="length of truncation",
        ),
    ],
)
def test_what_rows_depend_on_makes_a_new_entry(
    prepared: Prepare, store: Path, first: list[str], then: list[str]
) -> None:
    prepared(*first)
    made = entries(store)
    prepared(*then)
    assert len(entries(store)) == 2
    assert entries(store).items() > made.items()  # the first one stays as it is


def test_other_bytes_of_the_data_make_new_rows_even_under_the_same_name_size_and_time(
    prepared: Prepare, store: Path, file: Path
) -> None:
    prepared()
    before = file.stat()
    write(file, [*ROWS[:-1], {"prompt": "q19 ", "completion": "b19"}])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    data = prepared()
    assert data.tokenizer.decode(data.train[19]["input_ids"]) == "q19 b19<|im_end|>"
    assert len(entries(store)) == len(entries(store, "rows")) == 2


def test_the_same_bytes_elsewhere_are_not_encoded_again(
    prepared: Prepare, store: Path, tmp_path: Path
) -> None:
    prepared()
    (tmp_path / "copy").mkdir()
    prepared(f"dataset.data_files={write(tmp_path / 'copy' / 'rows.jsonl', ROWS)}")
    assert len(entries(store)) == 1


@pytest.mark.parametrize("other", ["merges", "specials"])
def test_another_tokenizer_or_special_token_makes_a_new_entry(
    prepared: Prepare, store: Path, models: dict[str, Path], other: str
) -> None:
    prepared()
    prepared(f"model.name_or_path={models[other]}")
    assert len(entries(store)) == 2


def test_another_pad_token_makes_a_new_entry(prepared: Prepare, store: Path) -> None:
    prepared()
    prepared("tokenizer.pad_token='<|im_start|>'")
    assert len(entries(store)) == 2


def test_another_chat_template_makes_a_new_entry(
    prepared: Prepare, store: Path, tmp_path: Path
) -> None:
    chats = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    ]
    run = ("format=messages", f"dataset.data_files={write(tmp_path / 'chats.jsonl', chats)}")
    prepared(*run)
    prepared(*run, "tokenizer.chat_template=chatml_bos_eos")
    assert len(entries(store)) == 2


def test_a_functions_other_answer_makes_new_rows(
    prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "told.txt").write_text("one", encoding="utf-8")
    (tmp_path / "cache_function.py").write_text(
        "from pathlib import Path\n"
        "def tell(row): return {'prompt': row['prompt'], 'completion': "
        "Path('told.txt').read_text()}\n",
        encoding="utf-8",
    )
    run = (
        "format=function",
        "format.function=cache_function.tell",
        "allowed_targets=[cache_function]",
    )
    assert (
        prepared(*run).train[0]["input_ids"][-2:-1] == prepared(*run).train[1]["input_ids"][-2:-1]
    )
    (tmp_path / "told.txt").write_text(
        "two", encoding="utf-8"
    )  # nothing in the config or the code says so
    data = prepared(*run)
    assert data.tokenizer.decode(data.train[0]["input_ids"]) == "q0 two<|im_end|>"


def test_reading_planning_and_writing_hash_a_file_once(
    prepared: Prepare, file: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []

    def counted(opened: Any, name: str) -> Any:
        hashed.append(Path(opened.name))
        return hash_file(opened, name)

    hash_file = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", counted)
    monkeypatch.setattr(storage, "RECENT_S", 0)  # the file is as old as any other
    cfg = compose(
        [f"model.name_or_path={models['plain']}", "dataset=json", f"dataset.data_files={file}"]
    )
    planned = run_key(cfg)
    data = prepared()
    assert key_of(cfg, data.sha256) == planned == run_key(cfg)
    assert hashed.count(file) == 1


def test_dropped_rows_come_back_from_the_cache_with_their_lines(
    prepared: Prepare, tmp_path: Path
) -> None:
    file = write(tmp_path / "bad.jsonl", [*ROWS, {"prompt": "q", "completion": ""}])
    run = (f"dataset.data_files={file}", "preflight.max_empty_rows=1")
    made, again = prepared(*run).preflight.dropped, prepared(*run).preflight.dropped
    assert [str(one.problem()) for one in made] == [str(one.problem()) for one in again]
    assert [one.origin for one in again] == ["bad.jsonl, line 21"]


def test_an_error_while_reading_leaves_no_entry(
    prepared: Prepare, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        prepared(f"dataset.data_files={tmp_path / 'bad.jsonl'}")
    assert [
        path for path in store.rglob("*") if not path.name.endswith(".lock") and path.is_file()
    ] == []


# --- the code -------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package's code."""
    return shutil.copytree(
        Path(sftpipe.__file__).parent,
        tmp_path / "sftpipe",
        ignore=shutil.ignore_patterns("__pycache__", "assets"),
    )


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("data/encode.py", True),
        ("data/chat_template.py", True),
        ("tokenizer/load.py", True),
        ("config/patterns.py", True),
        ("data/preflight/report.py", False),
        ("data/preflight/preview.py", False),
        ("training/trainer.py", False),
    ],
)
def test_only_code_that_makes_rows_is_part_of_their_key(
    package: Path, file: str, counts: bool
) -> None:
    (package.parent / "reworded").mkdir()
    changed = shutil.copytree(package, package.parent / "reworded" / "sftpipe")
    with (changed / file).open("a", encoding="utf-8") as code:
        code.write("# reworded\n")
    assert code_digest(package) == code_digest()
    assert (code_digest(changed) != code_digest()) == counts


# --- eviction -------------------------------------------------------------------------------------


def fill(size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / "data").write_bytes(b"x" * size) and None


def use(key: str, *, size: int = 1000, kind: str = "rows") -> None:
    cached(kind, key, fill(size), lambda folder: None)


def test_eviction_keeps_the_cap_and_removes_what_was_not_used_for_longest(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "CAP_BYTES", 3500)  # three entries of 1,000 bytes and their hashes
    for at, key in enumerate("abc"):
        use(key, kind="rows" if key == "b" else "encoded")
        os.utime(store / ("rows" if key == "b" else "encoded") / key, (at + 1, at + 1))
    use("a", kind="encoded")  # read again, so that b is now the oldest
    use("d")
    assert {*entries(store), *entries(store, "rows")} == {"a", "c", "d"}
    use("e")
    assert {*entries(store), *entries(store, "rows")} == {"a", "d", "e"}


@pytest.mark.parametrize("kind", storage.KINDS)
def test_eviction_sees_every_kind(store: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(storage, "CAP_BYTES", 10)
    use("a", kind=kind)
    use("b")
    assert "a" not in entries(store, kind)


def test_every_kind_of_entry_is_one_that_eviction_sees() -> None:
    code = "".join(
        file.read_text(encoding="utf-8") for file in Path(sftpipe.__file__).parent.rglob("*.py")
    )
    assert {*re.findall(r'\bcached\(\s*"(\w+)"', code)} == {*storage.KINDS}


def test_an_eviction_that_is_killed_leaves_no_half_of_an_entry(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("a")
    monkeypatch.setattr(storage, "CAP_BYTES", 10)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before it removed a file
        use("b")
    assert list(entries(store, "rows")) == ["b"]
    use("c")
    assert [path.name for path in (store / "rows").iterdir() if path.is_dir()] == ["c"]


def test_eviction_removes_the_files_of_killed_processes_after_a_day(store: Path) -> None:
    (store / "rows").mkdir(parents=True)
    for name, age_s in ((".old.arrow", 90_000), (".new.arrow", 3_600)):
        (store / "rows" / name).touch()
        os.utime(store / "rows" / name, (time.time() - age_s,) * 2)
    use("a")
    assert [path.name for path in (store / "rows").glob(".*")] == [".new.arrow"]


def test_an_entry_larger_than_the_cap_is_kept_while_it_is_wanted(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "CAP_BYTES", 10)
    use("a")
    use("b")
    assert list(entries(store, "rows")) == ["b"]


def test_the_rows_of_a_run_outlive_their_eviction(
    prepared: Prepare, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepared()
    monkeypatch.setattr(storage, "CAP_BYTES", 10)
    use("other")
    assert entries(store) == {}
    assert data.tokenizer.decode(data.train[3]["input_ids"]) == "q3 a3<|im_end|>"


# --- processes ------------------------------------------------------------------------------------

BUILDER = """
import os, sys, time
from pathlib import Path
from sftpipe.storage import cached

def build(folder):
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    if sys.argv[2] == "dies":
        (folder / "half").write_text("half")
        os.kill(os.getpid(), 9)
    time.sleep(1)
    (folder / "data").write_text("whole")

print(cached("rows", "key", build, lambda folder: (folder / "data").read_text()))
"""


def start(log: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(log), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_that_ask_at_once_build_once(store: Path, tmp_path: Path) -> None:
    both = [start(tmp_path / "log", "lives") for _ in range(2)]
    printed = [process.communicate(timeout=60) for process in both]
    assert [out for out, _ in printed] == ["whole\n"] * 2
    assert (tmp_path / "log").read_text(encoding="utf-8") == "built\n"
    assert (
        sum("Waiting for another process that makes the same rows" in err for _, err in printed)
        == 1
    )


def test_a_killed_build_leaves_nothing(store: Path, tmp_path: Path) -> None:
    killed = start(tmp_path / "log", "dies")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert entries(store, "rows") == {}  # half of an entry is none
    use("other")
    assert [path.name for path in (store / "rows").iterdir() if path.is_dir()] == ["other"]
    out, _ = start(tmp_path / "log", "lives").communicate(timeout=60)
    assert out == "whole\n"
    assert sorted(path.name for path in (store / "rows" / "key").iterdir()) == ["data", HASHES]


@pytest.mark.slow
def test_a_preparation_that_is_killed_while_it_encodes_is_made_anew(
    prepared: Prepare, store: Path, file: Path, models: dict[str, Path]
) -> None:
    write(file, [{"prompt": f"q{at} " * 20, "completion": f"a{at}"} for at in range(20_000)])
    words = [
        f"model.name_or_path={models['plain']}",
        "dataset=json",
        f"dataset.data_files={file}",
        "format=prompt_completion",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "sftpipe", "check", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    patience = time.monotonic() + 60
    while (
        not list((store / "encoded").glob(".*.partial/*"))
        and process.poll() is None
        and time.monotonic() < patience
    ):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert entries(store) == {}
    write(file, ROWS)
    assert len(prepared().train) == len(ROWS)
    assert [path.name for path in (store / "encoded").iterdir() if path.is_dir()] == list(
        entries(store)
    )
