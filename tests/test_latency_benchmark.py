"""benchmarks/latency.py: the recipes it times, its table, and one system for real (slow)."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import click
import latency
import pytest
import yaml

from edadm import params

ROOT = Path(__file__).parent.parent


def test_the_timed_recipes_are_the_systems_own_without_learning(tmp_path: Path) -> None:
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


def test_what_is_measured_replaces_its_rows_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    old = [row("church-ldm8", "a", 1, 5.0), row("cifar10-ddim", "a", 1, 7.0), row("cifar10-ddim", "a", 8, 9.0)]
    systems = {"church-ldm8": {"gmac": 3}, "cifar10-ddim": {"gmac": 1, "runs": {"1": "old", "8": "old"}}}
    path.write_text(json.dumps({"systems": systems, "rows": old}))
    new = row("cifar10-ddim", "b", 1, 3.0)
    own = {"gmac": 2, "runs": {"1": "new"}}
    found = latency.merged(path, {"systems": {"cifar10-ddim": own}, "rows": [new]})
    assert found["rows"] == [new, old[2], old[0]]
    assert found["systems"] == systems | {"cifar10-ddim": {"gmac": 2, "runs": {"1": "new", "8": "old"}}}


def test_the_table_divides_by_our_row(tmp_path: Path) -> None:
    medians = {"pytorch-fp32-eager": 80.0, "openvino-fp32": 30.0, "nncf-int8": 25.0, "edadm-w8a8": 20.0}
    rest = {"threads": 4, "min_ms": 1.0, "rounds": 9, "load_s": 1.0, "peak_mib": 1.0, "file_mb": None}
    rows = [row("coco-sd14", name, 2, ms) | rest for name, ms in medians.items()]
    ran = {"device": "An example", "instructions": ["avx512_vnni"], "int8_gops": 1600.0}
    ran |= {"versions": {"openvino": "1"}, "command": "python", "commit": "1234567"}
    path = tmp_path / "rows.json"

    def write(ran: dict, rows: list[dict]) -> None:
        own = {"gmac": 4.0, "runs": {"2": ran, "3": ran | {"int8_gops": 1.0}}}
        path.write_text(json.dumps({"systems": {"coco-sd14": own}, "rows": rows}))

    write(ran, rows)
    lines = latency.summary(path).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:7] == ["`coco-sd14`", "2", "80.0 ms", "30.0 ms", "25.0 ms", "20.0 ms", "–"]
    assert cells[7:] == ["4.00x", "1.50x", "1.25x", "50%", "1234567"]
    assert lines[-1] == "Processor: An example (avx512_vnni), 4 threads."
    write(ran | {"commit": None}, rows[:2])
    assert latency.summary(path).splitlines()[2].endswith("| – | – | – | – | – | – | – |")
    write(ran | {"instructions": []}, rows)
    assert latency.summary(path).splitlines()[-1] == "Processor: An example (no VNNI or AMX found), 4 threads."


@pytest.mark.parametrize(
    ("page", "measured"), [("README.md", "latency-cpu.json"), ("docs/latency.md", "latency-avx2.json")]
)
def test_the_pages_show_what_was_measured(page: str, measured: str) -> None:
    assert latency.summary(latency.OUT.with_name(measured)) in (ROOT / page).read_text()


def test_times_are_shared_out_by_what_nodes_are_for(tmp_path: Path) -> None:
    nodes = {"Convolution brgconv_avx512_1x1_I8": 4.0, "FullyConnected jit_gemm_I8": 2.0, "Subgraph jit_avx512_i8": 1.0}
    nodes |= {"Convolution jit_avx2_FP32": 1.0, "ReduceMean jit_avx512_f32": 1.0, "Reorder jit_uni_I8": 1.0}
    ran = {"ms_by_node": {"w8a8-f32": nodes, "w8a8-bf16": {}}}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"systems": {"coco-sd14": {"gmac": 1.0, "runs": {"1": ran}}}, "rows": []}))
    assert latency.times_by_kind(path).splitlines()[2] == "| `coco-sd14` | 60% | 10% | 20% | 10% |"
    assert latency.times_by_kind(latency.OUT) in (ROOT / "docs/latency.md").read_text()


def test_results_alone_make_no_commit_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        own = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        done = subprocess.run(["git", *own, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    monkeypatch.setattr(latency, "ROOT", tmp_path)
    assert latency.commit() is None
    files = [tmp_path / "source.py", tmp_path / "benchmarks" / "results" / "rows.json"]
    files[1].parent.mkdir(parents=True)
    for file in files:
        file.write_text("old")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    (tmp_path / "untracked").touch()
    head = git("rev-parse", "--short", "HEAD")
    assert latency.commit() == head
    files[1].write_text("new")
    assert latency.commit() == head
    files[0].write_text("new")
    assert latency.commit() == f"{head}-dirty"


def test_memory_is_the_processs_own() -> None:
    held = bytearray(1200 << 20)
    held[::4096] = bytes([1]) * len(held[::4096])  # each page is there
    assert latency.peak_mib() > 1200
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.apply(latency.peak_mib) < 1200


def test_a_configuration_that_fails_is_left_out_and_said(tmp_path: Path) -> None:
    one = latency.Process("edadm-w8a8", tmp_path, 1, 1)  # an empty folder
    assert "engine.json: no such file" in one.loaded["failed"]
    one.end()


def test_with_too_little_memory_all_processes_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Mock(loaded={"load_s": 1.0})
    monkeypatch.setattr(latency, "Process", lambda *_: process)
    monkeypatch.setattr(latency, "FREE", 2**40)
    with pytest.raises(click.ClickException, match="MiB are left"):
        latency.timed("fashion-ddim", ["openvino-fp32", "edadm-w8a8"], tmp_path, 1, 1, 1)
    process.end.assert_called_once()


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
    ran = own["runs"]["2"]
    assert 0.14 < own["gmac"] < 0.16 and ran["int8_gops"] > 1
    assert any(name.endswith("_I8") for name in ran["ms_by_node"]["w8a8-f32"])
