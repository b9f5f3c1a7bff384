"""Linear layers, and 1x1 convolutions that move nothing, as products of int8 tiles."""

import triton
import triton.language as tl
from torch import Tensor

from edadm.engines.cuda.layout import PackedLayer
from edadm.engines.cuda.tiles import finish, low_half, tile, tile_count, tuned


@tuned("steps", "PACKED")
@triton.jit
def _linear(
    x,
    plane,
    width,
    weight,
    weight_width,
    steps,
    out,
    out_stride,
    rows,
    columns,
    scale,
    bias,
    correction,
    embedding,
    image_rows,
    residual,
    out_grid,
    PLANES: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    m, n = tile(rows, columns, BLOCK_M, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # rows past the end read the first ones again: nothing of them is written
    x_tile = x + (m % rows)[:, None] * width + k[None, :]
    weight_tile = weight + (n % columns)[None, :] * weight_width + k[:, None]
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for index in tl.static_range(PLANES):
        if index > 0:
            sums = sums * 256
        if PACKED:
            half = (steps + 1) // 2
            for step in range(0, half):
                byte = tl.load(weight_tile + step * BLOCK_K)
                first = tl.load(x_tile + index * plane + step * BLOCK_K)
                sums = tl.dot(first, low_half(byte), sums, out_dtype=tl.int32)
                # the last high half may lie past the end: its weights are 0
                second = tl.load(x_tile + index * plane + tl.minimum(step + half, steps - 1) * BLOCK_K)
                sums = tl.dot(second, byte >> 4, sums, out_dtype=tl.int32)
        else:
            for step in range(0, steps):
                first = tl.load(x_tile + index * plane + step * BLOCK_K)
                sums = tl.dot(first, tl.load(weight_tile + step * BLOCK_K), sums, out_dtype=tl.int32)
    finish(
        sums, m, n, rows, columns, out, out_stride, scale, bias, correction, embedding, image_rows, residual, out_grid
    )


def linear(
    x: Tensor,
    layer: PackedLayer,
    out: Tensor,
    embedding: Tensor | None = None,
    image_rows: int = 1,
    residual: Tensor | None = None,
    out_grid: Tensor | None = None,
) -> Tensor:
    """Fill ``out`` (rows, at least layer.outputs) with the layer of x int8 (planes, rows, layer.width).

    The type of ``out`` says what is written, see tiles.finish: int32, a float, or, with ``out_grid``, int8.
    """
    planes, rows, width = x.shape
    _linear[tile_count(rows, layer.outputs)](
        x,
        rows * width,
        width,
        layer.weight,
        layer.weight.shape[1],
        width // layer.block,
        out,
        out.stride(0),
        rows,
        layer.outputs,
        layer.scale,
        layer.bias,
        layer.correction,
        embedding,
        image_rows,
        residual,
        out_grid,
        PLANES=planes,
        PACKED=layer.packed,
        BLOCK_K=layer.block,
    )
    return out
