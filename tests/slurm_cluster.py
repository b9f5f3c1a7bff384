"""A real Slurm of one node on the loopback interface: Debian's munged, slurmctld and slurmd in a folder of their own.

Nothing under /etc is read or written. The job steps of Snakemake's plugin lose every SLURM_* variable, $SLURM_CONF too,
so each client (sbatch, srun, …) gets a wrapper that sets it.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from servers import free_port

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sacct", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
SEARCHED = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where Debian keeps daemons
PATIENCE = 300  # looks, a tenth of a second apart, for a daemon to answer
MUNGE_FILES = {
    "socket": "munge",
    "key-file": "munge.key",
    "log-file": "munged.log",
    "pid-file": "munged.pid",
    "seed-file": "munge.seed",
}
CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=node NodeHostname=localhost NodeAddr=127.0.0.1 CPUs=2 RealMemory=16000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """A running Slurm: the folder with its clients, and what it knows of its jobs."""

    def __init__(self, clients: Path) -> None:
        self.clients = clients

    def call(self, *words: str) -> str:
        done = subprocess.run([self.clients / words[0], *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self) -> list[dict[str, str]]:
        """Every job so far, as `scontrol` describes it."""
        lines = self.call("scontrol", "--oneliner", "show", "jobs").splitlines()
        return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines if line.startswith("JobId")]


def missing() -> str:
    """The commands that are not installed here, as text."""
    return ", ".join(name for name in (*DAEMONS, *CLIENTS) if not shutil.which(name, path=SEARCHED))


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A Slurm that runs until the end of the block, its state in ``folder`` (short: it holds a socket)."""
    configure(folder)
    commands = {
        "munged": [f"--{name}={folder}/{file}" for name, file in MUNGE_FILES.items()] + ["--foreground", "--force"],
        "slurmctld": ["-D", "-c", "-f", f"{folder}/slurm.conf"],
        "slurmd": ["-D", "-c", "-N", "node", "-f", f"{folder}/slurm.conf"],
    }
    found = Cluster(folder / "clients")
    with ExitStack() as stack:
        for name, options in commands.items():
            stack.enter_context(daemon(name, options, folder))
            if name == "munged":
                wait_for(lambda: (folder / "munge").exists(), folder)
        wait_for(lambda: "idle" in found.call("sinfo", "--noheader", "--format=%T"), folder)
        try:
            yield found
        finally:
            found.call("scancel", "--user", str(os.geteuid()))
            wait_for(lambda: not found.call("squeue", "--noheader").strip(), folder)


def configure(folder: Path) -> None:
    """Write the configuration, a key, and the clients' wrappers."""
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    for name in ("state", "spool", "clients"):
        (folder / name).mkdir()
    settings = {"controller": free_port(), "node": free_port(), "user": user, "folder": folder}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**settings))
    (folder / "gres.conf").write_text("NodeName=node Name=gpu File=/dev/null\n")
    (folder / "munge.key").touch(0o600)
    (folder / "munge.key").write_bytes(os.urandom(128))
    for name in CLIENTS:
        wrapper = folder / "clients" / name
        wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which(name)} "$@"\n')
        wrapper.chmod(0o755)


@contextmanager
def daemon(name: str, options: list[str], folder: Path) -> Iterator[None]:
    """A daemon in the foreground, which ends with this process however that ends; what it says goes to ``folder``."""
    command = ["setpriv", "--pdeathsig", "TERM", shutil.which(name, path=SEARCHED), *options]
    with (folder / f"{name}.out").open("w") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def wait_for(condition: Callable[[], bool], folder: Path) -> None:
    """Wait until ``condition`` holds; what the daemons said if it does not in time."""
    for _ in range(PATIENCE):
        try:
            if condition():
                return
        except AssertionError:
            pass  # the daemon does not answer yet
        time.sleep(0.1)
    raise AssertionError("\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in folder.glob("*.out")))
