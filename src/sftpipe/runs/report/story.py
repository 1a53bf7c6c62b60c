"""What happened in a run, in words: for the top of its page and for the end of a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from sftpipe.config.recorded import upstream_value
from sftpipe.errors import in_shell, one_line
from sftpipe.runs.report.found import Found
from sftpipe.runs.summary import SHOWN, answers_side_by_side, validation_parts


def sentence(found: Found) -> str:
    """One sentence: what was trained, on what, how far, and what came of it."""
    told = {"complete": _complete, "running": _running, "stopped": _stopped}
    return told[found.state](found) + "."


def _complete(found: Found) -> str:
    train = found.metrics.get("train") or {}
    steps = f"{train['steps']:,} steps" if "steps" in train else ""
    took = f"in {duration(train['runtime_s'])}" if "runtime_s" in train else ""
    how = " ".join(part for part in (steps, took) if part)
    parts = [f"{model_name(found)} was {_trained(found)}{_on_rows(found)}" + f", {how}" * bool(how)]
    for name, (before, after) in losses_before_and_after(found.metrics).items():
        verb = "fell" if after < before else "rose" if after > before else "stayed"
        parts.append(f"its {name} loss {verb} from {before:.3f} to {after:.3f}")
    if found.evaluation:
        parts.append(f"it is {found.evaluation['sentence']}")
    return "; ".join(parts)


def _running(found: Found) -> str:
    return f"{model_name(found)} is being {_trained(found)}{_on_rows(found)}: {_so_far(found)}"


def _stopped(found: Found) -> str:
    steps = found.folder.checkpoints()
    kept = f"its newest checkpoint is of step {max(steps):,}" if steps else "it has no checkpoint"
    begun = f"{model_name(found)} was to be {_trained(found)}{_on_rows(found)}"
    return f"{begun}, and stopped: {_so_far(found)}; {kept}"


def _so_far(found: Found) -> str:
    """The last step that was logged, its share of all, and its loss."""
    last = next((entry for entry in reversed(found.log) if "loss" in entry), None)
    if last is None:
        return "no step is logged yet"
    share = done(found, last)
    loss = last["loss"]
    told = f", training loss {loss:.3f}" if isinstance(loss, int | float) else ""
    return f"step {last['step']:,}" + (f" ({share:.0%})" if share is not None else "") + told


def done(found: Found, entry: Mapping[str, Any]) -> float | None:
    """Which share of a run was done at an entry of its log, 0 to 1; None where nobody knows."""
    sft = found.config.get("sft") or {}
    steps = upstream_value("sft", "max_steps", sft)
    if isinstance(steps, int) and steps > 0:
        return min(1.0, float(entry["step"]) / steps)
    epochs = upstream_value("sft", "num_train_epochs", sft)
    if isinstance(epochs, int | float) and epochs > 0 and "epoch" in entry:
        return min(1.0, float(entry["epoch"]) / epochs)
    return None


def model_name(found: Found) -> str:
    """The base model as people call it: the end of its name."""
    model = found.config.get("model") or {}
    name = str(model.get("name_or_path") or found.manifest.get("weights") or "the model")
    return name.rstrip("/").rpartition("/")[2] or name


def _trained(found: Found) -> str:
    model, lora = (found.config.get(name) or {} for name in ("model", "lora"))
    if model.get("init") == "random":
        return "trained from scratch"
    if not lora:
        return "fine-tuned in full"
    kind = "DoRA" if lora.get("use_dora") else "LoRA"
    quantization = found.config.get("quantization") or {}
    bits = "4-bit" if quantization.get("load_in_4bit") else "8-bit" if quantization else ""
    rank = upstream_value("lora", "r", lora)
    return f"fine-tuned with {kind} (r={rank})" + (f" on {bits} weights" if bits else "")


def _on_rows(found: Found) -> str:
    rows = (found.manifest.get("data") or {}).get("rows") or {}
    return f" on {rows['train']:,} rows" if "train" in rows else ""


def losses_before_and_after(metrics: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """{`validation`, or `validation NAME`: (loss before training, loss after it)}."""
    return {
        name: (part["before"]["loss"], part["after"]["loss"])
        for name, part in validation_parts(metrics.get("validation") or {}).items()
        if "before" in part and "after" in part
    }


def duration(seconds: float) -> str:
    """Seconds as people say them: 9.3 s, 4 min 12 s, 3 h 5 min, 2 d 4 h."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {left} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


# --- what to type next ----------------------------------------------------------------------------


def commands(found: Found) -> dict[str, str]:
    """{what for: command} of what can be done with a run as it is."""
    run, where = in_shell(f"run={found.folder.path}"), shlex.quote(str(found.folder.path))
    if found.state == "running":
        return {"look again, and rewrite this page every minute": f"sftpipe report {run} --watch"}
    if found.state == "stopped":
        return {
            "go on with it": f"sftpipe train {run} sft.resume_from_checkpoint=auto",
            "train it anew, in another folder": f"sftpipe train --from {where}",
        }
    return {
        "measure it against its base": f"sftpipe evaluate {run}",
        "talk to it": f"sftpipe chat {run}",
        "write it for llama.cpp and Ollama": f"sftpipe export {run} export=gguf",
        "write plain weights": f"sftpipe export {run} export=merged",
        "train it again, to the same numbers": f"sftpipe train --from {where}",
    }


# --- the end of a terminal ------------------------------------------------------------------------


def ending(found: Found) -> list[tuple[str | None, str]]:
    """The story of a finished run in at most twelve lines, as (heading, text)."""
    run = in_shell(f"run={found.folder.path}")
    return [
        (None, sentence(found)),
        (None, ""),
        *_figures(found.metrics),
        *_first_answer(found),
        (None, ""),
        ("report", str(found.folder.report)),
        ("next", f"sftpipe evaluate {run}"),
        ("", f"sftpipe chat {run}"),
    ]


def _figures(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """At most three lines: of validation, of test and of training."""
    parts = validation_parts(metrics.get("validation") or {})
    told = [
        f"{name.removeprefix('validation').strip()} loss {part['before']['loss']:.3f} -> "
        f"{part['after']['loss']:.3f}, perplexity {part['before']['perplexity']:.2f} -> "
        f"{part['after']['perplexity']:.2f}".strip()
        for name, part in parts.items()
        if "before" in part and "after" in part
    ]
    if told:
        more = f"; {len(told) - _SETS} more sets in the report" if len(told) > _SETS else ""
        yield "validation", "; ".join(told[:_SETS]).strip() + more
    if "test" in metrics:
        yield "test", f"loss {metrics['test']['loss']:.3f}"
    train = metrics["train"]
    memory = train["peak_memory_bytes"] / 2**30
    told_of = f"loss {train['loss']:.3f}, {train['tokens_per_s']:,.0f} tokens/s"
    yield "training", f"{told_of}, peak memory {memory:.1f} GiB"


_SETS = 2  # validation sets that are told of


def _first_answer(found: Found) -> Iterator[tuple[str, str]]:
    for prompt, before, after in answers_side_by_side(found.samples)[:1]:
        yield "prompt", one_line(prompt)
        yield "before", one_line(before)[:SHOWN]
        yield "after", one_line(after)[:SHOWN]
