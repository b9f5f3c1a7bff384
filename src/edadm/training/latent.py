"""Train a latent, class-conditional system on Fashion-MNIST: first the autoencoder, then the U-Net on its latents."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from edadm.evaluation.garment_classifier import to_float
from edadm.systems import class_embedder, fashion_mnist
from edadm.systems.class_embedder import ClassEmbedder
from edadm.training import autoencoder as first_stage
from edadm.training import curve
from edadm.training.diffusion import Denoiser, train_cycles


def train(
    out: Path,
    folder: Path,
    autoencoder: dict,
    unet: dict,
    scheduler: dict,
    cycles: list[int],
    batch: int,
    learning_rate: float,
    ema_decay: float,
    label_drop: float,
    seed: int,
    device: str = "cpu",
) -> None:
    """Train and write ``vae/``, ``unet/``, ``class_embedder/`` (EMA weights), ``scheduler/`` and curves to ``out``.

    The U-Net is trained on ``device``, the autoencoder on the CPU. ``autoencoder`` holds the arguments of
    ``autoencoder.train``, ``unet`` and ``scheduler`` those of UNet2DConditionModel and DDIMScheduler. ``label_drop``
    is the share of images that are shown without their label.
    """
    pixels, labels = (torch.from_numpy(array.copy()) for array in fashion_mnist.load("train", folder))
    images = to_float(pixels.permute(0, 3, 1, 2))
    vae, losses = first_stage.train(images, **autoencoder)
    vae.save_pretrained(out / "vae", safe_serialization=True)
    curve.write(out / "vae", losses, autoencoder["batch"])
    latents = first_stage.encode(vae, images, autoencoder["seed"]) * vae.config.scaling_factor
    torch.manual_seed(seed)
    channels, side = latents.shape[1:3]
    model = UNet2DConditionModel(sample_size=side, in_channels=channels, out_channels=channels, **unet)
    embedder = ClassEmbedder(len(fashion_mnist.CLASSES), unet["cross_attention_dim"])
    noising = DDIMScheduler(**scheduler)
    settings = {"batch": batch, "learning_rate": learning_rate, "ema_decay": ema_decay, "seed": seed}
    conditions = {"labels": labels.long().to(device), "label_drop": label_drop}
    denoiser = Denoiser(model, embedder).to(device)
    losses = train_cycles(denoiser, noising, latents.to(device), cycles, name=out.name, **settings, **conditions)
    model.eval().save_pretrained(out / "unet", safe_serialization=True)
    class_embedder.save(embedder, out / "class_embedder")
    noising.save_pretrained(out / "scheduler")
    curve.write(out, losses, batch)
