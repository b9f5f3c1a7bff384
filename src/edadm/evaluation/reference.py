"""Reference statistics: what a system's samples are measured against.

The npz holds ``mu``, ``sigma``, ``mu_s``, ``sigma_s`` under ADM's names (float64; the last two of the spatial
features), ``features`` (pooled features of evenly spaced images, for KID and precision/recall), and strings and a
number that say what it was made of: ``extractor``, ``extractor_sha256``, ``images_sha256``, ``n``.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from edadm import files
from edadm.errors import InputError
from edadm.evaluation import archive, real_images
from edadm.evaluation import extractor as extractors
from edadm.evaluation.features import BATCH, Moments, Statistics, extract, in_batches, of_batch
from edadm.params import ReferenceParams

KEYS = ("mu", "sigma", "mu_s", "sigma_s", "features", "extractor", "extractor_sha256", "images_sha256", "n")


@dataclass(frozen=True)
class Reference:
    """Statistics of ``n`` images, pooled features (m, d) float32 of some of them, and hashes of what made them."""

    statistics: Statistics
    statistics_spatial: Statistics
    features: np.ndarray
    extractor: str
    extractor_sha256: str
    images_sha256: str
    n: int


def _images_sha256(images: np.ndarray) -> str:
    """SHA-256 over the images' shape and bytes."""
    digest = hashlib.sha256(str(images.shape).encode())
    digest.update(np.ascontiguousarray(images))
    return digest.hexdigest()


def build(images: np.ndarray, out: Path, extractor: str, weights: Path, kept: int = 10_000) -> Reference:
    """Write the statistics of ``images`` (n, H, W, C) uint8 to ``out``.

    ``weights`` is the folder of ``extractor``'s weights. The pooled features of ``kept`` images, evenly spaced, are
    stored in half precision, which halves the file and moves KID and precision/recall far less than their own noise.
    """
    found = extract(extractors.create(extractor, weights), in_batches(images))
    kept = min(kept, len(images))
    rows = np.arange(kept) * len(images) // kept
    features = found.pooled.numpy()[rows].astype(np.float16)
    arrays = _arrays(found.statistics, found.statistics_spatial, features)
    arrays |= _origin(extractor, weights, _images_sha256(images), len(images))
    archive.write(out, arrays, compressed=True)
    return load(out)


def build_streamed(
    images: Path, size: int | None, out: Path, extractor: str, weights: Path, kept: int = 10_000
) -> Reference:
    """The same of the images at ``images`` (see ``real_images``), however many: only ``kept`` rows stay in memory.

    Which rows are kept is drawn as they come (reservoir sampling, Vitter 1985, a fixed seed), since their number is
    known only at the end. InputError for fewer than two images.
    """
    network = extractors.create(extractor, weights)
    pooled, spatial, digest = Moments(), Moments(), real_images.Digest()
    rows, draw = [], np.random.default_rng(0)
    for batch in tqdm(real_images.batches(images, size, BATCH), desc=f"reference: {images.name}", unit="batch"):
        found = of_batch(network, batch)
        pooled.add(found["fid"].numpy())
        spatial.add(found["sfid"].numpy())
        for index, row in enumerate(found["fid"].numpy().astype(np.float16), digest.n):
            if index < kept:
                rows.append(row)
            elif (place := int(draw.integers(index + 1))) < kept:
                rows[place] = row
        digest.add(batch)
    if digest.n < 2:
        raise InputError(f"{images}: one image has no statistics")
    arrays = _arrays(pooled.statistics(), spatial.statistics(), np.stack(rows))
    archive.write(out, arrays | _origin(extractor, weights, digest.hex(), digest.n), compressed=True)
    return load(out)


def _arrays(pooled: Statistics, spatial: Statistics, features: np.ndarray) -> dict[str, np.ndarray]:
    moments = {"mu": pooled.mu, "sigma": pooled.sigma, "mu_s": spatial.mu, "sigma_s": spatial.sigma}
    return moments | {"features": features}


def _origin(extractor: str, weights: Path, images_sha256: str, n: int) -> dict[str, np.ndarray]:
    """What statistics were made of."""
    return {
        "extractor": np.array(extractor),
        "extractor_sha256": np.array(extractors.weights_sha256(extractor, weights)),
        "images_sha256": np.array(images_sha256),
        "n": np.array(n),
    }


def load(path: Path) -> Reference:
    """Read reference statistics; InputError when the file is missing, damaged or lacks something."""
    with archive.opened(path, "a file of reference statistics") as opened:
        found = {key: opened[key] for key in KEYS}
        return Reference(
            Statistics(found["mu"], found["sigma"]),
            Statistics(found["mu_s"], found["sigma_s"]),
            found["features"].astype(np.float32),
            *(str(found[key]) for key in ("extractor", "extractor_sha256", "images_sha256")),
            int(found["n"]),
        )


def check_extractor(path: Path, reference: Reference, extractor: str, weights: Path) -> None:
    """InputError unless ``reference`` (read from ``path``) was made by this extractor with these weights."""
    if reference.extractor != extractor:
        raise InputError(f"{path}: made by extractor {reference.extractor!r}, but {extractor!r} is asked for")
    if reference.extractor_sha256 != extractors.weights_sha256(extractor, weights):
        hint = f"`edadm train {extractor}` writes both" if extractor == "garment-classifier" else "make it again"
        raise InputError(f"{path}: made with other weights than those in {weights} (SHA-256 differs); {hint}")


def fetch(settings: ReferenceParams, out: Path) -> Reference:
    """Copy the statistics that ``settings`` names to ``out`` unchanged, once they fit their extractor.

    The extractor's weights lie beside the statistics. So may a JSON of the same name with what held-out images
    score (``metrics.floor``); it is copied too, else the one beside ``out`` has nothing but the statistics' hash.
    InputError, and nothing written, when anything does not fit.
    """
    source = Path(settings.statistics)
    reference = load(source)
    check_extractor(source, reference, settings.extractor, source.parent)
    beside = source.with_suffix(".json")
    floor = {"reference_sha256": files.sha256(source)}
    if beside.is_file():
        found = files.read_json(beside)
        if found.get("reference_sha256") != floor["reference_sha256"]:
            raise InputError(f"{beside}: measured against other statistics than {source.name} (SHA-256 differs)")
        floor = found
    files.atomic_write(out, source.read_bytes())
    files.write_json(Path(out).with_suffix(".json"), floor)
    return reference
