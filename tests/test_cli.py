"""The command line: what a user can get wrong is one line on stderr, exit code 2, and nothing written."""

import json
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import tiny
import torch
import yaml
from command_line import call
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file

from edadm import engines
from edadm.cli import build
from edadm.files import sha256
from edadm.systems.folder import WEIGHTS, weights_sha256

ROOT = Path(__file__).parent.parent
SYSTEM = "fashion-ddim"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny checkpoint as the system's source."""
    source = tmp_path / "source"
    tiny.unet().save_pretrained(source / "unet")
    DDIMScheduler().save_pretrained(source / "scheduler")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["systems"][SYSTEM]["checkpoint"] = {"source": str(source), "sha256": sha256(source / WEIGHTS)}
    params["engine"]["threads"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a refused command prints."""
    assert call(*words) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("edadm: ")
    assert "\n" not in message
    return message


@pytest.fixture
def added(project: Path) -> str:
    """The project with the system of docs/add-a-system.md, put there by its block alone; the system's name."""
    block = documented_block()
    (name,) = block["systems"]
    settings = block["systems"][name]
    source = tiny.latent_checkpoint(project / settings["checkpoint"]["source"])
    settings["checkpoint"]["sha256"] = weights_sha256(source)
    settings["sampler"]["steps"] = 3  # smaller, but the same otherwise
    settings["calibration"] |= {"samples": 6, "batch": 4}
    settings["sampling"] |= {"batch": 4, "shard": 6, "images": {"demo": 12, "full": 12}}
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["pipeline"]["systems"].append(name)
    for key in ("runs", "systems"):
        params[key] |= block[key]
    params["metrics"] = {"kid_subsets": 2, "kid_subset_size": 5, "neighbours": 2}
    params["latency"] = {"rounds": 1, "batches": [2]}
    params["variants"]["w8a8"]["reconstruction"] |= {"iterations": 2, "batch": 4}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    Path("assets").symlink_to(ROOT / "assets")
    return name


def documented_block() -> dict:
    """The YAML of docs/add-a-system.md."""
    return yaml.safe_load((ROOT / "docs" / "add-a-system.md").read_text().split("```yaml")[1].split("```")[0])


def test_a_latent_conditional_system_is_added_by_its_block(
    added: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("results", added)
    checkpoint, calibration = str(folder / "checkpoint"), str(folder / "tdac.safetensors")
    assert call("checkpoint", added, "--out", checkpoint) == 0
    assert call("reference", added, "--out", str(folder / "reference.npz")) == 0
    assert call("calibrate", added, "tdac", "--checkpoint", checkpoint, "--out", calibration) == 0
    data = load_file(calibration)
    assert {key: tuple(value.shape) for key, value in data.items()} == {
        "x": (12, 4, 8, 8),
        "t": (12,),
        "context": (12, 1, tiny.CONTEXT),
        "final": (4, 4, 8, 8),
    }
    embedding = load_file(Path(checkpoint, "class_embedder", "model.safetensors"))["embedding.weight"]
    # the unconditional half, then the classes of seeds 1 to 6
    assert torch.equal(data["context"][:, 0], embedding[[3] * 6 + [1, 2, 0, 1, 2, 0]])
    assert torch.equal(data["x"][:6], data["x"][6:]) and torch.equal(data["t"][:6], data["t"][6:])
    for variant in ("fp32", "w8a8"):
        of_run = folder / variant
        made = ("--checkpoint", checkpoint, "--calibration", calibration, "--scratch", str(of_run / "scratch"))
        assert call("reconstruct", added, variant, *made, "--out", str(of_run / "quantized")) == 0
        engine = str(of_run / "engine-cpu")
        assert call("deploy", "--quantized", str(of_run / "quantized"), "--out", engine) == 0
        drawing = ("--engine", engine, "--checkpoint", checkpoint, "--scratch", str(of_run / "scratch"))
        assert call("sample", added, *drawing, "--out", str(of_run / "samples")) == 0
        measured = ("--samples", str(of_run / "samples"), "--fp32", str(folder / "fp32" / "samples"))
        measured += ("--reference", str(folder / "reference.npz"), "--out", str(of_run / "metrics.json"))
        assert call("metrics", added, variant, *measured) == 0
        assert 0 <= json.loads((of_run / "metrics.json").read_text())["class_accuracy"] <= 1
    scratch = folder / "w8a8" / "scratch"
    for code in ("0" * 64, "1" * 64):  # a shard of other code is not gone on with
        monkeypatch.setattr(build, "sources_sha256", lambda _, code=code: code)
        assert call("sample", added, *drawing, "--shard", "1/2", "--out", str(folder / "none")) == 0
    assert sorted(str(path.relative_to(scratch)) for path in scratch.rglob("*.npz")) == [
        f"{code * 16}/shard-0001.npz" for code in "01"
    ]
    assert not (folder / "none").exists()
    assert call("sample", added, *drawing, "--shard", "0/2", "--out", str(folder / "none")) == 0
    with monkeypatch.context() as patched:  # nothing is left to draw, so no engine is loaded
        patched.setattr(engines, "load", Mock(side_effect=AssertionError))
        assert call("sample", added, *drawing, "--out", str(folder / "gathered")) == 0
    for path in (of_run / "samples").iterdir():
        assert (folder / "gathered" / path.name).read_bytes() == path.read_bytes()
    assert not list(scratch.rglob("*.npz"))
    timed = ("--checkpoint", checkpoint, "--out", str(folder / "latency.json"))
    assert call("latency", added, *timed) == 0
    assert len(json.loads((folder / "latency.json").read_text())["rows"]) == 4
    compared = ("--quantized", str(folder / "w8a8/quantized"), "--engine", str(folder / "w8a8/engine-cpu"))
    compared += ("--calibration", calibration, "--images", "4", "--out", str(folder / "verify.json"))
    assert call("verify", *compared) == 0
    assert json.loads((folder / "verify.json").read_text())["worst_layer_error"] <= 1e-6

    capsys.readouterr()
    # what is of another system or has no such name is one line, before anything is computed
    assert "unknown variant 'w9a9'" in refused(capsys, "metrics", added, "w9a9", *measured)
    other = Path("other.safetensors")
    save_file({"x": torch.randn(8, 1, 8, 8), "t": torch.arange(8)}, other)
    mixed = [str(other) if word == calibration else word for word in compared]
    of_other = "are of another system: the network takes x (4, 8, 8), t (), context (-1, 12)"
    assert of_other in refused(capsys, "verify", *mixed)
    mixed = ("--checkpoint", checkpoint, "--calibration", str(other), "--scratch", "s", "--out", "none")
    assert of_other in refused(capsys, "reconstruct", added, "w8a8", *mixed)
    mixed = ("--checkpoint", checkpoint, "--calibration", str(other), "--quantized", str(folder / "w8a8/quantized"))
    assert of_other in refused(capsys, "layer-errors", *mixed, "--out", "none")
    assert not Path("none").exists()


def test_outputs_whose_description_goes_beside_them_are_named_so(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = ("--checkpoint", "c", "--out", "out.json")
    assert "ends with .safetensors" in refused(capsys, "calibrate", SYSTEM, "tdac", *drawn)
    assert "ends with .npz" in refused(capsys, "reference", SYSTEM, "--out", "out.json")


def test_unknown_names(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown system 'mnist'" in refused(capsys, "checkpoint", "mnist", "--out", "out")
    words = ("--checkpoint", "c", "--calibration", "f", "--scratch", "s", "--out", "out")
    assert "unknown variant 'w5a8'" in refused(capsys, "reconstruct", SYSTEM, "w5a8", *words)
    assert not Path("out").exists()


def test_a_checkpoint_with_another_hash_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = project / "source" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "SHA-256" in refused(capsys, "checkpoint", SYSTEM, "--out", "out")
    assert not Path("out").exists()
    shutil.rmtree(project / "source" / "unet")
    assert "holds no" in refused(capsys, "checkpoint", SYSTEM, "--out", "out")


def test_bad_parameters(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("weights: 4", "weights: 9"))
    assert "weights: 9 is not allowed" in refused(capsys, "checkpoint", SYSTEM, "--out", "out")
    Path("params.yaml").write_text(text.replace("eta:", "etta:"))
    assert "etta: unknown key" in refused(capsys, "checkpoint", SYSTEM, "--out", "out")
    assert "no such file" in refused(capsys, "--params", "nowhere.yaml", "checkpoint", SYSTEM, "--out", "out")


def test_missing_inputs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    train = ("train", "garment-classifier", "--data", "empty", "--out", "out")
    assert "dataset-fashion-mnist" in refused(capsys, *train)
    assert "not a checkpoint in diffusers layout" in refused(
        capsys, "calibrate", SYSTEM, "tdac", "--checkpoint", "empty", "--out", "out.safetensors"
    )
    assert "empty" in refused(capsys, "deploy", "--quantized", "empty", "--out", "out")
    assert not Path("out").exists()
    assert not Path("out.safetensors").exists()


def test_help_lists_the_stages_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    names = re.findall(r"^  (\w+)  ", capsys.readouterr().out, re.MULTILINE)
    stages = ["checkpoint", "calibrate", "reconstruct", "deploy", "sample", "reference", "metrics", "latency", "tables"]
    assert [name for name in names if name in stages] == stages
