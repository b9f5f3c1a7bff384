"""benchmarks/fid_error.py against FID without each image in turn, and against FID of other images."""

import fid_error
import numpy as np
import pytest

from edadm.evaluation.features import Statistics
from edadm.evaluation.metrics import frechet


def statistics(features: np.ndarray) -> Statistics:
    return Statistics(features.mean(0), np.cov(features, rowvar=False))


def draw(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (
        rng.exponential(size=(n, 4)) @ np.array([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 0.3, 0.1], [0.2, 0, 0, 1.0]])
        + 0.2
    )


REAL = statistics(np.random.default_rng(9).normal(size=(5000, 4)))


def test_an_image_adds_what_fid_loses_without_it() -> None:
    features, n = draw(400, seed=0), 400
    fid = frechet(statistics(features), REAL)
    without = np.array([frechet(statistics(np.delete(features, k, 0)), REAL) for k in range(n)])
    jackknife = (n - 1) * (fid - without)
    assert np.allclose(fid_error.influence(features, REAL), jackknife - jackknife.mean(), rtol=0.1, atol=0.1)
    assert np.isclose(fid_error.influence(features, REAL).mean(), 0, atol=1e-12)


def test_the_error_is_the_spread_over_other_images() -> None:
    """Of FID, and of the difference of two that come of the same draws."""
    fids, differences = [], []
    for seed in range(400):
        features = draw(500, seed)
        fids.append(frechet(statistics(features), REAL))
        differences.append(frechet(statistics(1.05 * features), REAL) - fids[-1])
    features = draw(500, seed=1000)
    added, changed = fid_error.influence(features, REAL), fid_error.influence(1.05 * features, REAL)
    assert fid_error.standard_error(added) == pytest.approx(np.std(fids), rel=0.2)
    assert fid_error.standard_error(changed - added) == pytest.approx(np.std(differences), rel=0.2)


def test_features_that_never_vary() -> None:
    features = np.hstack([draw(300, seed=0), np.zeros((300, 2))])
    real = np.hstack([draw(300, seed=1), np.zeros((300, 2))])
    found = fid_error.influence(features, statistics(real))
    assert np.allclose(found, fid_error.influence(features[:, :4], statistics(real[:, :4])))
