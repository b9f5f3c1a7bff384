"""GroupNorm, SiLU and quantization in three small kernels over images with the channels last.

The image is read twice: for the moments of every channel in every tile of rows, which are then folded into the
groups', and to be normalized. No float image is written in between.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from edadm.engines.cuda.quantize import to_byte
from edadm.engines.cuda.tiles import INTERPRETED

ROWS, COLUMNS = (1024, 256) if INTERPRETED else (64, 64)  # of a tile
_FOLDED = 64  # tiles whose moments are folded at once


@triton.jit
def _moments(x, row_stride, moments, pixels, channels, tiles, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    image, start = tl.program_id(0), tl.program_id(1) * ROWS
    row, c = start + tl.arange(0, ROWS), tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < pixels)[:, None] & (c < channels)[None, :]
    place = (image * pixels + row).to(tl.int64)[:, None] * row_stride + c[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 0) / tl.minimum(ROWS, pixels - start)
    distance = tl.where(inside, value - mean[None, :], 0.0)
    to = moments + (image * tiles + tl.program_id(1)) * 2 * channels + c
    tl.store(to, mean, mask=c < channels)
    tl.store(to + channels, tl.sum(distance * distance, 0), mask=c < channels)


@triton.jit
def _fold(
    moments, gamma, beta, scale, shift, modulation_stride, folded, pixels, channels, size, tiles, eps,
    ROWS: tl.constexpr, FOLDED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The moments of one group of one image; then what normalizes its channels: mean, factor, offset."""
    image = tl.program_id(0)
    within = tl.arange(0, SIZE)
    c = tl.program_id(1) * size + within
    total = (pixels * size).to(tl.float32)
    mean = 0.0
    for first in range(0, tiles, FOLDED):
        t = first + tl.arange(0, FOLDED)
        inside = (t < tiles)[:, None] & (within < size)[None, :]
        count = tl.minimum(ROWS, pixels - t * ROWS).to(tl.float32)
        place = (image * tiles + t)[:, None] * 2 * channels + c[None, :]
        mean += tl.sum(tl.load(moments + place, mask=inside, other=0.0) * count[:, None]) / total
    squares = 0.0
    for first in range(0, tiles, FOLDED):
        t = first + tl.arange(0, FOLDED)
        inside = (t < tiles)[:, None] & (within < size)[None, :]
        count = tl.minimum(ROWS, pixels - t * ROWS).to(tl.float32)
        place = (image * tiles + t)[:, None] * 2 * channels + c[None, :]
        distance = tl.where(inside, tl.load(moments + place, mask=inside, other=0.0) - mean, 0.0)
        own = tl.load(moments + place + channels, mask=inside, other=0.0)
        squares += tl.sum(own + distance * distance * count[:, None])
    used = within < size
    factor = tl.load(gamma + c, mask=used, other=0.0) * (1.0 / tl.sqrt_rn(squares / total + eps))
    offset = tl.load(beta + c, mask=used, other=0.0)
    if scale is not None:
        more = 1.0 + tl.load(scale + image * modulation_stride + c, mask=used, other=0.0).to(tl.float32)
        factor *= more
        offset = offset * more + tl.load(shift + image * modulation_stride + c, mask=used, other=0.0).to(tl.float32)
    to = folded + image * 3 * channels + c
    tl.store(to, tl.zeros((SIZE,), dtype=tl.float32) + mean, mask=used)
    tl.store(to + channels, factor, mask=used)
    tl.store(to + 2 * channels, offset, mask=used)


@triton.jit
def _apply(
    x, row_stride, folded, out, plane, width, pixels, channels, grids,
    SILU: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0)
    row, c = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    used = c < channels
    inside = (row < pixels)[:, None] & used[None, :]
    place = (image * pixels + row).to(tl.int64)
    value = tl.load(x + place[:, None] * row_stride + c[None, :], mask=inside, other=0.0).to(tl.float32)
    of_image = folded + image * 3 * channels + c
    mean = tl.load(of_image, mask=used, other=0.0)
    factor = tl.load(of_image + channels, mask=used, other=0.0)
    offset = tl.load(of_image + 2 * channels, mask=used, other=0.0)
    y = (value - mean[None, :]) * factor[None, :] + offset[None, :]
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    for index in tl.static_range(OUTPUTS):
        to = out + index * plane + place[:, None] * width + c[None, :]
        tl.store(to, to_byte(y, grids + 3 * index), mask=inside)


def group_norm(
    x: Tensor,
    norm: nn.GroupNorm,
    silu: bool,
    grids: Tensor,
    width: int,
    modulation: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Normalize images x (n, pixels, channels), the last axis contiguous, of any float type, and quantize them.

    ``modulation`` is a scale and a shift (n, channels), one row stride for both: ``norm * (1 + scale) + shift``.
    Returns int8 (len(grids), n, pixels, width), for each row of ``grids`` float32 (k, 3), see layout.input_grid.
    """
    images, pixels, channels = x.shape
    height, columns = min(ROWS, triton.next_power_of_2(pixels)), min(COLUMNS, triton.next_power_of_2(channels))
    tiles, across = triton.cdiv(pixels, height), triton.cdiv(channels, columns)
    moments = torch.empty(images, tiles, 2, channels, dtype=torch.float32, device=x.device)
    folded = torch.empty(images, 3, channels, dtype=torch.float32, device=x.device)
    out = torch.empty(len(grids), images, pixels, width, dtype=torch.int8, device=x.device)
    stride, size = x.stride(1), channels // norm.num_groups
    scale, shift = modulation or (None, None)
    _moments[(images, tiles, across)](x, stride, moments, pixels, channels, tiles, ROWS=height, COLUMNS=columns)
    _fold[(images, norm.num_groups)](
        moments, norm.weight, norm.bias, scale, shift, 0 if scale is None else scale.stride(0), folded, pixels,
        channels, size, tiles, norm.eps, ROWS=height, FOLDED=min(_FOLDED, triton.next_power_of_2(tiles)),
        SIZE=triton.next_power_of_2(size),
    )  # fmt: skip
    _apply[(images, tiles, across)](
        x, stride, folded, out, images * pixels * width, width, pixels, channels, grids, SILU=silu,
        OUTPUTS=len(grids), ROWS=height, COLUMNS=columns,
    )  # fmt: skip
    return out
