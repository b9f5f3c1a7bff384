"""Rewrites that spare copies: the same bits as without them, and the copies gone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import tiny
import torch
from graphs import in_int8, quantized_convolution
from openvino import opset13 as op
from torch import Tensor

from edadm.engines import cpu, moves
from edadm.engines.graph import layer_nodes
from edadm.engines.moves import spare_moves
from edadm.quantization.integer_layer import IntegerLayer


def layer(*weight: int, input_bits: int = 8) -> IntegerLayer:
    generator = torch.Generator().manual_seed(sum(weight))
    return IntegerLayer(
        bits=8,
        weight=torch.randint(-127, 128, weight, generator=generator, dtype=torch.int8),
        weight_scale=torch.rand(weight[0], generator=generator) + 0.1,
        bias=torch.randn(weight[0], generator=generator),
        input_scale=2.0**-4 if input_bits == 8 else 2.0**-12,
        input_zero_point=100 if input_bits == 8 else 25600,
        input_bits=input_bits,
    )


def kinds(graph: ov.Model) -> list[str]:
    return [node.get_type_name() for node in graph.get_ordered_ops()]


def run(graph: ov.Model, *inputs: Tensor) -> tuple[ov.CompiledModel, list[np.ndarray]]:
    compiled = cpu.compile_graph(ov.Core(), graph, "f32", threads=1)
    return compiled, list(compiled([value.numpy() for value in inputs]).values())


def rewritten(graph: ov.Model, *shapes: tuple[int, ...]) -> tuple[list[str], ov.Model, ov.CompiledModel]:
    """What ``spare_moves`` returns and makes of a copy of the graph, which must give the same bits on noise."""
    inputs = [5 * torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) for shape in shapes]
    other = graph.clone()
    added = spare_moves(other)
    (_, expected), (compiled, found) = run(graph, *inputs), run(other, *inputs)
    assert all(np.array_equal(*pair) for pair in zip(expected, found, strict=True))
    return added, other, compiled


def test_parts_of_a_linear_are_linears_in_int8() -> None:
    x = op.parameter([2, 9, 8], np.float32)
    parts = op.variadic_split(layer_nodes(x.output(0), "proj", layer(48, 8)), -1, [20, 20, 8])
    gated = op.multiply(op.gelu(parts.output(0), "erf"), parts.output(1))
    graph = ov.Model([gated, op.relu(parts.output(2))], [x])
    added, other, compiled = rewritten(graph, (2, 9, 8))
    assert added == ["proj.1", "proj.2"] and "VariadicSplit" not in kinds(other)
    assert in_int8(compiled, names={"proj", *added})


def shortcut(first: IntegerLayer, second: IntegerLayer, lengths: tuple[int, int]) -> ov.Model:
    """A shortcut over the concatenation of an image of 8 channels and a layer's 16, in parts of ``lengths``."""
    x, y = op.parameter([2, 8, 4, 4], np.float32), op.parameter([2, 8, 4, 4], np.float32)
    whole = op.concat([op.relu(x), layer_nodes(y.output(0), "before", first)], 1)
    left, right = op.variadic_split(whole, 1, list(lengths)).outputs()
    parts = layer_nodes(left, "left", layer(16, lengths[0], 1, 1)), layer_nodes(right, "right", second)
    return ov.Model([op.add(*parts), op.relu(whole)], [x, y])


def test_parts_of_a_concatenation_are_read_where_they_come_from() -> None:
    graph = shortcut(layer(16, 8, 1, 1), layer(16, 16, 1, 1), (8, 16))
    _, other, _ = rewritten(graph, (2, 8, 4, 4), (2, 8, 4, 4))
    assert "VariadicSplit" not in kinds(other)


def test_where_bits_would_change_a_part_of_a_concatenation_stays() -> None:
    graph = shortcut(layer(16, 8, 1, 1, input_bits=16), layer(16, 16, 1, 1), (8, 16))
    _, other, _ = rewritten(graph, (2, 8, 4, 4), (2, 8, 4, 4))
    assert "VariadicSplit" in kinds(other)
    _, other, _ = rewritten(shortcut(layer(16, 8, 1, 1), layer(16, 12, 1, 1), (12, 12)), (2, 8, 4, 4), (2, 8, 4, 4))
    assert "VariadicSplit" in kinds(other)


def test_an_image_becomes_tokens_by_a_reorder() -> None:
    """Tokens that become an image again stay as they are."""
    x = op.parameter([2, 8, 4, 4], np.float32)
    tokens = op.transpose(op.reshape(op.relu(x), [2, 8, 16], special_zero=False), [0, 2, 1])
    y = op.transpose(layer_nodes(tokens.output(0), "to_q", layer(8, 8)), [0, 2, 1])
    graph = ov.Model([op.reshape(y, [2, 8, 4, 4], special_zero=False)], [x])
    _, other, _ = rewritten(graph, (2, 8, 4, 4))
    transpositions = [node for node in other.get_ordered_ops() if node.get_type_name() == "Transpose"]
    assert [node.input_value(1).get_node().data.tolist() for node in transpositions] == [[0, 3, 1, 2], [0, 2, 1]]


def padded(x: ov.Node, weight: np.ndarray, end: list[int], value: float, mode: str, bounded: bool) -> ov.Node:
    """A padding and a convolution of 8 bits after it, as networks have them once they are converted."""
    y = op.pad(x, [0, 0, 0, 0], end, mode, np.float32(value))
    y = op.minimum(y, np.float32(1.9375)) if bounded else y
    return op.relu(quantized_convolution(y, weight, (-2, 13.9375), strides=(2, 2), begin=(1, 0), end=(0, 0)))


@pytest.mark.parametrize(
    ("changes", "stays"),
    [
        ({}, False),
        ({"bounded": True}, False),
        ({"end": [0, 1, 1, 1]}, True),
        ({"value": 0.5}, True),
        ({"mode": "edge"}, True),
    ],
    ids=str,
)
def test_convolutions_pad_their_inputs_with_zeros(changes: dict, stays: bool) -> None:
    given = {"end": [0, 0, 1, 2], "value": 0.0, "mode": "constant", "bounded": False} | changes
    x = op.parameter([2, 8, 5, 4], np.float32)
    graph = ov.Model([padded(x, layer(16, 8 + given["end"][1], 3, 3).weight.numpy(), **given)], [x])
    _, other, compiled = rewritten(graph, (2, 8, 5, 4))
    pads = [node for node in other.get_ordered_ops() if node.get_type_name() == "Pad"]
    assert any(node.get_element_type() == ov.Type.f32 for node in pads) == stays
    assert in_int8(compiled, names={"conv"})


@pytest.mark.parametrize(
    ("size", "zero", "edges", "padded"),
    [
        ((2, 4, 4), 31, (1, 1), True),
        ((2, 4, 4), 255, (2, 0), True),
        ((2, 4, 4), 0, (1, 1), False),
        ((2, 4, 4), 31, (0, 0), False),
        ((2, 4, 5), 31, (1, 1), False),
    ],
    ids=["few pixels", "other edges", "no zero point", "no edges", "many pixels"],
)
def test_the_integers_of_few_pixels_are_padded(
    size: tuple[int, int, int], zero: int, edges: tuple[int, int], padded: bool
) -> None:
    images, *sides = size
    x = op.parameter([images, 8, *sides], np.float32)
    ends, integers = (-0.0713 * zero, 0.0713 * (255 - zero)), layer(16, 8, 3, 3).weight.numpy()
    scale = np.full(16, 0.0123, np.float32)
    convolution = quantized_convolution(x, integers, ends, scale=scale, begin=edges, end=edges)
    graph = ov.Model([op.relu(convolution)], [x])
    _, other, compiled = rewritten(graph, (images, 8, *sides))
    assert ("Pad" in kinds(other)) == padded
    assert in_int8(compiled, names={"conv"})


def test_no_integers_are_padded_on_other_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO refuses them there."""
    monkeypatch.setattr(moves, "is_x86", lambda: False)
    x = op.parameter([2, 8, 4, 4], np.float32)
    layers = layer_nodes(x.output(0), "conv", replace(layer(16, 8, 3, 3), padding=(1, 1)))
    _, other, _ = rewritten(ov.Model([layers], [x]), (2, 8, 4, 4))
    assert "Pad" not in kinds(other)


@pytest.mark.parametrize(("conditional", "bits"), [(False, 4), (True, 8)])
def test_networks_give_the_same_bits(
    conditional: bool, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several heads, and with a context of unknown length."""
    model = tiny.conditional_unet() if conditional else tiny.unet()
    scales = {"q": 0.03125, "k": 0.03125, "v": 0.03125, "softmax": 2.0**-8}
    cpu.deploy(tiny.save(tmp_path / "quantized", model, bits, scales=scales), tmp_path / "engine")
    inputs = (*tiny.inputs(8, channels=4), tiny.context(8, 3)) if conditional else tiny.inputs(8)
    found = cpu.load(tmp_path / "engine", 4, threads=1)
    monkeypatch.setattr(cpu, "spare_moves", lambda graph: [])
    assert torch.equal(found(*inputs), cpu.load(tmp_path / "engine", 4, threads=1)(*inputs))
