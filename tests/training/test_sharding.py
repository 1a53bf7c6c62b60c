"""Models that two processes divide by fully_shard, against the same model in one process.

On a CPU, over gloo: the processes are real, and so is what they exchange.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import sftpipe
from sftpipe import cli
from sftpipe.errors import ModelError
from sftpipe.model.adapters import load_adapter
from sftpipe.model.merge import merge_adapter
from sftpipe.ranks import NOTES
from sftpipe.runs.load import load_run
from sftpipe.runs.plan import RunPlan
from sftpipe.runs.planned import write_planned
from sftpipe.training.sharding import take_weights
from support import divided
from support.configs import compose, config_error
from support.divided import CHECKPOINT, KINDS, STEPS
from support.errors import Pin, places, refused, told
from support.tokenizers import config_of, write_kind
from support.trainers import RUN_FILES, tiny

SOURCES = Path(sftpipe.__file__).parents[1]
WORDS = (
    f"sft.max_steps={STEPS}",
    f"sft.save_steps={CHECKPOINT}",
    "sft.save_strategy=steps",
    "sft.eval_strategy=steps",
    f"+sft.eval_steps={CHECKPOINT}",
    "sft.logging_steps=1",
    "sft.save_total_limit=null",
    "dataset.limit=48",
    "model.fast=false",
)
TWO = ("distributed=fsdp2", "distributed.num_processes=2", "sft.per_device_train_batch_size=2")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model whose output embedding is the input one."""
    folder = write_kind("chatml", tmp_path_factory.mktemp("divided") / "base")
    config = config_of("chatml")
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(base: Path) -> list[Path]:
    """The folders of two planned runs, of which the second goes on from a checkpoint."""
    run, resumed = base.parent / "run", base.parent / "resumed"
    cfg = tiny(base, *WORDS, *TWO)
    write_planned(cfg, RunPlan(run), {})
    checkpoint = resumed / f"checkpoint-{CHECKPOINT}"
    write_planned(cfg, RunPlan(resumed, 2, checkpoint), {})
    return [run, resumed]


@pytest.fixture(scope="module")
def seen(base: Path, runs: list[Path]) -> list[dict[str, Any]]:
    """What each of two processes has seen; their files lie beside the base."""
    out = base.parent
    (out / "notes").mkdir()
    tests = Path(divided.__file__).parents[1]
    environment = {
        **os.environ,
        NOTES: str(out / "notes"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{SOURCES}{os.pathsep}{tests}",
    }
    words = ["--standalone", "--nproc-per-node", "2", "--module", "support.divided"]
    words += [str(base), str(out), *map(str, runs)]
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((out / f"seen-{rank}.json").read_text()) for rank in range(2)]


def saved(base: Path, kind: str, name: str) -> Any:
    return torch.load(base.parent / kind / name, weights_only=True)


def checkpoint_of(base: Path, kind: str, step: int = STEPS) -> Path:
    return base.parent / kind / f"checkpoint-{step}"


def one_process(base: Path, kind: str) -> Any:
    return divided.adapted(divided.base_of(base, kind, divided=False))


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    named = model.named_parameters(remove_duplicate=False)
    return {name: one.detach() for name, one in named if one.requires_grad}


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(dict(found), dict(wanted), rtol=0, atol=1e-5)


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_process_holds_a_part_of_every_parameter_also_after_an_evaluation(
    seen: list[dict[str, Any]], kind: str
) -> None:
    facts = [one[kind] for one in seen]
    for one in facts:
        assert one["divided"] == one["after evaluation"] == ["DTensor"]
    assert sum(one["part"] for one in facts) == facts[0]["all"] == facts[1]["all"]
    assert max(one["part"] for one in facts) < 0.55 * facts[0]["all"]


@pytest.mark.slow
def test_the_first_process_alone_reads_the_weights(seen: list[dict[str, Any]]) -> None:
    assert [one["plain"]["devices"] for one in seen] == [["cpu"], ["meta"]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_process_computes_with_the_numbers_of_the_first(
    seen: list[dict[str, Any]], base: Path, kind: str
) -> None:
    model = one_process(base, kind)
    wanted = divided.logits(model)
    assert float(wanted.abs().max()) > 0.1
    for rank in range(2):
        found = saved(base, kind, f"before-{rank}.pt")
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    answer = model.generate(input_ids=divided.IDS[:1], max_new_tokens=3, do_sample=False)
    assert [one[kind]["answer"] for one in seen] == [answer[0, -3:].tolist()] * 2


# --- what it is trained to ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_is_the_one_that_one_process_trains_on_all_rows(
    seen: list[dict[str, Any]], base: Path, kind: str
) -> None:
    model = one_process(base, kind)
    before = {name: one.clone() for name, one in trained(model).items()}
    norm = divided.train(model, divided.optimizer_of(model), divided.IDS, STEPS)

    assert sorted(trained(model)) == seen[0][kind]["names"]
    assert seen[1][kind]["names"] == []  # the first process has the whole, and alone
    assert all(one[kind]["norm"] == pytest.approx(norm, rel=1e-4) for one in seen)
    written = PeftModel.from_pretrained(
        divided.base_of(base, kind, divided=False), str(checkpoint_of(base, kind))
    )
    names = dict(written.named_parameters(remove_duplicate=False))
    close({name: names[name].detach() for name in before}, trained(model))
    assert all(float((names[name] - one).abs().max()) > 1e-3 for name, one in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_has_the_adapter_and_nothing_of_the_base(
    seen: list[dict[str, Any]], base: Path, kind: str
) -> None:
    folder = checkpoint_of(base, kind)
    tensors = load_file(folder / "adapter_model.safetensors")
    numbers = sum(one.numel() for one in tensors.values())
    assert numbers == sum(one.numel() for one in trained(one_process(base, kind)).values()) - 64
    whole = (base / "model.safetensors").stat().st_size
    assert (folder / "adapter_model.safetensors").stat().st_size < 4 * numbers + 4096 < whole / 4
    # two moments of each number, in the format of torch
    assert (folder / "optimizer.pt").stat().st_size < 8 * numbers + 32768 < whole / 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_peft_alone_loads_a_checkpoint_and_its_logits_are_those_of_the_divided_model(
    seen: list[dict[str, Any]], base: Path, kind: str
) -> None:
    model = PeftModel.from_pretrained(
        divided.base_of(base, kind, divided=False), str(checkpoint_of(base, kind))
    ).eval()
    for rank in range(2):
        found = saved(base, kind, f"after-{rank}.pt")
        torch.testing.assert_close(found, divided.logits(model), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_checkpoint_is_merged_into_the_base(seen: list[dict[str, Any]], base: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(base)
    merged = merge_adapter(load_adapter(plain, str(checkpoint_of(base, "plain"))))
    found = divided.logits(merged.eval())
    torch.testing.assert_close(found, saved(base, "plain", "after-1.pt"), rtol=0, atol=1e-5)


# --- going on -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_from_a_checkpoint_divided_training_goes_on_to_the_same_bits(
    seen: list[dict[str, Any]], kind: str
) -> None:
    assert seen[0][kind]["resumed"] is True


@pytest.mark.slow
def test_one_process_goes_on_from_a_checkpoint_of_two(
    seen: list[dict[str, Any]], base: Path
) -> None:
    folder = checkpoint_of(base, "plain", CHECKPOINT)
    plain = AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(plain, str(folder), is_trainable=True).eval()
    optimizer = divided.optimizer_of(model)
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    divided.train(model, optimizer, divided.IDS, STEPS - CHECKPOINT)
    end = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), str(checkpoint_of(base, "plain"))
    )
    names = dict(end.named_parameters(remove_duplicate=False))
    wanted = trained(model)
    close({name: names[name].detach() for name in wanted}, wanted)


@pytest.mark.slow
def test_weights_of_another_model_are_refused(
    base: Path, tmp_path: Path, golden_error: Pin
) -> None:
    save_file({"model.norm.weight": torch.ones(32)}, tmp_path / "model.safetensors")
    model = one_process(base, "plain")
    error = refused(ModelError, lambda: take_weights(model, tmp_path))
    assert places(error) == [str(tmp_path)]
    golden_error(error)


# --- a run ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_divided_run_is_the_run_of_one_process(
    seen: list[dict[str, Any]], base: Path, runs: list[Path], tmp_path: Path
) -> None:
    run = load_run(runs[0])
    words = ("sft.per_device_train_batch_size=4", f"run={tmp_path / 'one'}")
    alone = sftpipe.train(tiny(base, *WORDS, *words))

    assert {path.name for path in run.dir.iterdir()} >= RUN_FILES
    close(*(load_file(one.dir / "adapter_model.safetensors") for one in (run, alone)))
    for name in ("before", "after"):
        assert run.metrics["validation"][name]["loss"] == pytest.approx(
            alone.metrics["validation"][name]["loss"], rel=1e-6
        )
    answers = [(one.dir / "samples.jsonl").read_text() for one in (run, alone)]
    assert answers[0] == answers[1]
    checkpoint = run.dir / f"checkpoint-{CHECKPOINT}"
    assert not list(checkpoint.glob("*.bin")) + list(checkpoint.glob("*model_fsdp*"))
    whole = (base / "model.safetensors").stat().st_size
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < whole


@pytest.mark.slow
def test_a_divided_run_goes_on_from_its_checkpoint_to_the_same_bits(
    seen: list[dict[str, Any]], runs: list[Path]
) -> None:
    ends = [load_file(run / "adapter_model.safetensors") for run in runs]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(one, ends[1][name]) for name, one in ends[0].items())


@pytest.mark.slow
def test_a_finished_divided_run_is_exported_by_one_process(
    seen: list[dict[str, Any]], base: Path, runs: list[Path]
) -> None:
    assert cli.main(["export", f"run={runs[0]}", "export=merged"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(runs[0] / "export" / "merged")
    model = load_adapter(AutoModelForCausalLM.from_pretrained(base), str(runs[0]))
    found = divided.logits(merged.eval())
    torch.testing.assert_close(found, divided.logits(model.eval()), rtol=0, atol=1e-5)


# --- refused --------------------------------------------------------------------------------------


def test_optimizers_that_cannot_step_on_a_part_are_refused(golden_error: Pin) -> None:
    words = ("recipe=yoda", *TWO)
    error = config_error(*words, "sft.optim=paged_adamw_8bit")
    assert told(error) == {"distributed.strategy + sft.optim": ("sft.optim=adamw_torch",)}
    golden_error(error)
    for name in ("adamw_torch", "adamw_torch_fused", "sgd"):
        assert compose([*words, f"sft.optim={name}"]).sft["optim"] == name


@pytest.mark.parametrize("verb", ["train", "check"])
def test_on_a_cpu_it_is_refused_before_anything_is_read(
    base: Path, verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sftpipe.launch.visible_gpus", list)
    words = ["recipe=yoda", "model=custom", f"model.name_or_path={base}"]
    assert cli.main([verb, *words, "distributed=fsdp2", "distributed.num_processes=2"]) == 2
    said = capsys.readouterr().err
    assert "the processes of a CPU share one" in said
    assert "distributed.strategy=ddp" in said
