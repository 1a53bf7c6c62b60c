"""A finished run leaves its folder, and what leaves is what was trained."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import sftpipe
from sftpipe.cli import main
from sftpipe.config.hydra import compose_requests
from sftpipe.config.schema import ExportConfig
from sftpipe.errors import ConfigError, ExportError, RunError, StorageError
from sftpipe.export.card import RUN_KEY
from sftpipe.runs.export import export
from sftpipe.runs.export_merged import MAX_KL
from sftpipe.runs.held import held_rows
from sftpipe.runs.load import Run, load_run
from support.configs import compose
from support.disks import small_disk
from support.errors import Pin, places, refused, told

Copy = Callable[..., Run]


def asked(*words: str) -> ExportConfig:
    return compose_requests(words).export


@pytest.fixture(scope="module")
def quantized_run(lively_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A QLoRA run with a new token whose row is trained."""
    folder = tmp_path_factory.mktemp("qlora") / "run"
    words = ["recipe=yoda", "quantization=nf4", "model=custom", "dataset.limit=12"]
    words += [f"model.name_or_path={lively_base}", "sft.max_steps=2", "sft.learning_rate=3e-2"]
    words += ["dataset.markers=special", "dataset.marker_tokens=['|SOUND|>']"]
    words += ["evaluation.max_new_tokens=4", f"run={folder}"]
    sftpipe.train(compose(words))
    return folder


# --- merged ---------------------------------------------------------------------------------------


def test_a_merged_model_is_read_by_transformers_alone_and_says_the_same(copy_run: Copy) -> None:
    run = copy_run()
    found = export(run, asked())
    folder = run.dir / "export" / "merged"
    assert found["folder"] == str(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert not any("lora" in name for name in model.state_dict())
    held = held_rows(run)
    assert held.split == "test"
    for row in held.rows:
        ids = torch.tensor([row])
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, run.model(ids).logits, atol=1e-3, rtol=0)
    assert tokenizer.chat_template == run.tokenizer.chat_template
    assert tokenizer.get_vocab() == run.tokenizer.get_vocab()
    assert "local" not in (folder / "tokenizer_config.json").read_text()
    assert "local" not in (run.dir / "tokenizer_config.json").read_text()
    stops = model.generation_config.eos_token_id
    assert stops == run.model.generation_config.eos_token_id
    assert model.generation_config._from_model_config is False


def test_the_drift_is_measured_and_stands_on_the_card(copy_run: Copy) -> None:
    run = copy_run()
    found = export(run, asked())
    folder = Path(found.pop("folder"))
    assert json.loads((folder / "export.json").read_text()) == found
    drift = found["drift"]
    assert drift["top1"] == 1.0
    assert 0 <= drift["kl"] < 1e-8
    assert (drift["limit"], drift["rows"], drift["chrf"]) == (MAX_KL, "test", 100.0)
    assert drift["tokens"] == sum(map(len, held_rows(run).rows))
    card = (folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head[RUN_KEY] == run.identity()
    assert f"{drift['kl']:.2e} nats" in card
    assert "100.00%" in card
    assert [one.name for one in folder.parent.iterdir()] == ["merged"]


def test_the_lines_of_the_card_load_the_model(copy_run: Copy) -> None:
    run = copy_run()
    folder = Path(export(run, asked())["folder"])
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("PATH/OF/THIS/FOLDER", str(folder)), names)
    ids = torch.tensor([held_rows(run).rows[0]])
    with torch.no_grad():
        theirs, ours = names["model"](ids).logits, run.model(ids).logits
    torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=0)
    assert names["tokenizer"].get_vocab() == run.tokenizer.get_vocab()


def test_python_takes_the_same_keys_as_the_command_line(copy_run: Copy, tmp_path: Path) -> None:
    run = copy_run()
    found = run.export(dtype="bfloat16", output=str(tmp_path / "out"))
    assert (found["dtype"], found["folder"]) == ("bfloat16", str(tmp_path / "out"))
    error = refused(ConfigError, lambda: run.export(dytpe="float32"))
    assert places(error) == ["export.dytpe (export)"]
    error = refused(ConfigError, lambda: run.export("gguf", type="q4_k_m"))
    assert places(error) == ["export.type"]
    assert places(refused(ConfigError, lambda: run.export("onnx"))) == ["export.target (export)"]


@pytest.mark.slow
def test_the_server_of_transformers_answers_as_the_run_does(copy_run: Copy, tmp_path: Path) -> None:
    run = copy_run()
    folder = Path(export(run, asked())["folder"])
    assert "transformers serve PATH/OF/THIS/FOLDER" in (folder / "README.md").read_text()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    words = [program, "serve", folder, "--port", str(port), "--host", "127.0.0.1"]
    messages = [{"role": "user", "content": "Where is the station?"}]
    body = {"model": str(folder), "messages": messages, "max_tokens": 4, "temperature": 0}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(words, stdout=log, stderr=log) as one,
    ):
        try:
            said = answer_of(f"http://127.0.0.1:{port}/v1/chat/completions", body)
        finally:
            one.terminate()
            one.wait(30)
    assert said.strip() == run.generate("Where is the station?")[0].text


def answer_of(address: str, body: dict[str, Any]) -> str:
    """What a server says as soon as it is there."""
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    for _ in range(240):
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return str(json.load(reply)["choices"][0]["message"]["content"])
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionError):
                raise
            time.sleep(0.5)
    raise AssertionError("the server never came")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_of_the_dtype_that_is_asked_for(dtype: str, copy_run: Copy) -> None:
    found = export(copy_run(), asked(f"export.dtype={dtype}"))
    with safe_open(Path(found["folder"]) / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {getattr(torch, dtype)}  # noqa: SIM118
    assert found["dtype"] == dtype
    assert 0 < found["drift"]["kl"] < MAX_KL


def test_a_quantized_base_is_merged_as_it_was_trained_on_or_into_the_original(
    quantized_run: Path, tmp_path: Path
) -> None:
    run = load_run(quantized_run)
    found = {
        base: export(run, asked(f"export.base={base}", f"export.output={tmp_path / base}"))
        for base in ("original", "dequantized")
    }
    assert found["original"]["drift"]["limit"] is None
    assert found["dequantized"]["drift"]["limit"] == MAX_KL
    assert found["dequantized"]["drift"]["kl"] < 1e-8 < 1e-4 < found["original"]["drift"]["kl"]
    for base in found:
        card = (tmp_path / base / "README.md").read_text()
        assert f"into the {base} base" in card
        model = AutoModelForCausalLM.from_pretrained(tmp_path / base)
        (new,) = run.tokenizer.convert_tokens_to_ids(["|SOUND|>"])
        trained = run.model.get_input_embeddings()(torch.tensor([new]))
        table = model.get_input_embeddings().weight
        assert torch.equal(table[new], trained[0].detach().float())
        assert len(table) >= len(run.tokenizer)


def test_drift_above_the_limit_leaves_nothing(copy_run: Copy) -> None:
    run = copy_run()
    half = asked("export.dtype=bfloat16", "export.max_kl=0")
    error = refused(ExportError, lambda: export(run, half))
    text = re.sub(r"\d+\.?\d*(e-?\d+)?", "N", str(error))
    assert places(error) == ["export.max_kl"]
    assert "drifts by N nats a token" in text
    assert error.problems[0].commands[0] == "export.dtype=float32"
    assert list((run.dir / "export").iterdir()) == []
    word = error.problems[0].commands[1]
    assert export(run, asked("export.dtype=bfloat16", word))["drift"]["kl"] > 0


def test_a_run_that_trained_all_weights_is_exported_as_it_is(
    lively_base: Path, tmp_path: Path
) -> None:
    words = ["recipe=yoda", "quantization=none", "lora=none", "model=custom", "sft.max_steps=1"]
    words += [f"model.name_or_path={lively_base}", "dataset.limit=12", f"run={tmp_path / 'run'}"]
    run = sftpipe.train(compose(words))
    found = export(run, asked())
    assert "drift" not in found
    model = AutoModelForCausalLM.from_pretrained(found["folder"])
    own = run.load_model().state_dict()
    assert all(torch.equal(one, own[name]) for name, one in model.state_dict().items())
    assert model.config.use_cache is True
    half = export(run, asked("export.dtype=bfloat16", f"export.output={tmp_path / 'half'}"))
    assert AutoModelForCausalLM.from_pretrained(half["folder"]).dtype == torch.bfloat16


def test_rows_that_are_gone_are_replaced_by_the_prompts_that_the_run_kept(
    lively_base: Path, tmp_path: Path, rows_file: Callable[..., str]
) -> None:
    rows = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(9)]
    file = rows_file(rows)
    words = [
        "lora=default",
        "dataset=json",
        f"dataset.data_files={file}",
        "model=custom",
        "sft.max_steps=1",
    ]
    words += [f"model.name_or_path={lively_base}", "evaluation=none", "sft.max_steps=1"]
    words += [f"run={tmp_path / 'run'}"]
    run = sftpipe.train(compose(words))
    assert held_rows(run).split == "train"
    Path(file).unlink()
    run = load_run(run.dir)
    held = held_rows(run)
    assert (held.split, len(held.rows)) == ("prompts.json", 5)
    assert export(run, asked())["drift"]["top1"] == 1.0


_MEASURED = """
import sys, threading, time
from pathlib import Path
import sftpipe
from sftpipe.config.hydra import compose_requests
from sftpipe.runs import export_gguf, export_hub, export_merged
from sftpipe.runs.export import export
import trl, peft, bitsandbytes

def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) * 1024

run = sftpipe.load_run(sys.argv[1])
before = peak = own()
def watch():
    global peak
    while True:
        peak = max(peak, own())
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
export(run, compose_requests([f"export.output={sys.argv[2]}"]).export)
print(peak - before)
"""


@pytest.mark.slow
def test_a_merge_grows_the_process_by_little_more_than_the_weights(
    smollm2: Any, tmp_path: Path
) -> None:
    words = ["recipe=yoda", "quantization=none", "evaluation=none", "dataset.limit=12"]
    words += ["sft.max_steps=1", "sft.per_device_train_batch_size=2", f"run={tmp_path / 'run'}"]
    run = sftpipe.train(compose(words))
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(run.dir), str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    weights = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    assert weights > 5e8
    assert int(done.stdout.splitlines()[-1]) < 1.2 * weights


# --- bad input ------------------------------------------------------------------------------------


def test_a_folder_that_exists_is_left_alone(copy_run: Copy, tmp_path: Path) -> None:
    run = copy_run()
    (tmp_path / "there").mkdir()
    (tmp_path / "there-2").mkdir()
    error = refused(ExportError, lambda: export(run, asked(f"export.output={tmp_path / 'there'}")))
    assert told(error) == {"export.output": (f"export.output={tmp_path / 'there-3'}",)}
    assert list((tmp_path / "there").iterdir()) == []


def test_a_run_without_its_weights_is_told(copy_run: Copy, golden_error: Pin) -> None:
    run = copy_run()
    (run.dir / "adapter_model.safetensors").unlink()
    golden_error(refused(RunError, lambda: export(run, asked())))


def test_a_base_that_has_changed_is_told(copy_run: Copy, lively_base: Path, tmp_path: Path) -> None:
    run = copy_run()
    config = yaml.safe_load((run.dir / "config.yaml").read_text())
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in lively_base.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    (moved / "generation_config.json").write_text('{"eos_token_id": 3}')
    config["model"]["name_or_path"] = str(moved)
    (run.dir / "config.yaml").write_text(yaml.safe_dump(config))
    error = refused(RunError, lambda: export(load_run(run.dir), asked()))
    assert "it was trained on" in str(error)


def test_a_base_that_was_not_quantized_has_nothing_to_dequantize(copy_run: Copy) -> None:
    error = refused(ExportError, lambda: export(copy_run(), asked("export.base=dequantized")))
    assert told(error) == {"export.base": ("export.base=original",)}


def test_a_disk_without_room_is_told_before_the_weights_are_written(
    copy_run: Copy, tmp_path: Path
) -> None:
    run = copy_run()
    with small_disk(tmp_path / "disk", 1) as disk:
        error = refused(StorageError, lambda: export(run, asked(f"export.output={disk / 'out'}")))
        assert re.search(r"about [\d.]+ MB are needed, and 1.0 MB are free", str(error))
        assert told(error) == {str(disk): ()}
        assert list(disk.iterdir()) == []


@pytest.mark.slow
def test_a_kill_leaves_nothing_under_the_name_and_the_next_start_cleans_up(
    copy_run: Copy, tmp_path: Path
) -> None:
    run, out = copy_run(), tmp_path / "there" / "out"
    words = [sys.executable, "-m", "sftpipe", "export", f"run={run.dir}", f"export.output={out}"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not any(out.parent.glob(".out.partial/*")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    assert list(out.parent.iterdir()) != []
    assert export(run, asked(f"export.output={out}"))["drift"]["top1"] == 1.0
    assert [one.name for one in out.parent.iterdir()] == ["out"]


def test_the_verb_prints_where_it_is_or_json(
    copy_run: Copy, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = copy_run()
    assert main(["export", f"run={run.dir}"]) == 0
    out = capsys.readouterr().out
    assert str(run.dir / "export" / "merged") in out
    assert "100.00% same likeliest token" in out
    words = ["export", f"run={run.dir}", f"export.output={tmp_path / 'other'}", "--json"]
    assert main(words) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (said["target"], said["folder"]) == ("merged", str(tmp_path / "other"))
    assert main(["export", "run=null"]) == 2
