"""The report on finished rows, and the limits that they must keep."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from tokenizers import Regex, normalizers

from sftpipe.data.encode import Encoder
from sftpipe.data.labels import IGNORED
from sftpipe.data.packing import Isolation
from sftpipe.data.preflight.checks import less_than_one_batch, pattern_override
from sftpipe.data.preflight.facts import equal_before, padding_of, padding_share
from sftpipe.data.preflight.report import Preflight, SplitReport, check_data
from sftpipe.data.prepare import PreparedData, _joined
from sftpipe.data.rows import TOO_LONG, Dropped, Part
from sftpipe.data.samples import Conversation, PromptCompletion, Sample
from sftpipe.errors import DataError, Problem, RowError
from sftpipe.tables import preflight_summary
from support.configs import compose
from support.errors import Pin, places, refused, told
from support.rows import prepare_data, split_of

Write = Callable[..., str]
Row = dict[str, Any]


# `datasets` forks its processes, which Python 3.12 and later warn of where a thread is running (a
# native one of torch, say)
FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def row(*ids: int, trained: int = 1, **facts: Any) -> Row:
    """A row whose last `trained` tokens are trained."""
    masked = len(ids) - trained
    return {
        "input_ids": list(ids),
        "labels": [IGNORED] * masked + list(ids[masked:]),
        "cut": 0,
        "lost": 0,
        "escaped": False,
        **facts,
    }


def lost(index: int, reason: str = "empty text", origin: str = "") -> Dropped:
    return Dropped(
        index, reason, f"train[{index}].text", "an empty string", "text", "fix it", origin
    )


def long(index: int, tokens: int, trained: int = 1) -> Dropped:
    return Dropped(
        index,
        TOO_LONG,
        f"train[{index}]",
        f"{tokens} tokens",
        "",
        "",
        f"rows.jsonl, line {index + 1}",
        tokens,
        trained,
    )


COLUMNS = Features(
    {
        "input_ids": List(Value("int32")),
        "labels": List(Value("int32")),
        "length": Value("int32"),
        "index": Value("int64"),
        "cut": Value("int32"),
        "lost": Value("int32"),
        "escaped": Value("bool"),
    }
)


def part(
    split: str,
    *rows: Row,
    source: str = "",
    dropped: Sequence[Dropped] = (),
    samples: Sequence[Sample] = (),
) -> Part:
    """Finished rows, the first at place 0; without samples nothing is compared."""
    placed = {
        name: [row[name] for row in rows] for name in COLUMNS if name not in ("index", "length")
    }
    placed["index"] = list(range(len(rows)))
    placed["length"] = [len(row["input_ids"]) for row in rows]
    table = Dataset.from_dict(placed, features=COLUMNS)
    return Part(
        split,
        source,
        len(rows) + len(dropped),
        table,
        dropped,
        lambda index: samples[index : index + 1],
        lambda index: "",
    )


def check(*parts: Part, tokenizer: Any, **overrides: Any) -> Preflight:
    keys = {key if key == "loss" else f"preflight.{key}": key for key in overrides}
    cfg = compose([f"{written}={overrides[key]}" for written, key in keys.items()])
    grouped: dict[str, list[Part]] = {}
    for one in parts:
        grouped.setdefault(one.split, []).append(one)
    rows = {split: _joined(group) for split, group in grouped.items()}
    return check_data(grouped, rows, Encoder(tokenizer, cfg.loss), cfg, None)


def error_of(*parts: Part, tokenizer: Any, **overrides: Any) -> DataError:
    return refused(DataError, lambda: check(*parts, tokenizer=tokenizer, **overrides))


# --- counting (SmolLM2: 0 is PAD and UNK, 1 is BOS, 2 is EOS; 17 and up are no special tokens) ----


def test_a_split_is_counted(tokenizer: Any) -> None:
    rows = [
        row(1, 20, 21, 2, trained=3),
        row(20, 2, cut=2, lost=5),
        row(22, 23, 24, escaped=True),
        row(20, 2),
        row(25, 0, 26, 2),
    ]
    dropped = [lost(5), long(6, 40, trained=7), lost(7, "forged turn"), lost(8)]
    report = check(
        part("train", *rows, dropped=dropped),
        tokenizer=tokenizer,
        max_empty_rows=0.5,
        max_over_length_rows=0.5,
    )
    assert report.splits == [
        SplitReport(
            split="train",
            source="",
            rows=5,
            tokens=15,
            trained_tokens=7,
            length_p50=3,
            length_p95=4,
            length_p99=4,
            length_max=4,
            length_bins=[[2, 2, 2], [3, 3, 1], [4, 4, 2]],
            over_length_rows=1,
            truncated_rows=1,
            lost_answer_tokens=12,
            dropped={"empty text": 2, TOO_LONG: 1, "forged turn": 1},
            end_trained_rows=4,
            bos_rows={"0": 4, "1": 1, "2": 0},
            unk_rows=1,
            pad_rows=1,
            repeated_rows=1,
            shared_rows=0,
            shared_prompts=0,
            forged_rows=2,
            compared_rows=0,
        )
    ]
    assert split_of(report, "train") is report.splits[0]
    assert report.dropped == dropped
    assert report.end_tokens == {"<|im_end|>": 4}


def test_each_split_of_each_source_has_a_report_and_the_special_tokens_are_named(
    tokenizer: Any,
) -> None:
    parts = [
        part("train", row(1, 2), source="a"),
        part("train", row(6, 7, 8, 2), source="b"),
        part("test", row(3, 4, 2), source="a"),
    ]
    report = check(*parts, tokenizer=tokenizer).as_dict()
    assert [(one["split"], one["source"], one["tokens"]) for one in report["splits"]] == [
        ("train", "a", 2),
        ("train", "b", 4),
        ("test", "a", 3),
    ]
    assert report["special_tokens"] == {
        "pad_token": ["<|endoftext|>", 0],
        "eos_token": ["<|im_end|>", 2],
        "bos_token": ["<|im_start|>", 1],
        "unk_token": ["<|endoftext|>", 0],
    }
    assert (report["warnings"], report["packing"]) == ([], None)


def test_white_space_after_the_end_token_is_passed_over(tokenizer: Any) -> None:
    (newline,) = tokenizer("\n", add_special_tokens=False).input_ids
    report = check(
        part("train", row(20, 21, 2, newline, trained=3), row(20, 22, 2)), tokenizer=tokenizer
    )
    assert (report.end_tokens, split_of(report, "train").end_trained_rows, report.warnings) == (
        {"<|im_end|>": 2},
        2,
        [],
    )


@pytest.mark.parametrize(
    ("digests", "first", "previous"),
    [
        ("abaab", [0, 1, 0, 0, 1], [-1, -1, 0, 2, 1]),
        ("abc", [0, 1, 2], [-1, -1, -1]),
        ("", [], []),
        ("aa", [0, 0], [-1, 0]),
    ],
)
def test_equal_rows_are_found(digests: str, first: list[int], previous: list[int]) -> None:
    found = equal_before(
        np.array([[ord(letter), 7] for letter in digests], dtype=np.int64).reshape(-1, 2)
    )
    assert [values.tolist() for values in found] == [first, previous]


@pytest.mark.parametrize(
    ("lengths", "strategy", "multiple", "share"),
    [
        ([2, 8, 2, 8], "sequential", 1, 12 / 32),
        ([2, 8, 2, 8], "sequential", 10, 20 / 40),
        ([8, 8, 8, 8], "random", 1, 0),
        ([3, 5, 7], "sequential", 1, 2 / 17),
        ([], "random", 1, 0),
    ],
)
def test_padding_is_what_the_longest_row_of_each_batch_adds(
    lengths: list[int], strategy: str, multiple: int, share: float
) -> None:
    assert padding_share(np.array(lengths, dtype=np.int64), 2, strategy, multiple) == pytest.approx(
        share
    )


@pytest.mark.parametrize(
    ("overrides", "isolation", "share"),
    [
        ([], None, 10 / 32),
        (["sft.pad_to_multiple_of=10"], None, 18 / 40),
        (["sft.per_device_train_batch_size=1"], None, 0),
        ([], Isolation("mask"), 10 / 32),
        ([], Isolation("positions"), 0),
    ],
)
def test_padding_is_counted_for_batches_as_the_config_asks_for_them(
    overrides: list[str], isolation: Isolation | None, share: float
) -> None:
    sizes = ["sft.per_device_train_batch_size=2", "sft.train_sampling_strategy=sequential"]
    rows = Dataset.from_list([{"input_ids": [5] * length} for length in (3, 8, 3, 8)])
    assert padding_of(rows, compose([*sizes, *overrides]), isolation) == pytest.approx(share)


def test_grouping_by_length_takes_most_of_the_padding() -> None:
    lengths = np.arange(1, 201)
    drawn = np.random.default_rng(0).permutation(lengths)
    stretches = [np.sort(drawn[at : at + 50]) for at in range(0, 200, 50)]  # of a fourth of all

    def share(rows: np.ndarray) -> float:
        padding = int(np.abs(rows[::2] - rows[1::2]).sum())
        return padding / (int(rows.sum()) + padding)

    random, grouped = share(drawn), share(np.concatenate(stretches))
    assert grouped < 0.05 < 0.2 < random
    assert padding_share(lengths, 2, "random", 1) == pytest.approx(random)
    assert padding_share(lengths, 2, "group_by_length", 1) == pytest.approx(grouped)


# --- limits ---------------------------------------------------------------------------------------


def with_dropped(dropped: int, rows: int = 100, split: str = "train") -> Part:
    """So many rows, of which the last ones teach nothing."""
    return part(
        split,
        *(row(at, 2) for at in range(20, 20 + rows - dropped)),
        dropped=[lost(at) for at in range(rows - dropped, rows)],
    )


def test_as_many_dropped_rows_as_the_limit_pass(tokenizer: Any) -> None:
    report = check(with_dropped(2), tokenizer=tokenizer, max_empty_rows=0.02)
    assert (split_of(report, "train").rows, split_of(report, "train").dropped) == (
        98,
        {"empty text": 2},
    )


def test_more_dropped_rows_than_the_limit_fail_with_a_summary_and_the_first_three_of_each_reason(
    tokenizer: Any,
) -> None:
    dropped = [
        lost(at, "empty text" if at % 2 else "wrong type", f"rows.jsonl, line {at + 1}")
        for at in range(90, 99)
    ]
    summary, *rows = error_of(
        part("train", *(row(at, 2) for at in range(20, 110)), dropped=dropped),
        tokenizer=tokenizer,
        max_empty_rows=0.02,
    ).problems
    assert (summary.where, re.findall(r"\d+", summary.found)) == ("train", ["9", "99", "5", "4"])
    assert "preflight.max_empty_rows=0.02" in summary.allowed
    assert [problem.where for problem in rows] == [
        f"train[{at}].text (rows.jsonl, line {at + 1})" for at in (90, 92, 94, 91, 93, 95)
    ]
    assert {(problem.found, problem.allowed, problem.fix) for problem in rows} == {
        ("an empty string", "text", "fix it")
    }


def test_no_dropped_row_passes_when_none_is_allowed(tokenizer: Any) -> None:
    assert (
        split_of(check(with_dropped(0), tokenizer=tokenizer, max_empty_rows=0), "train").dropped
        == {}
    )
    error = error_of(with_dropped(1), tokenizer=tokenizer, max_empty_rows=0)
    assert re.findall(r"\d+", error.problems[0].found) == ["1", "100", "1"]


def test_rows_that_fill_no_batch_are_refused_where_such_a_batch_is_dropped() -> None:
    drops = compose(["recipe=yoda", "sft.dataloader_drop_last=true"])
    (problem,) = less_than_one_batch(7, drops)
    assert problem.commands == (
        "sft.dataloader_drop_last=false",
        "sft.per_device_train_batch_size=7",
    )
    assert less_than_one_batch(8, drops) == less_than_one_batch(7, compose(["recipe=yoda"])) == []


def test_a_split_without_a_row_left_fails_whatever_is_allowed(tokenizer: Any) -> None:
    error = error_of(with_dropped(2, rows=2), tokenizer=tokenizer, max_empty_rows=1)
    assert re.findall(r"\d+", error.problems[0].found)[:2] == ["2", "2"]


def test_rows_dropped_for_their_length_have_a_limit_of_their_own(
    tokenizer: Any, golden_error: Pin
) -> None:
    rows = part("train", *(row(at, 2) for at in range(20, 38)), dropped=[long(3, 40), long(7, 60)])
    report = split_of(
        check(rows, tokenizer=tokenizer, max_empty_rows=0, max_over_length_rows=0.1), "train"
    )
    assert (report.over_length_rows, report.lost_answer_tokens) == (2, 2)
    error = error_of(rows, tokenizer=tokenizer, max_over_length_rows=0.09)
    assert told(error) == {"train[3] (rows.jsonl, line 4)": ("sft.max_length=60",)}
    assert re.findall(r"\d+", error.problems[0].found) == ["2", "20", "40", "60"]
    golden_error(error)


def test_a_loss_that_masks_nothing_fails_unless_it_is_full(
    tokenizer: Any, golden_error: Pin
) -> None:
    whole = part("train", row(20, 2, trained=2), row(21, 2, trained=2))
    error = error_of(whole, tokenizer=tokenizer)
    assert told(error) == {"train, loss=completion_only": ("loss=full",)}
    golden_error(error)
    assert split_of(check(whole, tokenizer=tokenizer, loss="full"), "train").trained_tokens == 4
    partly = check(part("train", row(20, 2, trained=2), row(21, 2)), tokenizer=tokenizer)
    assert split_of(partly, "train").trained_tokens == 3


@pytest.mark.parametrize(
    ("override", "where", "off"),
    [
        ("sft.eval_strategy=epoch", "sft.eval_strategy", "sft.eval_strategy=no"),
        (
            "evaluation.early_stopping.patience=3",
            "evaluation.early_stopping",
            "evaluation.early_stopping=null",
        ),
    ],
)
def test_what_is_measured_while_training_needs_a_validation_split(
    override: str,
    where: str,
    off: str,
    chatml: Any,
    rows_file: Callable[..., str],
    golden_error: Pin,
) -> None:
    file = rows_file([{"prompt": f"Say {n}.", "completion": f"{n}."} for n in range(8)])
    words = ["dataset=json", f"dataset.data_files={file}", "format=prompt_completion"]
    error = refused(DataError, lambda: prepare_data(compose([*words, override]), chatml))
    assert told(error) == {where: ("dataset.validation_size=0.1", off)}
    golden_error(error)
    prepare_data(compose([*words, override, "dataset.validation_size=0.25"]), chatml)


def test_two_bos_fail(tokenizer: Any, golden_error: Pin) -> None:
    rows = part("train", row(1, 20, 2), row(1, 1, 20, 2), row(1, 1, 21, 2))
    error = error_of(rows, tokenizer=tokenizer)
    (problem,) = error.problems
    counted, shown = problem.found.splitlines()
    assert (problem.where, re.findall(r"\d+", counted)) == ("train[1]", ["2", "3"])
    assert shown == f"    <|im_start|><|im_start|>{tokenizer.decode([20])}⟦<|im_end|>⟧"
    golden_error(error)


def test_all_problems_of_all_splits_are_reported_together(tokenizer: Any) -> None:
    parts = [
        part("train", row(20, 2), dropped=[lost(1)]),
        part("validation", row(20, 2), dropped=[lost(1)]),
    ]
    assert places(error_of(*parts, tokenizer=tokenizer)) == [
        "train",
        "train[1].text",
        "validation",
        "train[1].text",
        "validation[0]",
    ]


# --- rows that are there twice --------------------------------------------------------------------

TWICE = (row(20, 2), row(21, 2))


def test_a_row_in_two_splits_fails_and_names_both_places(tokenizer: Any, golden_error: Pin) -> None:
    parts = [
        part("train", *TWICE),
        part("validation", row(22, 2)),
        part("test", row(23, 2), row(21, 2), row(20, 2)),
    ]
    error = error_of(*parts, tokenizer=tokenizer)
    assert told(error) == {"test[1]": ("preflight.duplicates=warn",)}
    (problem,) = error.problems
    assert "train[1]: 2 rows of test" in problem.found
    assert problem.found.endswith(f"\n    {tokenizer.decode([21])}⟦<|im_end|>⟧")
    golden_error(error)


def test_a_row_in_two_splits_is_found_across_sources(tokenizer: Any) -> None:
    parts = [
        part("train", row(20, 2), source="a"),
        part("train", row(21, 2), source="b"),
        part("test", row(21, 2), source="a"),
    ]
    (problem,) = error_of(*parts, tokenizer=tokenizer).problems
    assert problem.where == "a test[0]"
    assert "b train[0]: 1 row of test" in problem.found


def test_a_row_in_two_splits_is_a_warning_where_that_is_asked_for(tokenizer: Any) -> None:
    report = check(
        part("train", *TWICE),
        part("test", *TWICE, TWICE[1]),
        tokenizer=tokenizer,
        duplicates="warn",
    )
    assert [(one.where, one.found.splitlines()[0]) for one in report.warnings] == [
        ("test[0]", "the same row as train[0]: 3 rows of test were seen in another split")
    ]
    assert [(one.shared_rows, one.shared_prompts, one.repeated_rows) for one in report.splits] == [
        (0, 0, 0),
        (3, 0, 1),
    ]


def test_a_row_twice_in_one_split_is_counted(tokenizer: Any) -> None:
    parts = [
        part("train", row(20, 2), row(21, 2), row(20, 2), source="a"),
        part("train", row(21, 2), source="b"),
        part("test", row(22, 2)),
    ]
    report = check(*parts, tokenizer=tokenizer)
    assert [(one.repeated_rows, one.shared_rows) for one in report.splits] == [
        (1, 0),
        (1, 0),
        (0, 0),
    ]


def test_a_prompt_in_two_splits_is_a_warning(tokenizer: Any) -> None:
    report = check(
        part("train", row(20, 21, 2, trained=2), row(22, 2)),
        part("test", row(20, 23, 2, trained=2)),
        tokenizer=tokenizer,
    )
    assert split_of(report, "test").shared_prompts == 1
    assert report.warnings == [
        Problem(
            "test[0]",
            "the same prompt as train[0], with another answer: 1 row of test have a prompt of "
            "another split\n"
            f"    {tokenizer.decode([20])}⟦{tokenizer.decode([23])}<|im_end|>⟧",
            fix="remove them where the loss on them is to measure what the model does with new "
            "prompts",
        )
    ]


def test_texts_without_a_prompt_share_none(tokenizer: Any) -> None:
    parts = [part(split, row(at, 2, trained=2)) for split, at in (("train", 20), ("test", 21))]
    report = check(*parts, tokenizer=tokenizer, loss="full")
    assert [one.shared_prompts for one in report.splits] == [0, 0]
    assert report.warnings == []


# --- warnings -------------------------------------------------------------------------------------


def test_an_answer_without_an_end_token_is_a_warning(tokenizer: Any) -> None:
    report = check(part("train", row(20, 2), row(20, 21), row(20, 22)), tokenizer=tokenizer)
    assert (report.end_tokens, split_of(report, "train").end_trained_rows) == ({"<|im_end|>": 1}, 1)
    assert [str(one) for one in report.warnings] == [
        "train[1]: 2 of 3 rows end their trained part in no special token: the model does not "
        "learn to stop there\n"
        f"    {tokenizer.decode([20])}⟦{tokenizer.decode([21])}⟧\n"
        "    allowed: EOS, or the end of a turn\n"
        "    a format or a chat template that writes one; sftpipe preview shows the rows"
    ]


def test_unk_and_pad_in_a_row_are_warnings(phi3: Any) -> None:
    eos, separate = phi3.eos_token_id, copy.deepcopy(phi3)
    separate.pad_token = "<|placeholder1|>"
    pad = separate.pad_token_id
    assert (phi3.pad_token_id, phi3.unk_token_id) == (0, 0)  # one token
    rows = part("train", row(500, 501, eos), row(500, 0, eos), row(500, pad, eos), row(501, 0, eos))
    unknown = "2 of 4 rows hold '<unk>', which stands for what the tokenizer does not know"
    padding = "1 of 4 rows hold '<|placeholder1|>', which pads batches"
    for tokenizer, counts, found in (
        (phi3, (2, 2), [("train[1]", unknown)]),
        (separate, (2, 1), [("train[1]", unknown), ("train[2]", padding)]),
    ):
        report = check(rows, tokenizer=tokenizer)
        (split,) = report.splits
        assert (split.unk_rows, split.pad_rows) == counts
        warnings = [(one.where, one.found.splitlines()[0]) for one in report.warnings]
        assert warnings == found


def test_a_token_that_is_also_eos_says_nothing_as_unk(opt: Any) -> None:
    report = check(part("train", row(2, 500, 501, 2)), tokenizer=opt)
    assert (opt.bos_token_id, split_of(report, "train").bos_rows, report.warnings) == (
        2,
        {"0": 0, "1": 1, "2": 0},
        [],
    )


def test_a_summary_counts_the_rows_what_was_dropped_and_the_warnings(tokenizer: Any) -> None:
    dropped = [*(lost(at) for at in range(2)), *(long(at, 50) for at in range(2, 5))]
    parts = [
        part("train", *(row(at, 2) for at in range(20, 1219)), row(20, 21), dropped=dropped),
        part("test", row(3, 4, 2)),
    ]
    assert preflight_summary(check(*parts, tokenizer=tokenizer)) == (
        "1,200 train, 1 test rows\n"
        "dropped   of train: 3 x longer than sft.max_length, 2 x empty text; `sftpipe check` "
        "lists them\n"
        "warning   train[1199]: 1 of 1200 rows end their trained part in no special token: the "
        "model does not learn to stop there; "
        "`sftpipe check` says what to do"
    )


# --- compared with generation ---------------------------------------------------------------------


def encoded(tokenizer: Any, sample: Sample) -> Row:
    (made,) = Encoder(tokenizer, compose().loss).encode([sample], ["train[0]"])
    assert not isinstance(made, RowError)
    return {**row(), "input_ids": made.input_ids, "labels": made.labels}


IDS = ("input_ids", "labels")
SAMPLES = [PromptCompletion("Is it?", " It is."), PromptCompletion("Really? Yes?", " No.")]


@pytest.mark.parametrize("name", ["tokenizer", "phi3", "opt"])
def test_rows_that_go_on_from_their_prompts_and_read_back_pass(
    name: str, request: pytest.FixtureRequest
) -> None:
    chosen = request.getfixturevalue(name)
    chat = Conversation(
        ({"role": "user", "content": "Is  it?\n"}, {"role": "assistant", "content": "It  is."})
    )
    samples = [*SAMPLES, chat]
    report = check(
        part("train", *(encoded(chosen, one) for one in samples), samples=samples), tokenizer=chosen
    )
    assert (split_of(report, "train").compared_rows, report.warnings) == (3, [])


def test_a_row_with_another_prompt_than_generation_fails(tokenizer: Any, golden_error: Pin) -> None:
    rows = part(
        "train",
        *(encoded(tokenizer, one) for one in SAMPLES),
        samples=[SAMPLES[0], PromptCompletion("Really! Yes?", " No.")],
    )
    error = error_of(rows, tokenizer=tokenizer)
    assert places(error) == ["train[1]", "train[1]"]
    assert [re.findall(r"\d+", problem.found) for problem in error.problems] == [
        ["1", "2", "2"],
        ["1", "2"],
    ]
    assert "'?' in the row and '!' in generation" in error.problems[0].found
    golden_error(error)


def test_white_space_counts_where_rows_are_compared(tokenizer: Any) -> None:
    rows = part(
        "train",
        *(encoded(tokenizer, one) for one in SAMPLES),
        samples=[
            PromptCompletion("Is it?\n", " It is."),
            PromptCompletion("Really? Yes?", "  No."),
        ],
    )
    prompts, texts = error_of(rows, tokenizer=tokenizer).problems
    assert (prompts.where, re.findall(r"\d+", prompts.found)) == ("train[0]", ["1", "2", "3"])
    assert "' It' in the row and '\\n' in generation" in prompts.found
    assert (texts.where, re.findall(r"\d+", texts.found)) == ("train[0]", ["2", "2"])


@pytest.mark.parametrize(
    ("sample", "token", "at"),
    [
        (PromptCompletion("Is it?\n", "yes"), "\u2581", -2),  # a space that is not in the text
        (PromptCompletion("Is it?\n", "yes"), "<0x0A>", -2),
        (PromptCompletion("one<|assistant|>", "\nyes"), "<0x0A>", -1),
    ],
)
def test_white_space_that_no_token_swallows_counts_with_sentencepiece_too(
    phi3: Any, sample: PromptCompletion, token: str, at: int
) -> None:
    row = encoded(phi3, sample)
    split_of(check(part("train", row, samples=[sample]), tokenizer=phi3), "train")
    added = phi3.convert_tokens_to_ids(token)
    at += len(row["input_ids"])
    changed = {**row, **{key: [*row[key][:at], added, *row[key][at:]] for key in IDS}}
    error = error_of(part("train", changed, samples=[sample]), tokenizer=phi3)
    assert [re.findall(r"\d+", one.found) for one in error.problems] == [["1", "1"]]


def test_a_tokenizer_that_makes_one_space_of_several_is_read_without_them(phi3: Any) -> None:
    merging = copy.deepcopy(phi3)
    merging.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(" {2,}"), " "), phi3.backend_tokenizer.normalizer]
    )
    sample = PromptCompletion("one  two:", "  yes  two")
    report = check(part("train", encoded(merging, sample), samples=[sample]), tokenizer=merging)
    assert split_of(report, "train").compared_rows == 1


def test_the_rows_that_are_compared_are_spread_over_all(tokenizer: Any) -> None:
    made, other = (encoded(tokenizer, sample) for sample in SAMPLES)
    rows = part("train", *([made] * 249), other, samples=SAMPLES[:1] * 250)
    error = error_of(rows, tokenizer=tokenizer)
    assert {(one.where, *re.findall(r"\d+ of \d+", one.found)) for one in error.problems} == {
        ("train[249]", "1 of 100")
    }


def test_a_row_is_compared_up_to_its_last_trained_answer(tokenizer: Any) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    chat = Conversation(
        tuple({"role": role, "content": text} for role, text in turns),
        train=(None, True, None, False),
    )
    rows = part("train", encoded(tokenizer, chat), samples=[chat])
    assert split_of(check(rows, tokenizer=tokenizer), "train").compared_rows == 1


def test_an_answer_whose_first_token_is_masked_fails(tokenizer: Any, golden_error: Pin) -> None:
    late = encoded(tokenizer, SAMPLES[0])
    late["labels"][
        late["labels"].index(next(label for label in late["labels"] if label != IGNORED))
    ] = IGNORED
    error = error_of(part("train", late, samples=SAMPLES[:1]), tokenizer=tokenizer)
    (problem,) = (one for one in error.problems if "is not trained" in one.found)
    assert "' It'" in problem.found
    assert problem.found.endswith("\n    Is it? It⟦ is.<|im_end|>⟧")
    golden_error(problem)


def test_rows_that_were_cut_are_not_compared(tokenizer: Any) -> None:
    report = check(
        part("train", {**encoded(tokenizer, SAMPLES[0]), "cut": 3}, samples=SAMPLES[1:]),
        tokenizer=tokenizer,
    )
    assert split_of(report, "train").compared_rows == 0


# --- through prepare_data -------------------------------------------------------------------------

PAIRS = [
    {"prompt": f"Row {at}", "completion": "long " * 20 if at in (2, 5) else f"short {at}"}
    for at in range(10)
]


def prepare(files: str | dict[str, str], tokenizer: Any, *overrides: str) -> PreparedData:
    """The rows of a file, or of the file of each split."""
    cfg = compose(["dataset=json", "dataset.data_files=F", "format=prompt_completion", *overrides])
    cfg.dataset.data_files = files
    return prepare_data(cfg, tokenizer)


def test_finished_rows_are_ids_and_labels_and_nothing_else(
    rows_file: Write, tokenizer: Any
) -> None:
    data = prepare(rows_file(PAIRS), tokenizer, "dataset.validation_size=2")
    assert list(data.splits()) == ["train", "validation"]
    assert data.test is None
    assert data.train.column_names == data.validation.column_names == ["input_ids", "labels"]
    assert tokenizer.decode(data.validation[1]["input_ids"]) == "Row 9short 9<|im_end|>"


def test_the_samples_before_encoding_stay_at_hand_without_bad_rows(
    rows_file: Write, tokenizer: Any
) -> None:
    rows = [*PAIRS[:3], {"prompt": "a", "completion": None}, *PAIRS[3:]]
    data = prepare(rows_file(rows), tokenizer, "preflight.max_empty_rows=0.1")
    assert list(data.samples("train")) == [PromptCompletion(**pair) for pair in PAIRS]
    assert list(data.samples("test")) == []


@FORKS
def test_rows_are_the_same_whatever_the_number_of_processes(
    rows_file: Write, tokenizer: Any
) -> None:
    one = prepare(rows_file(PAIRS), tokenizer)
    two = prepare(rows_file(PAIRS), tokenizer, "dataset.num_proc=2")
    assert one.train.to_list() == two.train.to_list()


def test_a_row_longer_than_max_length_is_an_error_with_the_length_that_would_do(
    rows_file: Write, tokenizer: Any
) -> None:
    error = refused(DataError, lambda: prepare(rows_file(PAIRS), tokenizer, "sft.max_length=16"))
    assert told(error) == {"train[2]": ("sft.max_length=25", "over_length=drop")}
    assert re.findall(r"\d+", error.problems[0].found) == ["2", "10", "16", "25", "25"]


def test_the_length_that_the_message_names_does(rows_file: Write, tokenizer: Any) -> None:
    data = prepare(rows_file(PAIRS), tokenizer, "sft.max_length=25")
    assert split_of(data.preflight, "train").over_length_rows == 0
    assert split_of(data.preflight, "train").length_max == 25


def test_dropped_rows_are_counted_and_the_others_keep_their_order(
    rows_file: Write, tokenizer: Any
) -> None:
    data = prepare(
        rows_file(PAIRS),
        tokenizer,
        "sft.max_length=16",
        "over_length=drop",
        "preflight.max_over_length_rows=0.2",
    )
    report = split_of(data.preflight, "train")
    assert (report.over_length_rows, report.lost_answer_tokens) == (2, 2 * 22)  # of 25 tokens each
    texts = [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in data.train]
    assert texts == [
        pair["prompt"] + pair["completion"] for at, pair in enumerate(PAIRS) if at not in (2, 5)
    ]


def test_dropping_every_row_is_an_error(rows_file: Write, tokenizer: Any) -> None:
    limits = ("sft.max_length=2", "over_length=drop")
    error = refused(DataError, lambda: prepare(rows_file(PAIRS), tokenizer, *limits))
    assert re.findall(r"\d+", error.problems[0].found)[:3] == ["10", "10", "2"]


def test_no_max_length_keeps_every_row(rows_file: Write, tokenizer: Any) -> None:
    assert len(prepare(rows_file(PAIRS), tokenizer, "sft.max_length=null").train) == 10


BAD = [*PAIRS, {"prompt": "a", "completion": " "}]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=[FORKS, pytest.mark.slow])])
def test_more_bad_rows_than_the_limit_stop_the_preparation_and_are_named(
    rows_file: Write, tokenizer: Any, processes: int
) -> None:
    error = refused(
        DataError, lambda: prepare(rows_file(BAD), tokenizer, f"dataset.num_proc={processes}")
    )
    assert places(error) == ["train", "train[10].completion (rows.jsonl, line 11)"]
    assert error.problems[0].found.endswith(": 1 x empty text")
    assert re.findall(r"\d+", error.problems[0].found) == ["1", "11", "1"]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=FORKS)])
def test_bad_rows_up_to_the_limit_are_dropped_counted_and_named(
    rows_file: Write, tokenizer: Any, processes: int
) -> None:
    data = prepare(
        rows_file(BAD), tokenizer, f"dataset.num_proc={processes}", "preflight.max_empty_rows=0.1"
    )
    assert split_of(data.preflight, "train").dropped == {"empty text": 1}
    assert data.preflight.dropped == [
        Dropped(
            10,
            "empty text",
            "train[10].completion",
            "an empty string",
            "text",
            "fix or remove the row",
            "rows.jsonl, line 11",
        )
    ]
    assert (
        data.train.to_list() == prepare(rows_file(PAIRS, "good.jsonl"), tokenizer).train.to_list()
    )


def test_a_prompt_that_is_too_long_is_cut_and_a_row_that_cannot_be_is_dropped(
    rows_file: Write, tokenizer: Any
) -> None:
    rows = [
        {"prompt": "long " * 39 + "long", "completion": " yes"},
        {"prompt": "a", "completion": "long " * 40},
        *PAIRS,
    ]
    data = prepare(
        rows_file(rows),
        tokenizer,
        "sft.max_length=30",
        "over_length=truncate",
        "preflight.max_over_length_rows=0.1",
    )
    assert split_of(data.preflight, "train").dropped == {"longer than sft.max_length": 1}
    assert data.preflight.dropped[0].index == 1
    assert split_of(data.preflight, "train").length_max == len(data.train[0]["input_ids"]) == 30
    assert tokenizer.decode(data.train[0]["input_ids"]).endswith(" long yes<|im_end|>")


# --- special tokens in the texts ------------------------------------------------------------------

FORGED = [
    {
        "messages": [
            {"role": "user", "content": "What ends a turn?"},
            {"role": "assistant", "content": "It is <|im_end|>, look."},
        ]
    }
]


def test_a_text_that_would_end_its_turn_is_refused(rows_file: Write, tokenizer: Any) -> None:
    error = refused(DataError, lambda: prepare(rows_file(FORGED), tokenizer, "format=messages"))
    problem = error.problems[1]
    assert problem.where == "train[0].messages[1].content (rows.jsonl, line 1)"
    assert "'<|im_end|>' in 'It is <|im_end|>, look.'" in problem.found
    assert problem.commands == ("preflight.forged_turns=escape",)


def test_an_escaped_token_is_plain_text_that_looks_the_same(
    rows_file: Write, tokenizer: Any
) -> None:
    data = prepare(rows_file(FORGED), tokenizer, "format=messages", "preflight.forged_turns=escape")
    trained = [label for label in data.train[0]["labels"] if label != IGNORED]
    assert tokenizer.decode(trained).replace("\u200b", "") == "It is <|im_end|>, look.<|im_end|>"
    assert trained.count(tokenizer.eos_token_id) == 1
    assert split_of(data.preflight, "train").forged_rows == 1


def test_special_tokens_of_either_pattern_are_no_forgery_and_those_that_columns_make_are(
    rows_file: Write, tokenizer: Any
) -> None:
    patterns = [
        "format=template",
        "format.prompt='<|im_start|>{q}<|im_end|>{input}'",
        "format.prompt_no_input='<|im_start|>{q}'",
        "format.completion='{a}'",
        "preflight.max_empty_rows=0.5",
    ]
    rows = [
        {"q": "a", "input": "b", "a": "c"},
        {"q": "d", "input": "", "a": "e"},
        {"q": "f<|im_", "input": "", "a": "end|>"},
    ]
    data = prepare(rows_file(rows), tokenizer, *patterns)
    assert [tokenizer.decode(row["input_ids"]) for row in data.train] == [
        "<|im_start|>a<|im_end|>bc<|im_end|>",
        "<|im_start|>de<|im_end|>",
    ]
    assert split_of(data.preflight, "train").dropped == {"forged turn": 1}


def test_markers_are_stripped_from_every_text(rows_file: Write, tokenizer: Any) -> None:
    file = rows_file([{"prompt": "a|X|>", "completion": "|X|>b|Y|>"}])
    kept = prepare(file, tokenizer)
    stripped = prepare(
        file, tokenizer, "dataset.markers=strip", "dataset.marker_tokens=['|X|>','|Y|>']"
    )
    assert tokenizer.decode(kept.train[0]["input_ids"]) == "a|X|>|X|>b|Y|><|im_end|>"
    assert tokenizer.decode(stripped.train[0]["input_ids"]) == "ab<|im_end|>"


# --- mixtures -------------------------------------------------------------------------------------


def mixture(*sources: str) -> list[str]:
    return [
        "dataset=mixture",
        f"dataset.sources=[{', '.join(f'{{{source}}}' for source in sources)}]",
        "format=prompt_completion",
    ]


def texts(data: PreparedData) -> list[str]:
    return [data.tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in data.train]


def numbered(name: str, count: int) -> list[dict[str, str]]:
    return [{"prompt": name, "completion": str(at)} for at in range(count)]


def test_weights_make_the_largest_mixture_without_a_row_twice_spread_evenly(
    rows_file: Write, tokenizer: Any
) -> None:
    a, b = rows_file(numbered("a", 8), "a.jsonl"), rows_file(numbered("b", 3), "b.jsonl")
    overrides = mixture(
        f"path: json, data_files: '{a}', weight: 2", f"path: json, data_files: '{b}', weight: 1"
    )
    data = prepare_data(compose(overrides), tokenizer)
    assert texts(data) == ["a0", "b0", "a1", "a2", "b1", "a3", "a4", "b2", "a5"]
    assert [(one.source, one.rows) for one in data.preflight.splits] == [
        ("sources[0] json", 6),
        ("sources[1] json", 3),
    ]


def test_counts_take_the_first_rows_and_more_than_there_are_is_an_error(
    rows_file: Write, tokenizer: Any, golden_error: Pin
) -> None:
    a, b = rows_file(numbered("a", 4), "a.jsonl"), rows_file(numbered("b", 4), "b.jsonl")
    source = f"path: json, data_files: '{b}'"
    data = prepare_data(
        compose(mixture(f"path: json, data_files: '{a}', count: 2", source)), tokenizer, dict
    )
    assert sorted(texts(data)) == ["a0", "a1", "b0", "b1", "b2", "b3"]
    cfg = compose(mixture(source, f"path: json, data_files: '{a}', count: 5"))
    error = refused(DataError, lambda: prepare_data(cfg, tokenizer, dict))
    assert places(error) == ["dataset.sources[1].count"]
    assert re.findall(r"\d+", error.problems[0].found) == ["5", "4"]
    golden_error(error)


def test_a_column_that_the_format_needs_is_missed_before_encoding(
    rows_file: Write, tokenizer: Any
) -> None:
    error = refused(DataError, lambda: prepare(rows_file(PAIRS), tokenizer, "format=instruction"))
    assert places(error) == ["format=instruction (train)"]
    assert "'instruction', 'output'" in error.problems[0].found
    assert error.problems[0].found.endswith(" prompt, completion")
    assert "format=prompt_completion" in error.problems[0].fix


def test_the_same_row_in_two_files_is_found(rows_file: Write, tokenizer: Any) -> None:
    files = [rows_file(PAIRS[:2], "a.jsonl"), rows_file(PAIRS[1:2], "b.jsonl")]
    splits = dict(zip(("train", "validation"), files, strict=True))
    error = refused(DataError, lambda: prepare(splits, tokenizer))
    assert places(error) == ["validation[0] (b.jsonl, line 1)"]
    assert "train[1] (a.jsonl, line 2): 1 row of validation" in error.problems[0].found


def test_a_place_is_a_row_of_the_data_set_after_rows_were_dropped(
    rows_file: Write, tokenizer: Any
) -> None:
    files = [rows_file(PAIRS, "a.jsonl"), rows_file(PAIRS[9:], "b.jsonl")]
    with pytest.raises(DataError, match=r"the same row as train\[9\]"):
        prepare(
            dict(zip(("train", "validation"), files, strict=True)),
            tokenizer,
            "sft.max_length=16",
            "over_length=drop",
            "preflight.max_over_length_rows=0.2",
        )


# --- length and white space, through prepare_data -------------------------------------------------


def test_more_rows_dropped_for_length_than_the_limit_fail_and_the_first_is_shown(
    rows_file: Write, tokenizer: Any, golden_error: Pin
) -> None:
    limits = ("sft.max_length=16", "over_length=drop")
    error = refused(DataError, lambda: prepare(rows_file(PAIRS), tokenizer, *limits))
    assert told(error) == {
        "train[2] (rows.jsonl, line 3)": ("sft.max_length=25", "over_length=truncate")
    }
    counted, shown = error.problems[0].found.splitlines()
    assert re.findall(r"\d+", counted) == ["2", "10", "25", "25"]
    assert shown == f"    Row 2⟦{'long ' * 20}<|im_end|>⟧"
    golden_error(error)


def test_answers_that_went_with_cut_exchanges_are_counted(rows_file: Write, tokenizer: Any) -> None:
    turns = [
        {"role": role, "content": text}
        for role, text in (
            ("system", "S"),
            ("user", "a"),
            ("assistant", "b"),
            ("user", "c"),
            ("assistant", "d"),
        )
    ]
    data = prepare(
        rows_file([{"messages": turns}]),
        tokenizer,
        "format=messages",
        "loss=assistant_only",
        "sft.max_length=25",
        "over_length=truncate",
    )
    report = split_of(data.preflight, "train")
    assert (report.truncated_rows, report.lost_answer_tokens, report.trained_tokens) == (
        1,
        2,
        2,
    )  # "b" and its <|im_end|> went


SPACED = [{"q": f"Question {at}", "a": f"yes {at}"} for at in range(3)]


@pytest.mark.parametrize("name", ["tokenizer", "phi3", "opt"])
def test_a_pattern_that_ends_in_a_space_is_a_warning_with_the_patterns_to_type(
    name: str, rows_file: Write, request: pytest.FixtureRequest
) -> None:
    def warned(prompt: str, completion: str) -> list[Problem]:
        words = ["dataset=json", f"dataset.data_files={rows_file(SPACED)}", "format=template"]
        cfg = compose([*words, f"format.prompt='{prompt}'", f"format.completion='{completion}'"])
        return prepare_data(cfg, request.getfixturevalue(name)).preflight.warnings

    (warning,) = warned("{q} ##> ", "{a}")
    assert warning.found.splitlines()[0] == (
        "the prompt ends in a space, as in 3 of 3 rows that were compared: the model begins its "
        "answer after a lone space, which it never saw in running text"
    )
    assert (warning.where, warning.fix) == (
        "train[0] (rows.jsonl, line 1)",
        "`\"format.prompt='{q} ##>'\"` `\"format.completion=' {a}'\"`",
    )
    assert [shlex.split(one) for one in warning.commands] == [
        ["format.prompt='{q} ##>'"],
        ["format.completion=' {a}'"],
    ]
    assert warned("{q} ##>", " {a}") == []
    assert warned("{q}\n", "{a}") == []


@pytest.mark.parametrize("text", ["A: {q}", "it's {q}", 'say "{q}"', "$HOME {q}!", "[{q}]"])
def test_a_pattern_to_type_is_the_pattern_after_the_shell_and_hydra(text: str) -> None:
    (word,) = shlex.split(
        pattern_override("format.prompt", text).removeprefix("`").removesuffix("`")
    )
    cfg = compose(["format=template", "format.completion='{a}'", word])
    assert cfg.format.prompt == text


@pytest.mark.parametrize("text", ["{q}\n", "\\{q}"])
def test_a_pattern_that_no_shell_takes_is_not_a_command(text: str) -> None:
    assert Problem("", "", fix=pattern_override("format.prompt", text)).commands == ()


def test_a_joint_boundary_that_hides_the_first_character_is_a_warning(
    rows_file: Write, tokenizer: Any
) -> None:
    file = rows_file([{"prompt": "Answer:", "completion": "-) yes"}])
    (warning,) = prepare(file, tokenizer, "loss.boundary=joint").preflight.warnings
    assert "do not go on from the prompt of generation" in warning.found
    assert warning.commands == ("loss.boundary=split",)
    assert prepare(file, tokenizer).preflight.warnings == []
