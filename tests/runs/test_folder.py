"""Which run folder a run writes to, and where it begins."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from sftpipe.config.recorded import complete
from sftpipe.config.schema import TrainConfig, to_plain
from sftpipe.config.upstream import MOVED, OURS, UPSTREAM, upstream_fields
from sftpipe.data.source import fingerprint
from sftpipe.errors import DataError, RunError
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.plan import RunPlan, plan_run
from sftpipe.runs.resumable import newest_checkpoint
from sftpipe.runs.same_run import FREE_WITHOUT_BEST, Difference, differences, key_differences
from sftpipe.storage import is_whole, publish_folder
from support.configs import compose
from support.errors import Pin, named, places, refused, told

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
    sha256 = fingerprint(cfg.dataset, cfg.allowed_targets)
    manifest = {"weights": "base==1", "data": {"sha256": sha256}, "created": "2026-01-02T03:04:05"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    RunFolder(folder).write_metrics({"validation": {}})
    RunFolder(folder).write_samples([])
    (folder / "config.yaml").write_text(yaml.safe_dump(to_plain(cfg), sort_keys=False))
    for step in steps:
        with publish_folder(folder / f"checkpoint-{step}") as partial:
            (partial / "trainer_state.json").write_text(json.dumps({"global_step": step}))
            (partial / "model.safetensors").write_bytes(bytes(step))
            (partial / "optimizer.pt").write_bytes(b"moments")
    if complete:
        RunFolder(folder).close()
    return folder


def damage(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"")
    assert not is_whole(checkpoint)


def refusal(cfg: TrainConfig) -> RunError:
    return refused(RunError, lambda: plan_run(cfg))


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


def test_a_finished_run_is_never_overwritten(golden_error: Pin) -> None:
    cfg = config("run=mine")
    begin(Path("mine"), cfg, complete=True)

    error = refusal(cfg)
    assert told(error) == {"run=mine": ()}
    golden_error(error)


def test_an_unfinished_run_is_not_overwritten_without_resume(golden_error: Pin) -> None:
    cfg = config("run=mine")
    begin(Path("mine"), cfg, steps=(2,))

    error = refusal(cfg)
    assert told(error) == {"run=mine": (AUTO,)}
    golden_error(error)


@pytest.mark.parametrize("overrides", [[], [AUTO]])
def test_a_folder_of_something_else_is_left_alone(overrides: list[str], golden_error: Pin) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("years of work")

    error = refusal(config("run=mine", *overrides))
    assert told(error) == {"run=mine": ()}
    if overrides:
        golden_error(error)


def test_a_file_in_place_of_the_folder_is_left_alone() -> None:
    Path("mine").write_text("a file")

    assert told(refusal(config("run=mine"))) == {"run=mine": ()}


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


def test_auto_in_a_named_folder_of_another_config_names_what_changed(golden_error: Pin) -> None:
    begin(Path("mine"), config("run=mine"), steps=(2,))

    error = refusal(config(AUTO, "run=mine", "seed=7"))
    assert places(error) == ["run"]
    assert error.problems[0].found.endswith(": seed was 42 and is 7")
    golden_error(error)


def test_each_start_is_counted() -> None:
    cfg = config(AUTO, "run=mine")
    begin(Path("mine"), cfg)

    assert plan_run(cfg).attempt == 2
    for number in (2, 10):
        Path(f"mine/attempts/{number}").mkdir(parents=True)
    Path("mine/attempts/notes").mkdir()
    assert plan_run(cfg).attempt == 11


def test_auto_says_what_it_found_and_does() -> None:
    cfg = config("recipe=yoda", AUTO)
    runs = Path("outputs/yoda")
    assert (
        plan_run(cfg).said == "no unfinished run of this config in outputs/yoda; a new one begins"
    )
    begin(runs / "1", config("recipe=yoda", "lora.r=8"), steps=(2,))
    assert plan_run(cfg).said.splitlines()[1:] == [
        "unfinished, and of another config: outputs/yoda/1: lora.r was 8 and is 16",
        "to go on with that one: sftpipe train run=outputs/yoda/1 sft.resume_from_checkpoint=auto",
    ]
    begin(runs / "2", cfg, steps=(2,), complete=True)
    assert plan_run(cfg).said.startswith("every run of this config in outputs/yoda is complete; a")
    begin(runs / "3", cfg)
    assert plan_run(cfg).said == (
        "outputs/yoda/3 goes on from its first step: it has no whole checkpoint"
    )
    begin(runs / "4", cfg, steps=(2, 6))
    assert plan_run(cfg).said == "outputs/yoda/4 goes on from step 6"
    (runs / "4" / "config.yaml").write_text("a: [")
    assert plan_run(cfg).said.startswith("passed over: outputs/yoda/4/config.yaml: damaged\nout")


def test_auto_in_a_named_folder_says_what_it_does() -> None:
    cfg = config("run=mine", AUTO)
    assert plan_run(cfg).said == "mine holds no run; a new one begins there"
    begin(Path("mine"), cfg, steps=(2,), complete=True)
    assert plan_run(cfg).said == "mine is complete; there is nothing to do"


def test_a_sweep_in_place_of_a_run_is_told_with_its_jobs(golden_error: Pin) -> None:
    begin(Path("sweep/0"), config(), steps=(2,), complete=True)
    begin(Path("sweep/1"), config(), steps=(2,))

    error = refusal(config("run=sweep", AUTO))
    assert told(error) == {"run=sweep": ("run=sweep/1",)}
    golden_error(error)


def test_more_epochs_are_another_run_and_the_way_to_them_is_named() -> None:
    begin(Path("mine"), config("recipe=yoda"), steps=(2,), complete=True)
    begin(Path("full"), config("recipe=yoda", "lora=none", "quantization=none"), steps=(2,))

    longer = config("recipe=yoda", "sft.num_train_epochs=9", f"{RESUME}=mine")
    assert "sft.num_train_epochs was 1.0 and is 9" in refusal(longer).problems[0].found
    words = ("lora=none", "quantization=none", "sft.max_steps=900", f"{RESUME}=full")
    error = refusal(config("recipe=yoda", *words))
    assert "model.name_or_path=full" in error.problems[0].commands


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


RESUME = "sft.resume_from_checkpoint"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    named(
        [
            ["no folder", [f"{RESUME}=nowhere"], "no folder nowhere"],
            ["no checkpoint", [f"{RESUME}=mine/checkpoint-3"], "no folder mine/checkpoint-3"],
            ["damaged", [f"{RESUME}=mine/checkpoint-10"], "mine/checkpoint-10 is damaged"],
            ["another folder", [f"{RESUME}=mine", "run=other"], "mine is not in run=other"],
            ["another config", [f"{RESUME}=mine", "seed=7"], "seed was 42 and is 7"],
        ]
    ),
)
def test_a_path_that_cannot_be_gone_on_from_is_refused(
    overrides: list[str], reason: str, golden_error: Pin
) -> None:
    begin(Path("mine"), config(), steps=(2, 10))
    damage(Path("mine/checkpoint-10"))

    error = refusal(config(*overrides))

    assert places(error) == [RESUME]
    assert reason in error.problems[0].found
    golden_error(error)


def test_a_path_to_a_run_without_a_whole_checkpoint_is_refused(golden_error: Pin) -> None:
    begin(Path("mine"), config())

    error = refusal(config("sft.resume_from_checkpoint=mine"))
    assert told(error) == {"sft.resume_from_checkpoint": (f"run=mine {AUTO}",)}
    golden_error(error)


@pytest.mark.parametrize("name", ["metrics.json", "samples.jsonl", "config.yaml", "manifest.json"])
@pytest.mark.parametrize("content", [None, "", "{", "[3]", "\0"])
def test_a_damaged_file_is_named_before_training(
    name: str, content: str | None, golden_error: Pin
) -> None:
    begin(Path("mine"), config(), steps=(2,))
    file = Path("mine", name)
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    if (name, content) == ("samples.jsonl", ""):  # no rows: a run without sample answers
        return
    error = refusal(config(f"{RESUME}=mine"))
    assert name in str(error)
    if content == "{":
        golden_error(error)


def test_weights_alone_are_not_gone_on_from(golden_error: Pin) -> None:
    """Optimizer and schedule would begin anew, without a word."""
    cfg = config(f"{RESUME}=mine", "+sft.save_only_model=true")
    begin(Path("mine"), cfg)
    with publish_folder(Path("mine/checkpoint-2")) as partial:
        (partial / "model.safetensors").write_bytes(b"weights")

    error = refusal(cfg)
    assert places(error) == ["mine/checkpoint-2"]
    golden_error(error)


def test_a_best_checkpoint_that_is_gone_is_told_before_training(golden_error: Pin) -> None:
    best = ("+sft.load_best_model_at_end=true", "sft.eval_strategy=steps", "+sft.eval_steps=20")
    cfg = config(f"{RESUME}=mine", *best)
    begin(Path("mine"), cfg, steps=(2,))
    with publish_folder(Path("mine/checkpoint-6")) as partial:
        state = {"global_step": 6, "best_global_step": 2}
        (partial / "trainer_state.json").write_text(json.dumps(state))
        (partial / "optimizer.pt").write_bytes(b"moments")
    assert plan_run(cfg).checkpoint == Path("mine/checkpoint-6")
    shutil.rmtree("mine/checkpoint-2")

    error = refusal(cfg)
    assert places(error) == ["mine/checkpoint-6"]
    golden_error(error)


def test_a_path_to_a_finished_run_is_refused(golden_error: Pin) -> None:
    begin(Path("mine"), config(), steps=(2,), complete=True)

    for path in ("mine", "mine/checkpoint-2"):
        error = refusal(config(f"sft.resume_from_checkpoint={path}"))
        assert places(error) == ["sft.resume_from_checkpoint"]
    golden_error(error)


@pytest.mark.parametrize("manifest", [None, "{", "[1]"])
def test_a_path_to_a_folder_that_is_no_run_is_refused(
    manifest: str | None, golden_error: Pin
) -> None:
    Path("mine").mkdir()
    if manifest:
        Path("mine/manifest.json").write_text(manifest)

    error = refusal(config("sft.resume_from_checkpoint=mine"))
    assert "mine: no readable manifest.json" in str(error)
    if manifest is None:
        golden_error(error)


def test_what_changed_is_listed_in_full() -> None:
    begin(Path("mine"), config("recipe=yoda"), steps=(2,))

    error = refusal(
        config(
            "recipe=yoda",
            "sft.resume_from_checkpoint=mine",
            "lora.r=8",
            "+sft.neftune_noise_alpha=5",
            "loss=full",
        )
    )

    text = error.problems[0].found
    assert "lora.r was 16 and is 8" in text
    assert "sft.neftune_noise_alpha was None and is 5" in text
    assert "loss.type was 'completion_only' and is 'full'" in text
    assert "output_dir" not in text


def test_changed_data_are_named(rows: Path) -> None:
    overrides = ["dataset=json", f"dataset.data_files={rows}"]
    begin(Path("mine"), config(*overrides), steps=(2,))
    rows.write_text('{"instruction": "a", "output": "c"}\n')

    error = refusal(config(*overrides, "sft.resume_from_checkpoint=mine"))
    assert error.problems[0].found.endswith(": the data files changed")


def test_a_number_written_otherwise_is_the_same_config() -> None:
    begin(Path("mine"), config("sft.num_train_epochs=1.0"), steps=(2,))

    assert (
        plan_run(config("sft.num_train_epochs=1", "sft.resume_from_checkpoint=mine")).attempt == 2
    )


def test_a_run_that_was_killed_before_its_config_was_written_is_refused() -> None:
    begin(Path("mine"), config(), steps=(2,))
    Path("mine/config.yaml").unlink()

    assert "config.yaml" in str(refusal(config("sft.resume_from_checkpoint=mine", "seed=7")))


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


# --- what makes two runs the same -----------------------------------------------------------------


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
def test_paths_tracking_and_processes_make_no_other_run(override: str) -> None:
    begin(Path("mine"), config("recipe=yoda"))
    assert differences(RunFolder(Path("mine")), config("recipe=yoda", override)) == []


def test_a_config_of_a_version_without_some_keys_is_completed_with_todays_defaults() -> None:
    before, now = to_plain(config("recipe=yoda")), to_plain(config("recipe=yoda"))
    for group in ("dataset", "format", "evaluation", "preflight", "model", "tokenizer", "loss"):
        for name in [name for name in before[group] if name not in ("path", "name_or_path")]:
            if complete({**before, group: {}})[group].get(name) == before[group][name]:
                del before[group][name]
    del before["allowed_targets"], before["over_length"]
    before["sft"] |= {"warmup_ratio": None, "adam_beta1": 0.9}  # what upstream's defaults say
    assert len(before["dataset"]) < 8

    assert key_differences(before, now) == []


@pytest.mark.parametrize(
    ("before", "typed"),
    [
        (1, "sft.seed=1"),
        (1.0, "sft.seed=1.0"),
        (0, "sft.seed=0"),
        (True, "sft.seed=true"),
        (None, "sft.seed=null"),
    ],
)
def test_the_value_of_then_is_typed_as_what_it_is(before: Any, typed: str) -> None:
    assert Difference("sft.seed", before).typed == f"`{typed}`"


def test_a_key_that_this_version_does_not_know_is_a_difference() -> None:
    before = to_plain(config("recipe=yoda"))
    before["model"]["experts"] = 3
    (found,) = key_differences(before, to_plain(config("recipe=yoda")))
    assert str(found) == "model.experts was 3 and is None"


# --- every key decides, or is known not to --------------------------------------------------------

# where a run writes, what mirrors it, how fast it is, what is only reported or measured beside the
# training, when checkpoints are written; and data files, whose bytes decide
NOT_DECIDING = {
    "recipe",
    "output_dir",
    "run",
    "sft.resume_from_checkpoint",
    "distributed.num_machines",
    "distributed.machine_rank",
    "distributed.rendezvous",
    "distributed.rendezvous_timeout",
    "dataset.data_files",
    "dataset.num_proc",
    "preflight.max_empty_rows",
    "preflight.max_over_length_rows",
    "preflight.duplicates",
    "preflight.unread",
    "preflight.default_system",
    "preflight.show_rows",
    "sft.save_only_model",
    "sft.save_total_limit",
    "sft.save_steps",
    "sft.save_strategy",
    "sft.logging_steps",
    "sft.logging_strategy",
    "sft.logging_first_step",
    "sft.log_level",
    "sft.dataloader_num_workers",
    "sft.dataloader_prefetch_factor",
    "sft.dataloader_pin_memory",
    "evaluation.sample_prompts",
    "evaluation.max_new_tokens",
    "evaluation.batch_size",
    "evaluation.verdict",
    "evaluation.metrics",
    "evaluation.lm_eval",
    "evaluation.data_files",
    "evaluation.base",
    "tracking.type",
    "tracking.project",
    "tracking.entity",
    "tracking.mode",
    "tracking.tags",
    "tracking.group",
}


def other(value: Any, hint: Any, choices: tuple[str, ...] = ()) -> Any:
    """A value of a field's type that is not its present one."""
    kinds = [kind for kind in (hint, *get_args(hint)) if kind is not type(None)]
    if choices:
        return next(one for one in choices if one != value)
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"{value}x"
        case list():
            return [*value, "x"]
        case dict():
            return {**value, "x": "x"}
    return 3 if {int, float} & set(kinds) else ["x"] if list[str] in kinds else "x"


def changed(block: Any, prefix: str = "") -> dict[str, tuple[Any, Any, Any]]:
    """{key: (its dataclass, the name of its field, another value)} of all that a block holds."""
    found: dict[str, tuple[Any, Any, Any]] = {}
    for field in dataclasses.fields(block):
        value, key = getattr(block, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            found |= changed(value, f"{key}.")
        elif key in UPSTREAM:
            free = set(upstream_fields(UPSTREAM[key])) - {*MOVED.get(key, ()), *OURS.get(key, ())}
            for name in sorted(free):
                now = other(value.get(name), str)
                found[f"{key}.{name}"] = (block, field.name, {**value, name: now})
        else:
            hint = get_type_hints(type(block))[field.name]
            now = other(value, hint, field.metadata.get("choices", ()))
            found[key] = (block, field.name, now)
    return found


def whole_config() -> TrainConfig:
    """A config of one's own in which every group is on."""
    overrides = ["recipe=yoda", "tracking=wandb", "packing=bfd", "distributed=ddp", "run=mine"]
    return copy.deepcopy(config(*overrides))


def test_every_key_of_the_config_decides_which_run_it_is_except_those_known_not_to() -> None:
    cfg = whole_config()
    before = copy.deepcopy(to_plain(cfg))
    same = set()
    for key, (block, name, now) in changed(cfg).items():
        kept = getattr(block, name)
        setattr(block, name, now)
        found = key_differences(before, to_plain(cfg))
        same |= set() if found else {key}
        setattr(block, name, kept)

    assert same == NOT_DECIDING
    assert key_differences(before, to_plain(cfg)) == []
    for group in ("packing", "evaluation", "tracking"):
        off = dataclasses.replace(cfg, **{group: None})
        assert (key_differences(before, to_plain(off)) == []) == (group == "tracking")


def test_how_often_is_logged_decides_where_it_says_how_often_is_evaluated() -> None:
    """transformers evaluates after so many steps where sft.eval_steps is not set."""
    before = to_plain(config("recipe=yoda", "sft.eval_strategy=steps"))
    now = copy.deepcopy(before)
    now["sft"]["logging_steps"] = 3
    assert [one.key for one in key_differences(before, now)] == ["sft.logging_steps"]
    for one in (before, now):
        one["sft"]["eval_steps"] = 7
    assert key_differences(before, now) == []


@pytest.mark.parametrize(
    "best",
    [
        ["+sft.load_best_model_at_end=true", "sft.eval_strategy=steps", "+sft.eval_steps=20"],
        ["sft.save_strategy=best", "sft.eval_strategy=steps", "+sft.eval_steps=20"],
    ],
)
def test_when_checkpoints_are_written_decides_where_the_best_of_them_is_kept(
    best: list[str],
) -> None:
    before = to_plain(config("recipe=yoda", *best))
    for key in FREE_WITHOUT_BEST:
        now = copy.deepcopy(before)
        now["sft"][key.partition(".")[2]] = "another"
        assert [one.key for one in key_differences(before, now)] == [key]


def test_a_refusal_lists_every_key_that_changed_with_both_values() -> None:
    cfg = whole_config()
    begin(Path("mine"), cfg, steps=(2,))
    now, expected = whole_config(), []
    now.sft["resume_from_checkpoint"] = "auto"
    # of what is read before the configs are compared, the bytes decide
    unread = {"dataset.path", "dataset.name", "dataset.data_files", "run", "output_dir"}
    for key, (block, name, value) in changed(now).items():
        if key.partition(".")[0] not in UPSTREAM and key not in unread:
            was = getattr(block, name)
            setattr(block, name, value)
            if key not in NOT_DECIDING:
                expected += lines_of(key, was, value)
    now.lora["r"] = 99
    expected.append("lora.r was 16 and is 99")

    error = refusal(now)

    assert places(error) == ["run"]
    listed = error.problems[0].found.partition(": ")[2]
    assert sorted(listed.split("; ")) == sorted(expected)


def lines_of(key: str, was: Any, now: Any) -> list[str]:
    """How a change is told; of a mapping, that of each of its keys."""
    if isinstance(was, dict):
        return [f"{key}.x was None and is {now['x']!r}"]
    return [f"{key} was {was!r} and is {now!r}"]


def test_the_bytes_of_the_data_decide_and_not_their_path(rows: Path, tmp_path: Path) -> None:
    def on(file: Path) -> TrainConfig:
        return config("dataset=json", f"dataset.data_files={file}")

    copied = tmp_path / "copy.jsonl"
    shutil.copy(rows, copied)
    run = RunFolder(begin(Path("mine"), on(rows)))
    assert differences(run, on(copied)) == []

    copied.write_text(copied.read_text() + '{"instruction": "c", "output": "d"}\n')
    assert differences(run, on(copied)) == [Difference("the data")]


def test_a_missing_data_file_names_its_key_and_the_nearest_file(rows: Path) -> None:
    cfg = config("dataset=json", "dataset.data_files=row.jsonl")
    begin(Path("mine"), config("dataset=json", f"dataset.data_files={rows}"))
    error = refused(DataError, lambda: differences(RunFolder(Path("mine")), cfg))
    assert told(error) == {"dataset.data_files": ("dataset.data_files=rows.jsonl",)}
