"""benchmarks/latency.py: the recipes it times, its table, and one system for real (slow)."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from edadm import params

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def latency(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("latency")


def test_the_timed_recipes_are_the_systems_own_without_learning(latency: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    for system in latency.SYSTEMS:
        path.write_text(yaml.safe_dump(latency.settings(system)))
        found = params.load(path)
        assert {found.variants[f"timed-{name}"].weights for name in latency.VARIANTS} == {32, 8, 4}
        assert all(found.variants[f"timed-w{bits}a8"].reconstruction.method == "none" for bits in (8, 4))
        published = system in found.published.systems
        assert found.variants["timed-w8a8"].attention == (8 if published else 32)


def row(system: str, configuration: str, batch: int, ms: float) -> dict:
    return {"system": system, "configuration": configuration, "batch": batch, "median_ms": ms}


def test_what_is_measured_replaces_its_rows_and_no_others(latency: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    old = [row("church-ldm8", "a", 1, 5.0), row("cifar10-ddim", "a", 1, 7.0), row("cifar10-ddim", "a", 8, 9.0)]
    path.write_text(json.dumps({"systems": {"church-ldm8": {}, "cifar10-ddim": {"gmac": 1}}, "rows": old}))
    new = row("cifar10-ddim", "b", 1, 3.0)
    found = latency.merged(path, {"systems": {"cifar10-ddim": {"gmac": 2}}, "rows": [new]})
    assert found == {"systems": {"church-ldm8": {}, "cifar10-ddim": {"gmac": 2}}, "rows": [new, old[2], old[0]]}


def test_ratios_are_to_the_same_system_and_batch(latency: ModuleType) -> None:
    rows = [row("s", "slow", 1, 8.0), row("s", "fast", 1, 2.0), row("s", "slow", 8, 40.0), row("s", "fast", 8, 4.0)]
    lines = latency.table(rows, ("slow",)).splitlines()
    assert [line.split()[5] for line in lines] == ["1.00x", "4.00x", "1.00x", "10.00x"]


def test_a_configuration_that_fails_is_left_out_and_said(latency: ModuleType, tmp_path: Path) -> None:
    one = latency.Process("edadm-w8a8", tmp_path, 1, 1)  # an empty folder
    assert "engine.json: no such file" in one.loaded["failed"]
    one.end()


@pytest.mark.slow
def test_a_small_system_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    names = ("pytorch-fp32-eager", "openvino-bf16", "edadm-w4a8")
    chosen = [word for name in names for word in ("--only", name)]
    command = [sys.executable, "benchmarks/latency.py", "fashion-ddim", "--batches", "2", "--rounds", "2", *chosen]
    subprocess.run([*command, "--out", str(out)], cwd=ROOT, check=True)
    found = json.loads(out.read_text())
    assert [row["configuration"] for row in found["rows"]] == list(names)
    assert all(0 < row["min_ms"] <= row["median_ms"] and row["batch"] == 2 for row in found["rows"])
    own = found["systems"]["fashion-ddim"]
    assert 0.14 < own["gmac"] < 0.16 and own["int8_gops"] > 1
    assert any(name.endswith("_I8") for name in own["ms_by_node"]["w8a8-f32"])
