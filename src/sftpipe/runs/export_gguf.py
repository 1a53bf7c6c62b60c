"""`export=gguf`: the merged weights as one GGUF file, which answers as they do."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftpipe.config.requests import GGUF_TYPES
from sftpipe.config.schema import ExportConfig
from sftpipe.errors import ExportError, Problem, one_line
from sftpipe.export.card import file_name, gguf_card
from sftpipe.export.drift import measure_drift, record_logits
from sftpipe.export.gguf import architecture_of, write_gguf
from sftpipe.export.gguf_proof import (
    LIMITS,
    PACKAGE,
    IdProof,
    Prompt,
    can_prove_ids,
    prove_ids,
    read_back,
)
from sftpipe.export.gguf_tokenizer import read_tokenizer, stop_ids
from sftpipe.export.modelfile import write_modelfile
from sftpipe.export.plain import read_plain
from sftpipe.model.architecture import model_config
from sftpipe.runs.export_merged import FACTS, beside, free, write_weights
from sftpipe.runs.held import HeldRows, held_rows
from sftpipe.storage import publish_folder, write_json, write_text

if TYPE_CHECKING:
    from sftpipe.runs.load import Run

ANSWERS = 10  # of the prompts, those that llama.cpp answers
_NEW_TOKENS = 32
_BYTES = {"f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}  # of a weight; the others begin with an f16


def export_gguf(run: Run, cfg: ExportConfig, folder: Path) -> dict[str, Any]:
    """A GGUF file with its card, and a Modelfile where one is right.

    Raises:
        ExportError: llama.cpp cannot hold the model or its tokenizer, or a proof fails; then
            nothing is left under `folder`.
    """
    with publish_folder(folder) as partial, beside(partial) as work:
        form, plain = work / "form", work / "plain"
        form.mkdir()
        plain.mkdir()
        add_bos = _check_form(run, form)
        held = held_rows(run)
        more = _BYTES.get(cfg.type, 4.0)
        facts = {"target": "gguf", **write_weights(run, cfg, plain, held, more)}
        file = partial / f"{file_name(run.dir.name)}-{cfg.type}.gguf"
        before = _as_plain(run, plain, held, work)
        _write(plain, file, cfg, work)
        facts |= {"file": file.name, "type": cfg.type, "bytes": file.stat().st_size}
        facts["readback"] = _check_logits(file, plain, held, work, cfg.type)
        facts["llama_cpp"] = _check_ids(file, held, before)
        facts["modelfile"] = _modelfile(run, file, stop_ids(plain), held, add_bos)
        write_json(partial / FACTS, facts)
        write_text(partial / "README.md", gguf_card(facts))
    return facts


def _check_form(run: Run, folder: Path) -> bool:
    """Before anything is merged: can llama.cpp hold this class and this tokenizer?

    Token ids of some classes were compared with llama.cpp's once and for all, and of others they
    have to be now.

    Returns:
        Whether llama.cpp puts BOS in front of a prompt.
    """
    model_config(run.config.model, run.weights).save_pretrained(folder)
    if not run.config.lora:
        shutil.copy(run.dir / "config.json", folder)
    run.tokenizer.save_pretrained(folder)
    add_bos = read_tokenizer(folder).add_bos
    if architecture_of(folder).proved_ids or can_prove_ids():
        return add_bos
    found = "token ids of this class are not proved here, and llama.cpp is not there to prove them"
    fix = "pip install 'sftpipe[gguf]', and the same command again"
    raise ExportError(Problem("export.target", found, fix=fix))


def _as_plain(run: Run, plain: Path, held: HeldRows, work: Path) -> list[list[int]]:
    """Record what the merged weights say; returns the ids of their answers."""
    from sftpipe.evaluation.answers import Sampling, generate

    model = read_plain(plain, run.precision().device)
    record_logits(model, held.rows, work)
    prompts = [ids for _, ids in held.prompts[:ANSWERS]]
    found = dict(generate(model, run.tokenizer, prompts, Sampling(_NEW_TOKENS), batch_size=1))
    del model
    free()
    return [found[number].ids for number in range(len(prompts))]


# --- the file -------------------------------------------------------------------------------------


def _write(plain: Path, file: Path, cfg: ExportConfig, work: Path) -> None:
    if cfg.type in GGUF_TYPES:
        write_gguf(plain, file, cfg.type)  # type: ignore[arg-type]
        return
    assert cfg.llama_cpp is not None  # config/requests.py
    half = work / "f16.gguf"
    write_gguf(plain, half, "f16")
    program = find_quantizer(Path(cfg.llama_cpp).expanduser())
    words = [str(program), str(half), str(file), cfg.type.upper()]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace")
    if done.returncode or not file.is_file():
        said = (done.stderr or done.stdout).strip().splitlines()
        found = f"{program.name} refused {cfg.type}: {one_line(said[-1] if said else '')[:200]}"
        raise ExportError(Problem("export.type", found, fix="a type that its --help lists"))


def find_quantizer(folder: Path) -> Path:
    """`llama-quantize` in a folder of llama.cpp.

    Raises:
        ExportError: it is not there.
    """
    for place in ("build/bin", "bin", "."):
        if (program := folder / place / "llama-quantize").is_file():
            return program
    found = f"no llama-quantize in {folder}"
    fix = "build it there: cmake -B build && cmake --build build --target llama-quantize"
    raise ExportError(Problem("export.llama_cpp", found, fix=fix))


# --- proofs ---------------------------------------------------------------------------------------


def _check_logits(file: Path, plain: Path, held: HeldRows, work: Path, kind: str) -> dict[str, Any]:
    """Raise unless the file's logits are as near to the weights as its type allows."""
    model = read_back(file, plain)
    drift = measure_drift(model, held.rows, work)
    del model
    free()
    limits = LIMITS.get(kind)
    if limits and (drift.top1 < limits.top1 or drift.kl > limits.kl):
        found = (
            f"the file drifts by {drift.kl:.2g} nats a token from the weights that it was made of, "
            f"with the same likeliest token after {drift.top1:.2%}"
        )
        allowed = f"{limits.kl:g} nats or less, and {limits.top1:.1%} or more"
        raise ExportError(Problem("export.type", found, allowed=allowed, fix=_finer(kind)))
    return {**asdict(drift), "limits": asdict(limits) if limits else None}


def _finer(kind: str) -> str:
    return "`export.type=f16`" if kind != "f16" else "`export=merged` instead, and a report of it"


def _check_ids(file: Path, held: HeldRows, before: list[list[int]]) -> dict[str, Any] | None:
    """What llama.cpp said; raise where it reads a prompt as other tokens than training did."""
    proof = prove_ids(file, [_asked(*one) for one in held.prompts], ANSWERS, _NEW_TOKENS)
    if proof is None:
        return None
    if proof.differences:
        worst = proof.differences[0]
        found = (
            f"llama.cpp reads {len(proof.differences)} of {proof.prompts} prompts as other tokens, "
            f"such as {worst.text[:80]!r}: {list(worst.found[:12])}, and training "
            f"{list(worst.expected[:12])}"
        )
        raise ExportError(Problem("tokenizer", found, fix="`export=merged` instead"))
    return {"package": PACKAGE, "prompts": proof.prompts, **_same_answers(proof, before)}


def _same_answers(proof: IdProof, before: list[list[int]]) -> dict[str, int]:
    """How many greedy answers are the same; the token that ends one is not among llama.cpp's."""
    same = sum(
        ids[: len(other)] == list(other) and len(ids) - len(other) < 2
        for ids, other in zip(before, proof.answers, strict=False)
    )
    return {"answers": len(proof.answers), "same_answers": same}


def _asked(prompt: Any, ids: list[int]) -> Prompt:
    """A prompt for llama.cpp: turns where its template can render them, else a text."""
    if isinstance(prompt, str):
        return Prompt(tuple(ids), text=prompt)
    return Prompt(tuple(ids), messages=tuple(dict(turn) for turn in prompt.messages))


# --- Ollama ---------------------------------------------------------------------------------------


def _modelfile(run: Run, file: Path, ends: list[int], held: HeldRows, add_bos: bool) -> str | None:
    """Write a Modelfile beside the file; returns why there is none."""
    if not held.prompts or isinstance(held.prompts[0][0], str):
        return "the run was trained on texts, not on turns of a chat template"
    tokenizer = run.tokenizer
    stops = tokenizer.convert_ids_to_tokens(ends)
    try:
        text = write_modelfile(tokenizer, file.name, stops, {}, add_bos=add_bos)
    except ExportError as error:
        return one_line(error.problems[0].found)
    write_text(file.with_name("Modelfile"), text)
    return None
