"""Opening a run folder, and what is said of one that is none or is not finished."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sftpipe.config.schema import to_plain
from sftpipe.errors import ConfigError, RunError
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.load import load_run
from support.configs import compose


def test_a_finished_run_gives_its_config_and_its_numbers(tmp_path: Path) -> None:
    cfg, files = compose(["recipe=yoda", "lora.r=8"]), RunFolder(tmp_path)
    files.config.write_text(yaml.safe_dump(to_plain(cfg)))
    files.write_metrics({"train": {"loss": 1.5}})
    files.close()

    run = load_run(str(tmp_path))

    assert (run.dir, run.config, run.metrics) == (tmp_path, cfg, {"train": {"loss": 1.5}})


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (
            ["manifest.json", "config.yaml", "model.safetensors"],
            "an unfinished run\n    allowed: a run folder with a COMPLETE file\n"
            "    the command that began it, with sft.resume_from_checkpoint=auto, goes on with it",
        ),
        (["config.yaml"], "no run of sftpipe\n    allowed: a run folder with a COMPLETE file"),
    ],
)
def test_a_folder_without_a_finished_run_is_not_opened(
    files: list[str], found: str, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).touch()

    with pytest.raises(RunError) as caught:
        load_run(tmp_path)

    assert str(caught.value) == f"{tmp_path}: {found}"


def test_a_recorded_key_that_is_unknown_names_the_file(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    files.config.write_text(yaml.safe_dump({**to_plain(compose()), "sedd": 1}))
    files.close()

    with pytest.raises(ConfigError) as caught:
        load_run(tmp_path)

    assert [one.where for one in caught.value.problems] == [f"sedd ({files.config})"]
