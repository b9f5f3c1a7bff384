"""Fashion-MNIST from its four IDX files, the data behind the embedded systems.

The files are those of the Debian package ``dataset-fashion-mnist`` (MIT licence, Xiao et al. 2017);
any other folder with the same four files does as well, since their hashes are checked.
"""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

from edadm.errors import InputError

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SIDE = 32  # the 28x28 images are padded with black, so that three halvings stay whole numbers

# of the decompressed files, since gzip headers carry a time
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """One IDX file (``name`` or ``name.gz``) as a uint8 array of the shape that its header states."""
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            break
    else:
        raise InputError(
            f"Fashion-MNIST: no {name}[.gz] in {folder}; install the Debian package "
            "dataset-fashion-mnist, or give the folder that holds the four IDX files"
        )
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"Fashion-MNIST: cannot read {path}: {error}") from error
    if hashlib.sha256(raw).hexdigest() != SHA256[name]:
        raise InputError(f"Fashion-MNIST: {path} is not the published file (its SHA-256 differs)")
    dimensions = raw[3]
    header = 4 + 4 * dimensions
    shape = np.frombuffer(raw, ">u4", dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def load(split: str, folder: Path = DEFAULT_FOLDER) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 1) uint8 and labels (n,) uint8 of ``split``, "train" (60,000) or "test" (10,000).

    Raises InputError when a file is missing or is not the published one.
    """
    stem = {"train": "train", "test": "t10k"}[split]
    images = _read_idx(Path(folder), f"{stem}-images-idx3-ubyte")
    labels = _read_idx(Path(folder), f"{stem}-labels-idx1-ubyte")
    margin = (SIDE - images.shape[1]) // 2
    images = np.pad(images, ((0, 0), (margin, margin), (margin, margin)))[..., None]
    return images, labels
