"""The shards of a set of images while it is made: which there are, which are missing, and when all are there, the set.

Nothing here needs PyTorch, so that what has only to be gathered is gathered at once.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from edadm.errors import InputError
from edadm.evaluation import samples
from edadm.files import atomic_folder, sha256
from edadm.params import SamplerParams, SamplingParams

PACKAGE = Path(__file__).parents[1]
SOURCES = (
    "evaluation/sampling.py",
    "systems/class_embedder.py",
    "systems/samplers.py",
    "systems/system.py",
    "systems/text.py",
)


def fingerprint(
    engine: Path, checkpoint: Path, sampler: SamplerParams, sampling: SamplingParams, settings: dict
) -> str:
    """What a shard's bytes depend on: engine, the checkpoint but for its U-Net, sampler, seeds, batch, the code."""
    parts = [json.dumps([asdict(sampler), sampling.seed, sampling.batch, sampling.shard, settings], sort_keys=True)]
    files = sorted(path for path in engine.rglob("*") if path.is_file())
    parts += [sha256(path) for path in files if path.name not in ("engine.json", "size.json")]
    parts += [sha256(path) for path in sorted(checkpoint.rglob("*.*")) if path.parent.name != "unet"]
    parts += [sha256(PACKAGE / name) for name in SOURCES] + [version("torch")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Shards:
    """The shards of a protocol's images, made by what ``mark`` stands for, in ``scratch``."""

    sampling: SamplingParams
    protocol: str
    mark: str
    scratch: Path

    @property
    def seeds(self) -> list[range]:
        """The seeds of each shard."""
        every, size = self.sampling.seeds(self.protocol), self.sampling.shard
        return [every[start : start + size] for start in range(0, len(every), size)]

    def path(self, index: int) -> Path:
        """Where a shard is kept until all are there."""
        return self.scratch / f"shard-{index:04d}.npz"

    def missing(self, shard: str | None = None) -> list[int]:
        """The numbers of the shards to be made; with ``shard`` = "I/N", of shard I alone.

        A shard counts as there when its fingerprint is ``mark`` and its seeds are right. InputError when ``shard`` is
        not a shard of this set.
        """
        seeds = self.seeds
        chosen = range(len(seeds)) if shard is None else [self._number(shard)]
        return [index for index in chosen if not samples.is_shard(self.path(index), np.array(seeds[index]), self.mark)]

    def _number(self, shard: str) -> int:
        index, _, count = shard.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            raise InputError(f"--shard {shard}: give it as I/N, as in 0/2")
        number = len(self.seeds)
        if int(count) != number or int(index) >= number:
            raise InputError(f"--shard {shard}: this set has {number} shards, numbered from 0")
        return int(index)

    def gather(self, out: Path) -> None:
        """Move all shards to the folder ``out``."""
        with atomic_folder(out) as folder:
            for index in range(len(self.seeds)):
                shutil.copyfile(self.path(index), folder / self.path(index).name)
        shutil.rmtree(self.scratch)
