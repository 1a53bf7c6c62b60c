"""A worker of a sweep that trains nothing, and ends as it is told: in 50 ms instead of 10 s.

FAKE_JOBS is {seed: how its job ends}. The loss of a run is 1 + |lora.r - 8| / 10, and falls to it
in four evaluations. It uses the standard library alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

FOLDER = Path(sys.argv[1])
PLAN = json.loads((FOLDER / ".planned.json").read_text())
CONFIG = PLAN["config"]
ENDS = json.loads(os.environ.get("FAKE_JOBS", "{}")).get(str(CONFIG["seed"]), "")
LOSS = 1 + abs((CONFIG["lora"] or {"r": 0})["r"] - 8) / 10


def stop(number: int, _frame: object) -> None:
    print(f"error\n  {FOLDER}: stopped; a checkpoint was written", file=sys.stderr)
    sys.exit(128 + number)


def write(name: str, value: object) -> None:
    (FOLDER / name).write_text(json.dumps(value))


def log(step: int, loss: float) -> None:
    with (FOLDER / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "eval_loss": loss}) + "\n")
    print(f"step {step}/4  validation loss {loss:.3f}", file=sys.stderr, flush=True)


signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
if ENDS == "fails":
    print("error\n  train[3]: empty\n    fix the row", file=sys.stderr)
    sys.exit(2)
names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SFTPIPE_PARENT", "OF_JOB")
write("environment.json", {name: os.environ.get(name) for name in names})
write("attempt.json", PLAN["attempt"])
if PLAN["attempt"] > 1:
    (FOLDER / "attempts" / str(PLAN["attempt"])).mkdir(parents=True)
write("config.yaml", CONFIG)
data = {"sha256": os.environ["FAKE_DATA"]}
write("manifest.json", {"data": data, "created": "2026-01-01T00:00:00"})
if ENDS == "has a bug":
    raise ZeroDivisionError("division by nothing")
if ENDS == "is killed" and PLAN["attempt"] == 1:
    os.kill(os.getpid(), signal.SIGKILL)
(FOLDER / "log.jsonl").unlink(missing_ok=True)
for step in (1, 2, 3, 4):
    log(step, LOSS + (4 - step))
    time.sleep(float(os.environ.get("FAKE_STEP_S", "0")))
while ENDS == "is slow" or (ENDS == "is slow once" and PLAN["attempt"] == 1):
    time.sleep(0.05)
if ENDS == "measures nothing":
    (FOLDER / "log.jsonl").unlink()
train = {"loss": 2.0, "runtime_s": 1.5, "peak_memory_bytes": 2**30, "steps": 4}
after = {} if ENDS == "measures nothing" else {"validation": {"after": {"loss": LOSS}}}
write("metrics.json", {"train": train, **after})
(FOLDER / "COMPLETE").write_text("now\n")
