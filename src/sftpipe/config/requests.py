"""What is asked of a finished run: choices that do not go together."""

from __future__ import annotations

import re

from sftpipe.config.schema import ExportConfig, GenerateConfig, JudgeConfig, RunConfig
from sftpipe.errors import Problem, nearest

_OF_DRAWING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")


def find_request_conflicts(cfg: RunConfig) -> list[Problem]:
    """All conflicts of what is asked of a finished run, each with what to type instead."""
    return [*_of_generate(cfg.generate), *_of_judge(cfg.judge), *_of_export(cfg.export)]


def _of_generate(generate: GenerateConfig) -> list[Problem]:
    asked = [name for name in ("prompt", "messages", "data_files") if getattr(generate, name)]
    problems = [
        Problem(
            f"generate.{name}", f"generate.{asked[0]} asks already", fix="leave one of them out"
        )
        for name in asked[1:]
    ]
    if generate.do_sample is False:
        problems += [
            Problem(
                f"generate.{name}",
                "nothing reads it with generate.do_sample=false",
                fix="`generate.do_sample=true`, or leave it out",
            )
            for name in _OF_DRAWING
            if getattr(generate, name) is not None
        ]
    if generate.length_penalty is not None and (generate.num_beams or 1) == 1:
        fix = "`generate.num_beams=4`, or leave it out"
        problems.append(Problem("generate.length_penalty", "it is of num_beams above 1", fix=fix))
    return problems


def _of_judge(judge: JudgeConfig) -> list[Problem]:
    if judge.against is None or judge.mode == "pairwise":
        return []
    found = f"nothing reads it with judge.mode={judge.mode}"
    return [Problem("judge.against", found, fix="`judge.mode=pairwise`")]


# --- export ---------------------------------------------------------------------------------------

GGUF_TYPES = ("f16", "bf16", "q8_0")  # those that need no llama.cpp
_MERGING = ("base", "max_kl")
# what reads each key, beside `target`; of hub the uploads that it is about
_READS = {
    "merged": ("output", *_MERGING, "dtype"),
    "gguf": ("output", *_MERGING, "type", "llama_cpp"),
    "hub adapter": ("repo_id", "private", "what", "samples"),
    "hub merged": ("repo_id", "private", "what", "samples", *_MERGING, "dtype"),
}
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def _of_export(export: ExportConfig) -> list[Problem]:
    kind = f"hub {export.what}" if export.target == "hub" else export.target
    default = ExportConfig()
    problems = [
        _unread(name, kind)
        for name, value in vars(export).items()
        if name not in ("target", *_READS[kind]) and value != getattr(default, name)
    ]
    if export.target == "hub" and not _REPOSITORY.fullmatch(export.repo_id or ""):
        found = "not set" if export.repo_id is None else repr(export.repo_id)
        fix = "export.repo_id=OWNER/NAME, with the name of your account for OWNER"
        problems.append(Problem("export.repo_id", found, allowed="OWNER/NAME", fix=fix))
    if export.target == "gguf" and export.type not in GGUF_TYPES and export.llama_cpp is None:
        found = f"{export.type!r}, which needs llama.cpp's own llama-quantize"
        near = nearest(export.type, GGUF_TYPES) or "q8_0"
        fix = f"`export.type={near}`, or export.llama_cpp=DIR beside it"
        allowed = ", ".join(GGUF_TYPES)
        problems.append(Problem("export.type", found, allowed=allowed, fix=fix))
    return problems


def _unread(name: str, kind: str) -> Problem:
    """The problem of a key that is of another target."""
    reader = next(other for other, names in _READS.items() if name in names)
    target = reader.partition(" ")[0]
    fix = f"`export={target}`"
    if kind == "hub adapter" and name in _READS["hub merged"]:
        fix = "`export.what=merged`"
    shown = kind.replace("hub ", "hub export.what=")
    return Problem(
        f"export.{name}", f"nothing reads it with export={shown}", fix=f"{fix}, or leave it out"
    )
