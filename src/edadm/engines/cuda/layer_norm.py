"""LayerNorm and quantization in one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from edadm.engines.cuda.quantize import to_byte
from edadm.engines.cuda.tiles import INTERPRETED

_TILE = 2**17 if INTERPRETED else 4096  # elements that a program holds


@triton.jit
def _layer_norm(
    x, row_stride, gamma, beta, out, plane, width, rows, channels, eps, grids,
    OUTPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    used = c < channels
    inside = (row < rows)[:, None] & used[None, :]
    place = row.to(tl.int64)[:, None]
    value = tl.load(x + place * row_stride + c[None, :], mask=inside, other=0.0).to(tl.float32)
    distance = tl.where(inside, value - (tl.sum(value, 1) / channels)[:, None], 0.0)
    deviation = tl.sqrt_rn(tl.sum(distance * distance, 1) / channels + eps)
    y = distance * (1.0 / deviation)[:, None] * tl.load(gamma + c, mask=used, other=0.0)[None, :]
    y += tl.load(beta + c, mask=used, other=0.0)[None, :]
    for index in tl.static_range(OUTPUTS):
        tl.store(out + index * plane + place * width + c[None, :], to_byte(y, grids + 3 * index), mask=inside)


def layer_norm(x: Tensor, norm: nn.LayerNorm, grids: Tensor, width: int) -> Tensor:
    """Normalize rows x (rows, channels), the last axis contiguous, of any float type, and quantize them.

    Returns int8 (len(grids), rows, width), for each row of ``grids`` float32 (k, 3), see layout.input_grid.
    """
    rows, channels = x.shape
    out = torch.empty(len(grids), rows, width, dtype=torch.int8, device=x.device)
    columns = triton.next_power_of_2(channels)
    block = min(max(1, _TILE // columns), triton.next_power_of_2(rows))
    _layer_norm[(triton.cdiv(rows, block),)](
        x, x.stride(0), norm.weight, norm.bias, out, rows * width, width, rows, channels, norm.eps, grids,
        OUTPUTS=len(grids), ROWS=block, COLUMNS=columns,
    )  # fmt: skip
    return out
