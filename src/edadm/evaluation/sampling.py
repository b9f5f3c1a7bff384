"""Draw images with an engine, in shards: image k depends on seed k alone, and a stopped run goes on."""

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from edadm.errors import InputError
from edadm.evaluation import samples
from edadm.files import atomic_folder, sha256
from edadm.params import SamplerParams, SamplingParams
from edadm.systems import class_embedder, samplers, system
from edadm.systems.system import System


def fingerprint(
    engine: Path, checkpoint: Path, sampler: SamplerParams, sampling: SamplingParams, settings: dict
) -> str:
    """What a shard's bytes depend on: engine, the checkpoint but for its U-Net, sampler, seeds, batch, the code."""
    parts = [json.dumps([asdict(sampler), sampling.seed, sampling.batch, sampling.shard, settings], sort_keys=True)]
    files = sorted(path for path in engine.rglob("*") if path.is_file())
    parts += [sha256(path) for path in files if path.name not in ("engine.json", "size.json")]
    parts += [sha256(path) for path in sorted(checkpoint.rglob("*.*")) if path.parent.name != "unet"]
    sources = [Path(module.__file__) for module in (class_embedder, samplers, system)]
    parts += [sha256(path) for path in (*sources, sources[-1].with_name("text.py"))]
    parts += [sha256(Path(__file__)), torch.__version__]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


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


def shard_seeds(sampling: SamplingParams, images: int) -> list[range]:
    """The seeds of each shard of a set of ``images``."""
    end = sampling.seed + images
    return [range(start, min(start + sampling.shard, end)) for start in range(sampling.seed, end, sampling.shard)]


@torch.no_grad()
def make_shard(
    draw_batch: Callable[[range], Tensor], drawn: System, seeds: range, batch: int, path: Path, mark: str
) -> None:
    """Draw the images of ``seeds`` and write them to ``path``, with their labels or captions if they have any."""
    images = []
    starts = range(seeds.start, seeds.stop, batch)
    for start in tqdm(starts, desc=f"samples: {path.stem}", unit="batch"):
        images.append(to_uint8(draw_batch(range(start, min(start + batch, seeds.stop)))))
    labels, prompts = drawn.labels(seeds), drawn.prompts(seeds)
    samples.write_shard(
        path,
        np.concatenate(images),
        np.array(seeds),
        mark,
        None if labels is None else labels.numpy(),
        None if prompts is None else np.array(prompts),
    )


def run(
    load_network: Callable[[], samplers.Network | samplers.ConditionalNetwork],
    drawn: System,
    sampler: SamplerParams,
    sampling: SamplingParams,
    images: int,
    mark: str,
    scratch: Path,
    out: Path,
    only: tuple[int, int] | None = None,
) -> None:
    """Make the shards that ``scratch`` lacks and move all to ``out``; with ``only`` = (i, n), make just shard i of n.

    A shard counts as there when its fingerprint is ``mark`` and its seeds are right. The engine is loaded only when
    something has to be drawn.
    """
    shards = shard_seeds(sampling, images)
    if only is not None and (only[1] != len(shards) or not 0 <= only[0] < len(shards)):
        raise InputError(f"--shard {only[0]}/{only[1]}: this set has {len(shards)} shards, numbered from 0")
    chosen = range(len(shards)) if only is None else [only[0]]
    paths = {index: scratch / f"shard-{index:04d}.npz" for index in chosen}
    missing = [i for i, path in paths.items() if not samples.is_shard(path, np.array(shards[i]), mark)]
    if missing:
        network = load_network()

        def draw_batch(seeds: range) -> Tensor:
            last = deque(draw(network, drawn, sampler, seeds), maxlen=1)
            return drawn.decode(last[0][2])

        for index in missing:
            make_shard(draw_batch, drawn, shards[index], sampling.batch, paths[index], mark)
    if only is None:
        with atomic_folder(out) as folder:
            for path in paths.values():
                shutil.copyfile(path, folder / path.name)
        shutil.rmtree(scratch)
