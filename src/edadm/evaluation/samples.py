"""Shards of samples: writing one, and reading a folder of them without holding all images in memory.

A shard is an npz file as ADM's evaluator takes it, ``arr_0`` (n, H, W, C) uint8, with more arrays: ``seeds`` (n,)
int64, the seed of each image, ``fingerprint``, a string that stands for whatever made the images, and, when each image
was asked to be of a class, ``labels`` (n,) int64, or to show a text, ``captions`` (n,) strings.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.lib.npyio import NpzFile

from edadm.errors import InputError
from edadm.evaluation import archive as archives

PATTERN = "shard-*.npz"
KIND = "a shard of samples"


@dataclass(frozen=True)
class Shard:
    """Images (n, H, W, C) uint8, their seeds (n,) int64, what made them, perhaps labels (n,) int64 or captions (n,)."""

    images: np.ndarray
    seeds: np.ndarray
    fingerprint: str
    labels: np.ndarray | None
    captions: np.ndarray | None = None


@dataclass(frozen=True)
class Samples:
    """A checked folder of shards in the order of their seeds, the images' shape (H, W, C), any labels or captions."""

    folder: Path
    paths: tuple[Path, ...]
    seeds: range
    shape: tuple[int, int, int]
    fingerprint: str
    labels: np.ndarray | None
    captions: np.ndarray | None = None


def write_shard(
    path: Path,
    images: np.ndarray,
    seeds: np.ndarray,
    fingerprint: str,
    labels: np.ndarray | None = None,
    captions: np.ndarray | None = None,
) -> None:
    """Write one shard, atomically; equal content gives equal bytes. The arrays are those of ``Shard``."""
    images, seeds = np.asarray(images), np.asarray(seeds)
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must be uint8 (n, H, W, C), got {images.dtype} {images.shape}")
    if seeds.dtype != np.int64 or seeds.shape != (len(images),):
        raise ValueError(f"seeds must be int64 ({len(images)},), got {seeds.dtype} {seeds.shape}")
    if labels is not None and (labels.dtype != np.int64 or labels.shape != seeds.shape):
        raise ValueError(f"labels must be int64 ({len(images)},), got {labels.dtype} {labels.shape}")
    if captions is not None and (captions.dtype.kind != "U" or captions.shape != seeds.shape):
        raise ValueError(f"captions must be strings ({len(images)},), got {captions.dtype} {captions.shape}")
    arrays = {"arr_0": images, "seeds": seeds, "fingerprint": np.array(fingerprint)}
    further = {"labels": labels, "captions": captions}
    archives.write(path, arrays | {name: array for name, array in further.items() if array is not None})


def _header(archive: NpzFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array in the archive, without reading its data."""
    with archive.zip.open(f"{name}.npy") as file:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
        shape, _, dtype = read(file)
    return shape, dtype


@dataclass(frozen=True)
class _Description:
    """What a shard says of its images: the shape of their array, seeds, fingerprint, labels and captions."""

    shape: tuple[int, ...]
    seeds: np.ndarray
    fingerprint: str
    labels: np.ndarray | None
    captions: np.ndarray | None


def _describe(path: Path, archive: NpzFile) -> _Description:
    """The description of a shard, checked, without reading the images."""
    missing = [name for name in ("arr_0", "seeds", "fingerprint") if name not in archive.files]
    if missing:
        raise InputError(f"{path}: not a shard of samples, it has no {', '.join(missing)}")
    shape, dtype = _header(archive, "arr_0")
    if dtype != np.uint8 or len(shape) != 4 or shape[0] == 0:
        raise InputError(f"{path}: arr_0 must be uint8 (n, H, W, C), it is {dtype} {shape}")
    seeds, fingerprint = archive["seeds"], archive["fingerprint"]
    if seeds.dtype != np.int64 or seeds.shape != (shape[0],):
        raise InputError(f"{path}: seeds must be int64 ({shape[0]},), they are {seeds.dtype} {seeds.shape}")
    if fingerprint.dtype.kind != "U" or fingerprint.shape != ():
        raise InputError(f"{path}: fingerprint must be a single string, it is {fingerprint.dtype} {fingerprint.shape}")
    labels = archive["labels"] if "labels" in archive.files else None
    if labels is not None and (labels.dtype != np.int64 or labels.shape != seeds.shape):
        raise InputError(f"{path}: labels must be int64 ({shape[0]},), they are {labels.dtype} {labels.shape}")
    captions = archive["captions"] if "captions" in archive.files else None
    if captions is not None and (captions.dtype.kind != "U" or captions.shape != seeds.shape):
        raise InputError(f"{path}: captions must be strings ({shape[0]},), they are {captions.dtype} {captions.shape}")
    return _Description(shape, seeds, str(fingerprint), labels, captions)


def read_shard(path: Path) -> Shard:
    """One whole shard; InputError when it is missing, damaged or not of the right types."""
    path = Path(path)
    with archives.opened(path, KIND) as archive:
        described = _describe(path, archive)
        return Shard(archive["arr_0"], described.seeds, described.fingerprint, described.labels, described.captions)


def is_shard(path: Path, seeds: np.ndarray, fingerprint: str) -> bool:
    """Whether ``path`` is a whole shard of just these seeds, with this fingerprint: it need not be made again."""
    try:
        shard = read_shard(path)
    except InputError:
        return False
    return shard.fingerprint == fingerprint and np.array_equal(shard.seeds, seeds)


def _check_seeds(folder: Path, seeds: np.ndarray, wanted: range) -> None:
    """InputError unless ``seeds`` are just ``wanted``, in its order."""
    if np.array_equal(seeds, wanted):
        return
    values, counts = np.unique(seeds, return_counts=True)
    twice, absent, extra = values[counts > 1], np.setdiff1d(wanted, values), np.setdiff1d(values, wanted)
    for rows, fault in ((twice, "more than once"), (absent, "missing"), (extra, "not asked for")):
        if len(rows):
            some = ", ".join(map(str, rows[:3])) + (", …" if len(rows) > 3 else "")
            raise InputError(f"{folder}: seeds must be {wanted.start} to {wanted.stop - 1}, each once; {fault}: {some}")
    raise InputError(f"{folder}: seeds within a shard must be in ascending order, and shards must not interleave")


def open_folder(folder: Path, seeds: range | None = None) -> Samples:
    """Check the shards of ``folder`` without reading their images.

    ``seeds`` are those that must be there; when not given, all from the lowest to the highest found. InputError for a
    missing folder, a shard that is damaged or of wrong types, shards that differ in shape or fingerprint, and missing,
    repeated or surplus seeds; damage inside
    the image data is found when the images are read.
    """
    folder = Path(folder)
    paths = sorted(folder.glob(PATTERN))
    if not paths:
        raise InputError(f"{folder}: no {PATTERN} in it; run the samples stage first")
    found = []
    for path in paths:
        with archives.opened(path, KIND) as archive:
            found.append((path, _describe(path, archive)))
    found.sort(key=lambda shard: shard[1].seeds[0])
    name, first = found[0][0].name, found[0][1]
    for path, other in found:
        if other.shape[1:] != first.shape[1:]:
            raise InputError(f"{path}: images of {other.shape[1:]}, but {name} has {first.shape[1:]}")
        if other.fingerprint != first.fingerprint:
            raise InputError(f"{path}: not made by the same engine and sampler as {name} (fingerprints differ)")
        if (other.labels is None) != (first.labels is None):
            raise InputError(f"{path}: it and {name} must both have labels, or neither")
        if (other.captions is None) != (first.captions is None):
            raise InputError(f"{path}: it and {name} must both have captions, or neither")
    there = np.concatenate([shard.seeds for _, shard in found])
    wanted = range(int(there.min()), int(there.max()) + 1) if seeds is None else seeds
    _check_seeds(folder, there, wanted)
    labels = None if first.labels is None else np.concatenate([shard.labels for _, shard in found])
    captions = None if first.captions is None else np.concatenate([shard.captions for _, shard in found])
    paths, shape = tuple(path for path, _ in found), tuple(first.shape[1:])
    return Samples(folder, paths, wanted, shape, first.fingerprint, labels, captions)


def batches(samples: Samples, size: int) -> Iterator[np.ndarray]:
    """All images in the order of their seeds: (size, H, W, C) uint8 each, the rest last, whatever the shards' sizes."""
    pending = np.empty((0, *samples.shape), np.uint8)
    for path in samples.paths:
        pending = np.concatenate([pending, read_shard(path).images])
        whole = len(pending) // size * size
        for start in range(0, whole, size):
            yield pending[start : start + size]
        pending = pending[whole:]
    if len(pending):
        yield pending
