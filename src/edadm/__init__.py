"""EDA-DM: from a diffusion model's checkpoint to a low-bit integer model, with the numbers that prove it."""

from edadm import _torchvision  # noqa: F401  (before anything that imports torchvision)
