"""Train a latent, class-conditional system on Fashion-MNIST: first the autoencoder, then the U-Net on its latents."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from edadm.evaluation.garment_classifier import to_float
from edadm.files import atomic_folder
from edadm.params import LatentTraining
from edadm.systems import class_embedder, fashion_mnist
from edadm.systems.class_embedder import ClassEmbedder
from edadm.training import autoencoder as first_stage
from edadm.training import curve
from edadm.training.diffusion import Denoiser, train_cycles
from edadm.training.networks import check_scheduler, trial


def _network(shape: Sequence[int], settings: Mapping[str, Any]) -> Denoiser:
    """An untrained U-Net of latents of ``shape`` (c, h, w), with the embedder of its labels."""
    channels, side, _ = shape
    model = UNet2DConditionModel(sample_size=side, in_channels=channels, out_channels=channels, **settings)
    return Denoiser(model, ClassEmbedder(len(fashion_mnist.CLASSES), model.config.cross_attention_dim))


def _check(training: LatentTraining) -> None:
    """InputError for settings that diffusers refuses."""
    key, shape = "train.fashion-ldm", (1, fashion_mnist.SIDE, fashion_mnist.SIDE)
    with trial(f"{key}.autoencoder.model"):
        image = torch.empty(1, *shape)
        autoencoder = first_stage.network(shape, training.autoencoder.model)
        latent = autoencoder.encode(image).latent_dist.mean
        autoencoder.decode(latent).sample - image  # as the loss, which needs the same size
    with trial(f"{key}.unet"):
        nothing = torch.zeros(1, dtype=torch.int64)
        _network(latent.shape[1:], training.unet)(latent, nothing, nothing)
    check_scheduler(f"{key}.scheduler", training.scheduler)


def train(out: Path, folder: Path, training: LatentTraining, device: str = "cpu") -> None:
    """Train and write ``vae/``, ``unet/``, ``class_embedder/`` (EMA weights), ``scheduler/`` and curves to ``out``.

    The U-Net is trained on ``device``, the autoencoder on the CPU; ``out`` is written at the end. InputError, before
    all that, for missing images, settings that diffusers refuses and an ``out`` that holds something else.
    """
    pixels, labels = (torch.from_numpy(array.copy()) for array in fashion_mnist.load("train", folder))
    images = to_float(pixels.permute(0, 3, 1, 2))
    _check(training)
    first = training.autoencoder
    with atomic_folder(out, "vae", "unet", "class_embedder", "scheduler", *curve.FILES) as made:
        vae, losses = first_stage.train(images, first)
        vae.save_pretrained(made / "vae", safe_serialization=True)
        curve.write(made / "vae", losses, first.batch)
        latents = first_stage.encode(vae, images, first.seed) * vae.config.scaling_factor
        torch.manual_seed(training.seed)
        denoiser = _network(latents.shape[1:], training.unet).to(device)
        noising = DDIMScheduler(**training.scheduler)
        conditions = {"labels": labels.long().to(device), "label_drop": training.label_drop}
        losses = train_cycles(denoiser, noising, latents.to(device), training, out.name, **conditions)
        denoiser.unet.eval().save_pretrained(made / "unet", safe_serialization=True)
        class_embedder.save(denoiser.embedder, made / "class_embedder")
        noising.save_pretrained(made / "scheduler")
        curve.write(made, losses, training.batch)
