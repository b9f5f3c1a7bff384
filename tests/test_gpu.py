"""workflow/gpu.py: each job of a machine has a GPU of its own; and which rules take one."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from workspace import ROOT, Workspace

GPU = [sys.executable, str(ROOT / "workflow" / "gpu.py")]
ON_GPU = {f"{family}{kind}" for family in ("calibration", "reconstruction") for kind in ("", "_ablation", "_published")}


class Job:
    """A command under gpu.py that says which GPU it has, and ends when it is let go, with exit code 3."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "4,5", "TMPDIR": str(folder)}
        environment.pop("SLURM_JOB_ID", None)
        command = [*GPU, "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; read line; exit 3"]
        piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **piped)

    def gpu(self) -> str:
        return self.process.stdout.readline().strip()

    def let_go(self) -> int:
        self.process.communicate("\n")
        return self.process.returncode


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment with neither Slurm nor GPUs; its PATH begins with a folder of the test's own."""
    left_out = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}


def shown(environment: dict[str, str]) -> str:
    """What a command under gpu.py finds in CUDA_VISIBLE_DEVICES."""
    command = [*GPU, "sh", "-c", "echo ${CUDA_VISIBLE_DEVICES-none}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_two_jobs_have_different_gpus_and_a_third_waits(tmp_path: Path) -> None:
    first, second = Job(tmp_path), Job(tmp_path)
    taken = {first: first.gpu(), second: second.gpu()}
    assert sorted(taken.values()) == ["4", "5"]
    third = Job(tmp_path)
    assert third.process.stderr.readline() == "waiting for a GPU: 4, 5\n"  # it has looked at both
    assert first.let_go() == 3
    assert third.gpu() == taken[first]
    fourth = Job(tmp_path)
    assert fourth.process.stderr.readline().startswith("waiting")
    second.process.send_signal(signal.SIGKILL)  # what it had is free again
    second.process.communicate()
    assert fourth.gpu() == taken[second]
    assert third.let_go() == fourth.let_go() == 3


def test_without_gpus_and_under_slurm_the_command_runs_as_it_is(bare: dict[str, str]) -> None:
    assert shown(bare) == "none"
    assert shown({**bare, "CUDA_VISIBLE_DEVICES": ""}) == ""
    assert shown({**bare, "CUDA_VISIBLE_DEVICES": "4,5", "SLURM_JOB_ID": "1"}) == "4,5"


def test_gpus_that_no_variable_names_are_those_of_nvidia_smi(bare: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho GPU-a\necho GPU-b\n")
    assert shown(bare) == "GPU-a"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rules_take_a_gpu_where_params_say_so(space: Workspace, device: str) -> None:
    with (space.folder / "params.yaml").open("a") as file:
        file.write(f"device: {device}\n")
    output = space.snakemake("-n", "-p", "--forceall", "all", "ablation", "paper").stdout
    jobs = re.findall(r"^rule (\w+):\n(.*?)(?=^\[|^rule |\Z)", output, re.DOTALL | re.MULTILINE)
    assert ON_GPU.issubset(rule for rule, _ in jobs)
    expected = ON_GPU if device == "cuda" else set()
    assert {rule for rule, job in jobs if "gpu=1" in job} == expected
    assert {rule for rule, job in jobs if "workflow/gpu.py python workflow/repro.py" in job} == expected
