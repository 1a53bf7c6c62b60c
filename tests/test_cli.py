"""The command line: verbs, flags, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import sftpipe
from sftpipe.cli import main
from sftpipe.config.hydra import compose
from sftpipe.config.options import find_recipes, groups
from sftpipe.config.schema import to_plain
from sftpipe.runs.plan import run_key
from sftpipe.verbs import VERBS

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


def test_version_is_printed_alone(said: Said) -> None:
    assert said("--version") == (0, f"{sftpipe.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], f"trian: no such verb\n      allowed: {', '.join(VERBS)}\n      sftpipe train"),
        (["zzz"], "zzz: no such verb"),
        (
            ["recipe=yoda", "lora.r=8"],
            f"recipe=yoda: no such verb\n      allowed: {', '.join(VERBS)}\n"
            "      sftpipe train recipe=yoda lora.r=8",
        ),
        (["config", "--fast"], "--fast: unknown flag\n      sftpipe --help"),
        (
            ["config", "recipe=yodaa"],
            f"allowed: {', '.join(sorted(find_recipes()))}\n      recipe=yoda",
        ),
        (["list", "nonsense"], "nonsense: no such group\n      allowed: recipe, model, tokenizer"),
        (["list", "recpe"], "sftpipe list recipe"),
        (["train", "-m", "recipe=yoda,yodaa"], "recipe=yodaa (command line): no such recipe"),
        (["train", "-m", "recipe=yoda", "seed=1,x"], "seed (command line): 'x' (str)"),
        (
            ["train", "recipe=yoda", "lora.r=4,8"],
            "use -m for a sweep: sftpipe train -m recipe=yoda lora.r=4,8",
        ),
        (["bench"], "sftpipe bench: no part\n      allowed: step, data, memory"),
        (["bench", "stepp"], "sftpipe bench: stepp\n      allowed: step, data, memory"),
    ],
)
def test_a_mistake_says_what_to_type_and_exits_with_2(
    words: list[str], message: str, said: Said, tmp_path: Path
) -> None:
    code, out, err = said(*words)

    assert (code, out) == (2, "")
    assert err.startswith("error\n  ")
    assert message in err
    assert list(tmp_path.iterdir()) == []  # nothing was begun


@pytest.mark.parametrize("words", [["env", "--jsn"], ["env", "seed=1"], ["list", "--jsn"]])
def test_words_that_a_verb_does_not_take_are_refused(words: list[str], said: Said) -> None:
    code, _, err = said(*words)

    assert code == 2
    assert "unknown flag" in err or "takes no" in err


def test_several_problems_are_counted(said: Said) -> None:
    code, _, err = said("config", "sedd=1", "sft.learning_rat=1")

    assert code == 2
    assert err.startswith(
        "2 errors\n  sedd (command line): unknown key\n      did you mean seed?\n"
        "  sft.learning_rat (command line)"
    )


def test_a_sweep_reports_a_problem_that_all_jobs_share_once(said: Said) -> None:
    _, _, err = said("train", "-m", "lora=default", "lora.r=4,8", "sedd=1")

    assert err == "error\n  sedd (command line): unknown key\n      did you mean seed?\n"


# --- config ---------------------------------------------------------------------------------------


def test_config_prints_the_same_as_yaml_and_as_json(said: Said) -> None:
    _, as_yaml, _ = said("config", "recipe=yoda", "lora.r=8", "sft.learning_rate=1e-5")
    code, as_json, err = said(
        "config", "recipe=yoda", "lora.r=8", "sft.learning_rate=1e-5", "--json"
    )

    assert (code, err) == (0, "")
    assert yaml.safe_load(as_yaml) == json.loads(as_json)
    assert json.loads(as_json)["lora"]["r"] == 8


def test_a_misspelt_key_is_a_message_without_a_traceback_in_a_real_process(cli: Cli) -> None:
    done = cli(
        "config",
        "recipe=yoda",
        "sft.learning_rat=1",
        "lora.lora_alph=1",
        "quantization.bnb_4bit_quant_typ=nf4",
        "sedd=1",
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    for right in (
        "seed",
        "sft.learning_rate",
        "lora.lora_alpha",
        "quantization.bnb_4bit_quant_type",
    ):
        assert f"(command line): unknown key\n      did you mean {right}?" in done.stderr


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
    for right in (
        "seed",
        "sft.learning_rate",
        "lora.lora_alpha",
        "quantization.bnb_4bit_quant_type",
    ):
        assert f"(./recipes/mine.yaml): unknown key\n      did you mean {right}?" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["recipes"]


LIGHT = """
import sys
from sftpipe.cli import main
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
    } == groups()
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
    ("override", "message"),
    [
        (
            "dataset.columns.output=comple",
            "'comple'\n      allowed: prompt, completion\n      dataset.columns.output=completion",
        ),
        ("sft.max_length=10", "rows of train are longer than sft.max_length=10 tokens"),
    ],
)
def test_bad_data_are_named_by_key_or_row(
    override: str, message: str, small: list[str], said: Said
) -> None:
    code, out, err = said("check", *small, override)

    assert (code, out) == (2, "")
    assert message in err


def test_a_hub_model_without_a_network_says_what_was_tried_and_what_to_do(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path)
    )  # whatever this machine has cached

    code, out, err = said("check", "recipe=yoda_opt350m")

    assert (code, out) == (2, "")
    assert (
        "model.name_or_path: facebook/opt-350m is no local folder and not in the hub cache" in err
    )
    assert "the hub cannot be reached (HF_HUB_OFFLINE is set)" in err
    assert "go online; or run hf download facebook/opt-350m --local-dir DIR where there is" in err


# --- what passes through to Hydra -----------------------------------------------------------------


def test_cfg_prints_hydras_view_and_trains_nothing(cli: Cli, tmp_path: Path) -> None:
    done = cli("train", "recipe=yoda", "lora.r=8", "--cfg", "job")

    assert (done.returncode, done.stderr) == (0, "")
    assert yaml.safe_load(done.stdout)["lora"]["r"] == 8
    assert list(tmp_path.iterdir()) == []


def test_info_passes_through_to_hydra(cli: Cli, tmp_path: Path) -> None:
    done = cli("train", "recipe=yoda", "--info", "defaults")

    assert done.returncode == 0
    assert "recipe/yoda" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_beside_cfg_is_still_a_mistake(cli: Cli) -> None:
    done = cli("train", "recipe=yodaa", "sedd=1", "--cfg", "job")

    assert done.returncode == 2
    assert "recipe=yodaa (command line): no such recipe" in done.stderr
    assert "did you mean seed?" in done.stderr


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
        "manifest.json": json.dumps({"run_key": run_key(cfg)}),
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
    assert "mine is complete; there is nothing to do." in err
    assert {
        str(path.relative_to("mine")): path.read_text()
        for path in Path("mine").rglob("*")
        if path.is_file()
    } == files


def test_a_sweep_cannot_write_into_one_run_folder(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    bad_data = "dataset.name=stops-here"  # so that nothing trains where this is not refused

    code, _, err = said("train", "-m", "recipe=yoda", "seed=1,2", "run=mine", bad_data)

    assert code == 2
    assert err.startswith("error\n  run")
    assert list(tmp_path.iterdir()) == []
