"""Small random pipelines of every layout, as diffusers saves them: no download, milliseconds to run."""

import json
from pathlib import Path

import tiny
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTH = 16  # of the text encoders
PROMPTS = ["a boat", "two dogs", "a tree", "the moon", "water"]  # spelt, they must fit into the encoder


def tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's byte pairs with letters only: every word is spelt."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)


def text_config(projection: int = WIDTH) -> CLIPTextConfig:
    """Two layers of width ``WIDTH``."""
    return CLIPTextConfig(
        vocab_size=54,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def text_unet(**changes: object) -> UNet2DConditionModel:
    """A U-Net of 8x8 latents with cross-attention to the text encoder."""
    torch.manual_seed(0)
    settings = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**settings | changes).eval().requires_grad_(False)


def autoencoder() -> AutoencoderKL:
    """From 16x16x3 to 8x8x4."""
    torch.manual_seed(1)
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        sample_size=16,
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    return model.eval().requires_grad_(False)


def sd1(folder: Path) -> Path:
    """Stable Diffusion 1.x: noise prediction with PNDM, which calls the U-Net once more than it has steps."""
    return _stable_diffusion(folder, PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1))


def sd2(folder: Path) -> Path:
    """Stable Diffusion 2.x: velocity prediction, linear projections, heads by level."""
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return _stable_diffusion(folder, scheduler, use_linear_projection=True, attention_head_dim=(1, 2))


def _stable_diffusion(folder: Path, scheduler: object, **changes: object) -> Path:
    torch.manual_seed(2)
    pipeline = StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text_config()),
        tokenizer=tokenizer(folder.with_name(f"{folder.name}-words")),
        unet=text_unet(**changes),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def sdxl(folder: Path) -> Path:
    """SDXL: two text encoders, pooled text and image sizes as added conditions, Euler with fractional steps."""
    torch.manual_seed(3)
    unet = text_unet(
        cross_attention_dim=2 * WIDTH,
        attention_head_dim=(1, 2),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=WIDTH + 6 * 4,
    )
    words = folder.with_name(f"{folder.name}-words")
    pipeline = StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text_config()),
        text_encoder_2=CLIPTextModelWithProjection(text_config()),
        tokenizer=tokenizer(words / "one"),
        tokenizer_2=tokenizer(words / "two"),
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="linspace"),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def ddim(folder: Path) -> Path:
    """Unconditional, in pixels."""
    DDIMPipeline(tiny.unet(), DDIMScheduler()).save_pretrained(folder)
    return folder


def labelled(folder: Path) -> Path:
    """Class-conditional in pixels: ``num_class_embeds``, for which diffusers has no pipeline."""
    torch.manual_seed(4)
    settings = {key: value for key, value in tiny.unet().config.items() if not key.startswith("_")}
    unet = UNet2DModel(**settings | {"num_class_embeds": 3})
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(folder)
    return folder
