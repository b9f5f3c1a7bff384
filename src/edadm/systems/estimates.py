"""What a published system takes: parameters, sizes, and multiply-accumulates, counted without its weights.

The networks are built on torch's meta device, which has shapes and no memory, and run once there; torch counts the
multiply-accumulates of every convolution, matrix product and attention of that run.
"""

import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edadm.params import PublishedSystemParams
from edadm.systems import originals
from edadm.systems.originals import architectures

GPU_RATE = 50e12  # multiply-accumulates per second that a GPU of 312 dense half-precision TFLOP/s sustains at a third
_PROBE = (320, 64)  # channels and side of the convolution that measures this machine: Stable Diffusion's widest images
_SECONDS = 1.0  # of measuring


@dataclass(frozen=True)
class Estimate:
    """Of one system: parameters and bytes, multiply-accumulates, U-Net calls per image, images."""

    parameters: int  # of all parts
    unet_parameters: int
    unet_bytes: dict[int, int]  # by the bits of its weights
    macs_per_call: int  # of one image, one U-Net call, of one row
    macs_decoder: int  # of one image
    calls: int  # U-Net rows per image: steps, one more for plms, twice under guidance
    images: int

    @property
    def macs(self) -> int:
        """Of all images."""
        return self.images * (self.calls * self.macs_per_call + self.macs_decoder)


def _macs(network: nn.Module, *inputs: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops() // 2


def estimate(params: PublishedSystemParams) -> Estimate:
    """Counted for the full protocol of a published system."""
    kind = params.checkpoint.format
    widths = architectures.PUBLISHED[kind]
    unet = architectures.unet(kind, widths, params.checkpoint.side).eval()
    decoder = architectures.autoencoder(kind, widths, 1.0, params.checkpoint.side)
    side, channels = unet.config.sample_size, unet.config.in_channels
    tokens = architectures.TEXT_POSITIONS if widths.vocabulary else 1
    with torch.device("meta"):
        x, t = torch.empty(1, channels, side, side), torch.empty(1)
        context = (torch.empty(1, tokens, widths.context),) if widths.context else ()
        per_call = _macs(unet, x, t, *context)
        decoding = 0 if decoder is None else _macs(_Decoder(decoder.eval()), x)
    counts = originals.parameter_counts(kind)
    sizes = {bits: weight_bytes(unet, bits) for bits in (8, 4)}
    calls = params.sampler.steps + (params.sampler.name == "plms")
    rows = calls * (1 if params.sampler.guidance == 1 else 2)
    parameters = sum(counts.values())
    return Estimate(parameters, counts["unet"], sizes, per_call, decoding, rows, params.sampling.images["full"])


class _Decoder(nn.Module):
    """The part of a first stage that sampling runs."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.post, self.decoder = autoencoder.post_quant_conv, autoencoder.decoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Latents (n, c, h, w) to images."""
        return self.decoder(self.post(x))


@torch.no_grad()
def measured_rate() -> float:
    """Multiply-accumulates per second of a float32 convolution on this machine, with torch's number of threads."""
    channels, side = _PROBE
    layer, x = nn.Conv2d(channels, channels, 3, padding=1), torch.randn(1, channels, side, side)
    macs = channels * channels * 9 * side * side
    layer(x)
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < _SECONDS or done == 0:
        layer(x)
        done += 1
    return done * macs / elapsed


def weight_bytes(unet: nn.Module, bits: int) -> int:
    """Bytes of a U-Net with the weights of all convolutions and linears at ``bits`` and the rest at 32 bits.

    The arithmetic of the published sizes: no scales, no layer of other widths.
    """
    quantized = sum(module.weight.numel() for module in unet.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    total = sum(parameter.numel() for parameter in unet.parameters())
    return quantized * bits // 8 + (total - quantized) * 4
