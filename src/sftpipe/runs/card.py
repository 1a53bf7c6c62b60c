"""The model card: README.md of a run folder, and what `sftpipe evaluate` adds to it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from sftpipe.config.schema import TrainConfig
from sftpipe.errors import one_line
from sftpipe.export.card import adapter_use, hub_name, plain_use
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.summary import SHOWN, answers_side_by_side, metric_rows
from sftpipe.storage import write_text


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
