"""The two products of an attention: PyTorch's fused one on floats, or ours on the checkpoint's integers."""

import torch
from torch import Tensor
from torch.nn import functional as F

from edadm.engines.cuda.attention import attention
from edadm.quantization.attention import OPERANDS, Scales, integers


class IntegerProduct:
    """A product for QuantizedAttention: exact integers in float32, and their sums, exact below 2**24."""

    def __init__(self, scales: Scales) -> None:
        self.scales = scales

    def __call__(self, one: str, a: Tensor, other: str, b: Tensor) -> Tensor:
        """The product of operands ``one`` and ``other``, of any float type, as float32."""
        first, second = integers(one, a.float(), self.scales[one]), integers(other, b.float(), self.scales[other])
        return (first @ second) * (torch.tensor(self.scales[one]) * torch.tensor(self.scales[other]))


def operand_grids(scales: Scales | None, device: torch.device) -> list[Tensor | None]:
    """What q, k and v are quantized to, see layout.input_grid; None for each without ``scales``."""
    if scales is None:
        return [None] * 3
    grids = [[scales[name], *map(float, OPERANDS[name])] for name in ("q", "k", "v")]
    return list(torch.tensor(grids, dtype=torch.float32, device=device))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, scales: Scales | None, dtype: torch.dtype) -> Tensor:
    """Attention of q (n, queries, heads * d) to k and v (n, keys, heads * d): floats, or int8 with ``scales``.

    Returns (n, queries, heads * d): of ``dtype`` with scales, else of the operands' type.
    """
    if scales is not None:
        return attention(q, k, v, heads, scales, dtype)
    q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
