"""Values that OpenVINO moves for nothing, or slowly: rewrites of a graph of static shapes that copy less.

Each sum and product stays as it is, so that results are the same to the bit.
"""

import math
from itertools import accumulate, pairwise

import numpy as np
import openvino as ov
from openvino import opset13 as op

from edadm.engines.graph import (
    of_byte,
    only_reader,
    quantized_reader,
    read_instead,
    readers,
    replace,
    weight_constants,
)
from edadm.engines.processor import is_x86

FEW_PIXELS = 2  # in a call, times the output channels; beyond, padding them costs what it spares


def spare_moves(graph: ov.Model) -> list[str]:
    """Rewrite ``graph``, with int8 weights; returns the names of the layers that this adds."""
    _read_sources(graph)
    _transpose_by_reorder(graph)
    _pad_in_convolutions(graph)
    if is_x86():  # elsewhere convolutions are computed in float, and OpenVINO refuses padded integers before them
        _pad_bytes(graph)
    added = _split_linears(graph)
    graph.validate_nodes_and_infer_types()
    return added


def _read_sources(graph: ov.Model) -> None:
    """Let readers of a concatenation's parts, where it is split into them again, read what was put together.

    A shortcut over a skip concatenation has a layer for each. A bias that is not a product's own would be folded into
    the bounds of a quantization right behind it, which rounds otherwise; then the split stays, for half of one is slow.
    """
    for node in _nodes(graph, "VariadicSplit"):
        source = node.input_value(0).get_node()
        if source.get_type_name() != "Concat" or source.get_attributes()["axis"] != _axis(node):
            continue
        values, parts = source.input_values(), node.outputs()
        fits = [value.get_shape() for value in values] == [port.get_shape() for port in parts]
        if fits and not any(_adds_to_sum(value.get_node()) for value in values):
            for port, value in zip(parts, values, strict=True):
                read_instead(port, value)


def _split_linears(graph: ov.Model) -> list[str]:
    """Compute the parts that a linear's output is split into by linears of their own.

    A gated feed-forward has two. The first keeps the layer's name, others have ``.1`` and so on behind it; returns the
    names that are new.
    """
    added = []
    for node in _nodes(graph, "VariadicSplit"):
        bias = node.input_value(0).get_node()
        linear = bias.input_value(0).get_node() if bias.get_type_name() == "Add" else bias
        weight = weight_constants(linear) if linear.get_type_name() == "MatMul" else None
        last = len(node.get_output_shape(0)) - 1
        if weight is None or _axis(node) not in (-1, last) or len(readers(bias)) > 1:
            continue
        name, (integers, scale) = linear.get_friendly_name(), (constant.data for constant in weight)
        ends = [0, *accumulate(port.get_shape()[last] for port in node.outputs())]
        for number, (port, (start, end)) in enumerate(zip(node.outputs(), pairwise(ends), strict=True)):
            part = op.multiply(op.convert(op.constant(integers[start:end]), "f32"), op.constant(scale[start:end]))
            y = op.matmul(linear.input_value(0), part, transpose_a=False, transpose_b=True)
            y.set_friendly_name(f"{name}.{number}" if number else name)
            added += [f"{name}.{number}"] if number else []
            if bias is not linear:
                y = op.add(y, op.constant(bias.input_value(1).get_node().data[..., start:end]))
            read_instead(port, y.output(0))
    return added


def _transpose_by_reorder(graph: ov.Model) -> None:
    """Write transpositions of tokens and channels as (0, 3, 1, 2) of four axes, the one with a fast kernel.

    They are (0, 2, 1) of an image as tokens and (0, 2, 3, 1) of an attention's integers; tokens that become an image
    again cost nothing as they are.
    """
    for node in _nodes(graph, "Transpose"):
        shape, order = list(node.get_input_shape(0)), node.input_value(1).get_node().data.tolist()
        source, read_by = node.input_value(0), {reader.get_type_name() for reader in readers(node)}
        if not (
            (order == [0, 2, 1] and "Reshape" not in read_by)
            or (order == [0, 2, 3, 1] and source.get_node().get_type_name() == "FakeQuantize" and read_by == {"MatMul"})
        ):
            continue
        four = op.reshape(source, [*shape[:2], 1, math.prod(shape[2:])], special_zero=False)
        turned = op.transpose(four, [0, 3, 1, 2])
        read_instead(node.output(0), op.reshape(turned, list(node.get_output_shape(0)), special_zero=False).output(0))


def _pad_in_convolutions(graph: ov.Model) -> None:
    """Let convolutions of quantized inputs put the zeros around them themselves."""
    for node in _nodes(graph, "Pad"):
        quantization = quantized_reader(node)
        convolution = only_reader(quantization, "Convolution")
        if convolution is None or node.get_attributes()["pad_mode"] != "constant":
            continue
        begin, end, *value = (constant.get_node().data.tolist() for constant in node.input_values()[1:])
        if any(begin[:2] + end[:2] + value) or min(begin + end) < 0:
            continue
        read_instead(node.output(0), node.input_value(0))
        own = convolution.get_attributes()
        edges = np.add(own["pads_begin"], begin[2:]).tolist(), np.add(own["pads_end"], end[2:]).tolist()
        weight = convolution.input_value(1)
        replace(convolution, op.convolution(quantization, weight, own["strides"], *edges, own["dilations"]))


def _pad_bytes(graph: ov.Model) -> None:
    """Pad the integers of a few pixels before a convolution.

    One that pads by itself adds up its weights in every call, to know what the zero point is worth at the edges; for
    few pixels that takes longer than the products. It grows with the output channels, padding with the pixels.
    """
    quantized: dict[str, ov.Node] = {}  # by the quantization's name, which the parts of a layer may share
    for node in _nodes(graph, "Convolution"):
        q, geometry = node.input_value(0).get_node(), node.get_attributes()
        begin, end = list(geometry["pads_begin"]), list(geometry["pads_end"])
        images, channels, *size = node.get_output_shape(0)
        few = len(size) == 2 and images * math.prod(size) <= FEW_PIXELS * channels
        if not (few and any(begin + end) and q.get_type_name() == "FakeQuantize" and weight_constants(node)):
            continue
        low, high, least, greatest = (bound.get_node().data.reshape(-1) for bound in q.input_values()[1:])
        scale = (greatest - least) / np.float32(255)
        zero = np.rint(-least / scale)
        if zero == 0:
            continue
        if q.get_name() not in quantized:
            whole = op.fake_quantize(q.input_value(0), low, high, np.zeros_like(low), np.full_like(low, 255), 256)
            quantized[q.get_name()] = op.convert(whole, "u8")
        value = op.constant(zero.astype(np.uint8)[0])
        padded = op.pad(quantized[q.get_name()], [0, 0, *begin], [0, 0, *end], "constant", value)
        x = of_byte(padded, zero, scale)
        weight, strides, dilations = node.input_value(1), geometry["strides"], geometry["dilations"]
        replace(node, op.convolution(x, weight, strides, [0, 0], [0, 0], dilations))


def _adds_to_sum(node: ov.Node) -> bool:
    """Whether a node adds a constant to a sum, as after a layer of 16-bit inputs, which is two products."""
    kinds = [value.get_node().get_type_name() for value in node.input_values()]
    return node.get_type_name() == "Add" and kinds == ["Add", "Constant"]


def _nodes(graph: ov.Model, kind: str) -> list[ov.Node]:
    """The nodes of a kind whose input's shape is known; that of a context need not be."""
    found = [node for node in graph.get_ordered_ops() if node.get_type_name() == kind]
    return [node for node in found if node.get_input_partial_shape(0).is_static]


def _axis(split: ov.Node) -> int:
    return int(split.input_value(1).get_node().data)
