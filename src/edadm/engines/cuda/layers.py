"""Quantized layers as modules in the place of diffusers' own: floats in, floats out, integers between."""

from typing import Any

import torch
from torch import Tensor, nn

from edadm.engines.cuda.convolution import convolution, output_size
from edadm.engines.cuda.layout import pack
from edadm.engines.cuda.linear import linear
from edadm.engines.cuda.quantize import quantize
from edadm.errors import InputError
from edadm.quantization.integer_layer import IntegerLayer


def rows_of(x: Tensor) -> Tensor:
    """X (..., channels) as rows (-1, channels), without copying where one stride leads from row to row."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    try:
        return x.view(-1, x.shape[-1])
    except RuntimeError:
        return x.reshape(-1, x.shape[-1]).contiguous()


def channels_last(x: Tensor) -> Tensor:
    """Images (n, c, h, w) as (n, h, w, c); nothing is copied when that is how they lie in memory."""
    return x.permute(0, 2, 3, 1)


def _check(x: Tensor) -> Tensor:
    """``x``, which the kernels can address with 32 bits; InputError when they cannot."""
    if x.numel() >= 2**31:
        raise InputError(f"an activation of {x.numel()} values is too large for the cuda engine; use a smaller batch")
    return x


class Linear(nn.Module):
    """A linear layer; its tensors are no parameters, so that ``.to`` leaves their types alone."""

    def __init__(self, layer: IntegerLayer, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.packed = pack(layer, device)
        self.dtype = dtype  # of the output

    def integers(self, x: Tensor) -> Tensor:
        """X float (..., channels) as int8 (planes, rows, width)."""
        return quantize(rows_of(x), self.packed.grid, self.packed.planes, self.packed.width)

    def product(self, q: Tensor, residual: Tensor | None = None, out_grid: Tensor | None = None) -> Tensor:
        """Of q int8 (planes, rows, width), the layer's output (rows, out), plus ``residual`` (rows, out).

        With ``out_grid`` it is quantized to int8, see layout.input_grid.
        """
        dtype = self.dtype if out_grid is None else torch.int8
        out = torch.empty(q.shape[1], self.packed.outputs, dtype=dtype, device=q.device)
        return linear(_check(q), self.packed, _check(out), residual=residual, out_grid=out_grid)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Take x (..., in) of any float type to (..., out)."""
        return self.product(self.integers(x)).unflatten(0, x.shape[:-1])


class Convolution(nn.Module):
    """A convolution; images are (n, c, h, w) outside, with the channels last in memory."""

    def __init__(self, layer: IntegerLayer, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.packed = pack(layer, device)
        self.dtype = dtype  # of the output

    def integers(self, x: Tensor) -> Tensor:
        """Images x float (n, c, h, w) as int8 (planes, n, h, w, width)."""
        last = channels_last(x)
        q = quantize(rows_of(last), self.packed.grid, self.packed.planes, self.packed.width)
        return q.unflatten(1, last.shape[:3])

    def product(
        self,
        q: Tensor,
        up: int = 1,
        after: tuple[int, int] = (0, 0),
        embedding: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Of q int8 (planes, n, h, w, width), the layer's output (n, out, oh, ow), the channels last in memory.

        The input is first enlarged ``up`` times, then padded by ``after`` more rows and columns at its ends.
        ``embedding`` (n, out) and ``residual`` (n, out, oh, ow) are added.
        """
        packed = self.packed
        size = output_size(packed, q.shape[2], q.shape[3], up, after)
        out = torch.empty(_check(q).shape[1], *size, packed.outputs, dtype=self.dtype, device=q.device)
        if residual is not None:
            residual = channels_last(residual).contiguous()
        if packed.pointwise and up == 1 and after == (0, 0):
            rows = residual if residual is None else residual.flatten(0, 2)
            linear(q.flatten(1, 3), packed, out.flatten(0, 2), embedding, size[0] * size[1], rows)
        else:
            convolution(q, packed, out, up, embedding, residual)
        return _check(out).permute(0, 3, 1, 2)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Take x (n, c, h, w) of any float type to (n, out, oh, ow); diffusers' further arguments mean nothing."""
        return self.product(self.integers(x))


def make_layer(layer: IntegerLayer, device: torch.device, dtype: torch.dtype) -> Linear | Convolution:
    """The module that computes ``layer`` on ``device`` with outputs of ``dtype``."""
    return (Convolution if layer.is_convolution else Linear)(layer, device, dtype)
