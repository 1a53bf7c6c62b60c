"""The one place that imports code which a config names: a security boundary.

A config can come from somebody else, so a dotted path is imported only if its first name is
`sftpipe` or one of `allowed_targets`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from sftpipe.errors import DataError, Problem, nearest

_DOTTED_PATH = "package.module.function, installed or in the working folder"


def load_function(path: str, key: str, allowed: Sequence[str]) -> Callable[..., Any]:
    """The function that a dotted path names, looked up in the working folder too.

    Args:
        path: `package.module.function`.
        key: the config key that holds the path, for messages.
        allowed: top-level names that paths may begin with, beside `sftpipe`.

    Raises:
        DataError: the path leads nowhere, or begins with a name that is not allowed.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in path.split(".")):
        raise DataError(Problem(key, f"{path!r} is no dotted path", allowed=_DOTTED_PATH))
    root = path.split(".")[0]
    if root not in ("sftpipe", *allowed):
        problem = Problem(
            key,
            f"{path!r} would run code of {root!r}",
            allowed=", ".join(("sftpipe", *allowed)),
            fix=f"`allowed_targets=[{','.join((*allowed, root))}]`",
        )
        raise DataError(problem)
    module = _import(module_name, path, key)
    function = getattr(module, name, None)
    if not callable(function):
        raise DataError(_no_function(module, module_name, name, key))
    return function  # type: ignore[no-any-return]


def _import(module_name: str, path: str, key: str) -> ModuleType:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise DataError(Problem(key, f"{path!r}: {error}", allowed=_DOTTED_PATH)) from None
    except Exception as error:  # a user's code can raise anything
        found = f"{module_name} raised {type(error).__name__} when it was imported: {error}"
        raise DataError(Problem(key, found, fix="fix the module")) from error
    finally:
        sys.path.remove(folder)


def _no_function(module: ModuleType, module_name: str, name: str, key: str) -> Problem:
    names = [
        own for own, value in vars(module).items() if callable(value) and not own.startswith("_")
    ]
    match = nearest(name, names)
    return Problem(
        key,
        f"{module_name} has no function {name!r}",
        allowed=", ".join(names),
        fix=f"`{key}={module_name}.{match}`" if match else "",
    )
