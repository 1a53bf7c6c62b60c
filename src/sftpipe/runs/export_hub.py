"""`export=hub`: files of a run that others may have, and a card that says no more than they."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftpipe.config.schema import ExportConfig
from sftpipe.errors import ExportError, Problem
from sftpipe.export.card import adapter_use, drift_lines, front_matter, plain_use
from sftpipe.export.upload import upload
from sftpipe.model.architecture import model_config
from sftpipe.model.embedding import rows_for
from sftpipe.runs.card import metrics_table, resize_lines, samples_table
from sftpipe.runs.export_merged import export_merged, facts_of, read_facts
from sftpipe.runs.folder import RunFolder

if TYPE_CHECKING:
    from sftpipe.runs.load import Run


def export_hub(run: Run, cfg: ExportConfig, merged: Path) -> dict[str, Any]:
    """Upload an adapter, or merged weights with their tokenizer.

    Args:
        run: finished.
        cfg: the `export` group.
        merged: the folder of the merged weights, which are made where there are none.

    Raises:
        ExportError: there is no adapter, the repository is not this run's, or the upload fails.
    """
    if cfg.what == "adapter" and not run.config.lora:
        found = "adapter, and this run trained all weights"
        raise ExportError(Problem("export.what", found, fix="`export.what=merged`"))
    folder, facts = run.dir, facts_of(run)
    if cfg.what == "merged":
        folder, facts = merged, _merged(run, cfg, merged)
    assert cfg.repo_id is not None  # config/requests.py
    card = hub_card(run, cfg, facts)
    sent = upload(folder, cfg.repo_id, private=cfg.private, run_id=facts["id"], card=card)
    return {
        **facts,
        "target": "hub",
        "what": cfg.what,
        "private": cfg.private,
        "url": sent.url,
        "commit": sent.commit,
        "files": dict(sent.files),
    }


def _merged(run: Run, cfg: ExportConfig, folder: Path) -> dict[str, Any]:
    """The facts of merged weights as they are asked for, made now or before.

    Raises:
        ExportError: other ones are in their folder.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        return export_merged(run, cfg, folder)
    facts = read_facts(folder)
    asked = {"id": run.identity(), "base": cfg.base if run.config.lora else None}
    asked |= {} if cfg.dtype == "auto" else {"dtype": cfg.dtype}
    other = [name for name, value in asked.items() if facts.get(name) != value]
    if other:
        found = f"{folder} holds an export with another {other[0]}"
        raise ExportError(Problem("export.what", found, fix="remove that folder"))
    return facts


def hub_card(run: Run, cfg: ExportConfig, facts: Mapping[str, Any]) -> str:
    """The card of a repository; of the data it holds nothing, except with `export.samples`."""
    files, is_adapter = RunFolder(run.dir), cfg.what == "adapter"
    base = str(facts["trained_on"])
    parts = [
        f"# {str(cfg.repo_id).partition('/')[2]}\n",
        f"Fine-tuned from `{base}` with sftpipe.\n",
        "## Numbers\n\n" + metrics_table(run.metrics),
    ]
    if "drift" in facts:
        parts.append("## Merged and unmerged\n\n" + drift_lines(facts))
    if cfg.samples:
        parts.append("## Answers before and after\n\n" + samples_table(files.read_samples()))
    use = (
        adapter_use(str(cfg.repo_id), base, run.config.lora, _resizing(run))
        if is_adapter
        else plain_use(str(cfg.repo_id))
    )
    parts.append("## Use\n\n" + use)
    return front_matter(facts, "peft" if is_adapter else "transformers") + "\n".join(parts)


def _resizing(run: Run) -> list[str]:
    """Lines of Python that give the base the embedding of the run."""
    before = model_config(run.config.model, run.weights).vocab_size
    multiple = run.config.tokenizer.pad_to_multiple_of
    return resize_lines(before, rows_for(before, len(run.tokenizer), multiple))
