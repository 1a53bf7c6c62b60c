"""Generated rows, what is compared with what, and the memory of a process."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from sftpipe.bench import data

INSTRUCTIONS = list(data._instructions(300))


def test_generated_rows_are_the_same_each_time_and_all_differ() -> None:
    assert list(data._instructions(300)) == INSTRUCTIONS
    assert list(itertools.islice(data._instructions(9), 3)) == INSTRUCTIONS[:3]
    assert [row["instruction"].partition(":")[0] for row in INSTRUCTIONS] == [
        str(number) for number in range(300)
    ]
    assert [bool(row["input"]) for row in INSTRUCTIONS] == [True, False, False] * 100
    for row in INSTRUCTIONS:
        assert re.fullmatch(r"\d+: [A-Z][a-z ]+\.", row["instruction"])
        assert row["output"].endswith(".")
    lengths = sorted(len(row["output"].split()) for row in INSTRUCTIONS)
    assert lengths[150] < 16 < lengths[-30]  # mostly short, as answers are


def test_rows_become_the_conversations_that_trl_wants(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "Hi."},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def turn(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    assert list(data._conversations(file)) == [
        {"prompt": turn("user", "Add.\n1, 2"), "completion": turn("assistant", "3")},
        {"prompt": turn("user", "Greet."), "completion": turn("assistant", "Hi.")},
    ]


def test_rows_are_the_same_except_for_the_line_break_after_the_end() -> None:
    # 9 is the line break, which TRL trains
    rows = {
        "equal": ([1, 2, 9], [-100, 2, -100], [0, 1, 1]),
        "other label": ([1, 2, 9], [-100, -100, -100], [0, 1, 1]),
        "other ids": ([1, 3, 9], [-100, 3, -100], [0, 1, 1]),
        "no line break": ([1, 2], [1, 2], [1, 1]),
    }
    ours = datasets.Dataset.from_list(
        [{"input_ids": ids, "labels": labels} for ids, labels, _ in rows.values()]
    )
    ids = [[1, 2, 9], [1, 2, 9], [1, 2, 9], [1, 2]]
    theirs = datasets.Dataset.from_list(
        [
            {"input_ids": found, "completion_mask": mask}
            for found, (_, _, mask) in zip(ids, rows.values(), strict=True)
        ]
    )
    assert data._compared(ours, theirs, [9]) == (2, 3 + 3 + 3 + 2)


def test_a_process_is_measured_by_the_memory_that_it_holds_itself() -> None:
    steps = "held = bytearray(b'x') * 2**26", "del held", ""
    with subprocess.Popen(
        [sys.executable, "-c", "; print(flush=True); input(); ".join(steps)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        with_it = data._own_memory(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        without = data._own_memory(process.pid)
        process.stdin.write("\n")
    assert with_it - without == pytest.approx(2**26, rel=0.1)
