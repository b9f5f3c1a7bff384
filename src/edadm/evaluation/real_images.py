"""Real images to compare with: a folder, a zip, an npz, or CIFAR-10's archive, as uint8 batches of one size."""

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from edadm.errors import InputError
from edadm.evaluation import archive

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CIFAR = "cifar-10-batches-bin/data_batch_{}.bin"  # 1 to 5: the 50,000 training images
CIFAR_ROW = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes


def square(image: Image.Image, size: int | None) -> np.ndarray:
    """An image as (size, size, 3) uint8: its middle square, resized (bicubic, antialiased); as it is without a size."""
    image = image.convert("RGB")
    if size is not None and image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def resized(images: np.ndarray, size: int | None) -> np.ndarray:
    """Images (n, H, W, C) uint8 as (n, size, size, 3); as they are without a size, and when they have it."""
    if size is None or images.shape[1:3] == (size, size):
        return images
    return np.stack([square(Image.fromarray(image.squeeze()), size) for image in images])


def _cifar(path: Path) -> Iterator[np.ndarray]:
    with tarfile.open(path, "r:gz") as opened:
        for number in range(1, 6):
            member = opened.extractfile(CIFAR.format(number))
            rows = np.frombuffer(member.read(), np.uint8).reshape(-1, CIFAR_ROW)
            yield from rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _images(path: Path, size: int | None) -> Iterator[np.ndarray]:
    """The images one by one, in the order of their names."""
    if path.is_dir():
        for file in sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES):
            with Image.open(file) as image:
                yield square(image, size)
    elif path.name.endswith(".tar.gz"):
        yield from _cifar(path)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as opened:
            for name in sorted(opened.namelist()):
                if name.lower().endswith(SUFFIXES):
                    with Image.open(io.BytesIO(opened.read(name))) as image:
                        yield square(image, size)
    else:
        with archive.opened(path, "an npz of images (arr_0)") as opened:
            yield from resized(opened["arr_0"], size)


def batches(path: Path, size: int | None, count: int) -> Iterator[np.ndarray]:
    """Batches (count, H, W, C) uint8, the last perhaps shorter.

    InputError for a missing path, unreadable images, none at all, and images of different sizes.
    """
    gathered: list[np.ndarray] = []
    found = 0
    try:
        for image in _images(path, size):
            if gathered and image.shape != gathered[0].shape:
                raise InputError(f"{path}: images of {gathered[0].shape} and of {image.shape}; give reference.size")
            gathered.append(image)
            found += 1
            if len(gathered) == count:
                yield np.stack(gathered)
                gathered = []
    except (OSError, KeyError, ValueError, AttributeError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as images ({' '.join(str(error).split())})") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: {error}") from error
    if gathered:
        yield np.stack(gathered)
    if not found:
        raise InputError(f"{path}: holds no images ({', '.join(SUFFIXES)})")


class Digest:
    """SHA-256 over images that come in batches, and their number."""

    def __init__(self) -> None:
        self.n, self._hash = 0, hashlib.sha256()

    def add(self, images: np.ndarray) -> None:
        """Take in a batch."""
        self.n += len(images)
        self._hash.update(str(images.shape[1:]).encode())
        self._hash.update(np.ascontiguousarray(images))

    def hex(self) -> str:
        """The hash so far."""
        return self._hash.hexdigest()
