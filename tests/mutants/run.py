"""Would the tests notice? Small faults in the source, one at a time (`make mutants`).

The faults are reviewed data: the YAML files beside this one, one for each folder of the source.
Every entry has

    file     the module, below src/sftpipe
    find     text that occurs exactly once in it
    replace  what stands there instead, "" to delete it
    why      what a user would lose
    tests    what should notice it: files or tests of the default run
    slow     (only where the default run cannot notice it) why; `tests` are then slow ones

The faults are put into copies of the tree, never into the tree itself. Words after `run.py` choose
faults by a part of their `file` or `find`.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
SOURCE = Path("src", "sftpipe")
COPIED = ("conf", "docs", "recipes", "src", "tests")
WORKERS = os.cpu_count() or 1
LIBRARIES = (
    "bitsandbytes",
    "datasets",
    "hydra",
    "matplotlib.figure",
    "peft",
    "trl.trainer.sft_trainer",
)
NOTICED_AT_LEAST = 0.95


@dataclass(frozen=True)
class Mutant:
    """One fault, as its entry says."""

    file: str
    find: str
    replace: str
    why: str
    tests: tuple[str, ...]
    slow: str = ""

    def apply(self, tree: Path) -> str:
        """Write the fault into the tree; returns the text that was there.

        Raises:
            ValueError: `find` does not occur exactly once.
        """
        path = tree / SOURCE / self.file
        text = path.read_text(encoding="utf-8")
        if (found := text.count(self.find)) != 1:
            raise ValueError(f"{self.file}: {self.find!r} occurs {found} times")
        path.write_text(text.replace(self.find, self.replace), encoding="utf-8")
        return text


def load_mutants() -> list[Mutant]:
    """All entries, in the order of files and lines."""
    entries = [
        entry
        for file in sorted(HERE.glob("*.yaml"))
        for entry in yaml.safe_load(file.read_text(encoding="utf-8"))
    ]
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def _copy(folder: Path) -> Path:
    """The part of the repository that tests read, without compiled files."""
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for file in (path for path in REPOSITORY.iterdir() if path.is_file()):
        shutil.copy2(file, folder)
    return folder


def _start(tree: Path, tests: Sequence[str], options: Sequence[str], log: Path) -> int:
    """Run tests of a copy on its source, in a child that has the heavy libraries already.

    Returns:
        The id of the process.
    """
    child = os.fork()
    if child:
        return child
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(tree)
    # in front of the checkout, which an editable install has put on the path; also for children
    sys.path.insert(0, str(tree / "src"))
    os.environ["PYTHONPATH"] = str(tree / "src")
    ended = 99
    try:
        temporary = f"--basetemp={log.with_suffix('')}"
        # pytest cannot rewrite the asserts of plugins that are loaded already
        quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        words = ["-q", "-n0", "-p", "no:cacheprovider", temporary, *quiet, *options, *tests]
        ended = int(pytest.main(words))
    finally:
        sys.stdout.flush()
        os._exit(ended)


def _check_unchanged(mutants: Sequence[Mutant], tree: Path, log: Path) -> None:
    """The tests must pass on the source as it is.

    Raises:
        SystemExit: one of them fails.
    """
    for slow in (False, True):
        tests = sorted({t for m in mutants if bool(m.slow) is slow for t in m.tests})
        if tests:
            _, status = os.waitpid(_start(tree, tests, _options(slow), log), 0)
            if os.waitstatus_to_exitcode(status):
                sys.exit(f"these tests fail without any fault:\n{_end(log)}")


def _options(slow: bool) -> list[str]:
    return ["-x", "--timeout=600", *(["-m", "slow"] if slow else [])]


def _end(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-3000:]


def run(mutants: Sequence[Mutant]) -> dict[Mutant, str]:
    """Try every mutant, on as many copies of the tree as there are cores.

    Returns:
        {mutant: `noticed`, `survived`, or what pytest said where it ran no test}

    Raises:
        SystemExit: a test fails on the source as it is.
    """
    outcomes: dict[Mutant, str] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name).absolute()
        free = [_copy(folder / f"tree{n}") for n in range(WORKERS)]
        _check_unchanged(mutants, free[0], folder / "unchanged.log")
        waiting, running = list(enumerate(mutants)), {}
        while waiting or running:
            while waiting and free:
                number, mutant = waiting.pop(0)
                tree, log = free.pop(), folder / f"{number}.log"
                before = mutant.apply(tree)
                child = _start(tree, mutant.tests, _options(bool(mutant.slow)), log)
                running[child] = (mutant, tree, before, log)
            child, status = os.wait()
            mutant, tree, before, log = running.pop(child)
            (tree / SOURCE / mutant.file).write_text(before, encoding="utf-8")
            free.append(tree)
            ended = os.waitstatus_to_exitcode(status)
            outcomes[mutant] = {0: "survived", 1: "noticed"}.get(
                ended, f"pytest ended with {ended}: {_end(log)}"
            )
            shutil.rmtree(log.with_suffix(""), ignore_errors=True)
            said = outcomes[mutant].partition(":")[0]
            print(f"{len(outcomes):4}  {said:9} {mutant.file}: {mutant.why}", flush=True)
    return outcomes


def _load_libraries() -> None:
    """Import what costs seconds, once for all children; nothing of the project itself."""
    os.environ.update(
        HF_HUB_OFFLINE="1",
        OMP_NUM_THREADS="1",
        PYTHONDONTWRITEBYTECODE="1",  # an edit in the same second would meet the old bytecode
        SFTPIPE_GOLDEN=os.environ.get("SFTPIPE_GOLDEN", str(REPOSITORY.parent / "shared/golden")),
    )
    for library in LIBRARIES:
        importlib.import_module(library)
    assert "sftpipe" not in sys.modules


def main(words: Sequence[str]) -> int:
    """Run the chosen mutants; returns 0 where the tests notice enough."""
    mutants = [m for m in load_mutants() if not words or any(w in m.file + m.find for w in words)]
    if not mutants:
        sys.exit(f"no mutant has one of {', '.join(words)} in its file or text")
    _load_libraries()
    outcomes = run(mutants)
    missed = [m for m in mutants if outcomes[m] != "noticed"]
    for mutant in missed:
        print(f"\n{mutant.file}: {mutant.why}\n- {mutant.find}\n+ {mutant.replace}")
        print(outcomes[mutant])
    by_default = sum(outcomes[m] == "noticed" and not m.slow for m in mutants)
    by_slow = sum(outcomes[m] == "noticed" and bool(m.slow) for m in mutants)
    share = f"{by_default} of {len(mutants)} ({by_default / len(mutants):.1%})"
    print(f"\nnoticed by the default tests: {share}; by slow ones: {by_slow}")
    return int(bool(missed) or by_default < NOTICED_AT_LEAST * len(mutants))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
