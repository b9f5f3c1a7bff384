"""Train an embedded diffusion model on Fashion-MNIST (DDPM loss, EMA weights, cosine learning rate)."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from edadm.evaluation.garment_classifier import to_float
from edadm.systems import fashion_mnist
from edadm.training import curve


def stratified_timesteps(count: int, steps: int, generator: torch.Generator) -> Tensor:
    """``count`` timesteps (int64), one from each of ``count`` equal strata of 0..steps-1: less noisy gradients."""
    offset = torch.rand(1, generator=generator)
    return (((torch.arange(count) + offset) / count) * steps).long().clamp_max(steps - 1)


def target(scheduler: DDIMScheduler, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network predicts: the noise, or the velocity of Salimans & Ho 2022."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(clean, noise, timesteps)
    return noise


def cosine_with_warm_up(steps: int) -> Callable[[int], float]:
    """The learning rate's factor at each of ``steps``: up linearly over 2 % of them, then to 0 along a cosine."""
    warm_up = max(1, steps // 50)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return factor


def train_cycle(
    model: UNet2DModel,
    noising: DDIMScheduler,
    images: Tensor,
    steps: int,
    batch: int,
    learning_rate: float,
    ema_decay: float,
    seed: int,
    name: str,
) -> list[float]:
    """Train ``model`` for ``steps`` and leave the EMA weights in it; return each step's loss.

    ``images`` is uint8 (n, c, h, w). Optimizer, average and learning rate start anew.
    """
    generator = torch.Generator().manual_seed(seed)
    average = EMAModel(model.parameters(), decay=ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine_with_warm_up(steps))
    order = torch.empty(0, dtype=torch.int64)
    losses = []
    progress = tqdm(range(steps), desc=name, unit="step", smoothing=0.02)
    for _ in progress:
        if len(order) < batch:
            order = torch.randperm(len(images), generator=generator)
        picked, order = order[:batch], order[batch:]
        clean = to_float(images[picked])
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = stratified_timesteps(batch, noising.config.num_train_timesteps, generator)
        noisy = noising.add_noise(clean, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = model(noisy, timesteps).sample
        loss = (predicted.float() - target(noising, clean, noise, timesteps)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.step(model.parameters())
        losses.append(loss.item())
        if len(losses) % 100 == 0:
            progress.set_postfix(loss=f"{sum(losses[-100:]) / 100:.4f}")
    average.copy_to(model.parameters())
    return losses


def train(
    out: Path,
    folder: Path,
    unet: dict,
    scheduler: dict,
    cycles: list[int],
    batch: int,
    learning_rate: float,
    ema_decay: float,
    seed: int,
) -> None:
    """Train and write ``unet/`` (EMA weights), ``scheduler/`` and the loss curve to ``out``.

    ``unet`` and ``scheduler`` are the keyword arguments of UNet2DModel and DDIMScheduler. ``cycles`` are the images
    seen in each cycle of warm restarts (Loshchilov & Hutter 2017); a cycle starts from the average of the one before.
    """
    torch.manual_seed(seed)
    images = torch.from_numpy(fashion_mnist.load("train", folder)[0].copy()).permute(0, 3, 1, 2)
    model = UNet2DModel(sample_size=fashion_mnist.SIDE, in_channels=1, out_channels=1, **unet)
    noising = DDIMScheduler(**scheduler)
    losses = []
    for index, seen in enumerate(cycles):
        name = f"train {out.name}, cycle {index + 1} of {len(cycles)}"
        settings = {"batch": batch, "learning_rate": learning_rate, "ema_decay": ema_decay, "seed": seed + index}
        losses += train_cycle(model, noising, images, seen // batch, **settings, name=name)
    model.eval().save_pretrained(out / "unet", safe_serialization=True)
    noising.save_pretrained(out / "scheduler")
    curve.write(out, losses, batch)
