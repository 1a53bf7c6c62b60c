"""Encoded rows are cached by content: made once, made again for anything that they depend on, and
evicted oldest first.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
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

import numpy as np
import pytest

import sftpipe
from sftpipe import DataError, PreparedData, prepare, storage
from sftpipe.data.encode import Encoder
from sftpipe.data.labels import IGNORED
from sftpipe.data.source import fingerprint
from sftpipe.data.version import code_digest
from sftpipe.storage import HASHES, cached
from support.byte_model import write_byte_model
from support.configs import compose
from support.sources import write_rows

Prepare = Callable[..., PreparedData]
ROWS = [{"prompt": f"q{at} ", "completion": f"a{at}"} for at in range(20)]
ALL_LINES = "\n".join(map(json.dumps, ROWS))


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
    return write_rows(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def prepared(models: dict[str, Path], file: Path, store: Path) -> Prepare:
    named = {"model.name_or_path": str(models["plain"]), "dataset.data_files": str(file)}

    def run(*overrides: str) -> PreparedData:
        plain = ["evaluation=none", "dataset=json", "format=prompt_completion"]
        cfg = compose([*(f"{key}=X" for key in named), *plain, *overrides])
        for key, value in named.items():  # a path of this test, unless the overrides name another
            group, name = key.split(".")
            if getattr(getattr(cfg, group), name) == "X":
                setattr(getattr(cfg, group), name, value)
        return prepare(cfg)

    return run


def entries(store: Path, kind: str = "encoded") -> set[str]:
    """The names of whole entries."""
    return {
        entry.name
        for entry in (store / kind).glob("*")
        if (entry / HASHES).is_file() and entry.name[0] != "."
    }


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of samples of each call of an encoder."""
    counts = []
    encode = Encoder.encode

    def counting(encoder: Encoder, samples: Any, locations: Any) -> Any:
        counts.append(len(samples))
        return encode(encoder, samples, locations)

    monkeypatch.setattr(Encoder, "encode", counting)
    return counts


def rows_of(data: PreparedData) -> list[Any]:
    return [data.train[at] for at in range(len(data.train))]


# --- keys -----------------------------------------------------------------------------------------


def test_a_second_preparation_encodes_nothing(
    prepared: Prepare, store: Path, encoded: list[int]
) -> None:
    first, again = prepared(), prepared()
    assert encoded == [20]
    assert rows_of(again) == rows_of(first)
    assert again.preflight == first.preflight
    assert len(entries(store)) == 1


def test_what_rows_do_not_depend_on_makes_no_new_entry(
    prepared: Prepare, store: Path, encoded: list[int]
) -> None:
    rows = rows_of(prepared())
    for overrides in (
        ["seed=7"],
        ["sft.learning_rate=1", "lora=default"],
        ["sft.max_length=900"],
        ["over_length=drop", "preflight.max_empty_rows=0.5"],
        ["dataset.num_proc=1"],
    ):
        assert rows_of(prepared(*overrides)) == rows, overrides
    assert encoded == [20]
    assert len(entries(store)) == 1


def test_whatever_rows_depend_on_makes_an_entry_of_its_own(prepared: Prepare, store: Path) -> None:
    pattern = ["format=template", "format.prompt='{prompt}'", "format.completion='{completion}'"]
    text = ["dataset=text", "format=text", "loss=full"]
    known: set[str] = set()
    for overrides, last, trained in (
        ([], "q19 a19", 4),
        (pattern, "q19 a19", 4),
        ([*pattern, "format.prompt='{prompt}:'"], "q19 :a19", 4),
        (["loss=full"], "q19 a19", 8),
        (["loss.boundary=joint"], "q19 a19", 4),
        (["dataset.columns={completion: prompt, prompt: completion}"], "a19q19 ", 5),
        (["dataset.limit=19"], "q18 a18", 4),
        (["dataset.limit=18"], "q17 a17", 4),
        (["dataset.markers=strip", "dataset.marker_tokens=[q]"], "19 a19", 4),
        (["dataset.markers=strip", "dataset.marker_tokens=[a]"], "q19 19", 3),
        (["preflight.forged_turns=escape"], "q19 a19", 4),
        (["over_length=truncate", "sft.max_length=8"], "q19 a19", 4),
        (["over_length=truncate", "sft.max_length=7"], "19 a19", 4),
        ([*text, "dataset.sample_by=paragraph"], ALL_LINES, len(ALL_LINES) + 1),
        ([*text, "dataset.sample_by=line"], ALL_LINES.splitlines()[-1], 40),
    ):
        data = prepared(*overrides)
        now, row = entries(store), data.train[-1]
        assert len(now - known) == 1, overrides
        assert data.tokenizer.decode(row["input_ids"]) == f"{last}<|im_end|>", overrides
        assert sum(label != IGNORED for label in row["labels"]) == trained, overrides
        known = now


def test_each_shuffle_seed_gives_the_rows_in_its_own_order(prepared: Prepare, store: Path) -> None:
    for seed in (1, 2):
        data = prepared(f"dataset.shuffle_seed={seed}")
        order = np.random.default_rng(seed).permutation(len(ROWS))  # what `datasets` shuffles by
        assert [data.tokenizer.decode(row["input_ids"]) for row in data.train] == [
            f"q{at} a{at}<|im_end|>" for at in order
        ]
    assert len(entries(store)) == 2


def test_other_bytes_of_the_data_make_new_rows_even_under_the_same_name_size_and_time(
    prepared: Prepare, store: Path, file: Path
) -> None:
    prepared()
    before = file.stat()
    write_rows(file, [*ROWS[:-1], {"prompt": "q19 ", "completion": "b19"}])
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
    prepared(f"dataset.data_files={write_rows(tmp_path / 'copy' / 'rows.jsonl', ROWS)}")
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
    run = ("format=messages", f"dataset.data_files={write_rows(tmp_path / 'chats.jsonl', chats)}")
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
    monkeypatch.setattr(storage, "RECENT_S", -math.inf)  # whatever clock its file system has
    cfg = compose(
        [f"model.name_or_path={models['plain']}", "dataset=json", f"dataset.data_files={file}"]
    )
    planned = fingerprint(cfg.dataset)
    data = prepared()
    assert data.sha256 == planned == fingerprint(cfg.dataset)
    assert hashed.count(file) == 1


def test_dropped_rows_come_back_from_the_cache_with_their_lines(
    prepared: Prepare, tmp_path: Path
) -> None:
    rows = [{"prompt": 3, "completion": "a"}, *ROWS, {"prompt": "q", "completion": ""}]
    file = write_rows(tmp_path / "bad.jsonl", rows)
    run = (f"dataset.data_files={file}", "preflight.max_empty_rows=1")
    made, again = prepared(*run).preflight.dropped, prepared(*run).preflight.dropped
    assert [str(one.problem()) for one in made] == [str(one.problem()) for one in again]
    assert [(one.origin, one.reason) for one in again] == [
        ("bad.jsonl, line 1", "wrong type"),
        ("bad.jsonl, line 22", "empty text"),
    ]


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


@pytest.mark.parametrize("library", ["datasets", "tokenizers", "transformers"])
def test_another_version_of_a_library_makes_other_keys(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert code_digest.__wrapped__() == code_digest()
    monkeypatch.setattr(importlib.import_module(library), "__version__", "0.0.0")
    assert code_digest.__wrapped__() != code_digest()


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
    assert entries(store) | entries(store, "rows") == {"a", "c", "d"}
    use("e")
    assert entries(store) | entries(store, "rows") == {"a", "d", "e"}


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
    assert entries(store, "rows") == {"b"}
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
    assert entries(store, "rows") == {"b"}


def test_the_rows_of_a_run_outlive_their_eviction(
    prepared: Prepare, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepared()
    monkeypatch.setattr(storage, "CAP_BYTES", 10)
    use("other")
    assert entries(store) == set()
    assert data.tokenizer.decode(data.train[3]["input_ids"]) == "q3 a3<|im_end|>"


# --- processes ------------------------------------------------------------------------------------

BUILDER = """
import os, sys
from sftpipe.storage import cached

def build(folder):
    print("building", flush=True)
    (folder / "data").write_text("half")
    if sys.argv[1] == "dies":
        os.kill(os.getpid(), 9)
    sys.stdin.readline()
    (folder / "data").write_text("whole")

print(cached("rows", "key", build, lambda folder: (folder / "data").read_text()))
"""


def start(mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_that_ask_at_once_build_once(store: Path) -> None:
    builder = start("lives")
    assert builder.stdout
    assert builder.stdout.readline() == "building\n"
    waiter = start("lives")
    assert waiter.stderr
    assert "Waiting for another process that makes the same rows" in waiter.stderr.readline()
    assert entries(store, "rows") == set()
    assert builder.communicate("\n", timeout=60)[0] == "whole\n"
    assert waiter.communicate(timeout=60)[0] == "whole\n"


def test_a_killed_build_leaves_nothing(store: Path) -> None:
    killed = start("dies")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert entries(store, "rows") == set()  # half of an entry is none
    use("other")
    assert [path.name for path in (store / "rows").iterdir() if path.is_dir()] == ["other"]
    out, _ = start("lives").communicate("\n", timeout=60)
    assert out == "building\nwhole\n"
    assert sorted(path.name for path in (store / "rows" / "key").iterdir()) == ["data", HASHES]


@pytest.mark.slow
def test_a_preparation_that_is_killed_while_it_encodes_is_made_anew(
    prepared: Prepare, store: Path, file: Path, models: dict[str, Path]
) -> None:
    write_rows(file, [{"prompt": f"q{at} " * 20, "completion": f"a{at}"} for at in range(20_000)])
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
    assert entries(store) == set()
    write_rows(file, ROWS)
    assert len(prepared().train) == len(ROWS)
    folders = {path.name for path in (store / "encoded").iterdir() if path.is_dir()}
    assert folders == entries(store)
