"""Shards of samples: writing one, and reading a folder of them without holding all images in memory.

A shard is an npz file as ADM's evaluator takes it, ``arr_0`` (n, H, W, C) uint8, with two more arrays: ``seeds``
(n,) int64, the seed of each image, and ``fingerprint``, a string that stands for whatever made the images.
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
    """Images (n, H, W, C) uint8, their seeds (n,) int64 and the fingerprint of what made them."""

    images: np.ndarray
    seeds: np.ndarray
    fingerprint: str


@dataclass(frozen=True)
class Samples:
    """A checked folder of shards, in the order of their seeds, and the images' shape (H, W, C)."""

    folder: Path
    paths: tuple[Path, ...]
    seeds: range
    shape: tuple[int, int, int]
    fingerprint: str


def write_shard(path: Path, images: np.ndarray, seeds: np.ndarray, fingerprint: str) -> None:
    """Write one shard, atomically; equal content gives equal bytes. Images and seeds as in ``Shard``."""
    images, seeds = np.asarray(images), np.asarray(seeds)
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must be uint8 (n, H, W, C), got {images.dtype} {images.shape}")
    if seeds.dtype != np.int64 or seeds.shape != (len(images),):
        raise ValueError(f"seeds must be int64 ({len(images)},), got {seeds.dtype} {seeds.shape}")
    archives.write(path, {"arr_0": images, "seeds": seeds, "fingerprint": np.array(fingerprint)})


def _header(archive: NpzFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array in the archive, without reading its data."""
    with archive.zip.open(f"{name}.npy") as file:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
        shape, _, dtype = read(file)
    return shape, dtype


def _labels(path: Path, archive: NpzFile) -> tuple[tuple[int, ...], np.ndarray, str]:
    """Shape of the images, seeds and fingerprint of a shard, all checked, without reading the images."""
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
    return shape, seeds, str(fingerprint)


def read_shard(path: Path) -> Shard:
    """One whole shard; InputError when it is missing, damaged or not of the right types."""
    path = Path(path)
    with archives.opened(path, KIND) as archive:
        _, seeds, fingerprint = _labels(path, archive)
        return Shard(archive["arr_0"], seeds, fingerprint)


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
            found.append((path, *_labels(path, archive)))
    found.sort(key=lambda shard: shard[2][0])
    first, shape, _, fingerprint = found[0]
    for path, other_shape, _, other_fingerprint in found:
        if other_shape[1:] != shape[1:]:
            raise InputError(f"{path}: images of {other_shape[1:]}, but {first.name} has {shape[1:]}")
        if other_fingerprint != fingerprint:
            raise InputError(f"{path}: not made by the same engine and sampler as {first.name} (fingerprints differ)")
    there = np.concatenate([shard[2] for shard in found])
    wanted = range(int(there.min()), int(there.max()) + 1) if seeds is None else seeds
    _check_seeds(folder, there, wanted)
    return Samples(folder, tuple(shard[0] for shard in found), wanted, tuple(shape[1:]), fingerprint)


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
