"""sweep.html: the ranked table of a sweep, for people."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from runs.report.test_page import HOSTILE, Reader
from sftpipe.cli import main
from sftpipe.runs.report.draw import history, scatter
from sftpipe.runs.report.page import MOST_BYTES
from sftpipe.sweeps.folder import DONE, FAILED, JobRecord, SweepFolder, SweepRecord
from sftpipe.sweeps.page import write_page
from sftpipe.sweeps.table import read_table
from support.run_folders import METRICS, write_run

LOSSES = {4: 1.5, 8: 1.25, 64: 2.0}  # {rank: validation loss}


def write_sweep(folder: Path, *, trials: bool = False, error: str = "no room") -> SweepFolder:
    """A sweep of three ranks, and a fourth that failed."""
    sweep = SweepFolder(folder)
    sweep.write(SweepRecord(("recipe=yoda", "lora.r=4,8,64,0"), "validation.loss", "minimize"))
    for trial, (rank, loss) in enumerate(LOSSES.items()):
        name = f"r-{rank}"
        validation = {"before": {"loss": 3.0}, "after": {"loss": loss}}
        contents: dict[str, Any] = {"metrics": METRICS | {"validation": validation}, "log": []}
        write_run(folder / name, f"lora.r={rank}", evaluation=None, **contents)
        (folder / name / "report.html").write_text("a page")
        words = ("recipe=yoda", f"lora.r={rank}")
        number = trial if trials else None
        sweep.write_job(JobRecord(name, words, {"lora.r": str(rank)}, DONE, trial=number))
    words = ("recipe=yoda", "lora.r=0")
    sweep.write_job(JobRecord("r-0", words, {"lora.r": "0"}, FAILED, error, 2.0))
    return sweep


def read(sweep: SweepFolder) -> Reader:
    return Reader(sweep.page.read_text(encoding="utf-8"))


def test_the_page_ranks_the_jobs_and_says_which_is_the_best(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    assert write_page(sweep, read_table(sweep)) == sweep.page
    page = read(sweep)
    text = " ".join(" ".join(page.texts).split())
    assert "4 jobs: 3 done, 1 failed; r-8 has the lowest validation.loss, 1.25." in text
    jobs = page.section("jobs")
    assert "1 8 1.2500 4 min 12 s 1.5 done r-8" in jobs
    assert "2 4 1.5000 4 min 12 s 1.5 done r-4" in jobs
    assert "- 0 - 2.0 s - failed no room r-0" in jobs
    assert "sftpipe train recipe=yoda lora.r=8" in page.section("commands")
    assert f"sftpipe train -m --continue {sweep.path}" in page.section("commands")
    source = sweep.page.read_text()
    assert '<a href="r-8/report.html">r-8</a>' in source
    assert 'href="r-0' not in source


def test_each_parameter_has_a_picture(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    write_page(sweep, read_table(sweep))
    page = read(sweep)
    text = page.section("parameters")
    assert text.startswith("validation.loss against each parameter lora.r")
    assert sweep.page.read_text().count("<svg") == 1
    assert "search" not in page.sections


def test_a_search_has_its_history_and_what_its_metric_depends_on(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sweep = write_sweep(tmp_path / "sweep", trials=True)
    backend = optuna.storages.journal.JournalFileBackend(str(sweep.journal))
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.create_study(study_name="sftpipe", storage=storage)
    for at in range(12):
        trial = study.ask()
        rank = trial.suggest_int("lora.r", 1, 64)
        trial.suggest_float("sft.learning_rate", 0, 1)
        study.tell(trial, rank + at / 1000)
    write_page(sweep, read_table(sweep))
    text = read(sweep).section("search")
    assert "Each trial, and the best so far" in text
    shares = [int(share) for share in re.findall(r"(\d+)%", text)]
    assert text.index("lora.r") < text.index("sft.learning_rate")
    assert shares[0] > 70


def test_a_sweep_in_which_nothing_is_done_has_a_page(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path / "sweep")
    sweep.write(SweepRecord(("recipe=yoda", "seed=1,2"), "test.loss", "maximize"))
    sweep.write_job(JobRecord("seed-1", ("seed=1",), {"seed": "1"}))
    write_page(sweep, read_table(sweep))
    page = read(sweep)
    assert "1 job: 1 waiting; none of them has a test.loss yet." in " ".join(page.texts)
    assert "parameters" not in page.sections


def test_hostile_texts_are_text_and_many_jobs_make_a_small_page(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", error=HOSTILE + "x" * 100_000)
    for at in range(300):
        values = {"seed": str(at), "model.name_or_path": f"{HOSTILE}{at}"}
        sweep.write_job(JobRecord(f"job-{at}", (), values, FAILED, HOSTILE * 100))
    write_page(sweep, read_table(sweep))
    assert sweep.page.stat().st_size <= MOST_BYTES
    page = read(sweep)
    assert "img" not in page.tags
    assert HOSTILE[:60] in " ".join(page.texts)


# --- the verb -------------------------------------------------------------------------------------


def test_report_of_a_sweep_shows_and_writes_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    assert main(["report", f"run={sweep.path}"]) == 0
    said = capsys.readouterr().out
    assert "the best again:" in said
    assert said.splitlines()[-1] == str(sweep.page)
    assert sweep.csv.is_file()
    assert main(["report", f"run={sweep.path}", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [job["job"] for job in result["jobs"]] == ["r-8", "r-4", "r-64", "r-0"]
    assert result["page"] == str(sweep.page)
    assert main(["report", f"run={sweep.path}", "--watch"]) == 2
    assert "--watch: a sweep" in capsys.readouterr().err


# --- pictures -------------------------------------------------------------------------------------


def places(values: list[Any]) -> list[float]:
    """Where the points of these values are, from left to right."""
    pictures, _ = scatter([(value, 1.0) for value in values])
    found = re.findall(r'<use href="#\w+" x="([\d.]+)" y="', pictures["narrow"].svg)
    return sorted({float(x) for x in found})


def test_values_that_span_much_lie_on_a_logarithmic_axis() -> None:
    first, middle, last = places([1e-5, 1e-4, 1e-3])
    assert middle - first == pytest.approx(last - middle, abs=0.5)
    first, middle, last = places([1, 2, 5])
    assert middle - first == pytest.approx((last - first) / 4, abs=0.5)


def test_texts_stand_side_by_side_and_are_named_below() -> None:
    _, legend = scatter([("나", 1.0), (None, 2.0), ("a", 3.0), ("나", 1.5)])
    assert legend == "1 None, 2 a, 3 나"
    assert scatter([(1, 1.0), (2, 2.0)])[1] == ""


def test_the_best_so_far_is_a_line() -> None:
    pictures = history([(0, 2.0), (1, 3.0), (4, 1.0)], lowest=True)
    assert set(pictures) == {"wide", "narrow"}
    assert "var(--series-2)" in pictures["wide"].svg
