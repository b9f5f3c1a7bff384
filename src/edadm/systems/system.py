"""A system: a checkpoint folder (folder.py) with what is needed to draw images from its U-Net."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edadm import unets
from edadm.errors import InputError
from edadm.files import read_json
from edadm.params import SamplerParams
from edadm.systems import class_embedder, samplers
from edadm.systems.class_embedder import ClassEmbedder
from edadm.systems.folder import AUTOENCODER_WEIGHTS, WEIGHTS

if TYPE_CHECKING:
    from edadm.systems.text import TextEncoder


@dataclass(frozen=True)
class System:
    """A checkpoint but for its U-Net: from seeds to the network's inputs, and from what is sampled to images."""

    shape: tuple[int, int, int]  # of what the sampler works on: pixels or latents
    diffusion: samplers.Diffusion
    embedder: "ClassEmbedder | TextEncoder | None"  # of a class- or text-conditional system
    decoder: Callable[[Tensor], Tensor] | None  # of a latent system: a latent (1, c, h, w) / scale to its image
    scale: float = 1.0

    def labels(self, seeds: range) -> Tensor | None:
        """The class (n,) int64 that each seed shows, None without classes: any ``classes`` seeds in a row show all."""
        return self.embedder.labels(seeds) if isinstance(self.embedder, ClassEmbedder) else None

    def prompts(self, seeds: range) -> list[str] | None:
        """The prompt that each seed shows, None without a text encoder."""
        return self.embedder.shown(seeds) if self._reads else None

    def check_apart(self, one: range, other: range) -> None:
        """InputError when seeds of the two ranges show the same prompt: calibrated on what is evaluated."""
        if self._reads:
            self.embedder.check_apart(one, other)

    @property
    def _reads(self) -> bool:
        """Whether the condition is a text."""
        return not isinstance(self.embedder, ClassEmbedder | None)

    def contexts(self, seeds: range, guidance: float) -> tuple[Tensor, ...]:
        """What ``samplers.conditioned`` takes, each (n, tokens, width): none, the conditions', or nothing's and theirs.

        ``guidance`` 1 needs no unconditional rows. InputError for guidance without a condition.
        """
        if self.embedder is None:
            if guidance != 1:
                raise InputError(f"sampler.guidance: {guidance} needs a conditional checkpoint; this one takes 1 only")
            return ()
        conditional = self.embedder.conditional(seeds)
        return (conditional,) if guidance == 1 else (self.embedder.unconditional(len(seeds)), conditional)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """What was sampled (n, c, h, w) as images in [-1, 1] (n, channels, H, W).

        Latents go through the autoencoder one by one: a convolution's last bits depend on its batch, an image must not.
        """
        if self.decoder is None:
            return x
        return torch.cat([self.decoder(row / self.scale) for row in x.split(1)])


def _require(checkpoint: Path, *files: Path) -> None:
    """InputError unless the files are there: diffusers would look for a missing folder on the model hub."""
    for file in files:
        if not (checkpoint / file).is_file():
            raise InputError(f"{checkpoint}: not a checkpoint in diffusers layout, it has no {file}")


def load_unet(checkpoint: Path) -> nn.Module:
    """The float U-Net of a checkpoint folder; InputError when it is missing or unreadable."""
    checkpoint = Path(checkpoint)
    folder = checkpoint / "unet"
    _require(checkpoint, Path("unet") / "config.json", WEIGHTS)
    try:
        with torch.device("meta"):  # no memory and no time for weights that the file replaces
            unet = unets.build(read_json(folder / "config.json"))
        unet.register_to_config(_name_or_path=str(folder))  # as diffusers' own loading does
        unet.load_state_dict(
            {name: each.float() for name, each in load_file(checkpoint / WEIGHTS).items()}, assign=True
        )
    except (InputError, OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: cannot be loaded ({' '.join(str(error).split())})") from error
    return unet.eval().requires_grad_(False)


def _load_embedder(checkpoint: Path) -> "ClassEmbedder | TextEncoder | None":
    """What makes the conditions' contexts, if the checkpoint has a part for it."""
    if (checkpoint / "text_encoder").is_dir():
        from edadm.systems import text  # not before it is needed: transformers takes seconds

        return text.load(checkpoint)
    return class_embedder.load(checkpoint / "class_embedder") if (checkpoint / "class_embedder").is_dir() else None


def load_autoencoder(checkpoint: Path) -> nn.Module | None:
    """The float autoencoder of a checkpoint folder, None in pixel space; InputError when it is unreadable."""
    checkpoint = Path(checkpoint)
    folder = checkpoint / "vae"
    if not folder.is_dir():
        return None
    _require(checkpoint, Path("vae") / "config.json", AUTOENCODER_WEIGHTS)
    name = read_json(folder / "config.json").get("_class_name")
    if name not in unets.AUTOENCODERS:
        raise InputError(f"{folder}: _class_name {name!r} is not one of {', '.join(unets.AUTOENCODERS)}")
    kind = getattr(diffusers, name)
    try:
        network = kind.from_pretrained(folder, low_cpu_mem_usage=False, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: diffusers cannot load it ({' '.join(str(error).split())})") from error
    return network.eval().requires_grad_(False)


def load(checkpoint: Path) -> System:
    """Load all of a checkpoint folder but the U-Net's weights; InputError when something is missing or unreadable."""
    checkpoint = Path(checkpoint)
    _require(checkpoint, Path("unet") / "config.json", Path("scheduler") / "scheduler_config.json")
    config: dict[str, Any] = read_json(checkpoint / "unet" / "config.json")
    side = config["sample_size"]
    autoencoder = load_autoencoder(checkpoint)
    return System(
        shape=(config["in_channels"], side, side),
        diffusion=samplers.Diffusion.from_scheduler(diffusers.DDIMScheduler.from_pretrained(checkpoint / "scheduler")),
        embedder=_load_embedder(checkpoint),
        decoder=None if autoencoder is None else lambda latent: autoencoder.decode(latent).sample,
        scale=1.0 if autoencoder is None else autoencoder.config.scaling_factor,
    )


def step_list(diffusion: samplers.Diffusion, sampler: SamplerParams) -> list[int]:
    """The timesteps that the sampler visits, in order."""
    return samplers.timesteps(sampler.spacing, sampler.steps, len(diffusion.alphas_cumprod), diffusion.offset)


def noise(seeds: range, shape: tuple[int, int, int]) -> tuple[Tensor, list[torch.Generator]]:
    """Start noise (n, c, h, w), each image from a generator of its own seed, and the generators, to go on with."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]), generators
