"""Answers of a finished run: to a text, a conversation, rows and files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sftpipe.cli import main
from sftpipe.config.on_run import CHANGEABLE
from sftpipe.errors import ConfigError, DataError, ModelError, RunError
from sftpipe.runs.answer import answer_all
from sftpipe.runs.answering import Answering, generate_config
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.load import Run, load_run
from sftpipe.terminal import printable
from support.answers import answers_by_hand
from support.errors import Pin, named, places, refused, told

Copy = Callable[..., Run]
TEXTS = ["Where is the station?", "No.", "오늘 날씨는 어때?"]


def chat(tokenizer: Any, *turns: str) -> list[int]:
    """The ids of turns of user and assistant in turn, as transformers renders them."""
    roles = ("user", "assistant")
    said = [{"role": roles[at % 2], "content": text} for at, text in enumerate(turns)]
    text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def by_hand(run: Run, *prompts: list[int], tokens: int = 4) -> list[str]:
    return answers_by_hand(run.model, run.tokenizer, prompts, tokens)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# --- what is asked --------------------------------------------------------------------------------


def test_a_text_a_conversation_and_rows_are_asked_with_the_prompts_of_training(
    copy_run: Copy,
) -> None:
    run = copy_run()
    for text in TEXTS:
        (answer,) = run.generate(text)
        assert answer.text == by_hand(run, chat(run.tokenizer, text))[0]
        assert (len(answer.ids), answer.stopped) == (4, False)
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}]
    (answer,) = run.generate([*turns, {"role": "user", "content": "Ha?"}])
    assert answer.text == by_hand(run, chat(run.tokenizer, "Hi.", "Ho.", "Ha?"))[0]
    rows = [{"prompt": text} for text in TEXTS]
    expected = by_hand(run, *(chat(run.tokenizer, text) for text in TEXTS))
    assert len(set(expected)) == 3
    for size in (1, 2, 3):
        assert [one.text for one in run.generate(rows, batch_size=size)] == expected


def test_a_streamed_answer_is_the_same_piece_by_piece(copy_run: Copy) -> None:
    run = copy_run()
    pieces = list(run.generate(TEXTS[2], stream=True, max_new_tokens=8))
    assert "".join(pieces).rstrip() == run.generate(TEXTS[2], max_new_tokens=8)[0].text
    assert "�" not in "".join(pieces[:-1])


def test_the_generation_config_of_the_base_is_not_asked(copy_run: Copy) -> None:
    run = copy_run()
    expected = by_hand(run, chat(run.tokenizer, TEXTS[0]))
    config = run.model.generation_config
    config.do_sample, config.temperature, config.repetition_penalty = True, 9.0, 5.0
    config.max_new_tokens, config.min_new_tokens, config.num_beams = 1, 1, 2
    assert [one.text for one in run.generate(TEXTS[0])] == expected
    assert config.repetition_penalty == 5.0


def test_keys_of_generate_go_before_those_of_evaluation(copy_run: Copy) -> None:
    run = copy_run("evaluation.max_new_tokens=2")
    ids = chat(run.tokenizer, TEXTS[0])
    assert len(run.generate(TEXTS[0])[0].ids) == 2
    drawn = answers_by_hand(run.model, run.tokenizer, [ids], 6, temperature=1.5, top_k=9, seed=5)
    asked = run.generate(TEXTS[0], max_new_tokens=6, temperature=1.5, top_k=9, seed=5)
    assert [one.text for one in asked] == drawn
    seed = run.config.seed
    drawn = answers_by_hand(run.model, run.tokenizer, [ids], 6, temperature=1.5, top_k=9, seed=seed)
    asked = run.generate(TEXTS[0], max_new_tokens=6, temperature=1.5, top_k=9)
    assert [one.text for one in asked] == drawn


# {key: (what is asked beside it, its value)}
DRAWING: dict[str, tuple[dict[str, Any], Any]] = {
    "max_new_tokens": ({}, 3),
    "min_new_tokens": ({"max_new_tokens": 40, "do_sample": True, "temperature": 50.0}, 40),
    "do_sample": ({}, True),
    "seed": ({"do_sample": True}, 9),
    "temperature": ({"do_sample": True}, 0.01),
    "top_k": ({"do_sample": True}, 1),
    "top_p": ({"do_sample": True}, 0.01),
    "min_p": ({"do_sample": True}, 0.9),
    "typical_p": ({"do_sample": True}, 0.01),
    "repetition_penalty": ({}, 30.0),
    "no_repeat_ngram_size": ({}, 1),
    "num_beams": ({}, 4),
    "length_penalty": ({"num_beams": 4, "max_new_tokens": 60}, -30.0),
}


@pytest.mark.parametrize("key", DRAWING)
def test_each_key_of_drawing_changes_the_answers(key: str, copy_run: Copy) -> None:
    run = copy_run()
    rows = [{"prompt": f"{text} {at}"} for text in TEXTS for at in range(4)]
    beside, value = DRAWING[key]
    asked = {"max_new_tokens": 12, **beside}
    before = [one.ids for one in run.generate(rows, **asked)]
    assert [one.ids for one in run.generate(rows, **asked)] == before
    assert [one.ids for one in run.generate(rows, **{**asked, key: value})] != before


@pytest.mark.parametrize(
    ("keys", "where", "typed"),
    named(
        [
            ["a misspelt key", {"temprature": 0.5}, "generate.temprature", ()],
            ["temperature 0", {"temperature": 0}, "generate.temperature", ()],
            ["more than all", {"top_p": 1.5}, "generate.top_p", ()],
            ["stop ids", {"eos_token_id": 3}, "generate.eos_token_id", ()],
            ["several answers", {"num_return_sequences": 2}, "generate.num_return_sequences", ()],
            ["a cache", {"cache_implementation": "static"}, "generate.cache_implementation", ()],
            ["no tokens", {"max_new_tokens": 0}, "generate.max_new_tokens", ()],
            [
                "drawing without drawing",
                {"do_sample": False, "top_k": 3},
                "generate.top_k",
                ("generate.do_sample=true",),
            ],
            [
                "one beam",
                {"length_penalty": 1.0},
                "generate.length_penalty",
                ("generate.num_beams=4",),
            ],
        ]
    ),
)
def test_a_key_that_generation_does_not_have_is_an_error(
    keys: dict[str, Any], where: str, typed: tuple[str, ...], copy_run: Copy, golden_error: Pin
) -> None:
    error = refused(ConfigError, lambda: copy_run().generate("Hi.", **keys))
    assert [place.partition(" ")[0] for place in places(error)] == [where]
    assert list(told(error).values()) == [typed]
    golden_error(error)


@pytest.mark.parametrize(
    ("asked", "where"),
    named(
        [
            ["no turn to answer", [{"role": "assistant", "content": "Hi."}], "messages"],
            ["no rows", [], "rows[0]"],
            ["numbers", [1], "rows[0]"],
            ["a row without the column", [{"completion": "x"}], "rows[0].instruction"],
        ]
    ),
)
def test_what_cannot_be_asked_is_an_error_of_its_place(
    asked: list[Any], where: str, copy_run: Copy, golden_error: Pin
) -> None:
    error = refused(DataError, lambda: copy_run().generate(asked))
    assert [place.partition(" ")[0] for place in places(error)] == [where]
    golden_error(error)


def test_a_prompt_beyond_the_context_names_its_row_and_the_tokens(
    copy_run: Copy, golden_error: Pin
) -> None:
    run = copy_run()
    run.model.config.max_position_embeddings = 90
    rows = [{"prompt": "Hi."}, {"prompt": "word " * 80}]
    error = refused(DataError, lambda: run.generate(rows))
    length = len(chat(run.tokenizer, rows[1]["prompt"]))
    assert places(error) == ["rows[1]", "prompts"]
    assert f"{length + 4 - 90} more than the 90" in error.problems[0].found
    golden_error(error)


# --- files of rows --------------------------------------------------------------------------------


@pytest.fixture
def asked_file(tmp_path: Path) -> Path:
    """Forty rows without answers, of unequal length."""
    file = tmp_path / "asked.jsonl"
    rows = [{"prompt": f"{'Say ' * (at % 7)}{at}."} for at in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_a_file_of_rows_is_answered_in_its_order(
    copy_run: Copy, asked_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_run()
    words = [f"run={run.dir}", f"generate.data_files={asked_file}", "generate.base=true"]
    assert main(["generate", *words]) == 0
    written = RunFolder(run.dir).answers
    assert capsys.readouterr().out == f"40 answers in {written}\n"
    rows, asked = lines(written), lines(asked_file)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in asked]
    assert {*rows[0]} == {"prompt", "model_response", "base_response", "stopped"}
    prompts = [chat(run.tokenizer, row["prompt"]) for row in asked]
    assert [row["model_response"] for row in rows] == by_hand(run, *prompts)
    assert [row["base_response"] for row in rows] == by_hand(run.base, *prompts)
    assert {row["stopped"] for row in rows} == {False}
    assert not list(run.dir.glob(".*"))


def test_without_a_question_the_test_split_is_answered(copy_run: Copy, tmp_path: Path) -> None:
    run = copy_run()
    output = tmp_path / "out" / "mine.jsonl"
    assert main(["generate", f"run={run.dir}", f"generate.output={output}"]) == 0
    rows = lines(output)
    assert len(rows) == 12
    assert all(set(row) == {"prompt", "completion", "model_response", "stopped"} for row in rows)
    prompts = [chat(run.tokenizer, row["prompt"]) for row in rows]
    assert [row["model_response"] for row in rows] == by_hand(run, *prompts)


def kill_after(words: list[str], unfinished: Path, rows: int) -> None:
    """Start a command, and kill it once so many rows are finished."""
    command = [sys.executable, "-m", "sftpipe", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        for _ in range(3000):
            if unfinished.is_file() and unfinished.read_bytes().count(b"\n") > rows:
                break
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        assert process.stderr
        process.stderr.close()


@pytest.mark.slow
def test_a_killed_generate_goes_on_and_asks_no_finished_row_again(
    copy_run: Copy, asked_file: Path, tmp_path: Path
) -> None:
    run = copy_run()
    whole, output = tmp_path / "whole.jsonl", tmp_path / "killed" / "answers.jsonl"
    words = [f"run={run.dir}", f"generate.data_files={asked_file}", "generate.batch_size=2"]
    words = ["generate", *words, "generate.max_new_tokens=24"]
    assert main([*words, f"generate.output={whole}"]) == 0
    unfinished = output.parent / ".unfinished" / "answers.jsonl_model_response.jsonl"
    kill_after([*words, f"generate.output={output}"], unfinished, 4)
    assert not output.exists()
    kept = unfinished.read_bytes().split(b"\n")
    assert 5 <= len(kept) < 42
    # a mark in a finished row would be lost if it was asked again; the last line is cut short
    first = json.loads(kept[1])
    first["value"]["text"] = "MARK"
    cut = [kept[0], json.dumps(first).encode(), *kept[2:4], kept[4][:9]]
    unfinished.write_bytes(b"\n".join(cut))

    assert main([*words, f"generate.output={output}"]) == 0

    expected = lines(whole)
    expected[first["number"]]["model_response"] = "MARK"
    assert lines(output) == expected
    assert not unfinished.parent.exists()


def test_other_questions_do_not_take_the_answers_of_a_killed_start(
    copy_run: Copy, asked_file: Path, tmp_path: Path
) -> None:
    run = copy_run()
    output = tmp_path / "answers.jsonl"
    unfinished = tmp_path / ".unfinished" / "answers.jsonl_model_response.jsonl"
    unfinished.parent.mkdir()
    value = {"text": "OLD", "ids": [1], "stopped": True}
    old = [{"key": "another"}, {"number": 0, "value": value}]
    unfinished.write_text("".join(json.dumps(one) + "\n" for one in old), encoding="utf-8")
    words = [f"run={run.dir}", f"generate.data_files={asked_file}", f"generate.output={output}"]
    assert main(["generate", *words]) == 0
    assert lines(output)[0]["model_response"] != "OLD"


def test_finished_rows_are_those_of_the_same_model_questions_and_drawing(
    copy_run: Copy, tmp_path: Path
) -> None:
    run = copy_run()
    file = tmp_path / ".unfinished" / "rows.jsonl"

    def first(subject: Answering, text: str, tokens: int) -> str:
        cfg = generate_config({"max_new_tokens": tokens})
        said, _ = answer_all(
            subject,
            subject.model,
            subject.questions(text),
            subject.sampling(cfg),
            batch_size=1,
            folder=tmp_path,
            name=file.stem,
        )
        return said[0].text

    first(run, "Hi.", 4)
    head, line, _ = file.read_text(encoding="utf-8").split("\n")
    row = json.loads(line)
    row["value"]["text"] = "OLD"
    marked = f"{head}\n{json.dumps(row)}\n"
    for asked, is_old in (
        ((run, "Hi.", 4), True),
        ((run, "Ho.", 4), False),
        ((run, "Hi.", 5), False),
        ((run.base, "Hi.", 4), False),
    ):
        file.write_text(marked, encoding="utf-8")
        assert (first(*asked) == "OLD") is is_old


# --- which run ------------------------------------------------------------------------------------


def test_the_answer_to_a_prompt_is_printed(
    copy_run: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_run()
    (expected,) = by_hand(run, chat(run.tokenizer, "What, {now}: a, b?"))
    words = [f"run={run.dir}", "generate.prompt=What, {now}: a, b?"]
    assert main(["generate", *words]) == 0
    assert capsys.readouterr().out == f"{printable(expected)}\n"
    assert main(["generate", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"answer": expected, "stopped": False, "base": None}
    ]
    turns = "generate.messages=[{role: user, content: Hi.}]"
    words = [f"run={run.dir}", turns, "generate.base=true", "--json"]
    for more, tokens in (([], 4), (["evaluation.max_new_tokens=3"], 3)):
        assert main(["generate", *words, *more]) == 0
        (said,) = json.loads(capsys.readouterr().out)
        prompt = chat(run.tokenizer, "Hi.")
        for name, one in (("answer", run), ("base", run.base)):
            assert said[name] == by_hand(one, prompt, tokens=tokens)[0]


def test_a_base_model_alone_answers_with_the_format_of_a_recipe(
    lively_base: Path, copy_run: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_run()
    (expected,) = by_hand(run.base, chat(run.tokenizer, "Hi."))
    words = ["recipe=yoda", "quantization=none", "model=custom", "evaluation.max_new_tokens=4"]
    base = f"model.name_or_path={lively_base}"
    assert main(["generate", "run=null", *words, base, "generate.prompt=Hi."]) == 0
    assert capsys.readouterr().out == f"{printable(expected)}\n"


def test_what_is_no_finished_run_is_an_error(copy_run: Copy, golden_error: Pin) -> None:
    run = copy_run()
    (run.dir / "COMPLETE").unlink()
    golden_error(refused(RunError, lambda: load_run(run.dir)), "unfinished")
    (run.dir / "manifest.json").unlink()
    golden_error(refused(RunError, lambda: load_run(run.dir)), "no run")


def test_a_base_that_has_changed_is_an_error(
    copy_run: Copy, lively_base: Path, tmp_path: Path
) -> None:
    run = copy_run()
    other = tmp_path / "other" / "lively"
    shutil.copytree(lively_base, other)
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}), "utf-8")
    recorded = yaml.safe_load((run.dir / "config.yaml").read_text(encoding="utf-8"))
    recorded["model"]["name_or_path"] = str(other)
    (run.dir / "config.yaml").write_text(yaml.safe_dump(recorded), encoding="utf-8")
    error = refused(RunError, lambda: load_run(run.dir).generate("Hi."))
    assert places(error) == [str(run.dir)]
    shutil.rmtree(other)
    refused(ModelError, lambda: load_run(run.dir).generate("Hi."))


def test_prompts_that_are_not_those_of_training_are_an_error(
    copy_run: Copy, golden_error: Pin
) -> None:
    run = copy_run()
    template = run.dir / "chat_template.jinja"
    text = template.read_text(encoding="utf-8")
    template.write_text(text.replace("<|im_start|>assistant", "<|im_start|>user"), "utf-8")
    golden_error(refused(RunError, lambda: load_run(run.dir).generate("Hi.")))


@pytest.mark.parametrize("key", CHANGEABLE)
def test_a_verb_may_change_what_decides_neither_weights_nor_data(key: str, copy_run: Copy) -> None:
    values = {
        "evaluation": "evaluation.max_new_tokens=3",
        "allowed_targets": "allowed_targets=[mine]",
        "sft.use_cpu": "sft.use_cpu=true",
        "sft.per_device_eval_batch_size": "sft.per_device_eval_batch_size=3",
        "model.dtype": "model.dtype=bfloat16",
        "model.attn_implementation": "model.attn_implementation=eager",
        "dataset.num_proc": "dataset.num_proc=2",
    }
    changed, before = copy_run(values[key]).config, copy_run().config
    assert changed != before


def test_what_training_has_decided_cannot_be_changed(copy_run: Copy, golden_error: Pin) -> None:
    error = refused(ConfigError, lambda: copy_run("lora.r=4", "model.dtpye=float32"))
    assert places(error) == ["lora.r (command line)", "model.dtpye (command line)"]
    golden_error(error)


@pytest.mark.parametrize("verb", ["generate", "evaluate", "chat"])
def test_a_verb_without_a_run_says_which_word_is_missing(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb]) == 2
    assert f"sftpipe {verb} run=DIR" in capsys.readouterr().err


def test_a_key_of_a_finished_run_is_an_error_of_train_that_names_the_verb(
    golden_error: Pin, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "recipe=yoda", "judge=openai", "generate.top_k=3"]) == 2
    golden_error(capsys.readouterr().err)
