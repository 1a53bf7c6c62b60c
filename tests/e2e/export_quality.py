"""The GGUF file of a trained run, as `sftpipe export` proved it.

usage: python tests/e2e/export_quality.py RUN_FOLDER

Exits with 1 when llama.cpp was not asked, when one of the test prompts has other tokens there than
in training, when fewer than 8 of 10 greedy answers are the same, when merging changed the likeliest
token after more than 0.5 % of the tokens, or when there is no Modelfile.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import sftpipe

PROMPTS, ANSWERS = 40, 8  # of recipe yoda's test split; of ten


def main(folder: str) -> int:
    files = Path(folder) / "export" / "gguf"
    found = json.loads((files / "export.json").read_text(encoding="utf-8"))
    merged, back, said = found["drift"], found["readback"], found["llama_cpp"] or {}
    print(f"merged: top-1 {merged['top1']:.4f}, KL {merged['kl']:.2e}")
    print(f"{found['file']}: top-1 {back['top1']:.4f}, KL {back['kl']:.2e}; llama.cpp: {said}")
    holds = {
        "the run is there": sftpipe.load_run(folder).dir == Path(folder),
        "merging changes nothing": merged["top1"] >= 0.995,
        "every test prompt has the tokens of training": said.get("prompts") == PROMPTS,
        "the answers are the same": said.get("same_answers", 0) >= ANSWERS,
        "a Modelfile": (files / "Modelfile").is_file(),
    }
    print("\n".join(f"{'yes' if held else 'NO '}  {what}" for what, held in holds.items()))
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
