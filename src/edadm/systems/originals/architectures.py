"""The networks of the five published systems as diffusers configurations (configuration files of each paper's code).

Their widths are not fixed here: the weights say them, so that a narrow copy of an original (as the tests use) is read
like the original. Group norms have 32 groups, Bedroom's heads 32 channels, Church and Stable Diffusion 8 heads; a copy
too narrow for that takes the greatest common divisor, but no heads of one channel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, VQModel
from torch import nn

from edadm import unets


@dataclass(frozen=True)
class Widths:
    """What of an architecture its weights say."""

    channels: int  # of the U-Net's first convolution
    autoencoder: int = 0  # channels of the first stage's first convolution
    codes: int = 0  # rows of a VQ first stage's code book
    context: int = 0  # numbers of a context's token
    classes: int = 0  # without the row for "no class"
    vocabulary: int = 0  # of the text encoder


PUBLISHED = {
    "cifar10-ddim": Widths(128),
    "bedroom-ldm4": Widths(224, 128, 8192),
    "church-ldm8": Widths(192, 128),
    "imagenet-ldm4": Widths(192, 128, 8192, 512, 1000),
    "coco-sd14": Widths(320, 128, 0, 768, 0, 49408),
}
KINDS = tuple(PUBLISHED)
AVERAGED = ("bedroom-ldm4", "church-ldm8")  # sampled with the moving average of the weights, stored beside them
SIDES = {"cifar10-ddim": 32, "bedroom-ldm4": 64, "church-ldm8": 32, "imagenet-ldm4": 64, "coco-sd14": 64}
SCALES = {"bedroom-ldm4": 1.0, "imagenet-ldm4": 1.0, "coco-sd14": 0.18215}  # of latents; Church's file holds its own
TEXT_LAYERS, TEXT_POSITIONS = 12, 77
_BETAS = {
    "cifar10-ddim": (0.0001, 0.02),
    "bedroom-ldm4": (0.0015, 0.0195),
    "church-ldm8": (0.0015, 0.0155),
    "imagenet-ldm4": (0.0015, 0.0195),
    "coco-sd14": (0.00085, 0.012),
}


def scheduler(kind: str) -> DDIMScheduler:
    """The noise schedule of the training, and where the published sampler begins and ends."""
    latent = kind != "cifar10-ddim"
    start, end = _BETAS[kind]
    return DDIMScheduler(
        beta_schedule="scaled_linear" if latent else "linear",
        beta_start=start,
        beta_end=end,
        clip_sample=False,
        set_alpha_to_one=not latent,
        steps_offset=int(latent),
    )


def _blocks(kind: str, attention: str) -> dict[str, tuple[str, ...]]:
    """Down and up blocks: ``attention``, or a plain one where ``.`` stands, from the finest resolution on."""
    down, up = ("Down", "Up")
    names = {"A": kind, ".": ""}
    return {
        "down_block_types": tuple(f"{names[each]}{down}Block2D" for each in attention),
        "up_block_types": tuple(f"{names[each]}{up}Block2D" for each in reversed(attention)),
    }


def _unet(kind: str, widths: Widths, side: int) -> dict[str, Any]:
    channels = widths.channels
    shared = {"sample_size": side, "layers_per_block": 2, "norm_num_groups": gcd(32, channels)}

    def resolutions(*multipliers: int) -> dict[str, Any]:
        return {"block_out_channels": tuple(channels * each for each in multipliers)}

    def latents(number: int) -> dict[str, Any]:
        return {"in_channels": number, "out_channels": number}

    if kind == "cifar10-ddim":
        time = {"flip_sin_to_cos": False, "freq_shift": 1}
        settings = {"downsample_padding": 0, "norm_eps": 1e-6, "attention_head_dim": None, "dropout": 0.1}
        return shared | resolutions(1, 2, 2, 2) | _blocks("Attn", ".A..") | latents(3) | time | settings
    if kind == "bedroom-ldm4":
        settings = {"attention_head_dim": gcd(32, channels)}
        return shared | resolutions(1, 2, 3, 4) | _blocks("Attn", ".AAA") | latents(3) | settings
    if kind == "church-ldm8":
        heads = gcd(8, channels // 2)
        settings = {"downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift"}
        settings |= {"attn_norm_num_groups": gcd(32, channels), "attention_head_dim": channels // heads}
        blocks = _blocks("Attn", "AAAA.")
        # diffusers' plain block forgets the type of its upsampling; this one is all of that type
        blocks["up_block_types"] = ("ResnetUpsampleBlock2D", *blocks["up_block_types"][1:])
        return shared | resolutions(1, 2, 2, 4, 4) | blocks | latents(4) | settings | {unets.HEADS: heads}
    settings = {"cross_attention_dim": widths.context}
    if kind == "imagenet-ldm4":
        settings |= {"attention_head_dim": 1}  # heads, as diffusers counts them in this class
        return shared | resolutions(1, 2, 3, 5) | _blocks("CrossAttn", ".AAA") | latents(3) | settings
    settings |= {"attention_head_dim": gcd(8, channels // 2)}
    return shared | resolutions(1, 2, 4, 4) | _blocks("CrossAttn", "AAA.") | latents(4) | settings


def unet(kind: str, widths: Widths, side: int | None = None) -> nn.Module:
    """The U-Net, without memory for its parameters (device "meta"); ``side`` in pixels or latents if not published."""
    name = "UNet2DConditionModel" if widths.context else "UNet2DModel"
    with torch.device("meta"):
        return unets.build({"_class_name": name, **_unet(kind, widths, side or SIDES[kind])})


def autoencoder(kind: str, widths: Widths, scale: float, side: int | None = None) -> nn.Module | None:
    """The first stage, without memory for its parameters, or None; latents are divided by ``scale`` to be decoded."""
    if kind == "cifar10-ddim":
        return None
    quantized = widths.codes > 0
    multipliers = (1, 2, 4) if quantized else (1, 2, 4, 4)
    latent = 3 if quantized else 4
    settings = {
        "down_block_types": ("DownEncoderBlock2D",) * len(multipliers),
        "up_block_types": ("UpDecoderBlock2D",) * len(multipliers),
        "block_out_channels": tuple(widths.autoencoder * each for each in multipliers),
        "layers_per_block": 2,
        "latent_channels": latent,
        "norm_num_groups": gcd(32, widths.autoencoder),
        "sample_size": (side or SIDES[kind]) * 2 ** (len(multipliers) - 1),
        "scaling_factor": scale,
    }
    with torch.device("meta"):
        if quantized:
            return VQModel(**settings, num_vq_embeddings=widths.codes, vq_embed_dim=latent)
        return AutoencoderKL(**settings)


def text_encoder(widths: Widths) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]] | None:
    """CLIP's text model (ViT-L/14): the configuration as transformers writes it, and its parameters' shapes."""
    if not widths.vocabulary:
        return None
    width, inner = widths.context, 4 * widths.context
    config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": widths.vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": gcd(12, width),
        "max_position_embeddings": TEXT_POSITIONS,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "projection_dim": width,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "torch_dtype": "float32",
    }
    shapes: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (widths.vocabulary, width),
        "text_model.embeddings.position_embedding.weight": (TEXT_POSITIONS, width),
    }

    def affine(name: str, *shape: int) -> None:
        shapes[f"text_model.{name}.weight"], shapes[f"text_model.{name}.bias"] = shape, shape[:1]

    for layer in range(TEXT_LAYERS):
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            affine(f"encoder.layers.{layer}.self_attn.{name}", width, width)
        affine(f"encoder.layers.{layer}.layer_norm1", width)
        affine(f"encoder.layers.{layer}.mlp.fc1", inner, width)
        affine(f"encoder.layers.{layer}.mlp.fc2", width, inner)
        affine(f"encoder.layers.{layer}.layer_norm2", width)
    affine("final_layer_norm", width)
    return config, shapes


def parameter_counts(kind: str, widths: Mapping[str, Widths] = PUBLISHED) -> dict[str, int]:
    """Parameters of each part of a published system, by the checkpoint's folder; takes no memory for them."""
    size = widths[kind]
    counts = {"unet": sum(each.numel() for each in unet(kind, size).parameters())}
    first_stage = autoencoder(kind, size, 1.0)
    if first_stage is not None:
        counts["vae"] = sum(each.numel() for each in first_stage.parameters())
    if size.classes:
        counts["class_embedder"] = (size.classes + 1) * size.context
    if size.vocabulary:
        counts["text_encoder"] = sum(prod(shape) for shape in text_encoder(size)[1].values())
    return counts
