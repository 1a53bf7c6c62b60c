"""The tree of errors: every text can be printed, every class is drawn."""

from __future__ import annotations

import pickle
import re
import signal

import pytest

import sftpipe
from sftpipe import errors
from sftpipe.errors import (
    ConfigError,
    DataError,
    ExportError,
    Interrupted,
    ModelError,
    Problem,
    RankError,
    RowError,
    RunError,
    SftpipeError,
    StorageError,
    SweepError,
    TrainingError,
    nearest,
    override,
)

PROBLEM = Problem("lora.rank", "unknown key", allowed="r, lora_alpha", fix="did you mean lora.r?")
TEXT = "lora.rank: unknown key\n    allowed: r, lora_alpha\n    did you mean lora.r?"
FIXABLE = [
    SftpipeError,
    StorageError,
    TrainingError,
    ExportError,
    ConfigError,
    DataError,
    ModelError,
    RunError,
]


def tree(cls: type[SftpipeError] = SftpipeError) -> set[type[SftpipeError]]:
    """A class and all below it."""
    return {cls}.union(*(tree(below) for below in cls.__subclasses__()))


@pytest.mark.parametrize("cls", FIXABLE)
def test_an_error_prints_its_problem_and_exits_with_2(cls: type[SftpipeError]) -> None:
    error = cls(PROBLEM)
    assert str(error) == TEXT
    assert error.problems == (PROBLEM,)
    assert error.exit_code == 2


@pytest.mark.parametrize("cls", FIXABLE)
def test_an_error_prints_all_its_problems(cls: type[SftpipeError]) -> None:
    assert str(cls(PROBLEM, Problem("seed", "'a'"))) == f"{TEXT}\nseed: 'a'"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_exits_with_128_and_the_signal(signum: int, code: int) -> None:
    error = Interrupted(signum, PROBLEM)
    assert str(error) == TEXT
    assert error.exit_code == code


def test_a_row_error_is_a_data_error_that_knows_its_reason() -> None:
    error = RowError("empty text", PROBLEM)
    assert isinstance(error, DataError)
    assert str(error) == TEXT
    assert (error.reason, error.problem, error.problems, error.exit_code) == (
        "empty text",
        PROBLEM,
        (PROBLEM,),
        2,
    )


def test_failed_jobs_of_a_sweep_exit_with_1() -> None:
    assert (str(SweepError(PROBLEM)), SweepError.exit_code) == (TEXT, 1)
    assert (str(RankError(143, PROBLEM)), RankError(143, PROBLEM).exit_code) == (TEXT, 143)


def test_the_tests_above_cover_the_whole_tree() -> None:
    assert tree() == {*FIXABLE, RowError, Interrupted, RankError, SweepError}


def test_the_drawn_tree_names_exactly_the_classes_there_are() -> None:
    drawn = re.findall(
        r"^ +(?:│ +)?(?:[├└]── )?([A-Z]\w+) {2,}", errors.__doc__ or "", flags=re.MULTILINE
    )
    assert sorted(drawn) == sorted(cls.__name__ for cls in tree())


def test_every_class_of_the_tree_is_public() -> None:
    assert {cls.__name__ for cls in tree()} | {"Problem"} <= set(sftpipe.__all__)


@pytest.mark.parametrize("cls", FIXABLE)
def test_an_error_of_a_worker_process_arrives_whole(cls: type[SftpipeError]) -> None:
    copied = pickle.loads(pickle.dumps(cls(PROBLEM)))
    assert type(copied) is cls
    assert str(copied) == TEXT


def test_a_row_error_of_a_worker_process_arrives_whole() -> None:
    copied = pickle.loads(pickle.dumps(RowError("empty text", PROBLEM)))
    assert type(copied) is RowError
    assert (copied.reason, copied.problem, str(copied)) == ("empty text", PROBLEM, TEXT)


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("a.b", "1"), "a.b: 1"),
        (Problem("a.b", "1", allowed="2 or 3"), "a.b: 1\n    allowed: 2 or 3"),
        (Problem("a.b", "1", fix="a.b=2"), "a.b: 1\n    a.b=2"),
        (
            Problem("a.b", "1", allowed="2 or 3", fix="a.b=2"),
            "a.b: 1\n    allowed: 2 or 3\n    a.b=2",
        ),
    ],
)
def test_a_problem_prints_the_parts_that_it_has(problem: Problem, text: str) -> None:
    assert str(problem) == text


@pytest.mark.parametrize(
    ("fix", "commands"),
    [
        ("", ()),
        ("leave it out", ()),
        ("`lora=default`, or leave it out", ("lora=default",)),
        ("`lora=default`, or `pip install x`", ("lora=default", "pip install x")),
    ],
)
def test_what_can_be_typed_is_known_without_the_prose(fix: str, commands: tuple[str, ...]) -> None:
    problem = Problem("lora", "none", fix=fix)
    assert problem.commands == commands
    assert "`" not in str(problem)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("lora.r", "8", "`lora.r=8`"),
        ("output_dir", "/a/b-c_d.e", "`output_dir=/a/b-c_d.e`"),
        ("dataset.sources", "[{path: json}]", '`"dataset.sources=[{path: json}]"`'),
        ("format.prompt", "' {a}'", "`\"format.prompt=' {a}'\"`"),
        ("seed", '"[1"', "`'seed=\"[1\"'`"),
        ("run", "$HOME", "`'run=$HOME'`"),
        ("run", "a`b", "run=a`b"),
        ("dataset.sources[1].name", "yoda", "write name: yoda into dataset.sources[1]"),
    ],
)
def test_an_override_is_written_as_a_shell_takes_it(key: str, value: str, text: str) -> None:
    assert override(key, value) == text


def test_the_reviewed_texts_are_those_that_a_test_pins(stale_sections: set[str]) -> None:
    assert stale_sections == set(), "to drop them: make golden"


def test_equal_problems_are_one_in_a_set() -> None:
    assert (
        len(
            {
                PROBLEM,
                Problem(
                    "lora.rank", "unknown key", allowed="r, lora_alpha", fix="did you mean lora.r?"
                ),
            }
        )
        == 1
    )


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("lora_alpah", ["lora_dropout", "lora_alpha"], "lora_alpha"),
        ("yoda", ["yoda_full", "yoda"], "yoda"),
        ("completoin", ("prompt", "completion"), "completion"),
        ("learning_rate", ["warmup", "seed"], None),
        ("a", [], None),
        ("", ["a", "b"], None),
    ],
)
def test_nearest_is_a_close_name_or_nothing(
    name: str, options: list[str], match: str | None
) -> None:
    assert nearest(name, options) == match


def test_nearest_takes_any_iterable() -> None:
    assert nearest("trian", (split for split in ("train", "test"))) == "train"
