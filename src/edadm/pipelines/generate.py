"""Images from a pipeline's folder."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from edadm.files import atomic_write
from edadm.pipelines.draw import drawing


def images(
    pipeline: Any, prompt: str | None, class_label: int | None, seeds: range, **call: Any
) -> Iterator[Image.Image]:
    """The image of each seed, one after the other: it depends on its seed alone, not on how many are drawn.

    ``call`` is for the pipeline (``steps``, ``guidance_scale``). InputError as ``drawing``.
    """
    prompts = None if prompt is None else [prompt]
    labels = None if class_label is None else [class_label]
    draw = drawing(pipeline, prompts, labels, seeds.start, **call)
    for seed in seeds:
        yield draw(range(seed, seed + 1)).images[0]


def paths(out: Path, seeds: range) -> list[Path]:
    """``out`` itself for one seed; for several ``out`` with each seed after its stem.

    >>> [path.name for path in paths(Path("boat.png"), range(7, 9))]
    ['boat-7.png', 'boat-8.png']
    """
    if len(seeds) == 1:
        return [out]
    return [out.with_stem(f"{out.stem}-{seed}") for seed in seeds]


def save(image: Image.Image, path: Path) -> None:
    """Write an image as PNG, at once."""
    content = io.BytesIO()
    image.save(content, "PNG")
    atomic_write(path, content.getvalue())
