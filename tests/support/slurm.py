"""A Slurm of one node, for tests: Debian's own daemons, all of whose files are in one folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_DAEMONS = ("munged", "slurmctld", "slurmd")
_PROGRAMS = (*_DAEMONS, "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

# linuxproc needs no cgroups and task/none no rights over cores: what a container allows
_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SchedulerParameters=bf_interval=1,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1024 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=2
"""


def missing() -> str:
    """Why there is no Slurm here; "" where there can be one."""
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        return "only root can start Slurm's daemons"
    absent = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install munge slurmctld slurmd slurm-client"
    return ""


class Slurm:
    """A Slurm that runs.

    environment: what its programs need to find it.
    """

    def __init__(self, folder: Path) -> None:
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _PATH}

    def __call__(self, *words: str) -> str:
        """What one of its programs prints."""
        done = subprocess.run(
            words,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    def state(self, job_id: str) -> str:
        """The state of a job."""
        return self("squeue", "-h", "-r", "-t", "all", "-o", "%T", "-j", job_id).strip()

    def hurry(self, job_id: str) -> None:
        """Let a requeued job begin: Slurm holds it back for two minutes."""
        reason = ("squeue", "-h", "-r", "-o", "%T %r", "-j", job_id)
        wait_until(lambda: "PENDING BeginTime" in self(*reason), f"{job_id} is queued again", 90)
        time.sleep(3)  # a credential must be younger than the revocation of the one before
        self("scontrol", "update", f"jobid={job_id}", "starttime=now")

    def jobs(self) -> list[str]:
        """The jobs that wait or run."""
        return self("squeue", "-h", "-r", "-o", "%i").split()


@contextmanager
def one_node(folder: Path) -> Iterator[Slurm]:
    """Start Slurm, and stop it when the block ends."""
    host, ports = socket.gethostname().partition(".")[0], _free_ports()
    for name in ("state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o755)  # munged refuses a socket that others cannot reach
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    text = _CONFIG.format(host=host, ports=ports, folder=folder)
    (folder / "slurm.conf").write_text(text)
    slurm = Slurm(folder)
    names = ("key-file", "socket", "pid-file", "seed-file", "log-file")
    munge = [f"--{name}={folder}/munge.{name.removesuffix('-file')}" for name in names]
    commands = [
        ["munged", "--foreground", "--force", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.out").open("wb") as out:
                path = shutil.which(command[0], path=_PATH)
                assert path is not None
                started.append(
                    subprocess.Popen(
                        [path, *command[1:]],
                        env={**os.environ, **slurm.environment},
                        stdout=out,
                        stderr=out,
                        start_new_session=True,
                    )
                )
            if command[0] == "munged":
                wait_until(lambda: (folder / "munge.socket").exists(), "munged starts", 30)
        wait_until(lambda: _is_idle(slurm), "the node is idle", 60)
        yield slurm
        with contextlib.suppress(subprocess.SubprocessError):
            slurm("scancel", "--user=root", "--full")
            wait_until(lambda: not slurm.jobs(), "jobs are gone", 60)
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in reversed(started):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def wait_until(holds: Callable[[], object], what: str, seconds: float) -> None:
    """Wait for what Slurm does in its own time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"in {seconds} s it is not so that {what}"
        time.sleep(0.2)


def _is_idle(slurm: Slurm) -> bool:
    with contextlib.suppress(subprocess.SubprocessError):
        return "idle" in slurm("sinfo", "--noheader", "--format=%T")
    return False


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
