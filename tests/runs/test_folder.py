"""Which run folder a run writes to, and where it begins."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from sftpipe.config.hydra import compose
from sftpipe.config.schema import TrainConfig, to_plain
from sftpipe.errors import DataError, RunError
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.plan import RunPlan, newest_checkpoint, plan_run, run_key
from sftpipe.runs.write import open_run
from sftpipe.storage import is_whole, publish_folder

AUTO = "sft.resume_from_checkpoint=auto"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A data file of one's own."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"instruction": "a", "output": "b"}\n')
    return file


@functools.cache
def config(*overrides: str) -> TrainConfig:
    """Composed once; no test changes it."""
    return compose(overrides)


def begin(
    folder: Path, cfg: TrainConfig, *, steps: tuple[int, ...] = (), complete: bool = False
) -> Path:
    """A run folder as `open_run` and the trainer leave it."""
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(
        json.dumps({"run_key": run_key(cfg), "weights": "base==1"})
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(to_plain(cfg), sort_keys=False))
    for step in steps:
        with publish_folder(folder / f"checkpoint-{step}") as partial:
            (partial / "trainer_state.json").write_text(json.dumps({"global_step": step}))
            (partial / "model.safetensors").write_bytes(bytes(step))
    if complete:
        RunFolder(folder).close()
    return folder


def damage(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"")
    assert not is_whole(checkpoint)


def refusal(cfg: TrainConfig) -> str:
    with pytest.raises(RunError) as caught:
        plan_run(cfg)
    return str(caught.value)


# --- a new run ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "parent"),
    [(["recipe=yoda"], "outputs/yoda"), ([], "outputs/custom"), (["output_dir=d/e"], "d/e/custom")],
)
def test_a_new_run_gets_a_new_folder_of_its_own(overrides: list[str], parent: str) -> None:
    plan = plan_run(config(*overrides))

    assert re.fullmatch(parent + r"/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[0-9a-f]{4}", str(plan.folder))
    assert (plan.attempt, plan.checkpoint, plan.complete, plan.records) == (
        1,
        None,
        False,
        plan.folder,
    )
    assert not Path("outputs").exists()  # a plan writes nothing


def test_two_starts_in_one_second_differ() -> None:
    cfg = config()

    assert len({plan_run(cfg).folder for _ in range(5)}) == 5


@pytest.mark.parametrize("exists", [False, True])
def test_run_names_the_folder(exists: bool) -> None:
    if exists:
        Path("mine").mkdir()

    assert plan_run(config("run=mine")) == RunPlan(Path("mine"))


def test_a_finished_run_is_never_overwritten() -> None:
    cfg = config("run=mine")
    begin(Path("mine"), cfg, complete=True)

    assert (
        refusal(cfg) == "run=mine: a finished run, which is never overwritten\n"
        "    leave run out, or name a new folder"
    )


def test_an_unfinished_run_is_not_overwritten_without_resume() -> None:
    cfg = config("run=mine")
    begin(Path("mine"), cfg, steps=(2,))

    assert (
        refusal(cfg)
        == f"run=mine: an unfinished run\n    {AUTO} goes on with it; or name a new folder"
    )


@pytest.mark.parametrize("overrides", [[], [AUTO]])
def test_a_folder_of_something_else_is_left_alone(overrides: list[str]) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("years of work")

    assert (
        refusal(config("run=mine", *overrides))
        == "run=mine: it holds something that is no run\n    name a new folder"
    )


def test_a_file_in_place_of_the_folder_is_left_alone() -> None:
    Path("mine").write_text("a file")

    assert "run=mine: it holds something that is no run" in refusal(config("run=mine"))


@pytest.mark.parametrize("overrides", [[], [AUTO]])
def test_a_run_that_failed_before_it_began_may_be_started_again(overrides: list[str]) -> None:
    Path("mine/.hydra").mkdir(parents=True)
    Path("mine/.hydra/config.yaml").write_text("seed: 42\n")

    assert plan_run(config("run=mine", *overrides)) == RunPlan(Path("mine"))


# --- resume=auto ----------------------------------------------------------------------------------


def test_auto_goes_on_with_the_newest_unfinished_run_of_the_same_config() -> None:
    cfg = config("recipe=yoda", AUTO)
    runs = Path("outputs/yoda")
    begin(runs / "2025-01-01_00-00-00_aaaa", cfg, steps=(2,))
    begin(runs / "2025-01-02_00-00-00_bbbb", cfg, steps=(4, 10))
    begin(runs / "2025-01-03_00-00-00_cccc", cfg, steps=(6,), complete=True)
    begin(runs / "2025-01-04_00-00-00_dddd", config("recipe=yoda", "seed=7"), steps=(8,))
    (runs / "2025-01-05_00-00-00_eeee").mkdir()

    plan = plan_run(cfg)

    assert plan == RunPlan(
        runs / "2025-01-02_00-00-00_bbbb",
        attempt=2,
        checkpoint=runs / "2025-01-02_00-00-00_bbbb" / "checkpoint-10",
    )
    assert plan.records == plan.folder / "attempts" / "2"


@pytest.mark.parametrize(
    "other",
    [["recipe=yoda_full"], ["recipe=yoda", "output_dir=elsewhere"], ["recipe=yoda", "lora.r=8"]],
)
def test_auto_makes_a_new_run_where_there_is_none_to_go_on_with(other: list[str]) -> None:
    cfg = config(*other)
    begin(Path(cfg.output_dir) / str(cfg.recipe) / "2025-01-01_00-00-00_aaaa", cfg, steps=(2,))

    plan = plan_run(config("recipe=yoda", AUTO))

    assert not plan.folder.exists()
    assert (plan.attempt, plan.checkpoint) == (1, None)


def test_auto_passes_over_a_damaged_checkpoint() -> None:
    cfg = config(AUTO, "run=mine")
    begin(Path("mine"), cfg, steps=(2, 4))
    damage(Path("mine/checkpoint-4"))

    assert plan_run(cfg).checkpoint == Path("mine/checkpoint-2")


def test_auto_without_a_whole_checkpoint_begins_at_the_first_step_of_the_same_folder() -> None:
    cfg = config(AUTO, "run=mine")
    begin(Path("mine"), cfg, steps=(2,))
    damage(Path("mine/checkpoint-2"))

    assert plan_run(cfg) == RunPlan(Path("mine"), attempt=2, checkpoint=None)


def test_auto_in_a_named_folder_goes_on_there() -> None:
    cfg = config(AUTO, "run=mine")
    begin(Path("mine"), cfg, steps=(2,))

    assert plan_run(cfg) == RunPlan(Path("mine"), attempt=2, checkpoint=Path("mine/checkpoint-2"))


def test_auto_in_a_named_folder_makes_it() -> None:
    assert plan_run(config(AUTO, "run=mine")) == RunPlan(Path("mine"))


def test_auto_on_a_complete_run_has_nothing_to_do() -> None:
    cfg = config(AUTO, "run=mine")
    begin(Path("mine"), cfg, steps=(2,), complete=True)

    assert plan_run(cfg) == RunPlan(Path("mine"), complete=True)


def test_auto_in_a_named_folder_of_another_config_names_what_changed() -> None:
    begin(Path("mine"), config("run=mine"), steps=(2,))

    assert refusal(config(AUTO, "run=mine", "seed=7")).startswith(
        "run: mine is a run of another config: seed was 42 and is 7\n    give it the same config"
    )


def test_each_start_is_counted() -> None:
    cfg = config(AUTO, "run=mine")
    begin(Path("mine"), cfg)

    assert plan_run(cfg).attempt == 2
    for number in (2, 10):
        Path(f"mine/attempts/{number}").mkdir(parents=True)
    Path("mine/attempts/notes").mkdir()
    assert plan_run(cfg).attempt == 11


def test_a_later_attempt_on_other_base_weights_is_refused() -> None:
    cfg = config("run=mine")
    begin(Path("mine"), cfg)
    unused: Any = None

    with pytest.raises(RunError) as caught:
        open_run(RunPlan(Path("mine"), attempt=2), cfg, "base==2", "CPU", unused)

    assert str(caught.value).startswith(
        "mine: it began with the weights base==1, and these are base==2"
    )
    assert not Path("mine/attempts").exists()


# --- resume=PATH ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "overrides", "checkpoint"),
    [
        ("mine", [], "checkpoint-10"),
        ("mine/checkpoint-2", [], "checkpoint-2"),
        ("mine", ["run=mine"], "checkpoint-10"),
    ],
)
def test_a_path_goes_on_from_that_run_or_checkpoint(
    path: str, overrides: list[str], checkpoint: str
) -> None:
    begin(Path("mine"), config(), steps=(2, 10))

    plan = plan_run(config(f"sft.resume_from_checkpoint={path}", *overrides))

    assert plan == RunPlan(Path("mine"), attempt=2, checkpoint=Path("mine") / checkpoint)


def test_a_path_to_a_run_takes_its_newest_whole_checkpoint() -> None:
    begin(Path("mine"), config(), steps=(2, 10))
    damage(Path("mine/checkpoint-10"))

    assert plan_run(config("sft.resume_from_checkpoint=mine")).checkpoint == Path(
        "mine/checkpoint-2"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["sft.resume_from_checkpoint=nowhere"],
            "no folder nowhere\n    allowed: auto, a run folder, or a checkpoint-N in one",
        ),
        (["sft.resume_from_checkpoint=mine/checkpoint-3"], "no folder mine/checkpoint-3"),
        (
            ["sft.resume_from_checkpoint=mine/checkpoint-10"],
            "mine/checkpoint-10 is damaged: its files are not those that were hashed",
        ),
        (
            ["sft.resume_from_checkpoint=mine/checkpoint-10"],
            "sft.resume_from_checkpoint=mine takes the newest whole one",
        ),
        (
            ["sft.resume_from_checkpoint=mine", "run=other"],
            "mine is not in run=other\n    leave run out",
        ),
        (
            ["sft.resume_from_checkpoint=mine", "seed=7"],
            "mine is a run of another config: seed was 42 and is 7",
        ),
    ],
)
def test_a_path_that_cannot_be_gone_on_from_is_refused(overrides: list[str], message: str) -> None:
    begin(Path("mine"), config(), steps=(2, 10))
    damage(Path("mine/checkpoint-10"))

    text = refusal(config(*overrides))

    assert text.startswith("sft.resume_from_checkpoint: ")
    assert message in text


def test_a_path_to_a_run_without_a_whole_checkpoint_is_refused() -> None:
    begin(Path("mine"), config())

    message = (
        "sft.resume_from_checkpoint: mine holds no whole checkpoint\n"
        "    sft.resume_from_checkpoint=auto begins such a run at its first step"
    )
    assert refusal(config("sft.resume_from_checkpoint=mine")) == message


def test_a_path_to_a_finished_run_is_refused() -> None:
    begin(Path("mine"), config(), steps=(2,), complete=True)

    for path in ("mine", "mine/checkpoint-2"):
        assert "sft.resume_from_checkpoint: mine is finished" in refusal(
            config(f"sft.resume_from_checkpoint={path}")
        )


@pytest.mark.parametrize("manifest", [None, "{", "[1]"])
def test_a_path_to_a_folder_that_is_no_run_is_refused(manifest: str | None) -> None:
    Path("mine").mkdir()
    if manifest:
        Path("mine/manifest.json").write_text(manifest)

    assert "mine: no readable manifest.json: not a run of sftpipe" in refusal(
        config("sft.resume_from_checkpoint=mine")
    )


def test_what_changed_is_listed_in_full() -> None:
    begin(Path("mine"), config("recipe=yoda"), steps=(2,))

    text = refusal(
        config(
            "recipe=yoda",
            "sft.resume_from_checkpoint=mine",
            "lora.r=8",
            "+sft.neftune_noise_alpha=5",
            "loss=full",
        )
    )

    assert "lora.r was 16 and is 8" in text
    assert "sft.neftune_noise_alpha was None and is 5" in text
    assert "loss.type was 'completion_only' and is 'full'" in text
    assert "output_dir" not in text


def test_changed_data_are_named(rows: Path) -> None:
    overrides = ["dataset=json", f"dataset.data_files={rows}"]
    begin(Path("mine"), config(*overrides), steps=(2,))
    rows.write_text('{"instruction": "a", "output": "c"}\n')

    assert "mine is a run of another config: the data files changed" in refusal(
        config(*overrides, "sft.resume_from_checkpoint=mine")
    )


def test_a_number_written_otherwise_is_the_same_config() -> None:
    begin(Path("mine"), config("sft.num_train_epochs=1.0"), steps=(2,))

    assert (
        plan_run(config("sft.num_train_epochs=1", "sft.resume_from_checkpoint=mine")).attempt == 2
    )


def test_a_run_that_was_killed_before_its_config_was_written_is_refused() -> None:
    begin(Path("mine"), config(), steps=(2,))
    Path("mine/config.yaml").unlink()

    assert "config.yaml" in refusal(config("sft.resume_from_checkpoint=mine", "seed=7"))


# --- checkpoints ----------------------------------------------------------------------------------


def test_the_newest_checkpoint_is_that_with_the_highest_number(tmp_path: Path) -> None:
    run = begin(tmp_path / "mine", config(), steps=(2, 10, 9))
    (run / "checkpoint-99").mkdir()
    (run / "checkpoint-last").mkdir()
    shutil.copytree(run / "checkpoint-10", run / ".checkpoint-12.partial")

    assert newest_checkpoint(run) == run / "checkpoint-10"


def test_a_folder_without_checkpoints_has_no_newest(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None


def test_closing_a_run_marks_it(tmp_path: Path) -> None:
    RunFolder(tmp_path).close()

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\n", (tmp_path / "COMPLETE").read_text())


# --- the run key ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "output_dir=elsewhere",
        "run=mine",
        AUTO,
        "sft.resume_from_checkpoint=mine",
        "dataset.num_proc=2",
        "tracking=wandb",
    ],
)
def test_the_run_key_ignores_paths_tracking_and_processes(override: str) -> None:
    assert run_key(config("recipe=yoda", override)) == run_key(config("recipe=yoda"))


@pytest.mark.parametrize(
    "override",
    [
        "lora.r=8",
        "seed=7",
        "sft.learning_rate=1e-4",
        "dataset.limit=5",
        "format.system=Hi",
        "loss=full",
    ],
)
def test_the_run_key_changes_with_what_decides_the_numbers(override: str) -> None:
    assert run_key(config("recipe=yoda", override)) != run_key(config("recipe=yoda"))


def test_the_run_key_follows_the_bytes_of_the_data_and_not_their_path(
    rows: Path, tmp_path: Path
) -> None:
    def key(file: Path) -> str:
        return run_key(config("dataset=json", f"dataset.data_files={file}"))

    copy = tmp_path / "copy.jsonl"
    shutil.copy(rows, copy)
    before = key(rows)
    assert key(copy) == before

    copy.write_text(copy.read_text() + '{"instruction": "c", "output": "d"}\n')
    assert key(copy) != before


def test_a_missing_data_file_names_its_key_and_the_nearest_file(rows: Path) -> None:
    with pytest.raises(DataError) as caught:
        run_key(config("dataset=json", "dataset.data_files=row.jsonl"))

    assert str(caught.value).startswith("dataset.data_files: no file row.jsonl (looked in ")
    assert str(caught.value).endswith("dataset.data_files=rows.jsonl")
