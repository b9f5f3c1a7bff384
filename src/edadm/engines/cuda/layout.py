"""From a quantized layer to the tensors that the kernels read.

Activations are the layer's integers less 128, so that tensor cores multiply int8 by int8: int8 (planes, ..., width),
channels last. ``width`` is the number of channels rounded up to the layer's ``block``; what stands in the surplus
columns does not matter, since their weights are 0. There is one plane, or two for inputs of 16 bits: the high byte,
then the low byte.

Weights are int8 (out, steps * block), one row per output: for every tap of the kernel, row by row, ``width`` channels.
A block is what one product of tiles takes from a row: 32, 64 or 128 bytes. Weights of at most 4 bits are packed, two
per byte, (out, ceil(steps / 2) * block): the low half of a byte is the weight there in the first half of a row, the
high half the one at the same place in the second half. So a tile of bytes is two tiles of weights, each contiguous,
without moving anything between threads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edadm.quantization.checkpoint import PACKED_BITS, IntegerLayer

BLOCKS = (128, 64, 32)  # the products of int8 tiles take multiples of 32
WASTE = 16  # a wider block may add one channel in so many
_BYTE = 128  # what is taken from an integer to fit it into int8


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """A convolution or linear layer on its device; ``sum((q - zero) * w)`` is the kernel's sum plus ``correction``."""

    weight: Tensor  # int8, see the module
    scale: Tensor  # float32 (out,): input_scale * weight_scale
    bias: Tensor  # float32 (out,), zeros where the layer has none
    correction: Tensor  # int32 (out,)
    grid: Tensor  # float32 (3,) of the input, see input_grid
    block: int
    width: int
    packed: bool
    padding_bytes: tuple[int, ...]  # what stands for an input of 0, in each plane
    kernel: tuple[int, int]  # (1, 1) of a linear layer
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def planes(self) -> int:
        """How many bytes an input has."""
        return len(self.padding_bytes)

    @property
    def outputs(self) -> int:
        """Output channels or features."""
        return len(self.scale)

    @property
    def pointwise(self) -> bool:
        """Whether every output row takes one input row: a linear layer, or a 1x1 convolution that moves nothing."""
        return (self.kernel, self.stride, self.padding) == ((1, 1), (1, 1), (0, 0))


def input_grid(scale: float, zero: int, bits: int) -> Tensor:
    """What quantizing kernels read, float32 (3,): the scale, and the least and greatest of ``round(x / scale)``."""
    return torch.tensor([scale, -zero, 2**bits - 1 - zero], dtype=torch.float32)


def block_of(channels: int) -> int:
    """The widest block that adds at most one channel in WASTE; the narrowest when none does."""
    fitting = (block for block in BLOCKS if (-channels % block) * WASTE <= channels)
    return next(fitting, BLOCKS[-1])


def pack(layer: IntegerLayer, device: torch.device | str = "cpu") -> PackedLayer:
    """Lay ``layer`` out for the kernels, on ``device``."""
    block = block_of(layer.in_channels)
    width = layer.in_channels + -layer.in_channels % block
    weight = _dense(layer).to(device)
    taps = weight.reshape(len(weight), layer.in_channels, -1).transpose(1, 2)  # (out, taps, in)
    rows = F.pad(taps, (0, width - layer.in_channels)).flatten(1)
    packed = layer.bits <= PACKED_BITS
    planes = 2 if layer.input_bits == 16 else 1
    zero = layer.input_zero_point
    bytes_ = (zero >> 8, zero & 255) if planes == 2 else (zero,)
    # every plane lacks 128 of its integers; the high byte counts 256 times
    shift = (257 if planes == 2 else 1) * _BYTE - zero
    sums = weight.flatten(1).sum(1, dtype=torch.int32)
    geometry = {}
    if layer.is_convolution:
        geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    return PackedLayer(
        weight=pack_halves(rows, block) if packed else rows.contiguous(),
        scale=(layer.weight_scale * layer.input_scale).to(device),
        bias=(torch.zeros_like(layer.weight_scale) if layer.bias is None else layer.bias.float()).to(device),
        correction=sums * shift,
        grid=input_grid(layer.input_scale, zero, layer.input_bits).to(device),
        block=block,
        width=width,
        packed=packed,
        padding_bytes=tuple(byte - _BYTE for byte in bytes_),
        kernel=tuple(layer.weight.shape[2:]) if layer.is_convolution else (1, 1),
        **geometry,
    )


def pack_halves(rows: Tensor, block: int) -> Tensor:
    """Signed 4-bit integers, int8 (out, steps * block), two per byte: int8 (out, ceil(steps / 2) * block)."""
    rows = F.pad(rows, (0, -rows.shape[1] % (2 * block)))
    low, high = rows.chunk(2, 1)
    return (low & 15) | (high << 4)


def _dense(layer: IntegerLayer) -> Tensor:
    """The weight without groups, int8 (out, in, kh, kw) or (out, in): 0 from one group to another."""
    if layer.groups == 1:
        return layer.weight
    pieces = layer.weight.chunk(layer.groups)
    inputs = layer.weight.shape[1]
    dense = layer.weight.new_zeros(len(layer.weight), layer.in_channels, *layer.weight.shape[2:])
    for index, piece in enumerate(pieces):
        dense[index * len(piece) : (index + 1) * len(piece), index * inputs : (index + 1) * inputs] = piece
    return dense
