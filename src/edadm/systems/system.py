"""A system: a checkpoint folder in diffusers layout, with what is needed to draw images from its U-Net."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel
from safetensors import SafetensorError
from torch import Tensor, nn

from edadm.errors import InputError
from edadm.files import atomic_folder, sha256
from edadm.params import CheckpointParams, SamplerParams
from edadm.systems import samplers

WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


def fetch_checkpoint(params: CheckpointParams, out: Path) -> None:
    """Copy the checkpoint folder ``params.source`` to ``out``, once the hash of its weights is right."""
    source = Path(params.source)
    weights = source / WEIGHTS
    if not weights.is_file():
        raise InputError(f"checkpoint.source: {source} holds no {WEIGHTS}")
    found = sha256(weights)
    if found != params.sha256:
        raise InputError(
            f"{weights}: its SHA-256 is {found}, but params.yaml expects {params.sha256}; "
            "restore the file, or change checkpoint.sha256 if the new weights are meant"
        )
    with atomic_folder(out) as folder:
        for part in ("unet", "scheduler"):
            shutil.copytree(source / part, folder / part)


@dataclass(frozen=True)
class System:
    """A loaded checkpoint: its float U-Net and its diffusion process."""

    unet: nn.Module
    diffusion: samplers.Diffusion
    shape: tuple[int, int, int]  # of what the sampler works on


def load_diffusion(checkpoint: Path) -> samplers.Diffusion:
    """The diffusion process of a checkpoint folder, from its scheduler's configuration."""
    _require(checkpoint, Path("scheduler") / "scheduler_config.json")
    return samplers.Diffusion.from_scheduler(DDIMScheduler.from_pretrained(checkpoint / "scheduler"))


def _require(checkpoint: Path, *files: Path) -> None:
    """InputError unless the files are there: diffusers would look for a missing folder on the model hub."""
    for file in files:
        if not (checkpoint / file).is_file():
            raise InputError(f"{checkpoint}: not a checkpoint in diffusers layout, it has no {file}")


def load(checkpoint: Path) -> System:
    """Load a checkpoint folder; InputError when something is missing or unreadable."""
    checkpoint = Path(checkpoint)
    _require(checkpoint, Path("unet") / "config.json", WEIGHTS)
    try:
        unet = UNet2DModel.from_pretrained(checkpoint / "unet", low_cpu_mem_usage=False, local_files_only=True).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{checkpoint}: diffusers cannot load the U-Net ({reason})") from error
    side = unet.config.sample_size
    return System(unet.requires_grad_(False), load_diffusion(checkpoint), (unet.config.in_channels, side, side))


def step_list(diffusion: samplers.Diffusion, sampler: SamplerParams) -> list[int]:
    """The timesteps that the sampler visits, in order."""
    return samplers.timesteps(sampler.spacing, sampler.steps, len(diffusion.alphas_cumprod))


def noise(seeds: range, shape: tuple[int, int, int]) -> tuple[Tensor, list[torch.Generator]]:
    """Start noise (n, c, h, w), each image from a generator of its own seed, and the generators, to go on with."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]), generators
