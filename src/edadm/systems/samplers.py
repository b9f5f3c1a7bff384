"""Samplers as plain functions: from noise to an image, calling the network once a step.

A network is any callable ``(x, t) -> output`` with x (n, c, h, w) float32 and t (n,) int64.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from edadm.errors import InputError

Network = Callable[[Tensor, Tensor], Tensor]


def timesteps(spacing: str, steps: int, train_steps: int) -> list[int]:
    """Descending training timesteps to visit.

    ``leading`` and ``trailing`` are those of diffusers (table 2 of Lin et al. 2023, with no offset), ``quadratic`` is
    the squared spacing of DDIM's CIFAR-10 runs (Song et al. 2021, section D.3: up to 0.8 of the training steps).
    """
    if not 1 <= steps <= train_steps:
        raise InputError(f"sampler.steps: {steps} is not between 1 and {train_steps}")
    if spacing == "leading":
        chosen = [index * (train_steps // steps) for index in range(steps)]
    elif spacing == "trailing":
        chosen = [round(train_steps - index * train_steps / steps) - 1 for index in range(steps)][::-1]
    elif spacing == "quadratic":
        ends = torch.linspace(0, (0.8 * train_steps) ** 0.5, steps, dtype=torch.float64)
        chosen = ends.square().long().tolist()
    else:
        raise InputError(f"sampler.spacing: {spacing!r} is not one of leading, trailing, quadratic")
    return chosen[::-1]


@dataclass(frozen=True)
class Diffusion:
    """What a sampler needs to know of the training: ᾱ per timestep, what is predicted, and how x0 is bounded."""

    alphas_cumprod: Tensor  # (train_steps,) float64
    prediction: str  # "epsilon" or "v_prediction"
    clip: bool  # bound the predicted x0 to [-1, 1]
    final_alpha: float  # ᾱ after the last step

    @classmethod
    def from_scheduler(cls, scheduler: DDIMScheduler) -> "Diffusion":
        """The training's side of a diffusers scheduler."""
        config = scheduler.config
        if config.prediction_type not in ("epsilon", "v_prediction"):
            raise InputError(f"scheduler: prediction_type {config.prediction_type!r} is not supported")
        alphas = scheduler.alphas_cumprod.double()
        final = 1.0 if config.set_alpha_to_one else alphas[0].item()
        return cls(alphas, config.prediction_type, config.clip_sample, final)

    def clean_and_noise(self, x: Tensor, output: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """Predicted x0 and noise of x (n, c, h, w) at ᾱ = ``alpha``."""
        signal, sigma = alpha**0.5, (1 - alpha) ** 0.5
        epsilon = self.prediction == "epsilon"
        clean = (x - sigma * output) / signal if epsilon else signal * x - sigma * output
        if self.clip:
            clean = clean.clamp(-1, 1)
        noise = output if epsilon and not self.clip else (x - signal * clean) / sigma
        return clean, noise


def ddim(
    network: Network,
    noise: Tensor,
    diffusion: Diffusion,
    steps: list[int],
    eta: float = 0.0,
    fresh_noise: Callable[[], Tensor] | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """DDIM (Song et al. 2021, formula 12); yields ``(timestep, x before the step, x after it)`` for each step.

    The last x is the sample. ``steps`` descend; ``fresh_noise`` gives noise shaped like x and is called once a step
    when eta > 0. Two equal timesteps in a row leave x as it is.
    """
    alphas = diffusion.alphas_cumprod
    x = noise
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        alpha = alphas[step].item()
        alpha_next = diffusion.final_alpha if following is None else alphas[following].item()
        output = network(x, torch.full((len(x),), step, dtype=torch.int64))
        clean, direction = diffusion.clean_and_noise(x, output, alpha)
        sigma = eta * ((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)) ** 0.5
        after = alpha_next**0.5 * clean + (1 - alpha_next - sigma**2) ** 0.5 * direction
        if sigma > 0:
            after = after + sigma * fresh_noise()
        yield step, x, after
        x = after
