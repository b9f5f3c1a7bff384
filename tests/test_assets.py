"""What ships under assets/ is what its hashes and configurations say, and works on real images."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edadm import params
from edadm.errors import InputError
from edadm.evaluation import reference
from edadm.evaluation.garment_classifier import GarmentClassifier
from edadm.files import sha256
from edadm.systems import fashion_mnist, folder, system
from edadm.training.classifier import accuracy

ROOT = Path(__file__).parent.parent
CLASSIFIER = ROOT / "assets" / "garment-classifier"


def test_hashes_are_those_of_the_list() -> None:
    lines = [line.split("  ") for line in (ROOT / "assets" / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in lines} == {
        str(path.relative_to(ROOT / "assets"))
        for path in (ROOT / "assets").rglob("*")
        if path.is_file() and path.name != "SHA256SUMS"
    }
    for expected, name in lines:
        assert sha256(ROOT / "assets" / name) == expected, name
    for settings in params.load(ROOT / "params.yaml").systems.values():
        assert folder.weights_sha256(ROOT / settings.checkpoint.source) == settings.checkpoint.sha256


@pytest.mark.parametrize("name", params.load(ROOT / "params.yaml").systems)
def test_the_network_is_the_one_that_params_describe(name: str) -> None:
    folder = ROOT / "assets" / name
    trainings = params.load(ROOT / "params.yaml").train
    loaded = system.load(folder)
    trained, first = {
        "fashion-ddim": (trainings.fashion_ddim, {}),
        "fashion-ldm": (trainings.fashion_ldm, trainings.fashion_ldm.autoencoder.model),
    }[name]
    described = {"unet": trained.unet, "vae": first}
    for part, settings in described.items():
        for key, value in settings.items():
            found = json.loads((folder / part / "config.json").read_text())[key]
            assert list(np.atleast_1d(found)) == list(np.atleast_1d(value)), f"{part}: {key}"
    assert loaded.diffusion.prediction == trained.scheduler["prediction_type"]
    assert system.load_unet(folder).config.sample_size == loaded.shape[1]
    assert loaded.decode(torch.zeros(1, *loaded.shape)).shape == (1, 1, 32, 32)


def test_the_classifier_has_its_accuracy_on_the_test_images() -> None:
    images, labels = fashion_mnist.load("test")
    model = GarmentClassifier()
    model.load_state_dict(load_file(CLASSIFIER / "model.safetensors"))
    pixels = torch.from_numpy(images.copy()).permute(0, 3, 1, 2)
    stated = json.loads((CLASSIFIER / "config.json").read_text())["test_accuracy"]
    assert accuracy(model, pixels, torch.from_numpy(labels.copy())) == pytest.approx(stated, abs=0.001)


def test_the_reference_belongs_to_the_classifier() -> None:
    loaded = reference.load(CLASSIFIER / "reference.npz")
    assert loaded.extractor_sha256 == sha256(CLASSIFIER / "model.safetensors")
    assert loaded.n == 60_000


def test_other_images_under_the_same_names_are_refused(tmp_path: Path) -> None:
    for name in fashion_mnist.SHA256:
        (tmp_path / name).write_bytes(b"\0\0\x08\x01" + b"\0\0\0\x01" + b"x")
    with pytest.raises(InputError, match="not the published file"):
        fashion_mnist.load("train", tmp_path)
    for name in fashion_mnist.SHA256:
        (tmp_path / name).unlink()
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"x" * 99)[:10] + b"\xff" * 20)
    with pytest.raises(InputError, match="cannot read"):
        fashion_mnist.load("train", tmp_path)
    with pytest.raises(InputError, match="dataset-fashion-mnist"):
        fashion_mnist.load("train", tmp_path / "nowhere")
