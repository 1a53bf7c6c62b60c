"""The parts of the measurements, by name."""

from __future__ import annotations

import inspect

from sftpipe.bench import PARTS, WITH_PEER
from sftpipe.verbs import VERBS


def test_each_part_has_a_name_says_what_it_measures_and_is_in_the_help() -> None:
    assert list(PARTS) == [
        "step",
        "train",
        "growth",
        "start",
        "data",
        "memory",
        "generate",
        "sweep",
        "ddp",
    ]
    assert all(part.__doc__ for part in PARTS.values())
    lines = VERBS["bench"].details.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(PARTS)


def test_one_part_takes_the_python_of_another_program() -> None:
    takes = [n for n, part in PARTS.items() if "peer_python" in inspect.signature(part).parameters]
    assert takes == [WITH_PEER]
