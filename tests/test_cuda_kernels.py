"""The kernels that normalize, activate and quantize, and attention on integers, against PyTorch."""

import tiny  # noqa: F401, I001  (first: it imports edadm)

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from edadm.engines.cuda import engine, layout, products
from edadm.engines.cuda.geglu import geglu
from edadm.engines.cuda.group_norm import group_norm
from edadm.engines.cuda.layer_norm import layer_norm
from edadm.engines.verify import relative_error
from edadm.quantization.attention import integer_product

DEVICE = engine.device()
GRIDS = torch.stack([layout.input_grid(0.02, 100, 8), layout.input_grid(0.11, 3, 5)])
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def check(found, y, grid):
    """Integers int8 ``found`` are those of float64 ``y``, but where y lies on a rounding tie up to float32's errors."""
    scale, least, greatest = grid.double()
    steps = y / scale
    expected = torch.round(steps).clamp(least, greatest) - least - 128
    difference = (found.double() - expected).abs()
    near_tie = ((steps - steps.floor()) - 0.5).abs() < 1e-3
    assert difference.max() <= 1 and not difference[~near_tie].any()


def normal(module):
    nn.init.normal_(module.weight, 1.0, 0.3)
    nn.init.normal_(module.bias)
    return module.requires_grad_(False)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 2), st.integers(1, 70), st.integers(1, 4), st.integers(1, 20), st.booleans(), st.booleans(),
    st.sampled_from(DTYPES),
)  # fmt: skip
def test_group_norm(images, pixels, groups, size, silu, modulated, dtype):
    assume(pixels * size > 1)  # PyTorch refuses to normalize one value
    channels = groups * size
    x = (torch.randn(images, pixels, channels + 2)[..., :-2] * 2 + 5).to(dtype)  # rows further apart than long
    norm = normal(nn.GroupNorm(groups, channels))
    modulation = torch.randn(images, 2 * channels).to(dtype).chunk(2, 1) if modulated else None
    y = norm.double()(x.double().transpose(1, 2)).transpose(1, 2)
    if modulated:
        y = y * (1 + modulation[0].double()[:, None]) + modulation[1].double()[:, None]
    y = F.silu(y) if silu else y
    moved = modulation and tuple(part.to(DEVICE) for part in modulation)
    found = group_norm(x.to(DEVICE), norm.float().to(DEVICE), silu, GRIDS.to(DEVICE), channels + 7, moved).cpu()
    assert found.shape == (2, images, pixels, channels + 7)
    for integers, grid in zip(found, GRIDS, strict=True):
        check(integers[..., :channels], y, grid)


def test_group_norm_over_several_tiles(monkeypatch):
    monkeypatch.setattr("edadm.engines.cuda.group_norm.ROWS", 16)
    monkeypatch.setattr("edadm.engines.cuda.group_norm.COLUMNS", 8)
    monkeypatch.setattr("edadm.engines.cuda.group_norm._FOLDED", 2)
    x, norm = torch.randn(2, 50, 20) + torch.linspace(0, 40, 50)[:, None], normal(nn.GroupNorm(2, 20))
    found = group_norm(x.to(DEVICE), norm.to(DEVICE), False, GRIDS[:1].to(DEVICE), 32).cpu()
    check(found[0, ..., :20], norm.cpu().double()(x.double().transpose(1, 2)).transpose(1, 2), GRIDS[0])


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 200), st.integers(2, 300), st.sampled_from(DTYPES))
def test_layer_norm(rows, channels, dtype):
    x, norm = (torch.randn(rows, channels) * 2 - 3).to(dtype), normal(nn.LayerNorm(channels))
    found = layer_norm(x.to(DEVICE), norm.to(DEVICE), GRIDS.to(DEVICE), channels + 7).cpu()
    for integers, grid in zip(found, GRIDS, strict=True):
        check(integers[:, :channels], norm.cpu().double()(x.double()), grid)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 100), st.integers(1, 150), st.sampled_from(DTYPES))
def test_geglu(rows, channels, dtype):
    x = (torch.randn(rows, 2 * channels) * 2).to(dtype)
    found = geglu(x.to(DEVICE), GRIDS[0].to(DEVICE), channels + 7).cpu()
    value, gate = x.double().chunk(2, 1)
    check(found[0, :, :channels], value * F.gelu(gate), GRIDS[0])


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 2), st.integers(1, 150), st.integers(1, 150), st.integers(1, 3), st.sampled_from([3, 8, 40]),
    st.floats(1.0, 2000.0),
)  # fmt: skip
def test_attention_on_integers(images, queries, keys, heads, depth, levels):
    scales = {"q": 0.02, "k": 0.03, "v": 0.01, "softmax": 1 / levels}
    scales = {name: torch.tensor(scale).item() for name, scale in scales.items()}
    q, k, v = (
        torch.randint(-128, 128, (images, tokens, heads * depth), dtype=torch.int8) for tokens in (queries, keys, keys)
    )
    found = products.attend(*(x.to(DEVICE) for x in (q, k, v)), heads, scales, torch.float32).cpu()
    product = integer_product(scales)
    values = (
        (x * scales[name]).unflatten(-1, (heads, depth)).transpose(1, 2)
        for name, x in zip("qkv", (q, k, v), strict=True)
    )
    q, k, v = values
    scores = product("q", q, "k", k.transpose(-1, -2)) * depth**-0.5
    expected = product("softmax", scores.softmax(-1), "v", v).transpose(1, 2).flatten(2)
    # one of the softmax's integers may fall to the other side of a rounding tie
    atol = 128.5 * scales["softmax"] * scales["v"]
    assert relative_error(found, expected) < 1e-5 or (found - expected).abs().max() < atol


@pytest.mark.parametrize("product", [products.IntegerProduct, integer_product])
def test_products_are_those_of_integers(product):
    scales = {"q": 0.5, "k": 2.0, "v": 1.0, "softmax": 1.0}
    a, b = torch.tensor([[0.25, 0.75, 1e6]]), torch.tensor([[3.0], [-5.0], [-1e6]])
    # 0.5 and 1.5 are rounded to 0 and 2, half of 3 to 2, of -5 to -2 (2.5 to even); the rest are the ends
    assert product(scales)("q", a, "k", b).item() == 0 * 2 + 2 * -2 + 127 * -128
