"""Uniform quantizers: grids, range search, and rounding that gradients pass.

Weights: signed, symmetric, one scale per output channel, zero point 0. Activations: unsigned, asymmetric, one scale
and zero point per tensor, shared by all steps.
"""

import torch
from torch import Tensor

MSE_POWER = 2.4  # the published search minimises |x - q(x)|^2.4
SHRINKS = 100  # candidate ranges
TINY = 1e-8
FEW = 8  # of the bins, one in so many rules out most grids: no term of an error's sum is negative
ROUND_OFF = 1e-9  # more than sums in float64 are off


def weight_grid(bits: int) -> tuple[int, int]:
    """Smallest and largest weight integer: -127..127 at 8 bits (symmetric kernels), -2^(b-1)..2^(b-1)-1 below."""
    return (-127, 127) if bits == 8 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


class _FakeQuantize(torch.autograd.Function):
    """By hand, because autograd's chain of a dozen elementwise operations took most of the time of a unit's step.

    Masks are floats of 0 and 1: PyTorch's ``where`` and ``masked_fill`` take five times as long as ``lerp`` and ``mul``
    on a CPU, and at the ends of its range ``lerp`` is exact.
    """

    @staticmethod
    def forward(ctx, x, scale, zero_point, levels, kept):  # noqa: ANN001, ANN205, D102
        scaled = x / scale
        integers = scaled.round().add_(zero_point)
        result = integers.clamp(0, levels)
        inside = torch.eq(result, integers, out=integers)
        result.sub_(zero_point)
        slope = torch.addcmul(result, scaled, inside, value=-1, out=scaled)
        result.mul_(scale)
        if kept is not None:
            result.lerp_(x, kept)
            slope.addcmul_(slope, kept, value=-1)
            torch.maximum(inside, kept, out=inside)
        ctx.save_for_backward(inside, slope)
        return result

    @staticmethod
    def backward(ctx, gradient):  # noqa: ANN001, ANN205, D102
        inside, slope = ctx.saved_tensors
        return gradient * inside, (gradient * slope).sum(), None, None, None


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, kept: Tensor | None = None) -> Tensor:
    """``scale * (clip(round(x / scale) + z, 0, 2^bits - 1) - z)``, differentiable in x and the scalar scale.

    Rounding is half to even and its gradient is that of the identity (straight-through), so that d/dscale is
    ``q - z - x / scale`` inside the range and ``q - z`` outside. Where ``kept`` (0 or 1, x's shape and dtype) is 1, x
    stays.
    """
    return _FakeQuantize.apply(x, scale, zero_point, 2**bits - 1, kept)


def coin_flips(shape: torch.Size, share: float, generator: torch.Generator) -> Tensor:
    """A float32 tensor of 0 and 1 that is 1 with probability ``share`` (to 1/256), made of a random byte an element.

    PyTorch's generator gives eight bytes in the time of one float.
    """
    count = shape.numel()
    words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    drawn, limit = words.view(torch.uint8)[:count].view(shape), round(share * 256)
    if limit == 256:  # no byte: the comparison would take it for 0
        return torch.ones(shape)
    return torch.lt(drawn, limit, out=torch.empty(shape))


def weight_scale(weight: Tensor, bits: int, ranges: str) -> Tensor:
    """Scale per output channel, (out,) float32, of a weight (out, ...).

    ``minmax`` takes the smallest scale that clips nothing; ``mse`` tries 1/100, 2/100, … of it and takes, channel by
    channel, the one with the least ``sum |w - q(w)|^2.4``. A channel of zeros gets a scale that keeps it zero.
    """
    low, high = weight_grid(bits)
    flat = weight.detach().flatten(1).float()
    widest = torch.maximum(flat.amax(1) / high, flat.amin(1) / low).clamp_min(TINY)
    if ranges == "minmax":
        return widest
    best_error, best, apart = torch.full_like(widest, torch.inf), widest, torch.empty_like(flat)
    for shrink in torch.arange(1, SHRINKS + 1) / SHRINKS:
        scale = widest * shrink
        torch.div(flat, scale[:, None], out=apart).round_().clamp_(low, high).mul_(scale[:, None])
        error = torch.sub(flat, apart, out=apart).abs_().pow_(MSE_POWER).sum(1)
        better = error < best_error
        best_error, best = torch.where(better, error, best_error), torch.where(better, scale, best)
    return best


def activation_range(histogram: Tensor, smallest: float, largest: float, bits: int, ranges: str) -> tuple[float, int]:
    """Scale and zero point for values counted in ``histogram`` (bins,), equal bins from ``smallest`` to ``largest``.

    The range always holds 0, so that zero padding is exact. ``mse`` shrinks either end in steps of 1/40 and takes the
    pair with the least ``sum count * |x - q(x)|^2.4`` over the bin centres.
    """
    low, high = min(smallest, 0.0), max(largest, 0.0)
    lows, highs = torch.tensor([low]), torch.tensor([high])
    if ranges == "mse":
        shrinks = torch.arange(1, 41) / 40
        lows = (shrinks * low if low < 0 else lows)[:, None]
        highs = (shrinks * high if high > 0 else highs)[None, :]
        lows, highs = (ends.flatten() for ends in torch.broadcast_tensors(lows, highs))
    levels = 2**bits - 1
    scales = ((highs - lows) / levels).clamp_min(TINY)
    zeros = (-lows / scales).round().clamp(0, levels)
    best = _least_error(histogram, smallest, largest, scales, zeros, levels) if len(scales) > 1 else 0
    return scales[best].item(), int(zeros[best])


def symmetric_range(histogram: Tensor, smallest: float, largest: float, bits: int, ranges: str, signed: bool) -> float:
    """Scale for a grid without zero point: signed, or from 0 upwards. Arguments as in ``activation_range``."""
    zero = 2 ** (bits - 1) if signed else 0
    levels = 2**bits - 1
    widest = torch.tensor([max(largest / (levels - zero), -smallest / zero if zero else 0.0, TINY)])
    scales = widest * torch.arange(1, SHRINKS + 1) / SHRINKS if ranges == "mse" else widest
    zeros = torch.full_like(scales, zero)
    best = _least_error(histogram, smallest, largest, scales, zeros, levels) if len(scales) > 1 else 0
    return scales[best].item()


def _least_error(
    histogram: Tensor, smallest: float, largest: float, scales: Tensor, zeros: Tensor, levels: int
) -> Tensor:
    """The index of the grid (scale, zero point) with the least ``sum count * |x - q(x)|^2.4`` over the bin centres."""
    width = (largest - smallest) / len(histogram)
    centres = smallest + width * (torch.arange(len(histogram)) + 0.5)
    used = histogram > 0
    centres, counts = centres[used], histogram[used].double()
    least = _errors(centres[::FEW], counts[::FEW], scales, zeros, levels)
    likely = least.argmin().view(1)
    enough = _errors(centres, counts, scales[likely], zeros[likely], levels) * (1 + ROUND_OFF)
    left = (least <= enough).nonzero().flatten()
    return left[_errors(centres, counts, scales[left], zeros[left], levels).argmin()]


def _errors(centres: Tensor, counts: Tensor, scales: Tensor, zeros: Tensor, levels: int) -> Tensor:
    """``sum count * |x - q(x)|^2.4`` of each grid, (grids,) float64."""
    scales, zeros = scales[:, None], zeros[:, None]
    integers = ((centres / scales).round() + zeros).clamp(0, levels)
    return (centres - scales * (integers - zeros)).abs().pow(MSE_POWER).double() @ counts
