"""The U-Nets of the five published systems with random weights, full size or narrow, and their quantized layers.

Bedroom to ImageNet are those of latent diffusion's configuration files. Church's attention has 8 heads at every
resolution; diffusers' configuration can only fix the width of a head, so that coarse resolutions have more here, at
the same number of operations.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from edadm.quantization import checkpoint
from edadm.quantization.checkpoint import QuantizedCheckpoint
from edadm.quantization.integer_layer import IntegerLayer
from edadm.quantization.quantizer import weight_grid

NAMES = ("cifar10-ddim", "coco-sd14", "bedroom-ldm4", "church-ldm8", "imagenet-ldm4")
_TOKENS = {"coco-sd14": 77, "imagenet-ldm4": 1}


def _types(kind: str, places: str) -> dict[str, Any]:
    """Down and up blocks: attention of ``kind`` where an A stands, from the finest resolution on."""
    names = [kind if place == "A" else "" for place in places]
    down, up = ([f"{name}{way}Block2D" for name in names] for way in ("Down", "Up"))
    return {"down_block_types": tuple(down), "up_block_types": tuple(reversed(up))}


def config(name: str, narrow: bool = False) -> dict[str, Any]:
    """Arguments of the diffusers class. ``narrow``: 8 channels and 8 pixels, one block per resolution."""
    channels = 8 if narrow else {"cifar10-ddim": 128, "bedroom-ldm4": 224, "coco-sd14": 320}.get(name, 192)
    shared: dict[str, Any] = {"layers_per_block": 1 if narrow else 2, "norm_num_groups": 4 if narrow else 32}
    shared["sample_size"] = 8 if narrow else 64 if name in ("bedroom-ldm4", "imagenet-ldm4", "coco-sd14") else 32
    shared["in_channels"] = shared["out_channels"] = 4 if name in ("church-ldm8", "coco-sd14") else 3
    widths = {"cifar10-ddim": (1, 2, 2, 2), "bedroom-ldm4": (1, 2, 3, 4), "church-ldm8": (1, 2, 2, 4, 4)}
    widths |= {"imagenet-ldm4": (1, 2, 3, 5), "coco-sd14": (1, 2, 4, 4)}
    multipliers, places = widths[name], {"cifar10-ddim": ".A..", "church-ldm8": "AAAA.", "coco-sd14": "AAA."}
    place = places.get(name, ".AAA")
    if narrow:
        multipliers, place = multipliers[:2], place[1:3]
    shared["block_out_channels"] = tuple(channels * each for each in multipliers)
    if name in _TOKENS:
        heads = 8 if name == "coco-sd14" else 1
        own = {"cross_attention_dim": 16 if narrow else {"coco-sd14": 768}.get(name, 512)}
        return shared | own | _types("CrossAttn", place) | {"attention_head_dim": 2 if narrow else heads}
    own = {"attention_head_dim": {"cifar10-ddim": None, "bedroom-ldm4": 32, "church-ldm8": 24}[name]}
    if narrow and own["attention_head_dim"]:
        own["attention_head_dim"] = 8
    if name == "cifar10-ddim":
        own |= {"downsample_padding": 0, "norm_eps": 1e-6, "flip_sin_to_cos": False, "freq_shift": 1}
    if name == "church-ldm8":
        own |= {"downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift"}
    types = _types("Attn", place)
    if name == "church-ldm8" and not narrow:
        types["up_block_types"] = ("ResnetUpsampleBlock2D", *types["up_block_types"][1:])
    return shared | own | types


def build(name: str, device: torch.device, narrow: bool = False) -> nn.Module:
    """The U-Net on ``device``, float32, with PyTorch's random initialization."""
    torch.manual_seed(0)
    with torch.device(device):
        unet = (UNet2DConditionModel if name in _TOKENS else UNet2DModel)(**config(name, narrow))
    return unet.eval().requires_grad_(False)


def inputs(name: str, unet: nn.Module, batch: int, device: torch.device) -> tuple[Tensor, ...]:
    """Random x (batch, c, h, w), t (batch,) and, of a conditional network, context (batch, tokens, width)."""
    generator = torch.Generator().manual_seed(1)
    side = unet.config.sample_size
    given = [torch.randn(batch, unet.config.in_channels, side, side, generator=generator)]
    given.append(torch.randint(0, 1000, (batch,), generator=generator))
    if name in _TOKENS:
        given.append(torch.randn(batch, _TOKENS[name], unet.config.cross_attention_dim, generator=generator))
    return tuple(value.to(device) for value in given)


def integer_layer(module: nn.Module, bits: int, low: float, high: float, input_bits: int = 8) -> IntegerLayer:
    """A layer rounded to nearest on min-max grids, its inputs within ``low``..``high``."""
    weight, (least, greatest) = module.weight, weight_grid(bits)
    scale = weight.flatten(1).abs().amax(1).clamp_min(1e-8) / greatest
    integers = torch.round(weight / scale.reshape(-1, *[1] * (weight.dim() - 1))).clamp(least, greatest)
    step = torch.tensor(max(high - low, 1e-6) / (2**input_bits - 1)).item()
    zero = min(max(round(-low / step), 0), 2**input_bits - 1)
    names = ("stride", "padding", "dilation", "groups") if isinstance(module, nn.Conv2d) else ()
    geometry = {name: getattr(module, name) for name in names}
    return IntegerLayer(bits, integers.to(torch.int8), scale, module.bias, step, zero, input_bits, **geometry)


@torch.inference_mode()
def quantized(unet: nn.Module, bits: int, *given: Tensor) -> QuantizedCheckpoint:
    """``unet`` with weights of ``bits`` (8 in the first and last convolution) and ranges of its inputs on ``given``."""
    ranges: dict[str, tuple[float, float]] = {}
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}

    def record(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            low, high = (value.item() for value in args[0].aminmax())
            ranges[name] = min(low, 0.0), max(high, 0.0)

        return hook

    hooks = [module.register_forward_pre_hook(record(name)) for name, module in layers.items()]
    unet(*given)
    for hook in hooks:
        hook.remove()
    made = {}
    for name, module in layers.items():
        first = name == "conv_in"
        own = 8 if name in ("conv_in", "conv_out") else bits
        made[name] = integer_layer(module, own, *ranges[name], input_bits=16 if first else 8)
    floats = {name: value for name, value in unet.state_dict().items() if name.rpartition(".")[0] not in made}
    return QuantizedCheckpoint(checkpoint.unet_config(unet), made, floats, {})
