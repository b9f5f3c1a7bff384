"""The published systems' original checkpoint files, and what is made of them.

- ``read_state_dict(path) -> dict[str, Tensor]``: the tensors of a ``.ckpt``, ``.pth``, ``.pt``, ``.safetensors`` file,
  without running anything that it holds.
- ``convert(kind, source, out, side=None)``: a checkpoint folder in diffusers layout from an original file.
- ``random_checkpoint(kind, out, seed=0)``: the same folder with random weights, at full size, from no file at all.
- ``parameter_counts(kind) -> {"unet": …, "vae": …, "class_embedder": …, "text_encoder": …}``, of the parts it has.

``kind`` is one of ``KINDS``, named like the systems: ``cifar10-ddim``, ``bedroom-ldm4``, ``church-ldm8``,
``imagenet-ldm4``, ``coco-sd14``. A folder holds ``unet/``, ``scheduler/``, and of a latent system ``vae/``, of
ImageNet's ``class_embedder/``, of Stable Diffusion's ``text_encoder/`` (its tokenizer's files are not in the original).
"""

from edadm.systems.originals.architectures import KINDS, parameter_counts
from edadm.systems.originals.converting import convert
from edadm.systems.originals.random_weights import random_checkpoint
from edadm.systems.originals.reading import read_state_dict

__all__ = ["KINDS", "convert", "parameter_counts", "random_checkpoint", "read_state_dict"]
