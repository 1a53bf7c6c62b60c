"""`sftpipe export`: a finished run leaves its folder, and what leaves is compared with the run."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftpipe.config.schema import ExportConfig
from sftpipe.errors import ExportError, Problem, RunError, override
from sftpipe.storage import writing
from sftpipe.terminal import quiet, quiet_libraries

if TYPE_CHECKING:
    from sftpipe.runs.load import Run


def export(run: Run, cfg: ExportConfig) -> dict[str, Any]:
    """Write the run in the form that `export.target` names.

    Returns:
        What was written and measured: the content of export.json, and its `folder` or `url`.

    Raises:
        ExportError: the folder is there already, or what would leave is not what was trained.
        RunError: the run has no weights, or its base has changed.
        StorageError: the disk has no room.
    """
    _check_weights(run)
    _check_base(run, cfg)
    with quiet(), quiet_libraries():
        from sftpipe.runs.export_gguf import export_gguf
        from sftpipe.runs.export_hub import export_hub
        from sftpipe.runs.export_merged import export_merged

        if cfg.target == "hub":
            return export_hub(run, cfg, run.dir / "export" / "merged")
        folder = _new_folder(run, cfg)
        write = {"merged": export_merged, "gguf": export_gguf}[cfg.target]
        return {**write(run, cfg, folder), "folder": str(folder)}


# --- the folder -----------------------------------------------------------------------------------


def _check_weights(run: Run) -> None:
    """A run folder from which somebody removed the weights."""
    names = "adapter_model.safetensors" if run.config.lora else "model*.safetensors"
    if not any(run.dir.glob(names)):
        found = f"no weights: {names} is not there"
        fix = "put the file back, or train the run again in another folder"
        raise RunError(Problem(str(run.dir), found, fix=fix))


def _check_base(run: Run, cfg: ExportConfig) -> None:
    if cfg.base == "original" or run.config.quantization:
        return
    found = "dequantized, and the base of this run was not quantized"
    raise ExportError(Problem("export.base", found, fix="`export.base=original`"))


def _new_folder(run: Run, cfg: ExportConfig) -> Path:
    """Where the export goes; its parent is made.

    Raises:
        ExportError: it exists.
    """
    default = run.dir / "export" / cfg.target
    folder = Path(cfg.output).expanduser() if cfg.output else default
    if folder.exists():
        others = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
        free = next(one for one in others if not one.exists())
        fix = f"{override('export.output', str(free))}, or remove the folder"
        raise ExportError(Problem("export.output", f"{folder} exists", fix=fix))
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    return folder
