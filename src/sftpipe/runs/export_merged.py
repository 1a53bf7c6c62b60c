"""`export=merged`: plain weights, which say what the run says."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftpipe.config.schema import ExportConfig
from sftpipe.errors import ExportError, Problem, override
from sftpipe.export.card import merged_card
from sftpipe.export.drift import Drift, answers_chrf, measure_drift, record_logits
from sftpipe.export.plain import read_plain, write_plain
from sftpipe.model.adapters import count_parameters
from sftpipe.runs.held import ANSWERS, HeldRows, held_rows
from sftpipe.storage import check_room, publish_folder, write_json, write_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from sftpipe.model.precision import Precision
    from sftpipe.runs.load import Run

FACTS = "export.json"  # what was written and measured
_ELSEWHERE = "make room there, or export.output=DIR on another disk"
MAX_KL = 0.01  # of a token, in nats


def export_merged(run: Run, cfg: ExportConfig, folder: Path) -> dict[str, Any]:
    """Plain weights with their card; nothing is left under `folder` where they are refused."""
    with publish_folder(folder) as partial:
        held = held_rows(run) if run.config.lora else None
        facts = {"target": "merged", **write_weights(run, cfg, partial, held)}
        write_json(partial / FACTS, facts)
        write_text(partial / "README.md", merged_card(facts))
    return facts


# --- weights --------------------------------------------------------------------------------------


def write_weights(
    run: Run, cfg: ExportConfig, folder: Path, held: HeldRows | None, more: float = 0.0
) -> dict[str, Any]:
    """Write the run's model as plain files, read it back by transformers alone, and compare.

    Args:
        run: with an adapter, which is merged, or with all weights.
        cfg: the `export` group.
        folder: exists and is empty.
        held: what the unmerged and the merged model are compared on; None with all weights.
        more: bytes for each weight that are to be written beside them, for the room on the disk.

    Returns:
        What was done, and of an adapter the drift.

    Raises:
        ExportError: the drift is above the limit.
    """
    dtype = _dtype(run, cfg)
    precision = replace(run.precision(), compute=dtype, trained=dtype)
    facts = {**facts_of(run), "dtype": str(dtype).removeprefix("torch.")}
    if run.config.lora:
        assert held is not None
        return {**facts, **_write_merged(run, cfg, precision, folder, held, more)}
    model = run.load_model(precision)
    check_room(folder, _bytes(model, dtype, more), _ELSEWHERE)
    write_plain(model, run.tokenizer, folder)
    read_plain(folder, precision.device)
    return facts


def facts_of(run: Run) -> dict[str, Any]:
    """Which run it is, and what it was trained on."""
    return {"run": run.dir.name, "id": run.identity(), "trained_on": run.base_name()}


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of export.json; empty where there is none that can be read."""
    try:
        return dict(json.loads((folder / FACTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _write_merged(
    run: Run, cfg: ExportConfig, precision: Precision, folder: Path, held: HeldRows, more: float
) -> dict[str, Any]:
    with beside(folder) as logits:
        answers = _as_trained(run, precision, held, logits, more)
        merged = _merged(run, cfg, precision)
        write_plain(merged, run.tokenizer, folder)
        del merged
        free()
        again = read_plain(folder, precision.device)
        drift = measure_drift(again, held.rows, logits)
        chrf = answers_chrf(answers, _answers(run, again, held))
    limit = _limit(run, cfg)
    _check_drift(drift, limit)
    return {
        "base": cfg.base,
        "quantized": bool(run.config.quantization),
        "drift": {
            **asdict(drift),
            "limit": limit,
            "rows": held.split,
            "chrf": round(chrf, 2),
            "answers": len(answers),
        },
    }


def _as_trained(
    run: Run, precision: Precision, held: HeldRows, logits: Path, more: float
) -> list[str]:
    """Record what the unmerged model says, and its answers.

    A quantized base computes as in training; another one has the dtype that it is merged in, as a
    second copy of it in float32 may not fit the memory.
    """
    model = run.load_model(None if run.config.quantization else precision)
    tokens, vocabulary = sum(map(len, held.rows)), len(model.get_input_embeddings().weight)
    needs = _bytes(model, precision.compute, more) + 4 * tokens * vocabulary
    check_room(logits, needs, _ELSEWHERE)
    record_logits(model, held.rows, logits)
    answers = _answers(run, model, held)
    del model
    free()
    return answers


def _merged(run: Run, cfg: ExportConfig, precision: Precision) -> PreTrainedModel:
    from sftpipe.model.merge import dequantize, merge_adapter

    if cfg.base == "dequantized":
        base = dequantize(run.load_base(), precision.compute)
    else:
        plain = replace(run, config=replace(run.config, quantization={}))
        base = plain.load_base(precision)
    return merge_adapter(run.add_adapter(base))


def _answers(run: Run, model: PreTrainedModel, held: HeldRows) -> list[str]:
    """Greedy answers to the first prompts."""
    from sftpipe.evaluation.answers import Sampling, generate

    prompts = [ids for _, ids in held.prompts[:ANSWERS]]
    sampling = Sampling(run.evaluation.max_new_tokens)
    size = run.evaluation.batch_size
    found = dict(generate(model, run.tokenizer, prompts, sampling, batch_size=size))
    return [found[number].text for number in range(len(prompts))]


def free() -> None:
    """Give back the memory of a model that nobody holds any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _bytes(model: PreTrainedModel, dtype: torch.dtype, more: float) -> int:
    """What the weights take on the disk, with `more` bytes for each beside them."""
    return int(count_parameters(model)[1] * (dtype.itemsize + more))


def _dtype(run: Run, cfg: ExportConfig) -> torch.dtype:
    import torch

    from sftpipe.model.architecture import model_config

    if cfg.dtype != "auto":
        return getattr(torch, cfg.dtype)
    if run.config.lora and run.config.model.init == "pretrained":
        return model_config(run.config.model, run.weights).dtype or torch.float32
    return torch.float32


def _limit(run: Run, cfg: ExportConfig) -> float | None:
    """Quantization moved the weights that the adapter was trained on away from the original."""
    if cfg.max_kl is not None:
        return cfg.max_kl
    return None if run.config.quantization and cfg.base == "original" else MAX_KL


def _check_drift(drift: Drift, limit: float | None) -> None:
    if limit is None or drift.kl <= limit:
        return
    found = (
        f"the merged model drifts by {drift.kl:.2g} nats a token, and holds another token for the "
        f"likeliest after {1 - drift.top1:.1%} of {drift.tokens}"
    )
    fix = f"`export.dtype=float32`, or {override('export.max_kl', f'{2 * drift.kl:.1g}')}"
    raise ExportError(Problem("export.max_kl", found, allowed=f"{limit} or less", fix=fix))


# --- the disk -------------------------------------------------------------------------------------


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A folder on the same disk for what is needed for a while; what a kill left there goes."""
    made = folder.with_name(f"{folder.name}.work")
    shutil.rmtree(made, ignore_errors=True)
    try:
        made.mkdir()
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
