"""GEGLU (one half of a row times the GELU of the other) and quantization in one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from edadm.engines.cuda.quantize import to_byte
from edadm.engines.cuda.tiles import INTERPRETED

_BLOCK = 2**16 if INTERPRETED else 1024


@triton.jit
def _geglu(x, out, count, channels, width, grid, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, channel = index // width, index % width
    inside = (index < count) & (channel < channels)
    value = x + row * 2 * channels + channel
    gate = tl.load(value + channels, mask=inside, other=0.0).to(tl.float32)
    gate = gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    y = tl.load(value, mask=inside, other=0.0).to(tl.float32) * gate
    tl.store(out + index, to_byte(y, grid), mask=inside)


def geglu(x: Tensor, grid: Tensor, width: int) -> Tensor:
    """Quantize ``x[:, :c] * gelu(x[:, c:])`` for contiguous x (rows, 2 c): int8 (1, rows, width)."""
    rows, channels = x.shape[0], x.shape[1] // 2
    out = torch.empty(1, rows, width, dtype=torch.int8, device=x.device)
    block = min(_BLOCK, triton.next_power_of_2(out.numel()))
    _geglu[(triton.cdiv(out.numel(), block),)](x, out, out.numel(), channels, width, grid, BLOCK=block)
    return out
