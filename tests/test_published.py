"""The published systems from narrow originals on a local server to images, and the project's settings for them."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import published_project
import pytest
from fileserver import FileServer, serving
from safetensors.torch import load_file

from edadm import cli, params
from edadm.evaluation import samples
from edadm.params.schema import FORMATS
from edadm.systems import download, originals, system

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def server() -> Iterator[FileServer]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, server: FileServer) -> Path:
    folder = tmp_path_factory.mktemp("published")
    published_project.write(folder, server)
    return folder


@pytest.fixture
def project(home: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.delenv(download.FOLDER, raising=False)
    server.asked.clear()
    return home


def call(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edadm", *words])
        try:
            cli.main()
        except SystemExit as exit_:
            return exit_.code or 0
    return 0


def recipe(kind: str, variant: str) -> str:
    return params.load("params.yaml").published.runs[f"{kind}-{variant}"].recipe


def quantize_and_draw(kind: str, variant: str, of_system: Path) -> Path:
    """From the calibration set to images; the folder of the images."""
    folder = of_system / variant
    shared = ("--checkpoint", str(of_system / "checkpoint"), "--scratch", str(folder / "scratch"))
    calibration = ("--calibration", str(of_system / "tdac.safetensors"))
    out = {name: str(folder / name) for name in ("quantized", "engine", "samples")}
    assert call("reconstruct", kind, recipe(kind, variant), *shared, *calibration, "--out", out["quantized"]) == 0
    assert call("deploy", "--quantized", out["quantized"], "--out", out["engine"]) == 0
    drawing = ("--engine", out["engine"], "--protocol", "full", *shared, "--out", out["samples"])
    assert call("sample", kind, *drawing) == 0
    return folder / "samples"


@pytest.mark.parametrize("kind", FORMATS)
def test_from_a_url_to_images(project: Path, kind: str) -> None:
    of_system = project / "results" / kind
    assert call("checkpoint", kind, "--out", str(of_system / "checkpoint")) == 0
    calibration = of_system / "tdac.safetensors"
    made = ("--checkpoint", str(of_system / "checkpoint"), "--out", str(calibration))
    assert call("calibrate", kind, "tdac", *made) == 0
    settings = params.load("params.yaml").system(kind)
    calls = settings.sampler.steps + (settings.sampler.name == "plms")
    assert json.loads(calibration.with_suffix(".json").read_text())["steps"] == calls
    rows = 6 if settings.sampler.guidance == 1 else 12
    assert len(load_file(calibration)["x"]) == rows
    drawn = samples.open_folder(quantize_and_draw(kind, "w4a8", of_system), range(10, 13))
    scale = {"cifar10-ddim": 1, "church-ldm8": 8, "coco-sd14": 8}.get(kind, 4)
    assert drawn.shape == (16 * scale, 16 * scale, 3)
    images = np.concatenate(list(samples.batches(drawn, 3)))
    assert all(image.std() > 1 for image in images) and not np.array_equal(images[0], images[1])
    assert (drawn.labels is not None) == (kind == "imagenet-ldm4")
    assert (drawn.captions is not None) == (kind == "coco-sd14")
    loaded = system.load(of_system / "checkpoint")
    if drawn.captions is not None:
        assert drawn.captions.tolist() == loaded.prompts(range(10, 13))


def test_formats_are_those_of_the_converters() -> None:
    assert FORMATS == originals.KINDS
