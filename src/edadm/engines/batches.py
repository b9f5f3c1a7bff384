"""Running any number of images through a network that takes a fixed number of them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def in_batches(run: Callable[..., Tensor], batch: int, inputs: tuple[Tensor, ...]) -> Tensor:
    """``run`` on ``batch`` rows of the inputs at a time, the last rows filled up with zeros; the outputs together.

    An image's last digits may depend on the size of its batch, so that size is always the same. ``run`` may return the
    same memory every time.
    """
    if all(len(value) == batch for value in inputs):  # what follows would cost a small network as much as a layer does
        return run(*inputs).clone()
    outputs = []
    for piece in zip(*(value.split(batch) for value in inputs), strict=True):
        rows = len(piece[0])
        filled = [F.pad(value, (0, 0) * (value.dim() - 1) + (0, batch - rows)) for value in piece]
        outputs.append(run(*filled)[:rows].clone())
    return torch.cat(outputs)
