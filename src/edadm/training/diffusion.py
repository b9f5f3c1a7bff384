"""Train an embedded diffusion model on Fashion-MNIST (DDPM loss, EMA weights, cosine learning rate)."""

import csv
import math
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from edadm.evaluation.garment_classifier import to_float
from edadm.systems import fashion_mnist


def stratified_timesteps(count: int, steps: int, generator: torch.Generator) -> Tensor:
    """``count`` timesteps (int64), one from each of ``count`` equal strata of 0..steps-1: less noisy gradients."""
    offset = torch.rand(1, generator=generator)
    return (((torch.arange(count) + offset) / count) * steps).long().clamp_max(steps - 1)


def target(scheduler: DDIMScheduler, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network predicts: the noise, or the velocity of Salimans & Ho 2022."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(clean, noise, timesteps)
    return noise


def train(
    out: Path,
    folder: Path,
    unet: dict,
    scheduler: dict,
    images_seen: int,
    batch: int,
    learning_rate: float,
    ema_decay: float,
    seed: int,
) -> None:
    """Train and write ``unet/`` (EMA weights), ``scheduler/`` and ``training.csv`` to ``out``.

    ``unet`` and ``scheduler`` are the keyword arguments of UNet2DModel and DDIMScheduler. The learning rate warms
    up over 2 % of the run and falls to 0 along a cosine. ``training.csv`` has the mean loss of every 100 steps.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    clean_all = torch.from_numpy(fashion_mnist.load("train", folder)[0].copy()).permute(0, 3, 1, 2)
    model = UNet2DModel(sample_size=fashion_mnist.SIDE, in_channels=1, out_channels=1, **unet)
    noising = DDIMScheduler(**scheduler)
    average = EMAModel(model.parameters(), decay=ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    steps = images_seen // batch

    def rate(step: int) -> float:
        warm_up = max(1, steps // 50)
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    order = torch.empty(0, dtype=torch.int64)
    losses, rows = [], []
    progress = tqdm(range(steps), desc=f"train {out.name}", unit="step", smoothing=0.02)
    for step in progress:
        if len(order) < batch:
            order = torch.randperm(len(clean_all), generator=generator)
        picked, order = order[:batch], order[batch:]
        clean = to_float(clean_all[picked])
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
        if (step + 1) % 100 == 0 or step + 1 == steps:
            rows.append({"images": (step + 1) * batch, "loss": f"{sum(losses) / len(losses):.6f}"})
            progress.set_postfix(loss=rows[-1]["loss"])
            losses = []
    average.copy_to(model.parameters())
    model.eval().save_pretrained(out / "unet", safe_serialization=True)
    noising.save_pretrained(out / "scheduler")
    with (out / "training.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["images", "loss"])
        writer.writeheader()
        writer.writerows(rows)
