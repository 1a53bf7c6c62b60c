"""What happened in a run, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sftpipe.runs.report.found import find
from sftpipe.runs.report.story import commands, done, duration, ending, sentence
from support.run_folders import EVALUATION, LOG, MANIFEST, METRICS, write_run

NOT_EVALUATED: dict[str, Any] = {"evaluation": None, "judge": None}
BEGUN: dict[str, Any] = {"complete": False, "metrics": None, **NOT_EVALUATED}


def told(folder: Path, *words: str, **contents: Any) -> str:
    return sentence(find(write_run(folder / "run", *words, **contents)))


def test_a_finished_run_says_what_was_trained_how_far_and_what_came_of_it(tmp_path: Path) -> None:
    assert told(tmp_path, **NOT_EVALUATED) == (
        "SmolLM2-135M-Instruct was fine-tuned with LoRA (r=16) on 4-bit weights on 40 rows, "
        "10 steps in 4 min 12 s; its validation loss fell from 3.000 to 1.250."
    )


def test_the_verdict_of_evaluate_ends_the_sentence(tmp_path: Path) -> None:
    assert told(tmp_path).endswith(" to 1.250; it is better than the base: chrf 20.000 -> 60.000.")


@pytest.mark.parametrize(
    ("words", "how"),
    [
        (["quantization=none"], "fine-tuned with LoRA (r=16) on 40"),
        (["quantization=int8"], "fine-tuned with LoRA (r=16) on 8-bit weights on 40"),
        (["lora=dora", "lora.r=4"], "fine-tuned with DoRA (r=4) on 4-bit weights on 40"),
        (["lora=none", "quantization=none"], "fine-tuned in full on 40"),
    ],
)
def test_the_way_of_training_is_named(words: list[str], how: str, tmp_path: Path) -> None:
    assert f" was {how} rows" in told(tmp_path, *words)


@pytest.mark.parametrize(
    ("after", "verb"), [(4.0, "rose from 3.000 to 4.000"), (3.0, "stayed from 3.000 to 3.000")]
)
def test_a_loss_that_did_not_fall_is_not_said_to_fall(
    after: float, verb: str, tmp_path: Path
) -> None:
    validation = {"before": {"loss": 3.0}, "after": {"loss": after}}
    metrics = METRICS | {"validation": validation}
    assert verb in told(tmp_path, metrics=metrics, **NOT_EVALUATED)


def test_an_unfinished_run_says_how_far_it_is_and_where_it_goes_on(tmp_path: Path) -> None:
    words = ["sft.num_train_epochs=4"]
    assert told(tmp_path, *words, **BEGUN).endswith(
        " on 40 rows, and stopped: step 10 (25%), training loss 1.500; it has no checkpoint."
    )
    (tmp_path / "run" / "checkpoint-10").mkdir()
    (tmp_path / "run" / "checkpoint-5").mkdir()
    assert sentence(find(tmp_path / "run")).endswith("; its newest checkpoint is of step 10.")
    running = sentence(find(tmp_path / "run", "running"))
    assert " is being fine-tuned with LoRA" in running
    assert running.endswith(": step 10 (25%), training loss 1.500.")


def test_a_run_that_has_logged_nothing_says_so(tmp_path: Path) -> None:
    assert "no step is logged yet" in told(tmp_path, log=[], **BEGUN)


@pytest.mark.parametrize(
    ("words", "share"),
    [
        (["sft.max_steps=40"], 0.25),
        (["sft.num_train_epochs=2"], 0.5),
        (["sft.max_steps=5"], 1.0),
    ],
)
def test_the_share_that_is_done_follows_steps_or_epochs(
    words: list[str], share: float, tmp_path: Path
) -> None:
    found = find(write_run(tmp_path / "run", *words, **BEGUN))
    assert done(found, LOG[2]) == share


def test_of_a_damaged_config_and_manifest_little_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", manifest={}, **NOT_EVALUATED)
    (run / "config.yaml").write_text("[")
    assert sentence(find(run)).startswith("the model was fine-tuned in full, 10 steps in")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (252, "4 min 12 s"),
        (3599.6, "1 h 0 min"),
        (11_100, "3 h 5 min"),
        (86_399, "23 h 59 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_terminal_ends_in_the_story_in_twelve_lines(tmp_path: Path) -> None:
    lines = ending(find(write_run(tmp_path / "run", **NOT_EVALUATED)))
    assert len(lines) == 12
    assert lines[1:] == [
        (None, ""),
        ("validation", "loss 3.000 -> 1.250, perplexity 20.09 -> 3.49"),
        ("test", "loss 1.375"),
        ("training", "loss 2.000, 1,234 tokens/s, peak memory 1.5 GiB"),
        ("prompt", "Who are you?"),
        ("before", "before: Who are you?"),
        ("after", "after: Who are you?"),
        (None, ""),
        ("report", f"{tmp_path}/run/report.html"),
        ("next", f"sftpipe evaluate run={tmp_path}/run"),
        ("", f"sftpipe chat run={tmp_path}/run"),
    ]


def test_many_validation_sets_are_one_line(tmp_path: Path) -> None:
    phases = METRICS["validation"]
    validation = {f"set{at}": phases for at in range(5)}
    metrics = {"train": METRICS["train"], "validation": validation}
    lines = ending(find(write_run(tmp_path / "run", metrics=metrics, samples=[])))
    assert dict(lines)["validation"] == (
        "set0 loss 3.000 -> 1.250, perplexity 20.09 -> 3.49; "
        "set1 loss 3.000 -> 1.250, perplexity 20.09 -> 3.49; 3 more sets in the report"
    )
    assert len(lines) < 12


def test_what_to_type_next_fits_the_state_of_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a run", **NOT_EVALUATED)
    typed = commands(find(run)).values()
    assert f'sftpipe evaluate "run={run}"' in typed
    assert f"sftpipe train --from '{run}'" in typed
    stopped = commands(find(run, "stopped"))
    assert f'sftpipe train "run={run}" sft.resume_from_checkpoint=auto' in stopped.values()
    assert list(commands(find(run, "running")).values()) == [f'sftpipe report "run={run}" --watch']


def test_the_story_needs_no_split_but_train(tmp_path: Path) -> None:
    metrics = {"train": METRICS["train"]}
    manifest = MANIFEST | {"data": {}}
    found = find(write_run(tmp_path / "run", metrics=metrics, manifest=manifest, **NOT_EVALUATED))
    assert sentence(found).endswith(" weights, 10 steps in 4 min 12 s.")
    assert [heading for heading, _ in ending(found)][2:4] == ["training", "prompt"]
    assert EVALUATION["sentence"] not in sentence(found)
