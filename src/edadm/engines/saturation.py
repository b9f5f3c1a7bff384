"""Graphs for processors with neither VNNI nor AMX, where sums of two products saturate at 16 bits, silently.

oneDNN's int8 kernels multiply bytes, 0 to 255, with weights there and add the products in pairs, in 16 bits: 4 to 17 %
wrong. So a layer with weights beyond LARGEST becomes the sum of two, with half of its weights each, and the products
of attention, of two activations, are computed in float, which holds their integers exactly.
"""

import numpy as np
import openvino as ov
from openvino import opset13 as op

from edadm.engines.graph import weight_constants

LARGEST = 64  # 2 * 255 * 64 < 2**15, and any int8 number is the sum of two such


def avoid_saturation(graph: ov.Model) -> None:
    """Rewrite ``graph``, with int8 weights; the second half of a layer is called by its name, ``.half`` behind it."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() not in ("Convolution", "GroupConvolution", "MatMul"):
            continue
        weight = weight_constants(node)
        if weight is None:
            _leave_in_float(node)
        elif np.abs(weight[0].data.astype(np.int32)).max() > LARGEST:
            _halve(node, *weight)
    graph.validate_nodes_and_infer_types()


def _halve(node: ov.Node, integers: ov.Node, scale: ov.Node) -> None:
    readers = node.output(0).get_target_inputs()
    lower = integers.data // 2
    lower_weight, rest = (
        op.multiply(op.convert(op.constant(half), "f32"), scale) for half in (lower, integers.data - lower)
    )
    node.input(1).replace_source_output(lower_weight.output(0))
    other = _like(node, rest)
    other.set_friendly_name(f"{node.get_friendly_name()}.half")
    whole = op.add(node, other)
    for reader in readers:
        reader.replace_source_output(whole.output(0))


def _like(node: ov.Node, weight: ov.Node) -> ov.Node:
    """The convolution or product of the same input and geometry with another weight."""
    x, own = node.input_value(0), node.get_attributes()
    if node.get_type_name() == "MatMul":
        return op.matmul(x, weight, own["transpose_a"], own["transpose_b"])
    convolution = op.convolution if node.get_type_name() == "Convolution" else op.group_convolution
    return convolution(x, weight, own["strides"], own["pads_begin"], own["pads_end"], own["dilations"])


def _leave_in_float(product: ov.Node) -> None:
    """Quantize the operands of a product by rounding, which to OpenVINO is no quantization; nothing if they are not."""
    for value in product.input_values():
        scaling, source = None, value.get_node()
        while source.get_type_name() in ("Reshape", "Transpose", "Convert", "Multiply"):
            scaling = source if source.get_type_name() == "Multiply" else scaling
            source = source.input_value(0).get_node()
        if source.get_type_name() != "FakeQuantize" or scaling is None:
            continue
        x, _, _, least, greatest = source.input_values()
        steps = op.round(op.divide(x, scaling.input_value(1)), "half_to_even")
        integers = op.clamp(steps, *(float(bound.get_node().data) for bound in (least, greatest)))
        scaling.input(0).replace_source_output(integers.output(0))
