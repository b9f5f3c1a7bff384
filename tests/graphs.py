"""Pieces of OpenVINO graphs, as networks have them once they are read again from a file, and what runs in int8."""

import numpy as np
import openvino as ov
from openvino import opset13 as op

from edadm.engines import cpu, processor


def quantized_convolution(
    x: ov.Node,
    integers: np.ndarray,
    ends: tuple[float, float],
    name: str = "conv",
    scale: np.ndarray | None = None,
    strides: tuple[int, int] = (1, 1),
    begin: tuple[int, int] = (1, 1),
    end: tuple[int, int] = (1, 1),
    dilations: tuple[int, int] = (1, 1),
) -> ov.Node:
    """The convolution ``name`` of x in 256 levels between ``ends`` and int8 weights, by default of scale 1/8."""
    bounds = np.float32(ends)
    quantized = op.fake_quantize(x, *bounds, *bounds, 256)
    scale = np.full(len(integers), 0.125, np.float32) if scale is None else scale
    weight = op.multiply(op.convert(op.constant(integers), "f32"), op.constant(scale.reshape(-1, 1, 1, 1)))
    convolution = op.convolution(quantized, weight, list(strides), list(begin), list(end), list(dilations))
    convolution.set_friendly_name(name)
    return convolution


def in_int8(*compiled: ov.CompiledModel, names: set[str] = frozenset(), count: int | None = None) -> bool:
    """Whether every layer runs in int8, all of ``names`` among them, and they are ``count``."""
    found = set().union(*map(cpu.int8_names, compiled))
    return counted(*cpu.int8_layers(*compiled), count) and (names <= found or not processor.is_x86())


def counted(integer: int, total: int, count: int | None) -> bool:
    """Whether all of a graph's layers are ``integer`` ones and, if it is known, ``count``.

    Without VNNI there may be more, for those of large weights are two; on other processors than x86 some are float, and
    groups are layers of their own.
    """
    usual = processor.is_x86() and processor.has_int8_dot()
    as_many = count in (None, total) or (total > count and not usual)
    return as_many and (integer == total or not processor.is_x86())
