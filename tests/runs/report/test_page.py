"""The page of one run: what is in it, its size, and what it does with hostile and broken files."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sftpipe.runs.report.page import MOST_BYTES, as_json, cut, write_page
from support.run_folders import EVALUATION, JUDGEMENT, LOG, METRICS, PREFLIGHT, SAMPLES, write_run

HOSTILE = "</script><script>window.hit=1</script><img src=x onerror=window.hit=1>\"'&{{ 7*7 }}"
STEERING = "a\u202eb\x1b[31m\x00\ud800c e\u0301 \u05e9"


class Reader(HTMLParser):
    """The elements and the text of a page; of each element with an id its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.sections: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "section":
            self._open.append(str(dict(attrs)["id"]))

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            self._open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        for name in self._open:
            self.sections.setdefault(name, []).append(data)

    def section(self, name: str) -> str:
        return " ".join(" ".join(self.sections[name]).split())


def read(run: Path) -> Reader:
    return Reader((run / "report.html").read_text(encoding="utf-8"))


def test_the_page_of_a_whole_run_has_every_section(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    result = write_page(run)
    assert result == {
        "page": str(run / "report.html"),
        "run": "yoda",
        "state": "complete",
        "sentence": result["sentence"],
        "missing": [],
    }
    page = read(run)
    assert list(page.sections) == [
        "verdict",
        "answers",
        "training",
        "judge",
        "data",
        "config",
        "environment",
        "commands",
    ]
    text = " ".join(" ".join(page.texts).split())
    assert result["sentence"] in text
    assert "validation loss 1.250 3.000 before training" in text
    assert "training 4 min 12 s 10 optimizer steps" in text
    assert "peak memory 1.5 GiB" in text


def test_the_verdict_stands_with_metrics_rows_and_what_was_left_out(tmp_path: Path) -> None:
    write_page(run := write_run(tmp_path / "run"))
    text = read(run).section("verdict")
    assert "better than the base: chrf 20.000 -> 60.000." in text
    assert "loss 3.000 1.500 -1.500 -2.000 to -1.000 12" in text
    assert "chrf 20.000 60.000 +40.000 +30.000 to +50.000 12" in text
    assert "Rows won 9 , lost 2 , equal 1." in text
    assert "left out: test[3]: empty" in text
    assert "task acc: 0.250 → 0.500" in text
    # the six that lost most, then the six that won most
    numbers = [int(number) for number in re.findall(r"row (\d+):", text)]
    assert numbers == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert "row 0: 20.000 → 10.000 prompt row 0 completion right 0 base base run said 0" in text


def test_a_metric_of_which_less_is_better_wins_where_it_falls(tmp_path: Path) -> None:
    values = {"base": [2.0] * 3, "run": [3.0, 2.0, 1.0]}
    result = EVALUATION | {"higher_is_better": False, "values": values}
    run = write_run(
        tmp_path / "run", log=[], evaluation=result, responses=None, responses_base=None
    )
    write_page(run)
    page = (run / "report.html").read_text()
    assert re.findall(r'row (\d): <span class="(\w*)"', page) == [
        ("0", "bad"),
        ("1", ""),
        ("2", "good"),
    ]


def test_answers_stand_beside_each_other_with_their_reference(tmp_path: Path) -> None:
    write_page(run := write_run(tmp_path / "run", log=[]))
    text = read(run).section("answers")
    assert (
        "prompt 누구세요? reference right: 누구세요? before before: 누구세요? "
        "after after: 누구세요? while it trained epoch 1 epoch 1: 누구세요?" in text
    )


def test_lines_that_all_prompts_begin_with_are_shown_once(tmp_path: Path) -> None:
    prompts = ["Below is a task.\n\nSwim?", "Below is a task.\n\nSink?"]
    samples = [{"phase": "after", "step": 1, "prompt": p, "completion": "yes"} for p in prompts]
    write_page(run := write_run(tmp_path / "run", log=[], samples=samples))
    text = read(run).section("answers")
    assert text.count("Below is a task.") == 1
    assert "prompt Swim? after yes prompt Sink? after yes" in text


def test_a_run_that_has_not_ended_shows_its_latest_answers(tmp_path: Path) -> None:
    phases = ("before", "epoch 1", "epoch 2")
    samples = [{"phase": p, "step": 1, "prompt": "Who?", "completion": f"in {p}"} for p in phases]
    write_page(run := write_run(tmp_path / "run", log=[], samples=samples, complete=False))
    text = read(run).section("answers")
    assert "before in before epoch 2 in epoch 2 while it trained epoch 1 in epoch 1" in text


def test_the_data_are_told_with_their_tables_lengths_and_packed_rows(tmp_path: Path) -> None:
    write_page(run := write_run(tmp_path / "run"))
    text = read(run).section("data")
    assert "train 40 2,000 25.0% 50 60 61 62 0 0 0" in text
    assert "train 3 97.5% 1/38/1 0 0 0 0 0 0" in text
    assert "Answers end in <|im_end|> ; pad_token <pad> 4, unk_token none." in text
    assert "Padding is 12.5% of the tokens" in text
    assert "train: much is cut" in text
    assert "Lengths of the validation rows" in text
    assert "The first packed rows of train (bfd)" in text
    assert "40 train rows packed in 9, 90.0% full." in text


def test_the_config_begins_with_what_differs_from_the_defaults(tmp_path: Path) -> None:
    write_page(run := write_run(tmp_path / "run", "sft.learning_rate=0.5", log=[]))
    text = read(run).section("config")
    assert text.startswith("Config What differs from the defaults. key here default")
    assert "sft.learning_rate 0.5 0.0002" in text
    assert "name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct" in text


def test_what_it_was_trained_with_is_told(tmp_path: Path) -> None:
    write_page(run := write_run(tmp_path / "run", log=[]))
    text = read(run).section("environment")
    for told in ("base weights base==1 sha256:12", "cores 2", "torch 2.13.0", "threads 2"):
        assert told in text
    assert "git commit ef with changes" in text
    assert "command sftpipe train recipe=yoda" in text


@pytest.mark.parametrize(
    ("judgement", "told"),
    [
        (
            JUDGEMENT,
            "llama3 scored 4 rows, 1 unscored; mean 62.5 of 100, 95 % interval 50.0 to 75.0; "
            "median 65.0.",
        ),
        (
            {"mode": "pairwise", "model": "m", "against": "base", "wins": 3, "losses": 1, "ties": 2}
            | {"win_rate": 0.75, "interval": [0.5, 1.0], "scored": 6, "unscored": 0, "rows": []},
            "m scored 6 rows, 0 unscored; against base: won 3, lost 1, equal 2; "
            "win rate 75.0%, 95 % interval 50.0% to 100.0%.",
        ),
        (
            JUDGEMENT | {"mean": None, "interval": None, "scored": 0, "rows": [{"score": None}]},
            "llama3 scored 0 rows, 1 unscored.",
        ),
    ],
)
def test_the_judge_is_told(judgement: dict[str, Any], told: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", log=[], judge=judgement)
    assert write_page(run)["missing"] == []
    assert read(run).section("judge").startswith(f"Judge {told}")


def test_an_unfinished_run_shows_what_is_there(tmp_path: Path) -> None:
    nothing: dict[str, Any] = dict.fromkeys(("metrics", "evaluation", "judge", "responses"))
    run = write_run(tmp_path / "run", complete=False, samples=SAMPLES[:2], **nothing)
    result = write_page(run)
    assert (result["state"], result["missing"]) == ("stopped", [])
    page = read(run)
    assert "verdict" not in page.sections
    assert "before before: Who are you?" in page.section("answers")
    assert "sft.resume_from_checkpoint=auto" in page.section("commands")


def test_a_page_that_is_watched_loads_itself_anew(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", log=[])
    write_page(run, refresh=60)
    refresh = '<meta http-equiv="refresh" content="60">'
    assert refresh in (run / "report.html").read_text()
    write_page(run)
    assert refresh not in (run / "report.html").read_text()


# --- broken files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contents", "source"),
    [
        ({"evaluation": {"verdict": "better"}}, "evaluation.json"),
        ({"evaluation": EVALUATION | {"values": {"base": [1], "run": [1, 2]}}}, "evaluation.json"),
        ({"evaluation": EVALUATION | {"wins": "many"}}, "evaluation.json"),
        ({"metrics": {"train": {"loss": "low"}}}, "metrics.json"),
        ({"preflight": {"splits": [{}]}}, "preflight.json"),
        ({"preflight": PREFLIGHT | {"padding_share": None}}, "preflight.json"),
        ({"samples": [{"phase": "after"}]}, "samples.jsonl"),
        ({"judge": {"mode": "score"}}, "judge.json"),
        ({"manifest": {"versions": [1]}}, "manifest.json"),
        ({"manifest": {"data": "x"}}, "metrics.json"),
    ],
)
def test_a_file_of_another_shape_costs_its_section_and_is_named(
    contents: dict[str, Any], source: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", log=[], **contents)
    missing = write_page(run)["missing"]
    assert f"{source} holds something else than expected" in " ".join(missing)
    page = read(run)
    assert missing[0] in " ".join(page.texts)
    assert "config" in page.sections


@pytest.mark.parametrize("file", ["metrics.json", "log.jsonl", "config.yaml", "manifest.json"])
def test_a_missing_file_is_named_on_the_page(file: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", log=[])
    (run / file).unlink()
    assert f"{file} is missing" in write_page(run)["missing"]
    assert f"{file} is missing" in " ".join(read(run).texts)


# --- hostile texts --------------------------------------------------------------------------------


def test_what_stands_in_the_files_is_text_on_the_page(tmp_path: Path) -> None:
    text = HOSTILE + STEERING
    samples = [{"phase": text, "step": 0, "prompt": text, "completion": text, "reference": text}]
    result = json.loads(json.dumps(EVALUATION))
    result |= {"verdict": "better", "sentence": text, "base": text, "left_out": [text]}
    result["metrics"][text] = result["metrics"]["loss"]
    result["lm_eval"] = {text: {text: {"base": 1.0, "run": 1.0}}}
    preflight = json.loads(json.dumps(PREFLIGHT))
    preflight["splits"][0]["source"] = text
    preflight["end_tokens"] = {text: 1}
    preflight["special_tokens"] = {text: [text, 1]}
    preflight["warnings"] = [{"where": text, "found": text}]
    rows = [{text: text, "model_response": text}] * 12
    run = write_run(
        tmp_path / "run",
        samples=samples,
        evaluation=result,
        preflight=preflight,
        responses=rows,
        responses_base=rows,
        judge=JUDGEMENT | {"model": text},
        manifest={"versions": {text: text}, "command": [text], "weights": text},
    )
    (run / "config.yaml").write_text("a: " + json.dumps(text) + "\nrecipe: " + json.dumps(text))
    assert write_page(run)["missing"] == []

    plain = write_run(tmp_path / "plain")
    write_page(plain)
    page = read(run)
    assert page.tags.count("script") == read(plain).tags.count("script")
    assert "img" not in page.tags
    shown = " ".join(page.texts)
    assert "{{ 7*7 }}" in shown
    source = (run / "report.html").read_text(encoding="utf-8")
    assert not {"\u202e", "\x1b", "\x00"} & set(source)
    assert "\\x202eb\\x1b[31m\\x00\\xd800c e\u0301 \u05e9" in shown


def test_rows_of_megabytes_are_cut_and_the_page_stays_small(tmp_path: Path) -> None:
    samples = [
        {"phase": phase, "step": 0, "prompt": f"{at}", "completion": "가" * 5_000_000}
        for phase in ("before", "after")
        for at in range(2)
    ]
    run = write_run(tmp_path / "run", log=[], samples=samples)
    write_page(run)
    assert (run / "report.html").stat().st_size < MOST_BYTES / 3
    assert "… 4,998,500 more characters" in read(run).section("answers")


def test_many_long_texts_are_cut_further_until_the_page_is_small_enough(tmp_path: Path) -> None:
    phases = ("before", "after", *(f"step {at}" for at in range(100)))
    samples = [
        {"phase": phase, "step": 0, "prompt": f"{at}", "completion": "가" * 3000}
        for phase in phases
        for at in range(60)
    ]
    run = write_run(tmp_path / "run", log=[], samples=samples)
    write_page(run)
    assert (run / "report.html").stat().st_size <= MOST_BYTES
    text = read(run).section("answers")
    assert "more characters" in text
    assert text.count("prompt") == 40 + 1
    assert text.endswith("samples.jsonl holds 20 more prompts and the answers of 88 earlier times.")


def test_a_mixture_of_many_sources_makes_a_small_page(tmp_path: Path) -> None:
    splits = [PREFLIGHT["splits"][0] | {"source": f"source{at}"} for at in range(200)]
    run = write_run(tmp_path / "run", log=[], preflight=PREFLIGHT | {"splits": splits})
    write_page(run)
    assert (run / "report.html").stat().st_size < MOST_BYTES / 3
    text = read(run).section("data")
    assert text.count("Lengths of the") == 12
    assert "Lengths of 188 more splits are in preflight.json." in text


def test_a_hundred_thousand_log_lines_make_a_small_page(tmp_path: Path) -> None:
    entry = {"grad_norm": 1.0, "learning_rate": 1e-4, "tokens_per_s": 100.0}
    log = [
        {"loss": 3 - at / 50_000 + at % 7, "step": at, "epoch": at / 1000, **entry}
        | {"num_tokens": 100.0 * at, "mean_token_accuracy": 0.5, "peak_memory_bytes": 2**30}
        for at in range(1, 100_001)
    ]
    run = write_run(tmp_path / "run", log=log)
    write_page(run)
    assert (run / "report.html").stat().st_size < MOST_BYTES
    assert "100,000 entries in 300 groups" in read(run).section("training")


@pytest.mark.parametrize("log", [[], LOG[:1], LOG[1:2], [{"loss": None, "step": 1}]])
def test_a_short_log_makes_a_page(log: list[dict[str, Any]], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", log=log)
    assert write_page(run)["missing"] == []
    assert ("training" in read(run).sections) == bool(log)


# --- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("abcdef", "abc … 3 more characters"),
        ("abc", "abc"),
        (None, ""),
        (12, "12"),
        ({"a": "é"}, '{"a … 7 more characters'),
    ],
)
def test_a_text_is_cut_and_says_by_how_much(value: object, shown: str) -> None:
    assert cut(value, 3) == shown


def test_json_in_a_script_element_ends_nothing() -> None:
    text = str(as_json({"a": "</script><!-- & \u2028"}))
    assert not {"<", ">", "&", "\u2028"} & set(text)
    assert json.loads(text) == {"a": "</script><!-- & \u2028"}


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    write_page(run := write_run(tmp_path / "run"))
    page = (run / "report.html").read_text()
    assert "default-src 'none'" in page
    assert re.findall(r'(?:src|href)="([^"#]*)', page).count("") + 1 == len(
        re.findall(r'(?:src|href)="', page)
    )
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    assert METRICS["train"]["loss"] == 2.0


@pytest.mark.parametrize("name", ["full", "interrupted"])
def test_a_run_of_0_1_0_has_a_page(name: str, tmp_path: Path) -> None:
    run = tmp_path / name
    shutil.copytree(Path(__file__).parents[2] / "fixtures" / "run_0_1_0" / name, run)
    result = write_page(run)
    assert result["missing"] == []
    assert result["state"] == ("complete" if name == "full" else "stopped")
    page = read(run)
    assert {"answers", "training", "data", "config", "environment"} <= set(page.sections)
