"""A published system's checkpoint folder with random weights: later stages can be run and timed without a download."""

import hashlib
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from edadm.files import atomic_folder
from edadm.systems.originals.architectures import PUBLISHED, SCALES, Widths
from edadm.systems.originals.parts import CLASS_ROWS, check_kind, parts, write, write_classes


def random_checkpoint(
    kind: str, out: Path, seed: int = 0, widths: Widths | None = None, side: int | None = None
) -> None:
    """Write a checkpoint folder of the published architecture, full size, with random weights.

    The weights are those of torch's initialization in distribution, each tensor from its own generator, so that the
    same seed gives the same bytes. One network at a time is in memory. ``widths`` makes a narrower one, ``side``
    one for images (or latents) of another size.
    """
    check_kind(kind)
    widths = widths or PUBLISHED[kind]
    with atomic_folder(out) as folder:
        found = parts(kind, widths, SCALES.get(kind, 1.0), side)
        write(folder, kind, found, lambda part: {name: _random(seed, name, part.shapes) for name in part.shapes})
        if widths.classes:
            rows = torch.randn(widths.classes + 1, widths.context, generator=_generator(seed, CLASS_ROWS))
            write_classes(folder, rows)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _random(seed: int, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    """Uniform within 1/sqrt(inputs) for layers (torch's), 1 and 0 for norms, a normal distribution for embeddings."""
    shape, owner = shapes[name], name.rpartition(".")[0]
    if owner.endswith("embedding"):
        return torch.randn(shape, generator=_generator(seed, name))
    weight = shapes[f"{owner}.weight"]
    if len(weight) == 1:
        return torch.ones(shape) if name.endswith(".weight") else torch.zeros(shape)
    bound = prod(weight[1:]) ** -0.5
    return torch.rand(shape, generator=_generator(seed, name)).mul_(2 * bound).sub_(bound)
