"""The command line: what a user can get wrong is one line on stderr, exit code 2, and nothing written."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import tiny
import yaml
from diffusers import DDIMScheduler

from edadm import cli
from edadm.files import sha256
from edadm.systems.system import WEIGHTS

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
    params["systems"][SYSTEM]["sampler"]["steps"] = 4
    params["systems"][SYSTEM]["calibration"] |= {"samples": 8, "batch": 8}
    params["systems"][SYSTEM]["sampling"] |= {"batch": 2, "shard": 4, "images": {"demo": 8, "full": 10}}
    params["variants"]["w4a8"]["reconstruction"] |= {"iterations": 2, "batch": 4}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words: str) -> int:
    """Run the command line; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edadm", *words])
        try:
            cli.main()
        except SystemExit as exit_:
            return exit_.code or 0
    return 0


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a refused command prints."""
    assert call(*words) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("edadm: ")
    assert "\n" not in message
    return message


def test_a_checkpoint_goes_through_to_samples(project: Path) -> None:
    assert call("checkpoint", SYSTEM, "--out", "checkpoint") == 0
    assert call("calibrate", SYSTEM, "tdac", "--checkpoint", "checkpoint", "--out", "tdac.safetensors") == 0
    assert json.loads(Path("tdac.json").read_text())["steps"] == 4
    shared = ("--checkpoint", "checkpoint", "--calibration", "tdac.safetensors", "--scratch", "scratch")
    for variant in ("fp32", "w4a8", "w4a8-rtn"):
        assert call("reconstruct", SYSTEM, variant, *shared, "--out", f"{variant}/quantized") == 0
        assert call("deploy", "--quantized", f"{variant}/quantized", "--out", f"{variant}/engine") == 0
        drawing = ("--engine", f"{variant}/engine", "--checkpoint", "checkpoint", "--scratch", f"{variant}/scratch")
        assert call("sample", SYSTEM, *drawing, "--out", f"{variant}/samples") == 0
        assert sorted(path.name for path in Path(variant, "samples").iterdir()) == ["shard-0000.npz", "shard-0001.npz"]
    sizes = {v: Path(v, "quantized", "model.safetensors").stat().st_size for v in ("fp32", "w4a8")}
    assert sizes["w4a8"] < sizes["fp32"] / 2
    assert not Path("scratch").exists()


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
    listed = capsys.readouterr().out.split("Commands:")[1].split("\n")
    names = [line.split()[0] for line in listed if line.strip()]
    stages = ["checkpoint", "calibrate", "reconstruct", "deploy", "sample", "reference", "metrics", "latency", "tables"]
    assert [name for name in names if name in stages] == stages
