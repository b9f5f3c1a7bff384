"""Train the autoencoder of a latent system on Fashion-MNIST, and encode the images with it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from edadm.params import AutoencoderTraining
from edadm.training.diffusion import RowOrder, cosine_with_warm_up, descend


def network(shape: Sequence[int], settings: Mapping[str, Any]) -> AutoencoderKL:
    """An untrained autoencoder of images of ``shape`` (c, h, w); ``settings`` are the other arguments."""
    channels, side, _ = shape
    return AutoencoderKL(in_channels=channels, out_channels=channels, sample_size=side, **settings)


def train(images: Tensor, training: AutoencoderTraining) -> tuple[AutoencoderKL, list[float]]:
    """An autoencoder trained on ``images``, float32 (n, c, h, w) in [-1, 1], and each step's loss.

    The loss is the mean absolute error plus ``kl_weight`` times the divergence from the normal distribution per pixel;
    there is no adversary. ``scaling_factor`` becomes 1 / the latents' standard deviation, as in latent diffusion.
    """
    seed, batch = training.seed, training.batch
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    autoencoder = network(images.shape[1:], training.model)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=training.learning_rate, betas=(0.9, 0.99))
    steps = training.seen // batch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine_with_warm_up(steps))
    order = RowOrder(len(images), generator)
    losses = []
    progress = tqdm(range(steps), desc="train autoencoder", unit="step", smoothing=0.02)
    for _ in progress:
        clean = images[order.take(batch)]
        with torch.autocast("cpu", torch.bfloat16):
            posterior = autoencoder.encode(clean).latent_dist
            # drawn by our own generator, as diffusers' sample() is but in float32
            noise = torch.randn(posterior.mean.shape, generator=generator)
            decoded = autoencoder.decode(posterior.mean.float() + posterior.std.float() * noise).sample
        divergence = _divergence(posterior.mean.float(), posterior.logvar.float()).mean() / clean[0].numel()
        loss = F.l1_loss(decoded.float(), clean) + training.kl_weight * divergence
        descend(loss, autoencoder, optimizer, schedule)
        losses.append(loss.item())
        if len(losses) % 100 == 0:
            progress.set_postfix(loss=f"{sum(losses[-100:]) / 100:.4f}")
    autoencoder.eval().requires_grad_(False)
    autoencoder.register_to_config(scaling_factor=1 / encode(autoencoder, images[:10_000], seed).std().item())
    return autoencoder, losses


def _divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Kullback-Leibler divergence of N(mean, exp(logvar)) (n, ...) from the normal distribution, (n,)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, images: Tensor, seed: int, batch: int = 500) -> Tensor:
    """One draw of each image's latent, unscaled: float32 (n, c, h, w) in [-1, 1] to (n, latent channels, h', w')."""
    generator = torch.Generator().manual_seed(seed)
    pieces = tqdm(images.split(batch), desc="encode", unit="batch")
    return torch.cat([autoencoder.encode(piece).latent_dist.sample(generator) for piece in pieces])
