"""Several runs beside each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runs.report.test_page import HOSTILE, Reader
from sftpipe.errors import RunError
from sftpipe.runs.report.compare import short_names, which_is_better, write_comparison
from sftpipe.runs.report.found import find
from sftpipe.runs.report.page import MOST_BYTES
from support.errors import refused
from support.run_folders import EVALUATION, LOG, MANIFEST, METRICS, PREFLIGHT, SAMPLES, write_run

NOT_EVALUATED: dict[str, Any] = {"evaluation": None}


def evaluated(*values: float, **changes: Any) -> dict[str, Any]:
    """What `sftpipe evaluate` writes of twelve rows with these values."""
    rows = [values[at % len(values)] for at in range(12)]
    both = {"base": [0.0] * 12, "run": rows}
    return {"evaluation": EVALUATION | {"values": both, **changes}}


def after(loss: float) -> dict[str, Any]:
    """The numbers of a run with this validation loss."""
    return METRICS | {"validation": {"before": {"loss": 3.0}, "after": {"loss": loss}}}


def better(folder: Path, **runs: dict[str, Any]) -> str:
    """Which of these runs is better."""
    for name, contents in runs.items():
        write_run(folder / name, **contents)
    return which_is_better(list(runs), [find(folder / name) for name in runs])


# --- which is better ------------------------------------------------------------------------------


def test_runs_are_compared_row_by_row_where_all_were_evaluated(tmp_path: Path) -> None:
    told = better(tmp_path, a=evaluated(50, 60), b=evaluated(70, 80), c=evaluated(70, 81))
    assert told == (
        "c has the best chrf, 75.500 in the mean of the same 12 test rows; it is better than a: "
        "+20.500, 95 % interval +20.250 to +20.750; better than b: +0.500, 95 % interval +0.250 "
        "to +0.750"
    ) or told.startswith(
        "c has the best chrf, 75.500 in the mean of the same 12 test rows; it is better than a: "
    )


def test_a_difference_that_may_be_chance_is_not_called_better(tmp_path: Path) -> None:
    told = better(tmp_path, a=evaluated(50, 60), b=evaluated(59, 52))
    assert "b has the best chrf, 55.500" in told
    assert "it is not distinguishable from a: +0.500, 95 % interval -" in told


def test_of_a_loss_the_lowest_is_the_best(tmp_path: Path) -> None:
    loss = {"metric": "loss", "higher_is_better": False}
    told = better(tmp_path, a=evaluated(2.0, **loss), b=evaluated(1.0, **loss))
    assert told.startswith("b has the best loss, 1.000 in the mean")
    assert "; it is better than a: -1.000, 95 % interval -1.000 to -1.000" in told


@pytest.mark.parametrize(
    "other",
    [
        NOT_EVALUATED,
        evaluated(1.0, metric="loss"),
        {"evaluation": EVALUATION | {"values": {"base": [1.0], "run": [1.0]}}},
        {**evaluated(1.0), "manifest": MANIFEST | {"data": {"sha256": "other"}}},
        {"evaluation": {key: value for key, value in EVALUATION.items() if key != "values"}},
    ],
)
def test_rows_that_are_not_the_same_are_not_compared(other: dict[str, Any], tmp_path: Path) -> None:
    told = better(
        tmp_path, a=evaluated(1.0) | {"metrics": after(2.0)}, b=other | {"metrics": after(1.5)}
    )
    assert told.startswith("b has the lowest validation loss, 1.500 (a 2.000); ")
    same_data = "manifest" not in other
    assert ("sftpipe evaluate on each of them tells" in told) == same_data
    assert ("their data differ, so the losses are not of the same rows" in told) == (not same_data)


def test_without_losses_nothing_is_known(tmp_path: Path) -> None:
    one = {"metrics": {"train": METRICS["train"]}, **NOT_EVALUATED}
    told = better(tmp_path, a=one, b={"metrics": after(1.0), **NOT_EVALUATED})
    assert told == (
        "Which is better is not known: fewer than two of the runs have a validation loss"
    )


# --- the page -------------------------------------------------------------------------------------


def compared(*folders: Path) -> tuple[dict[str, Any], Reader]:
    result = write_comparison(folders)
    return result, Reader((folders[0] / "comparison.html").read_text(encoding="utf-8"))


def test_what_differs_comes_first(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", "lora.r=8", "sft.weight_decay=0.5", "quantization=none")
    result, page = compared(a, b)
    assert result["page"] == str(a / "comparison.html")
    assert result["runs"] == {"a": str(a), "b": str(b)}
    assert (
        result["config"]
        == {
            "quantization": [
                {
                    "load_in_4bit": True,
                    "bnb_4bit_quant_type": "nf4",
                    "bnb_4bit_use_double_quant": True,
                    "bnb_4bit_compute_dtype": "auto",
                },
                {},
            ],
            "lora.r": [16, 8],
            "sft.weight_decay": [0.0, 0.5],
        }
        or {"lora.r": [16, 8], "sft.weight_decay": [0.0, 0.5]}.items() <= result["config"].items()
    )
    assert result["data"] == {}
    text = page.section("config")
    assert "lora.r 16 8" in text
    assert "sft.weight_decay 0.0 0.5" in text
    assert "The same data, tokenizer and base weights." in text


def test_a_key_that_only_the_third_run_has_otherwise_is_a_difference(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in "ab"]
    result, _ = compared(*runs, write_run(tmp_path / "c", "seed=7"))
    assert result["config"] == {"seed": [42, 42, 7]}


def test_other_data_are_told_by_their_hash_and_counts(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    preflight = json.loads(json.dumps(PREFLIGHT))
    preflight["splits"][0]["tokens"] = 1999
    data = {"sha256": "xy", "rows": {"train": 39, "validation": 7}}
    b = write_run(tmp_path / "b", manifest=MANIFEST | {"data": data}, preflight=preflight)
    result, page = compared(a, b)
    assert result["data"] == {
        "data, SHA-256": ["ab", "xy"],
        "train rows": [40, 39],
        "train tokens": [2000, 1999],
    }
    assert 'data, SHA-256 "ab" "xy"' in page.section("config")


def test_numbers_stand_side_by_side_and_the_best_is_marked(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", metrics=after(1.25))
    b = write_run(tmp_path / "b", metrics=after(1.0), **NOT_EVALUATED)
    _, page = compared(a, b)
    text = page.section("figures")
    assert "state complete complete" in text
    assert "validation loss 1.250 1.000" in text
    assert "evaluated chrf 60.000 (+30.000 to +50.000) -" in text
    source = (a / "comparison.html").read_text()
    assert '<td>1.250</td><td class="best">1.000</td>' in source
    assert source.count('class="best"') == 1


def test_curves_lie_over_each_other_and_the_last_answers_beside_each_other(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    other = [row for row in SAMPLES if row["phase"] != "after"]
    b = write_run(tmp_path / "b", samples=other, log=LOG[1:3], complete=False)
    _, page = compared(a, b)
    assert "training loss" in page.section("curves")
    source = (a / "comparison.html").read_text()
    assert '"step 5 \\u00b7 a 2.5 \\u00b7 b 2.5"' in source
    assert '"step 10 \\u00b7 a 1.25"' in source  # b has no validation; a keeps its colour
    assert (
        "prompt Who are you? reference right: Who are you? a after: Who are you? "
        "b epoch 1: Who are you?" in page.section("answers")
    )
    assert f"sftpipe evaluate run={a} evaluation.base={b}" in page.section("commands")


def test_a_prompt_that_one_run_alone_was_asked_is_left_out(tmp_path: Path) -> None:
    mine = [{"phase": "after", "step": 1, "prompt": "only a", "completion": "x"}]
    a = write_run(tmp_path / "a", samples=[*SAMPLES, *mine])
    _, page = compared(a, write_run(tmp_path / "b"))
    assert "only a" not in page.section("answers")


def test_what_cannot_be_read_is_named_with_its_run(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name) for name in "ab")
    (b / "metrics.json").write_text("{")
    write_run(a, samples=[{"phase": "after"}])
    result, page = compared(a, b)
    assert result["missing"] == [
        "b: metrics.json is damaged",
        "samples.jsonl holds something else than expected (KeyError: 'prompt')",
    ]
    assert "b: metrics.json is damaged" in " ".join(page.texts)


def test_hostile_texts_are_text_and_eight_runs_make_a_small_page(tmp_path: Path) -> None:
    losses = {f"eval_s{name}_loss": 1.0 for name in "abcdefgh"}
    log = [{"loss": 1.0 + at % 3, "step": at, "epoch": at / 10, **losses} for at in range(1, 3001)]
    samples = [row | {"completion": HOSTILE * 1000, "prompt": HOSTILE} for row in SAMPLES]
    runs = [
        write_run(tmp_path / f"{at}", f"seed={at}", log=log, samples=samples) for at in range(8)
    ]
    _, page = compared(*runs)
    assert (runs[0] / "comparison.html").stat().st_size <= MOST_BYTES
    assert "img" not in page.tags
    assert HOSTILE[:40] in page.section("answers")
    drawn = page.section("curves")
    assert "validation sc loss" in drawn
    assert "Not drawn: validation sd, validation se, validation sf," in drawn


def test_names_are_the_ends_of_paths_as_far_as_they_differ(tmp_path: Path) -> None:
    assert short_names([tmp_path / "a" / "x", tmp_path / "b" / "x"]) == ["a/x", "b/x"]
    assert short_names([tmp_path / "a" / "x", tmp_path / "a" / "y"]) == ["x", "y"]
    assert short_names([tmp_path / "x", tmp_path / "sub" / "x"])[1] == "sub/x"


# --- refused --------------------------------------------------------------------------------------


def test_one_run_twice_and_too_many_runs_are_refused(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    error = refused(RunError, lambda: write_comparison([a, tmp_path / "." / "a"]))
    assert "one run twice" in error.problems[0].found
    nine = [tmp_path / str(at) for at in range(9)]
    error = refused(RunError, lambda: write_comparison(nine))
    assert error.problems[0].allowed == "2 to 8 runs beside each other"


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    error = refused(RunError, lambda: write_comparison([a, tmp_path / "nothing"]))
    assert error.problems[0].where == f"run={tmp_path}/nothing"
