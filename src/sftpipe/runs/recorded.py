"""`run=FOLDER sft.resume_from_checkpoint=auto` alone: go on with a run by its own config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sftpipe.config.hydra import from_recorded, values_of
from sftpipe.config.options import groups
from sftpipe.config.schema import TrainConfig
from sftpipe.runs.folder import RunFolder


def recorded_config(words: Sequence[str]) -> TrainConfig | None:
    """The config of the run that a command line names, with the keys that it changes.

    Args:
        words: overrides. A recipe or another option of a group makes a config of their own.

    Returns:
        None where the words make a config of their own, or name no run that goes on.

    Raises:
        ConfigError: the recorded config holds what this version does not know, or a word is wrong.
        RunError: the recorded config is damaged.
    """
    typed = {key.lstrip("+~"): value for key, _, value in (word.partition("=") for word in words)}
    named = typed.get("run", "").strip("'\"")
    goes_on = typed.get("sft.resume_from_checkpoint") == "auto"
    if not named or not goes_on or not typed.keys().isdisjoint(groups()):
        return None
    files = RunFolder(Path(named))
    if not files.manifest.is_file():
        return None
    return from_recorded(files.read_config(), str(files.config), values_of(words))
