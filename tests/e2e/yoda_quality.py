"""What the recipe `yoda` is good for, by `sftpipe evaluate` on its 40 test rows.

usage: python tests/e2e/yoda_quality.py RUN_FOLDER RUN_WITHOUT_LEARNING

Exits with 1 when the validation loss fell by less than 40 %, chrF rose by less than 30 points or
the lower end of its interval is below 20, fewer than 95 % of the answers end by themselves, the
verdict is not "better", or a difference is seen where there is none: of the run from itself, and of
a run that learned nothing from its base.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import sftpipe


def main(folder: str, still: str) -> int:
    run = sftpipe.load_run(folder)
    loss = run.metrics["validation"]
    fall = 1 - loss["after"]["loss"] / loss["before"]["loss"]
    print(f"validation loss {loss['before']['loss']:.3f} -> {loss['after']['loss']:.3f}")
    found = run.evaluate()
    print(found["sentence"])
    chrf, stops = found["metrics"]["chrf"], found["metrics"]["stop_rate"]["run"]
    print(f"chrF {chrf['base']:.1f} -> {chrf['run']:.1f}, interval {chrf['interval']}")
    print(f"stop rate {stops:.3f}")
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "run"  # the comparison writes into its folder
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("checkpoint-*"))
        itself = sftpipe.load_run(copy, [f"evaluation.base={folder}"]).evaluate()
    nothing = sftpipe.load_run(still).evaluate()
    print(f"against itself: {itself['verdict']}; without learning: {nothing['verdict']}")
    holds = {
        "the loss falls": fall >= 0.4,
        "chrF rises": chrf["difference"] >= 30 and chrf["interval"][0] > 20,
        "answers end": stops >= 0.95,
        "better": found["verdict"] == "better",
        "no difference from itself": itself["verdict"] == "not distinguishable",
        "no difference without learning": nothing["verdict"] == "not distinguishable",
    }
    print("\n".join(f"{'yes' if held else 'NO '}  {what}" for what, held in holds.items()))
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
