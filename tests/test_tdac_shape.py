"""benchmarks/tdac_shape.py on a curve of the figure's shape, and on others."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


def curves() -> dict:
    """The shape that method.md A.5 describes, drawn with straight lines; steps 100 to 1."""
    steps = np.arange(100, 0, -1)
    diversity = np.interp(steps, (1, 48, 52, 75, 100), (0.3, 0, 0, 0.1, 1))
    density = np.interp(steps, (1, 3, 38, 42, 90, 100), (0.08, 0, 1, 1, 0.05, 0))
    counts = np.interp(steps, (1, 6, 38, 42, 76, 100), (5, 4, 15, 15, 5, 17)).round()
    described = {"density": density.tolist(), "diversity": diversity.tolist(), "counts": counts.tolist()}
    return {"calibrator": "tdac", "steps": 100, "samples": 1024} | described


def run(folder: Path, description: dict) -> subprocess.CompletedProcess[str]:
    (folder / "tdac.json").write_text(json.dumps(description))
    command = [sys.executable, "benchmarks/tdac_shape.py", str(folder / "tdac.json")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_figures_own_shape_fits(tmp_path: Path) -> None:
    done = run(tmp_path, curves())
    assert done.returncode == 0 and "APART" not in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["density", "diversity", "counts"])
def test_a_reversed_curve_is_apart(tmp_path: Path, name: str) -> None:
    described = curves()
    described[name].reverse()
    done = run(tmp_path, described)
    apart = [line.split(",")[0] for line in done.stdout.splitlines() if "APART" in line]
    assert done.returncode == 1 and set(apart) == {name}


@pytest.mark.parametrize("changed", [{"calibrator": "uniform"}, {"steps": 20}, {"samples": 512}])
def test_another_protocol_is_one_line(tmp_path: Path, changed: dict) -> None:
    done = run(tmp_path, curves() | changed)
    assert done.returncode == 1 and done.stderr.startswith(f"Error: {next(iter(changed))} is ")
    assert len(done.stderr.splitlines()) == 1
