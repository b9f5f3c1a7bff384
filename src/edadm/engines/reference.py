"""The exact reference: the arithmetic that a quantized checkpoint defines, in plain PyTorch on any machine.

Slow and short, so that it can be trusted: every other engine is compared with it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edadm.quantization import checkpoint, network
from edadm.quantization.attention import integer_product
from edadm.quantization.integer_layer import IntegerLayer


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected, in float64."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def quantize(x: Tensor, layer: IntegerLayer) -> Tensor:
    """float32 x to the integers (int32, 0..2**input_bits - 1) that ``layer`` takes: half to even, then clamped."""
    q = torch.round(x / layer.input_scale) + layer.input_zero_point
    return q.clamp(0, 2**layer.input_bits - 1).to(torch.int32)


def accumulate(q: Tensor, layer: IntegerLayer) -> Tensor:
    """The exact sums (int64, within 32 bits) of integers ``q`` in the layout of the layer's input.

    float64 carries them: integers below 2**53 stay exact in any order of summation, and IntegerLayer bounds them by
    2**31.
    """
    centred = (q - layer.input_zero_point).double()  # so that zero padding is q = zero point
    weight = layer.weight.double()
    if layer.is_convolution:
        return F.conv2d(centred, weight, None, *layer.geometry).long()
    return F.linear(centred, weight).long()


class IntegerReference(nn.Module):
    """A convolution or linear layer as its integers; then float32: ``sum * (input_scale * weight_scale) + bias``."""

    def __init__(self, layer: IntegerLayer) -> None:
        super().__init__()
        self.layer = layer
        # one axis per kernel axis after the channels: an output of a convolution has them in axis 1
        shape = (-1, 1, 1) if layer.is_convolution else (-1,)
        self.register_buffer("scale", (layer.weight_scale * layer.input_scale).reshape(shape))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.reshape(shape))

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Take x float32 in the layer's input layout to float32; diffusers' further arguments mean nothing here."""
        y = accumulate(quantize(x, self.layer), self.layer).float() * self.scale
        return y if self.bias is None else y + self.bias


class Network(nn.Module):
    """A diffusers U-Net as a plain function of tensors in the order of ``network.arguments``: (x, t, context, …)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """Take x float32 (n, c, h, w), t (n,), perhaps further tensors to (n, c, h, w); a label comes as context."""
        inputs = [value for value in (x, t, context, text_embeds, time_ids) if value is not None]
        return network.forward(self.unet, inputs, return_dict=False)[0]


class Decoder(nn.Module):
    """A diffusers autoencoder as a plain function from latents to images."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x: Tensor) -> Tensor:
        """Take latents float32 (n, c, h, w), unscaled, to images float32 (n, channels, H, W)."""
        return self.autoencoder.decode(x, return_dict=False)[0]


def as_function(network: nn.Module) -> Network | Decoder:
    """What an engine executes of a diffusers network: a U-Net, or an autoencoder's decoder."""
    return Decoder(network) if hasattr(network, "decode") else Network(network)


def load(folder: Path) -> Network | Decoder:
    """The network of a checkpoint folder in exact integers (in plain float32 when the folder is full-precision)."""
    return as_function(checkpoint.build_unet(checkpoint.load(folder), IntegerReference, integer_product))
