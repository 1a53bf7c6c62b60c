"""Did the training help: figures, intervals and the verdict on rows that were not trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sacrebleu.metrics import CHRF

from runs.test_generate import by_hand, chat, kill_after
from sftpipe.cli import main
from sftpipe.errors import ConfigError, DataError, RunError
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.load import Run
from support.answers import ids_by_hand
from support.errors import Pin, places, refused, told

Copy = Callable[..., Run]
NOT = "not distinguishable"


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def row_loss(run: Run, model: Any, row: dict[str, str]) -> tuple[float, int]:
    """(sum, tokens) of the losses of an answer and its end, by transformers alone."""
    prompt = chat(run.tokenizer, row["prompt"])
    answer = run.tokenizer(f"{row['completion']}<|im_end|>", add_special_tokens=False).input_ids
    ids = torch.tensor([prompt + answer])
    labels = ids.clone()
    labels[0, : len(prompt)] = -100
    with torch.inference_mode():
        loss = model(input_ids=ids, labels=labels).loss
    return float(loss) * len(answer), len(answer)


@pytest.fixture(scope="module")
def evaluated(lively_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run, evaluated once against its base."""
    from sftpipe.runs.load import load_run

    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(lively_run, folder)
    assert main(["evaluate", f"run={folder}"]) == 0
    return load_run(folder)


def test_figures_are_those_of_the_test_rows(evaluated: Run) -> None:
    files = RunFolder(evaluated.dir)
    found, rows = read(files.evaluation), read(files.responses)
    assert len(rows) == 12
    assert list(rows[0]) == ["prompt", "completion", "model_response"]
    prompts = [chat(evaluated.tokenizer, row["prompt"]) for row in rows]
    assert [row["model_response"] for row in rows] == by_hand(evaluated, *prompts)
    before = read(files.base_responses)
    assert [row["model_response"] for row in before] == by_hand(evaluated.base, *prompts)
    references = [[row["completion"] for row in rows]]
    means: dict[str, list[float]] = {}
    for name, answers in (("run", rows), ("base", before)):
        said = [row["model_response"] for row in answers]
        chrf = CHRF().corpus_score(said, references).score
        assert found["metrics"]["chrf"][name] == pytest.approx(chrf, abs=1e-6)
        model = evaluated.model if name == "run" else evaluated.base.model
        sums = [row_loss(evaluated, model, row) for row in rows]
        means[name] = [total / tokens for total, tokens in sums]
        loss = sum(total for total, _ in sums) / sum(tokens for _, tokens in sums)
        assert found["metrics"]["loss"][name] == pytest.approx(loss, rel=1e-4)
    ids = ids_by_hand(evaluated.model, prompts, 4)
    ended = [evaluated.tokenizer.eos_token_id in one for one in ids]
    assert found["metrics"]["stop_rate"]["run"] == pytest.approx(sum(ended) / 12)
    assert found["metrics"]["validation_loss"]["rows"] == 12
    assert found["wins"] + found["losses"] + found["ties"] == found["rows"] == 12
    gains = [means["base"][at] - means["run"][at] for at in range(12)]
    worst = sorted(range(12), key=lambda at: gains[at])[:10]
    assert [one["row"] for one in found["worst"]] == worst
    for one in found["worst"]:
        assert one["base"] == pytest.approx(means["base"][one["row"]], rel=1e-4)
        assert one["run"] == pytest.approx(means["run"][one["row"]], rel=1e-4)
    low, high = found["metrics"]["loss"]["interval"]
    assert low <= found["metrics"]["loss"]["difference"] <= high
    assert not (evaluated.dir / ".unfinished").exists()


def test_training_on_these_rows_helped_on_these_rows(
    copy_run: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    train = Path(__file__).parents[2] / "src/sftpipe/data/assets/yoda/train.jsonl"
    rows = train.read_text(encoding="utf-8").splitlines()[:12]
    run = copy_run()
    file = run.dir.parent / "seen.jsonl"
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    words = [f"run={run.dir}", f"evaluation.data_files={file}"]
    assert main(["evaluate", *words]) == 0
    out = capsys.readouterr().out
    assert "\nbetter\n" in out
    assert "better than the base: loss " in out
    found = read(RunFolder(run.dir).evaluation)
    assert (found["verdict"], found["metric"], found["rows"]) == ("better", "loss", 12)
    assert found["wins"] > 6
    assert set(found["metrics"]) & {"validation_loss"} == set()


def test_a_run_is_not_distinguishable_from_itself(copy_run: Copy, evaluated: Run) -> None:
    found = copy_run(f"evaluation.base={evaluated.dir}").evaluate()
    assert found["verdict"] == NOT
    assert [one["interval"] for one in found["metrics"].values()] == [[0.0, 0.0]] * 8
    assert (found["wins"], found["losses"], found["ties"]) == (0, 0, 12)


def test_fewer_than_ten_rows_decide_nothing(copy_run: Copy) -> None:
    run = copy_run()
    rows = [{"prompt": f"Say {at}.", "completion": "x"} for at in range(9)]
    file = run.dir.parent / "nine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = copy_run(f"evaluation.data_files={file}").evaluate()
    assert (found["rows"], found["verdict"]) == (9, NOT)


OWN = """
def shout(answer, reference, row):
    return float(len(row["prompt"]) + (answer == reference))
"""


def test_a_metric_of_ones_own_is_measured_and_may_be_the_verdict(
    copy_run: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_metric.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ["evaluation.metrics=[own_metric.shout]", "evaluation.verdict=shout"]
    refused(DataError, copy_run(*own).evaluate)
    found = copy_run(*own, "allowed_targets=[own_metric]").evaluate()
    rows = read(RunFolder(copy_run().dir).responses)
    mean = sum(len(row["prompt"]) for row in rows) / 12
    assert found["metrics"]["shout"]["run"] == pytest.approx(mean)
    assert (found["metric"], found["verdict"]) == ("shout", NOT)


@pytest.mark.parametrize("says", ["'much'", "float('nan')", "row['nothing']"])
def test_a_metric_that_gives_no_number_names_its_row(
    says: str,
    copy_run: Copy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    golden_error: Pin,
) -> None:
    name = f"own_{abs(hash(says))}"
    code = f"def bad(answer, reference, row):\n    return {says}\n"
    (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    run = copy_run(f"evaluation.metrics=[{name}.bad]", f"allowed_targets=[{name}]")
    error = refused(DataError, run.evaluate)
    assert places(error) == ["evaluation.metrics"]
    golden_error(str(error).replace(name, "own"))


def test_a_verdict_that_is_no_metric_names_the_nearest(copy_run: Copy, golden_error: Pin) -> None:
    error = refused(ConfigError, copy_run("evaluation.verdict=chrff").evaluate)
    assert told(error) == {"evaluation.verdict": ("evaluation.verdict=chrf",)}
    golden_error(error)


def test_a_run_without_test_rows_says_where_to_take_some(copy_run: Copy, golden_error: Pin) -> None:
    run = copy_run()
    text = (run.dir / "config.yaml").read_text(encoding="utf-8")
    rows = run.dir.parent / "rows.jsonl"
    row = {"prompt": "a", "completion": "b"}
    rows.write_text("".join(json.dumps({**row, "at": at}) + "\n" for at in range(3)), "utf-8")
    changed = text.replace("path: embedded", "path: json").replace("name: yoda", "name: null")
    changed = changed.replace("data_files: null", f"data_files: {rows}", 1)
    (run.dir / "config.yaml").write_text(changed, encoding="utf-8")
    error = refused(DataError, lambda: copy_run().evaluate())
    assert places(error) == ["test"]
    golden_error(error)


def test_another_folder_to_compare_with_must_be_a_finished_run(copy_run: Copy) -> None:
    refused(RunError, lambda: copy_run("evaluation.base=/nowhere").evaluate())


@pytest.mark.slow
def test_a_killed_evaluate_goes_on_to_the_same_files(
    copy_run: Copy, evaluated: Run, tmp_path: Path
) -> None:
    run = copy_run("evaluation.batch_size=1")
    words = ["evaluate", f"run={run.dir}", "evaluation.batch_size=1"]
    unfinished = run.dir / ".unfinished" / "run_answers.jsonl"
    kill_after(words, unfinished, 3)
    kept = [json.loads(line) for line in unfinished.read_bytes().split(b"\n")[:-1]]
    assert not RunFolder(run.dir).evaluation.exists()
    assert (run.dir / ".unfinished" / "base_answers.jsonl").exists()
    # a mark in a finished row would be lost if it was asked again
    kept[1]["value"]["text"] = "MARK"
    unfinished.write_text("".join(json.dumps(one) + "\n" for one in kept), encoding="utf-8")

    assert main(words) == 0

    expected = read(RunFolder(evaluated.dir).responses)
    expected[kept[1]["number"]]["model_response"] = "MARK"
    assert read(RunFolder(run.dir).responses) == expected
    names = ("loss", "validation_loss")
    figures = [read(RunFolder(one.dir).evaluation)["metrics"] for one in (run, evaluated)]
    assert [figures[0][name] for name in names] == [figures[1][name] for name in names]
    assert not unfinished.parent.exists()


def test_the_card_shows_the_figures_and_tells_the_hub(copy_run: Copy) -> None:
    run = copy_run("evaluation.max_new_tokens=2")
    card = RunFolder(run.dir).card
    text = card.read_text(encoding="utf-8")
    card.write_text(text.replace("## Use\n", "## Mine\n\nStays.\n\n## Use\n"), encoding="utf-8")
    for _ in range(2):
        found = run.evaluate()
        text = card.read_text(encoding="utf-8")
        assert text.count("## Evaluation\n") == text.count("Stays.") == text.count("## Use\n") == 1
        assert f"**{found['verdict']}**: {found['sentence']}." in text
        _, head, _ = text.split("---\n", 2)
        (model,) = yaml.safe_load(head)["model-index"]
        (result,) = model["results"]
        assert result["dataset"] == {"name": "yoda", "type": "embedded"}
        values = {one["type"]: one["value"] for one in result["metrics"]}
        assert values["chrf"] == pytest.approx(found["metrics"]["chrf"]["run"], abs=1e-5)
        loss = found["metrics"]["loss"]
        assert f"| loss | {loss['base']:.3f} | {loss['run']:.3f} | " in text


def test_the_hub_reads_the_metadata_of_the_card(evaluated: Run) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(RunFolder(evaluated.dir).card)
    assert {one.metric_type for one in card.data.eval_results} >= {"chrf", "loss", "stop_rate"}


def test_answers_are_greedy_whatever_the_samples_of_training_were(
    copy_run: Copy, evaluated: Run
) -> None:
    run = copy_run("evaluation.do_sample=true", "evaluation.temperature=5.0")
    run.evaluate()
    assert read(RunFolder(run.dir).responses) == read(RunFolder(evaluated.dir).responses)


# --- tasks of lm-eval -----------------------------------------------------------------------------


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task of one's own: four questions with two answers each."""
    rows = [{"question": f"{at} + 1 =", "right": at % 2} for at in range(4)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = tmp_path / "sums.yaml"
    file.write_text(
        "task: sums\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\n'
        'doc_to_choice: [" one", " two"]\n'
        "doc_to_target: right\n"
        "metric_list: [{metric: acc}]\n",
        encoding="utf-8",
    )
    return file


@pytest.mark.slow
def test_a_task_of_ones_own_is_measured_for_the_run_and_its_base(
    copy_run: Copy, task: Path
) -> None:
    pytest.importorskip("lm_eval")
    found = copy_run(f"evaluation.lm_eval=[{task}]", "evaluation.max_new_tokens=2").evaluate()
    scores = found["lm_eval"][str(task)]["acc"]
    assert {scores["base"], scores["run"]} <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert scores["stderr"] >= 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "no file"),
        ("output_type: multiple_choice\n", "names no task"),
        ("task: a\ndoc_to_text: !function utils.run\n", "runs code of its own"),
    ],
)
def test_a_task_that_cannot_be_read_is_told_before_a_model_is_loaded(
    copy_run: Copy, tmp_path: Path, text: str | None, found: str
) -> None:
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    error = refused(ConfigError, lambda: copy_run(f"evaluation.lm_eval=[{file}]").evaluate())
    assert set(places(error)) == {"evaluation.lm_eval"}
    assert found in error.problems[-1].found
