"""``edadm info`` and ``edadm compare``: whatever is written is described, and differences are found."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_pipelines
import torch
from click.testing import CliRunner
from hostile import refused
from safetensors.torch import save_file

from edadm import artifacts, comparison
from edadm.cli import cli
from edadm.engines import cpu
from edadm.errors import InputError
from edadm.evaluation import samples
from edadm.params import CalibrationParams
from edadm.pipelines.calibrate import collect
from edadm.quantization import calibration, fbr, reconstruction
from edadm.systems import class_embedder

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything."""
    root = tmp_path_factory.mktemp("written")
    cpu.deploy(tiny.save(root / "quantized"), root / "engine-cpu")
    tiny.save_float(root / "float")
    class_embedder.save(class_embedder.ClassEmbedder(3, 5), root / "embedder")
    tiny_pipelines.ddim(root / "pipeline")
    tiny.latent_checkpoint(root / "checkpoint")
    images = np.zeros((4, 8, 8, 1), np.uint8)
    samples.write_shard(root / "samples" / "shard-0000.npz", images, np.arange(7, 11), "made so")
    settings = CalibrationParams(samples=4, batch=4, diversity_weight=1.0, radius_quantile=0.5, seed=0)
    unet = tiny.unet()

    def draw(seeds: range) -> None:
        for step in (500, 0):
            unet(torch.zeros(len(seeds), 1, 8, 8), step)

    found = collect(unet, draw, "tdac", settings)
    file = root / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    calibration.write(root / "calibration-tdac.safetensors", *found, "tdac", settings, file)
    result = fbr.UnitResult("conv_in", "layer", [(1, 0.5)], 2.0, 1.0)
    reconstruction.UnitCheckpoints(root / "scratch", "mark").keep(0, {"a": torch.zeros(1)}, result)
    (root / "losses.csv").write_text(reconstruction._losses_csv([result]))
    return root


@pytest.mark.parametrize(
    ("path", "kind", "more"),
    [
        ("quantized", "quantized UNet2DModel", {"layers by bits": {"4": 53, "8": 2}}),
        ("quantized/config.json", "quantized UNet2DModel", {}),
        ("quantized/model.safetensors", "quantized UNet2DModel", {}),
        ("engine-cpu", "engine for cpu", {"integer layers": 56}),
        ("engine-cpu/engine.json", "engine for cpu", {}),
        ("engine-cpu/size.json", "engine for cpu", {}),
        ("float", "full-precision UNet2DModel", {"files": ["model.safetensors"]}),
        ("embedder", "class embedder", {"classes": 3, "width": 5}),
        ("pipeline", "pipeline (DDIMPipeline)", {"unet: kind": "full-precision UNet2DModel"}),
        ("checkpoint", "pipeline (checkpoint of a system)", {}),
        ("samples", "samples", {"images": 4, "seeds": "7 to 10", "fingerprint": "made so"}),
        ("samples/shard-0000.npz", "shard of samples", {"seeds": "7 to 10"}),
        ("calibration-tdac.safetensors", "calibration set", {"x": (4, 1, 8, 8), "t": (4,), "samples": 4}),
        ("calibration-tdac.json", "description of a calibration set", {"steps": 2}),
        ("scratch", "scratch of a reconstruction", {"finished units": 1}),
        ("scratch/unit-0000.safetensors", "finished unit of a reconstruction", {"unit": "conv_in"}),
        ("losses.csv", "losses of reconstruction", {"rows": 1}),
        (".", "results", {"losses.csv": "losses of reconstruction", "samples": "samples"}),
    ],
)
def test_what_is_written_is_described(written: Path, path: str, kind: str, more: dict) -> None:
    described = artifacts.describe(written / path)
    assert described["kind"] == kind
    assert {key: described[key] for key in more} == more
    assert all(isinstance(line, str) and "\n" not in line for line in artifacts.lines(described))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("results/fashion-ddim/w8a8/metrics.json", "quality metrics"),
        ("results/fashion-ddim/w8a8/layer-errors.csv", "errors of layers"),
        ("results/fashion-ddim/w8a8/verification.json", "comparison of an engine with exact integers"),
        ("results/fashion-ddim/latency-cpu.json", "latencies"),
        ("results/fashion-ddim/reference.json", "quality of held-out real images"),
        ("results/tables/quality.csv", "table of quality"),
        ("results/tables/size.csv", "table of sizes"),
        ("results/tables/latency.csv", "table of latencies"),
        ("results/tables/exactness.csv", "table of exactness"),
        ("assets/garment-classifier/reference.npz", "reference statistics"),
        ("assets/fashion-ddim/training.csv", "training curve"),
        ("assets/fashion-ldm/class_embedder/model.safetensors", "class embedder"),
    ],
)
def test_what_is_committed_is_described(path: str, kind: str) -> None:
    assert artifacts.describe(ROOT / path)["kind"] == kind


def test_what_is_not_ours_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, content in {
        "notes.txt": b"hello",
        "list.json": b"[1, 2]",
        "other.json": b'{"a": 1}',
        "broken.json": b"{",
        "other.csv": b"a,b\n1,2\n",
        "empty.csv": b"",
        "broken.npz": b"PK",
        "broken.safetensors": b"x",
        "page.html": b"<title>hello</title>",
    }.items():
        (tmp_path / name).write_bytes(content)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "alone").mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "alone" / "other.safetensors")
    paths = [*tmp_path.iterdir(), tmp_path / "alone" / "other.safetensors", tmp_path / "nowhere"]
    assert len(paths) == 14
    for path in paths:
        with pytest.raises(InputError) as error:
            artifacts.describe(path)
        assert path.name in str(error.value) and "\n" not in str(error.value)


def test_folders_in_folders_end(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).symlink_to(tmp_path)
    assert "not a file or folder that edadm writes" in refused(artifacts.describe, tmp_path)
    (tmp_path / "results" / "system").mkdir(parents=True)
    (tmp_path / "results" / "system" / "losses.csv").write_text("unit,index,kind,iteration\n")
    assert artifacts.describe(tmp_path)["results"] == "results"


def test_info_prints_lines(written: Path) -> None:
    done = CliRunner().invoke(cli, ["info", str(written / "quantized")])
    assert done.exit_code == 0
    assert "kind: quantized UNet2DModel" in done.output and "layers by bits: 4 53, 8 2" in done.output


@pytest.fixture
def results(tmp_path: Path, written: Path) -> tuple[Path, Path]:
    """Two folders of results that differ in known places."""
    for name in ("one", "other"):
        run = tmp_path / name / "system" / "w4a8"
        run.mkdir(parents=True)
        shutil.copytree(written / "quantized", run / "quantized")
        (run / "metrics.json").write_text(json.dumps({"fid": 4.0, "n": 100, "shares": [0.5, 0.5], "v": {"torch": "2"}}))
        rows = [{"configuration": "fp32", "batch": 1, "median_ms": 2.0}]
        (tmp_path / name / "system" / "latency-cpu.json").write_text(json.dumps({"device": "a", "rows": rows}))
    return tmp_path / "one", tmp_path / "other"


def test_equal_results_have_no_difference(results: tuple[Path, Path]) -> None:
    assert comparison.compare(*results) == []
    done = CliRunner().invoke(cli, ["compare", *map(str, results)])
    assert (done.exit_code, done.output) == (0, "no difference\n")


def test_every_difference_is_found_once(results: tuple[Path, Path]) -> None:
    one, other = results
    metrics = other / "system" / "w4a8" / "metrics.json"
    metrics.write_text(json.dumps({"fid": 5.0, "n": 100, "shares": [0.4, 0.6], "v": {"torch": "3"}, "kid": 1.0}))
    config = other / "system" / "w4a8" / "quantized" / "config.json"
    config.write_text(config.read_text().replace('"weights": 4', '"weights": 6'))
    latency = other / "system" / "latency-cpu.json"
    latency.write_text(latency.read_text().replace("2.0", "1.5"))
    (other / "system" / "reference.json").write_text('{"fid": 0.1}')
    (other / "notes.json").write_text('{"fid": 0.1}')  # not a result
    found = {(each.file, each.key): (each.first, each.second) for each in comparison.compare(one, other)}
    assert found == {
        ("system/w4a8/metrics.json", "fid"): (4.0, 5.0),
        ("system/w4a8/metrics.json", "shares"): ([0.5, 0.5], [0.4, 0.6]),
        ("system/w4a8/metrics.json", "v.torch"): ("2", "3"),
        ("system/w4a8/metrics.json", "kid"): (None, 1.0),
        ("system/w4a8/quantized/config.json", "recipe.weights"): (4, 6),
        ("system/latency-cpu.json", "rows.fp32, batch 1.median_ms"): (2.0, 1.5),
        ("system/reference.json", "file"): ("missing", "there"),
    }
    # two variants are compared as well as two results, and a change is given in per cent
    lines = [str(each) for each in comparison.compare(one / "system" / "w4a8", other / "system" / "w4a8")]
    assert "metrics.json fid: 4 -> 5 (+25.0%)" in lines


def test_folders_without_results_are_refused(tmp_path: Path, results: tuple[Path, Path]) -> None:
    for folder in (tmp_path / "nowhere", ROOT / "src"):
        with pytest.raises(InputError, match=folder.name):
            comparison.compare(results[0], folder)
