"""Run a command with one GPU that no other job of this machine has, by its CUDA_VISIBLE_DEVICES.

gpu.py COMMAND...

Snakemake counts GPUs (``resources: gpu=1``) but does not say which. A job whose GPUs are all taken waits. Under Slurm,
which does say which, and where there is no GPU, the command runs as it is.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

POLL = 1.0  # seconds between two looks for a free GPU


def gpus() -> list[str]:
    """The GPUs that may be used: those of CUDA_VISIBLE_DEVICES, or else all of this machine by their UUIDs."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
        try:
            listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout.replace("\n", ",")
        except (OSError, subprocess.CalledProcessError):
            return []
    return [name.strip() for name in listed.split(",") if name.strip()]


def take(names: list[str]) -> str:
    """One of ``names``, locked for as long as this process, or the command that replaces it, lives."""
    told = False
    while True:
        for name in names:
            path = Path(tempfile.gettempdir(), f"edadm-gpu-{os.getuid()}-{name.replace('/', '-')}.lock")
            lock = os.open(path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            os.set_inheritable(lock, True)
            return name
        if not told:
            print(f"waiting for a GPU: {', '.join(names)}", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL)


if __name__ == "__main__":
    names = [] if "SLURM_JOB_ID" in os.environ else gpus()
    if names:
        os.environ["CUDA_VISIBLE_DEVICES"] = take(names)
    os.execvp(sys.argv[1], sys.argv[1:])
