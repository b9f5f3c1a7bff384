"""Convolutions as products of int8 tiles whose rows are gathered from the image (implicit GEMM), channels last."""

import triton
import triton.language as tl
from torch import Tensor

from edadm.engines.cuda.layout import PackedLayer
from edadm.engines.cuda.tiles import finish, low_half, tile, tile_count, tuned


@triton.jit
def _gather(
    x, origin, top, left, chunk, blocks, height, width, stride, used, pad,
    KH: tl.constexpr, KW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, UP: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The inputs int8 (BLOCK_M, BLOCK_K) of one tap and block of channels; ``pad`` outside of the image."""
    tap = chunk // blocks
    row = top + (tap // KW) * DH
    column = left + (tap % KW) * DW
    inside = used & (row >= 0) & (row < height * UP) & (column >= 0) & (column < width * UP) & (tap < KH * KW)
    place = ((origin + row // UP) * width + column // UP) * stride + (chunk % blocks) * BLOCK_K
    return tl.load(x + place[:, None] + tl.arange(0, BLOCK_K)[None, :], mask=inside[:, None], other=pad)


@tuned("blocks", "KH", "SH", "UP", "PACKED")
@triton.jit
def _convolution(
    x,
    plane,
    height,
    width,
    stride,
    weight,
    weight_width,
    blocks,
    out,
    out_height,
    out_width,
    out_stride,
    rows,
    columns,
    high_pad,
    low_pad,
    scale,
    bias,
    correction,
    embedding,
    residual,
    out_grid,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    UP: tl.constexpr,
    PLANES: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    m, n = tile(rows, columns, BLOCK_M, BLOCK_N)
    used = m < rows
    image_rows = out_height * out_width
    top = (m % image_rows) // out_width * SH - PH
    left = m % out_width * SW - PW
    origin = m // image_rows * height
    weight_tile = weight + (n % columns)[None, :] * weight_width + tl.arange(0, BLOCK_K)[:, None]
    steps = KH * KW * blocks
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for index in tl.static_range(PLANES):
        bytes_ = x + index * plane
        pad = low_pad
        if index + 1 < PLANES:
            pad = high_pad
        if index > 0:
            sums = sums * 256
        if PACKED:
            half = (steps + 1) // 2
            for step in range(0, half):
                byte = tl.load(weight_tile + step * BLOCK_K)
                first = _gather(
                    bytes_, origin, top, left, step, blocks, height, width, stride, used, pad,
                    KH, KW, DH, DW, UP, BLOCK_K,
                )  # fmt: skip
                sums = tl.dot(first, low_half(byte), sums, out_dtype=tl.int32)
                second = _gather(
                    bytes_, origin, top, left, step + half, blocks, height, width, stride, used, pad,
                    KH, KW, DH, DW, UP, BLOCK_K,
                )  # fmt: skip
                sums = tl.dot(second, byte >> 4, sums, out_dtype=tl.int32)
        else:
            for step in range(0, steps):
                first = _gather(
                    bytes_, origin, top, left, step, blocks, height, width, stride, used, pad,
                    KH, KW, DH, DW, UP, BLOCK_K,
                )  # fmt: skip
                sums = tl.dot(first, tl.load(weight_tile + step * BLOCK_K), sums, out_dtype=tl.int32)
    finish(
        sums, m, n, rows, columns, out, out_stride, scale, bias, correction, embedding, image_rows, residual, out_grid
    )


def output_size(
    layer: PackedLayer, height: int, width: int, up: int = 1, after: tuple[int, int] = (0, 0)
) -> tuple[int, int]:
    """Rows and columns that the layer makes of an image, enlarged ``up`` times, then padded ``after`` its ends too."""
    size = []
    for axis, length in enumerate((height, width)):
        reach = layer.dilation[axis] * (layer.kernel[axis] - 1)
        size.append((length * up + 2 * layer.padding[axis] + after[axis] - reach - 1) // layer.stride[axis] + 1)
    return size[0], size[1]


def convolution(
    x: Tensor,
    layer: PackedLayer,
    out: Tensor,
    up: int = 1,
    embedding: Tensor | None = None,
    residual: Tensor | None = None,
    out_grid: Tensor | None = None,
) -> Tensor:
    """Fill ``out`` (n, oh, ow, at least layer.outputs) with the layer of x int8 (planes, n, h, w, layer.width).

    The input is enlarged ``up`` times to its nearest neighbours first. Whatever ``out``'s size reaches beyond the
    image is padding. See tiles.finish for the type of ``out`` and for ``embedding`` (n, out) and ``residual``.
    """
    planes, images, height, width, channels = x.shape
    rows = out.shape[:3].numel()
    _convolution[tile_count(rows, layer.outputs)](
        x,
        images * height * width * channels,
        height,
        width,
        channels,
        layer.weight,
        layer.weight.shape[1],
        channels // layer.block,
        out,
        out.shape[1],
        out.shape[2],
        out.stride(2),
        rows,
        layer.outputs,
        layer.padding_bytes[0],
        layer.padding_bytes[-1],
        layer.scale,
        layer.bias,
        layer.correction,
        embedding,
        residual,
        out_grid,
        KH=layer.kernel[0],
        KW=layer.kernel[1],
        SH=layer.stride[0],
        SW=layer.stride[1],
        PH=layer.padding[0],
        PW=layer.padding[1],
        DH=layer.dilation[0],
        DW=layer.dilation[1],
        UP=up,
        PLANES=planes,
        PACKED=layer.packed,
        BLOCK_K=layer.block,
    )
    return out
