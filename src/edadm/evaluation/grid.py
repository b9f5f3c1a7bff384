"""Many samples as one picture."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from edadm.errors import InputError
from edadm.evaluation.samples import batches, open_folder
from edadm.files import atomic_write


def arrange(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (n, H, W, C), n a multiple of ``columns``, row by row side by side: (n / columns * H, columns * W, C)."""
    _, height, width, channels = images.shape
    rows = images.reshape(-1, columns, height, width, channels).swapaxes(1, 2)
    return rows.reshape(-1, columns * width, channels)


def write(folder: Path, rows: int, columns: int, out: Path) -> None:
    """Write the first ``rows * columns`` images of a samples folder, by their seeds, to the PNG ``out``."""
    samples = open_folder(folder)
    if rows * columns > len(samples.seeds):
        raise InputError(f"{folder}: has {len(samples.seeds)} images, too few for {rows} rows of {columns}")
    image = arrange(next(batches(samples, rows * columns)), columns)
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG", optimize=True)
    atomic_write(out, file.getvalue())
