"""The registered feature extractor: right features, right order, refused weights."""

import numpy as np
import pytest
import torch
import torch_fidelity
from evaluation_helpers import bars, untrained_extractor
from PIL import Image
from safetensors.torch import load_file, save_file

from edadm import files
from edadm.errors import InputError
from edadm.evaluation.extractor import EXTRACTORS, create, weights_sha256
from edadm.evaluation.features import Moments, extract, in_batches
from edadm.evaluation.garment_classifier import GarmentClassifier, to_float

NAME = "garment-classifier"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return untrained_extractor(tmp_path_factory.mktemp("extractor") / "weights")


@pytest.fixture(scope="module")
def model(weights):
    model = GarmentClassifier().eval().requires_grad_(False)
    model.load_state_dict(load_file(weights / "model.safetensors"))
    return model


def tensor(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def everything(weights):
    """The extractor giving all its features, made by torch-fidelity itself."""
    every = list(EXTRACTORS[NAME].get_provided_features_list())
    return torch_fidelity.utils.create_feature_extractor(
        NAME, every, cuda=False, feature_extractor_weights_path=str(weights), verbose=False
    )


def test_features_are_those_of_the_classifier(weights, model):
    images = tensor(bars(5))
    extractor = everything(weights)
    found = extractor.convert_features_tuple_to_dict(extractor(images))
    wanted = model(to_float(images))
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "pooled": (5, 128),
        "spatial": (5, 448),
        "logits_unbiased": (5, 10),
        "logits": (5, 10),
    }
    for name in ("pooled", "spatial", "logits"):
        torch.testing.assert_close(found[name], wanted[name])
    torch.testing.assert_close(found["logits_unbiased"] + model.classify.bias, found["logits"])


def test_spatial_features_are_flattened_height_width_channel(weights, model):
    images = tensor(bars(3))
    maps = model.levels[1](model.levels[0](to_float(images)))
    extractor = everything(weights)
    spatial = extractor.convert_features_tuple_to_dict(extractor(images))["spatial"].reshape(3, 8, 8, 7)
    for row, column, channel in ((0, 0, 0), (2, 5, 3), (7, 1, 6)):
        torch.testing.assert_close(spatial[:, row, column, channel], maps[:, channel, row, column])


def test_extraction_does_not_depend_on_batches(weights):
    extractor, images = create(NAME, weights), bars(9)
    whole = extract(extractor, in_batches(images))
    parts = extract(extractor, (images[:4], images[4:]))
    torch.testing.assert_close(whole.pooled, parts.pooled)
    for found in (whole, parts):  # of its own features, which differ in the last digits of float32
        np.testing.assert_allclose(found.statistics.sigma, np.cov(found.pooled.double(), rowvar=False), atol=1e-12)


def test_moments_are_mean_and_covariance():
    features = np.random.default_rng(0).normal(size=(50, 6)) * 0.01 + 1000  # a mean that would eat the digits
    moments = Moments()
    for part in np.split(features, [1, 20]):
        moments.add(part)
    statistics = moments.statistics()
    np.testing.assert_allclose(statistics.mu, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.sigma, np.cov(features, rowvar=False), rtol=1e-9, atol=1e-14)


def test_a_folder_of_png_files_gives_the_same_features(weights, tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        for index, image in enumerate(bars(12, seed)):
            Image.fromarray(image[..., 0]).save(tmp_path / name / f"{index:03d}.png")
    common = {"feature_extractor": NAME, "feature_extractor_weights_path": str(weights), "fid": True}
    common |= {"cuda": False, "cache": False, "verbose": False, "save_cpu_ram": True}
    by_files = torch_fidelity.calculate_metrics(input1=str(tmp_path / "one"), input2=str(tmp_path / "two"), **common)
    sets = [torch.utils.data.Subset(tensor(bars(12, seed)), range(12)) for seed in (1, 2)]
    by_arrays = torch_fidelity.calculate_metrics(input1=sets[0], input2=sets[1], **common)
    assert by_files["frechet_inception_distance"] == pytest.approx(by_arrays["frechet_inception_distance"], rel=1e-6)
    assert by_files["frechet_inception_distance"] > 0


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (torch.zeros(2, 1, 32, 32), "uint8"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "32, 32"),
        (torch.zeros(2, 32, 32, 1, dtype=torch.uint8), "32, 32"),
        (torch.arange(3, dtype=torch.uint8).reshape(1, 3, 1, 1).expand(2, 3, 32, 32), "grey"),
    ],
)
def test_other_images_are_refused(weights, images, match):
    with pytest.raises(InputError, match=match):
        create(NAME, weights)(images)


def test_hash_is_that_of_the_weights(weights):
    assert weights_sha256(NAME, weights) == files.sha256(weights / "model.safetensors")


def test_bad_weights_are_one_line(weights, tmp_path):
    def message():
        with pytest.raises(InputError) as caught:
            create(NAME, tmp_path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no weights at" in message()
    with pytest.raises(InputError, match="no weights at"):
        weights_sha256(NAME, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    assert "does not hold" in message()
    (tmp_path / "model.safetensors").write_bytes((weights / "model.safetensors").read_bytes()[:5000])
    assert "does not hold" in message()
    state = load_file(weights / "model.safetensors")
    state.pop("classify.bias")
    save_file(state, tmp_path / "model.safetensors")
    assert "classify.bias" in message()


def test_unknown_extractor(weights):
    with pytest.raises(InputError, match="unknown extractor 'vgg'; known: garment-classifier, inception"):
        create("vgg", weights)
    with pytest.raises(InputError, match="unknown extractor"):
        weights_sha256("vgg", weights)
