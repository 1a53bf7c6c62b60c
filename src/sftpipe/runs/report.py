"""The loss curve and the model card, which people look at when a run is over."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import yaml

from sftpipe.config.schema import TrainConfig
from sftpipe.config.validation_sets import validation_losses
from sftpipe.errors import one_line
from sftpipe.export.card import adapter_use, hub_name, plain_use
from sftpipe.runs.folder import RunFolder
from sftpipe.storage import write_text

BOILERPLATE = 4  # words; a longer beginning that all prompts share comes from their format
SHOWN = 200  # characters of a prompt or an answer in a table


def plot_loss(folder: RunFolder) -> None:
    """loss.png from log.jsonl: training loss as a line, validation loss as points.

    Over epochs, and over the tokens seen in training.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    history = folder.read_log()
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    train = [(entry["epoch"], entry["loss"]) for entry in history if "loss" in entry]
    if train:
        axes.plot(*zip(*train, strict=True), color="tab:blue", label="training")
    validation = _validation_curves(history)
    for number, (name, points) in enumerate(validation.items(), start=1):
        color, style = f"C{number}", "o--" if len(points) > 2 else "o"
        axes.plot(*zip(*points, strict=True), style, color=color, label=name)
        for epoch, loss in (points[0], points[-1]):
            axes.annotate(
                f"{loss:.2f}", (epoch, loss), textcoords="offset points", xytext=(0, 8), ha="center"
            )
    axes.set_xlabel(
        f"epoch ({max((entry['step'] for entry in history), default=0):,} optimizer steps)"
    )
    top = axes.secondary_xaxis("top")
    top.set_xticks(*token_ticks(history))
    top.set_xlabel("training tokens seen")
    axes.set_ylabel("loss per trained token")
    axes.margins(y=0.12)  # room for the figures
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines["right"].set_visible(False)
    if train or validation:
        axes.legend(frameon=False)
    partial = folder.path / f".{folder.loss_curve.name}.partial"
    figure.savefig(partial, format="png")
    partial.replace(folder.loss_curve)


def _validation_curves(
    history: Sequence[Mapping[str, Any]],
) -> dict[str, list[tuple[float, float]]]:
    """{`validation`, or `validation NAME`: [(epoch, loss), ...]} of a log."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for entry in history:
        for name, loss in validation_losses(entry).items():
            curves.setdefault(name, []).append((entry["epoch"], loss))
    return curves


def token_ticks(history: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[str]]:
    """Round numbers of training tokens: (epochs at which they were seen, texts such as 20k).

    Steps between two log entries count evenly.
    """
    from matplotlib.ticker import EngFormatter, MaxNLocator

    seen = [
        (0, 0.0),
        *((entry["num_tokens"], entry["epoch"]) for entry in history if "loss" in entry),
    ]
    tokens, epochs = zip(*seen, strict=True)
    ticks = [
        tick
        for tick in MaxNLocator(6, integer=True).tick_values(0, tokens[-1])
        if 0 <= tick <= tokens[-1]
    ]
    return np.interp(ticks, tokens, epochs).tolist(), [EngFormatter(sep="")(tick) for tick in ticks]


def write_card(
    folder: RunFolder, cfg: TrainConfig, weights: str, embedding_rows: tuple[int, int]
) -> None:
    """README.md of the run folder: where the model comes from, numbers, answers, how to load it.

    Args:
        folder: the run folder.
        cfg: the config.
        weights: identity of the base weights.
        embedding_rows: how many the base has, and how many the run has.
    """
    metrics, samples = folder.read_metrics(), folder.read_samples()
    name = cfg.recipe or folder.path.name
    made = "Trained from scratch, from" if cfg.model.init == "random" else "Fine-tuned from"
    head = {
        "library_name": "peft" if cfg.lora else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sftpipe", "sft"],
    }
    if base := hub_name(weights):
        head["base_model"] = base
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {name}\n",
        f"{made} `{weights}` with sftpipe. `{folder.config.name}` holds the whole config, "
        f"`{folder.manifest.name}` the versions and hashes.\n",
        "## Numbers\n\n" + metrics_table(metrics),
        f"![Loss]({folder.loss_curve.name})\n",
    ]
    if samples:
        parts.append("## Answers before and after\n\n" + samples_table(samples))
    parts.append("## Use\n\n" + _usage(cfg, weights, embedding_rows))
    write_text(folder.card, "\n".join(parts))


def write_evaluation(folder: RunFolder, cfg: TrainConfig, found: Mapping[str, Any]) -> None:
    """Put the figures of `sftpipe evaluate` into the model card, and into its hub metadata.

    They take the place of earlier ones; what a user wrote into the card stays.

    Args:
        folder: the run folder.
        cfg: the config.
        found: the content of evaluation.json.
    """
    text = folder.card.read_text(encoding="utf-8") if folder.card.is_file() else ""
    match = _FRONT_MATTER.match(text)
    head = (yaml.safe_load(match[1]) if match else None) or {}
    body = _EVALUATION.sub("", text[match.end() :] if match else text)
    metrics = [
        {"type": name, "name": name, "value": round(one["run"], 6)}
        for name, one in found["metrics"].items()
    ]
    data = {"name": cfg.dataset.name or cfg.dataset.path, "type": cfg.dataset.path}
    result = {"task": {"type": "text-generation"}, "dataset": data, "metrics": metrics}
    head["model-index"] = [{"name": cfg.recipe or folder.path.name, "results": [result]}]
    rows = "".join(
        f"| {name} | {one['base']:.3f} | {one['run']:.3f} | {one['difference']:+.3f} "
        f"| {one['interval'][0]:+.3f} to {one['interval'][1]:+.3f} | {one['rows']} |\n"
        for name, one in found["metrics"].items()
    )
    section = (
        f"## Evaluation\n\n**{found['verdict']}**: {found['sentence']}.\n\n"
        f"| | {found['base']} | run | difference | 95 % interval | rows |\n"
        f"|---|---|---|---|---|---|\n{rows}\n"
    )
    before, use, after = body.partition("## Use\n")
    body = f"{before}{section}{use}{after}" if use else f"{body}\n{section}"
    write_text(folder.card, f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n{body}")


# of a card: its metadata, and the section that `write_evaluation` writes
_FRONT_MATTER = re.compile(r"---\n(.*?)^---\n", flags=re.DOTALL | re.MULTILINE)
_EVALUATION = re.compile(r"^## Evaluation\n.*?(?=^## |\Z)", flags=re.DOTALL | re.MULTILINE)


def metric_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures that matter, as (name, text)."""
    train, rows = metrics["train"], []
    for name, part in _validation_parts(metrics.get("validation", {})).items():
        if "before" in part and "after" in part:
            before, after = part["before"], part["after"]
            rows.append((f"{name} loss", f"{before['loss']:.3f} -> {after['loss']:.3f}"))
            perplexity = f"{before['perplexity']:.2f} -> {after['perplexity']:.2f}"
            rows.append((f"{name} perplexity", perplexity))
    if "test" in metrics:
        rows.append(("test loss", f"{metrics['test']['loss']:.3f}"))
    rows.append(("training loss", f"{train['loss']:.3f} over {train['steps']} steps"))
    rows.append(
        ("training time", f"{train['runtime_s']:.0f} s, {train['tokens_per_s']:.0f} tokens/s")
    )
    rows.append(("peak memory", f"{train['peak_memory_bytes'] / 2**30:.1f} GiB"))
    return rows


def _validation_parts(validation: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """{`validation`, or `validation NAME`: {phase: numbers}} of the part of metrics.json."""
    if any("loss" in part for part in validation.values()):  # the phases of the only set
        return {"validation": validation}
    return {f"validation {name}": part for name, part in validation.items()}


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """The figures that matter, in Markdown."""
    return "| | |\n|---|---|\n" + "".join(
        f"| {name} | {text} |\n" for name, text in metric_rows(metrics)
    )


def samples_table(samples: Sequence[Mapping[str, Any]]) -> str:
    """Answers before and after training, in Markdown."""

    def cell(text: str) -> str:
        return one_line(text)[:SHOWN].replace("|", "\\|")

    lines = ["| " + " | ".join(map(cell, row)) + " |\n" for row in answers_side_by_side(samples)]
    return "| prompt | before | after |\n|---|---|---|\n" + "".join(lines)


def answers_side_by_side(samples: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(prompt as people see it, answer before, answer after) of the rows of samples.jsonl.

    A resumed run may ask other prompts than it began with; what was not asked is a dash.
    """
    before, after = (
        [(row["prompt"], row["completion"]) for row in samples if row["phase"] == phase]
        for phase in ("before", "after")
    )
    if [prompt for prompt, _ in before] != [prompt for prompt, _ in after]:
        asked = dict.fromkeys(prompt for prompt, _ in (*before, *after))
        before, after = (
            [(prompt, dict(rows).get(prompt, "-")) for prompt in asked] for rows in (before, after)
        )
    prompts = short_prompts([prompt for prompt, _ in before])
    return [(prompt, b, a) for prompt, (_, b), (_, a) in zip(prompts, before, after, strict=True)]


def short_prompts(prompts: Sequence[str]) -> list[str]:
    """Prompts on one line each, for people.

    Without the words that all of them begin with; of long ones the end.
    """
    lines = [text.split() for text in prompts]
    shared = _shared_words(lines)
    if shared <= BOILERPLATE or any(len(line) == shared for line in lines):
        return [_end(" ".join(line)) for line in lines]
    return [_end("... " + " ".join(line[shared:])) for line in lines]


def _shared_words(lines: Sequence[Sequence[str]]) -> int:
    """Number of words that all lines begin with; 0 for a single line."""
    if len(lines) < 2:
        return 0
    columns = zip(*lines, strict=False)
    return len(list(takewhile(lambda words: len(set(words)) == 1, columns)))


def answer_lines(phase: str, samples: Sequence[Mapping[str, Any]]) -> str:
    """The first of the answers after an epoch or a step (`epoch 3`), below its prompt."""
    asked = short_prompts([row["prompt"] for row in samples])[0]
    return f"{phase}   {asked}\n     ->   {one_line(samples[0]['completion'])}"


def _end(line: str) -> str:
    """The end of a line of more than `SHOWN` characters: an answer follows it."""
    if len(line) <= SHOWN:
        return line
    end = line[-SHOWN + 4 :]
    return "... " + end[end.find(" ") + 1 :]


def _usage(cfg: TrainConfig, weights: str, embedding_rows: tuple[int, int]) -> str:
    with_sftpipe = (
        '```python\nimport sftpipe\n\nrun = sftpipe.load_run("PATH/OF/THIS/FOLDER")\n'
        'print(run.generate("Hello!")[0].text)\n'
        "model, tokenizer = run.load_model(), run.tokenizer\n```\n"
    )
    if not cfg.lora:
        return f"{with_sftpipe}\nor without sftpipe:\n\n{plain_use('PATH/OF/THIS/FOLDER')}"
    without = f"or without sftpipe, on the base weights `{weights}`"
    use = adapter_use(
        "PATH/OF/THIS/FOLDER",
        weights,
        cfg.lora,
        resize_lines(*embedding_rows),
    )
    return f"{with_sftpipe}\n{without}:\n\n{use}"


def resize_lines(before: int, after: int) -> list[str]:
    """Lines of Python that give a base the embedding that the adapter was trained with.

    New rows that are not trained are the mean of the old ones.
    """
    if before == after:
        return []
    return [
        f"base.resize_token_embeddings({after}, mean_resizing=False)",
        "for table in (base.get_input_embeddings(), base.get_output_embeddings()):",
        f"    table.weight.data[{before}:] = table.weight.data[:{before}].mean(dim=0)",
    ]
