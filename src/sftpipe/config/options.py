"""The YAML that comes with sftpipe, and the user's own recipes.

Where the files are, which options they make, and what each says of itself.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

from sftpipe.errors import ConfigError, Problem, one_line


def shipped_dir() -> Path:
    """The folder of `conf` and `recipes`: the package in a wheel, else the repository."""
    package = Path(__file__).parents[1]
    return package if (package / "conf").is_dir() else package.parents[1]


def conf_dir() -> Path:
    """The `conf` folder: one folder a group, one YAML file an option."""
    return shipped_dir() / "conf"


def find_recipes() -> dict[str, Path]:
    """{name: file} of the shipped recipes and those in `recipes/` of the working folder.

    Raises:
        ConfigError: a name is in both.
    """
    recipes: dict[str, Path] = {}
    for folder in dict.fromkeys(((shipped_dir() / "recipes").resolve(), Path("recipes").resolve())):
        for file in sorted(folder.glob("*.yaml")):
            if file.stem in recipes:
                raise ConfigError(
                    Problem(
                        f"recipe={file.stem}",
                        f"two recipes of that name: {recipes[file.stem]} and {file}",
                        fix=f"rename {file}",
                    )
                )
            recipes[file.stem] = file
    return recipes


def groups() -> dict[str, list[str]]:
    """{group: its options, the default first}, in the order of conf/config.yaml; `recipe` leads."""
    return {"recipe": sorted(find_recipes()), **_groups_of("config")}


def run_groups() -> dict[str, list[str]]:
    """The same of conf/run.yaml: the groups of the verbs on a finished run."""
    return _groups_of("run")


def _groups_of(primary: str) -> dict[str, list[str]]:
    found, conf = {}, conf_dir()
    for entry in read_yaml(conf / f"{primary}.yaml")["defaults"]:
        for group, default in entry.items() if isinstance(entry, dict) else ():
            if (conf / group).is_dir():
                options = sorted(file.stem for file in (conf / group).glob("*.yaml"))
                found[group] = sorted(options, key=lambda option: option != default)
    return found


def header(file: Path) -> str:
    """First comment line of a YAML file or template: what the option is, in one line."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith(("#", "{#")) and "@package" not in line:
            return line.strip("{#-} ")
    return ""


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: it is no YAML, or no mapping; names the file.
    """
    return dict(_read_yaml(file, file.stat().st_mtime_ns))


@functools.lru_cache(maxsize=256)
def _read_yaml(file: Path, _changed: int) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            Problem(str(file), f"no valid YAML: {one_line(error)}", fix="fix that line")
        ) from None
    if loaded is not None and not isinstance(loaded, dict):
        raise ConfigError(
            Problem(
                str(file), f"a YAML {type(loaded).__name__}", allowed="keys and values (a mapping)"
            )
        )
    return loaded or {}


def display(file: Path) -> str:
    """A file's name for people: conf/... or recipes/... for ours, ./recipes/... for the user's."""
    for root, name in (
        (shipped_dir() / "recipes", "recipes"),
        (conf_dir(), "conf"),
        (Path("recipes"), "./recipes"),
    ):
        if file.resolve().is_relative_to(root.resolve()):
            return f"{name}/{file.resolve().relative_to(root.resolve())}"
    return str(file)


def how_to_write(ours: str) -> str:
    """How to write a key (`lora.r=...`), a group with its options, or one option of a group."""
    if "=" in ours:
        return f"write `{ours}`"
    options = groups().get(ours)
    return f"write {ours}=OPTION, one of {', '.join(options)}" if options else f"write {ours}=..."
