"""Quantizers and simulated layers against PyTorch's own fake quantization, brute force and exact cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edadm.quantization.layers import SimulatedLayer, SplitShortcut
from edadm.quantization.quantizer import (
    MSE_POWER,
    TINY,
    activation_range,
    coin_flips,
    fake_quantize,
    symmetric_range,
    weight_grid,
    weight_scale,
)


@given(st.integers(2, 8), st.floats(1e-3, 10), st.data())
def test_fake_quantize_is_pytorchs(bits: int, scale: float, data: st.DataObject) -> None:
    zero_point = data.draw(st.integers(0, 2**bits - 1))
    x = torch.randn(200, generator=torch.Generator().manual_seed(bits)) * scale * 2**bits
    ours_in, theirs_in = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours = fake_quantize(ours_in, torch.tensor(scale), torch.tensor(float(zero_point)), bits)
    theirs = torch.fake_quantize_per_tensor_affine(theirs_in, scale, zero_point, 0, 2**bits - 1)
    apart = ~torch.isclose(ours, theirs, rtol=1e-5, atol=1e-6)
    ties = torch.isclose((x / scale).frac().abs(), torch.tensor(0.5), atol=1e-3)
    assert not (apart & ~ties).any()
    ours.sum().backward()
    theirs.sum().backward()
    edges = (x / scale + zero_point).frac().abs() > 0.49  # where a clamp's gradient may differ by rounding
    assert torch.equal(ours_in.grad[~edges], theirs_in.grad[~edges])


def test_step_gradient_is_that_of_the_straight_through_formula() -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 3
    kept = torch.arange(500) % 3 == 0
    scale, same = (torch.tensor(0.1, requires_grad=True) for _ in range(2))
    inputs, twin = (x.clone().requires_grad_() for _ in range(2))
    (fake_quantize(inputs, scale, torch.tensor(7.0), 4, kept.float()) * torch.arange(500)).sum().backward()
    rounded = twin / same + ((twin / same).round() - twin / same).detach()
    plain = same * ((rounded + 7).clamp(0, 15) - 7)
    (torch.where(kept, twin, plain) * torch.arange(500)).sum().backward()
    assert torch.allclose(scale.grad, same.grad, rtol=1e-4)
    assert torch.allclose(inputs.grad, twin.grad, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_coin_flips_have_their_share(share: float) -> None:
    flips = coin_flips(torch.Size([100, 1001]), share, torch.Generator().manual_seed(0))
    assert set(flips.unique().tolist()) <= {0.0, 1.0}
    assert flips.mean().item() == pytest.approx(share, abs=0.01 if 0 < share < 1 else 0)
    assert torch.equal(flips, coin_flips(torch.Size([100, 1001]), share, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_weights_on_the_grid_are_kept_exactly(bits: int) -> None:
    low, high = weight_grid(bits)
    integers = torch.randint(low, high + 1, (5, 40), generator=torch.Generator().manual_seed(0)).float()
    integers[:, 0] = high
    scales = torch.tensor([0.01, 0.5, 1.0, 3.0, 100.0])
    found = weight_scale(integers * scales[:, None], bits, "minmax" if bits == 2 else "mse")
    assert torch.allclose(found, scales, rtol=1e-5)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_mse_search_is_never_worse_than_min_max(bits: int) -> None:
    weight = torch.randn(8, 300, generator=torch.Generator().manual_seed(0)) ** 3
    low, high = weight_grid(bits)

    def error(scale: torch.Tensor) -> torch.Tensor:
        rounded = (weight / scale[:, None]).round().clamp(low, high) * scale[:, None]
        return (weight - rounded).abs().pow(MSE_POWER).sum(1)

    assert (error(weight_scale(weight, bits, "mse")) <= error(weight_scale(weight, bits, "minmax")) * (1 + 1e-6)).all()


def test_a_channel_of_zeros_stays_zero() -> None:
    scale = weight_scale(torch.zeros(2, 9), 4, "mse")
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()


@given(st.floats(-50, 50), st.floats(0.01, 50), st.integers(2, 8), st.sampled_from(["mse", "minmax"]))
def test_activation_range_represents_zero(smallest: float, width: float, bits: int, ranges: str) -> None:
    histogram = torch.rand(64, generator=torch.Generator().manual_seed(0)) + 0.01
    scale, zero_point = activation_range(histogram, smallest, smallest + width, bits, ranges)
    assert scale > 0
    assert 0 <= zero_point <= 2**bits - 1
    if smallest >= 0:
        assert zero_point == 0
    if ranges == "minmax":
        assert scale * (2**bits - 1) == pytest.approx(max(smallest + width, 0) - min(smallest, 0), rel=1e-4)


def test_activation_range_matches_a_brute_force_search() -> None:
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0)) ** 3
    low, high = x.min().item(), x.max().item()
    scale, zero_point = activation_range(torch.histc(x, 2048, low, high), low, high, 4, "mse")

    def error(scale: float, zero_point: int) -> float:
        simulated = fake_quantize(x, torch.tensor(scale), torch.tensor(float(zero_point)), 4)
        return (x - simulated).abs().pow(MSE_POWER).mean().item()

    candidates = []
    for i in range(1, 41):
        for j in range(1, 41):
            step = (high * j / 40 - low * i / 40) / 15
            candidates.append(error(step, round(-low * i / 40 / step)))
    assert error(scale, zero_point) <= min(candidates) * 1.02


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300), st.integers(0, 10**6), st.floats(-3, 3), st.integers(2, 8))
def test_no_grid_of_the_search_is_better(bins: int, seed: int, smallest: float, bits: int) -> None:
    """Against every pair of ends, in NumPy: most of them are ruled out by a few of the bins."""
    largest, levels = smallest + 2.0, 2**bits - 1
    counts = np.random.default_rng(seed).poisson(np.geomspace(1e4, 1e-2, bins))
    found = activation_range(torch.from_numpy(counts).float(), smallest, largest, bits, "mse")
    centres = smallest + 2.0 / bins * (np.arange(bins) + 0.5)

    def error(scale: float, zero_point: float) -> float:
        rounded = scale * (np.clip(np.round(centres / scale) + zero_point, 0, levels) - zero_point)
        return counts @ np.abs(centres - rounded) ** MSE_POWER

    shrinks = np.arange(1, 41, dtype=np.float32) / 40
    low, high = (
        (shrinks * np.float32(end) if end else np.zeros(1, np.float32)) for end in (min(smallest, 0), max(largest, 0))
    )
    steps = np.maximum((high[None] - low[:, None]) / levels, np.float32(TINY))
    zeros = np.clip(np.round(-low[:, None] / steps), 0, levels)
    best = min(map(error, steps.ravel().astype(float), zeros.ravel()))
    assert error(*found) <= best * 1.001 + 1e-9 * counts.sum()  # what is rounded in float32


@pytest.mark.parametrize("bits", [4, 8])
def test_soft_rounding_starts_at_the_float_weight(bits: int) -> None:
    torch.manual_seed(0)
    layer = SimulatedLayer(nn.Conv2d(4, 6, 3), bits, 8)
    layer.set_weight_range("minmax")
    layer.start_rounding()
    assert torch.allclose(layer.weight(), layer.layer.weight, atol=1e-5)
    layer.alpha.data += torch.randn_like(layer.alpha) * 3
    layer.harden_rounding()
    low, high = weight_grid(bits)
    assert torch.equal(layer.weight_integers, layer.weight_integers.round())
    assert layer.weight_integers.min() >= low
    assert layer.weight_integers.max() <= high


def test_split_shortcut_is_the_whole_convolution() -> None:
    torch.manual_seed(0)
    whole = nn.Conv2d(10, 4, 1)
    split = SplitShortcut(whole, 7, 4, 8)
    x = torch.randn(2, 10, 5, 5)
    assert torch.allclose(split(x), whole(x), atol=1e-5)


@pytest.mark.parametrize("signed", [False, True])
def test_symmetric_range_is_the_best_of_its_candidates(signed: bool) -> None:
    """Against a plain loop over hundredths of the widest range."""
    generator = torch.Generator().manual_seed(0)
    histogram = torch.randint(0, 50, (64,), generator=generator).float()
    smallest, largest, bits = (-2.0 if signed else 0.0), 3.0, 4
    low, high = (-8, 7) if signed else (0, 15)
    centres = smallest + (largest - smallest) / 64 * (torch.arange(64) + 0.5)
    widest = max(largest / high, smallest / low if low else 0)
    assert symmetric_range(histogram, smallest, largest, bits, "minmax", signed) == pytest.approx(widest)

    def error(scale: float) -> float:
        rounded = (centres / scale).round().clamp(low, high) * scale
        return ((centres - rounded).abs() ** 2.4 @ histogram).item()

    candidates = [widest * k / 100 for k in range(1, 101)]
    found = symmetric_range(histogram, smallest, largest, bits, "mse", signed)
    assert found == pytest.approx(min(candidates, key=error))
