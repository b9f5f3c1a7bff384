"""Samples of all variants at the same seeds, as images inside the page."""

import base64
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from edadm.errors import InputError

SEEDS = 10
_LIGHTER, _DARKER = (217, 95, 14), (37, 99, 235)  # told apart by every common colour vision


def _data_uri(pixels: np.ndarray) -> str:
    """A PNG of (h, w), (h, w, 3) or (h, w, 4) uint8 as a ``data:`` address."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _picture(image: np.ndarray) -> str:
    """(h, w, 1 or 3) uint8 as a ``data:`` address."""
    return _data_uri(image[..., 0] if image.shape[-1] == 1 else image)


def _difference(image: np.ndarray, fp32: np.ndarray) -> str:
    """Where ``image`` is lighter or darker than ``fp32``, both (h, w, c) uint8: a colour as opaque as the change.

    A difference of 0 is transparent, one of 64 or more opaque, so that weak ones show and both page colours work.
    """
    change = image.astype(np.int16).mean(-1) - fp32.astype(np.int16).mean(-1)
    pixels = np.where(change[..., None] > 0, _LIGHTER, _DARKER).astype(np.uint8)
    opacity = np.minimum(4 * np.abs(change), 255).astype(np.uint8)
    return _data_uri(np.dstack([pixels, opacity]))


def first_shard(folder: Path) -> dict[int, np.ndarray] | None:
    """Images (h, w, c) uint8 by seed of a samples folder's first shard; None without one."""
    path = folder / "shard-0000.npz"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as shard:
            images, seeds = shard["arr_0"], shard["seeds"]
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a shard of samples ({error})") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) != len(seeds):
        raise InputError(f"{path}: expected arr_0 as uint8 (n, h, w, 1 or 3) and a seed for each image")
    return dict(zip(seeds.tolist(), images, strict=True))


def gallery(system: Path, variants: list[str]) -> dict:
    """The first seeds that all variants with samples share.

    Returns {"seeds": [int], "rows": [{"variant", "images": [data address], "differences": [data address] or None}],
    "missing": [variants without samples]}. Differences are to fp32, and None for it or without it.
    """
    shards = {variant: first_shard(system / variant / "samples") for variant in variants}
    found = {variant: shard for variant, shard in shards.items() if shard is not None}
    first = next(iter(found.values()), {})
    seeds = [seed for seed in first if all(seed in shard for shard in found.values())][:SEEDS]
    fp32 = found.get("fp32")
    rows = []
    for variant, shard in found.items():
        images = [shard[seed] for seed in seeds]
        differences = None
        if fp32 is not None and variant != "fp32":
            differences = [_difference(image, fp32[seed]) for seed, image in zip(seeds, images, strict=True)]
        rows.append({"variant": variant, "images": [_picture(image) for image in images], "differences": differences})
    return {"seeds": seeds, "rows": rows, "missing": [variant for variant in variants if variant not in found]}
