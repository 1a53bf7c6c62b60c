"""What the terminal shows of the data and of a run, word for word."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from rich.console import Console

from sftpipe.data.packing import Isolation, PackingReport
from sftpipe.data.preflight.columns import share
from sftpipe.data.preflight.remarks import Said
from sftpipe.data.preflight.report import Preflight, SplitReport
from sftpipe.data.rows import Dropped
from sftpipe.errors import Problem
from sftpipe.runs.load import Run
from sftpipe.tables import (
    dropped_rows,
    isolation_of,
    packing_rows,
    parameter_line,
    plain,
    preflight_facts,
    preflight_summary,
    preflight_tables,
    print_options,
    print_run,
    run_lines,
)
from support.configs import compose
from support.run_folders import METRICS, write_run

# every number differs, so that none can stand in another's place
TRAIN = SplitReport(
    split="train",
    source="a",
    rows=1200,
    tokens=34000,
    trained_tokens=17000,
    length_p50=21.5,
    length_p95=95.4,
    length_p99=99.6,
    length_max=128,
    length_bins=[[1, 64, 900], [65, 128, 300]],
    over_length_rows=3,
    truncated_rows=4,
    lost_answer_tokens=56,
    dropped={"too long": 3, "empty answer": 4},
    end_trained_rows=1080,
    bos_rows={"0": 7, "1": 1190, "2": 5},
    unk_rows=8,
    pad_rows=9,
    repeated_rows=10,
    shared_rows=11,
    shared_prompts=12,
    forged_rows=13,
    compared_rows=20,
)
NOTHING = dataclasses.replace(
    TRAIN,
    rows=0,
    tokens=0,
    trained_tokens=0,
    dropped={},
    end_trained_rows=0,
    source="",
    split="test",
    compared_rows=1,
)
DROPPED = [
    Dropped(at, reason, f"a train[{at}]", f"found {at}", "", f"fix {at}", origin=f"rows.jsonl:{at}")
    for at, reason in enumerate(["too long"] * 3 + ["empty answer"] * 4)
]
PREFLIGHT = Preflight(
    splits=[TRAIN, dataclasses.replace(TRAIN, source="b", rows=800), NOTHING],
    dropped=[*DROPPED, Dropped(0, "too long", "b train[0]", "of b", "", "")],
    remarks=[
        Said("train", "", "unread column", "source", 1, "train[0]"),
        Said("validation", "", "unread column", "source", 2, "validation[0]"),
        Said("train", "", "default system text", "You are kind.", 3, "train[0]"),
    ],
    warnings=[Problem("sft.max_length", "much [room]\nis left", fix="sft.max_length=128")],
    end_tokens={"<|im_end|>": 1080, "\n": 1},
    special_tokens={"pad_token": ["<pad>", 0], "unk_token": ["None", None]},
    padding_share=0.125,
    packing=None,
)
PACKING = PackingReport(
    "bfd", {"train": [1200, 300]}, {"train": 0.987}, Isolation("positions", 1.5e-6)
)


def shown(preflight: Preflight) -> list[list[str]]:
    """The words of the lines of the two tables."""
    out = Console(width=100, no_color=True)
    with out.capture() as capture:
        for table in preflight_tables(preflight):
            out.print(table)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 100
    return [line.split() for line in lines]


def test_the_tables_show_each_number_below_its_heading() -> None:
    sizes, first, second, empty, findings, third, *_ = shown(PREFLIGHT)
    assert " ".join(sizes) == (
        "split rows tokens trained p50 p95 p99 longest too long cut answers lost"
    )
    assert " ".join(first) == "a train 1,200 34,000 50.0% 22 95 100 128 3 4 56"
    assert second[:3] == ["b", "train", "800"]
    assert empty[:4] == ["test", "0", "0", "-"]
    assert " ".join(findings) == (
        "split dropped end trained BOS 0/1/2 UNK PAD forged repeated in 2 splits prompt in 2"
    )
    assert " ".join(third) == "a train 7 90.0% 7/1,190/5 8 9 13 10 11 12"


def test_the_summary_adds_up_sources_and_names_what_was_dropped_and_each_warning() -> None:
    assert preflight_summary(PREFLIGHT).splitlines() == [
        "2,000 train, 0 test rows",
        "dropped   of train: 8 x empty answer, 6 x too long; `sftpipe check` lists them",
        "warning   sft.max_length: much [room]; `sftpipe check` says what to do",
    ]


def test_the_facts_about_all_splits_have_a_line_each() -> None:
    facts = [
        "pad_token  <pad> 0",
        "unk_token  None ",
        "answers end in <|im_end|>,",
        "compared   41 rows with the prompt of generation, and with their text",
        "not read   column source (3 rows)",
        "padding    12.5% of the tokens in training batches (an estimate)",
    ]
    assert list(preflight_facts(PREFLIGHT)) == facts

    packed = dataclasses.replace(PREFLIGHT, packing=PACKING, end_tokens={})
    assert list(preflight_facts(packed)) == [
        *facts[:2],
        "answers end in no special token",
        *facts[3:],
        "packing    bfd: 1,200 train rows in 300, 98.7% full",
        "isolation  positions that restart; packing moves a logit by 2e-06 standard deviations",
    ]


def test_a_batch_that_is_packed_as_it_comes_has_no_rows_to_count() -> None:
    report = PackingReport("padding_free", {}, {}, None)
    assert packing_rows(report) == "padding_free: each batch is one row"


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (None, "none: rows are joined, and see each other, by design"),
        (Isolation("positions"), "positions that restart; trusted, not measured"),
        (Isolation("mask"), "a block-diagonal mask; trusted, not measured"),
        (
            Isolation("mask", 2e-7, 0.125),
            "a block-diagonal mask; packing moves a logit by 2e-07 standard deviations; "
            "positions alone leak 0.12",
        ),
    ],
)
def test_the_isolation_of_packed_rows_says_how_and_how_well(
    found: Isolation | None, text: str
) -> None:
    assert isolation_of(found) == text


def test_the_first_three_rows_of_each_reason_are_listed() -> None:
    def row(at: int) -> str:
        return f"  a train[{at}] (rows.jsonl:{at}): found {at}\n    fix {at}"

    assert list(dropped_rows(PREFLIGHT)) == [
        "\na train: 3 dropped, too long",
        *map(row, (0, 1, 2)),
        "\na train: 4 dropped, empty answer",
        *map(row, (3, 4, 5)),
        "\nb train: 3 dropped, too long",
        "  b train[0]: of b",
        "\nb train: 4 dropped, empty answer",
    ]


def test_a_share_of_nothing_is_a_dash() -> None:
    assert [share(1, 3), share(2, 2), share(0, 2), share(0, 0)] == ["33.3%", "100.0%", "0.0%", "-"]


def test_a_text_of_the_data_is_shown_as_it_is_on_one_line() -> None:
    assert plain("a\n [bold]b[/]") == r"a \[bold]b\[/]"


def test_the_lines_of_a_run() -> None:
    assert run_lines("base==1", "a CPU", Path("a/b")) == (
        "weights   base==1\ndevice    a CPU\nfolder    a/b"
    )
    assert (
        parameter_line(1234567, 12345670) == "training  1,234,567 of 12,345,670 parameters (10.00%)"
    )


def test_a_run_ends_in_its_story(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [
        {"phase": "before", "prompt": "Who\nare [you]?", "completion": "[red]a"},
        {"phase": "after", "prompt": "Who\nare [you]?", "completion": "b\x1b[31m\nc"},
    ]
    run = write_run(tmp_path / "run", samples=samples, evaluation=None)

    print_run(Run(run, compose(), METRICS))

    first, *lines = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert first.endswith("its validation loss fell from 3.000 to 1.250.")
    assert lines == [
        "",
        "validation loss 3.000 -> 1.250, perplexity 20.09 -> 3.49",
        "test       loss 1.375",
        "training   loss 2.000, 1,234 tokens/s, peak memory 1.5 GiB",
        "prompt     Who are [you]?",
        "before     [red]a",
        "after      b\\x1b[31m c",
        "",
        f"report     {run}/report.html",
        f"next       sftpipe evaluate run={run}",
        f"           sftpipe chat run={run}",
    ]


def test_options_are_listed_below_their_group(capsys: pytest.CaptureFixture[str]) -> None:
    print_options({"lora": {"none": "No [adapter]."}, "loss": {}})
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["lora", "  none  No [adapter].", "loss"]
