"""Graphs for ARM, where OpenVINO multiplies signed activations with int8 weights wrongly, without a word.

It takes an activation of zero point 128 for int8 with none, of any other for uint8 with one, and is right with these.
Seen with OpenVINO 2026.4 in linear layers (kernel "gemm_acl_i8"; benchmarks/arm.sh).
"""

import numpy as np
import openvino as ov

from edadm.engines.graph import as_byte, of_byte, weight_constants

ZERO = 128


def keep_unsigned(graph: ov.Model) -> None:
    """Before every linear layer of zero point 128, write quantization as to uint8, then minus 128, times the scale."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul" or weight_constants(node) is None:
            continue
        source = node.input_value(0).get_node()
        while source.get_type_name() in ("Reshape", "Transpose"):
            source = source.input_value(0).get_node()
        if source.get_type_name() == "FakeQuantize":
            _as_uint8(source)


def _as_uint8(quantization: ov.Node) -> None:
    x, *bounds = quantization.input_values()
    low, high, least, greatest = (bound.get_node().data.item() for bound in bounds)
    if not np.isclose(-least / ZERO, greatest / (255 - ZERO)):
        return
    readers = quantization.output(0).get_target_inputs()
    scale = np.float32(-least / ZERO)  # to the bit what it was, for 128 is a power of two
    y = of_byte(as_byte(x, low, high), np.float32(ZERO), scale)
    for reader in readers:
        reader.replace_source_output(y.output(0))
