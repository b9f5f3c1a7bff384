"""TDAC: which steps the calibration set is drawn from (density and diversity of mid-block features).

Features are (T, n, ...), or T tensors (n, ...) of n samples. The scores are sums over samples: they are computed in
float64 of a few samples at a time, since a copy of all features in it can be larger than memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

AT_ONCE = 2**24  # values

Features = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Allocation:
    """Scores and sample count per step, in sampling order (index 0 is the noisiest)."""

    density: Tensor  # (T,) float64 in [0, 1]
    diversity: Tensor  # (T,) float64 in [0, 1]
    counts: Tensor  # (T,) int64
    radius: float


def _normalise(scores: Tensor) -> Tensor:
    """Min-max to [0, 1]; all equal scores say nothing and become 0 (the reference divides by 0 there)."""
    spread = scores.max() - scores.min()
    return torch.zeros_like(scores) if spread <= 0 else (scores - scores.min()) / spread


def _few_samples(features: Features) -> Iterator[Tensor]:
    """The features in float64, (T, some of the samples, ...) at a time."""
    samples = len(features[0])
    size = max(1, AT_ONCE * samples // (len(features) * features[0].numel()))
    for start in range(0, samples, size):
        yield torch.stack([step[start : start + size] for step in features]).double()


def pairwise_distances(features: Features) -> Tensor:
    """Mean squared difference of features (T, n, ...) for every pair of steps, (T, T) float64, diagonal 0."""
    products = sum(part.flatten(1) @ part.flatten(1).T for part in _few_samples(features))
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * products).clamp_min(0) / features[0].numel()
    return distances.fill_diagonal_(0)


def density(features: Features, radius: float) -> Tensor:
    """For each step of features (T, n, ...) the number of other steps within ``radius``, normalised to [0, 1]."""
    near = pairwise_distances(features) <= radius
    return _normalise((near.sum(1) - 1).double())


def diversity(features: Features) -> Tensor:
    """For each step of features (T, n, c, ...): the sum over other steps, samples and places of 1 - cosine over c.

    Normalised to [0, 1]. As sums of unit vectors: sum_j cos(f_i, f_j) = u_i . sum_j u_j.
    """
    places = features[0].numel() / features[0].shape[1]
    cosines = torch.zeros(len(features), dtype=torch.float64)
    for part in _few_samples(features):
        units = F.normalize(part, dim=2, eps=1e-6)
        cosines += (units * (units.sum(0) - units)).flatten(1).sum(1)
    return _normalise((len(features) - 1) * places - cosines)


def radius_from_quantile(features: Features, quantile: float) -> float:
    """The ``quantile`` of the distances between different steps; of a single step, 0."""
    if len(features) == 1:
        return 0.0
    distances = pairwise_distances(features)
    upper = distances[torch.triu(torch.ones_like(distances, dtype=torch.bool), 1)]
    return torch.quantile(upper, quantile).item()


def apportion(weights: Tensor, total: int) -> Tensor:
    """Whole counts, (T,) int64, that sum to ``total`` and follow ``weights`` >= 0 (largest remainder).

    Equal remainders go to the earlier step; weights that sum to 0 are taken as equal.
    """
    weights = weights.double()
    if weights.sum() <= 0:
        weights = torch.ones_like(weights)
    shares = total * weights / weights.sum()
    counts = shares.floor().long()
    order = torch.argsort(counts - shares, stable=True)
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def allocate(features: Features, samples: int, diversity_weight: float, radius: float) -> Allocation:
    """Distribute ``samples`` over the T steps of features (T, n, c, h, w): weight D + lambda V."""
    dense, diverse = density(features, radius), diversity(features)
    counts = apportion(dense + diversity_weight * diverse, samples)
    return Allocation(dense, diverse, counts, radius)
