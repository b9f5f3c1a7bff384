"""A diffusers U-Net from its ``config.json`` alone, one setting richer than diffusers: ``attention_heads``.

``UNet2DModel`` fixes the width of a head (``attention_head_dim``), which makes the number of heads grow with the
channels; latent-diffusion's LSUN-Church has 8 everywhere. No weight depends on the heads, so that they can be set
afterwards.
"""

from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers.models.attention_processor import Attention
from torch import nn

from edadm.errors import InputError

# names, not classes: diffusers imports a class when it is first asked for, and that of a network takes seconds
CLASSES = ("UNet2DModel", "UNet2DConditionModel")
AUTOENCODERS = ("AutoencoderKL", "VQModel")  # the first stages of latent systems, which are built from the same file
HEADS = "attention_heads"
COUNTS = ("layers_per_block", "transformer_layers_per_block", "num_attention_heads")
MOST_OF_COUNTS, MOST = 100, 2**20  # no network is larger; diffusers would build for hours


def build(config: Mapping[str, Any]) -> nn.Module:
    """The U-Net that ``config`` describes, with diffusers' initial weights, on torch's default device.

    InputError when the class is another one, diffusers refuses a setting, or the heads do not divide the channels.
    """
    settings = dict(config)
    name, heads = str(settings.get("_class_name")), settings.pop(HEADS, None)
    if name not in CLASSES:
        raise InputError(f"config.json: _class_name {name!r} is not one of {', '.join(CLASSES)}")
    unet = from_config(name, settings)
    if heads is not None:
        unet.register_to_config(**{HEADS: heads})
        for module in unet.modules():
            if isinstance(module, Attention):
                _set_heads(module, heads)
    return unet


def from_config(name: str, config: Mapping[str, Any]) -> nn.Module:
    """The module of diffusers called ``name`` from its configuration.

    InputError when diffusers refuses it or it is absurdly large.
    """
    for key, value in config.items():
        _check_size(key, value, MOST_OF_COUNTS if key in COUNTS else MOST)
    kind = getattr(diffusers, name)
    try:
        return kind.from_config(dict(config))
    except Exception as error:  # an attribute of None, a missing key: anything can come of a wrong type
        raise InputError(f"config.json: diffusers refuses it ({' '.join(str(error).split())[:500]})") from error


def _check_size(key: str, value: Any, most: int) -> None:
    if isinstance(value, list | tuple):
        for inner in value:
            _check_size(key, inner, most)
    elif isinstance(value, int | float) and abs(value) > most:
        raise InputError(f"config.json: {key}: {value} is beyond {most}")


def _set_heads(attention: Attention, heads: Any) -> None:
    channels = attention.to_q.out_features
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or channels % heads:
        raise InputError(f"config.json: {HEADS} {heads!r} does not divide the {channels} channels of an attention")
    attention.heads = attention.sliceable_head_dim = heads
    attention.scale = (channels // heads) ** -0.5
