"""Quality of samples: against the reference statistics, and image by image against full precision.

Against the reference, the formulas are torch-fidelity's own, on features extracted once and turned to float64. Numbers
are rounded to 6 significant digits: with batches of a fixed size and fixed seeds, what another number of threads can
still move lies far below that, so equal samples give equal bytes.
"""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from edadm import files
from edadm.errors import InputError
from edadm.evaluation import extractor as extractors
from edadm.evaluation import reference as references
from edadm.evaluation import samples as shards
from edadm.evaluation.features import BATCH, Collector, Features, Statistics, extract, in_batches, of_batch
from edadm.evaluation.real_images import resized
from edadm.params import MetricsParams

PSNR_CAP = 100.0  # dB that an image identical to its full-precision twin counts as, when others differ
CONFIDENT = 0.8
IS_SPLITS = 10
RNG_SEED = 2020  # torch-fidelity's default, of the KID subsets and the IS splits
TOOLS = ("torch", "torch-fidelity", "numpy", "scikit-image")


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def frechet(one: Statistics, other: Statistics) -> float:
    """Frechet distance of two Gaussians: FID on pooled features, sFID on spatial ones."""
    stats = [{"mu": s.mu, "sigma": s.sigma} for s in (one, other)]
    return fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]


def against_reference(found: Features, reference: references.Reference, settings: MetricsParams) -> dict:
    """FID, sFID, IS, KID and precision/recall of ``found``; confident share and class shares.

    Raises InputError when there are fewer images, or fewer stored reference features, than the settings need.
    """
    fewest = min(len(found.pooled), len(reference.features))
    if fewest < max(settings.kid_subset_size, IS_SPLITS, settings.neighbours + 1):
        raise InputError(
            f"metrics: {fewest} images are too few for kid_subset_size {settings.kid_subset_size}, "
            f"{IS_SPLITS} splits of IS and {settings.neighbours} neighbours"
        )
    pooled, real = found.pooled.double(), torch.from_numpy(reference.features).double()
    inception = isc_features_to_metric(found.logits_is, splits=IS_SPLITS, rng_seed=RNG_SEED)
    subsets = {"kid_subsets": settings.kid_subsets, "kid_subset_size": settings.kid_subset_size}
    kid = kid_features_to_metric(pooled, real, **subsets, rng_seed=RNG_SEED, verbose=False)
    # in parts, since the whole distance matrices of 10,000 images would take gigabytes
    coverage = prc_features_to_metric(
        pooled, real, prc_neighborhood=settings.neighbours, prc_batch_size=1000, save_cpu_ram=True, verbose=False
    )
    probabilities = found.logits.double().softmax(1)
    counts = torch.bincount(found.logits.argmax(1), minlength=found.logits.shape[1])
    numbers = {
        "fid": frechet(found.statistics, reference.statistics),
        "sfid": frechet(found.statistics_spatial, reference.statistics_spatial),
        "is_mean": inception["inception_score_mean"],
        "is_std": inception["inception_score_std"],
        "kid_mean": kid["kernel_inception_distance_mean"],
        "kid_std": kid["kernel_inception_distance_std"],
        "precision": coverage["precision"],
        "recall": coverage["recall"],
        "confident_share": (probabilities.amax(1) > CONFIDENT).double().mean().item(),
    }
    shares = [_rounded(count / len(pooled)) for count in counts.tolist()]
    return {name: _rounded(value) for name, value in numbers.items()} | {"class_shares": shares}


class _Pairs:
    """Distances of images to their full-precision twins, batch by batch."""

    def __init__(self) -> None:
        self.mse, self.ssim, self.distance = [], [], []

    def add(self, images: np.ndarray, twins: np.ndarray, features: Tensor, twin_features: Tensor) -> None:
        """Take in images and twins (n, H, W, C) uint8 and their pooled features (n, d)."""
        unit, twin_unit = F.normalize(features.double(), dim=1), F.normalize(twin_features.double(), dim=1)
        self.distance.append((unit - twin_unit).norm(dim=1))
        for image, twin in zip(images, twins, strict=True):
            same = np.array_equal(image, twin)
            self.mse.append(0.0 if same else ((image.astype(np.float64) - twin) ** 2).mean())
            self.ssim.append(1.0 if same else _ssim(image, twin))

    def numbers(self) -> dict:
        """PSNR (None when no image differs), SSIM and feature distance, means over the images."""
        mse = np.array(self.mse)
        psnr = np.minimum(10 * np.log10(255**2 / np.maximum(mse, 1e-12)), PSNR_CAP).mean() if mse.any() else None
        return {
            "psnr_fp32": None if psnr is None else _rounded(psnr),
            "ssim_fp32": _rounded(np.mean(self.ssim)),
            "feature_distance_fp32": _rounded(torch.cat(self.distance).mean().item()),
        }


def _ssim(image: np.ndarray, twin: np.ndarray) -> float:
    """SSIM of two images (H, W, C) uint8 with the settings of Wang et al. 2004: an 11x11 Gaussian window."""
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return structural_similarity(image, twin, data_range=255, channel_axis=-1, **wang)


def measure(
    samples: Path,
    fp32: Path,
    reference: Path,
    extractor: str,
    weights: Path,
    settings: MetricsParams,
    seeds: range,
    size: int | None = None,
    scorer: Callable[[np.ndarray, list[str]], Tensor] | None = None,
) -> dict:
    """The content of ``metrics.json``, but for the names of what was measured.

    ``samples`` and ``fp32`` are folders of shards that must hold just ``seeds``, ``reference`` an npz by
    ``reference.build``, ``weights`` the folder of ``extractor``.

    ``psnr_fp32`` is in dB with a range of 255, the mean of the images' own PSNR, where an image identical to its twin
    counts as 100 dB; it is None (null) when all are identical. ``ssim_fp32`` is the mean SSIM,
    ``feature_distance_fp32`` the mean Euclidean distance of pooled features of length one (0 to 2). Samples with labels
    have ``class_accuracy`` too, the share of images that the extractor takes for what they were asked to be.
    With a ``size`` images are brought to it, as the real ones were, before their features are taken. A ``scorer`` of
    (images, captions) gives samples with captions their ``clip_score``, a mean.
    Raises InputError for bad samples, for references of another extractor and for too few images.
    """
    statistics = references.load(reference)
    references.check_extractor(reference, statistics, extractor, weights)
    ours, twins = shards.open_folder(samples, seeds), shards.open_folder(fp32, seeds)
    if ours.shape != twins.shape:
        raise InputError(f"{samples}: images of {ours.shape}, but those of {fp32} are {twins.shape}")
    network = extractors.create(extractor, weights)
    collector, pairs, scores = Collector(), _Pairs(), []
    scorer = None if ours.captions is None else scorer
    for images, twin in zip(shards.batches(ours, BATCH), shards.batches(twins, BATCH), strict=True):
        found = of_batch(network, resized(images, size))
        if scorer is not None:
            captions = ours.captions[len(scores) : len(scores) + len(images)].tolist()
            scores += scorer(images, captions).tolist()
        collector.add(found)
        # so that full precision against itself costs nothing more
        same = np.array_equal(images, twin)
        pairs.add(images, twin, found["fid"], found["fid"] if same else of_batch(network, resized(twin, size))["fid"])
    features = collector.features()
    quality = against_reference(features, statistics, settings)
    shares = {name: quality.pop(name) for name in ("confident_share", "class_shares")}
    if scorer is not None:
        shares["clip_score"] = _rounded(np.mean(scores))
    if ours.labels is not None and network.KNOWS_LABELS:
        shares["class_accuracy"] = _rounded((features.logits.argmax(1).numpy() == ours.labels).mean())
    return {
        "n": len(seeds),
        "seed": seeds.start,
        **quality,
        **pairs.numbers(),
        **shares,
        "extractor": extractor,
        "extractor_sha256": statistics.extractor_sha256,
        "reference_sha256": files.sha256(reference),
        "samples_fingerprint": ours.fingerprint,
        "versions": {tool: version(tool) for tool in TOOLS},
    }


def floor(images: np.ndarray, reference: Path, weights: Path, settings: MetricsParams) -> dict:
    """What real images that the reference has not seen score, (n, H, W, C) uint8: the best that samples can hope for.

    The content of the JSON beside the reference statistics.
    """
    statistics = references.load(reference)
    references.check_extractor(reference, statistics, statistics.extractor, weights)
    found = extract(extractors.create(statistics.extractor, weights), in_batches(images))
    return {
        "n": len(images),
        **against_reference(found, statistics, settings),
        "reference_n": statistics.n,
        "reference_sha256": files.sha256(reference),
        "reference_images_sha256": statistics.images_sha256,
        "extractor": statistics.extractor,
        "extractor_sha256": statistics.extractor_sha256,
        "versions": {tool: version(tool) for tool in TOOLS},
    }
