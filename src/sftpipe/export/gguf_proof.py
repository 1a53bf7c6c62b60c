"""What a GGUF file does, against what it is to do: its logits, its token ids, its answers.

Logits are those of transformers, which reads the file's tensors; its tokenizer for GGUF is of no
use, because it gives other ids. Ids and answers are those of llama.cpp itself: xllamacpp's server,
in a process of its own, asked over HTTP.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftpipe.errors import ExportError, Problem, one_line
from sftpipe.terminal import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKAGE = "xllamacpp"
_TIMEOUT_S = 600.0  # of one request: a prompt of thousands of tokens on a few cores
_LOAD_CONTEXT = 64  # positions beyond the longest prompt and its answer


@dataclass(frozen=True)
class Limits:
    """How near the logits of a file have to be to those of the weights that it was made of.

    top1: the least share of tokens whose most likely next token is the same.
    kl: the largest mean divergence of a token, in nats.
    """

    top1: float
    kl: float


LIMITS = {"f16": Limits(0.995, 1e-3), "bf16": Limits(0.99, 5e-3), "q8_0": Limits(0.95, 5e-2)}


def read_back(file: Path, folder: Path | None = None) -> PreTrainedModel:
    """The model of a GGUF file in float32, for its logits.

    Args:
        file: of `write_gguf`.
        folder: what the file was made of, whose config is taken instead of the file's metadata.
            transformers does not read all of those: not how many positions GPT-2 has, nor the size
            of Qwen 3's heads, nor Llama 3's scaled rotation.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

    config = {}
    if folder is not None:
        whole = AutoConfig.from_pretrained(folder)
        if whole.model_type == "mistral":  # in GGUF a Llama, and transformers reads no other
            whole = LlamaConfig.from_dict({**whole.to_dict(), "model_type": "llama"})
        config["config"] = whole
    with quiet_libraries(), contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, **config
        )
    return model.eval()


# --- token ids and answers ------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """What llama.cpp is asked.

    ids: what training feeds; the answer is that to these.
    messages: a conversation, which the file's own template is to render to `ids`; None where
        `text` is the prompt.
    text: a plain prompt.
    """

    ids: tuple[int, ...]
    messages: tuple[Mapping[str, str], ...] | None = None
    text: str = ""


@dataclass(frozen=True)
class Difference:
    """A prompt with other ids in llama.cpp. text: what was tokenized there."""

    text: str
    expected: tuple[int, ...]
    found: tuple[int, ...]


@dataclass(frozen=True)
class IdProof:
    """What llama.cpp said.

    prompts: how many were compared.
    differences: those with other ids.
    answers: the ids of a greedy answer to each of the first prompts, the token that ends it not
        among them.
    texts: the same, as llama.cpp writes them.
    """

    prompts: int
    differences: tuple[Difference, ...]
    answers: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]

    @property
    def equal(self) -> int:
        """How many prompts have the same ids."""
        return self.prompts - len(self.differences)


def can_prove_ids() -> bool:
    """True if xllamacpp is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def prove_ids(
    file: Path, prompts: Sequence[Prompt], answers: int = 0, new_tokens: int = 32, threads: int = 0
) -> IdProof | None:
    """Ask llama.cpp for the token ids of prompts, and for greedy answers.

    Args:
        file: a GGUF file.
        prompts: conversations and texts, with the ids that they have in training.
        answers: so many of the first prompts are answered.
        new_tokens: the longest answer.
        threads: of llama.cpp; 0: as many as this process may use.

    Returns:
        What it said; None without xllamacpp.

    Raises:
        ExportError: llama.cpp does not load the file, or does not render its template.
    """
    if not can_prove_ids():
        return None
    length = max((len(prompt.ids) for prompt in prompts), default=0) + new_tokens + _LOAD_CONTEXT
    with _serving(file, length, threads or _cores()) as address:
        asked = [_ids_of(address, prompt) for prompt in prompts]
        answered = [_answer(address, prompt, new_tokens) for prompt in prompts[:answers]]
    return IdProof(
        prompts=len(prompts),
        differences=tuple(
            Difference(text, prompt.ids, ids)
            for prompt, (text, ids) in zip(prompts, asked, strict=True)
            if ids != prompt.ids
        ),
        answers=tuple(tokens for tokens, _ in answered),
        texts=tuple(text for _, text in answered),
    )


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _ids_of(address: str, prompt: Prompt) -> tuple[str, tuple[int, ...]]:
    """A prompt's text and its ids, as a request to chat makes them."""
    text = prompt.text
    if prompt.messages is not None:
        messages = [dict(message) for message in prompt.messages]
        text = _post(address, "/apply-template", {"messages": messages})["prompt"]
    asked = {"content": text, "add_special": True, "parse_special": True}
    return text, tuple(_post(address, "/tokenize", asked)["tokens"])


def _answer(address: str, prompt: Prompt, new_tokens: int) -> tuple[tuple[int, ...], str]:
    asked = {
        "prompt": list(prompt.ids),
        "n_predict": new_tokens,
        "temperature": 0,
        "return_tokens": True,
        "cache_prompt": False,  # a shared beginning would be computed in other batches
    }
    reply = _post(address, "/completion", asked)
    tokens = tuple(reply["tokens"])
    return tokens[:-1] if reply["stop_type"] == "eos" else tokens, str(reply["content"])


def _post(address: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as reply:
            found = json.loads(reply.read())
    except urllib.error.HTTPError as error:
        said = one_line(error.read().decode("utf-8", "replace"))[:500]
        raise _failed(f"llama.cpp does not answer {path}: {said}") from None
    except OSError as error:
        raise _failed(f"llama.cpp ended at {path}: {one_line(error)}") from None
    assert isinstance(found, dict)
    return found


def _failed(found: str) -> ExportError:
    return ExportError(
        Problem("xllamacpp", found, fix="`export=merged` writes plain weights instead")
    )


@contextmanager
def _serving(file: Path, length: int, threads: int) -> Iterator[str]:
    """The address of a server with the file, which ends with the block.

    It is a process of its own, whose log nobody sees, and which ends when its input does: it cannot
    outlive this one.
    """
    words = [sys.executable, "-P", "-m", __name__, str(file), str(length), str(threads)]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=_environment()
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address = process.stdout.readline().decode().strip()
            if not address:
                log.seek(0)
                raise _failed(f"llama.cpp does not load {file.name}: {_reason(log.read())}")
            yield address
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _reason(log: bytes) -> str:
    """Why a file does not load, of llama.cpp's log; else what Python said last."""
    lines = log.decode("utf-8", "replace").splitlines()
    errors = [line.partition(" E ")[2] for line in lines if " E " in line]
    reasons = [line for line in errors if "error loading" in line]
    return one_line(next(iter([*reasons, *errors, *lines[-1:]]), "it ended"))


def _environment() -> dict[str, str]:
    """The child finds this package where this process found it."""
    places = [entry for entry in sys.path if entry]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}


def _serve(file: str, length: int, threads: int) -> None:
    """Serve a file until the input ends; the address is the only line of the output."""
    import xllamacpp

    output = os.dup(1)
    os.dup2(2, 1)  # llama.cpp logs to both
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.port = 0
    params.n_ctx = length
    params.n_parallel = 1
    params.warmup = False
    params.fit_params = False
    params.verbosity = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    os.write(output, f"{server.listening_address}\n".encode())
    sys.stdin.buffer.read()
    os._exit(0)  # nothing is to be saved, and a server takes its time to end


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
