"""Random files through `prepare`: rows or a clean error, never a traceback and never a hang."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.test_bad_input import Prepare, model, prepared
from sftpipe.errors import SftpipeError

__all__ = ["model", "prepared"]

WORDS = [
    "hi",
    "",
    " ",
    "안녕",
    "\x00",
    "\x1b[31m",
    "<|im_end|>",
    "\ud800",
    "é" * 50,
    '"',
    "\n",
    "a,b",
]
NAMES = ["instruction", "input", "output", "messages", "conversations", "text", "prompt", "system"]
ROLES = ["user", "assistant", "system", "tool", "developer", "human", "gpt", "", None, 3]


def value(draw: random.Random, depth: int = 0) -> Any:
    """A random value of JSON, often shaped like turns."""
    kind = draw.randrange(12)
    if kind < 3 or depth > 3:
        return draw.choice([*WORDS, None, 0, -1, 1.5, True, float("nan"), 10**400, "x" * 5000])
    if kind < 6:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind < 9:
        names = [draw.choice([*NAMES, "role", "content", "from", "value"]) for _ in range(3)]
        return {name: value(draw, depth + 1) for name in names}
    return [
        {
            draw.choice(["role", "role", "from"]): draw.choice(ROLES),
            draw.choice(["content", "content", "value"]): draw.choice(WORDS),
            draw.choice(["weight", "train", "tool_calls", "name"]): value(draw, depth + 2),
        }
        for _ in range(draw.randrange(1, 4))
    ]


def row(draw: random.Random) -> dict[str, Any]:
    return {name: value(draw) for name in draw.sample(NAMES, draw.randrange(1, 5))}


GOOD = {
    "instruction": "a",
    "output": "b",
    "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
    "prompt": "a",
    "completion": "b",
    "text": "a b",
}


def json_lines(draw: random.Random) -> bytes:
    rows = [row(draw) for _ in range(draw.randrange(1, 6))]
    lines = [json.dumps(one) for one in ([GOOD, *rows] if draw.random() < 0.5 else rows)]
    return "\n".join(lines).encode()


def damaged(draw: random.Random, make: Callable[[random.Random], bytes]) -> bytes:
    """A good file with some bytes changed, left out or doubled."""
    data = bytearray(make(draw))
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(len(data) + 1)
        what = draw.randrange(3)
        if what == 0:
            data[at : at + 1] = bytes([draw.randrange(256)])
        elif what == 1:
            del data[at : at + draw.randrange(1, 20)]
        else:
            data[at:at] = data[at : at + draw.randrange(1, 20)]
    return bytes(data)


def table(draw: random.Random) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=draw.choice(",,;|\t"))
    writer.writerow(draw.sample([*NAMES, "", " output"], 3))
    for _ in range(draw.randrange(6)):
        writer.writerow([draw.choice(WORDS) for _ in range(draw.choice([3, 3, 3, 2, 4]))])
    return text.getvalue().encode("utf-8", "surrogatepass")


def parquet(draw: random.Random) -> bytes:
    columns = {
        name: draw.choice(
            [
                ["a", None, "b"],
                [1, 2, 3],
                [b"a", b"b", None],
                [[{"role": "user", "content": "a"}]] * 3,
            ]
        )
        for name in draw.sample(NAMES, 3)
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def nested(draw: random.Random) -> bytes:
    depth = draw.choice([50, 900, 20_000])
    opening = draw.choice(["[", '{"a":'])
    return (
        opening * depth + "1" + {"[": "]", '{"a":': "}"}[opening] * draw.choice([0, depth])
    ).encode()


def noise(draw: random.Random) -> bytes:
    return draw.randbytes(draw.choice([0, 1, 20, 2000]))


def packed(draw: random.Random) -> bytes:
    whole = draw.choice([gzip.compress, bz2.compress])(json_lines(draw))
    return draw.choice([whole, whole[: len(whole) // 2], damaged(draw, lambda _: whole)])


MAKERS: list[tuple[str, Callable[[random.Random], bytes]]] = [
    ("json", json_lines),
    ("json", lambda draw: damaged(draw, json_lines)),
    (
        "json",
        lambda draw: json.dumps(
            [row(draw) for _ in range(3)], indent=draw.choice([None, 1])
        ).encode(),
    ),
    ("json", lambda draw: json.dumps({"data": value(draw), "b": value(draw)}).encode()),
    ("json", nested),
    ("json", noise),
    ("json", packed),
    ("csv", table),
    ("csv", lambda draw: damaged(draw, table)),
    ("csv", noise),
    ("text", noise),
    ("text", json_lines),
    ("parquet", parquet),
    ("parquet", lambda draw: damaged(draw, parquet)),
    ("parquet", noise),
]
FORMATS = ["instruction", "messages", "sharegpt", "prompt_completion", "text", "alpaca"]


def outcomes(prepared: Prepare, folder: Path, seeds: range) -> dict[str, int]:
    """{rows or error: how many files gave that}; any other exception is raised."""
    found = {"rows": 0, "error": 0}
    for seed in seeds:
        draw = random.Random(seed)
        kind, make = MAKERS[seed % len(MAKERS)]
        file = folder / f"{seed}.{kind}"
        file.write_bytes(make(draw))
        form = draw.choice(FORMATS)
        words = [f"dataset={kind}", f"dataset.data_files={file}", f"format={form}"]
        words += ["loss=full"] if form == "text" else []
        message = ""
        try:
            prepared(*words, "preflight.max_empty_rows=1", "preflight.duplicates=warn")
        except SftpipeError as error:
            message = str(error) or "?"
        except Exception as error:
            raise AssertionError(f"seed {seed}: {words}") from error
        assert "Traceback" not in message
        found["error" if message else "rows"] += 1
    return found


def test_random_files_are_rows_or_a_clean_error(prepared: Prepare, tmp_path: Path) -> None:
    found = outcomes(prepared, tmp_path, range(60))
    assert found["rows"] >= 2
    assert found["error"] >= 20


@pytest.mark.slow
def test_a_thousand_random_files_are_rows_or_a_clean_error(
    prepared: Prepare, tmp_path: Path
) -> None:
    found = outcomes(prepared, tmp_path, range(100, 1100))
    assert found["rows"] >= 50
    assert found["error"] >= 300
