"""Convolutions computed before an upsampling by 2: the same integers as after it, in int8."""

import numpy as np
import openvino as ov
import pytest
import torch
from graphs import in_int8, quantized_convolution
from hypothesis import given, settings
from hypothesis import strategies as st
from openvino import opset13 as op
from torch.nn import functional as F

from edadm.engines import cpu, reference
from edadm.engines.reference import relative_error
from edadm.engines.upsampling import PHASES, fold_upsampling, phase_weights
from edadm.quantization.integer_layer import IntegerLayer


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_phases_are_the_convolution_of_the_doubled_image(
    seed: int, size: tuple[int, int], channels: tuple[int, int]
) -> None:
    generator = np.random.default_rng(seed)
    weight = generator.integers(-127, 128, (*channels, 3, 3))
    x = torch.from_numpy(generator.integers(0, 256, (2, channels[1], *size)))
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = F.conv2d(doubled, torch.from_numpy(weight), padding=1)
    for row, column in PHASES:
        sums = torch.from_numpy(phase_weights(weight, row, column)).long()
        padded = F.pad(x, (1 - column, column, 1 - row, row))
        assert torch.equal(F.conv2d(padded, sums), expected[:, :, row::2, column::2])


def layer(bits: int, seed: int = 0, outputs: int = 5, inputs: int = 7, **geometry: object) -> IntegerLayer:
    generator = torch.Generator().manual_seed(seed)
    half = 2 ** (bits - 1)
    return IntegerLayer(
        bits=bits,
        weight=torch.randint(1 - half, half, (outputs, inputs, 3, 3), generator=generator, dtype=torch.int8),
        weight_scale=torch.rand(outputs, generator=generator) + 0.1,
        bias=torch.randn(outputs, generator=generator),
        input_scale=0.5,
        input_zero_point=100,
        **{"padding": (1, 1)} | geometry,
    )


def graph(own: IntegerLayer, shape: tuple[int, ...], scale: float = 2.0, readers: int = 1) -> ov.Model:
    """Upsampling, then the layer, as networks have it once they are converted; other readers are outputs."""
    x = op.parameter(list(shape), np.float32, name="x")
    known = {"axes": np.array([2, 3]), "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    doubled = op.interpolate(x, np.array([scale, scale], np.float32), "nearest", "scales", **known)
    low, high = (own.input_scale * (end - own.input_zero_point) for end in (0, 255))
    geometry = own.stride, own.padding, own.padding, own.dilation
    convolution = quantized_convolution(
        doubled, own.weight.numpy(), (low, high), "layer", own.weight_scale.numpy(), *geometry
    )
    y = op.add(convolution, op.constant(own.bias.reshape(1, -1, 1, 1).numpy()))
    return ov.Model([y, *[op.relu(doubled) for _ in range(readers - 1)]], [x])


@pytest.mark.parametrize("shape", [(1, 7, 4, 4), (3, 7, 5, 3), (2, 7, 1, 1)])
@pytest.mark.parametrize("bits", [2, 4])
def test_a_folded_layer_gives_the_same_in_int8(bits: int, shape: tuple[int, ...]) -> None:
    own = layer(bits, outputs=32)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 60  # beyond both ends of the grid too
    folded = graph(own, shape)
    names = fold_upsampling(folded)
    assert names == ["layer.1", "layer.2", "layer.3"]
    assert not any(node.get_type_name() == "Interpolate" for node in folded.get_ordered_ops())
    compiled = cpu.compile_graph(ov.Core(), folded, "f32", threads=1)
    found = torch.from_numpy(compiled([x.numpy()])[0])
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert relative_error(found, reference.IntegerReference(own)(doubled)) <= 1e-6
    assert in_int8(compiled, names={"layer", *names}, count=4)


@pytest.mark.parametrize(
    ("own", "changes"),
    [
        (layer(8), {}),
        (layer(4, stride=(2, 2)), {}),
        (layer(4, padding=(0, 0)), {}),
        (layer(4), {"scale": 3.0}),
        (layer(4), {"readers": 2}),
    ],
    ids=["8 bits", "stride", "padding", "tripled", "read twice"],
)
def test_other_layers_stay_as_they_are(own: IntegerLayer, changes: dict[str, object]) -> None:
    model = graph(own, (1, 7, 4, 4), **changes)
    kinds = [node.get_type_name() for node in model.get_ordered_ops()]
    assert fold_upsampling(model) == []
    assert [node.get_type_name() for node in model.get_ordered_ops()] == kinds
