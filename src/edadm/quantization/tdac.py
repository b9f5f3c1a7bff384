"""TDAC: which steps the calibration set is drawn from (density and diversity of mid-block features)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


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


def pairwise_distances(features: Tensor) -> Tensor:
    """Mean squared difference of features (T, ...) for every pair of steps, (T, T) float64, diagonal 0."""
    flat = features.flatten(1).double()
    squares = flat.square().sum(1)
    distances = (squares[:, None] + squares[None, :] - 2 * flat @ flat.T).clamp_min(0) / flat.shape[1]
    return distances.fill_diagonal_(0)


def density(features: Tensor, radius: float) -> Tensor:
    """For each step of features (T, ...) the number of other steps within ``radius``, normalised to [0, 1]."""
    near = pairwise_distances(features) <= radius
    return _normalise((near.sum(1) - 1).double())


def diversity(features: Tensor) -> Tensor:
    """For each step of features (T, n, c, ...): the sum over other steps, samples and places of 1 - cosine over c.

    Normalised to [0, 1]. As sums of unit vectors: sum_j cos(f_i, f_j) = u_i . sum_j u_j.
    """
    units = F.normalize(features.double(), dim=2, eps=1e-6)
    places = features[0].numel() / features.shape[2]
    cosines = (units * units.sum(0)).flatten(1).sum(1) - units.square().flatten(1).sum(1)
    return _normalise((len(features) - 1) * places - cosines)


def radius_from_quantile(features: Tensor, quantile: float) -> float:
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


def allocate(features: Tensor, samples: int, diversity_weight: float, radius: float) -> Allocation:
    """Distribute ``samples`` over the T steps of features (T, n, c, h, w): weight D + lambda V."""
    dense, diverse = density(features, radius), diversity(features)
    counts = apportion(dense + diversity_weight * diverse, samples)
    return Allocation(dense, diverse, counts, radius)
