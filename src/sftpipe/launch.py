"""One training on several devices: torchrun starts a process for each.

The parent, whose command it was, plans the run, starts the processes and waits; each is
`python -m sftpipe.worker RUN_DIR`, a rank. The first rank writes and speaks. The others say what
goes wrong in a note of their own, and the parent says it again.

The engine is torch.distributed.run, by its own arguments, so what starts torchrun elsewhere (Slurm,
Kubernetes, Ray) may start this.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sftpipe.config.distributed import on_a_cpu
from sftpipe.config.schema import DistributedConfig, TrainConfig
from sftpipe.errors import (
    ConfigError,
    Interrupted,
    Problem,
    RankError,
    SftpipeError,
    in_shell,
    one_line,
    override,
)
from sftpipe.ranks import NOTES, ONCE_S
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.plan import RunPlan
from sftpipe.runs.planned import write_planned
from sftpipe.sweeps.processes import PARENT, cores, visible_gpus

_WORKER = "sftpipe.worker"
# how long ranks may take for their step and its checkpoint, after a signal; a rank that ends by
# itself gives the others torchrun's 30 s
_CHECKPOINT_S = 3600
_TAIL = 4000  # characters of what a rank said last
# what another launcher says to its processes; torchrun says it anew
_OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def check_launched_once() -> None:
    """Refuse to be one of several processes that another launcher started: each would train alone.

    Raises:
        ConfigError: torchrun or accelerate started this process.
    """
    if os.environ.get("LOCAL_RANK") is None or os.environ.get("WORLD_SIZE", "1") == "1":
        return
    count = os.environ["WORLD_SIZE"]
    found = f"one of {count} processes of another launcher, such as torchrun or accelerate launch"
    words = f"distributed=ddp distributed.num_processes={count}"
    fix = f"leave that out, and let sftpipe start them: `sftpipe train recipe=yoda {words}`"
    raise ConfigError(Problem("sftpipe train", found, fix=fix))


def launch(cfg: TrainConfig, plan: RunPlan, hydra: Mapping[str, str]) -> None:
    """Train a planned run in as many processes as `cfg.distributed` says; returns at its end.

    Raises:
        ConfigError: more processes than devices, or fsdp2 without GPUs.
        Interrupted: a signal came; the ranks have written a checkpoint.
        RankError: what a rank said, or how it died; or the machines did not find each other.
    """
    assert cfg.distributed is not None
    here = processes_here(cfg)
    check_folder(cfg)
    if cfg.distributed.machine_rank == 0:
        write_planned(cfg, plan, hydra)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // here))
    with tempfile.TemporaryDirectory(prefix="sftpipe-ranks-") as notes:
        environment = {
            NOTES: notes,
            PARENT: str(os.getpid()),
            "OMP_NUM_THREADS": threads,
            "PYTHONSAFEPATH": "1",  # what lies in the working folder hides no package
        }
        with _environment(environment):
            _run(_words(cfg.distributed, here, plan.folder), cfg.distributed, plan, Path(notes))
    RunFolder(plan.folder).planned.unlink(missing_ok=True)  # it has been done


def processes_here(cfg: TrainConfig) -> int:
    """The processes of this machine.

    Raises:
        ConfigError: see `launch`.
    """
    asked = cfg.distributed
    assert asked is not None
    gpus = [] if cfg.sft.get("use_cpu", False) else visible_gpus()
    if asked.strategy == "fsdp2" and not gpus:
        raise ConfigError(on_a_cpu())
    devices, name = (len(gpus), "GPU") if gpus else (cores(), "core")
    key = "distributed.num_processes"
    if asked.num_processes is None and not gpus:
        found = "not set, and there are no GPUs that say how many"
        fix = override(key, str(devices * asked.num_machines))
        raise ConfigError(Problem(key, found, allowed=f"1 to {devices} a machine", fix=fix))
    here = devices if asked.num_processes is None else asked.num_processes // asked.num_machines
    if here > devices:
        machines = asked.num_machines
        found = f"{here} processes on this machine, which has {devices} {name}{'s' * (devices > 1)}"
        found += " for them" if name == "core" else " that it may use"
        raise ConfigError(Problem(key, found, fix=override(key, str(devices * machines))))
    return here


def check_folder(cfg: TrainConfig) -> None:
    """Machines that write one run must know its name.

    Raises:
        ConfigError: it is not given.
    """
    if cfg.distributed is None or cfg.distributed.num_machines == 1 or cfg.run is not None:
        return
    found = "not set, and each machine would name a run folder of its own"
    allowed = "a folder that every machine sees, the same on each"
    raise ConfigError(Problem("run", found, allowed=allowed, fix="`run=outputs/many`"))


def _words(asked: DistributedConfig, here: int, folder: Path) -> list[str]:
    """The arguments of torchrun."""
    words = ["--standalone"]
    if asked.rendezvous is not None:
        host, _, port = asked.rendezvous.rpartition(":")
        words = ["--nnodes", str(asked.num_machines), "--node-rank", str(asked.machine_rank)]
        words += ["--master-addr", host, "--master-port", port]
        words += ["--rdzv-conf", f"timeout={asked.rendezvous_timeout}"]
    words += ["--nproc-per-node", str(here), "--shutdown-timeout", str(_CHECKPOINT_S)]
    words += ["--signals-to-handle", "SIGHUP"]  # of the others, see `_listening`
    return [*words, "--module", _WORKER, str(folder.absolute())]


def _run(words: Sequence[str], asked: DistributedConfig, plan: RunPlan, notes: Path) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.disable(logging.ERROR)  # what torchrun says of an end, this module says
    try:
        with _listening(SignalException):
            run(parse_args(words))
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        raise _failed(number, int(failure.exitcode), plan, notes) from None
    except SignalException as error:
        raise _stopped(int(error.sigval), plan, notes) from None
    except (RuntimeError, OSError) as error:  # torch has a class for none of it
        raise _not_met(asked, error) from None
    finally:
        logging.disable(logging.NOTSET)


# --- how it ended ---------------------------------------------------------------------------------


def write_note(error: BaseException, said: str) -> None:
    """What a rank says of its end, where its parent looks.

    Args:
        error: that ended it.
        said: its traceback; of a user's mistake nothing more than the error has.
    """
    if isinstance(error, KeyboardInterrupt):
        found = "stopped at once by a second signal; its last checkpoint stands"
        error = Interrupted(signal.SIGINT, Problem(f"rank {os.environ['RANK']}", found))
    problems = [asdict(one) for one in error.problems] if isinstance(error, SftpipeError) else []
    code = error.exit_code if isinstance(error, SftpipeError) else 1
    file = Path(os.environ[NOTES]) / f"{os.environ['RANK']}.json"
    file.write_text(json.dumps({"code": code, "problems": problems, "said": said}))


def _failed(number: int, code: int, plan: RunPlan, notes: Path) -> SftpipeError:
    """The error of the rank that ended first."""
    note = _note(number, notes)
    if note and note["problems"]:
        return _said(note)
    first = _note(0, notes)
    if first and first["code"] > 128:  # all ranks agreed on it
        return _said(first)
    where = f"rank {number} on {socket.gethostname()}"
    if note:
        found = f"it ended with a bug, and the others with it:\n\n{note['said']}"
    else:
        ended = f"exit code {code}"
        if code < 0:
            ended = f"{signal.Signals(-code).name}"
            ended += "; was memory short?" if code == -signal.SIGKILL else ""
        found = f"it was ended by {ended}, and the others with it{_last_words(number, notes)}"
    return RankError(1, Problem(where, found, fix=_going_on(plan)))


def _stopped(number: int, plan: RunPlan, notes: Path) -> SftpipeError:
    """A signal to the parent, which torchrun passed on."""
    for note in filter(None, (_note(at, notes) for at in _numbers(notes))):
        if note["code"] > 128:
            return _said(note)
    name = signal.Signals(number).name
    found = f"stopped by {name} before its next step was done; no checkpoint was written for it"
    return Interrupted(number, Problem(str(plan.folder), found, fix=_going_on(plan)))


def _said(note: Mapping[str, Any]) -> SftpipeError:
    problems = [Problem(**one) for one in note["problems"]]
    if note["code"] > 128:
        return Interrupted(note["code"] - 128, *problems)
    return RankError(note["code"], *problems)


def _not_met(asked: DistributedConfig, error: Exception) -> RankError:
    """The machines did not find each other."""
    here, there = _address(), asked.rendezvous or "localhost"
    found = (
        f"machine {asked.machine_rank} of {asked.num_machines}, {here}, has waited "
        f"{asked.rendezvous_timeout} s for the others at {there}: {one_line(error)[:200]}"
    )
    fix = (
        "start the same command on every machine, each with its distributed.machine_rank; the "
        "port must be free on machine 0 and open to the others; "
        f"{override('distributed.rendezvous_timeout', str(2 * asked.rendezvous_timeout))} waits "
        "longer"
    )
    return RankError(2, Problem("distributed.rendezvous", found, fix=fix))


def _address() -> str:
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        return f"{name} ({socket.gethostbyname(name)})"
    return name


def _going_on(plan: RunPlan) -> str:
    run = in_shell(f"run={plan.folder}")
    return f"`sftpipe train {run} sft.resume_from_checkpoint=auto` goes on from its last checkpoint"


def _numbers(notes: Path) -> list[int]:
    return sorted(int(file.stem) for file in notes.glob("*.json"))


def _note(number: int, notes: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((notes / f"{number}.json").read_text()))
    except (OSError, ValueError):
        return None


def _last_words(number: int, notes: Path) -> str:
    """What a rank that wrote no note has said; the first one said it on the terminal."""
    try:
        said = (notes / f"{number}.txt").read_text(errors="replace").strip()
    except OSError:
        return ""
    return f":\n\n{said[-_TAIL:]}" if said else ""


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """The environment that torchrun hands on, within a block."""
    before = dict(os.environ)
    for name in _OF_A_LAUNCHER:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _listening(exception: type[Exception]) -> Iterator[None]:
    """Raise torchrun's exception at a signal, which it then hands to the ranks.

    A second one ends everything at once, but not where it is the first one once more: Slurm signals
    every process of a job, and what it started passes the signal on.
    """
    first: float | None = None

    def received(number: int, _frame: object) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None or now - first > ONCE_S:
            first = first or now
            raise exception(f"signal {number}", signal.Signals(number))

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, received) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
