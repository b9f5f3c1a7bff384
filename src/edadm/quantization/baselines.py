"""The calibrators that TDAC is compared with: steps chosen without looking at the network."""

import torch
from torch import Tensor

NORMAL_MEAN, NORMAL_DEVIATION = 0.4, 0.4  # in units of the number of steps


def uniform(steps: int, samples: int, stride: int) -> Tensor:
    """Q-Diffusion's counts, (steps,) int64: every ``stride``-th step gets equally many, the last of these the rest.

    The first step (the noisiest) is always one of them. With fewer samples than chosen steps all would fall on the
    last one; they are then spread evenly over the chosen steps, one each.
    """
    chosen = torch.arange(0, steps, stride)
    counts = torch.zeros(steps, dtype=torch.int64)
    if samples < len(chosen):
        counts[chosen[torch.arange(samples) * len(chosen) // max(samples, 1)]] = 1
        return counts
    counts[chosen] = samples // len(chosen)
    counts[chosen[-1]] += samples % len(chosen)
    return counts


def normal(steps: int, samples: int, generator: torch.Generator) -> Tensor:
    """PTQ4DM's counts, (steps,) int64, in the form in which EDA-DM's authors compared with it (method.md A.9).

    ``samples`` values of N(0.4, 0.4) are stretched so that the smallest is 0 and the largest ``steps``, and rounded
    down. They are diffusion times, 0 the image and ``steps`` - 1 the noise, so step i in sampling order (0 the
    noisiest) is time ``steps`` - 1 - i.
    """
    values = NORMAL_MEAN + NORMAL_DEVIATION * torch.randn(samples, generator=generator, dtype=torch.float64)
    spread = values.max() - values.min() if samples else 0
    stretched = (values - values.min()) / spread if spread > 0 else values  # one value alone stays where it fell
    times = (stretched * steps).floor().long().clamp(0, steps - 1)
    return torch.bincount(steps - 1 - times, minlength=steps)
