"""Blocks of diffusers' U-Nets that quantize where they normalize, and add where they multiply.

Without :func:`fuse` every layer quantizes its own input and diffusers does the rest: the same function, more memory
traffic. Fused are, wherever the layers behind take inputs of at most 8 bits and nothing asks for another computation:

- ``norm``, SiLU and quantization before the convolutions of a residual block; the time embedding and the shortcut in
  their epilogues; a nearest-neighbour enlargement in the convolution behind it, in a residual block or an upsampler;
- the padding of a downsampler; ``norm`` before the projection into a transformer, and before the last convolution;
- ``norm`` before the projections of an attention, GEGLU before the feed-forward's second layer, residuals behind.
"""

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

from edadm.engines.cuda.geglu import geglu
from edadm.engines.cuda.group_norm import group_norm
from edadm.engines.cuda.layer_norm import layer_norm
from edadm.engines.cuda.layers import Convolution, Linear, channels_last, rows_of
from edadm.engines.cuda.products import IntegerProduct, attend, operand_grids
from edadm.quantization.attention import QuantizedAttention


def fuse(unet: nn.Module) -> nn.Module:
    """Replace, in place, what can be fused in a U-Net that build_unet made with the layers of this package."""
    for name, module in list(unet.named_modules()):
        if isinstance(module, ResnetBlock2D) and ResidualBlock.fits(module):
            unet.set_submodule(name, ResidualBlock(module))
        elif isinstance(module, Upsample2D) and module.use_conv and _takes_bytes(_convolution_of(module)):
            if module.norm is None and module.interpolate and not module.use_conv_transpose:
                unet.set_submodule(name, Upsampler(module))
        elif isinstance(module, Downsample2D) and module.use_conv and _takes_bytes(module.conv):
            if module.norm is None and module.padding == 0:
                unet.set_submodule(name, Downsampler(module))
        elif isinstance(module, Transformer2DModel) and _takes_bytes(getattr(module, "proj_in", None)):
            if isinstance(module.proj_in, Convolution) and isinstance(module.norm, nn.GroupNorm):
                module.proj_in, module.norm = NormConvolution(module.norm, False, module.proj_in), nn.Identity()
        elif isinstance(module, BasicTransformerBlock) and TransformerBlock.fits(module):
            unet.set_submodule(name, TransformerBlock(module))
    for module in unet.modules():
        if isinstance(module, Attention) and _plain(module) and module.group_norm is not None:
            module.set_processor(ImageAttention(module))
    last = getattr(unet, "conv_out", None)
    if _takes_bytes(last) and isinstance(unet.conv_norm_out, nn.GroupNorm) and _is_silu(unet.conv_act):
        unet.conv_out = NormConvolution(unet.conv_norm_out, True, last)
        unet.conv_norm_out = unet.conv_act = nn.Identity()
    return unet


def _takes_bytes(*layers: Any) -> bool:
    return all(isinstance(layer, Linear | Convolution) and layer.packed.planes == 1 for layer in layers)


def _is_silu(activation: Any) -> bool:
    return isinstance(activation, nn.SiLU) or activation is F.silu


def _convolution_of(sampler: Upsample2D) -> nn.Module:
    return sampler.conv if sampler.name == "conv" else sampler.Conv2d_0


def _float32(norm: nn.Module) -> nn.Module:
    """A norm whose parameters the kernels read; the original ones stay as they are."""
    norm.weight.data, norm.bias.data = norm.weight.data.float(), norm.bias.data.float()
    return norm


def _normalized(
    x: Tensor, norm: nn.GroupNorm, silu: bool, layer: Convolution, modulation: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Images x (n, c, h, w), normalized and quantized for ``layer``: int8 (1, n, h, w, width)."""
    last = channels_last(x)
    rows = rows_of(last).unflatten(0, (len(x), -1))
    q = group_norm(rows, norm, silu, layer.packed.grid[None], layer.packed.width, modulation)
    return q.unflatten(2, last.shape[1:3])


class NormConvolution(nn.Module):
    """GroupNorm, perhaps SiLU, and a convolution."""

    def __init__(self, norm: nn.GroupNorm, silu: bool, layer: Convolution) -> None:
        super().__init__()
        self.norm, self.silu, self.layer = _float32(norm), silu, layer

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Take x (n, c, h, w) to (n, out, oh, ow)."""
        return self.layer.product(_normalized(x, self.norm, self.silu, self.layer))


class Upsampler(nn.Module):
    """A convolution of the twice enlarged image: the enlargement commutes with quantization."""

    def __init__(self, sampler: Upsample2D) -> None:
        super().__init__()
        self.layer = _convolution_of(sampler)

    def forward(self, x: Tensor, output_size: Any = None, *_: Any) -> Tensor:
        """Take x (n, c, h, w) to twice the size, or to ``output_size``."""
        q = self.layer.integers(x)
        if output_size is None or tuple(output_size) == (2 * x.shape[2], 2 * x.shape[3]):
            return self.layer.product(q, up=2)
        return self.layer(F.interpolate(x, size=output_size, mode="nearest"))


class Downsampler(nn.Module):
    """A convolution with a stride, of the image with one more row and column."""

    def __init__(self, sampler: Downsample2D) -> None:
        super().__init__()
        self.layer = sampler.conv

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Take x (n, c, h, w) to half the size."""
        return self.layer.product(self.layer.integers(x), after=(1, 1))


class ResidualBlock(nn.Module):
    """``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + embedding)))``, as diffusers' ResnetBlock2D."""

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        self.block = block
        _float32(block.norm1), _float32(block.norm2)

    @staticmethod
    def fits(block: ResnetBlock2D) -> bool:
        """Whether the block computes this."""
        samplers = [each for each in (block.upsample, block.downsample) if each is not None]
        plain = all(isinstance(each, Upsample2D | Downsample2D) and each.norm is None for each in samplers)
        same = block.output_scale_factor == 1 and _is_silu(block.nonlinearity) and block.time_emb_proj is not None
        norms = isinstance(block.norm1, nn.GroupNorm) and isinstance(block.norm2, nn.GroupNorm)
        known = block.time_embedding_norm in ("default", "scale_shift")
        return plain and same and norms and known and _takes_bytes(block.conv1, block.conv2)

    def forward(self, x: Tensor, temb: Tensor, *_: Any, **__: Any) -> Tensor:
        """Take x (n, c, h, w) and the time embedding (n, width) to (n, out, h, w), or to twice or half that size."""
        block, up = self.block, 1
        if block.downsample is not None:  # a mean of normalized values: it comes before the quantization
            h = block.conv1.integers(block.downsample(F.silu(block.norm1(x.float()))))
            x = block.downsample(x)
        else:
            h = _normalized(x, block.norm1, True, block.conv1)
            if block.upsample is not None:
                up, x = 2, block.upsample(x)
        embedding = block.time_emb_proj(temb if block.skip_time_act else F.silu(temb))
        if block.time_embedding_norm == "default":
            h, modulation = block.conv1.product(h, up, embedding=embedding.contiguous()), None
        else:
            h, modulation = block.conv1.product(h, up), embedding.chunk(2, 1)
        shortcut = x if block.conv_shortcut is None else block.conv_shortcut(x)
        h = _normalized(h, block.norm2, True, block.conv2, modulation)
        return block.conv2.product(h, residual=shortcut)


def _plain(attention: Attention) -> bool:
    """Whether an attention is only its four layers, and their inputs have 8 bits."""
    layers = (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])
    extras = ("spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj")
    processor = attention.processor
    quantized = isinstance(processor, QuantizedAttention) and isinstance(processor.product, IntegerProduct)
    return (
        _takes_bytes(*layers)
        and all(isinstance(layer, Linear) for layer in layers)
        and (quantized or isinstance(processor, AttnProcessor | AttnProcessor2_0))
        and not any(getattr(attention, name, None) for name in extras)
    )


def _grids(*layers: Linear) -> Tensor:
    return torch.stack([layer.packed.grid for layer in layers])


class _Projections(nn.Module):
    """The products of an attention and what follows, from the integers that its projections take."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.layers = [attention.to_q, attention.to_k, attention.to_v]  # modules of the attention, not of this one
        self.output = [attention.to_out[0]]
        quantized = isinstance(attention.processor, QuantizedAttention)
        self.scales = attention.processor.product.scales if quantized else None
        self.heads = attention.heads
        self.operand_grids = operand_grids(self.scales, attention.to_q.packed.grid.device)

    def __call__(self, integers: list[Tensor], images: int, residual: Tensor | None) -> Tensor:
        """``integers`` are int8 (1, n * tokens, width) of q, k, v; residual and result (n * tokens, channels)."""
        q, k, v = (
            layer.product(each, out_grid=grid).unflatten(0, (images, -1))
            for layer, each, grid in zip(self.layers, integers, self.operand_grids, strict=True)
        )
        y = attend(q, k, v, self.heads, self.scales, self.layers[0].dtype)
        output = self.output[0]
        return output.product(output.integers(y), residual)


class ImageAttention(nn.Module):
    """Self-attention over the pixels of normalized images, with a residual: a processor for diffusers' Attention."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        _float32(attention.group_norm)
        self.project = _Projections(attention)
        self.grids = _grids(attention.to_q, attention.to_k, attention.to_v)

    def __call__(  # the unused parameters keep diffusers from warning
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Take images (n, c, h, w) to the same shape."""
        last = channels_last(hidden_states).contiguous()
        rows = last.flatten(1, 2)
        q = group_norm(rows, attn.group_norm, False, self.grids, self.project.layers[0].packed.width)
        residual = rows.flatten(0, 1) if attn.residual_connection else None
        y = self.project(list(q.flatten(1, 2)[:, None]), len(last), residual)
        y = y.unflatten(0, last.shape[:3]).permute(0, 3, 1, 2)
        return y if attn.rescale_output_factor == 1 else y / attn.rescale_output_factor


class TransformerBlock(nn.Module):
    """Self-attention, perhaps cross-attention, and GEGLU, each behind a LayerNorm and with a residual."""

    def __init__(self, block: BasicTransformerBlock) -> None:
        super().__init__()
        self.block = block
        self.own, self.cross = _Projections(block.attn1), None
        self.own_grids = _grids(block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
        _float32(block.norm1), _float32(block.norm3)
        if block.attn2 is not None:
            self.cross = _Projections(block.attn2)
            _float32(block.norm2)

    @staticmethod
    def fits(block: BasicTransformerBlock) -> bool:
        """Whether the block computes this."""
        attentions = [each for each in (block.attn1, block.attn2) if each is not None]
        net = block.ff.net
        return (
            block.norm_type == "layer_norm"
            and not (block.pos_embed or block.only_cross_attention or block.double_self_attention)
            and block._chunk_size is None
            and all(norm is None or norm.weight is not None for norm in (block.norm1, block.norm2, block.norm3))
            and all(_plain(each) and not each.residual_connection for each in attentions)
            and all(each.rescale_output_factor == 1 and each.group_norm is None for each in attentions)
            and isinstance(net[0], GEGLU)
            and _takes_bytes(net[0].proj, net[2])
        )

    def forward(self, hidden_states: Tensor, *_: Any, encoder_hidden_states: Tensor, **__: Any) -> Tensor:
        """Take tokens (n, tokens, channels), with a context (n, keys, width), to the same shape."""
        block, images = self.block, len(hidden_states)
        x = hidden_states.contiguous().flatten(0, 1)
        q = layer_norm(x, block.norm1, self.own_grids, block.attn1.to_q.packed.width)
        x = self.own(list(q[:, None]), images, x)
        if self.cross is not None:
            layers = (block.attn2.to_q, block.attn2.to_k, block.attn2.to_v)
            q = layer_norm(x, block.norm2, _grids(layers[0]), layers[0].packed.width)
            context = [layer.integers(encoder_hidden_states) for layer in layers[1:]]
            x = self.cross([q, *context], images, x)
        inner, outer = block.ff.net[0].proj, block.ff.net[2]
        h = inner.product(layer_norm(x, block.norm3, _grids(inner), inner.packed.width))
        x = outer.product(geglu(h, outer.packed.grid, outer.packed.width), x)
        return x.unflatten(0, (images, -1))
