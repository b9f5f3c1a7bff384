"""The keys below ``train`` in params.yaml as read-only dataclasses: how the models under assets/ are trained."""

from dataclasses import dataclass
from typing import Any

from edadm.params.kinds import Settings, above_zero, at_least, between, called

IMAGES = 60_000  # of Fashion-MNIST, to train on


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining(Settings):
    """The training of the garment classifier."""

    epochs: int = at_least(1)
    """Passes over the images."""
    batch: int = between(1, IMAGES)
    """Images per step; those that an epoch has left at its end are not shown."""
    learning_rate: float = above_zero()
    """The largest one, after 30 % of the steps."""
    seed: int = at_least(0)
    """Of the first weights and of the images' order."""


@dataclass(frozen=True, kw_only=True)
class DiffusionTraining(Settings):
    """The training of a U-Net."""

    cycles: tuple[int, ...]
    """Images seen in each cycle: the learning rate starts anew, from the averaged weights of the one before."""
    batch: int = between(1, IMAGES)
    """Images per step."""
    learning_rate: float = above_zero()
    """The largest one, after 2 % of a cycle; from there it falls to 0 along a cosine."""
    ema_decay: float = between(0, 1)
    """Of the average over all steps' weights, which is what is kept."""
    seed: int = at_least(0)
    """Of the first weights, and of the first cycle's noise and images; the next cycles' seeds follow."""
    unet: dict[str, Any]
    """Settings of diffusers' class, `UNet2DModel` in pixels, `UNet2DConditionModel` in latents, but for its channels
    and size."""
    scheduler: dict[str, Any]
    """Settings of diffusers' `DDIMScheduler`."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining(Settings):
    """The training of an autoencoder."""

    seen: int = at_least(1)
    """Images seen."""
    batch: int = between(1, IMAGES)
    """Images per step."""
    learning_rate: float = above_zero()
    """The largest one, as the U-Net's."""
    kl_weight: float = at_least(0)
    """Weight of the divergence from the normal distribution beside the mean absolute error."""
    seed: int = at_least(0)
    """Of the first weights, the noise and the images' order."""
    model: dict[str, Any]
    """Settings of diffusers' `AutoencoderKL`, but for its channels and size."""


@dataclass(frozen=True, kw_only=True)
class LatentTraining(DiffusionTraining):
    """The training of a class-conditional U-Net on the latents of an autoencoder, which is trained first."""

    autoencoder: AutoencoderTraining
    label_drop: float = between(0, 1)
    """Share of images shown without their label, for guidance."""


@dataclass(frozen=True, kw_only=True)
class TrainParams(Settings):
    """How the committed checkpoints under `assets/` were trained, by `edadm train`."""

    garment_classifier: ClassifierTraining = called("garment-classifier")
    fashion_ddim: DiffusionTraining = called("fashion-ddim")
    fashion_ldm: LatentTraining = called("fashion-ldm")
