"""Floats to bytes: the layers' own rounding, as a helper of other kernels and as a kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# adding and taking away 1.5 * 2**23 rounds a float32 below 2**22 to an integer, half to even
_ROUND = tl.constexpr(12582912.0)
_BLOCK = 1024


@triton.jit
def to_integer(x, grid):
    """Float32 x as the integers (float32, from 0) of ``grid``: see layout.input_grid.

    It is clamped first and rounded then, which is the same since the bounds are integers; the division is exact.
    """
    least, greatest = tl.load(grid + 1), tl.load(grid + 2)
    steps = tl.minimum(tl.maximum(tl.div_rn(x, tl.load(grid)), least), greatest)
    return (steps + _ROUND) - _ROUND - least


@triton.jit
def to_byte(x, grid):
    """Float32 x as the int8 of a grid of at most 8 bits: its integers less 128."""
    return (to_integer(x, grid) - 128).to(tl.int8)


@triton.jit
def _quantize(x, row_stride, out, plane, count, channels, width, grid, PLANES: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, channel = index // width, index % width
    inside = (index < count) & (channel < channels)
    value = tl.load(x + row * row_stride + channel, mask=inside, other=0.0).to(tl.float32)
    if PLANES == 1:
        tl.store(out + index, to_byte(value, grid), mask=inside)
    else:
        integer = to_integer(value, grid).to(tl.int32)
        tl.store(out + index, ((integer >> 8) - 128).to(tl.int8), mask=inside)
        tl.store(out + plane + index, ((integer & 255) - 128).to(tl.int8), mask=inside)


def quantize(x: Tensor, grid: Tensor, planes: int, width: int) -> Tensor:
    """Quantize rows x (rows, channels), any float type, last axis contiguous, to int8 (planes, rows, width)."""
    rows, channels = x.shape
    out = torch.empty(planes, rows, width, dtype=torch.int8, device=x.device)
    count = rows * width
    block = min(_BLOCK, triton.next_power_of_2(count)) if not triton.knobs.runtime.interpret else 2**16
    _quantize[(triton.cdiv(count, block),)](
        x, x.stride(0), out, count, count, channels, width, grid, PLANES=planes, BLOCK=block
    )
    return out
