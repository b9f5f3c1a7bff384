"""Draw images with an engine, in shards: image k depends on seed k alone."""

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from edadm.evaluation import samples
from edadm.evaluation.shards import Shards
from edadm.params import SamplerParams
from edadm.systems import samplers, system
from edadm.systems.system import System


def to_uint8(images: Tensor) -> np.ndarray:
    """Images (n, c, h, w) in [-1, 1] as uint8 (n, h, w, c), rounded to nearest."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def draw(
    network: samplers.Network | samplers.ConditionalNetwork, drawn: System, sampler: SamplerParams, seeds: range
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """What the sampler yields from the noise of ``seeds``; the last x is what ``drawn.decode`` makes images of."""
    noise, generators = system.noise(seeds, drawn.shape)
    steps = system.step_list(drawn.diffusion, sampler)
    network = samplers.conditioned(network, drawn.contexts(seeds, sampler.guidance), sampler.guidance)
    if sampler.name == "plms":
        return samplers.plms(network, noise, drawn.diffusion, steps)

    def fresh() -> Tensor:
        return torch.stack([torch.randn(drawn.shape, generator=generator) for generator in generators])

    return samplers.ddim(network, noise, drawn.diffusion, steps, sampler.eta, fresh)


@torch.no_grad()
def make_shard(
    network: samplers.Network | samplers.ConditionalNetwork,
    drawn: System,
    sampler: SamplerParams,
    shards: Shards,
    number: int,
) -> None:
    """Draw the images of a shard and write it, with their labels or captions if they have any."""
    path, seeds, batch = shards.path(number), shards.seeds[number], shards.sampling.batch
    images = []
    for start in tqdm(range(seeds.start, seeds.stop, batch), desc=f"samples: {path.stem}", unit="batch"):
        steps = draw(network, drawn, sampler, range(start, min(start + batch, seeds.stop)))
        _, _, last = deque(steps, maxlen=1)[0]
        images.append(to_uint8(drawn.decode(last)))
    labels, prompts = drawn.labels(seeds), drawn.prompts(seeds)
    samples.write_shard(
        path,
        np.concatenate(images),
        np.array(seeds),
        shards.mark,
        None if labels is None else labels.numpy(),
        None if prompts is None else np.array(prompts),
    )
