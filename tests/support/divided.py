"""What two processes do with divided models: `python -m torch.distributed.run` starts it.

Its arguments are the folder of a base model, one for what is seen, and planned run folders. Each
process leaves `seen-RANK.json` there.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from peft import LoraConfig, get_peft_model

from sftpipe import ranks
from sftpipe.config.schema import ModelConfig
from sftpipe.model.load import load_base
from sftpipe.model.weights import Weights
from sftpipe.training import sharding
from support.models import CPU
from support.trainers import wake_adapter

NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "auto",
}
KINDS: dict[str, dict[str, Any]] = {"plain": {}, "nf4": NF4}
IDS = torch.arange(40).reshape(4, 10) * 7 % 400 + 60  # of 4 rows; each process trains 2 of them
STEPS, CHECKPOINT = 4, 2


def adapted(base: Any) -> Any:
    """The base with a small adapter that is awake, and rows of two tokens."""
    torch.manual_seed(0)
    tokens = {"embed_tokens": [61, 75]}
    targets = ["q_proj", "v_proj", "down_proj"]
    adapter = LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=targets, trainable_token_indices=tokens
    )
    model = get_peft_model(base, adapter)
    if not any(one.is_meta for one in model.parameters()):
        wake_adapter(model)
    return model.eval()


def base_of(folder: Path, kind: str, *, divided: bool) -> Any:
    weights = Weights(str(folder), None, "tiny", hashed=True)
    return load_base(ModelConfig("x"), KINDS[kind], weights, CPU, frozen=True, divided=divided)


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    trained = [one for one in model.parameters() if one.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-2)


def train(model: Any, optimizer: torch.optim.Optimizer, ids: torch.Tensor, steps: int) -> float:
    """Make steps of the same rows; returns the norm of the last gradient."""
    norm = 0.0
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1))
        optimizer.step()
        optimizer.zero_grad()
    return norm


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def kinds_of(model: torch.nn.Module) -> list[str]:
    return sorted({type(parameter).__name__ for parameter in model.parameters()})


def save(model: Any, optimizer: torch.optim.Optimizer, folder: Path) -> dict[str, Any]:
    """Write a checkpoint as the trainer does; returns the weights of it."""
    weights, state = sharding.whole_weights(model), sharding.whole_optimizer(optimizer)
    if ranks.is_first():
        model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
        torch.save(state, folder / "optimizer.pt")
    ranks.meet()
    return weights


def divide(base: Path, kind: str) -> tuple[Any, list[str]]:
    """A divided model, and where its numbers were before."""
    model = adapted(base_of(base, kind, divided=True))
    devices = sorted({one.device.type for one in model.parameters()})
    sharding.shard(model, torch.device("cpu"))
    return model, devices


def steps_of(base: Path, out: Path, kind: str) -> dict[str, Any]:
    """Train a divided model, and once more from a checkpoint on the way; what was seen of it."""
    out = out / kind
    out.mkdir(exist_ok=True)
    mine = IDS[2 * ranks.rank() : 2 * ranks.rank() + 2]
    model, devices = divide(base, kind)
    seen: dict[str, Any] = {"devices": devices, "divided": kinds_of(model)}
    parts = [(sharding.local(one).numel(), one.numel()) for one in model.parameters()]
    seen["part"], seen["all"] = (sum(numbers) for numbers in zip(*parts, strict=True))
    torch.save(logits(model), out / f"before-{ranks.rank()}.pt")
    answer = model.generate(input_ids=IDS[:1], max_new_tokens=3, do_sample=False)
    seen["answer"], seen["after evaluation"] = answer[0, -3:].tolist(), kinds_of(model)

    optimizer = optimizer_of(model)
    train(model, optimizer, mine, CHECKPOINT)
    save(model, optimizer, out / f"checkpoint-{CHECKPOINT}")
    seen["norm"] = train(model, optimizer, mine, STEPS - CHECKPOINT)
    end = save(model, optimizer, out / f"checkpoint-{STEPS}")
    torch.save(logits(model), out / f"after-{ranks.rank()}.pt")

    again, _ = divide(base, kind)
    optimizer = optimizer_of(again)
    checkpoint = out / f"checkpoint-{CHECKPOINT}"
    sharding.take_weights(again, checkpoint)
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True, mmap=True)
    sharding.take_optimizer(optimizer, state)
    train(again, optimizer, mine, STEPS - CHECKPOINT)
    resumed = sharding.whole_weights(again)
    seen["names"] = sorted(end)
    seen["resumed"] = all(torch.equal(end[name], resumed[name]) for name in end)
    return seen


def resume(finished: Path, planned: Path) -> None:
    """Let a planned run find what another left, as if it had ended at the checkpoint."""
    gone = shutil.ignore_patterns("COMPLETE", f"checkpoint-{STEPS}", "*.safetensors", ".planned*")
    if ranks.is_first():
        for path in finished.iterdir():
            if path.name not in gone(str(finished), [path.name]):
                copy = shutil.copytree if path.is_dir() else shutil.copy
                copy(path, planned / path.name)  # type: ignore[operator]
    ranks.meet()


def main(base: Path, out: Path, *planned: Path) -> None:
    """See above; of the planned folders each goes on from a checkpoint of the one before it."""
    from sftpipe.pipeline import train as train_run
    from sftpipe.runs.planned import read_planned

    torch.distributed.init_process_group("gloo")
    seen = {kind: steps_of(base, out, kind) for kind in KINDS}
    for before, run in zip((None, *planned), planned, strict=False):
        if before is not None:
            resume(before, run)
        plan = read_planned(run)
        train_run(plan.config, plan.plan, plan.hydra)
    (out / f"seen-{ranks.rank()}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
