"""Features of a stream of images, extracted once for all metrics.

What grows with the number of images is kept small: pooled features and logits; the spatial ones, the widest,
go into their first two moments as they come.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

# fixed: a convolution's last bits depend on its batch, and results must not depend on the size of the shards
BATCH = 250


@dataclass(frozen=True)
class Statistics:
    """Mean (d,) and covariance (d, d, divided by n - 1), float64."""

    mu: np.ndarray
    sigma: np.ndarray


class Moments:
    """Mean and covariance of features that come in batches, in float64."""

    def __init__(self) -> None:
        self.n, self.total, self.products, self.origin = 0, 0.0, 0.0, 0.0

    def add(self, features: np.ndarray) -> None:
        """Take in features (n, d) of any float type."""
        features = features.astype(np.float64)
        if self.n == 0:
            self.origin = features.mean(0)  # sums around a near mean keep their digits
        features = features - self.origin
        self.n += len(features)
        self.total = self.total + features.sum(0)
        self.products = self.products + features.T @ features

    def statistics(self) -> Statistics:
        """Statistics of everything added; at least two rows are needed."""
        mean = self.total / self.n
        sigma = (self.products - self.n * np.outer(mean, mean)) / (self.n - 1)
        return Statistics(self.origin + mean, sigma)


@dataclass(frozen=True)
class Features:
    """Features of n images: pooled (n, d), class logits and the logits of IS (n, classes) float32; statistics."""

    pooled: Tensor
    logits: Tensor
    logits_is: Tensor
    statistics: Statistics
    statistics_spatial: Statistics


@torch.inference_mode()
def of_batch(extractor: FeatureExtractorBase, images: np.ndarray) -> dict[str, Tensor]:
    """Features of one batch of images (n, H, W, C) uint8, by the metric they serve: fid, sfid, isc, classes."""
    batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous()
    found = extractor.convert_features_tuple_to_dict(extractor(batch))
    layer = extractor.get_default_feature_layer_for_metric
    return {metric: found[layer(metric)] for metric in ("fid", "sfid", "isc", "classes")}


class Collector:
    """Gathers what ``of_batch`` gives into ``Features``."""

    def __init__(self) -> None:
        self.pooled, self.logits, self.logits_is = [], [], []
        self.moments, self.moments_spatial = Moments(), Moments()

    def add(self, found: dict[str, Tensor]) -> None:
        """Take in the features of one batch."""
        self.pooled.append(found["fid"])
        self.logits.append(found["classes"])
        self.logits_is.append(found["isc"])
        self.moments.add(found["fid"].numpy())
        self.moments_spatial.add(found["sfid"].numpy())

    def features(self) -> Features:
        """Everything gathered."""
        return Features(
            torch.cat(self.pooled),
            torch.cat(self.logits),
            torch.cat(self.logits_is),
            self.moments.statistics(),
            self.moments_spatial.statistics(),
        )


def extract(extractor: FeatureExtractorBase, batches: Iterable[np.ndarray]) -> Features:
    """Features of images that come in batches (n, H, W, C) uint8; batches of ``BATCH`` give reproducible bits."""
    collector = Collector()
    for images in batches:
        collector.add(of_batch(extractor, images))
    return collector.features()


def in_batches(images: np.ndarray) -> Iterable[np.ndarray]:
    """An array of images cut into batches of ``BATCH``."""
    return (images[start : start + BATCH] for start in range(0, len(images), BATCH))
