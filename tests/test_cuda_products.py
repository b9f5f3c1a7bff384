"""The kernels for convolutions and linears against exact integer arithmetic, in Triton's interpreter (or on a GPU)."""

import tiny  # noqa: F401, I001  (first: it imports edadm)

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engines import CASES, grid_inputs, random_layer
from torch.nn import functional as F

from edadm.engines import reference
from edadm.engines.cuda import engine, layout
from edadm.engines.cuda.layers import Convolution, Linear, make_layer
from edadm.engines.cuda.quantize import quantize
from edadm.engines.cuda.tiles import INTERPRETED
from edadm.quantization.integer_layer import unpack

DEVICE = engine.device()
# the relative error of rounding once; Triton's interpreter truncates to bfloat16, where the GPU rounds to nearest
HALVES = {torch.float16: 2**-11, torch.bfloat16: 2**-7 if INTERPRETED else 2**-8}


def integer_sums(layer, x, **arguments):
    """What the kernel sums up, int64, in the layout of the reference's."""
    module = make_layer(layer, DEVICE, torch.int32)
    q = module.integers(x.to(DEVICE))
    if isinstance(module, Linear):
        return module.product(q).unflatten(0, x.shape[:-1]).cpu().long()
    return module.product(q, **arguments).cpu().long()


@pytest.mark.parametrize("zero", [0, 97, 255])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("case", [*CASES, "groups"])
def test_sums_are_exact(case, bits, zero):
    groups = ((12, 2, 3, 3), (2, 8, 7, 7), {"padding": (1, 0), "groups": 4})
    shape, input_shape, geometry = CASES.get(case, groups)
    layer = random_layer(shape, geometry, zero, bits, extreme=zero == 255)
    x, integers = grid_inputs(layer, input_shape, extreme=zero == 255)
    assert torch.equal(integer_sums(layer, x), reference.accumulate(integers, layer))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_sums_of_any_convolution_are_exact(data):
    draw = data.draw
    kernel, stride, padding = draw(st.sampled_from([1, 3])), draw(st.integers(1, 2)), draw(st.integers(0, 2))
    bits, input_bits = draw(st.integers(2, 8)), draw(st.sampled_from([2, 5, 8, 16]))
    most = 25 if input_bits == 16 else 70  # more can leave 32 bits
    inputs, outputs = draw(st.integers(1, most)), draw(st.integers(1, 70))
    size = draw(st.tuples(st.integers(kernel, 7), st.integers(kernel, 7)))
    zero = draw(st.integers(0, 2**input_bits - 1))
    geometry = {"stride": (stride, stride), "padding": (padding, padding)}
    layer = random_layer((outputs, inputs, kernel, kernel), geometry, zero, bits, input_bits)
    x, integers = grid_inputs(layer, (draw(st.integers(1, 2)), inputs, *size))
    assert torch.equal(integer_sums(layer, x), reference.accumulate(integers, layer))
    up = integers.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(integer_sums(layer, x, up=2), reference.accumulate(up, layer))
    after = F.pad(integers, (0, 1, 0, 1), value=zero)
    assert torch.equal(integer_sums(layer, x, after=(1, 1)), reference.accumulate(after, layer))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_sums_of_any_linear_are_exact(data):
    draw = data.draw
    rows, inputs, outputs = draw(st.integers(1, 300)), draw(st.integers(1, 300)), draw(st.integers(1, 150))
    bits, input_bits = draw(st.integers(2, 8)), draw(st.sampled_from([2, 5, 8, 16]))
    layer = random_layer((outputs, inputs), {}, draw(st.integers(0, 2**input_bits - 1)), bits, input_bits)
    x, integers = grid_inputs(layer, (rows, inputs))
    assert torch.equal(integer_sums(layer, x), reference.accumulate(integers, layer))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 70),
    st.sampled_from([2, 5, 8, 16]),
    st.integers(0, 2**16 - 1),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_inputs_are_quantized_as_by_the_reference(rows, channels, bits, zero, dtype):
    layer = random_layer((1, channels), {}, zero % 2**bits, 8, bits)
    x = torch.randn(rows, channels + 3)[:, 1:-2].to(dtype) * 2 ** (bits - 8)  # rows further apart than they are long
    x[0, 0], x[-1, -1] = 1e30 if dtype != torch.float16 else 6e4, -1e4
    x[rows // 2] = ((torch.arange(channels) - 8 + 0.5) * layer.input_scale).to(dtype)  # halves
    packed = layout.pack(layer, DEVICE)
    found = quantize(x.to(DEVICE), packed.grid, packed.planes, packed.width)[..., :channels].cpu().int() + 128
    found = found[0] * 256 + found[1] if bits == 16 else found[0]
    assert torch.equal(found, reference.quantize(x.float(), layer))


@pytest.mark.parametrize("case", ["3x3", "stride 2, padded", "1x1", "linear", "linear, odd"])
def test_floats_behind_the_sums(case):
    shape, input_shape, geometry = CASES[case]
    layer = random_layer(shape, geometry)
    x, _ = grid_inputs(layer, input_shape)
    expected = reference.IntegerReference(layer)(x)
    residual = torch.randn(expected.shape)
    embedding = torch.randn(len(x), shape[0]) if layer.is_convolution else None
    added = expected + residual + (0 if embedding is None else embedding[:, :, None, None])
    for dtype, error in {torch.float32: 2**-22, **HALVES}.items():
        module = make_layer(layer, DEVICE, dtype)
        found = module(x.to(DEVICE)).cpu()
        assert found.dtype == dtype and found.shape == expected.shape
        torch.testing.assert_close(found.float(), expected, rtol=error, atol=expected.abs().max().item() * 2**-22)
        q, more = module.integers(x.to(DEVICE)), {"residual": residual.to(DEVICE)}
        if layer.is_convolution:
            more["embedding"] = embedding.to(DEVICE)
        found = module.product(q, **more).cpu().float()
        torch.testing.assert_close(found, added, rtol=error, atol=expected.abs().max().item() * 2**-22)


def test_output_is_quantized_again():
    first, second = random_layer((24, 16), {}), random_layer((5, 24), {}, zero=31, input_bits=6)
    x, _ = grid_inputs(first, (7, 16))
    module = Linear(first, DEVICE, torch.float32)
    found = module.product(module.integers(x.to(DEVICE)), out_grid=layout.pack(second, DEVICE).grid).cpu().int() + 128
    assert torch.equal(found, reference.quantize(reference.IntegerReference(first)(x), second))


@given(st.integers(1, 2000))
def test_blocks_waste_little(channels):
    block = layout.block_of(channels)
    surplus = -channels % block
    assert block in layout.BLOCKS and (block == 32 or surplus * layout.WASTE <= channels)


def test_packed_weights_are_halves_of_rows():
    layer = random_layer((3, 33, 3, 3), {}, bits=4)
    packed, plain = layout.pack(layer), layout.pack(random_layer((3, 33, 3, 3), {}, bits=8))
    assert packed.packed and not plain.packed and packed.block == plain.block == 32 and packed.width == 64
    assert plain.weight.shape == (3, 9 * 64) and packed.weight.shape == (3, 9 * 64 // 2)
    halves = unpack(packed.weight.view(torch.uint8).flatten(), (3, 9 * 32, 2))  # the checkpoint's order: low, high
    rows = torch.cat([halves[..., 0], halves[..., 1]], 1).unflatten(1, (9, 64))
    assert torch.equal(rows[..., :33].transpose(1, 2).reshape(3, 33, 3, 3), layer.weight)
    assert not rows[..., 33:].any()


def test_images_need_not_be_copied():
    module = Convolution(random_layer((8, 8, 1, 1), {}), DEVICE, torch.float32)
    x = torch.randn(2, 24, 5, 5).contiguous(memory_format=torch.channels_last)
    pieces = x.to(DEVICE).split(8, 1)  # as the split shortcut does
    assert all(torch.equal(module(piece), module(piece.contiguous())) for piece in pieces)
