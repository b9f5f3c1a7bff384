"""Where each parameter of a diffusers network stands in the original implementation's state dict.

A source is the original's key, and for a part of a joint query-key-value convolution which third it is. Shapes differ
only by trailing axes of size 1 (diffusers' attention is linear where the originals have 1x1 convolutions).
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

LEVEL = 3  # blocks of an LDM U-Net level: its two residual blocks and what follows them, or three residual blocks


class Source(NamedTuple):
    """The key in the original, and 0, 1 or 2 when the tensor is the queries', keys' or values' third of it."""

    key: str
    third: int | None = None


# the layout of Ho et al.'s DDPM in PyTorch, which the first stages share; up_blocks count the other way round
_DDPM = (
    (r"(^|\.)down_blocks\.(\d+)\.", r"\1down.\2."),
    (r"\.resnets\.(\d+)\.", r".block.\1."),
    (r"\.attentions\.(\d+)\.", r".attn.\1."),
    (r"mid_block\.block\.0\.", "mid.block_1."),
    (r"mid_block\.block\.1\.", "mid.block_2."),
    (r"mid_block\.attn\.0\.", "mid.attn_1."),
    (r"\.(up|down)samplers\.0\.", r".\1sample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.time_emb_proj\.", ".temb_proj."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_out\.0\.", ".proj_out."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"(^|\.)conv_norm_out\.", r"\1norm_out."),
    (r"^time_embedding\.linear_1\.", "temb.dense.0."),
    (r"^time_embedding\.linear_2\.", "temb.dense.1."),
)

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_BLOCK = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def ddpm(names: Iterable[str], levels: int) -> dict[str, Source]:
    """Sources of a DDPM U-Net's, an encoder's or a decoder's parameters; ``levels`` is the number of resolutions."""
    return {name: Source(_ddpm(name, levels)) for name in names}


def _ddpm(name: str, levels: int) -> str:
    for pattern, replacement in _DDPM:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"(^|\.)up_blocks\.(\d+)\.", lambda found: f"{found[1]}up.{levels - 1 - int(found[2])}.", name)


def ldm_unet(names: Iterable[str]) -> dict[str, Source]:
    """Sources of the parameters of a latent diffusion U-Net (Dhariwal & Nichol's, with or without transformers)."""
    names = list(names)
    return {name: _ldm(name, names) for name in names}


def _ldm(name: str, names: list[str]) -> Source:
    found = _BLOCK.match(name)
    if not found:
        module, _, tensor = name.rpartition(".")
        return Source(f"{_ENDS[module]}.{tensor}")
    side, level, part, index, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    attentive = any(other.startswith(f"{side}_blocks.{level}.attentions.") for other in names)
    place = {
        ("down", "resnets"): f"input_blocks.{level * LEVEL + index + 1}.0",
        ("down", "attentions"): f"input_blocks.{level * LEVEL + index + 1}.1",
        ("down", "downsamplers"): f"input_blocks.{(level + 1) * LEVEL}.0",
        ("mid", "resnets"): f"middle_block.{2 * index}",
        ("mid", "attentions"): "middle_block.1",
        ("up", "resnets"): f"output_blocks.{level * LEVEL + index}.0",
        ("up", "attentions"): f"output_blocks.{level * LEVEL + index}.1",
        ("up", "upsamplers"): f"output_blocks.{level * LEVEL + LEVEL - 1}.{2 if attentive else 1}",
    }[side, part]
    module, _, tensor = rest.rpartition(".")
    if part == "attentions":
        return _attention(place, module, tensor)
    if module == "conv":  # a convolution that halves or doubles the resolution
        return Source(f"{place}.{'op' if side == 'down' else 'conv'}.{tensor}")
    return Source(f"{place}.{_RESNET[module]}.{tensor}")


def _attention(place: str, module: str, tensor: str) -> Source:
    if module in ("to_q", "to_k", "to_v"):
        return Source(f"{place}.qkv.{tensor}", ("to_q", "to_k", "to_v").index(module))
    plain = {"group_norm": "norm", "to_out.0": "proj_out"}
    return Source(f"{place}.{plain.get(module, module)}.{tensor}")  # a transformer has the original's names


def averaged(key: str) -> str:
    """The name of a U-Net's exponential moving average in a Lightning checkpoint: without the dots."""
    return f"model_ema.{f'diffusion_model.{key}'.replace('.', '')}"
