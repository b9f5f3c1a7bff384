"""A convolution or linear layer that simulates its integer counterpart, for calibration and reconstruction."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edadm.quantization.quantizer import (
    activation_range,
    coin_flips,
    fake_quantize,
    symmetric_range,
    weight_grid,
    weight_scale,
)

GAMMA, ZETA = -0.1, 1.1  # the stretch of AdaRound's rectified sigmoid (Nagel et al. 2020)
BINS = 2048
COUNTED = 2**22  # values at a time: torch counts in float32, which ends at 2**24


@dataclass
class Observed:
    """What a layer's input was during calibration: its range, then a histogram over that range."""

    smallest: float = torch.inf
    largest: float = -torch.inf
    histogram: Tensor | None = None


class Simulated(nn.Module):
    """Simulates the quantization of one tensor of activations, the same grid at every step.

    ``mode`` says what happens to it: nothing (``float``), nothing but being looked at (``range``, ``histogram``), or
    quantization (``quantized``). ``drop`` is the share of activations left as they are while a unit is learned (QDrop,
    Wei et al. 2022).
    """

    def __init__(self, input_bits: int) -> None:
        super().__init__()
        self.input_bits = input_bits
        self.mode = "float"
        self.observed = Observed()
        self.input_scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.register_buffer("input_zero_point", torch.zeros(()))
        self.drop = 0.0
        self.generator: torch.Generator | None = None

    def _observe(self, x: Tensor) -> None:
        if self.mode == "range":  # torch's minimum, because Python's would lose a NaN
            self.observed.smallest = torch.minimum(torch.tensor(self.observed.smallest), x.min().cpu()).item()
            self.observed.largest = torch.maximum(torch.tensor(self.observed.largest), x.max().cpu()).item()
        else:
            parts = x.float().flatten().split(COUNTED)
            ends = self.observed.smallest, self.observed.largest
            counts = sum(torch.histc(part, BINS, *ends).cpu().double() for part in parts)
            self.observed.histogram = counts + (0 if self.observed.histogram is None else self.observed.histogram)

    def set_range(self, ranges: str) -> None:
        """Choose scale and zero point for what was observed, which is then forgotten."""
        scale, zero_point = self._grid(self.observed, ranges)
        self.input_scale.fill_(scale)
        self.input_zero_point.fill_(zero_point)
        self.observed.histogram = None

    def _grid(self, seen: Observed, ranges: str) -> tuple[float, int]:
        return activation_range(seen.histogram, seen.smallest, seen.largest, self.input_bits, ranges)

    def activations(self, x: Tensor) -> Tensor:
        """What ``mode`` makes of x."""
        if self.mode in ("range", "histogram"):
            self._observe(x)
        if self.mode != "quantized":
            return x
        kept = coin_flips(x.shape, self.drop, self.generator).to(x.device) if self.drop > 0 else None
        return fake_quantize(x, self.input_scale, self.input_zero_point, self.input_bits, kept)


class SimulatedOperand(Simulated):
    """An operand of an attention's products: 8 bits, signed or from 0 upwards, the real zero point always 0.

    The grid of ``Simulated`` is unsigned; a signed one is that with zero point 128.
    """

    def __init__(self, signed: bool) -> None:
        super().__init__(8)
        self.signed = signed

    def _grid(self, seen: Observed, ranges: str) -> tuple[float, int]:
        scale = symmetric_range(seen.histogram, seen.smallest, seen.largest, 8, ranges, self.signed)
        return scale, 128 if self.signed else 0

    def forward(self, x: Tensor) -> Tensor:
        """Quantized x, as the mode says."""
        return self.activations(x)


class SimulatedLayer(Simulated):
    """Simulates ``y = s_x s_w (sum (q_x - z_x) q_w) + b`` in float32 for one Conv2d or Linear.

    In every mode but ``quantized`` it is the original layer; only that takes b from ``bias``, which may have been
    corrected. ``alpha`` (the weight's shape) is AdaRound's rounding variable while a unit is reconstructed.
    """

    def __init__(self, layer: nn.Module, bits: int, input_bits: int) -> None:
        super().__init__(input_bits)
        self.layer = layer.requires_grad_(False)
        self.bits = bits
        self.register_buffer("weight_scale", torch.ones(len(layer.weight)))
        self.register_buffer("weight_integers", torch.zeros_like(layer.weight))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self.alpha: nn.Parameter | None = None

    @property
    def _channel(self) -> tuple[int, ...]:
        return (-1, *[1] * (self.layer.weight.dim() - 1))

    def set_weight_range(self, ranges: str) -> None:
        """Search the weight scales and round to nearest."""
        self.weight_scale.copy_(weight_scale(self.layer.weight, self.bits, ranges))
        low, high = weight_grid(self.bits)
        scaled = self.layer.weight / self.weight_scale.view(self._channel)
        self.weight_integers.copy_(scaled.round().clamp(low, high))

    def start_rounding(self) -> nn.Parameter:
        """Make ``alpha`` so that the soft rounding gives the float weight back."""
        scaled = self.layer.weight / self.weight_scale.view(self._channel)
        fraction = scaled - scaled.floor()
        self.alpha = nn.Parameter(-torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1))
        return self.alpha

    def soft_fraction(self) -> Tensor:
        """AdaRound's h(alpha) in [0, 1]."""
        return (torch.sigmoid(self.alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def harden_rounding(self) -> None:
        """Round each weight the way its alpha points, and drop alpha."""
        low, high = weight_grid(self.bits)
        scaled = (self.layer.weight / self.weight_scale.view(self._channel)).floor()
        self.weight_integers.copy_((scaled + (self.alpha >= 0)).clamp(low, high))
        self.alpha = None

    def weight(self) -> Tensor:
        """The simulated weight: soft while ``alpha`` is learned, else integers times scales."""
        scale = self.weight_scale.view(self._channel)
        if self.alpha is None:
            return self.weight_integers * scale
        low, high = weight_grid(self.bits)
        return ((self.layer.weight / scale).floor() + self.soft_fraction()).clamp(low, high) * scale

    def forward(self, x: Tensor, *_: float) -> Tensor:
        """The layer's output; a second positional argument (LoRA scale in old diffusers) is ignored."""
        simulated = self.activations(x)
        if self.mode != "quantized":
            return self.layer(simulated)
        if isinstance(self.layer, nn.Linear):
            return F.linear(simulated, self.weight(), self.bias)
        return self.layer._conv_forward(simulated, self.weight(), self.bias)


class SplitShortcut(nn.Module):
    """A 1x1 convolution over a skip concatenation as two, one per source, whose ranges differ (Q-Diffusion)."""

    def __init__(self, layer: nn.Conv2d, channels: int, bits: int, input_bits: int) -> None:
        super().__init__()
        self.channels = channels
        parts = []
        for index, part in enumerate((slice(0, channels), slice(channels, None))):
            weight = layer.weight.detach()[:, part].clone()
            bias = index == 0 and layer.bias is not None
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias)
            conv.weight.data.copy_(weight)
            if bias:
                conv.bias.data.copy_(layer.bias)
            parts.append(SimulatedLayer(conv, bits, input_bits))
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, *_: float) -> Tensor:
        """Sum of the two convolutions of x (n, channels + rest, h, w)."""
        return self.parts[0](x[:, : self.channels]) + self.parts[1](x[:, self.channels :])


def simulated_layers(module: nn.Module) -> dict[str, SimulatedLayer]:
    """All simulated layers in ``module`` by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, SimulatedLayer)}


def simulated(module: nn.Module) -> dict[str, Simulated]:
    """Everything in ``module`` that simulates the quantization of activations, by name."""
    return {name: each for name, each in module.named_modules() if isinstance(each, Simulated)}


def set_mode(module: nn.Module, mode: str) -> None:
    """Set the mode of everything simulated in ``module``."""
    for each in simulated(module).values():
        each.mode = mode
