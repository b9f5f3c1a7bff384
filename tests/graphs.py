"""Pieces of OpenVINO graphs, as networks have them once they are read again from a file."""

import numpy as np
import openvino as ov
from openvino import opset13 as op


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
