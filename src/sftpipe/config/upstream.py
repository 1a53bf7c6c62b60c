"""Field names and types of the upstream config classes, read from their installed sources.

`BitsAndBytesConfig` takes any keyword without complaint and importing `SFTConfig` costs seconds of
torch, so the sources are parsed with `ast` instead: exact for the versions that are installed, and
quick enough for every `sftpipe config`.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

# class -> the files that hold it and its bases, base first; a later field replaces an earlier one
_SOURCES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "SFTConfig": (
        ("transformers", "training_args.py", "TrainingArguments"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/sft_config.py", "SFTConfig"),
    ),
    "LoraConfig": (
        ("peft", "config.py", "PeftConfigMixin"),
        ("peft", "config.py", "PeftConfig"),
        ("peft", "tuners/lora/config.py", "LoraConfig"),
    ),
    "BitsAndBytesConfig": (("transformers", "utils/quantization_config.py", "BitsAndBytesConfig"),),
}


@functools.cache
def upstream_fields(name: str) -> dict[str, str | None]:
    """Fields of `SFTConfig`, `LoraConfig` or `BitsAndBytesConfig`.

    Returns:
        {field name: its annotation as written, or None where the source gives none}
    """
    fields: dict[str, str | None] = {}
    for package, relative, class_name in _SOURCES[name]:
        fields |= _class_fields(_package_dir(package) / relative, class_name)
    return fields


def _package_dir(package: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"{package} is not installed; sftpipe needs it: pip install {package}"
        )
    return Path(spec.origin).parent


def _class_fields(source: Path, class_name: str) -> dict[str, str | None]:
    """Dataclass fields of a class; the parameters of its `__init__` where it is no dataclass."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    body = next(
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == class_name
    )
    fields: dict[str, str | None] = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            annotation = ast.unparse(node.annotation)
            init_false = isinstance(node.value, ast.Call) and any(
                k.arg == "init" and isinstance(k.value, ast.Constant) and k.value.value is False
                for k in node.value.keywords
            )
            if (
                not node.target.id.startswith("_")
                and "ClassVar" not in annotation
                and not init_false
            ):
                fields[node.target.id] = annotation
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            arguments = node.args.args[1:] + node.args.kwonlyargs
            fields |= {
                a.arg: ast.unparse(a.annotation) if a.annotation else None for a in arguments
            }
    return fields


def accepts(annotation: str | None, value: object) -> bool:
    """Whether a plain value (as YAML gives it) fits an annotation such as `float | str | None`.

    Annotations with a name that is no plain type (`Literal[...]`, `EvaConfig`) accept everything:
    upstream checks those itself.
    """
    if annotation is None or value is None:
        return True
    names = _plain_types(annotation)
    if names is None:
        return True
    if isinstance(value, bool):
        return "bool" in names
    if isinstance(value, int):
        return bool(names & {"int", "float"})
    if isinstance(value, float):
        return "float" in names or ("int" in names and value.is_integer())
    if isinstance(value, str):
        return "str" in names
    return bool(names & {"list", "dict", "tuple", "set"})


_PLAIN = {"int", "float", "bool", "str", "None", "list", "dict", "tuple", "set"}


def _plain_types(annotation: str) -> set[str] | None:
    """{"float", "None"} of "Optional[float]"; None where a part is no plain type.

    Enums stand beside `str` upstream (`SaveStrategy | str`) and are written as strings, so they
    count as `str`.
    """
    node = ast.parse(annotation, mode="eval").body
    if isinstance(node, ast.Constant) and isinstance(node.value, str):  # a quoted annotation
        return _plain_types(node.value)

    def walk(part: ast.expr) -> set[str]:
        if isinstance(part, ast.BinOp):
            return walk(part.left) | walk(part.right)
        if isinstance(part, ast.Subscript):
            name = ast.unparse(part.value).rsplit(".")[-1]
            if name in {"Optional", "Union"}:
                inner = part.slice.elts if isinstance(part.slice, ast.Tuple) else [part.slice]
                return set().union(*map(walk, inner)) | ({"None"} if name == "Optional" else set())
            return {name.lower()}
        return {ast.unparse(part)}

    names = walk(node)
    if "str" in names and "literal" not in names:
        return names & _PLAIN
    return names if names <= _PLAIN else None
