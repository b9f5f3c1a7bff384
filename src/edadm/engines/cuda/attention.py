"""Attention whose operands are the quantized checkpoint's integers, without writing the scores.

The scores of a tile are computed twice, from int8: once for the row's maximum and sum, and once more to quantize the
softmax, which the sum must be known for. The second product is one of integers in float16, at most 255 in size,
summed in float32: exact while a sum stays below 2**24. A softmax adds up to 1, so that its integers add up to about
1 / scale, and a sum of theirs times v's stays below 128 / scale.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from edadm.engines.cuda.tiles import INTERPRETED
from edadm.quantization.attention import Scales

_QUERIES, _KEYS = (128, 128) if INTERPRETED else (128, 64)
_ROUND = tl.constexpr(12582912.0)  # see quantize.py


@triton.jit
def _scores(q, k, key, keys, stride, d, D: tl.constexpr, factor):
    """The scores (queries, keys) of a tile, minus infinity where there is no key."""
    inside = (key < keys)[None, :] & (d < D)[:, None]
    other = tl.load(k + key.to(tl.int64)[None, :] * stride + d[:, None], mask=inside, other=0)
    scores = tl.dot(q, other, out_dtype=tl.int32).to(tl.float32) * factor
    return tl.where((key < keys)[None, :], scores, float("-inf"))


@triton.jit
def _attention(
    q, k, v, out, q_stride, kv_stride, queries, keys, heads, factor, softmax_scale, out_scale,
    D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    image, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    row, d = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    inside = (row < queries)[:, None] & (d < D)[None, :]
    place = (image * queries + row).to(tl.int64)[:, None] * q_stride + head * D + d[None, :]
    own = tl.load(q + place, mask=inside, other=0)
    start = image.to(tl.int64) * keys * kv_stride + head * D
    greatest = tl.full((QUERIES,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((QUERIES,), dtype=tl.float32)
    for first in range(0, keys, KEYS):
        scores = _scores(own, k + start, first + tl.arange(0, KEYS), keys, kv_stride, d, D, factor)
        above = tl.maximum(greatest, tl.max(scores, 1))
        total = total * tl.exp(greatest - above) + tl.sum(tl.exp(scores - above[:, None]), 1)
        greatest = above
    sums = tl.zeros((QUERIES, WIDTH), dtype=tl.float32)
    for first in range(0, keys, KEYS):
        key = first + tl.arange(0, KEYS)
        scores = _scores(own, k + start, key, keys, kv_stride, d, D, factor)
        share = tl.div_rn(tl.div_rn(tl.exp(scores - greatest[:, None]), total[:, None]), softmax_scale)
        integer = (tl.minimum(share, 255.0) + _ROUND) - _ROUND
        rows = (key < keys)[:, None] & (d < D)[None, :]
        values = tl.load(v + start + key.to(tl.int64)[:, None] * kv_stride + d[None, :], mask=rows, other=0)
        sums = tl.dot(integer.to(tl.float16), values.to(tl.float16), sums)
    tl.store(out + place, (sums * out_scale).to(out.dtype.element_ty), mask=inside)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scales: Scales, dtype: torch.dtype) -> Tensor:
    """Attention of int8 q (n, queries, heads * d) to k and v (n, keys, heads * d), all contiguous.

    Returns (n, queries, heads * d) of ``dtype``.
    """
    images, queries, channels = q.shape
    depth = channels // heads
    out = torch.empty(q.shape, dtype=dtype, device=q.device)
    factor = torch.tensor(scales["q"]) * torch.tensor(scales["k"]) * depth**-0.5  # float32, as the reference
    queries_block = max(16, min(_QUERIES, triton.next_power_of_2(queries)))
    width = max(32, triton.next_power_of_2(depth))
    _attention[(triton.cdiv(queries, queries_block), images * heads)](
        q, k, v, out, q.stride(1), k.stride(1), queries, k.shape[1], heads, factor.item(), scales["softmax"],
        (torch.tensor(scales["softmax"]) * torch.tensor(scales["v"])).item(), D=depth,
        WIDTH=width, QUERIES=queries_block, KEYS=_KEYS, num_warps=4 if width <= 64 else 8,
    )  # fmt: skip
    return out
