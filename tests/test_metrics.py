"""Metrics against scipy, closed forms and torch-fidelity's own entry point; what identical and bad samples score."""

import json
import shutil

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from evaluation_helpers import SEED, N, bars, noise, untrained_extractor, write_samples
from skimage.metrics import structural_similarity
from torch.utils.data import Subset

from edadm import files
from edadm.errors import InputError
from edadm.evaluation import metrics, reference
from edadm.evaluation.extractor import create
from edadm.evaluation.features import Moments, Statistics, extract, in_batches
from edadm.evaluation.samples import write_shard
from edadm.params import MetricsParams, ReferenceParams

NAME = "garment-classifier"
SETTINGS = MetricsParams(kid_subsets=5, kid_subset_size=30, neighbours=3)
REAL = bars(200, seed=9)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An extractor, reference statistics and three sets of samples: fp32, slightly different, and noise."""
    root = tmp_path_factory.mktemp("metrics")
    untrained_extractor(root / "weights")
    reference.build(REAL, root / "reference.npz", NAME, root / "weights", kept=150)
    write_samples(root / "fp32", bars(N), shard=25)
    write_samples(root / "close", close(), shard=25, fingerprint="close")
    write_samples(root / "noise", noise(N), shard=25)
    return root


def close():
    """The fp32 images with an error of at most 8 in all but the first."""
    images = bars(N)
    images[1:] = np.clip(images[1:].astype(int) + np.random.default_rng(3).integers(-8, 9, images[1:].shape), 0, 255)
    return images


def measure(root, samples="close", **changes):
    arguments = {"samples": root / samples, "fp32": root / "fp32", "reference": root / "reference.npz"}
    arguments |= {"extractor": NAME, "weights": root / "weights"}
    arguments |= {"settings": SETTINGS, "seeds": range(SEED, SEED + N)}
    return metrics.measure(**arguments | changes)


def statistics(features):
    moments = Moments()
    moments.add(features)
    return moments.statistics()


def test_frechet_is_the_closed_form_for_independent_gaussians():
    mu, variance = np.array([[0.0, 1.0, -2.0], [0.5, 1.0, 1.0]]), np.array([[1.0, 4.0, 0.0], [9.0, 4.0, 2.0]])
    wanted = ((mu[0] - mu[1]) ** 2).sum() + ((np.sqrt(variance[0]) - np.sqrt(variance[1])) ** 2).sum()
    one, other = (Statistics(mu[i], np.diag(variance[i])) for i in (0, 1))
    assert metrics.frechet(one, other) == pytest.approx(wanted, rel=1e-12)
    assert metrics.frechet(one, one) == pytest.approx(0, abs=1e-12)


def test_frechet_is_that_of_a_matrix_square_root():
    generator = np.random.default_rng(1)
    one = statistics(generator.normal(size=(300, 20)) @ generator.normal(size=(20, 20)))
    other = statistics(generator.normal(size=(300, 20)) @ generator.normal(size=(20, 20)) + 0.3)
    root = scipy.linalg.sqrtm(one.sigma @ other.sigma).real
    wanted = ((one.mu - other.mu) ** 2).sum() + np.trace(one.sigma + other.sigma - 2 * root)
    assert metrics.frechet(one, other) == pytest.approx(wanted, rel=1e-8)


@pytest.mark.parametrize("samples", ["close", "noise"])
def test_numbers_are_torch_fidelitys(root, samples):
    """Everything that torch-fidelity itself computes, on the same images through the registered extractor."""
    # a reference that keeps all its features, since torch-fidelity takes all images for every metric
    whole = reference.build(REAL, root / "whole.npz", NAME, root / "weights", kept=len(REAL))
    assert len(whole.features) == len(REAL)
    found = measure(root, samples, reference=root / "whole.npz")
    images = {"close": close(), "noise": noise(N)}[samples]
    sets = [Subset(torch.from_numpy(array).permute(0, 3, 1, 2), range(len(array))) for array in (images, REAL)]
    common = {"input1": sets[0], "input2": sets[1], "feature_extractor": NAME, "verbose": False, "cache": False}
    common |= {"feature_extractor_weights_path": str(root / "weights"), "cuda": False, "save_cpu_ram": True}
    theirs = torch_fidelity.calculate_metrics(
        **common, fid=True, kid=True, isc=True, prc=True, kid_subsets=5, kid_subset_size=30, prc_neighborhood=3
    )
    assert found["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert found["is_mean"] == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert found["is_std"] == pytest.approx(theirs["inception_score_std"], rel=1e-4)
    # half precision of our stored features, single precision of torch-fidelity's kernel
    assert found["kid_mean"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=2e-3, abs=1e-3)
    assert found["kid_std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=2e-2, abs=1e-4)
    assert found["precision"] == pytest.approx(theirs["precision"], abs=1.5 / N)
    assert found["recall"] == pytest.approx(theirs["recall"], abs=1.5 / len(REAL))
    spatial = torch_fidelity.calculate_metrics(**common, fid=True, feature_layer_fid="spatial")
    assert found["sfid"] == pytest.approx(spatial["frechet_inception_distance"], rel=1e-4)


def test_full_precision_against_itself(root):
    found = measure(root, "fp32")
    assert (found["psnr_fp32"], found["ssim_fp32"], found["feature_distance_fp32"]) == (None, 1.0, 0.0)


def test_distances_to_full_precision(root):
    found = measure(root)
    errors = ((close()[1:].astype(float) - bars(N)[1:]) ** 2).mean((1, 2, 3))
    psnr = np.append(10 * np.log10(255**2 / errors), metrics.PSNR_CAP).mean()  # the first image is identical
    assert found["psnr_fp32"] == pytest.approx(psnr, rel=1e-5)
    ssim = [
        structural_similarity(a[..., 0], b[..., 0], gaussian_weights=True, use_sample_covariance=False, data_range=255)
        for a, b in zip(close(), bars(N), strict=True)
    ]
    assert found["ssim_fp32"] == pytest.approx(np.mean(ssim), rel=1e-5)
    network = create(NAME, root / "weights")
    ours, theirs = (extract(network, in_batches(images)).pooled.numpy() for images in (close(), bars(N)))
    unit = [features / np.linalg.norm(features, axis=1, keepdims=True) for features in (ours, theirs)]
    assert found["feature_distance_fp32"] == pytest.approx(np.linalg.norm(unit[0] - unit[1], axis=1).mean(), rel=1e-4)
    assert 0 < found["feature_distance_fp32"] < measure(root, "noise")["feature_distance_fp32"] <= 2


def test_one_grey_level_in_one_pixel_is_not_identical(root, tmp_path):
    images = bars(N)
    images[0, 0, 0] += 1
    found = measure(root, write_samples(tmp_path, images, N))
    assert found["psnr_fp32"] == pytest.approx((10 * np.log10(255**2 * 1024) + 100 * (N - 1)) / N, rel=1e-5)


def test_noise_is_much_worse(root):
    good, bad = measure(root, "fp32"), measure(root, "noise")
    for name in ("fid", "sfid", "kid_mean"):
        assert bad[name] > 5 * good[name], name
    assert bad["precision"] < good["precision"]
    assert bad["ssim_fp32"] < 0.1 and bad["psnr_fp32"] < 12


def share(rows):
    return rows.float().mean().item()


def test_class_numbers(root):
    found = measure(root)
    logits = extract(create(NAME, root / "weights"), in_batches(close())).logits
    assert found["confident_share"] == pytest.approx(share(logits.softmax(1).amax(1) > 0.8), rel=1e-5)
    assert found["class_shares"] == pytest.approx([share(logits.argmax(1) == c) for c in range(10)], rel=1e-5)
    assert sum(found["class_shares"]) == pytest.approx(1, abs=1e-4)
    assert 0 < found["confident_share"] < 1


def test_class_accuracy_is_of_the_labels(root, tmp_path):
    classes = extract(create(NAME, root / "weights"), in_batches(bars(N))).logits.argmax(1).numpy()
    asked = np.where(np.arange(N) < 45, classes, (classes + 1) % 10)
    assert len(set(classes)) > 1
    for index, start in enumerate(range(0, N, 20)):
        part = slice(start, start + 20)
        seeds = np.arange(SEED, SEED + N)[part]
        write_shard(tmp_path / f"shard-{index}.npz", bars(N)[part], seeds, "mark", asked[part])
    assert measure(root, tmp_path)["class_accuracy"] == pytest.approx(45 / N)
    assert "class_accuracy" not in measure(root)


def test_content_of_the_file(root):
    found = measure(root)
    assert list(found) == [
        *("n", "seed", "fid", "sfid", "is_mean", "is_std", "kid_mean", "kid_std"),
        *("precision", "recall", "psnr_fp32", "ssim_fp32", "feature_distance_fp32", "confident_share", "class_shares"),
        *("extractor", "extractor_sha256", "reference_sha256", "samples_fingerprint", "versions"),
    ]
    assert found["extractor_sha256"] == files.sha256(root / "weights" / "model.safetensors")
    assert found["reference_sha256"] == files.sha256(root / "reference.npz")
    assert (found["n"], found["seed"], found["samples_fingerprint"]) == (N, SEED, "close")
    assert len(found["class_shares"]) == 10


def test_same_bytes_whatever_the_shards_and_threads(root, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "BATCH", 16)  # so that batches and shards cut each other
    wanted = json.dumps(measure(root))
    assert json.dumps(measure(root)) == wanted
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        for shard in (7, N):
            folder = write_samples(tmp_path / str(shard), close(), shard, fingerprint="close")
            assert json.dumps(measure(root, folder)) == wanted
    finally:
        torch.set_num_threads(threads)


def test_bad_input_is_one_line(root, tmp_path):
    def refused(match, **changes):
        with pytest.raises(InputError, match=match) as caught:
            measure(root, **changes)
        assert "\n" not in str(caught.value)

    refused("seeds must be 500 to 560", seeds=range(SEED, SEED + N + 1))
    refused("seeds must be 501 to 559", seeds=range(SEED + 1, SEED + N))
    refused("no shard-", samples=tmp_path)
    refused("no shard-", fp32=tmp_path)
    refused("images of", fp32=write_samples(tmp_path / "small", bars(N)[:, :16], N))
    refused("uint8 images", **dict.fromkeys(("samples", "fp32"), tmp_path / "small"))
    refused("60 images are too few", settings=MetricsParams(kid_subsets=5, kid_subset_size=61, neighbours=3))
    refused("no such file", reference=tmp_path / "reference.npz")
    refused("made with other weights", weights=untrained_extractor(tmp_path / "weights", seed=1))
    (tmp_path / "reference.npz").write_bytes((root / "reference.npz").read_bytes()[:-9])
    refused("not a file of reference statistics", reference=tmp_path / "reference.npz")


def test_reference_is_that_of_the_images(root, tmp_path):
    found = reference.load(root / "reference.npz")
    whole = extract(create(NAME, root / "weights"), in_batches(REAL))
    np.testing.assert_allclose(found.statistics.mu, whole.pooled.double().mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.statistics.sigma, np.cov(whole.pooled.numpy(), rowvar=False), rtol=1e-5, atol=1e-9)
    assert found.statistics.sigma.dtype == found.statistics_spatial.sigma.dtype == np.float64
    assert found.statistics_spatial.sigma.shape == (448, 448)
    assert (found.n, found.features.shape, found.features.dtype) == (200, (150, 128), np.float32)
    np.testing.assert_allclose(found.features[3], whole.pooled[4], rtol=1e-3)  # every 4/3rd image
    reference.build(REAL, tmp_path / "again.npz", NAME, root / "weights", kept=150)
    assert (tmp_path / "again.npz").read_bytes() == (root / "reference.npz").read_bytes()
    other = reference.build(REAL[::-1], tmp_path / "other.npz", NAME, root / "weights")
    assert other.images_sha256 != found.images_sha256


def test_fetching_a_reference_copies_it_or_leaves_nothing(root, tmp_path):
    source, out = tmp_path / "assets", tmp_path / "out"
    settings = ReferenceParams(extractor=NAME, statistics=str(source / "reference.npz"))

    def refused(match):
        with pytest.raises(InputError, match=match) as caught:
            reference.fetch(settings, tmp_path / "new" / "reference.npz")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "new").exists()

    shutil.copytree(root / "weights", source)
    refused("no such file")
    shutil.copy(root / "reference.npz", source)
    reference.fetch(settings, out / "reference.npz")
    assert (out / "reference.npz").read_bytes() == (root / "reference.npz").read_bytes()
    none = files.read_json(out / "reference.json")
    assert none == {"reference_sha256": files.sha256(root / "reference.npz")}

    floor = metrics.floor(bars(N), source / "reference.npz", source, SETTINGS)
    files.write_json(source / "reference.json", floor)
    reference.fetch(settings, out / "reference.npz")
    assert files.read_json(out / "reference.json") == floor
    assert (out / "reference.json").read_bytes() == (source / "reference.json").read_bytes()
    files.write_json(source / "reference.json", floor | {"reference_sha256": "0"})
    refused("reference.json: measured against other statistics")
    (source / "reference.json").unlink()
    reference.fetch(settings, out / "reference.npz")
    assert files.read_json(out / "reference.json") == none

    (source / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes() + b"0")
    refused("SHA-256 differs")
    (source / "reference.npz").write_bytes((root / "reference.npz").read_bytes()[:999])
    refused("not a file of reference statistics")


def test_floor_is_what_the_same_images_score_as_samples(root):
    held_out = metrics.floor(bars(N), root / "reference.npz", root / "weights", SETTINGS)
    scored = measure(root, "fp32")
    for name in ("fid", "sfid", "is_mean", "kid_mean", "precision", "recall", "confident_share", "class_shares", "n"):
        assert held_out[name] == scored[name], name
