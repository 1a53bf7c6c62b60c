"""`sftpipe train --from DIR`: a recorded config again, to the same bits, and what differs."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import sftpipe
from sftpipe.cli import main
from sftpipe.config.options import conf_dir
from sftpipe.config.schema import TrainConfig
from sftpipe.data.prepare import PreparedData
from sftpipe.errors import Interrupted, SftpipeError
from sftpipe.model.precision import Precision
from sftpipe.model.weights import Weights, find_weights
from sftpipe.pipeline import prepare
from sftpipe.runs.again import plan_again
from sftpipe.runs.facts import compute_as_begun, facts_of, say_what_differs
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.plan import RunPlan
from sftpipe.runs.write import open_run
from sftpipe.training import trainer
from support.configs import compose
from support.errors import Pin, named, told
from support.kills import outcome
from support.models import CPU, HALF
from support.stopping import SignalWithin

THEN = datetime.date(2020, 2, 3)
AUTO = "sft.resume_from_checkpoint=auto"
SAME = "again     same config, data, tokenizer, weights, versions: the same bits are expected"
# after the turns of the conversation, the day: what is rendered on another one is another text
TEMPLATE = (conf_dir() / "chat_template" / "chatml.jinja").read_text()
DATED = "{{ '<|im_start|>system\\n' + strftime_now('%A %d %B') + '<|im_end|>\\n' }}" + TEMPLATE
CUDA = Precision("cuda", torch.bfloat16, torch.float32, "a GPU")


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    """As many as before, whatever a test has set."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def overrides(lively_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four steps with dropout; the texts hold the day."""
    template = tmp_path_factory.mktemp("template") / "dated.jinja"
    template.write_text(DATED)
    return [
        "recipe=yoda",
        "quantization=none",
        "model=custom",
        f"model.name_or_path={lively_base}",
        f"tokenizer.chat_template={template}",
        "preflight.default_system=allow",
        "dataset.limit=8",
        "lora.lora_dropout=0.1",
        "sft.per_device_train_batch_size=4",
        "sft.num_train_epochs=2",
        "sft.learning_rate=3e-2",
        "sft.logging_steps=1",
        "sft.save_steps=1",
        "evaluation.max_new_tokens=2",
    ]


@pytest.fixture(scope="module")
def first(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run, of a day long ago."""
    folder = tmp_path_factory.mktemp("first") / "first"
    with pytest.MonkeyPatch.context() as patch:
        long_ago(patch)
        sftpipe.train(compose([*overrides, f"run={folder}"]))
    return folder


@pytest.fixture(scope="module")
def stopped(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, which a signal has ended within its third step."""
    folder = tmp_path_factory.mktemp("stopped") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        long_ago(patch)
        stop_within(patch, 3)
        with pytest.raises(Interrupted):
            sftpipe.train(compose([*overrides, f"run={folder}"]))
    return folder


def long_ago(patch: pytest.MonkeyPatch) -> None:
    """Let today be `THEN` for a run that begins."""
    clock = SimpleNamespace(date=SimpleNamespace(today=lambda: THEN), datetime=datetime.datetime)
    patch.setattr("sftpipe.runs.plan.datetime", clock)


def stop_within(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let a signal come while a step is made."""
    build = trainer.build_trainer

    def stopping(*arguments: Any, **keywords: Any) -> Any:
        made = build(*arguments, **keywords)
        made.add_callback(SignalWithin(step))
        return made

    patch.setattr(trainer, "build_trainer", stopping)


def again_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("again ")]


# --- to the same bits -----------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["first", "stopped"])
def test_a_run_is_repeated_to_the_same_bits(
    source: str,
    first: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    repeated: Path = request.getfixturevalue(source)
    before = {path: path.read_bytes() for path in repeated.rglob("*") if path.is_file()}
    capsys.readouterr()

    assert main(["train", "--from", str(repeated), "run=mine", "--json"]) == 0

    out, err = capsys.readouterr()
    assert json.loads(out)["run"] == "mine"
    assert again_lines(err) == [f"again     {repeated} from its first step, in a new run", SAME]
    assert err.index(SAME) < err.index("step 1/4")
    assert outcome(Path("mine")) == outcome(first)
    assert {path: path.read_bytes() for path in before} == before
    theirs, ours = (RunFolder(one).read_manifest() for one in (repeated, Path("mine")))
    assert ours["repeats"] == {"run": source, "created": theirs["created"]}
    assert (ours["day"], "repeats" in theirs) == ("2020-02-03", False)


def test_a_repeated_run_that_was_stopped_goes_on_to_the_same_bits(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_within(patch, 3)
        assert main(["train", f"--from={first}", "run=mine"]) == 143

    assert main(["train", "run=mine", AUTO]) == 0

    assert outcome(Path("mine")) == outcome(first)


def test_without_run_the_folder_is_chosen_as_ever(first: Path) -> None:
    cfg, plan = plan_again(str(first), ["lora.r=8", "run=null"])

    recorded = sftpipe.load_run(first).config
    assert cfg == dataclasses.replace(recorded, lora={**recorded.lora, "r": 8}, run=None)
    assert plan.folder.parent == Path("outputs/yoda")
    assert (plan.attempt, plan.repeats, plan.day) == (1, first, THEN)


def test_a_finished_run_that_was_resumed_is_repeated_from_its_first_step(first: Path) -> None:
    shutil.copytree(first, "resumed")
    tree = yaml.safe_load(Path("resumed/config.yaml").read_text())
    tree["sft"]["resume_from_checkpoint"] = "auto"
    Path("resumed/config.yaml").write_text(yaml.safe_dump(tree))

    cfg, plan = plan_again("resumed", ["run=mine"])

    assert cfg.sft["resume_from_checkpoint"] is None
    assert plan == RunPlan(Path("mine"), repeats=Path("resumed"))


# --- what differs ---------------------------------------------------------------------------------


@dataclasses.dataclass
class Repeat:
    """The start of a run that repeats `first`, whose manifest a test may rewrite."""

    cfg: TrainConfig
    weights: Weights
    data: PreparedData

    def said(
        self,
        capsys: pytest.CaptureFixture[str],
        words: Sequence[str] = (),
        precision: Precision = CPU,
    ) -> list[str]:
        """The list, but for its first line."""
        cfg, plan = plan_again("first", words)
        say_what_differs(plan, cfg, self.weights, precision, self.data)
        heading, *lines = again_lines(capsys.readouterr().err)
        assert heading == "again     first from its first step, in a new run"
        return [line.removeprefix("again").strip() for line in lines]


@pytest.fixture(scope="module")
def prepared(overrides: list[str]) -> tuple[TrainConfig, Weights, PreparedData]:
    cfg = compose(overrides)
    weights = find_weights(cfg.model, cfg.seed)
    return cfg, weights, prepare(cfg, weights, THEN)


@pytest.fixture
def repeat(prepared: tuple[TrainConfig, Weights, PreparedData]) -> Repeat:
    cfg, weights, data = prepared
    open_run(RunPlan(Path("first")), cfg, weights, CPU, data)
    return Repeat(cfg, weights, data)


def rewrite(change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest of the run that is repeated."""
    file = Path("first/manifest.json")
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def test_what_is_the_same_is_said_in_one_line(
    repeat: Repeat, capsys: pytest.CaptureFixture[str]
) -> None:
    assert repeat.said(capsys) == [SAME.removeprefix("again     ")]


def test_of_a_gpu_less_is_promised(repeat: Repeat, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(lambda manifest: manifest.update(precision=CUDA.record()))
    (line,) = repeat.said(capsys, precision=CUDA)
    assert "the same bits" not in line
    assert line.startswith("same config, data, tokenizer, weights, versions: the same numbers")


def test_keys_that_decide_nothing_are_told_from_those_that_do(
    repeat: Repeat, capsys: pytest.CaptureFixture[str]
) -> None:
    free, deciding = ["output_dir=elsewhere", "sft.logging_steps=7"], ["lora.r=8"]
    listed = ["sft.logging_steps was 1 and is 7", "output_dir was 'outputs' and is 'elsewhere'"]
    end = "this decides no weights, and the rest is as it was: the same bits are expected"
    assert repeat.said(capsys, free) == [*listed, end]
    end = "with this, the bits may differ"
    assert repeat.said(capsys, [*free, *deciding]) == ["lora.r was 16 and is 8", *listed, end]


@pytest.mark.parametrize(
    ("change", "line"),
    named(
        [
            [
                "data",
                lambda manifest: manifest["data"].update(sha256="0" * 64, rows={"train": 1300}),
                "the data: 1,300 train rows then, "
                "8 train + 8 validation + 8 test rows now, and not the same bytes",
            ],
            [
                "tokenizer",
                lambda manifest: manifest.update(tokenizer_sha256="0" * 64),
                "the tokenizer is another one",
            ],
            [
                "weights",
                lambda manifest: manifest.update(weights="base==1"),
                "base weights base==1, now <weights>",
            ],
            [
                "adapter",
                lambda manifest: manifest.update(adapter="sha256:0"),
                "adapter of lora.init_from sha256:0, now none",
            ],
            [
                "version",
                lambda manifest: manifest["versions"].update(torch="1.0"),
                f"torch 1.0, now {torch.__version__}",
            ],
            [
                "package that was not there",
                lambda manifest: manifest["versions"].update(trl=None),
                "trl none, now <trl>",
            ],
            [
                "CPU",
                lambda manifest: manifest["hardware"].update(cpu="Z80"),
                "CPU Z80, now <cpu>",
            ],
            [
                "GPU",
                lambda manifest: manifest["hardware"].update(gpu="NVIDIA T0"),
                "GPU NVIDIA T0, now none",
            ],
            [
                "device",
                lambda manifest: manifest["precision"].update(device="cuda"),
                "device cuda, now cpu",
            ],
            [
                "dtype",
                lambda manifest: manifest["precision"].update(compute="float16"),
                "dtype float16, now float32",
            ],
        ]
    ),
)
def test_each_difference_has_a_line(
    change: Callable[[dict[str, Any]], Any],
    line: str,
    repeat: Repeat,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = facts_of(repeat.cfg, repeat.weights, CPU, repeat.data)
    for name, value in (
        ("<weights>", now["weights"]),
        ("<cpu>", now["hardware"]["cpu"]),
        ("<trl>", now["versions"]["trl"]),
    ):
        line = line.replace(name, str(value))
    rewrite(change)
    assert repeat.said(capsys) == [line, "with this, the bits may differ"]


def test_what_an_old_manifest_does_not_hold_is_named(
    repeat: Repeat, capsys: pytest.CaptureFixture[str]
) -> None:
    def age(manifest: dict[str, Any]) -> None:
        for name in ("precision", "threads", "tokenizer_sha256"):
            manifest.pop(name)
        for name in ("cpu", "gpu"):
            manifest["hardware"].pop(name)

    rewrite(age)
    assert repeat.said(capsys) == [
        "not recorded then, and so not compared: "
        "tokenizer, threads, CPU, GPU, device, dtype, trained dtype",
        "the rest is as it was; if that is, too, the same bits are expected",
    ]


def test_a_run_of_its_own_says_nothing(repeat: Repeat, capsys: pytest.CaptureFixture[str]) -> None:
    plan = RunPlan(Path("mine"))
    say_what_differs(plan, repeat.cfg, repeat.weights, CPU, repeat.data)
    assert capsys.readouterr().err == ""


# --- computed as then -----------------------------------------------------------------------------

PLANS = named(
    [
        ["resumed", RunPlan(Path("first"), attempt=2)],
        ["repeated", RunPlan(Path("mine"), repeats=Path("first"))],
    ]
)


@pytest.mark.parametrize("plan", PLANS)
def test_threads_and_dtypes_are_those_of_then(
    plan: RunPlan, repeat: Repeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where more cores are there, and nothing else sets the threads."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    rewrite(lambda manifest: manifest.update(precision=HALF.record(), threads=3))

    precision = compute_as_begun(plan, repeat.cfg)

    assert torch.get_num_threads() == 3
    assert (precision.compute, precision.trained) == (torch.bfloat16, torch.float32)
    assert precision.reason == "CPU, 3 threads; bfloat16: as the run began"


@pytest.mark.parametrize("plan", PLANS)
def test_the_fast_step_is_made_where_it_was_made_then(plan: RunPlan, repeat: Repeat) -> None:
    quick = {**CPU.record(), "fast": True}
    older = {"compute": "float32"}
    for then, expected in ((quick, True), (CPU.record(), False), (older, False), (None, False)):
        rewrite(lambda manifest, then=then: manifest.update(precision=then))
        assert compute_as_begun(plan, repeat.cfg).fast is expected


@pytest.mark.parametrize("plan", PLANS)
def test_dtypes_of_no_manifest_are_decided_anew(plan: RunPlan, repeat: Repeat) -> None:
    for value in (None, {}, {"compute": "int3", "trained": "int3"}, "bfloat16"):
        rewrite(lambda manifest, value=value: manifest.update(precision=value))
        precision = compute_as_begun(plan, repeat.cfg)
        assert (precision.compute, precision.trained) == (torch.float32, torch.float32)


def test_a_dtype_that_the_config_named_is_not_kept_where_it_is_left_open(repeat: Repeat) -> None:
    tree = yaml.safe_load(Path("first/config.yaml").read_text())
    tree["model"] |= {"dtype": "bfloat16", "adapter_dtype": "bfloat16", "fast": False}
    Path("first/config.yaml").write_text(yaml.safe_dump(tree))
    both = Precision("cpu", torch.bfloat16, torch.bfloat16, "")
    rewrite(lambda manifest: manifest.update(precision=both.record()))

    open_again = ["model.dtype=auto", "model.adapter_dtype=auto", "model.fast=true"]
    for words, expected in (([], torch.bfloat16), (open_again, torch.float32)):
        cfg, plan = plan_again("first", words)
        precision = compute_as_begun(plan, cfg)
        assert (precision.compute, precision.trained) == (expected, expected)
        assert precision.fast is bool(words)


def test_a_run_that_goes_on_says_what_is_not_as_it_was(
    repeat: Repeat, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = RunPlan(Path("first"), attempt=2)
    compute_as_begun(plan, repeat.cfg)
    assert capsys.readouterr().err == ""

    rewrite(lambda manifest: manifest["versions"].update(torch="1.0"))
    rewrite(lambda manifest: manifest["precision"].update(device="cuda", compute="float16"))
    rewrite(lambda manifest: manifest["hardware"].pop("cpu"))
    compute_as_begun(plan, repeat.cfg)
    assert capsys.readouterr().err == (
        f"resume    the run began with torch 1.0, now {torch.__version__}, device cuda, now cpu, "
        "dtype float16, now float32: bits may differ\n"
    )


# --- what cannot be repeated ----------------------------------------------------------------------


@pytest.fixture
def folders(first: Path) -> None:
    """A run, a sweep, and folders that are no runs."""
    shutil.copytree(first, "first")
    Path("sweep").mkdir()
    for job in ("0", "1"):
        Path("sweep", job).mkdir()
        Path("sweep", job, "manifest.json").write_text("{}")
    shutil.copytree("first", "torn", ignore=shutil.ignore_patterns("checkpoint-*"))
    Path("torn/config.yaml").write_text("model: [")
    shutil.copytree("torn", "cut")
    Path("cut/manifest.json").write_text('{"weights": ')
    shutil.copytree("first", "begun")
    Path("begun/COMPLETE").unlink()
    Path("other").mkdir()
    Path("other/thesis.tex").write_text("years of work")


GOES_ON = f"sftpipe train run=begun {AUTO}"


@pytest.mark.parametrize(
    ("folder", "words", "flags", "expected"),
    named(
        [
            ["no folder", "nowhere", [], [], {"--from": ()}],
            ["no run", "other", [], [], {"--from": ()}],
            ["a sweep", "sweep", [], [], {"--from": ("sftpipe train --from sweep/0",)}],
            [
                "a checkpoint",
                "first/checkpoint-4",
                [],
                [],
                {"--from": ("sftpipe train --from first",)},
            ],
            ["a file", "first/config.yaml", [], [], {"--from": ("sftpipe train --from first",)}],
            ["torn config", "torn", [], [], {"torn/config.yaml": ()}],
            ["torn manifest", "cut", [], [], {"cut": ()}],
            [
                "a sweep of it",
                "first",
                ["lora.r=4,8"],
                ["-m"],
                {"-m": ("sftpipe train --from first",)},
            ],
            ["several values", "first", ["lora.r=4,8"], [], {"lora.r=4,8": ()}],
            ["Hydra's view", "first", [], ["--cfg", "job"], {"--cfg": ()}],
            [
                "options",
                "first",
                ["recipe=yoda", "lora=dora", "lora=dorra"],
                [],
                {
                    "recipe=yoda (command line)": ("sftpipe config recipe=yoda",),
                    "lora=dora (command line)": ("sftpipe config lora=dora",),
                    "lora=dorra (command line)": (),
                },
            ],
            ["a key taken out", "first", ["~lora.r"], [], {"~lora.r (command line)": ()}],
            ["a wrong key", "first", ["lora.rr=8"], [], {"lora.rr (command line)": ()}],
            [
                "resume",
                "begun",
                [AUTO],
                [],
                {f"{AUTO} (command line)": (GOES_ON,)},
            ],
            [
                "resume of the new one",
                "first",
                ["run=begun", AUTO],
                [],
                {f"{AUTO} (command line)": (GOES_ON,)},
            ],
            ["into itself", "first", ["run=./first"], [], {"run=./first": ()}],
            ["into a finished run", "begun", ["run=first"], [], {"run=first": ()}],
            ["into an unfinished run", "first", ["run=begun"], [], {"run=begun": (GOES_ON,)}],
        ]
    ),
)
def test_what_does_not_go_together_says_what_to_type(
    folder: str,
    words: Sequence[str],
    flags: Sequence[str],
    expected: dict[str, tuple[str, ...]],
    folders: None,
    golden_error: Pin,
) -> None:
    with pytest.raises(SftpipeError) as caught:
        plan_again(folder, words, flags)
    assert told(caught.value) == expected
    golden_error(caught.value)
    assert not Path("outputs").exists()
