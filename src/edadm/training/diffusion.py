"""Train an embedded diffusion model on Fashion-MNIST (DDPM loss, EMA weights, cosine learning rate)."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from edadm.evaluation.garment_classifier import to_float
from edadm.files import atomic_folder
from edadm.params import DiffusionTraining
from edadm.systems import fashion_mnist
from edadm.systems.class_embedder import ClassEmbedder
from edadm.training import curve
from edadm.training.networks import check_scheduler, trial


def stratified_timesteps(count: int, steps: int, generator: torch.Generator) -> Tensor:
    """``count`` timesteps (int64), one from each of ``count`` equal strata of 0..steps-1: less noisy gradients."""
    where = generator.device
    offset = torch.rand(1, generator=generator, device=where)
    return (((torch.arange(count, device=where) + offset) / count) * steps).long().clamp_max(steps - 1)


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


def descend(
    loss: Tensor,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """One step down the gradient of ``loss``, whose norm over all of ``model`` is clipped to 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()


class Denoiser(nn.Module):
    """What is trained together: a U-Net and, for a class-conditional one, the embedder of its labels."""

    def __init__(self, unet: nn.Module, embedder: ClassEmbedder | None = None) -> None:
        super().__init__()
        self.unet, self.embedder = unet, embedder

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Take x (n, c, h, w) at timesteps (n,), of classes (n,) or None, to what the U-Net predicts."""
        context = () if labels is None else (self.embedder(labels),)
        return self.unet(x, t, *context).sample


class RowOrder:
    """Row numbers of a data set in random order, epoch after epoch."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count, self.generator = count, generator
        self.left = torch.empty(0, dtype=torch.int64, device=generator.device)

    def take(self, batch: int) -> Tensor:
        """The next ``batch`` rows; the end of an epoch that is shorter is left out."""
        if len(self.left) < batch:
            self.left = torch.randperm(self.count, generator=self.generator, device=self.generator.device)
        picked, self.left = self.left[:batch], self.left[batch:]
        return picked


def train_cycle(
    model: Denoiser,
    noising: DDIMScheduler,
    data: Tensor,
    steps: int,
    batch: int,
    learning_rate: float,
    ema_decay: float,
    seed: int,
    name: str,
    labels: Tensor | None = None,
    label_drop: float = 0.0,
) -> list[float]:
    """Train ``model`` for ``steps`` and leave the EMA weights in it; return each step's loss.

    ``data`` is float32 (n, c, h, w), pixels or latents; ``labels`` int64 (n,), of which a share of ``label_drop`` is
    replaced by the null label, for guidance. Optimizer, average and learning rate start anew. ``model`` and ``data``
    are on one device, where all is drawn and computed; on a GPU the network is compiled.
    """
    where = data.device
    generator = torch.Generator(where).manual_seed(seed)
    network = model
    if where.type == "cuda":
        model.to(memory_format=torch.channels_last)
        network = torch.compile(model, mode="reduce-overhead")  # as CUDA graphs: its kernels are shorter than launches
    average = EMAModel(model.parameters(), decay=ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), fused=where.type == "cuda")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine_with_warm_up(steps))
    order = RowOrder(len(data), generator)
    losses = []
    progress = tqdm(range(steps), desc=name, unit="step", smoothing=0.02)
    for _ in progress:
        picked = order.take(batch)
        clean = data[picked]
        noise = torch.randn(clean.shape, generator=generator, device=where)
        timesteps = stratified_timesteps(batch, noising.config.num_train_timesteps, generator)
        noisy = noising.add_noise(clean, noise, timesteps)
        shown = None
        if labels is not None:
            dropped = torch.rand(batch, generator=generator, device=where) < label_drop
            shown = torch.where(dropped, model.embedder.null, labels[picked])
        with torch.autocast(where.type, torch.bfloat16):
            predicted = network(noisy, timesteps, shown)
        loss = (predicted.float() - target(noising, clean, noise, timesteps)).square().mean()
        descend(loss, model, optimizer, schedule)
        average.step(model.parameters())
        losses.append(loss.detach())  # not read at once: a GPU is ahead of its orders only while nobody waits for it
        if len(losses) % 100 == 0:
            progress.set_postfix(loss=f"{torch.stack(losses[-100:]).mean():.4f}")
    average.copy_to(model.parameters())
    return torch.stack(losses).tolist()


def train_cycles(
    model: Denoiser,
    noising: DDIMScheduler,
    data: Tensor,
    training: DiffusionTraining,
    name: str,
    **rest: Any,
) -> list[float]:
    """Warm restarts (Loshchilov & Hutter 2017): a cycle sees ``cycles[i]`` rows and starts from the last one's average.

    ``rest`` goes to ``train_cycle``; returns the losses of all cycles.
    """
    losses, batch = [], training.batch
    rest |= {"learning_rate": training.learning_rate, "ema_decay": training.ema_decay}
    for index, seen in enumerate(training.cycles):
        title, seed = f"train {name}, cycle {index + 1} of {len(training.cycles)}", training.seed + index
        losses += train_cycle(model, noising, data, seen // batch, batch, seed=seed, name=title, **rest)
    return losses


def _network(settings: Mapping[str, Any]) -> Denoiser:
    return Denoiser(UNet2DModel(sample_size=fashion_mnist.SIDE, in_channels=1, out_channels=1, **settings))


def _check(training: DiffusionTraining) -> None:
    """InputError for settings that diffusers refuses."""
    key, side = "train.fashion-ddim", fashion_mnist.SIDE
    with trial(f"{key}.unet"):
        _network(training.unet)(torch.empty(1, 1, side, side), torch.zeros(1, dtype=torch.int64), None)
    check_scheduler(f"{key}.scheduler", training.scheduler)


def train(out: Path, folder: Path, training: DiffusionTraining, device: str = "cpu") -> None:
    """Train on ``device`` and write ``unet/`` (EMA weights), ``scheduler/`` and the loss curve to ``out``, at the end.

    InputError, before that, for missing images, settings that diffusers refuses and an ``out`` that holds something
    else.
    """
    images = to_float(torch.from_numpy(fashion_mnist.load("train", folder)[0].copy()).permute(0, 3, 1, 2))
    _check(training)
    with atomic_folder(out, "unet", "scheduler", *curve.FILES) as made:
        torch.manual_seed(training.seed)
        model = _network(training.unet).to(device)
        noising = DDIMScheduler(**training.scheduler)
        losses = train_cycles(model, noising, images.to(device), training, out.name)
        model.unet.eval().save_pretrained(made / "unet", safe_serialization=True)
        noising.save_pretrained(made / "scheduler")
        curve.write(made, losses, training.batch)
