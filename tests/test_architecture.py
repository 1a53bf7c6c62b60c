"""The rules of docs/design.md, read from the sources with `ast`."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sftpipe

PACKAGE = Path(sftpipe.__file__).parent
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "bitsandbytes", "accelerate"}
# what `sftpipe config` loads
LIGHT = ("__init__", "__main__", "cli", "verbs", "config/", "errors", "storage", "terminal")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    }


def imports(node: ast.AST, *, in_functions: bool) -> Iterator[str]:
    """Dotted names of the modules that are imported below a node, less those for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "the package imports itself by its full name"
            yield child.module or ""
        elif is_type_checking(child) or (
            isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            and not in_functions
        ):
            continue
        yield from imports(child, in_functions=in_functions)


def importers(library: str) -> set[str]:
    """Files that import a library anywhere."""
    return {
        name
        for name, tree in TREES.items()
        if library in {module.split(".")[0] for module in imports(tree, in_functions=True)}
    }


def of_package(name: str) -> set[str]:
    """Files of the package that a file imports, anywhere in it."""
    modules = {
        module
        for module in imports(TREES[name], in_functions=True)
        if module.split(".")[0] == "sftpipe"
    }
    paths = {
        module.removeprefix("sftpipe").removeprefix(".").replace(".", "/") for module in modules
    }
    return {
        f"{path}.py" if f"{path}.py" in FILES else f"{path}/__init__.py".lstrip("/")
        for path in paths
    }


# --- the reader of the rules itself ---------------------------------------------------------------


def test_the_reader_finds_imports_wherever_they_stand() -> None:
    code = (
        "import a.b\nfrom c import d\nif TYPE_CHECKING:\n    import never\ntry:\n    import e\n"
        "except ImportError:\n    pass\n"
        "class C:\n    import f\n    def g(self):\n        import inner"
    )
    assert set(imports(ast.parse(code), in_functions=False)) == {"a.b", "c", "e", "f"}
    assert set(imports(ast.parse(code), in_functions=True)) == {"a.b", "c", "e", "f", "inner"}


def test_the_reader_sees_the_package() -> None:
    assert {"cli.py", "data/encode.py", "data/preflight/report.py"} <= set(FILES)
    assert of_package("data/labels.py") == set()
    assert of_package("config/options.py") == {"errors.py"}


# --- who may import what --------------------------------------------------------------------------

# The whole import rule: a module imports from the rows above its own, and from its own.
ROWS = [
    ["errors.py", "terminal.py", "storage.py", "environment.py", "ranks.py"],
    ["config/"],
    ["hub.py", "tokenizer/"],
    ["data/"],
    ["model/"],
    ["training/"],
    ["evaluation/"],
    ["export/"],
    ["runs/"],
    ["sweeps/"],
    ["tables.py", "launch.py"],
    ["pipeline.py"],
    ["bench/"],
    ["run_verbs.py", "sweep_verb.py"],
    ["verbs.py"],
    ["cli.py"],
    ["__main__.py", "worker.py", "preloaded.py"],
]


def row_of(name: str) -> int:
    """The row of `ROWS` that a file belongs to."""
    place = f"{name.split('/')[0]}/" if "/" in name else name
    (row,) = (row for row, places in enumerate(ROWS) if place in places)
    return row


@pytest.mark.parametrize("name", [name for name in FILES if name != "__init__.py"])
def test_imports_flow_one_way(name: str) -> None:
    targets = of_package(name) - {"__init__.py"}  # the public face has no code of its own
    assert {target for target in targets if row_of(target) > row_of(name)} == set()


def test_only_the_command_line_imports_the_public_face() -> None:
    importing = {name for name in FILES if "__init__.py" in of_package(name)}
    assert importing <= {"cli.py"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    edges = {name: of_package(name) - {"__init__.py"} for name in FILES if name != "__init__.py"}
    while leaves := {name for name, targets in edges.items() if not targets & set(edges)}:
        edges = {name: targets for name, targets in edges.items() if name not in leaves}
    assert edges == {}


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("hydra", {"config/hydra.py", "config/multirun.py"}),
        ("omegaconf", {"config/hydra.py", "config/multirun.py"}),
        ("optuna", {"sweeps/search.py"}),
        ("submitit", {"sweeps/slurm.py", "sweeps/slurm_job.py"}),
        (
            "trl",
            {
                "training/trainer.py",
                "data/packing.py",
                "bench/data.py",
                "bench/epoch.py",
                "bench/step.py",
            },
        ),
        (
            "peft",
            {
                "model/adapters.py",
                "model/fast.py",
                "model/further.py",
                "model/initial.py",
                "model/merge.py",
                "training/sharding.py",
                "training/trainer.py",
            },
        ),
        ("bitsandbytes", {"model/load.py", "model/fast.py"}),
        ("jinja2", {"data/chat_template.py", "runs/report/page.py"}),
        (
            "tokenizers",
            {
                "tokenizer/train.py",
                "tokenizer/make.py",
                "model/weights.py",
                "data/version.py",
                "export/gguf_tokenizer.py",
            },
        ),
        (
            "pyarrow",
            {
                "data/arrow_rows.py",
                "data/stored.py",
                "data/text_files.py",
                "data/rows.py",
                "data/preflight/facts.py",
            },
        ),
        (
            "huggingface_hub",
            {"hub.py", "model/architecture.py", "model/weights.py", "export/upload.py"},
        ),
        ("gguf", {"export/gguf.py", "export/gguf_tokenizer.py", "model/weights.py"}),
        ("xllamacpp", {"export/gguf_proof.py"}),
        ("charset_normalizer", {"data/encoding_guess.py"}),
    ],
)
def test_a_library_is_imported_by_its_owners_alone(library: str, allowed: set[str]) -> None:
    found = importers(library)
    assert found, f"nobody imports {library}: is the rule still about something?"
    assert found <= allowed


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(LIGHT)])
def test_what_every_command_loads_imports_nothing_heavy(name: str) -> None:
    modules = imports(TREES[name], in_functions=False)
    assert HEAVY & {module.split(".")[0] for module in modules} == set()


@pytest.mark.parametrize(
    "name",
    [
        "config/patterns.py",
        "data/samples.py",
        "data/messages.py",
        "data/layouts.py",
        "data/formats.py",
        "data/labels.py",
    ],
)
def test_pure_modules_import_the_standard_library_and_pure_modules_alone(name: str) -> None:
    roots = {module.split(".")[0] for module in imports(TREES[name], in_functions=True)}
    assert roots - sys.stdlib_module_names - {"sftpipe"} == set()
    pure = {"errors.py", "config/schema.py", "config/patterns.py"}
    assert {target for target in of_package(name) if not target.startswith("data/")} <= pure


# --- the public face ------------------------------------------------------------------------------


def test_the_public_names_are_sorted_and_there() -> None:
    assert sftpipe.__all__ == sorted(set(sftpipe.__all__))
    assert all(getattr(sftpipe, name) is not None for name in sftpipe.__all__)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'sftpipe' has no attribute 'trian'"):
        _ = sftpipe.trian


def test_importing_changes_no_environment_variable_and_loads_nothing_heavy() -> None:
    code = (
        "import json, os, sys\nbefore = dict(os.environ)\n"
        "import sftpipe, sftpipe.cli, sftpipe.config\n"
        "loaded = sorted({name.split('.')[0] for name in sys.modules})\n"
        "print(json.dumps({'same': before == dict(os.environ), 'loaded': loaded}))"
    )
    found = json.loads(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
    )
    assert found["same"]
    assert HEAVY & set(found["loaded"]) == set()


def test_a_public_name_loads_its_own_module_alone() -> None:
    code = (
        "import sys, sftpipe; sftpipe.compose, sftpipe.TrainConfig, sftpipe.Run; "
        "print(sorted({'torch', 'trl'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


# --- how it is written ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_module_public_class_and_public_function_says_what_it_is(name: str) -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in (TREES[name], *TREES[name].body) if isinstance(node, documented)]
    public = [node for node in nodes if not getattr(node, "name", "module").startswith("_")]
    assert [getattr(node, "name", "module") for node in public if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_left_for_later(name: str) -> None:
    text = FILES[name].read_text(encoding="utf-8")
    assert [word for word in ("TODO", "FIXME", "XXX", "NotImplementedError") if word in text] == []


LONGEST = 45  # lines of a function; one that is longer says why in a comment that begins so:
REASON = "# longer than most:"


@pytest.mark.parametrize("name", FILES)
def test_functions_are_short_or_say_why_not(name: str) -> None:
    lines = FILES[name].read_text(encoding="utf-8").splitlines()
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > LONGEST
        and not any(REASON in line for line in lines[node.lineno - 1 : node.end_lineno])
    ]
    assert long == []
