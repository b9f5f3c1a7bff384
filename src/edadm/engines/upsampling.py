"""Convolutions after an upsampling by 2, computed before it: four ninths of the products, with the same integers.

A 3x3 convolution of an image whose pixels were doubled sees each of them up to four times. Where the output's row and
column are even or odd decides which, so it is four 2x2 convolutions of the image as it was, whose weights are sums of
the 3x3 one's, and whose outputs are interleaved. Sums of up to four 4-bit weights are int8 numbers, so the integers
are exact and need no other kernel; those of 8-bit weights are not, and such layers stay as they are.
"""

import numpy as np
import openvino as ov
from openvino import opset13 as op

from edadm.engines.graph import only_reader, quantized_reader, read_instead, weight_constants
from edadm.quantization.quantizer import weight_grid

LARGEST = weight_grid(8)[1]
PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))  # (row, column) of an output pixel, modulo 2


def phase_weights(weight: np.ndarray, row: int, column: int) -> np.ndarray:
    """The 2x2 weights (out, in, 2, 2) int32 of a phase, from the 3x3 ones (out, in, 3, 3).

    Output row 2i + ``row`` reads rows 2i + row - 1 to 2i + row + 1 of the doubled image: rows i - 1 and i of the
    original, twice the latter, or, where it is odd, i twice and i + 1.
    """
    sums = np.zeros((*weight.shape[:2], 2, 2), np.int32)
    for y in range(3):
        for x in range(3):
            sums[:, :, (row + y - 1) // 2 + 1 - row, (column + x - 1) // 2 + 1 - column] += weight[:, :, y, x]
    return sums


def fold_upsampling(graph: ov.Model) -> list[str]:
    """Rewrite ``graph``, of static shapes and with int8 weights, wherever the sums of weights are int8 numbers.

    The four convolutions are called by the layer's name, the last three with ``.1`` to ``.3`` behind it; returns the
    names that are new.
    """
    added = []
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Interpolate" or not _doubles(node):
            continue
        quantization = quantized_reader(node)
        convolution = only_reader(quantization, "Convolution")
        bias = only_reader(convolution, "Add")
        integers = None if bias is None else _weight(convolution)
        if integers is None:
            continue
        weights = [phase_weights(integers, *phase) for phase in PHASES]
        if max(np.abs(sums).max() for sums in weights) > LARGEST:
            continue
        read_instead(node.output(0), node.input_value(0))
        name, (_, scale) = convolution.get_friendly_name(), weight_constants(convolution)
        names = [name, *(f"{name}.{number}" for number in range(1, len(PHASES)))]
        outputs = []
        for phase, (row, column), sums in zip(names, PHASES, weights, strict=True):
            weight = op.multiply(op.convert(op.constant(sums.astype(np.int8)), "f32"), scale)
            edges = [1 - row, 1 - column], [row, column]  # zeros before the first and after the last pixel
            y = op.convolution(quantization, weight, [1, 1], *edges, [1, 1])
            y.set_friendly_name(phase)
            outputs.append(op.add(y, bias.input_value(1)))
        added += names[1:]
        whole = op.depth_to_space(op.concat(outputs, 1), "blocks_first", 2)
        whole.set_friendly_name(bias.get_friendly_name())
        read_instead(bias.output(0), whole.output(0))
    graph.validate_nodes_and_infer_types()
    return added


def _doubles(node: ov.Node) -> bool:
    """Whether an interpolation repeats every pixel of an image (n, c, h, w) twice in both directions."""
    kind = node.get_attributes()
    before, after = node.get_input_shape(0), node.get_output_shape(0)
    doubled = len(before) == 4 and list(after) == [*before[:2], 2 * before[2], 2 * before[3]]
    repeated = (kind["mode"], kind["coordinate_transformation_mode"], kind["nearest_mode"])
    return doubled and repeated == ("nearest", "asymmetric", "floor") and not any(kind["pads_begin"] + kind["pads_end"])


def _weight(node: ov.Node) -> np.ndarray | None:
    """The int8 weights of a convolution, or None unless it is a layer's, of 3x3 weights, and pads by one pixel."""
    found, geometry = weight_constants(node), node.get_attributes()
    plain = all(list(geometry[key]) == [1, 1] for key in ("strides", "dilations", "pads_begin", "pads_end"))
    fits = found is not None and list(node.get_input_shape(1))[2:] == [3, 3] and plain
    return found[0].data if fits else None
