"""One quantized layer as exact integers, as it stands in a checkpoint's JSON and tensors."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edadm.errors import InputError
from edadm.quantization.quantizer import weight_grid

PACKED_BITS = 4  # weights of at most so many bits are stored two per byte
_GEOMETRY = ("stride", "padding", "dilation", "groups")
_INTEGERS = ("bits", "input_bits", "input_zero_point")


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """One convolution or linear layer as exact integers.

    ``y = input_scale * weight_scale[c] * sum((q_x - input_zero_point) * q_w) + bias[c]``, where
    ``q_x = clamp(round_half_even(x / input_scale) + input_zero_point, 0, 2**input_bits - 1)`` and padding adds nothing
    (it is q_x = input_zero_point). Raises InputError when a field does not fit the others; no input can then take the
    sum out of 32 bits.
    """

    bits: int  # 2..8
    weight: Tensor  # int8 (out, in / groups, kh, kw) or (out, in), within weight_grid(bits)
    weight_scale: Tensor  # float32 (out,), positive
    bias: Tensor | None  # float32 (out,)
    input_scale: float  # a float32 value, positive
    input_zero_point: int  # 0..2**input_bits - 1
    input_bits: int = 8  # 2..8, or 16
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        if self.bits not in range(2, 9):
            raise InputError(f"bits is {self.bits!r}, not 2 to 8")
        if self.input_bits not in (*range(2, 9), 16):
            raise InputError(f"input_bits is {self.input_bits!r}, not 2 to 8 or 16")
        if self.weight.dtype != torch.int8 or self.weight.dim() not in (2, 4) or self.weight.numel() == 0:
            raise InputError(f"weight is {self.weight.dtype} {tuple(self.weight.shape)}, not int8 with 2 or 4 axes")
        if not self.is_convolution and self.geometry != ((1, 1), (0, 0), (1, 1), 1):
            raise InputError("a linear layer has no stride, padding, dilation or groups")
        if self.groups < 1 or len(self.weight) % self.groups:
            raise InputError(f"{len(self.weight)} outputs cannot form {self.groups} groups")
        least, greatest = weight_grid(self.bits)
        if self.weight.min() < least or self.weight.max() > greatest:
            raise InputError(f"weight leaves the {self.bits}-bit range {least}..{greatest}")
        for key in ("weight_scale", "bias"):
            value = getattr(self, key)
            if value is None and key == "bias":
                continue
            if value.dtype != torch.float32 or value.shape != self.weight.shape[:1]:
                raise InputError(f"{key} is {value.dtype} {tuple(value.shape)}, not float32 ({len(self.weight)},)")
            if not value.isfinite().all():
                raise InputError(f"{key} is not finite")
        if (self.weight_scale <= 0).any():
            raise InputError("weight_scale is not positive")
        scale = self.input_scale
        if not (isinstance(scale, float) and scale > 0 and math.isfinite(scale) and _float32(scale) == scale):
            raise InputError(f"input_scale {scale!r} is not a positive float32 value")
        zero = self.input_zero_point
        if not isinstance(zero, int) or not 0 <= zero < 2**self.input_bits:
            raise InputError(f"input_zero_point {zero!r} is not in 0..{2**self.input_bits - 1}")
        if -least * self.weight[0].numel() * (2**self.input_bits - 1) >= 2**31:  # else no weights could
            sums = self.weight.flatten(1).abs().sum(1, dtype=torch.int64)
            if sums.max() * (2**self.input_bits - 1) >= 2**31:
                raise InputError("the sum of a channel can leave 32 bits")

    @property
    def is_convolution(self) -> bool:
        """Whether the weight has kernel axes."""
        return self.weight.dim() == 4

    @property
    def in_channels(self) -> int:
        """Input channels, or input features of a linear layer."""
        return self.weight.shape[1] * self.groups

    @property
    def geometry(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        """Stride, padding, dilation, groups: the last arguments of ``torch.nn.functional.conv2d``."""
        return self.stride, self.padding, self.dilation, self.groups


def _float32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()


def pack(weight: Tensor) -> Tensor:
    """Signed 4-bit integers (int8, any shape) in two's complement, two per byte: uint8 (ceil(n / 2),).

    Element 2i in row-major order is the low half of byte i, element 2i + 1 its high half; an odd last high half is 0.
    """
    flat = weight.flatten()
    if flat.numel() % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    halves = flat.view(torch.uint8) & 15
    return halves[0::2] | (halves[1::2] << 4)


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The int8 tensor of ``shape`` that :func:`pack` was given."""
    # shifting right keeps the sign: the half byte is first moved to the top
    bytes_ = packed.view(torch.int8)
    halves = torch.stack([(bytes_ << 4) >> 4, bytes_ >> 4], dim=1)
    return halves.flatten()[: math.prod(shape)].reshape(shape)


def to_entry(layer: IntegerLayer) -> dict[str, Any]:
    """What config.json says of a layer: see ``checkpoint``."""
    entry = {key: getattr(layer, key) for key in ("bits", "input_bits", "input_scale", "input_zero_point")}
    entry |= {"shape": list(layer.weight.shape), "bias": layer.bias is not None}
    if layer.is_convolution:
        entry |= {"stride": list(layer.stride), "padding": list(layer.padding)}
        entry |= {"dilation": list(layer.dilation), "groups": layer.groups}
    return entry


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def entry_problem(entry: Any) -> str | None:
    """What keeps a layer's JSON from describing a layer, or None."""
    if not isinstance(entry, dict):
        return "not a JSON object"
    shape = entry.get("shape")
    if not isinstance(shape, list) or len(shape) not in (2, 4) or not all(_is_integer(n) and n > 0 for n in shape):
        return f"shape {shape!r} is not 2 or 4 positive integers"
    expected = {*_INTEGERS, "input_scale", "shape", "bias", *(_GEOMETRY if len(shape) == 4 else ())}
    if set(entry) != expected:
        return f"{sorted(set(entry) ^ expected)[0]} is missing or not known"
    if not isinstance(entry["input_scale"], float):
        return f"input_scale {entry['input_scale']!r} is not a float"
    if not isinstance(entry["bias"], bool):
        return f"bias {entry['bias']!r} is not true or false"
    for key in (*_INTEGERS, *(("groups",) if len(shape) == 4 else ())):
        if not _is_integer(entry[key]):
            return f"{key} {entry[key]!r} is not an integer"
    for key, least in (("stride", 1), ("padding", 0), ("dilation", 1)) if len(shape) == 4 else ():
        pair = entry[key]
        if not isinstance(pair, list) or len(pair) != 2 or not all(_is_integer(n) and n >= least for n in pair):
            return f"{key} {pair!r} is not two integers from {least}"
    return None


def from_entry(entry: dict[str, Any], weight: Tensor | None, weight_scale: Tensor, bias: Tensor | None) -> IntegerLayer:
    """The layer of a JSON entry and its tensors, the weight as stored."""
    if weight is None:
        raise InputError("weight is missing")
    shape = tuple(entry["shape"])
    if entry["bits"] <= PACKED_BITS:
        dtype, stored = torch.uint8, ((math.prod(shape) + 1) // 2,)
    else:
        dtype, stored = torch.int8, shape
    if weight.dtype != dtype or weight.shape != stored:
        raise InputError(f"weight is {weight.dtype} {tuple(weight.shape)}, not {dtype} {stored}")
    fields = {key: entry[key] for key in (*_INTEGERS, "input_scale")}
    for key in _GEOMETRY if len(shape) == 4 else ():
        fields[key] = entry[key] if key == "groups" else tuple(entry[key])
    weight = unpack(weight, shape) if dtype == torch.uint8 else weight
    return IntegerLayer(weight=weight, weight_scale=weight_scale, bias=bias, **fields)
