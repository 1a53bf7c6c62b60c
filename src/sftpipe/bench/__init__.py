"""Measurements: each part of sftpipe against what it is to be measured by, in one run.

timing.py         callables                           -> what each took, measured in turns
step.py           one batch                           -> our step against TRL's, and its parts
limit.py          a model, a batch                    -> seconds of the products that it needs
growth.py         sizes                               -> seconds of our step, and a picture
data.py           generated rows                      -> rows a second against TRL's, peak memory
generate.py       the test rows of Yoda               -> answers in batches, one by one, plain
sweep.py          sweeps of one job and of four       -> what one more job costs
ddp.py            one batch, divided                  -> two processes against one
start.py          short commands                      -> seconds of whole processes against TRL's
task.py           a number of rows                    -> the training that part train measures
epoch.py          an implementation, rows             -> that training, in this process
llama_factory.py  another Python, rows                -> that training by LLaMA-Factory
train.py          all of them                         -> rows a second, peaks, losses side by side
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# under other names, so that sftpipe.bench.data and its like stay modules
from sftpipe.bench.data import data as _data
from sftpipe.bench.data import memory as _memory
from sftpipe.bench.ddp import ddp as _ddp
from sftpipe.bench.generate import generation as _generation
from sftpipe.bench.growth import growth as _growth
from sftpipe.bench.start import start as _start
from sftpipe.bench.step import step as _step
from sftpipe.bench.sweep import sweep as _sweep
from sftpipe.bench.train import train as _train

PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "step": _step,
    "train": _train,
    "growth": _growth,
    "start": _start,
    "data": _data,
    "memory": _memory,
    "generate": _generation,
    "sweep": _sweep,
    "ddp": _ddp,
}
WITH_PEER = "train"  # the part that takes `peer_python`
