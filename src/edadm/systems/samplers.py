"""Samplers as plain functions: from noise to an image or latent, yielding every call of the network.

A network is any callable ``(x, t) -> output`` with x (n, c, h, w) float32 and t (n,) int64; a conditional one takes
the context (n, tokens, width) float32 as well, and ``conditioned`` makes it a network of (x, t).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from edadm.errors import InputError

Network = Callable[[Tensor, Tensor], Tensor]
ConditionalNetwork = Callable[[Tensor, Tensor, Tensor], Tensor]


def conditioned(network: Network | ConditionalNetwork, contexts: tuple[Tensor, ...], guidance: float = 1.0) -> Network:
    """``network`` for given contexts: of no, the conditional, or the unconditional and the conditional rows.

    Two are classifier-free guidance (Ho & Salimans 2022), ``u + guidance (c - u)``, in one call of the doubled batch,
    the unconditional half first.
    """
    if not contexts:
        return network
    context, halves = torch.cat(contexts), len(contexts)

    def call(x: Tensor, t: Tensor) -> Tensor:
        output = network(torch.cat([x] * halves), torch.cat([t] * halves), context)
        if halves == 1:
            return output
        unconditional, conditional = output.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    return call


def timesteps(spacing: str, steps: int, train_steps: int, offset: int = 0) -> list[int]:
    """Descending training timesteps to visit.

    ``leading`` and ``trailing`` are those of diffusers (table 2 of Lin et al. 2023); ``offset`` is added to the
    leading ones: 1 in latent diffusion. ``quadratic`` is the squared spacing of DDIM's CIFAR-10 runs (Song et al.
    2021, section D.3: up to 0.8 of the training steps).
    """
    if not 1 <= steps <= train_steps:
        raise InputError(f"sampler.steps: {steps} is not between 1 and {train_steps}")
    if spacing == "leading":
        chosen = [index * (train_steps // steps) + offset for index in range(steps)]
        if chosen[-1] >= train_steps:
            raise InputError(f"sampler.steps: {steps} steps from {offset} on leave the {train_steps} training steps")
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
    offset: int  # of the leading timesteps

    @classmethod
    def from_scheduler(cls, scheduler: DDIMScheduler) -> "Diffusion":
        """The training's side of a diffusers scheduler."""
        config = scheduler.config
        if config.prediction_type not in ("epsilon", "v_prediction"):
            raise InputError(f"scheduler: prediction_type {config.prediction_type!r} is not supported")
        alphas = scheduler.alphas_cumprod.double()
        final = 1.0 if config.set_alpha_to_one else alphas[0].item()
        return cls(alphas, config.prediction_type, config.clip_sample, final, config.steps_offset)

    def alpha(self, step: int | None) -> float:
        """ᾱ at a timestep, or after the last one (None)."""
        return self.final_alpha if step is None else self.alphas_cumprod[step].item()

    def clean_and_noise(self, x: Tensor, output: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """Predicted x0 and noise of x (n, c, h, w) at ᾱ = ``alpha``."""
        signal, sigma = alpha**0.5, (1 - alpha) ** 0.5
        epsilon = self.prediction == "epsilon"
        clean = (x - sigma * output) / signal if epsilon else signal * x - sigma * output
        if self.clip:
            clean = clean.clamp(-1, 1)
        noise = output if epsilon and not self.clip else (x - signal * clean) / sigma
        return clean, noise


def _constant(x: Tensor, step: int) -> Tensor:
    return torch.full((len(x),), step, dtype=torch.int64)


def _with_following(steps: list[int]) -> Iterator[tuple[int, int | None]]:
    return zip(steps, [*steps[1:], None], strict=True)


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
    x = noise
    for step, following in _with_following(steps):
        alpha, alpha_next = diffusion.alpha(step), diffusion.alpha(following)
        clean, direction = diffusion.clean_and_noise(x, network(x, _constant(x, step)), alpha)
        sigma = eta * ((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)) ** 0.5
        after = alpha_next**0.5 * clean + (1 - alpha_next - sigma**2) ** 0.5 * direction
        if sigma > 0:
            after = after + sigma * fresh_noise()
        yield step, x, after
        x = after


# Adams-Bashforth: weights of the newest output, the one before, … for 1, 2, 3 and 4 known outputs
MULTISTEP = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(
    network: Network, noise: Tensor, diffusion: Diffusion, steps: list[int]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """PLMS (pseudo linear multistep, Liu et al. 2022, as latent diffusion and PNDMScheduler do it).

    Yields ``(timestep, network input, x after the call)`` for each call of the network: one more than steps, since the
    first step looks at its own end and is then made again with the mean of both outputs. The last x is the sample.
    """
    x, outputs = noise, []
    for step, following in _with_following(steps):
        outputs = [network(x, _constant(x, step)), *outputs[:3]]

        def moved(output: Tensor, x: Tensor = x, step: int = step, following: int | None = following) -> Tensor:
            clean, direction = diffusion.clean_and_noise(x, output, diffusion.alpha(step))
            alpha = diffusion.alpha(following)
            return alpha**0.5 * clean + (1 - alpha) ** 0.5 * direction

        after = moved(sum(weight * output for weight, output in zip(MULTISTEP[len(outputs) - 1], outputs, strict=True)))
        yield step, x, after
        if len(outputs) == 1 and following is not None:
            end = network(after, _constant(x, following))
            corrected = moved((outputs[0] + end) / 2)
            yield following, after, corrected
            after = corrected
        x = after
