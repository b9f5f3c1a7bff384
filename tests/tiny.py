"""Small random quantized checkpoints: every kind of layer of the real networks, in milliseconds."""

import edadm  # noqa: F401  (mends torchvision before diffusers)

from pathlib import Path  # isort: skip

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from edadm.quantization import checkpoint
from edadm.quantization.attention import Scales, attentions
from edadm.quantization.integer_layer import IntegerLayer
from edadm.quantization.quantizer import weight_grid
from edadm.systems import class_embedder
from edadm.systems.class_embedder import ClassEmbedder

CONTEXT = 12  # width of the conditional network's context


def unet(seed: int = 0, size: int = 8) -> UNet2DModel:
    """A U-Net with residual blocks, attention, down- and upsampling and skip concatenations, of size x size images."""
    torch.manual_seed(seed)
    model = UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
    )
    return model.eval().requires_grad_(False)


def conditional_unet(seed: int = 0) -> UNet2DConditionModel:
    """A U-Net of 8x8 latents with transformer blocks (self-attention, cross-attention to a context, GEGLU)."""
    torch.manual_seed(seed)
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=CONTEXT,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return model.eval().requires_grad_(False)


def autoencoder(seed: int = 0) -> AutoencoderKL:
    """An autoencoder from 32x32x1 to 8x8x4."""
    torch.manual_seed(seed)
    model = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        sample_size=32,
        layers_per_block=1,
        block_out_channels=(4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.7,
    )
    return model.eval().requires_grad_(False)


def latent_checkpoint(folder: Path, classes: int = 3) -> Path:
    """A latent, class-conditional checkpoint folder of so many classes with random weights."""
    conditional_unet().save_pretrained(folder / "unet")
    autoencoder().save_pretrained(folder / "vae")
    class_embedder.save(ClassEmbedder(classes, CONTEXT), folder / "class_embedder")
    DDIMScheduler(prediction_type="v_prediction", clip_sample=False).save_pretrained(folder / "scheduler")
    return folder


def integer_layer(
    module: nn.Module, bits: int = 8, input_range: tuple[float, float] = (-3.0, 4.0), input_bits: int = 8
) -> IntegerLayer:
    """A convolution or linear rounded to nearest on min-max grids, its inputs expected within ``input_range``."""
    weight = module.weight.detach()
    least, greatest = weight_grid(bits)
    scale = weight.flatten(1).abs().amax(1).clamp_min(1e-8) / greatest
    columns = scale.reshape(-1, *[1] * (weight.dim() - 1))
    integers = torch.round(weight / columns).clamp(least, greatest).to(torch.int8)
    low, high = input_range
    step = torch.tensor((high - low) / (2**input_bits - 1)).item()
    zero = min(max(round(-low / step), 0), 2**input_bits - 1)
    geometry = {}
    if isinstance(module, nn.Conv2d):
        names = ("stride", "padding", "dilation", "groups")
        geometry = {name: getattr(module, name) for name in names}
    bias = None if module.bias is None else module.bias.detach().clone()
    return IntegerLayer(bits, integers, scale, bias, step, zero, input_bits, **geometry)


def split(module: nn.Conv2d, first: int, bits: int = 8) -> list[IntegerLayer]:
    """``module`` as two layers over its first ``first`` and its other input channels."""
    parts = []
    for index, weight in enumerate(module.weight.detach().split([first, module.in_channels - first], 1)):
        part = nn.Conv2d(
            weight.shape[1], len(weight), module.kernel_size, module.stride, module.padding, bias=not index
        )
        part.weight.data = weight
        if not index:
            part.bias.data = module.bias.detach()
        parts.append(integer_layer(part, bits, (-2.0 - index, 5.0)))
    return parts


def quantized(
    model: nn.Module | None = None, bits: int = 4, input_bits: int = 8
) -> tuple[nn.Module, dict[str, IntegerLayer], dict[str, Tensor]]:
    """``model``, its integer layers and its other parameters: conv_in and conv_out have 8 bits, the others ``bits``;
    conv_in's input has 16, the others' ``input_bits``; shortcuts over a skip concatenation are split in the middle.
    Input ranges are those of one random batch."""
    model = model or unet()
    ranges = _input_ranges(model)
    layers = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if name.startswith("up_blocks") and name.endswith("conv_shortcut"):
            parts = split(module, module.in_channels // 2, bits)
            layers |= {f"{name}.parts.{index}": part for index, part in enumerate(parts)}
        else:
            layer_bits = 8 if name in ("conv_in", "conv_out") else bits
            layers[name] = integer_layer(module, layer_bits, ranges[name], 16 if name == "conv_in" else input_bits)
    taken = {f"{name.split('.parts.')[0]}.{key}" for name in layers for key in ("weight", "bias")}
    floats = {name: tensor for name, tensor in model.state_dict().items() if name not in taken}
    return model, layers, floats


def save(
    folder: Path,
    model: nn.Module | None = None,
    bits: int = 4,
    input_bits: int = 8,
    scales: Scales | None = None,
) -> Path:
    """A checkpoint folder of :func:`quantized`; with ``scales``, the operands of every attention are quantized too."""
    model, layers, floats = quantized(model, bits, input_bits)
    recipe = {"weights": bits, "activations": input_bits}
    operands = dict.fromkeys(attentions(model), scales) if scales else {}
    checkpoint.save(folder, checkpoint.unet_config(model), layers, floats, recipe, operands)
    return folder


def save_float(folder: Path) -> Path:
    """A full-precision checkpoint folder."""
    model = unet()
    checkpoint.save(folder, checkpoint.unet_config(model), {}, model.state_dict(), {})
    return folder


def inputs(batch: int, seed: int = 1, size: int = 8, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Noise (batch, channels, size, size) and timesteps (batch,)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, channels, size, size, generator=generator)
    return noise, torch.randint(0, 1000, (batch,), generator=generator)


def context(batch: int, tokens: int, seed: int = 2) -> Tensor:
    """Contexts (batch, tokens, CONTEXT) of the conditional network."""
    return torch.randn(batch, tokens, CONTEXT, generator=torch.Generator().manual_seed(seed))


def _input_ranges(model: nn.Module) -> dict[str, tuple[float, float]]:
    ranges: dict[str, tuple[float, float]] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):

            def record(_module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                ranges[name] = (min(args[0].min().item(), 0.0), max(args[0].max().item(), 0.01))

            hooks.append(module.register_forward_pre_hook(record))
    with torch.no_grad():
        further = (context(4, 3),) if isinstance(model, UNet2DConditionModel) else ()
        model(*inputs(4, size=model.config.sample_size, channels=model.config.in_channels), *further)
    for hook in hooks:
        hook.remove()
    return ranges
