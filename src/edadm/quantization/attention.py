"""Attention whose four operands (q, k, v and the softmax's output) are quantized, as a processor for diffusers."""

import math
from collections.abc import Callable, Mapping

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from edadm.errors import InputError

# smallest and largest integer of each operand: 8 bits and no zero point, because CPU kernels for products of two
# activations have no other form
OPERANDS = {"q": (-128, 127), "k": (-128, 127), "v": (-128, 127), "softmax": (0, 255)}

Scales = Mapping[str, float]  # of each operand: float32 values, positive
Product = Callable[[str, Tensor, str, Tensor], Tensor]


def check_scales(scales: Scales) -> None:
    """InputError unless each operand has a positive float32 scale."""
    if set(scales) != set(OPERANDS):
        raise InputError(f"an attention has a scale for each of {', '.join(OPERANDS)}")
    for name, scale in scales.items():
        single = isinstance(scale, float) and torch.tensor(scale, dtype=torch.float32).item() == scale
        if not (single and scale > 0 and math.isfinite(scale)):
            raise InputError(f"{name}: scale {scale!r} is not a positive float32 value")


def integers(name: str, x: Tensor, scale: float) -> Tensor:
    """Float32 x as the integers of operand ``name``, float32: half to even, then clamped."""
    return torch.round(x / scale).clamp(*OPERANDS[name])


def float_product(scales: Scales) -> Product:
    """The products of quantized operands in float32."""

    def product(one: str, a: Tensor, other: str, b: Tensor) -> Tensor:
        first, second = scales[one], scales[other]
        return (integers(one, a, first) * first) @ (integers(other, b, second) * second)

    return product


def integer_product(scales: Scales) -> Product:
    """The products as exact sums of integers (float64 carries them), then float32: ``sum * (scale * scale)``."""

    def product(one: str, a: Tensor, other: str, b: Tensor) -> Tensor:
        scale = torch.tensor(scales[one]) * torch.tensor(scales[other])
        sums = integers(one, a, scales[one]).double() @ integers(other, b, scales[other]).double()
        return sums.float() * scale

    return product


class QuantizedAttention(nn.Module):
    """``softmax(q k^T / sqrt(d)) v`` in two explicit products, which ``product(name, a, name, b)`` computes.

    A module, so that diffusers registers it (as ``processor``) and what learning needs in it is found by name.
    """

    def __init__(self, product: Product, operands: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.product = product
        self.operands = nn.ModuleDict(operands or {})

    def __call__(  # not forward: diffusers looks at the parameters of __call__
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Take hidden states (n, c, h, w) or (n, tokens, c) to the same shape; see diffusers' AttnProcessor2_0."""
        residual, images = hidden_states, hidden_states.dim() == 4
        if images:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        q, k, v = (
            each.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for each in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        scores = self.product("q", q, "k", k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        if attention_mask is not None:
            mask = attn.prepare_attention_mask(attention_mask, context.shape[1], len(context))
            scores = scores + mask.unflatten(0, (len(context), attn.heads))
        output = self.product("softmax", scores.softmax(-1), "v", v).transpose(1, 2).flatten(2)
        for layer in attn.to_out:  # a linear, and dropout
            output = layer(output)
        if images:
            output = output.transpose(1, 2).reshape(residual.shape)
        if attn.residual_connection:
            output = output + residual
        return output / attn.rescale_output_factor


def attentions(unet: nn.Module) -> dict[str, Attention]:
    """The attention modules by name."""
    return {name: module for name, module in unet.named_modules() if isinstance(module, Attention)}


def check(name: str, attn: Attention) -> None:
    """InputError naming the attention when its computation is another one than QuantizedAttention's."""
    known = (AttnProcessor, AttnProcessor2_0)
    extras = [each for each in ("spatial_norm", "add_k_proj") if getattr(attn, each, None) is not None]
    if not isinstance(attn.processor, known) or attn.fused_projections:
        raise InputError(f"{name}: the operands of a {type(attn.processor).__name__} cannot be quantized")
    if extras:
        raise InputError(f"{name}: the operands of an attention with {extras[0]} cannot be quantized")
