"""TDAC against plain loops over the published formulas, and the allocation's properties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from edadm.quantization import tdac


@pytest.fixture
def features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(12, 3, 5, 2, 2, generator=generator).cumsum(0)
    return walk + torch.randn(3, 5, 2, 2, generator=generator)


def normalised(values: list[float]) -> list[float]:
    return [(value - min(values)) / (max(values) - min(values)) for value in values]


def test_density_counts_neighbours(features: torch.Tensor) -> None:
    radius = 2.5
    counts = [
        sum(((a - b) ** 2).mean().item() <= radius for j, b in enumerate(features) if j != i)
        for i, a in enumerate(features)
    ]
    assert tdac.density(features, radius).tolist() == pytest.approx(normalised(counts))


def test_diversity_sums_cosine_distances(features: torch.Tensor) -> None:
    sums = [
        sum((1 - F.cosine_similarity(a, b, dim=1)).sum().item() for j, b in enumerate(features) if j != i)
        for i, a in enumerate(features)
    ]
    assert tdac.diversity(features).tolist() == pytest.approx(normalised(sums), abs=1e-5)


def test_distances_match_a_double_loop(features: torch.Tensor) -> None:
    expected = torch.tensor([[((a - b) ** 2).mean().item() for b in features] for a in features])
    assert torch.allclose(tdac.pairwise_distances(features).float(), expected, atol=1e-5)


def test_scores_of_a_few_samples_at_a_time_add_up(features: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tdac.pairwise_distances(features), tdac.diversity(features)
    monkeypatch.setattr(tdac, "AT_ONCE", 2 * features[:, 0].numel())  # 2 of the 3
    parts = [part.shape[1] for part in tdac._few_samples(list(features))]
    assert parts == [2, 1]
    for found, expected in zip((tdac.pairwise_distances(features), tdac.diversity(list(features))), whole, strict=True):
        assert torch.allclose(found, expected, rtol=1e-12)


def test_equal_features_give_equal_shares() -> None:
    allocation = tdac.allocate(torch.ones(7, 2, 3, 1, 1), samples=21, diversity_weight=1.2, radius=0.3)
    assert allocation.counts.tolist() == [3] * 7


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.integers(0, 5000))
def test_apportioning_is_exact_and_fair(weights: list[float], total: int) -> None:
    shares = torch.tensor(weights, dtype=torch.float64)
    counts = tdac.apportion(shares, total)
    assert counts.sum() == total
    assert (counts >= 0).all()
    if shares.sum() > 0:
        assert ((counts - total * shares / shares.sum()).abs() <= 1 + 1e-6).all()


def test_radius_quantile_is_that_of_the_distances(features: torch.Tensor) -> None:
    upper = [
        ((features[i] - features[j]) ** 2).mean() for i in range(len(features)) for j in range(i + 1, len(features))
    ]
    assert tdac.radius_from_quantile(features, 0.5) == pytest.approx(torch.stack(upper).quantile(0.5).item(), rel=1e-5)


def test_a_single_step_gets_every_sample(features: torch.Tensor) -> None:
    radius = tdac.radius_from_quantile(features[:1], 0.5)
    assert tdac.allocate(features[:1], 7, 1.2, radius).counts.tolist() == [7]


@given(
    steps=st.integers(1, 12),
    samples=st.integers(0, 400),
    weight=st.floats(0, 100),
    radius=st.floats(0, 50),
    spread=st.sampled_from([0.0, 1e-6, 1.0, 1e3]),
    seed=st.integers(0, 1000),
)
def test_allocations_sum_exactly_and_scores_lie_between_0_and_1(
    steps: int, samples: int, weight: float, radius: float, spread: float, seed: int
) -> None:
    """For any features, also all equal ones, a single step, and zeros."""
    features = spread * torch.randn(steps, 2, 3, 1, 1, generator=torch.Generator().manual_seed(seed))
    allocation = tdac.allocate(features, samples, weight, radius)
    assert allocation.counts.sum() == samples and (allocation.counts >= 0).all()
    for scores in (allocation.density, allocation.diversity):
        assert ((scores >= 0) & (scores <= 1)).all()
