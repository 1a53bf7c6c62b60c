"""One training step of LoRA: sftpipe against TRL, and both against the machine's limit.

A step is loss, gradients, their clipping, and the optimizer; the learning rate is 0, so that each
step finds the same weights.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sftpipe.bench.limit import frozen, operations, products, seconds
from sftpipe.bench.task import BATCH, RANK
from sftpipe.bench.timing import ROUNDS, median_seconds
from sftpipe.data.labels import IGNORED
from sftpipe.terminal import console, quiet_libraries

_SAME = 1e-3  # relative difference of losses in float32


@dataclass(frozen=True)
class Subject:
    """A trainer with its batch, and how it computes the loss.

    batch: rows (B, T), padded.
    device: for people.
    """

    trainer: Any
    batch: dict[str, Any]
    compute_loss: Callable[..., Any]
    device: str

    @property
    def trained(self) -> Any:
        """How many tokens of the batch are trained."""
        return (self.batch["labels"][:, 1:] != IGNORED).sum()

    def loss(self) -> Any:
        """Of the batch, with its graph."""
        with self.trainer.compute_loss_context_manager():
            return self.compute_loss(
                self.trainer, self.trainer.model, dict(self.batch), num_items_in_batch=self.trained
            )

    def update(self) -> None:
        """Clip the gradients, move the optimizer, forget them."""
        import torch

        torch.nn.utils.clip_grad_norm_(self.trainer.model.parameters(), 1.0)
        self.trainer.optimizer.step()
        self.trainer.model.zero_grad()

    def step(self) -> float:
        """One step; returns its loss."""
        loss = self.loss()
        loss.backward()
        self.update()
        return float(loss.detach())


def step() -> dict[str, Any]:
    """Tokens a second of a step of LoRA r=16 on eight Yoda rows, ours and TRL's; what limits it.

    SmolLM2-135M in float32 and in bfloat16. Padding is no token. The share of the limit is the time
    of the bare matrix products over that of the step; below it, where the rest of our step goes.
    """
    # longer than most: one measurement, from top to bottom
    from trl import SFTTrainer

    with tempfile.TemporaryDirectory() as folder, quiet_libraries(), console.status("Models ..."):
        subjects: dict[str, Subject] = {}
        for dtype in ("float32", "bfloat16"):
            plain = _subject(dtype, fast=False, folder=Path(folder))
            subjects[f"trl, {dtype}"] = replace(plain, compute_loss=SFTTrainer.compute_loss)
            subjects[f"sftpipe, {dtype}, model.fast=false"] = plain
            subjects[f"sftpipe, {dtype}"] = _subject(dtype, fast=True, folder=Path(folder))
        losses = {name: one.step() for name, one in subjects.items()}
        ours = {dtype: subjects[f"sftpipe, {dtype}"] for dtype in ("float32", "bfloat16")}
        tokens = int(plain.batch["attention_mask"].sum())
        ways: dict[str, Callable[[], object]] = {name: one.step for name, one in subjects.items()}
        ways |= {f"frozen, {dtype}": _backbone(one) for dtype, one in ours.items()}
    with quiet_libraries(), console.status(f"{ROUNDS} rounds of {len(ways)} steps ..."):
        took = median_seconds(ways, ROUNDS)
    result: dict[str, Any] = {
        "batch": f"{BATCH} rows, {plain.batch['input_ids'].shape[1]} tokens wide, {tokens} tokens "
        f"without padding, {int(plain.trained)} trained",
        "device": plain.device,
        "same work": _compared(losses),
    }
    for name in subjects:
        result[f"{name}, tokens/s"] = round(tokens / took[name], 1)
    for dtype in ours:
        result[f"sftpipe / trl, {dtype}"] = _ratio(took, f"trl, {dtype}", f"sftpipe, {dtype}")
        away = f"sftpipe, {dtype}, model.fast=false"
        result[f"fast / not, {dtype}"] = _ratio(took, away, f"sftpipe, {dtype}")
    result["sftpipe in bfloat16 / trl in float32"] = _ratio(
        took, "trl, float32", "sftpipe, bfloat16"
    )
    with quiet_libraries(), console.status("The limit ..."):
        for dtype, one in ours.items():
            result |= _shares(dtype, one, subjects, took, tokens)
    return result


def _subject(dtype: str, *, fast: bool, folder: Path) -> Subject:
    """A model with its adapter, and the first rows of Yoda, made as a run makes them."""
    from sftpipe.config.hydra import compose
    from sftpipe.model.adapters import lora_config
    from sftpipe.model.embedding import fit_to_tokenizer
    from sftpipe.model.fast import speed_up
    from sftpipe.model.load import load_base
    from sftpipe.model.precision import choose_precision
    from sftpipe.model.weights import find_weights
    from sftpipe.pipeline import prepare
    from sftpipe.training.trainer import build_arguments, build_trainer

    words = ["recipe=yoda", "quantization=none", f"lora.r={RANK}", "lora.lora_dropout=0"]
    cfg = compose([*words, f"model.dtype={dtype}", "sft.learning_rate=0"])
    precision = choose_precision(cfg.model)
    weights = find_weights(cfg.model, cfg.seed)
    data = prepare(cfg, weights)
    arguments = build_arguments(cfg.sft, seed=cfg.seed, folder=folder, precision=precision)
    model = load_base(cfg.model, cfg.quantization, weights, precision, frozen=True)
    fit_to_tokenizer(model, data.tokenizer)
    adapter = lora_config(cfg.lora, weights)
    trainer = build_trainer(arguments, model, adapter, data, precision, folder / "log.jsonl")
    if fast:
        trainer.joins_rows = speed_up(trainer.model, cfg.model, weights)
    trainer.create_optimizer()
    trainer.model.train()
    batch = trainer._prepare_inputs(data.collate([data.train[row] for row in range(BATCH)]))
    return Subject(trainer, batch, type(trainer).compute_loss, precision.reason)


def _backbone(subject: Subject) -> Callable[[], object]:
    """Forward and input gradients of the frozen layers alone, on joined rows without an adapter."""
    import torch

    from sftpipe.model.fast import joined, sequences

    model = subject.trainer.model.get_base_model()
    row = joined(subject.batch)
    assert row is not None
    inputs, lengths = row

    def run() -> None:
        embedded = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
        with subject.trainer.model.disable_adapter(), sequences(lengths):
            hidden = model.base_model(
                inputs_embeds=embedded, position_ids=inputs["position_ids"], use_cache=False
            ).last_hidden_state
        torch.autograd.grad(hidden, embedded, torch.ones_like(hidden))

    return run


def _compared(losses: dict[str, float]) -> str:
    """Whether all had the same loss of the same tokens.

    Raises:
        RuntimeError: two in float32 differ.
    """
    exact = {name: loss for name, loss in losses.items() if "float32" in name}
    first, *others = exact.values()
    off = max(abs(one - first) / first for one in others)
    if off > _SAME:
        raise RuntimeError(f"the losses in float32 differ: {exact}")
    half = [loss for name, loss in losses.items() if name not in exact]
    spread = max(abs(one - first) / first for one in half)
    return f"losses in float32 differ by {off:.1e}, those in bfloat16 from them by {spread:.1e}"


def _ratio(took: dict[str, float], slow: str, quick: str) -> float:
    return round(took[slow] / took[quick], 2)


def _shares(
    dtype: str,
    ours: Subject,
    subjects: dict[str, Subject],
    took: dict[str, float],
    tokens: int,
) -> dict[str, Any]:
    """The limit in one precision, the share that each reaches, and where the rest of ours goes."""
    import torch

    needed = products(ours.trainer.model, ours.loss, tokens, int(ours.trained))
    least = seconds(needed, getattr(torch, dtype))
    bare = frozen(needed, RANK)
    rate = operations(needed) / least / 1e9
    shares = {name: f"{least / took[name]:.2f}" for name in subjects if dtype in name}
    backbone = seconds(bare, getattr(torch, dtype)) / took[f"frozen, {dtype}"]
    return {
        f"limit, {dtype}": f"{least:.3f} s, {rate:.0f} GFLOP/s",
        **{f"share of the limit, {name}": share for name, share in shares.items()},
        f"share of the limit, frozen backbone alone, {dtype}": f"{backbone:.2f}",
        **{
            f"of our step, {dtype}, {part}": text
            for part, text in _parts(ours, took[f"sftpipe, {dtype}"]).items()
        },
    }


# operations of a profile -> part; the first that fits
_KINDS = (
    ("attention", ("scaled_dot_product",)),
    ("head and loss", ("log_softmax", "nll_loss", "argmax")),
    ("copies and casts", ("copy_", "_to_copy", "cat", "clone")),
)
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "mkldnn::_linear_pointwise", "aten::bmm")


def _parts(subject: Subject, whole: float) -> dict[str, str]:
    """{part of our step: milliseconds and its share}, of one profiled step.

    Args:
        subject: ours.
        whole: seconds of a step that is not profiled; what no operation takes of it is Python's.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        subject.loss().backward()
    start = time.perf_counter()
    subject.update()
    update = time.perf_counter() - start
    vocabulary = subject.trainer.model.get_output_embeddings().weight.shape[0]
    found: dict[str, float] = {}
    for event in profiled.key_averages(group_by_input_shape=True):
        if event.key.startswith(("aten::", "mkldnn::")):
            part = _part_of(event.key, event.input_shapes, vocabulary)
            found[part] = found.get(part, 0.0) + event.self_cpu_time_total / 1e6
    found["clipping and optimizer"] = update
    found["Python and dispatch"] = max(0.0, whole - sum(found.values()))
    ordered = sorted(found.items(), key=lambda one: -one[1])
    return {name: f"{1000 * s:.0f} ms, {s / whole:.0%}" for name, s in ordered}


def _part_of(name: str, shapes: Any, vocabulary: int) -> str:
    """The part that an operation belongs to.

    Args:
        name: of the profiler.
        shapes: of its arguments.
        vocabulary: which only the head knows.
    """
    sizes = {size for shape in shapes for size in shape}
    if name in _PRODUCTS:
        if vocabulary in sizes:
            return "head and loss"
        return "products of LoRA" if RANK in sizes else "products of frozen layers"
    for part, names in _KINDS:
        if any(one in name for one in names):
            return part
    return "norms, activations, rotations"
