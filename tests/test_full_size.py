"""CIFAR-10 at its full size through the whole pipeline, with random weights and short settings: `pytest -m slow`."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import call
from safetensors import safe_open

from edadm.evaluation import samples

ROOT = Path(__file__).parent.parent
KIND = "cifar10-ddim"
LINEAR_AND_CONVOLUTION_WEIGHTS = 35_691_264  # method.md C.5: all that is quantized
PARAMETERS = 35_746_307


@pytest.mark.slow
def test_cifar_at_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings = params["published"]["systems"][KIND]
    settings["sampler"]["steps"] = 4
    settings["calibration"] |= {"samples": 8, "batch": 4}
    settings["sampling"] |= {"batch": 2, "shard": 2, "images": {"demo": 2, "full": 2}}
    params["variants"]["cifar10-w4a8"]["reconstruction"] |= {"iterations": 3, "batch": 4}
    params["metrics"]["kid_subset_size"] = 2
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    assert call("checkpoint", KIND, "--random", "--out", "checkpoint") == 0
    shared = ("--checkpoint", "checkpoint", "--out")
    assert call("calibrate", KIND, "tdac", *shared, "tdac.safetensors") == 0
    learned = ("--calibration", "tdac.safetensors", "--scratch", "w4a8/scratch")
    assert call("reconstruct", KIND, "cifar10-w4a8", *learned, *shared, "w4a8/quantized") == 0
    assert call("deploy", "--quantized", "w4a8/quantized", "--out", "w4a8/engine") == 0
    drawn = ("--engine", "w4a8/engine", "--protocol", "full", "--scratch", "w4a8/scratch")
    assert call("sample", KIND, *drawn, *shared, "w4a8/samples") == 0
    images = np.concatenate(list(samples.batches(samples.open_folder(Path("w4a8/samples")), 2)))
    assert images.shape == (2, 32, 32, 3) and not np.array_equal(*images)
    verified = ("--quantized", "w4a8/quantized", "--engine", "w4a8/engine", "--calibration", "tdac.safetensors")
    assert call("verify", *verified, "--images", "2", "--out", "verification.json") == 0
    assert json.loads(Path("verification.json").read_text())["worst_layer_error"] <= 1e-6
    with safe_open("checkpoint/unet/diffusion_pytorch_model.safetensors", "np") as file:
        assert sum(np.prod(file.get_slice(name).get_shape()) for name in file.keys()) == PARAMETERS  # noqa: SIM118
    size = Path("w4a8/quantized/model.safetensors").stat().st_size
    arithmetic = LINEAR_AND_CONVOLUTION_WEIGHTS // 2 + 4 * (PARAMETERS - LINEAR_AND_CONVOLUTION_WEIGHTS)
    assert arithmetic < size < 1.02 * arithmetic  # and scales, and two layers of 8 bits
