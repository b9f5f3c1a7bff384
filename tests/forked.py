"""Snakemake and DVC as a shell starts them, in forks of one process that has imported them: half of their time."""

import gc
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path

COMMANDS = ("snakemake", "dvc")
# with what they import when they come to it
IMPORTED = (
    *("snakemake.cli", "snakemake.report.html_reporter", "smart_open", "edadm.params", "dvc.cli.parser", "dvc.lock"),
    *("dvc.repo.datasets", "dvc.repo.index", "dvc.repo.plots", "dvc.repo.reproduce", "dvc.rwlock", "dvc.scm"),
    *("networkx", "psutil", "pyparsing", "ruamel.yaml"),
)
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(list(IMPORTED))


def run(words: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """One of ``COMMANDS`` with its arguments; what it writes to standard error is in the output as well."""
    with tempfile.NamedTemporaryFile("r") as output:
        process = start(words, cwd, env, output.name)
        process.join()
        return subprocess.CompletedProcess(words, process.exitcode, output.read())


def start(words: Sequence[str], cwd: Path, env: Mapping[str, str], output: Path | str) -> BaseProcess:
    """As ``run``, without waiting for its end: what it writes is appended to a file; its process leads a group."""
    process = _processes.Process(target=_command, args=(words, cwd, dict(env), output))
    process.start()
    return process


def _command(words: Sequence[str], cwd: Path, env: dict[str, str], output: Path | str) -> None:
    os.setpgid(0, 0)
    gc.freeze()  # nothing that is imported is garbage
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = list(words)
    sys.exit(import_module(f"{words[0]}.cli").main())
